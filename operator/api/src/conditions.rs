//! Types of the conditions in `ModelRollout.status.conditions`. Their reasons are in [`crate::reasons`].

/// The spec and everything it names were understood. False: nothing moves until the object is corrected.
pub const ACCEPTED: &str = "Accepted";
/// Some revision serves all of the traffic and nothing needs a person.
pub const READY: &str = "Ready";
/// A candidate is on its way; the reason says what it waits for.
pub const PROGRESSING: &str = "Progressing";
/// The fp16 baseline has ready pods: the last resort is there.
pub const BASELINE_SERVING: &str = "BaselineServing";
/// The route carries our weights and the gateway accepted them.
pub const TRAFFIC_MANAGED: &str = "TrafficManaged";
/// The evidence of the running attempt does not speak against the candidate. Unknown without evidence.
pub const QUALITY_HEALTHY: &str = "QualityHealthy";
/// The spec's model was rolled back; only another model or the verb `retry` tries again.
pub const ROLLED_BACK: &str = "RolledBack";

/// kstatus: what the spec asks for does not serve yet, and it goes on by itself.
pub const RECONCILING: &str = "Reconciling";
/// kstatus: what the spec asks for does not serve, and only an edit or a verb of a person helps.
pub const STALLED: &str = "Stalled";

/// All of them, in the order of display.
pub const ALL: [&str; 9] = [
    ACCEPTED,
    READY,
    PROGRESSING,
    BASELINE_SERVING,
    TRAFFIC_MANAGED,
    QUALITY_HEALTHY,
    ROLLED_BACK,
    RECONCILING,
    STALLED,
];

/// What each one says where it is true, for the reference of reasons.
pub const MEANINGS: [(&str, &str); 9] = [
    (ACCEPTED, "The spec and everything it names were understood. False: nothing moves until the object is corrected."),
    (READY, "Some revision serves all of the traffic and nothing needs a person."),
    (PROGRESSING, "A candidate is on its way; the reason says what it waits for."),
    (BASELINE_SERVING, "The fp16 baseline has ready pods: the last resort is there."),
    (TRAFFIC_MANAGED, "The route carries the operator's weights and the gateway accepted them."),
    (
        QUALITY_HEALTHY,
        "The evidence of the running attempt does not speak against the candidate. Unknown without evidence.",
    ),
    (ROLLED_BACK, "The spec's model was rolled back; only another model or the verb `retry` tries again."),
    (RECONCILING, "For kstatus: what the spec asks for does not serve yet, and it goes on by itself."),
    (STALLED, "For kstatus: what the spec asks for does not serve, and only an edit or a verb of a person helps."),
];
