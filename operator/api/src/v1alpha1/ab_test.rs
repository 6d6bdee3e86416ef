use crate::units::Duration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A share of the users for a time; each user stays with one arm. Quality is proven at weight 0 before the first of them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.duration) || (duration(self.duration) >= duration('1m') && duration(self.duration) <= duration('2160h'))")
        .message("duration must be between 1m and 2160h").field_path(".duration"),
)]
#[serde(rename_all = "camelCase")]
pub struct AbTestSpec {
    /// Share of the users who meet the candidate in percent, 1 to 99. Default 10.
    #[schemars(range(min = 1, max = 99))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Only requests that match take part. Default: all do.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "match")]
    pub matches: Option<MatchSpec>,
    /// What keeps a user with an arm. Default: a cookie `bitnet-arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stickiness: Option<StickinessSpec>,
    /// How long the test lasts, 1m to 2160h. Default 168h. It ends before that only if users are proven to do worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// What users say about answers (`POST /v1/feedback`). Default: only the gate's signals are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricSpec>,
    /// What follows when the test ends. Default: Report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_end: Option<OnEnd>,
}

/// Requests that match.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatchSpec {
    /// Headers that a request must have, all of them.
    #[schemars(length(min = 1, max = 8))]
    pub headers: Vec<HeaderSpec>,
}

/// A header that a request must have.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderSpec {
    /// How the value is compared. Default: Exact.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub kind: Option<HeaderMatchType>,
    /// Its name.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub name: String,
    /// Its value, or a regular expression for all of it.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[ -~]+$"))]
    pub value: String,
}

/// How the value of a header is compared.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeaderMatchType {
    /// The same text.
    #[default]
    Exact,
    /// A regular expression of the gateway's kind, for all of the value.
    RegularExpression,
}

/// What keeps a user with an arm: exactly one kind.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.cookie) != has(self.header)").message("exactly one of cookie and header must be given"),
)]
#[serde(rename_all = "camelCase")]
pub struct StickinessSpec {
    /// Name of a cookie that workers set for new users. It holds the arm and a random number.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// Name of a header that says who the user is: users are assigned by its hash, requests without it by lot.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// What users say about answers.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricSpec {
    /// What is compared.
    #[serde(rename = "type")]
    pub kind: MetricType,
}

/// What is compared of users' feedback.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricType {
    /// The share of users whose value is 1 (others: 0). Exact at any number of users.
    Conversion,
    /// The mean of values from 0 to 1. Needs at least 1000 users in each arm.
    Mean,
}

/// What follows when an A/B test ends.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnEnd {
    /// Traffic goes back, the result is recorded, a person decides.
    #[default]
    Report,
    /// Promote if users are proven to do better and the gate is satisfied (without a metric: if the gate is); roll back if
    /// users are proven to do worse; else as Report.
    Promote,
}
