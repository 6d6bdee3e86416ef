use super::{SignalStatus, schema::without_null};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// One verdict with everything that it rests on. It never changes.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "rollouts.bitnet.dev",
    version = "v1alpha1",
    kind = "RolloutDecision",
    plural = "rolloutdecisions",
    shortname = "rd",
    category = "bitnet",
    namespaced,
    derive = "PartialEq",
    doc = "RolloutDecision records one verdict of a rollout: the rule that fired, the evidence of each signal, who or what asked. It never changes.",
    printcolumn(name = "Rollout", type_ = "string", json_path = ".spec.rollout"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".spec.verdict"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".spec.candidate"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".spec.attempt"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".spec.weight"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.by", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("a decision is a record: it never changes"))]
#[schemars(transform = without_null)]
#[serde(rename_all = "camelCase")]
pub struct RolloutDecisionSpec {
    /// Name of the rollout.
    #[schemars(length(max = 63))]
    pub rollout: String,
    /// UID of the rollout.
    #[schemars(length(max = 63))]
    pub uid: String,
    /// The revision that was judged.
    #[schemars(length(max = 63))]
    pub candidate: String,
    /// The revision that served beside it.
    #[schemars(length(max = 63))]
    pub stable: String,
    /// The fp16 revision.
    #[schemars(length(max = 63))]
    pub baseline: String,
    /// Attempt of the candidate, from 1.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub attempt: i32,
    /// Step of the strategy at which it was decided; 0: before the first live request.
    #[schemars(range(min = 0, max = 100))]
    pub step: i32,
    /// The candidate's weight when it was decided.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
    /// Ticks that the attempt took.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    #[serde(default)]
    pub ticks: i32,
    /// Live requests that the candidate answered in the attempt.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    #[serde(default)]
    pub exposed_requests: i64,
    /// What was decided: Promoted, RolledBack, Inconclusive, or Reported by an A/B test.
    #[schemars(length(max = 63))]
    pub verdict: String,
    /// The rule that fired.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// The same in words, with the numbers that mattered.
    #[schemars(length(max = 4096))]
    #[serde(default)]
    pub message: String,
    /// Who or what asked: `gate`, `deadline`, or a person as they named themselves.
    #[schemars(length(max = 253))]
    pub by: String,
    /// The signals when it was decided.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<SignalStatus>,
    /// Logarithm of the combined evidence against the candidate.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Hash of the gate's parameters.
    #[schemars(length(max = 71))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// Hash of the probe set.
    #[schemars(length(max = 71))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_set: Option<String>,
    /// When the attempt began (RFC 3339).
    #[schemars(extend("format" = "date-time", "maxLength" = 40))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it was decided (RFC 3339).
    #[schemars(extend("format" = "date-time", "maxLength" = 40))]
    pub decided_at: String,
}
