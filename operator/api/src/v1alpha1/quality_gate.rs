//! The judge's settings. Every field has a default, so that `probes: {configMap: NAME}` is a complete gate.

use crate::units::{Decimal, Duration};
use serde::{Deserialize, Serialize};

/// What decides about a candidate: which probes are compared, which signals must hold, and how certain a verdict is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::CustomResource, kube::KubeSchema),
    schemars(transform = super::schema::without_null),
    kube(
        group = "rollouts.bitnet.dev",
        version = "v1alpha1",
        kind = "QualityGate",
        plural = "qualitygates",
        shortname = "qg",
        category = "bitnet",
        namespaced,
        derive = "PartialEq",
        doc = "QualityGate says what decides about a candidate model: probes, signals with their margins, confidence.",
        printcolumn(name = "Probes", type_ = "string", json_path = ".spec.probes.configMap"),
        printcolumn(name = "Cosine", type_ = "string", json_path = ".spec.signals.cosine.minMean"),
        printcolumn(name = "Latency", type_ = "string", json_path = ".spec.signals.latency.maxRatio"),
        printcolumn(name = "Errors", type_ = "string", json_path = ".spec.signals.errors.maxExcess"),
        printcolumn(name = "Deadline", type_ = "string", json_path = ".spec.deadline"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    ),
    x_kube(
        validation = Rule::new("duration(self.interval) >= duration('1s') && duration(self.interval) <= duration('10m')")
            .message("interval must be between 1s and 10m").field_path(".interval"),
        validation = Rule::new("duration(self.warmup) <= duration('1h')")
            .message("warmup must be at most 1h").field_path(".warmup"),
        validation = Rule::new("duration(self.deadline) >= duration(self.interval) && duration(self.deadline) <= duration('168h')")
            .message("deadline must be at least one interval and at most 168h").field_path(".deadline"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct QualityGateSpec {
    /// The prompts that both models answer, and how much of them at each tick.
    pub probes: ProbeSpec,
    /// Prompts that are compared at weight 0 before the candidate gets its first live request.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 10000)))]
    #[serde(default = "default::preflight")]
    pub preflight: i32,
    /// Length of a tick, 1s to 10m: how often evidence is taken and judged.
    #[serde(default = "default::interval")]
    pub interval: Duration,
    /// Live latency of pods that are ready for less than this is left out, at most 1h.
    #[serde(default = "default::warmup")]
    pub warmup: Duration,
    /// What is judged, with the margins.
    #[serde(default)]
    pub signals: SignalSpec,
    /// How certain the verdicts are.
    #[serde(default)]
    pub confidence: ConfidenceSpec,
    /// Prompts that a promotion needs (a rollback needs none).
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1_000_000)))]
    #[serde(default = "default::min_samples")]
    pub min_samples: i32,
    /// Time of evidence after which an undecided attempt is inconclusive, at most 168h.
    #[serde(default = "default::deadline")]
    pub deadline: Duration,
    /// What an inconclusive attempt does.
    #[serde(default)]
    pub on_inconclusive: OnInconclusive,
    /// What an attempt without live requests does.
    #[serde(default)]
    pub on_no_traffic: OnNoTraffic,
    /// The reflex that takes a failing candidate's traffic away before any verdict.
    #[serde(default)]
    pub tripwire: TripwireSpec,
    /// Comparing live prompts, for display only.
    #[serde(default)]
    pub shadow: ShadowSpec,
}

impl QualityGateSpec {
    /// The gate with all defaults and the given probe set.
    pub fn with_probes(config_map: &str) -> Self {
        Self {
            probes: ProbeSpec {
                config_map: config_map.to_owned(),
                key: default::key(),
                per_tick: default::per_tick(),
                max_tokens: default::max_tokens(),
                positions: default::positions(),
                pairs: default::pairs(),
                pair_tokens: default::pair_tokens(),
            },
            preflight: default::preflight(),
            interval: default::interval(),
            warmup: default::warmup(),
            signals: SignalSpec::default(),
            confidence: ConfidenceSpec::default(),
            min_samples: default::min_samples(),
            deadline: default::deadline(),
            on_inconclusive: OnInconclusive::default(),
            on_no_traffic: OnNoTraffic::default(),
            tripwire: TripwireSpec::default(),
            shadow: ShadowSpec::default(),
        }
    }
}

