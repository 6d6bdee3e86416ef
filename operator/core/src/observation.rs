//! What `observe` found: the world as far as one rollout sees it. Every part may be missing; nothing here is a verdict.

use crate::{
    Time,
    evidence::{LiveArm, Probes},
    model::{HeaderMatch, LatchKey, Revision},
    plan::Verdict,
    stats::asymptotic::Moments,
};
use std::collections::BTreeMap;

/// One look at the world.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// The route, read with a quorum GET.
    pub route: RouteState,
    /// Deployments and Services that carry this rollout's UID, by revision.
    pub workloads: BTreeMap<Revision, Workload>,
    /// The Service `<rollout>-baseline` exists: where workers find fp16 for single requests.
    pub baseline_service: bool,
    /// Verbs that wait in annotations.
    pub verbs: Vec<VerbRequest>,
    /// What the workers said, present only when `plan::tick_due` asked for it.
    pub sample: Option<Sample>,
    /// The namespace is being deleted: nothing may be created.
    pub namespace_terminating: bool,
    /// Names of the RolloutDecision objects that exist for this rollout.
    pub decisions: Vec<String>,
    /// Our finalizer is on the custom resource.
    pub finalizer: bool,
    /// The HTTPRoute `<rollout>-preview`.
    pub preview: Preview,
}

/// The HTTPRoute of a blue-green preview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Preview {
    /// There is none.
    #[default]
    Missing,
    /// It belongs to this rollout.
    Ours {
        /// Its host names.
        hosts: Vec<String>,
        /// Names of its backends.
        backends: Vec<String>,
    },
    /// An object of that name belongs to somebody else.
    Foreign,
}

/// The route and the rule that we set.
#[allow(clippy::large_enum_variant, reason = "one value per reconcile, and it is nearly always the large one")]
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RouteState {
    /// Not looked at, or the read failed: nothing may be concluded.
    #[default]
    Unknown,
    /// No HTTPRoute of that name.
    Missing,
    /// The route exists, the rule does not: the reason in words.
    RuleMissing(String),
    /// Another, older rollout holds the route: its name.
    InUse(String),
    /// The Gateway of an own route is missing: its name.
    GatewayMissing(String),
    /// The route's gateway cannot do what the spec asks of it, or has not said who it is: the reason in words. Only before
    /// the route is ours; after that a way back must stay open.
    Unsupported(String),
    /// The route with our rule.
    Found(Route),
}

/// A route as read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    /// UID of the HTTPRoute.
    pub uid: String,
    /// Its resourceVersion: the precondition of the next write.
    pub resource_version: String,
    /// Every parent says `Accepted` and `ResolvedRefs` at the current generation.
    pub accepted: bool,
    /// What the parents say where `accepted` is false.
    pub acceptance_message: String,
    /// Backends that share the traffic of our rule, with their weights (a missing weight is read as 1): those of the rule,
    /// or of the split that was derived from it.
    pub backends: Vec<Backend>,
    /// What the route does beside the weights.
    pub detours: Detours,
    /// Rules that could be added: a route has at most 16.
    pub spare_rules: u32,
    /// Our annotations; `None` before adoption.
    pub ledger: Option<Ledger>,
    /// We created this route (`route: {gateway}`).
    pub owned: bool,
    /// The original backends (kept in an annotation) resolve to ready endpoints; `None`: there are none kept.
    pub originals_ready: Option<bool>,
}

impl Route {
    /// The weight of a revision's backend, 0 where it has none.
    pub fn weight(&self, revision: &Revision) -> u32 {
        self.backends.iter().filter(|b| b.name == revision.0).fold(0, |sum: u32, b| sum.saturating_add(b.weight))
    }
}

/// What a route does beside the weights of its rule: for A/B tests, and for steps of a canary with a match. Nothing of it is
/// there outside of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detours {
    /// Value of the header that the gateway adds to the requests of the split, so that workers know of the test.
    pub mark: Option<String>,
    /// Rules that are copies of ours but for their name, further headers, and backends.
    pub rules: Vec<Detour>,
}

/// A rule that was derived from ours: for requests with further headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detour {
    /// What it is for; its name in the route is made from it.
    pub name: String,
    /// Whether requests take it.
    pub state: DetourState,
    /// Headers that a request must have beside those of our rule.
    pub headers: Vec<HeaderMatch>,
    /// All of its requests go to this revision; `None`: they are split by the weights, and the rest of our rule's requests
    /// goes to its first backend.
    pub to: Option<Revision>,
}

impl Detour {
    /// A rule of this name that no request takes.
    pub fn dormant(name: &str) -> Self {
        Self { name: name.into(), state: DetourState::Dormant, ..Self::default() }
    }

    /// No request takes it.
    pub fn sleeps(&self) -> bool {
        self.state == DetourState::Dormant
    }
}

/// Whether requests take a derived rule.
///
/// A gateway learns of a rule in two parts, its backends and its matches, and forgets it in two parts. A request that comes
/// between them is lost (Envoy: `cluster_not_found`). So a rule is added dormant, woken by a later write, put to sleep by
/// the write that ends its use, and removed when the gateway has long known that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetourState {
    /// Requests with its headers take it.
    #[default]
    Awake,
    /// No request takes it. It has our rule's backends, and neither headers nor `to`.
    Dormant,
    /// Somebody changed it, or our rule, of which it should be a copy.
    Altered,
}

