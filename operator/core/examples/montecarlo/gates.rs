//! The gates of the tables, also used by the tests.

use bitnet_core::{
    Span,
    evidence::{Gate, ProbeSettings},
    simulate::Step,
};

/// The demo's gate: fast ticks, wide margins.
pub(crate) fn demo_gate() -> Gate {
    Gate {
        name: "demo".into(),
        probes: ProbeSettings { max_tokens: 16, positions: 8, ..ProbeSettings::default() },
        preflight: 48,
        interval: Span::seconds(2),
        warmup: Span::seconds(10),
        max_ratio: 1.5,
        max_excess: 0.02,
        deadline: Span::seconds(600),
        ..Gate::default()
    }
}

/// Steps of these weights, each of `seconds`.
pub(crate) fn steps(weights: &[u32], seconds: i64) -> Vec<Step> {
    weights.iter().map(|&weight| Step { weight, duration: Span::seconds(seconds) }).collect()
}

/// The demo's steps.
pub(crate) fn demo_steps() -> Vec<Step> {
    steps(&[5, 10, 20, 50], 20)
}

/// The default steps.
pub(crate) fn default_steps() -> Vec<Step> {
    steps(&[5, 10, 20, 40, 50], 300)
}
