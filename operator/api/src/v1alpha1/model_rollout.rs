//! What a user asks for: a baseline, a model, a route, and how the one takes over from the other.

use super::{ModelRolloutStatus, QualityGateSpec, RouteSpec, StrategySpec, schema::without_null};
use crate::units::{Decimal, Duration, Memory};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What should serve, next to which reference, on which route, and how it is brought in.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "rollouts.bitnet.dev",
    version = "v1alpha1",
    kind = "ModelRollout",
    plural = "modelrollouts",
    shortname = "mr",
    category = "bitnet",
    namespaced,
    status = "ModelRolloutStatus",
    derive = "PartialEq",
    doc = "ModelRollout serves a model beside its fp16 baseline and rolls a changed model out as far as the evidence allows.",
    validation = Rule::new("size(self.metadata.name) <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label that begins with a letter and has at most 52 characters: names of revisions are made from it"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.stable) || ((has(self.spec.route.httpRoute) ? self.spec.route.httpRoute : '') == (has(oldSelf.spec.route.httpRoute) ? oldSelf.spec.route.httpRoute : '') && (has(self.spec.route.rule) ? self.spec.route.rule : '') == (has(oldSelf.spec.route.rule) ? oldSelf.spec.route.rule : '') && (has(self.spec.route.gateway) ? self.spec.route.gateway : '') == (has(oldSelf.spec.route.gateway) ? oldSelf.spec.route.gateway : '') && (has(self.spec.route.hostnames) ? self.spec.route.hostnames : []) == (has(oldSelf.spec.route.hostnames) ? oldSelf.spec.route.hostnames : []))")
        .message("spec.route cannot change once a model serves through it (loadBalancing can): delete the rollout and create it again"),
    validation = Rule::new("self.spec.capacity == oldSelf.spec.capacity || !has(oldSelf.status) || !has(oldSelf.status.phase) || oldSelf.status.phase in ['Pending', 'Serving', 'RolledBack']")
        .message("spec.capacity cannot change while a candidate is on its way: stable's pods may have made room for it"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step.position"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".status.step.weight"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "Cosine", type_ = "string", json_path = r#".status.signals[?(@.name=="cosine")].estimate"#),
    printcolumn(name = "Latency", type_ = "string", json_path = r#".status.signals[?(@.name=="latency")].estimate"#),
    printcolumn(name = "Errors", type_ = "string", json_path = r#".status.signals[?(@.name=="errors")].estimate"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.baseline.precision) || self.baseline.precision in ['fp16', 'auto']")
        .message("the baseline is the fp16 reference: precision must be fp16 or auto").field_path(".baseline.precision"),
    validation = Rule::new("!has(self.baseline.serving) || !has(self.baseline.serving.fallback)")
        .message("the baseline is the last tier: it has no fallback").field_path(".baseline.serving"),
    validation = Rule::new("has(self.gate) != has(self.gateSpec)")
        .message("exactly one of gate and gateSpec must be given"),
    validation = Rule::new("!has(self.strategy) || !has(self.strategy.canary) || !has(self.strategy.canary.steps) || self.strategy.canary.steps.filter(s, has(s.weight)).all(s, !has(s.replicas) || (s.replicas <= (has(self.model.replicas) ? self.model.replicas : 1) && s.replicas * 100 >= s.weight * (has(self.model.replicas) ? self.model.replicas : 1)))")
        .message("replicas of a step must be enough for its weight (model.replicas * weight / 100) and at most model.replicas").field_path(".strategy"),
    validation = Rule::new("!has(self.strategy) || !has(self.strategy.canary) || !has(self.strategy.canary.steps) || self.strategy.canary.steps.filter(s, has(s.weight)).map(s, has(s.replicas) ? s.replicas : (has(self.model.replicas) ? self.model.replicas : 1)).isSorted()")
        .message("replicas must not fall from step to step: a step without them has all").field_path(".strategy"),
    validation = Rule::new("self.capacity != 'swap' || !has(self.strategy) || has(self.strategy.canary)")
        .message("capacity: swap needs a canary: blueGreen and abTest need both models whole").field_path(".capacity"),
    validation = Rule::new("duration(self.scaleDownDelay) <= duration('168h')")
        .message("scaleDownDelay must be at most 168h").field_path(".scaleDownDelay"),
    validation = Rule::new("duration(self.progressDeadline) >= duration('10s') && duration(self.progressDeadline) <= duration('168h')")
        .message("progressDeadline must be between 10s and 168h").field_path(".progressDeadline"),
)]
#[schemars(transform = without_null)]
#[serde(rename_all = "camelCase")]
pub struct ModelRolloutSpec {
    /// The fp16 model: reference of every comparison and last resort. It is always kept warm.
    pub baseline: ArmSpec,
    /// The model that should serve; a change of its source, precision, pool or serving starts a rollout.
    pub model: ArmSpec,
    /// The route whose weights the operator sets.
    pub route: RouteSpec,
    /// How a changed model is brought in. Default: a canary of 5, 10, 20, 40, 50 percent, five minutes each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<StrategySpec>,
    /// The QualityGate that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateReference>,
    /// The same, inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_spec: Option<QualityGateSpec>,
    /// Comparing on after a promotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardSpec>,
    /// How long the old model's pods stay after a promotion, at most 168h.
    #[serde(default = "scale_down_delay")]
    pub scale_down_delay: Duration,
    /// How long pods, endpoints and the gateway may take before a roll back, 10s to 168h.
    #[serde(default = "progress_deadline")]
    pub progress_deadline: Duration,
    /// Where the candidate's pods come from.
    #[serde(default)]
    pub capacity: Capacity,
    /// What deletion leaves behind.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Stop at the current weight. Rollbacks still happen.
    #[serde(default)]
    pub paused: bool,
}

/// One model, the pods that serve it, and their settings.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArmSpec {
    /// Where the model files come from.
    pub source: SourceSpec,
    /// What the weights are: a worker whose files say something else gets no traffic. Default: `fp16` for the baseline, `auto`
    /// (whatever the files say) for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Name of a node pool that the cluster's admin declared. Default: the installation's default pool.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Pods, enough for all of the traffic. Default 1. Left alone where an autoscaler owns it.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Settings of the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<ServingSpec>,
}

