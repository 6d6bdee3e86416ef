//! Why the rollout is where it is. The report is the one source of condition reasons, events, the text of
//! `kubectl bitnet`, and of the dashboard.

use crate::Time;

/// Phases of a rollout, as in `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing serves yet.
    Pending,
    /// `stable` is what the spec asks for; nothing moves.
    Serving,
    /// A candidate is on its way.
    Progressing,
    /// A person or the spec paused it.
    Paused,
    /// The candidate is at weight 0 and waits for a person or for pods.
    Holding,
    /// At 100 %, the old revision is kept for a while.
    Promoting,
    /// Back on stable or fp16, the candidate's pods are being taken down.
    RollingBack,
    /// The candidate of this spec was rolled back; only a new one or `retry` goes on.
    RolledBack,
    /// Something is broken that needs a person (no backend ready, route lost).
    Degraded,
}

impl Phase {
    /// The phase as in `status.phase`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Serving => "Serving",
            Self::Progressing => "Progressing",
            Self::Paused => "Paused",
            Self::Holding => "Holding",
            Self::Promoting => "Promoting",
            Self::RollingBack => "RollingBack",
            Self::RolledBack => "RolledBack",
            Self::Degraded => "Degraded",
        }
    }
}

/// Makes the set of reasons, the list of all of them, and their meanings for people out of one text.
macro_rules! reasons {
    ($($(#[doc = $meaning:literal])+ $name:ident,)+) => {
        /// Machine-readable reasons: a closed set, used as condition reasons, event reasons and metric labels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl Reason {
            /// All of them, in the order of this file.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason as in conditions and events: UpperCamelCase.
            pub fn name(self) -> String {
                format!("{self:?}")
            }

            /// What it says, in words.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($meaning),+).trim_ascii_start(),)+
                }
            }
        }
    };
}

reasons! {
    /// All is as the spec asks.
    Serving,
    /// Waiting for the baseline's pods.
    BaselineNotReady,
    /// Waiting for the candidate's pods.
    CandidateNotReady,
    /// The route does not exist.
    RouteMissing,
    /// The named rule does not exist.
    RuleMissing,
    /// The Gateway of an own route does not exist.
    GatewayMissing,
    /// The gateway of the route cannot do what the spec asks of it.
    GatewayUnsupported,
    /// An older rollout holds the route.
    RouteInUse,
    /// The gateway has not accepted the last change.
    RouteNotAccepted,
    /// No revision has a ready endpoint: nothing is written.
    NoBackend,
    /// The two models cannot be compared.
    NotComparable,
    /// Workers did not say who they are yet.
    IdentityUnknown,
    /// The worker has no probe set.
    ProbeSetMissing,
    /// Comparing before the first live request.
    Preflight,
    /// At a step, gathering evidence.
    Step,
    /// At a step whose pause waits for `promote`.
    StepPaused,
    /// Blue-green: at weight 0 behind its preview, gathering what the switch needs.
    Preview,
    /// The object of the preview's name belongs to somebody else.
    PreviewTaken,
    /// Blue-green: serves all traffic, the old revision stays whole beside it.
    Switched,
    /// `spec.paused` or the verb `pause`.
    Paused,
    /// Errors tripped the wire: weight 0, waiting for ready pods.
    Tripwire,
    /// The candidate lost all its pods.
    CandidateLost,
    /// The deadline passed without a verdict.
    Inconclusive,
    /// An A/B test ended: a person decides.
    Reported,
    /// Users of an A/B test did not arrive as they were assigned.
    SampleRatioMismatch,
    /// Users of an A/B test do worse with the candidate.
    UsersDoWorse,
    /// The rules derived from ours (an A/B test, a step with a match) are not copies of it any more.
    RulesChanged,
    /// No live requests and `onNoTraffic: Hold`.
    NoTraffic,
    /// Promoted; the old revision is kept for `scaleDownDelay`.
    Promoted,
    /// Proven worse.
    QualityFailed,
    /// Proven slower.
    LatencyFailed,
    /// Proven to fail more often.
    ErrorsFailed,
    /// Waited longer than `progressDeadline` for cluster objects.
    ProgressDeadlineExceeded,
    /// The verb `abort`.
    Aborted,
    /// The verb `rollback`.
    RolledBackByHand,
    /// The candidate was rolled back and the spec still asks for it.
    RolledBack,
    /// The custom resource is being deleted.
    Deleting,
    /// An edit of the baseline waits for the rollout to end.
    BaselineEditWaits,
    /// Someone else changed the weights.
    WeightsChanged,
    /// The route was taken over, baseline at 100 %.
    Adopted,
    /// The spec no longer asks for the candidate: its traffic went back without a verdict.
    Withdrawn,
    /// Stable has no ready endpoint: its traffic is on fp16 until it is back.
    StableLost,
    /// The gate's parameters or the probe set changed: a new test with half the error budget.
    Reconfigured,
    /// The deadline passed and the gate asks to go on.
    Extended,
    /// A verb was answered.
    VerbAnswered,
    /// Deletion left a revision behind that goes on serving.
    Orphaned,
    /// Fewer than 3 pods in an arm: one bad node weighs much.
    FewPods,
    /// The namespace is being deleted.
    NamespaceTerminating,
}

/// What the plan waits for, or has just done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Which rule.
    pub reason: Reason,
    /// Which object (`Deployment chat-abc…`, `HTTPRoute chat`).
    pub object: String,
    /// In words: what is the matter, and what would end it.
    pub message: String,
    /// Since when, where it is a state and not an event.
    pub since: Option<Time>,
}

/// Where the rollout stands and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The phase.
    pub phase: Phase,
    /// The most important note: `status.message` and the reason of `Progressing`.
    pub headline: Note,
    /// Everything else that is waited for or worth a warning.
    pub notes: Vec<Note>,
}
