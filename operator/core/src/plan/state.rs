use super::{ProbeJob, Watch};
use crate::{
    Span, Time,
    evidence::{Evidence, ab::Ab},
    model::Revision,
};

/// What a rollout remembers between reconciles beyond the route: one opaque string in `status.evidence`. Losing it
/// undoes no verdict and raises no weight: the evidence starts again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The running attempt, if one gathers evidence.
    pub attempt: Option<Attempt>,
    /// Since when cluster objects are waited for (the clock of `progressDeadline`).
    pub waiting_since: Option<Time>,
    /// When the last shift of traffic was seen accepted by the gateway (the clock of drains and `scaleDownDelay`).
    pub confirmed_at: Option<Time>,
    /// The epoch that `confirmed_at` belongs to.
    pub confirmed_epoch: u64,
    /// The verb `pause` is in force.
    pub paused: bool,
    /// Marks (16 hex digits) of the ids of the last verbs that were acted on, newest last, at most 8.
    pub verbs: Vec<String>,
    /// The route as we last wrote or read it: tells a change by hand from a write of ours, and brings the pointers
    /// back where somebody deleted the route.
    pub seen: Option<Seen>,
    /// When weights changed by hand were put back, within the last minute, at most 3.
    pub reverts: Vec<Time>,
    /// What the guard of a promoted model remembers.
    pub guard: Option<Watch>,
    /// When a deletion let go of the route: the clock of the last drain.
    pub released_at: Option<Time>,
}

/// The part of the route that is ours, at one epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The ledger's epoch.
    pub epoch: u64,
    /// The ledger's `stable`.
    pub stable: Revision,
    /// The ledger's `candidate`.
    pub candidate: Option<Revision>,
    /// The ledger's `attempt`.
    pub attempt: u32,
    /// The revision and the attempt in the ledger's `rollback_of`.
    pub rollback_of: Option<(Revision, u32)>,
    /// Backends of our rule, at most 8.
    pub weights: Vec<(Revision, u32)>,
}

/// A running attempt.
#[allow(clippy::struct_excessive_bools, reason = "independent facts, each with its own life")]
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The candidate.
    pub candidate: Revision,
    /// Its number.
    pub number: u32,
    /// The fp16 baseline that it is compared with: another one is another test.
    pub against: Revision,
    /// Ticks that were taken.
    pub tick: u32,
    /// When the last one was taken (or one interval before the attempt began: its first tick is due at once).
    pub last_tick: Time,
    /// Ticks that the gate's deadline does not count: pauses, the tests before a reconfiguration, extensions.
    pub excused: u32,
    /// When the current step's weight was confirmed; `None`: not yet.
    pub step_since: Option<Time>,
    /// Ticks of this step with live counts of both arms at its weight.
    pub step_ticks: u32,
    /// Live requests of the candidate in the last tick that had counts.
    pub last_requests: u32,
    /// Time of this step in which no tick was taken (the operator was away): it is no observation.
    pub unwatched: Span,
    /// `promote` was asked at this step.
    pub step_released: bool,
    /// How often the tripwire or a lost candidate took the weight away.
    pub trips: u32,
    /// Consecutive ticks with ready candidate pods since the last trip.
    pub ready_ticks: u32,
    /// The wire is tripped: weight 0 until pods were ready for two ticks.
    pub tripped: bool,
    /// The outstanding comparison.
    pub job: Option<ProbeJob>,
    /// The pod that was asked last: the next job goes to the one after it.
    pub last_pod: String,
    /// The probe set that was pinned.
    pub probe_set: Option<String>,
    /// Another probe set, reported by the last result: reported twice in a row it is one reconfiguration.
    pub other_probe_set: Option<String>,
    /// The last result came from a worker without a probe set.
    pub probe_set_missing: bool,
    /// The two models were found comparable.
    pub comparable: bool,
    /// Why they cannot be compared, in words; then nothing is asked any more.
    pub mismatch: Option<String>,
    /// Reconfigurations so far: the k-th test runs at alpha / 2^k.
    pub reconfigurations: u32,
    /// The sequential evidence; `None` before the first tick.
    pub evidence: Option<Box<Evidence>>,
    /// What the users of an A/B test said.
    pub users: Option<Ab>,
}

/// Why a stored state was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by another version of the format.
    #[error("the stored evidence has format {found}, this operator writes {expected}: evidence starts again")]
    Version {
        /// Version found.
        found: u32,
        /// Version of this build.
        expected: u32,
    },
    /// Truncated or garbled.
    #[error("the stored evidence cannot be read ({0}): evidence starts again")]
    Garbled(&'static str),
}
