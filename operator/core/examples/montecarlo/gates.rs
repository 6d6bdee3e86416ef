//! The gates of the tables, also used by the tests.

use bitnet_core::{
    Span,
    evidence::{Gate, OnInconclusive, OnNoTraffic, Percentiles, ProbeSettings, Tripwire},
    simulate::Step,
};

/// The default gate.
pub(crate) fn default_gate() -> Gate {
    Gate {
        name: "default".into(),
        probes: ProbeSettings {
            config_map: "probes".into(),
            key: "prompts.jsonl".into(),
            per_tick: 8,
            max_tokens: 32,
            positions: 16,
            pairs: 8,
            pair_tokens: 8,
        },
        preflight: 64,
        interval: Span::seconds(10),
        warmup: Span::seconds(60),
        min_mean: 0.95,
        tail_min: 0.9,
        tail_share: 0.05,
        max_ratio: 1.2,
        percentiles: Percentiles { body: true, p95: true, p99: false },
        max_excess: 0.002,
        alpha_rollback: 0.01,
        alpha_promote: 0.05,
        min_samples: 200,
        deadline: Span::seconds(3600),
        on_inconclusive: OnInconclusive::Hold,
        on_no_traffic: OnNoTraffic::Probe,
        tripwire: Tripwire { error_rate: 0.5, min_requests: 20 },
        shadow: 0,
    }
}

/// The demo's gate: fast ticks, wide margins.
pub(crate) fn demo_gate() -> Gate {
    let default = default_gate();
    Gate {
        name: "demo".into(),
        probes: ProbeSettings { max_tokens: 16, positions: 8, ..default.probes },
        preflight: 48,
        interval: Span::seconds(2),
        warmup: Span::seconds(10),
        max_ratio: 1.5,
        max_excess: 0.02,
        deadline: Span::seconds(600),
        ..default
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
