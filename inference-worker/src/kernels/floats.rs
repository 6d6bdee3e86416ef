//! Products of floats, written once for all registers.

#![expect(clippy::inline_always, reason = "compiled into callers that have the features of the register")]
#![expect(clippy::needless_range_loop, reason = "indices of several arrays of registers, which all become names")]

use super::DenseRows;
use super::simd::{Element, Vector};

/// Rows whose products one call makes at most.
pub(super) const ROWS: usize = 64;
/// Tokens of a tile.
const TILE: usize = 6;
/// From so many tokens on, weights are widened once for all of them.
const MANY: usize = 2 * TILE;
/// Tokens of a tile of rows in their stored form, where registers are many and where they are few.
const FEW: [usize; 2] = [8, TILE];
/// Tokens that share widened weights.
const BLOCK: usize = 8 * TILE;
/// Rows that are widened at once, and their columns: they stay in the first-level cache beside a tile's activations.
const GROUP: usize = 16;
const STRETCH: usize = 384;
/// Lanes of the widest register.
const MOST_LANES: usize = 16;

/// `out[token × rows + row]` for all tokens and rows. Each pair has one accumulator that runs over the columns in order,
/// so its result does not depend on what else is computed.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn dense<V: Vector, E: Element>(work: DenseRows<'_, E>, out: &mut [f32]) {
    let DenseRows { elements, stride, x } = work;
    assert!(stride > 0 && stride.is_multiple_of(V::LANES));
    let (rows, tokens) = (elements.len() / stride, x.len() / stride);
    assert!(rows <= ROWS && elements.len() == rows * stride && x.len() == tokens * stride);
    assert!(out.len() == rows * tokens);
    // SAFETY: the caller's promise; the shapes were checked above.
    unsafe {
        if tokens < MANY { few::<V, E>(elements, x, stride, out) } else { many::<V, E>(elements, x, stride, out) }
    }
}

/// Tiles of so many rows by tokens, as there are registers.
macro_rules! tiles {
    ($V:ty, $at:expr, $($wide:literal | $narrow:literal for $tokens:literal),+) => {
        match ($at.tokens, <$V>::WIDE) {
            $(($tokens, true) => $at.rows::<$V, $wide, $tokens>(),
            ($tokens, false) => $at.rows::<$V, $narrow, $tokens>(),)+
            _ => unreachable!("a tile has 1 to 8 tokens"),
        }
    };
}

/// Few tokens: rows are read once, in their stored form.
///
/// # Safety
/// The CPU has the features of `V`; the shapes are those that [`dense`] checked.
#[inline(always)]
unsafe fn few<V: Vector, E: Element>(elements: &[E], x: &[f32], stride: usize, out: &mut [f32]) {
    let (rows, tokens) = (elements.len() / stride, x.len() / stride);
    // Tiles of one size: a small one would widen the rows for few tokens.
    let tiles = tokens.div_ceil(if V::WIDE { FEW[0] } else { FEW[1] }).max(1);
    let tile = tokens.div_ceil(tiles).max(1);
    for (x, out) in x.chunks(tile * stride).zip(out.chunks_mut(tile * rows)) {
        let mut at = Few { elements, x, stride, out, tokens: x.len() / stride };
        // SAFETY: the caller's promise.
        unsafe {
            tiles!(
                V, at,
                8 | 8 for 1, 8 | 4 for 2, 4 | 2 for 3, 4 | 2 for 4, 4 | 2 for 5, 4 | 2 for 6, 3 | 2 for 7, 3 | 2 for 8
            );
        }
    }
}

struct Few<'a, E> {
    elements: &'a [E],
    x: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
    tokens: usize,
}

impl<S: Element> Few<'_, S> {
    /// All rows, `R` at a time, then one by one.
    ///
    /// # Safety
    /// The CPU has the features of `V`, and there are `T` tokens.
    #[inline(always)]
    unsafe fn rows<V: Vector, const R: usize, const T: usize>(&mut self) {
        let rows = self.elements.len() / self.stride;
        let mut row = 0;
        while row + R <= rows {
            // SAFETY: so many rows are left.
            unsafe { self.tile::<V, R, T>(row, rows) };
            row += R;
        }
        while row < rows {
            // SAFETY: one row is left.
            unsafe { self.tile::<V, 1, T>(row, rows) };
            row += 1;
        }
    }

    /// # Safety
    /// As [`Few::rows`]; there are `R` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<V: Vector, const R: usize, const T: usize>(&mut self, row: usize, rows: usize) {
        let mut sums = [[0.0; T]; R];
        // SAFETY: rows and tokens are as many as that, `stride` long, which is a multiple of the lanes.
        unsafe {
            let elements: [*const S; R] = std::array::from_fn(|r| self.elements.as_ptr().add((row + r) * self.stride));
            let x: [*const f32; T] = std::array::from_fn(|t| self.x.as_ptr().add(t * self.stride));
            let mut vectors = [[V::splat(0.0); T]; R];
            add_products::<V, S, R, T>(&mut vectors, elements, x, self.stride);
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = vectors[r][t].sum();
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (t, sum) in sums.iter().enumerate() {
                self.out[t * rows + row + r] = *sum;
            }
        }
    }
}

