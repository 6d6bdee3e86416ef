//! How close two rows of logits are: the one place where this is computed, for serving and for the workshop alike.

/// What one position's logits have in common with the baseline's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSimilarity {
    /// Cosine of the mean-centred logits, -1..=1. Centring removes the offset that softmax ignores; the cosine of raw
    /// logits hides differences behind it. 0 if the candidate has a non-finite logit or either row is constant.
    pub cosine: f64,
    /// Mean squared difference of the logits.
    pub mse: f64,
    /// KL(baseline ‖ candidate) of the softmax distributions, nats, at least 0.
    pub kl: f64,
    /// Both rows have the same most likely token (the first one on ties). False if the candidate has a non-finite logit.
    pub top1: bool,
    /// Logits of the candidate that are NaN or infinite.
    pub non_finite: u64,
}

/// Compares the logits of one position, two rows of the same vocabulary.
///
/// Every field is a finite number for any input: `mse` and `kl` are taken over the entries that are finite in both
/// rows, so that an answer with a broken row can still be written as JSON.
///
/// # Panics
/// If the rows differ in length: the caller compares vocabularies first.
pub fn compare_rows(baseline: &[f32], candidate: &[f32]) -> RowSimilarity {
    assert_eq!(baseline.len(), candidate.len(), "rows of two vocabularies cannot be compared");
    let non_finite = candidate.iter().filter(|x| !x.is_finite()).count() as u64;
    let both: Vec<(f64, f64)> = baseline
        .iter()
        .zip(candidate)
        .filter(|(a, b)| a.is_finite() && b.is_finite())
        .map(|(&a, &b)| (f64::from(a), f64::from(b)))
        .collect();
    let whole = both.len() == baseline.len() && !both.is_empty();
    RowSimilarity {
        cosine: if whole { centred_cosine(&both) } else { 0.0 },
        mse: both.iter().map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / both.len().max(1) as f64,
        kl: divergence(&both),
        top1: whole && first_maximum(baseline) == first_maximum(candidate),
        non_finite,
    }
}

fn centred_cosine(both: &[(f64, f64)]) -> f64 {
    let n = both.len() as f64;
    let (sum_a, sum_b) = both.iter().fold((0.0, 0.0), |(x, y), (a, b)| (x + a, y + b));
    let (mean_a, mean_b) = (sum_a / n, sum_b / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in both {
        let (a, b) = (a - mean_a, b - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    if aa == 0.0 || bb == 0.0 {
        return 0.0;
    }
    // Two square roots, not the root of the product: the product leaves the range of f64 first.
    (ab / (aa.sqrt() * bb.sqrt())).clamp(-1.0, 1.0)
}

fn divergence(both: &[(f64, f64)]) -> f64 {
    if both.is_empty() {
        return 0.0;
    }
    let partition = |of: fn(&(f64, f64)) -> f64| {
        let top = both.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        top + both.iter().map(|pair| (of(pair) - top).exp()).sum::<f64>().ln()
    };
    let (log_a, log_b) = (partition(|p| p.0), partition(|p| p.1));
    let kl: f64 = both.iter().map(|(a, b)| (a - log_a).exp() * ((a - log_a) - (b - log_b))).sum();
    kl.max(0.0) // rounding can leave -1e-17 for equal rows
}

/// Index of the largest value, the first one on ties; NaN never wins. 0 for a row without numbers.
pub fn first_maximum(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] || row[best].is_nan() && !x.is_nan() {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_are_equal_and_an_offset_changes_nothing_that_softmax_sees() {
        let a = [1.0, -2.0, 0.5, 3.0];
        let same = compare_rows(&a, &a);
        assert!((same.cosine - 1.0).abs() < 1e-12 && same.mse == 0.0 && same.kl < 1e-12 && same.top1);
        let shifted = compare_rows(&a, &a.map(|x| x + 10.0));
        assert!((shifted.cosine - 1.0).abs() < 1e-9 && shifted.kl < 1e-9 && (shifted.mse - 100.0).abs() < 1e-3);
    }

    #[test]
    fn numbers_agree_with_a_hand_calculation() {
        // Centred: (-1, 0, 1) and (0, -1, 1): dot 1, norms sqrt 2 each.
        let row = compare_rows(&[0.0, 1.0, 2.0], &[1.0, 0.0, 2.0]);
        assert!((row.cosine - 0.5).abs() < 1e-12);
        assert!((row.mse - 2.0 / 3.0).abs() < 1e-12);
        // Same partition z = 1 + e + e²: KL = (1·(0-1) + e·(1-0)) / z.
        let e = std::f64::consts::E;
        assert!((row.kl - (e - 1.0) / (1.0 + e + e * e)).abs() < 1e-12);
        assert!(row.top1);
        assert!((compare_rows(&[1.0, 2.0], &[2.0, 1.0]).cosine + 1.0).abs() < 1e-12);
    }

    #[test]
    fn broken_and_constant_rows_have_no_direction() {
        let bad = compare_rows(&[1.0, 2.0, 3.0], &[1.0, f32::NAN, f32::INFINITY]);
        assert_eq!((bad.cosine, bad.top1, bad.non_finite), (0.0, false, 2));
        assert!(bad.mse.is_finite() && bad.kl.is_finite());
        assert_eq!(compare_rows(&[1.0, 2.0], &[4.0, 4.0]).cosine, 0.0);
        let broken_baseline = compare_rows(&[f32::NAN, 2.0], &[1.0, 2.0]);
        assert_eq!((broken_baseline.cosine, broken_baseline.non_finite), (0.0, 0));
        assert_eq!(compare_rows(&[], &[]).cosine, 0.0);
        let huge = compare_rows(&[f32::MAX, -f32::MAX], &[f32::MAX, -f32::MAX]);
        assert!((huge.cosine - 1.0).abs() < 1e-12 && huge.kl.is_finite());
    }

    #[test]
    fn first_maximum_breaks_ties_downwards_and_skips_nan() {
        assert_eq!(first_maximum(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(first_maximum(&[f32::NAN, -1.0, -2.0]), 1);
        assert_eq!(first_maximum(&[f32::NEG_INFINITY, f32::NAN]), 0);
    }
}
