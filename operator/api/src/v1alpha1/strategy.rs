use super::{AbTestSpec, MatchSpec};
use crate::units::Duration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a changed model is brought in: exactly one kind.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.canary), has(self.blueGreen), has(self.abTest)].filter(given, given).size() == 1")
        .message("exactly one of canary, blueGreen and abTest must be given"),
)]
#[serde(rename_all = "camelCase")]
pub struct StrategySpec {
    /// Rising shares of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanarySpec>,
    /// All traffic at once, after everything was proven without users; the old model stays whole for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blue_green: Option<BlueGreenSpec>,
    /// A share of the users for a time, each of whom stays with one arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ab_test: Option<AbTestSpec>,
}

/// All traffic at once. The candidate is compared at weight 0 until quality and paired latency are proven, then it takes
/// everything in one write; the old model stays whole for `scaleDownDelay`, ready to take it back.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlueGreenSpec {
    /// Switch as soon as everything is proven; otherwise the switch waits for the verb `promote`. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_promote: Option<bool>,
    /// Host name under which the candidate can be reached before the switch, by an HTTPRoute `<rollout>-preview` with the
    /// parents of the managed route. Default: no preview.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview_host: Option<String>,
}

/// Rising shares of the traffic: made from three numbers, or listed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.steps) || !(has(self.initialWeight) || has(self.factor) || has(self.stepDuration))")
        .message("steps take the place of initialWeight, factor and stepDuration: give one or the other"),
    validation = Rule::new("!has(self.stepDuration) || duration(self.stepDuration) <= duration('168h')")
        .message("stepDuration must be at most 168h").field_path(".stepDuration"),
    validation = Rule::new("!has(self.steps) || has(self.steps[0].weight)")
        .message("the first step must have a weight: a pause holds the weight before it").field_path(".steps"),
    validation = Rule::new("!has(self.steps) || self.steps.filter(s, has(s.weight)).map(s, s.weight).isSorted()")
        .message("weights must rise from step to step").field_path(".steps"),
    validation = Rule::new("!has(self.steps) || self.steps.filter(s, has(s.weight)).all(s, self.steps.filter(t, has(t.weight) && t.weight == s.weight).size() == 1)")
        .message("weights must rise strictly: each weight appears once").field_path(".steps"),
    validation = Rule::new("!has(self.pace) || self.pace == 'time' || !has(self.stepDuration)")
        .message("stepDuration sets the pace by time: leave it out with pace: evidence").field_path(".stepDuration"),
    validation = Rule::new("!has(self.pace) || self.pace == 'time' || !has(self.steps) || self.steps.all(s, !has(s.duration))")
        .message("duration sets the pace by time: leave it out with pace: evidence").field_path(".steps"),
    validation = Rule::new("!has(self.pace) || self.pace == 'time' || !has(self.steps) || self.steps.all(s, !has(s.match))")
        .message("a step with a match has no live comparison to set its pace: use pace: time").field_path(".steps"),
    validation = Rule::new("!has(self.steps) || self.steps.filter(s, has(s.weight)).all(s, !has(s.match) || self.steps.exists(t, has(t.weight) && t.weight > s.weight))")
        .message("the last step has no match: live errors and latency are compared there").field_path(".steps"),
)]
#[serde(rename_all = "camelCase")]
pub struct CanarySpec {
    /// First share in percent. Default 5.
    #[schemars(range(min = 1, max = 50))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_weight: Option<i32>,
    /// Each share is this multiple of the one before, up to 50. Default 2.
    #[schemars(range(min = 2, max = 50))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<i32>,
    /// Least time at each share, at most 168h. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_duration: Option<Duration>,
    /// What ends a step: its time, or the evidence (as soon as a block of live data is in and nothing leans against the
    /// candidate). Default: time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// The steps one by one; the raise to 100 follows the last one and is not in the list.
    #[schemars(length(min = 1, max = 20))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<StepSpec>>,
}

/// What ends a step.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// Its time.
    #[default]
    Time,
    /// The evidence.
    Evidence,
}

/// One step: a share of the traffic, or a pause that waits for the verb `promote`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.weight) != has(self.pause)").message("a step has exactly one of weight and pause"),
    validation = Rule::new("!has(self.duration) || has(self.weight)")
        .message("duration belongs to a weight: a pause ends with `promote`").field_path(".duration"),
    validation = Rule::new("!has(self.duration) || duration(self.duration) <= duration('168h')")
        .message("duration must be at most 168h").field_path(".duration"),
    validation = Rule::new("!has(self.replicas) || has(self.weight)")
        .message("replicas belongs to a weight: a pause keeps the pods of the step before it").field_path(".replicas"),
    validation = Rule::new("!has(self.match) || has(self.weight)")
        .message("match belongs to a weight: a pause keeps the rule of the step before it").field_path(".match"),
)]
#[serde(rename_all = "camelCase")]
pub struct StepSpec {
    /// Share of the traffic in percent, 1 to 99.
    #[schemars(range(min = 1, max = 99))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Least time at this share, at most 168h. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// Wait at the weight of the step before until the verb `promote`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseSpec>,
    /// Pods of the candidate at this step: enough for its weight, at most all, and not fewer than at the step before. They
    /// are ready before the weight comes. Default: all. They do not apply where an autoscaler owns the candidate's replicas.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Requests that go to the candidate at this step, beside the weight's share of the others. Live errors and latency are
    /// not compared at such a step (the arms serve different requests), so it is not the last one.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "match")]
    pub matches: Option<MatchSpec>,
}

/// A pause without end, written `{}`.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseSpec {}
