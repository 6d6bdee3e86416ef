use super::ProbeJob;
use crate::{Time, evidence::Evidence, model::Revision};

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
    /// Ids of the last verbs that were acted on, newest last, at most 8.
    pub verbs: Vec<String>,
}

/// A running attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The candidate.
    pub candidate: Revision,
    /// Its number.
    pub number: u32,
    /// Ticks that were taken.
    pub tick: u32,
    /// When the last one was taken (or the attempt began).
    pub last_tick: Time,
    /// When the current step's weight was confirmed; `None`: not yet.
    pub step_since: Option<Time>,
    /// `promote` was asked at this step.
    pub step_released: bool,
    /// Number of weight changes so far.
    pub weight_changes: u32,
    /// How often the tripwire or a lost candidate took the weight away.
    pub trips: u32,
    /// Consecutive ticks with ready candidate pods since the last trip.
    pub ready_ticks: u32,
    /// The wire is tripped: weight 0 until pods were ready for two ticks.
    pub tripped: bool,
    /// The outstanding comparison.
    pub job: Option<ProbeJob>,
    /// The probe set that was pinned.
    pub probe_set: Option<String>,
    /// The two models were found comparable.
    pub comparable: bool,
    /// The sequential evidence.
    pub evidence: Evidence,
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
    /// The gate's parameters changed since it was written.
    #[error("the gate's parameters changed since the evidence was stored: a new test begins")]
    Parameters,
    /// Truncated or garbled.
    #[error("the stored evidence cannot be read ({0}): evidence starts again")]
    Garbled(&'static str),
}