/// Where model files come from: exactly one kind.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.image) != has(self.persistentVolumeClaim)")
        .message("exactly one of image and persistentVolumeClaim must be given"),
    validation = Rule::new("!has(self.image) || self.image.matches('^[a-z0-9]([-._a-z0-9]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]([-._a-z0-9]*[a-z0-9])?)*(:[a-zA-Z0-9_][-._a-zA-Z0-9]{0,127})?@sha256:[a-f0-9]{64}$')")
        .message("image must be named by digest: repository@sha256:<64 hex characters>").field_path(".image"),
)]
#[serde(rename_all = "camelCase")]
pub struct SourceSpec {
    /// An OCI image with the model files at its root, named by digest.
    #[schemars(length(min = 1, max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A directory of a PersistentVolumeClaim in the rollout's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
}

/// Model files on a claim; the worker verifies the digest and serves nothing else.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.path) || (!self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..'))")
        .message("path must be relative to the claim's root and must not contain `..`").field_path(".path"),
)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub claim_name: String,
    /// Directory in the claim. Default: its root.
    #[schemars(length(max = 512), regex(pattern = r"^[-._a-zA-Z0-9/]*$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Model digest as `inference-worker inspect` prints it: 64 hex characters, with or without `sha256:`.
    #[schemars(length(min = 64, max = 71), regex(pattern = r"^(sha256:)?[a-f0-9]{64}$"))]
    pub digest: String,
}

/// What a model's weights are.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights of -1, 0, 1 (1.58 bit).
    Ternary,
    /// Weights of -1, 1.
    Binary,
    /// Layers of different precision.
    Mixed,
    /// Floats of 16 or 32 bits.
    Fp16,
    /// What the model files say.
    Auto,
}

impl Precision {
    /// The name as in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ternary => "ternary",
            Self::Binary => "binary",
            Self::Mixed => "mixed",
            Self::Fp16 => "fp16",
            Self::Auto => "auto",
        }
    }
}

/// Settings of the worker.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.batchWait) || duration(self.batchWait) <= duration('1s')")
        .message("batchWait must be at most 1s").field_path(".batchWait"),
    validation = Rule::new("!has(self.kvBits) || self.kvBits in [16, 8, 4, 3]")
        .message("kvBits must be 16, 8, 4 or 3").field_path(".kvBits"),
    validation = Rule::new("!has(self.requestTimeout) || (duration(self.requestTimeout) >= duration('100ms') && duration(self.requestTimeout) <= duration('1h'))")
        .message("requestTimeout must be between 100ms and 1h").field_path(".requestTimeout"),
)]
#[serde(rename_all = "camelCase")]
pub struct ServingSpec {
    /// Largest batch of requests that are decoded together. Default 32.
    #[schemars(range(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<i32>,
    /// How long an idle worker waits under dense traffic for more requests to start together, at most 1s; a lone request
    /// never waits. Default 10ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_wait: Option<Duration>,
    /// Requests that may wait for a place in the batch; one more is answered 429. Default 256.
    #[schemars(range(min = 1, max = 65_535))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<i32>,
    /// Bits of a cached key or value: 16, 8, 4 or 3. Default 16. Below 16 the cache takes less memory and answers change a
    /// little: the gate judges that as it judges the weights.
    #[schemars(range(min = 3, max = 16))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_bits: Option<i32>,
    /// Memory of a worker for weights, attention cache and passes, for example 4Gi, at most the memory limit of its pool.
    /// Where it is short the cache gets fewer bits, then fewer requests run at once; a worker that cannot serve one request
    /// with it does not start and says what is missing. Default: as much as they take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_budget: Option<Memory>,
    /// Tokens whose keys and values are kept after their requests, so that a beginning that requests share is read once; 0
    /// for none. Default 2048.
    #[schemars(range(min = 0, max = 1_048_576))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_cache_tokens: Option<i32>,
    /// How logits are computed. Default: exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Where workers keep weights in the kernels' layout: a later start repacks nothing, and the pods of a node share the
    /// memory. Who can write there decides what is served. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_cache: Option<WeightsCacheSpec>,
    /// Time for a whole answer from its request's arrival, 100ms to 1h; a client may ask for less
    /// (`x-request-timeout-ms`). Default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// Longest sequence in tokens, prompt and answer. Default: what the model files say.
    #[schemars(range(min = 16, max = 1_048_576))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<i32>,
    /// Single requests that fp16 answers in the model's place, before the first byte of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FallbackSpec>,
}

