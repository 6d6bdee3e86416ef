//! Sums of exponentials, in logarithms.

/// `ln(e^a + e^b)`; either may be −∞.
pub fn log_add_exp(a: f64, b: f64) -> f64 {
    let (high, low) = if a >= b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY || high == f64::INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// `ln Σ e^x`; −∞ for no terms.
pub fn log_sum_exp(terms: &[f64]) -> f64 {
    let high = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if high.is_infinite() {
        return high;
    }
    high + terms.iter().map(|x| (x - high).exp()).sum::<f64>().ln()
}

/// `ln` of the average of e-values given as logarithms; −∞ for none.
pub fn log_mean_exp(terms: &[f64]) -> f64 {
    log_sum_exp(terms) - (terms.len() as f64).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_large_nor_infinite_terms_overflow() {
        assert_eq!(log_add_exp(f64::NEG_INFINITY, 3.0), 3.0);
        assert_eq!(log_add_exp(f64::NEG_INFINITY, f64::NEG_INFINITY), f64::NEG_INFINITY);
        assert!((log_add_exp(1e6, 1e6) - (1e6 + 2f64.ln())).abs() < 1e-9);
        assert!((log_sum_exp(&[1e6, -1e6, 1e6]) - (1e6 + 2f64.ln())).abs() < 1e-9);
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_mean_exp(&[2.5; 7]), 2.5);
    }
}