/// The probe set and how much of it is used at each tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("self.positions <= self.maxTokens")
            .message("positions must be at most maxTokens: positions are drawn from the continuation").field_path(".positions"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ProbeSpec {
    /// Name of the ConfigMap with the probe set, in the rollout's namespace.
    #[cfg_attr(
        feature = "crd",
        schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))
    )]
    pub config_map: String,
    /// Key in it: one JSON object with a `prompt` per line.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$")))]
    #[serde(default = "default::key")]
    pub key: String,
    /// Most prompts per tick, drawn at random with replacement.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 256)))]
    #[serde(default = "default::per_tick")]
    pub per_tick: i32,
    /// Tokens of the baseline's greedy continuation of a prompt.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 512)))]
    #[serde(default = "default::max_tokens")]
    pub max_tokens: i32,
    /// Positions of a continuation at which the logits are compared, at most `maxTokens`.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 64)))]
    #[serde(default = "default::positions")]
    pub positions: i32,
    /// Latency pairs per tick: the same prompt generated by candidate and stable, one after the other.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 64)))]
    #[serde(default = "default::pairs")]
    pub pairs: i32,
    /// Forced tokens of each generation of a pair.
    #[cfg_attr(feature = "crd", schemars(range(min = 2, max = 256)))]
    #[serde(default = "default::pair_tokens")]
    pub pair_tokens: i32,
}

/// What is judged. All of them count; none can be switched off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SignalSpec {
    /// Similarity of the output to the fp16 baseline, on probes.
    #[serde(default)]
    pub cosine: CosineSpec,
    /// Time to first token and time per output token against stable, live and in pairs.
    #[serde(default)]
    pub latency: LatencySpec,
    /// Failed live requests against stable.
    #[serde(default)]
    pub errors: ErrorSpec,
}

