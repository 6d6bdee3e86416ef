//! Weights of three values, and their 2-bit form in a checkpoint.

/// A matrix of -1, 0 and 1 with one scale: `w ≈ weights · scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ternary {
    /// -1, 0 or 1 for each weight.
    pub weights: Vec<i8>,
    /// Mean of |w|, at least 1e-5: what `weight_scale` of an `autobitlinear` checkpoint holds.
    pub scale: f32,
}

impl Ternary {
    /// The ternary matrix of full-precision weights: `round(w / scale)` within -1..=1.
    pub fn of(weights: &[f32]) -> Self {
        let sum: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
        let scale = ((sum / weights.len().max(1) as f64) as f32).max(1e-5);
        let inverse = 1.0 / scale;
        let weights = weights.iter().map(|w| (w * inverse).round_ties_even().clamp(-1.0, 1.0) as i8).collect();
        Self { weights, scale }
    }
}

/// Packs a matrix of `columns` columns into bytes, four rows each: with R = ceil(rows / 4), bits 2i and 2i+1 of byte
/// `[r, c]` hold the weight of row r + i·R plus one. Rows that do not exist are packed as weight 0.
pub fn pack(weights: &[i8], columns: usize) -> Vec<u8> {
    let rows = weights.len() / columns;
    let stride = rows.div_ceil(4) * columns;
    let code = |at: usize| weights.get(at).map_or(1, |w| (w + 1) as u8);
    (0..stride).map(|at| (0..4).map(|i| code(at + i * stride) << (2 * i)).sum()).collect()
}

/// Undoes [`pack`] for a matrix of `rows` rows.
pub fn unpack(packed: &[u8], rows: usize, columns: usize) -> Vec<i8> {
    let stride = rows.div_ceil(4) * columns;
    (0..rows * columns).map(|at| (packed[at % stride] >> (2 * (at / stride)) & 3) as i8 - 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounds_to_the_mean_of_absolute_values() {
        let t = Ternary::of(&[0.5, -1.5, 1.0, 0.4, -0.1, 2.5]);
        assert_eq!(t.scale, 1.0);
        assert_eq!(t.weights, [0, -1, 1, 0, 0, 1]);
        assert_eq!(Ternary::of(&[0.0; 4]), Ternary { weights: vec![0; 4], scale: 1e-5 });
    }

    #[test]
    fn bits_lie_where_the_format_says() {
        // Eight rows of one column: R = 2, so byte 0 holds rows 0, 2, 4, 6, lowest bits first.
        let packed = pack(&[-1, 0, 0, 0, 1, 0, -1, 0], 1);
        assert_eq!(packed, [0b00_10_01_00, 0b01_01_01_01]);
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(rows in 1usize..14, columns in 1usize..9, seed in any::<u64>()) {
            let mut random = crate::engine::random::Random::from_seed(seed);
            let weights: Vec<i8> = (0..rows * columns).map(|_| random.below(3) as i8 - 1).collect();
            let packed = pack(&weights, columns);
            prop_assert_eq!(packed.len(), rows.div_ceil(4) * columns);
            prop_assert!(packed.iter().all(|b| (0..4).all(|i| b >> (2 * i) & 3 < 3)));
            prop_assert_eq!(unpack(&packed, rows, columns), weights);
        }
    }
}