/// One backend of our rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Name of the Service (or other kind).
    pub name: String,
    /// Its weight.
    pub weight: u32,
}

/// What the route's annotations hold: the part of the rollout that survives everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// UID of the rollout that holds the route.
    pub uid: String,
    /// The last promoted revision; the baseline before the first promotion.
    pub stable: Revision,
    /// What is on trial or was judged last.
    pub candidate: Option<Revision>,
    /// Attempt of the candidate, from 1.
    pub attempt: u32,
    /// 0: candidate at weight 0; i: the i-th step of the list; steps + 1: promoted.
    pub step: u32,
    /// Rises by 1 with every write of ours.
    pub epoch: u64,
    /// The attempt that was rolled back.
    pub rollback_of: Option<LatchKey>,
    /// The last verdict.
    pub decision: Option<StoredDecision>,
}

/// The `decision` annotation: a compact record (≤ 2 KB) of which core reads only what planning needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDecision {
    /// Name of the RolloutDecision object.
    pub id: String,
    /// What was decided.
    pub verdict: Verdict,
    /// The attempt that it ended.
    pub key: LatchKey,
    /// When.
    pub at: Time,
    /// The whole record as stored.
    pub text: String,
}

/// A revision's Deployment and Service as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The Deployment exists; its `spec.replicas`.
    pub replicas: Option<u32>,
    /// The Service exists.
    pub service: bool,
    /// Its pods, by name.
    pub pods: Vec<Pod>,
    /// Ready endpoints of the Service.
    pub ready_endpoints: u32,
    /// An autoscaler owns the replicas: we never write them.
    pub autoscaled: bool,
    /// It carries the baseline label.
    pub baseline: bool,
}

impl Workload {
    /// Pods that are ready.
    pub fn ready(&self) -> u32 {
        self.pods.iter().filter(|p| p.ready_since.is_some()).count() as u32
    }
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Name of the pod.
    pub name: String,
    /// Ready since; `None`: not ready, or going away.
    pub ready_since: Option<Time>,
    /// Why it is not ready, in words: unschedulable, image error, termination message.
    pub problem: Option<String>,
}

/// A verb from an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerbRequest {
    /// What is asked.
    pub verb: Verb,
    /// Id of the request: acted on once.
    pub id: String,
    /// The candidate that the person saw.
    pub revision: String,
    /// The attempt that the person saw.
    pub attempt: u32,
    /// Self-declared author.
    pub by: String,
}

/// What people can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// End the pause of the current step.
    Promote,
    /// Go to 100 % now, without the missing evidence.
    PromoteFull,
    /// Stop at the current weight.
    Pause,
    /// Go on.
    Resume,
    /// All traffic to stable, in any phase.
    Abort,
    /// All traffic to fp16, in any phase.
    Rollback,
    /// A new attempt with fresh evidence.
    Retry,
}

/// What the workers said in one tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When the scrape ended.
    pub at: Time,
    /// Counter deltas of both arms over the same interval; `None` where either arm's scrape failed or only set its
    /// references.
    pub live: Option<Live>,
    /// Cumulative counters of stable's live pods with their age, for the history.
    pub stable_total: Option<(LiveArm, f64)>,
    /// The finished comparison of a probe job.
    pub probes: ProbeOutcome,
    /// Can the candidate be compared with the baseline at all?
    pub comparable: Comparable,
}

/// Counter deltas of one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// The candidate's.
    pub candidate: LiveArm,
    /// Stable's.
    pub stable: LiveArm,
    /// Length of the interval in seconds.
    pub seconds: f64,
    /// Users of an A/B test.
    pub users: Users,
}

/// Users of an A/B test in one interval, `(candidate, stable)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Users {
    /// Newly assigned.
    pub assigned: (u64, u64),
    /// With a first feedback: their number, the sum of their values and of the squares.
    pub outcomes: (Moments, Moments),
}

/// What became of the outstanding probe job.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ProbeOutcome {
    /// No job was out.
    #[default]
    None,
    /// It still runs.
    Running,
    /// The pod is gone or forgot the job: it may be asked of another pod with the same key.
    Lost(String),
    /// A finished job.
    Done(Probes),
}

/// Whether the two models can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Comparable {
    /// Not asked yet, or a worker did not answer: the reason.
    #[default]
    Unknown,
    /// Tokenizer, template, vocabulary, end tokens agree and the context suffices.
    Yes,
    /// The field that differs, and both values.
    No {
        /// Name of the field of the worker's identity.
        field: String,
        /// The baseline's value.
        baseline: String,
        /// The candidate's value.
        candidate: String,
    },
    /// A worker serves something else than the spec says.
    Other {
        /// Name of the field, in the spec and in the worker's identity.
        field: String,
        /// The spec's value.
        asked: String,
        /// The worker's value.
        found: String,
    },
}