/// Cosine similarity of mean-centred logits to those of the fp16 baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("double(self.minMean) > 0.0 && double(self.minMean) < 1.0")
            .message("minMean must lie between 0 and 1, both excluded").field_path(".minMean"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CosineSpec {
    /// The mean over prompts must be at least this, between 0 and 1.
    #[serde(default = "default::min_mean")]
    pub min_mean: Decimal,
    /// The worst prompts, which a mean hides.
    #[serde(default)]
    pub tail: TailSpec,
}

/// A quantile of the cosine over prompts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("double(self.quantile) > 0.0 && double(self.quantile) <= 0.5")
            .message("quantile must be above 0 and at most 0.5").field_path(".quantile"),
        validation = Rule::new("double(self.min) > 0.0 && double(self.min) < 1.0")
            .message("min must lie between 0 and 1, both excluded").field_path(".min"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct TailSpec {
    /// Which quantile: `0.05` is the 5th percentile. Above 0, at most 0.5.
    #[serde(default = "default::quantile")]
    pub quantile: Decimal,
    /// It must be at least this, between 0 and 1.
    #[serde(default = "default::tail_min")]
    pub min: Decimal,
}

/// Latency against the revision that serves beside the candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("double(self.maxRatio) > 1.0 && double(self.maxRatio) <= 10.0")
            .message("maxRatio must be above 1 and at most 10").field_path(".maxRatio"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct LatencySpec {
    /// The candidate may take at most this multiple of stable's time. Above 1, at most 10.
    #[serde(default = "default::max_ratio")]
    pub max_ratio: Decimal,
    /// Percentiles of live latency that a promotion asks for; a rollback watches all of them.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 3)), x_kube(merge_strategy = ListMerge::Set))]
    #[serde(default = "default::percentiles")]
    pub percentiles: Vec<Percentile>,
}

/// A percentile of live latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Percentile {
    /// The body of the distribution.
    P50,
    /// One request in twenty is slower.
    P95,
    /// One request in a hundred is slower: proving it takes tens of thousands of requests per arm.
    P99,
}

/// Errors against the revision that serves beside the candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("double(self.maxExcess) > 0.0 && double(self.maxExcess) <= 0.5")
            .message("maxExcess must be above 0 and at most 0.5").field_path(".maxExcess"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ErrorSpec {
    /// Share of failed requests that the candidate may have above stable's. Above 0, at most 0.5.
    #[serde(default = "default::max_excess")]
    pub max_excess: Decimal,
}

/// Confidence of the verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("double(self.rollback) >= 0.5 && double(self.rollback) < 1.0")
            .message("rollback must be at least 0.5 and below 1").field_path(".rollback"),
        validation = Rule::new("double(self.promote) >= 0.5 && double(self.promote) < 1.0")
            .message("promote must be at least 0.5 and below 1").field_path(".promote"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ConfidenceSpec {
    /// 1 minus the probability that a candidate within all margins is ever rolled back. At least 0.5, below 1.
    #[serde(default = "default::rollback")]
    pub rollback: Decimal,
    /// 1 minus the probability that a candidate beyond a margin is promoted. At least 0.5, below 1.
    #[serde(default = "default::promote")]
    pub promote: Decimal,
}

/// What an attempt does that reached its deadline without a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum OnInconclusive {
    /// The candidate gets no traffic and waits for a person.
    #[default]
    Hold,
    /// As if it had been found worse.
    Rollback,
    /// Another deadline (the error rates are those of the first).
    Extend,
    /// Promote at the last step if every estimate lies within its margin with its whole interval and nothing leans against
    /// the candidate, else as Hold. No error rate is promised for such a promotion.
    PromoteIfCompatible,
}

/// What an attempt does without live requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum OnNoTraffic {
    /// Generations of the latency pairs stand in for requests.
    #[default]
    Probe,
    /// Wait.
    Hold,
}

/// The tripwire: many errors at once take the candidate's weight to 0; it is no verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "crd",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("double(self.errorRate) >= 0.05 && double(self.errorRate) <= 1.0")
            .message("errorRate must be between 0.05 and 1").field_path(".errorRate"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct TripwireSpec {
    /// Share of failed candidate requests within a minute that trips it, 0.05 to 1.
    #[serde(default = "default::error_rate")]
    pub error_rate: Decimal,
    /// Candidate requests that it needs within that minute.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 100_000)))]
    #[serde(default = "default::min_requests")]
    pub min_requests: i32,
}

/// Comparing live prompts of the candidate with the baseline, in idle time and for display only: they are not drawn at
/// random, so no verdict rests on them. Needs the label `rollouts.bitnet.dev/shadow-consent: granted` on the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ShadowSpec {
    /// Share of the candidate's live prompts in percent, 0 (none) to 10.
    #[cfg_attr(feature = "crd", schemars(range(min = 0, max = 10)))]
    #[serde(default)]
    pub percent: i32,
}

impl Default for CosineSpec {
    fn default() -> Self {
        Self { min_mean: default::min_mean(), tail: TailSpec::default() }
    }
}

impl Default for TailSpec {
    fn default() -> Self {
        Self { quantile: default::quantile(), min: default::tail_min() }
    }
}

impl Default for LatencySpec {
    fn default() -> Self {
        Self { max_ratio: default::max_ratio(), percentiles: default::percentiles() }
    }
}

impl Default for ErrorSpec {
    fn default() -> Self {
        Self { max_excess: default::max_excess() }
    }
}

impl Default for ConfidenceSpec {
    fn default() -> Self {
        Self { rollback: default::rollback(), promote: default::promote() }
    }
}

impl Default for TripwireSpec {
    fn default() -> Self {
        Self { error_rate: default::error_rate(), min_requests: default::min_requests() }
    }
}

/// The defaults, one function each, because the schema derivation wants paths.
mod default {
    use super::{Decimal, Duration, Percentile};

    pub(super) fn key() -> String {
        "prompts.jsonl".into()
    }
    pub(super) fn per_tick() -> i32 {
        8
    }
    pub(super) fn max_tokens() -> i32 {
        32
    }
    pub(super) fn positions() -> i32 {
        16
    }
    pub(super) fn pairs() -> i32 {
        8
    }
    pub(super) fn pair_tokens() -> i32 {
        8
    }
    pub(super) fn preflight() -> i32 {
        64
    }
    pub(super) fn interval() -> Duration {
        "10s".into()
    }
    pub(super) fn warmup() -> Duration {
        "60s".into()
    }
    pub(super) fn min_samples() -> i32 {
        200
    }
    pub(super) fn deadline() -> Duration {
        "1h".into()
    }
    pub(super) fn min_mean() -> Decimal {
        "0.95".into()
    }
    pub(super) fn quantile() -> Decimal {
        "0.05".into()
    }
    pub(super) fn tail_min() -> Decimal {
        "0.90".into()
    }
    pub(super) fn max_ratio() -> Decimal {
        "1.2".into()
    }
    pub(super) fn percentiles() -> Vec<Percentile> {
        vec![Percentile::P50, Percentile::P95]
    }
    pub(super) fn max_excess() -> Decimal {
        "0.002".into()
    }
    pub(super) fn rollback() -> Decimal {
        "0.99".into()
    }
    pub(super) fn promote() -> Decimal {
        "0.95".into()
    }
    pub(super) fn error_rate() -> Decimal {
        "0.5".into()
    }
    pub(super) fn min_requests() -> i32 {
        20
    }
}
