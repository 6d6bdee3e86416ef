//! Sample-ratio mismatch: do the users arrive in the arms as they were assigned? If not, some are lost on the way, and no
//! comparison of the arms means what it seems to.

use statrs::function::beta::ln_beta;

/// Bets of [`increments`].
pub const RATIOS: usize = 10;

/// Factors on the odds of the intended split, each in both directions.
const FACTORS: [f64; RATIOS] = [1.02, 1.05, 1.1, 1.25, 2.0, 1.0 / 1.02, 1.0 / 1.05, 1.0 / 1.1, 1.0 / 1.25, 1.0 / 2.0];

/// Increments of `candidate` and `stable` newly assigned users under an intended share `weight` of the candidate. The
/// weight may change from call to call. Nothing where it is not strictly between 0 and 1.
pub fn increments(weight: f64, candidate: u64, stable: u64) -> [f64; RATIOS] {
    if !(weight > 0.0 && weight < 1.0) {
        return [0.0; RATIOS];
    }
    let (n_c, n_b) = (candidate as f64, stable as f64);
    FACTORS.map(|kappa| {
        // p/w and (1 − p)/(1 − w) for odds that are κ times the intended ones.
        let scale = 1.0 - weight + kappa * weight;
        n_c * (kappa / scale).ln() - n_b * scale.ln()
    })
}

/// Ln of the e-value of a Dirichlet mixture with `concentration` around a fixed split (Lindon and Malek), in closed form
/// from the counts so far: what other products show. Unlike [`increments`] it allows no change of the weight.
pub fn dirichlet_ln_e(weight: f64, concentration: f64, candidate: u64, stable: u64) -> Option<f64> {
    if !(weight > 0.0 && weight < 1.0 && concentration > 0.0 && concentration.is_finite()) {
        return None;
    }
    let (n_c, n_b) = (candidate as f64, stable as f64);
    let (a, b) = (weight * concentration, (1.0 - weight) * concentration);
    Some(ln_beta(a + n_c, b + n_b) - ln_beta(a, b) - n_c * weight.ln() - n_b * (-weight).ln_1p())
}