/// Many tokens: some columns of some rows are widened and meet all tokens of a block before the next ones do. Between
/// them the accumulators lie in memory.
///
/// # Safety
/// As [`few`].
#[inline(always)]
unsafe fn many<V: Vector, E: Element>(elements: &[E], x: &[f32], stride: usize, out: &mut [f32]) {
    let rows = elements.len() / stride;
    let mut widened = vec![0.0_f32; GROUP * STRETCH];
    let mut sums = vec![0.0_f32; ROWS * BLOCK * MOST_LANES];
    for (x, out) in x.chunks(BLOCK * stride).zip(out.chunks_mut(BLOCK * rows)) {
        let tokens = x.len() / stride;
        sums.fill(0.0);
        for start in (0..stride).step_by(STRETCH) {
            let columns = STRETCH.min(stride - start);
            for first in (0..rows).step_by(GROUP) {
                let group = GROUP.min(rows - first);
                // SAFETY: the group's rows are there, and `start + columns` is at most `stride`; both are multiples of
                // the lanes, as `STRETCH` is. `sums` has `BLOCK` registers for each of `ROWS` rows.
                unsafe {
                    for row in 0..group {
                        let from = elements.as_ptr().add((first + row) * stride + start);
                        let to = widened.as_mut_ptr().add(row * STRETCH);
                        let mut at = 0;
                        while at < columns {
                            E::load::<V>(from.add(at)).store(to.add(at));
                            at += V::LANES;
                        }
                    }
                    let sums = sums.as_mut_ptr().add(first * BLOCK * V::LANES);
                    let at = Many { widened: &widened, x, stride, start, columns, sums };
                    let mut token = 0;
                    while token < tokens {
                        token += match tokens - token {
                            TILE.. => at.group::<V, TILE>(group, token),
                            3.. => at.group::<V, 3>(group, token),
                            _ => at.group::<V, 1>(group, token),
                        };
                    }
                }
            }
        }
        for row in 0..rows {
            for token in 0..tokens {
                // SAFETY: this register was written above.
                out[token * rows + row] = unsafe { V::load(sums.as_ptr().add((row * BLOCK + token) * V::LANES)).sum() };
            }
        }
    }
}

struct Many<'a> {
    widened: &'a [f32],
    x: &'a [f32],
    stride: usize,
    start: usize,
    columns: usize,
    sums: *mut f32,
}

impl Many<'_> {
    /// All rows of a group times `T` tokens; returns `T`.
    ///
    /// # Safety
    /// The CPU has the features of `V`; `sums` holds `BLOCK` registers for each row of the group.
    #[inline(always)]
    unsafe fn group<V: Vector, const T: usize>(&self, group: usize, token: usize) -> usize {
        let mut row = 0;
        // SAFETY: so many rows are left each time; the tokens are by the caller's promise.
        unsafe {
            while V::WIDE && row + 4 <= group {
                self.tile::<V, 4, T>(row, token);
                row += 4;
            }
            while row + 2 <= group {
                self.tile::<V, 2, T>(row, token);
                row += 2;
            }
            while row < group {
                self.tile::<V, 1, T>(row, token);
                row += 1;
            }
        }
        T
    }

    /// # Safety
    /// As [`Many::group`]; `R` rows and `T` tokens are left.
    #[inline(always)]
    unsafe fn tile<V: Vector, const R: usize, const T: usize>(&self, row: usize, token: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let rows: [*const f32; R] = std::array::from_fn(|r| self.widened.as_ptr().add((row + r) * STRETCH));
            let x: [*const f32; T] =
                std::array::from_fn(|t| self.x.as_ptr().add((token + t) * self.stride + self.start));
            let mut sums = [[V::splat(0.0); T]; R];
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = V::load(self.sums.add(((row + r) * BLOCK + token + t) * V::LANES));
                }
            }
            add_products::<V, f32, R, T>(&mut sums, rows, x, self.columns);
            for r in 0..R {
                for t in 0..T {
                    sums[r][t].store(self.sums.add(((row + r) * BLOCK + token + t) * V::LANES));
                }
            }
        }
    }
}

/// Adds the products of `columns` columns.
///
/// # Safety
/// The CPU has the features of `V`; all pointers are good for `columns` elements, a multiple of the lanes.
#[inline(always)]
unsafe fn add_products<V: Vector, E: Element, const R: usize, const T: usize>(
    sums: &mut [[V; T]; R],
    rows: [*const E; R],
    x: [*const f32; T],
    columns: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut local = *sums;
        let mut at = 0;
        while at < columns {
            let mut weights = [V::splat(0.0); R];
            for r in 0..R {
                weights[r] = E::load::<V>(rows[r].add(at));
            }
            for t in 0..T {
                let value = V::load(x[t].add(at));
                for r in 0..R {
                    local[r][t] = weights[r].fma(value, local[r][t]);
                }
            }
            at += V::LANES;
        }
        *sums = local;
    }
}
