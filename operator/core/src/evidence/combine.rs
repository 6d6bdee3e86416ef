//! Several signals, one decision.
//!
//! Rollback: the weighted average of the signals' e-values is an e-value whatever their dependence, so all of them share
//! one budget. Promotion: every signal's own null must be rejected (intersection-union), each at the full level.

use crate::stats::logspace::log_sum_exp;

/// Weights of the signals in the rollback average, in the order of [`super::SignalKind::ALL`].
pub const WEIGHTS: [f64; 4] = [0.25; 4];

/// Ln of the e-value at which a null is rejected at level `alpha`.
pub fn bound(alpha: f64) -> f64 {
    -alpha.ln()
}

/// Ln of the combined e-value of the rollback tests.
pub fn ln_rollback(ln_e: &[f64; 4]) -> f64 {
    log_sum_exp(&weighted(ln_e))
}

/// Index of the signal that contributes most.
pub fn reason(ln_e: &[f64; 4]) -> usize {
    let weighted = weighted(ln_e);
    (0..4).fold(0, |best, i| if weighted[i] > weighted[best] { i } else { best })
}

fn weighted(ln_e: &[f64; 4]) -> [f64; 4] {
    let mut out = *ln_e;
    for (l, w) in out.iter_mut().zip(WEIGHTS) {
        *l += w.ln();
    }
    out
}
