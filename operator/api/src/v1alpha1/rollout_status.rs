use super::schema::{without_defaults, without_null};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the operator says about a rollout. All of it but `evidence` can be rebuilt from the route.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[schemars(transform = without_defaults, transform = without_null)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelRolloutStatus {
    /// Generation of the spec that this status is about.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the rollout stands: Pending, Serving, Progressing, Paused, Holding, Promoting, RollingBack, RolledBack or
    /// Degraded.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Why, in words.
    #[schemars(length(max = 4096))]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The revision that was promoted last; the baseline before the first promotion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<RevisionStatus>,
    /// The revision on trial, or judged last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate: Option<RevisionStatus>,
    /// The fp16 revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<RevisionStatus>,
    /// The step of the strategy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<StepStatus>,
    /// Weights by revision, read back from the route.
    #[schemars(extend("maxProperties" = 16), inner(range(min = 0, max = 1_000_000)))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, i32>,
    /// Attempt of the candidate, from 1.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// Ticks that the attempt took.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tick: Option<i32>,
    /// Hash of the gate's parameters in force.
    #[schemars(length(max = 71))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// Hash of the probe set that the attempt is pinned to.
    #[schemars(length(max = 71))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_set: Option<String>,
    /// What the evidence says now: Continue, Promote, RollBack, Hold or Inconclusive.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// The signals one by one.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<SignalStatus>,
    /// Live prompts compared for display; absent where the gate asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
    /// What a promotion still waits for, most important first.
    #[schemars(length(max = 16), inner(length(max = 1024)))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Live requests that the candidate of this attempt has answered.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_requests: Option<i64>,
    /// The last decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionStatus>,
    /// Requests of people that were answered, newest first.
    #[schemars(length(max = 10))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<VerbStatus>,
    /// The sequential state, opaque: it carries the hash of the gate's parameters.
    #[schemars(length(max = 16384))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Accepted, Ready, Progressing, BaselineServing, TrafficManaged, QualityHealthy, RolledBack, Reconciling, Stalled.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The last revisions that were decided, newest first.
    #[schemars(length(max = 10))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
}

/// A revision and its pods.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionStatus {
    /// Name of the revision, of its Deployment and of its Service.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// Its model: an image by digest, or `claim/path@digest`.
    #[schemars(length(max = 1024))]
    pub image: String,
    /// Pods that it should have.
    #[schemars(range(min = 0, max = 100_000))]
    pub replicas: i32,
    /// Pods that are ready.
    #[schemars(range(min = 0, max = 100_000))]
    pub ready: i32,
}

/// Where in its steps a rollout is.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepStatus {
    /// Number of the step, from 1; 0 before the first weight.
    #[schemars(range(min = 0, max = 100))]
    pub index: i32,
    /// Number of steps.
    #[schemars(range(min = 0, max = 100))]
    pub of: i32,
    /// `index/of`, for people.
    #[schemars(length(max = 16))]
    pub position: String,
    /// Weight of the candidate.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
    /// When this weight was confirmed by the gateway (RFC 3339).
    #[schemars(extend("format" = "date-time", "maxLength" = 40))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// One signal.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignalStatus {
    /// cosine, cosine-tail, latency or errors; in an A/B test also users and sample-ratio.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Waiting, Continue, Proven or Failed; of users Better, Worse or NoDifference.
    #[schemars(length(max = 63))]
    #[serde(default)]
    pub verdict: String,
    /// Samples so far: prompts, pairs or requests.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    #[serde(default)]
    pub samples: i64,
    /// Samples that a decision is expected to need in all, where that can be said.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<i64>,
    /// Point estimate in the signal's unit.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<String>,
    /// Confidence sequence, for people: lower and upper end.
    #[schemars(length(max = 2), inner(length(max = 32)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interval: Vec<String>,
    /// Logarithm of the evidence against the candidate: a rollback needs the combined evidence of all signals.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Logarithm of the evidence for it: a promotion needs each signal's own.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_for: Option<String>,
    /// What is worst or weakest, in a few words.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Live prompts of the candidate compared with the baseline: shown, never judged. Numbers are about the pods that run, over
/// blocks of 20 prompts.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ShadowStatus {
    /// Share of live prompts that the gate asks for, in percent.
    #[schemars(range(min = 0, max = 10))]
    pub percent: i32,
    /// The namespace's label consents; without it nothing is compared.
    pub consent: bool,
    /// Prompts compared in this attempt.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub samples: i64,
    /// Prompts that were chosen and not compared, most often because an engine was busy.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub dropped: i64,
    /// Mean cosine.
    #[schemars(length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<String>,
    /// Share of prompts under the gate's tail threshold.
    #[schemars(length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<String>,
    /// Share of positions with the same most likely token.
    #[schemars(length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<String>,
}

/// A decision, as short as status needs it; the whole of it is a RolloutDecision.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DecisionStatus {
    /// Name of the RolloutDecision.
    #[schemars(length(max = 253))]
    pub id: String,
    /// What was decided.
    #[schemars(length(max = 63))]
    pub verdict: String,
    /// The rule that fired.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// When (RFC 3339).
    #[schemars(extend("format" = "date-time", "maxLength" = 40))]
    pub at: String,
}

/// A verb and what became of it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VerbStatus {
    /// promote, promote-full, pause, resume, abort, rollback or retry.
    #[schemars(length(max = 63))]
    pub verb: String,
    /// Id of the request.
    #[schemars(length(max = 128))]
    pub id: String,
    /// Who asked, as they said.
    #[schemars(length(max = 253))]
    pub by: String,
    /// When it was answered (RFC 3339).
    #[schemars(extend("format" = "date-time", "maxLength" = 40))]
    pub at: String,
    /// What became of it, in words.
    #[schemars(length(max = 1024))]
    pub answer: String,
}

/// A revision that was decided.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HistoryEntry {
    /// Its name.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// What was decided.
    #[schemars(length(max = 63))]
    pub verdict: String,
    /// When (RFC 3339).
    #[schemars(extend("format" = "date-time", "maxLength" = 40))]
    pub at: String,
}