/// How logits are computed.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// In the precision of the model files.
    Exact,
    /// In 8 bits, and the 40 largest as exact: greedy and top-k choices do not change.
    Screened,
    /// In 8 bits.
    Int8,
}

impl Head {
    /// The name as in the API and as the worker's option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Screened => "screened",
            Self::Int8 => "int8",
        }
    }
}

/// Where repacked weights are kept. Workers run as user and group 65532 and must be able to write there; one that cannot
/// says so in its log and serves without.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightsCacheSpec {
    /// Name of a claim in the rollout's namespace that the pods may write to. Pods on several nodes need one that several
    /// nodes may mount.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub persistent_volume_claim: String,
}

/// Single requests that fp16 answers in the model's place. Those that it answers because the model failed are errors of
/// the model.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.minConfidence) || (double(self.minConfidence) > 0.0 && double(self.minConfidence) < 1.0)")
        .message("minConfidence must lie between 0 and 1, both excluded").field_path(".minConfidence"),
    validation = Rule::new("!has(self.toBaseline) || self.toBaseline || (!has(self.minConfidence) && !has(self.balance) && !has(self.firstTokenTimeout))")
        .message("minConfidence, balance and firstTokenTimeout are about what is left to the baseline: they need toBaseline").field_path(".toBaseline"),
    validation = Rule::new("!has(self.firstTokenTimeout) || (duration(self.firstTokenTimeout) >= duration('100ms') && duration(self.firstTokenTimeout) <= duration('10m'))")
        .message("firstTokenTimeout must be between 100ms and 10m").field_path(".firstTokenTimeout"),
)]
#[serde(rename_all = "camelCase")]
pub struct FallbackSpec {
    /// Hand on to the baseline what the model fails (non-finite logits, a stopped engine, no first token in time). Default
    /// true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_baseline: Option<bool>,
    /// Hand on also what the model is less sure of than this, above 0 and below 1; the model files must hold a calibration
    /// (`inference-worker calibrate`). Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_confidence: Option<Decimal>,
    /// Which pod of the baseline a worker asks. Default: LeastLoaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<FallbackBalance>,
    /// A model without a first token after this time has failed, 100ms to 10m. Default 20s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_timeout: Option<Duration>,
}

/// Which pod of the baseline a worker asks.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallbackBalance {
    /// The one with the fewest requests of this worker.
    LeastLoaded,
    /// One after the other.
    RoundRobin,
}

/// A QualityGate in the rollout's namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
}

/// Comparing on after a promotion, for as long as the model serves. A model that lies exactly on its margins is taken to
/// fp16 by mistake after 100,000 intervals on average at the earliest (69 days of minutes), a healthy one far later.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.interval) || (duration(self.interval) >= duration('1s') && duration(self.interval) <= duration('1h'))")
        .message("interval must be between 1s and 1h").field_path(".interval"),
    validation = Rule::new("!has(self.maxRatio) || (double(self.maxRatio) > 1.0 && double(self.maxRatio) <= 10.0)")
        .message("maxRatio must be above 1 and at most 10").field_path(".maxRatio"),
)]
#[serde(rename_all = "camelCase")]
pub struct GuardSpec {
    /// Compare on, and return to fp16 when the promoted model gets worse.
    #[serde(default)]
    pub enabled: bool,
    /// Time between two comparisons, 1s to 1h. Default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// The model may take at most this multiple of fp16's time. Default: the gate's maxRatio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ratio: Option<Decimal>,
}

/// Where the candidate's pods come from.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capacity {
    /// In addition to those that serve.
    #[default]
    Surge,
    /// Pods of the stable model make room for them as its share falls; those of fp16 never do. For canaries. Traffic that
    /// comes back goes to fp16 until the stable model's pods are back.
    Swap,
}

/// What the deletion of a rollout leaves behind.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// The route as it was before, where its backends are ready.
    #[default]
    Delete,
    /// The serving revision, with the route on it.
    Orphan,
}

fn scale_down_delay() -> Duration {
    "10m".into()
}

fn progress_deadline() -> Duration {
    "1h".into()
}
