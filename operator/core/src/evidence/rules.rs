use super::Gate;
use crate::stats::{
    bets::{BoundedMean, Share},
    histogram::Shift,
    wealth::RestartPrior,
};

/// Shortest block of live requests or of latency pairs that a rollback test sees as one observation.
const BLOCK_MS: i64 = 10_000;
/// Length of a block of live requests for promotion.
const PROMOTE_BLOCK_MS: i64 = 30_000;

/// A gate in the form in which the tests use it. Total: a gate outside its documented ranges (validation refuses such)
/// gives tests that are valid for the nearest parameters within them.
pub(super) struct Rules {
    pub(super) prior: RestartPrior,
    pub(super) mean: BoundedMean,
    pub(super) mean_threshold: f64,
    pub(super) tail_min: f64,
    pub(super) tail_share: f64,
    pub(super) tail_above: Share,
    pub(super) tail_below: Share,
    /// ln of the latency margin.
    pub(super) ln_ratio: f64,
    pub(super) shift: Shift,
    pub(super) excess: f64,
    /// ln E that rejects the combined rollback null.
    pub(super) rollback_bound: f64,
    pub(super) alpha_rollback: f64,
    /// ln E that rejects a promotion null.
    pub(super) promote_bound: f64,
    pub(super) alpha_promote: f64,
    /// Ticks of a block.
    pub(super) block: u32,
    /// Ticks of a block for promotion on live latency.
    pub(super) promote_block: u32,
}

impl Rules {
    pub(super) fn of(gate: &Gate) -> Self {
        let interval = gate.interval.0.max(1);
        let ticks = |length: i64| length.saturating_add(interval - 1).div_euclid(interval).clamp(1, 86_400) as u32;
        let mean_threshold = within(strictest(gate.min_mean), 1e-6, 1.0 - 1e-6);
        let tail_share = within(gate.tail_share, 1e-6, 1.0 - 1e-6);
        let ratio = within(gate.max_ratio, 1.000_001, 1e3);
        let alpha_rollback = within(gate.alpha_rollback, 1e-30, 0.5);
        let alpha_promote = within(gate.alpha_promote, 1e-30, 0.5);
        Self {
            prior: RestartPrior::new(gate.horizon()),
            mean: BoundedMean::new(mean_threshold, 0.0, 1.0),
            mean_threshold,
            tail_min: strictest(gate.tail_min),
            tail_share,
            tail_above: Share::above(tail_share),
            tail_below: Share::below(tail_share),
            ln_ratio: ratio.ln(),
            shift: Shift::of(ratio),
            excess: within(gate.max_excess, 1e-6, 1.0),
            rollback_bound: -alpha_rollback.ln(),
            alpha_rollback,
            promote_bound: -alpha_promote.ln(),
            alpha_promote,
            block: ticks(BLOCK_MS),
            promote_block: ticks(PROMOTE_BLOCK_MS),
        }
    }
}

/// A threshold that is no number is met by nothing.
pub(super) fn strictest(threshold: f64) -> f64 {
    if threshold.is_nan() { 1.0 } else { threshold }
}

/// `value` within `[low, high]`; NaN is `low`.
pub(super) fn within(value: f64, low: f64, high: f64) -> f64 {
    value.max(low).min(high)
}
