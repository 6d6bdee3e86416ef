//! Block votes (E3): one bounded number per block of live requests.
//!
//! A vote compares both arms over the same interval and is antisymmetric in them: exchanging the arms turns its sign. So
//! for equal arms its mean is 0 *whatever the dependence and burstiness inside the block*, and bets on its mean
//! ([`super::bets`]) stay valid where bets per request would not. Positive votes speak against the candidate.

use super::bets::{Increments, bet};

/// Standard deviations at which a vote is clipped: the rollback tests and promotion on latency.
pub const CLIP: f64 = 2.0;

/// The same for promotion on errors: rare errors skew a vote, and a wider clip keeps its mean on the right side.
pub const CLIP_PROMOTE_ERRORS: f64 = 3.0;

/// Increments of the claim "the candidate is worse".
pub fn worse(vote: f64) -> Increments {
    bet(vote)
}

/// Increments of the claim "the candidate is not worse".
pub fn not_worse(vote: f64) -> Increments {
    bet(-vote)
}

fn clipped(difference: f64, deviation: f64, clip: f64) -> f64 {
    let x = difference / deviation / clip;
    if x.is_nan() { 0.0 } else { x.clamp(-1.0, 1.0) }
}

/// Vote on the body of two latency histograms over the same cells in rising order, the candidate's shifted down by the
/// margin: `P(C > B) + P(C = B)/2` against ½. 0 where an arm is empty.
pub fn body(candidate: &[u64], stable: &[u64], clip: f64) -> f64 {
    let (n_c, n_b) = (total(candidate), total(stable));
    if n_c == 0.0 || n_b == 0.0 {
        return 0.0;
    }
    let (mut below, mut wins) = (0.0, 0.0);
    for (&c, &b) in candidate.iter().zip(stable) {
        wins += c as f64 * (below + b as f64 / 2.0);
        below += b as f64;
    }
    let deviation = ((n_c + n_b + 1.0) / (12.0 * n_c * n_b)).sqrt();
    clipped(wins / (n_c * n_b) - 0.5, deviation, clip)
}

/// Vote on a tail: `over` of `of` observations lie above the quantile's edge, of which history expects the share
/// `p0` (0 < p0 < 1). 0 where an arm is empty.
pub fn tail(candidate: (u64, u64), stable: (u64, u64), p0: f64, clip: f64) -> f64 {
    let ((over_c, n_c), (over_b, n_b)) = (candidate, stable);
    if n_c == 0 || n_b == 0 {
        return 0.0;
    }
    let (n_c, n_b) = (n_c as f64, n_b as f64);
    let deviation = (p0 * (1.0 - p0) * (1.0 / n_c + 1.0 / n_b)).sqrt();
    clipped(over_c as f64 / n_c - over_b as f64 / n_b, deviation, clip)
}

/// Vote on errors, as `(errors, requests)`: is the candidate's rate more than `excess` over stable's? `rate` > 0 is
/// stable's error rate in history. 0 where an arm is empty.
pub fn errors(candidate: (u64, u64), stable: (u64, u64), excess: f64, rate: f64, clip: f64) -> f64 {
    let ((s_c, n_c), (s_b, n_b)) = (candidate, stable);
    if n_c == 0 || n_b == 0 {
        return 0.0;
    }
    let (n_c, n_b) = (n_c as f64, n_b as f64);
    let deviation = ((rate + excess) / n_c + rate / n_b).sqrt();
    clipped(s_c as f64 / n_c - s_b as f64 / n_b - excess, deviation, clip)
}

fn total(cells: &[u64]) -> f64 {
    cells.iter().map(|&n| n as f64).sum()
}
