use super::{Gate, OnInconclusive, OnNoTraffic, Percentiles, ProbeSettings, Tripwire};
use crate::Span;

/// What a QualityGate says that names nothing but its probe set: the defaults of its schema. Name and probe set are
/// placeholders.
impl Default for Gate {
    fn default() -> Self {
        Self {
            name: "default".into(),
            probes: ProbeSettings::default(),
            preflight: 64,
            interval: Span::seconds(10),
            warmup: Span::seconds(60),
            min_mean: 0.95,
            tail_min: 0.90,
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
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            config_map: "probes".into(),
            key: "prompts.jsonl".into(),
            per_tick: 8,
            max_tokens: 32,
            positions: 16,
            pairs: 8,
            pair_tokens: 8,
        }
    }
}
