//! f32 matrix products of strided operands on the calling thread: training's share of the arithmetic.
//!
//! Serving uses the kernels beside this file. Training needs products with transposed and interleaved operands, and
//! parallelism above the product (one thread per share of the batch), so the product itself must not start threads.

/// A matrix that reads a slice with strides.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows × columns` whose rows start every `stride` values.
    ///
    /// # Panics
    /// If the slice is shorter than the last element's place.
    pub fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(last(rows, columns, stride) < values.len(), "a {rows} x {columns} matrix ends behind its values");
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Where a product goes: rows of a slice, `stride` values apart.
#[derive(Debug)]
pub struct Target<'a> {
    /// First value of the first row and all that follows.
    pub values: &'a mut [f32],
    /// Distance between the starts of two rows; at least the product's columns.
    pub stride: usize,
    /// Add to what is there instead of replacing it.
    pub accumulate: bool,
}

/// `target (+)= factor · left · right`. Sums run over the inner dimension in one order, whatever the other operands of
/// a batch are, so equal inputs give equal bits on one CPU.
///
/// # Panics
/// If the shapes do not fit, are empty, or the target is too short.
pub fn multiply(Target { values, stride, accumulate }: Target<'_>, left: Matrix<'_>, right: Matrix<'_>, factor: f32) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "inner dimensions differ");
    assert!(m > 0 && n > 0 && k > 0, "an operand is empty");
    assert!(stride >= n, "rows of the target overlap");
    assert!(last(m, n, stride) < values.len(), "the product ends behind its target");
    // SAFETY: every index that the routine forms is row · row stride + column · column stride of an operand. For the
    // operands `Matrix::new` checked the largest one against the slice (transposing exchanges the terms only), for the
    // target the assertion above does; strides are not negative, so none lies before the start. The target is borrowed
    // exclusively, its rows do not overlap (stride >= n), and all elements are initialised f32.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            values.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            if accumulate { 1.0 } else { 0.0 },
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn last(rows: usize, columns: usize, stride: usize) -> usize {
    rows.saturating_sub(1).saturating_mul(stride).saturating_add(columns.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The portable path: plain loops, sums in f64.
    fn reference(target: &mut Target<'_>, left: Matrix<'_>, right: Matrix<'_>, factor: f32) {
        let at = |m: &Matrix<'_>, r: usize, c: usize| f64::from(m.values[r * m.row_stride + c * m.column_stride]);
        for r in 0..left.rows {
            for c in 0..right.columns {
                let sum: f64 = (0..left.columns).map(|k| at(&left, r, k) * at(&right, k, c)).sum();
                let place = &mut target.values[r * target.stride + c];
                let before = if target.accumulate { f64::from(*place) } else { 0.0 };
                *place = (before + f64::from(factor) * sum) as f32;
            }
        }
    }

    fn numbers(seed: usize, n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 2_654_435_761 + seed * 40_503) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    proptest! {
        #[test]
        fn equals_plain_loops_and_touches_nothing_else(
            (m, n, k) in (1usize..20, 1usize..20, 1usize..40),
            (pad_a, pad_b, pad_c) in (0usize..3, 0usize..3, 0usize..3),
            (turn_a, turn_b, accumulate) in any::<(bool, bool, bool)>(),
        ) {
            let operand = |rows: usize, columns: usize, pad: usize, turn: bool, seed: usize| {
                let (r, c) = if turn { (columns, rows) } else { (rows, columns) };
                (numbers(seed, r * (c + pad)), r, c, c + pad)
            };
            let (va, ra, ca, sa) = operand(m, k, pad_a, turn_a, 1);
            let (vb, rb, cb, sb) = operand(k, n, pad_b, turn_b, 2);
            let a = Matrix::new(&va, ra, ca, sa);
            let b = Matrix::new(&vb, rb, cb, sb);
            let (a, b) = (if turn_a { a.transposed() } else { a }, if turn_b { b.transposed() } else { b });
            let stride = n + pad_c;
            let mut got = numbers(3, m * stride);
            let mut want = got.clone();
            multiply(Target { values: &mut got, stride, accumulate }, a, b, 0.5);
            reference(&mut Target { values: &mut want, stride, accumulate }, a, b, 0.5);
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                if i % stride < n {
                    prop_assert!((g - w).abs() < 1e-4, "{g} {w}");
                } else {
                    prop_assert_eq!(g.to_bits(), w.to_bits());
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "ends behind its values")]
    fn an_operand_that_is_too_short_is_refused() {
        Matrix::new(&[0.0; 5], 2, 3, 3);
    }

    #[test]
    #[should_panic(expected = "ends behind its target")]
    fn a_target_that_is_too_short_is_refused() {
        let v = [1.0; 4];
        let m = Matrix::new(&v, 2, 2, 2);
        multiply(Target { values: &mut [0.0; 3], stride: 2, accumulate: false }, m, m, 1.0);
    }
}
