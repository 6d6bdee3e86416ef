//! A validated rollout: the single input that later steps read instead of the custom resource.

mod ab_test;

pub use ab_test::{AbTest, HeaderMatch, OnEnd, Stickiness};

use crate::{
    Span,
    evidence::{Gate, guard::GuardSettings},
};
use std::fmt;

/// Name of a revision, `<rollout>-<10 base32 characters>`: also the name of its Deployment and Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub String);

impl Revision {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A rollout after `validate`: every reference resolved, every default applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Namespace of the custom resource and of everything that belongs to it.
    pub namespace: String,
    /// Name of the custom resource.
    pub name: String,
    /// UID of the custom resource.
    pub uid: String,
    /// `metadata.generation` that this value was made from.
    pub generation: i64,
    /// A deletion timestamp is set.
    pub deleting: bool,
    /// `spec.paused`.
    pub paused: bool,
    /// The fp16 reference and last resort.
    pub baseline: Serving,
    /// What should serve. Equal to `baseline.revision` where the spec asks for the baseline itself.
    pub model: Serving,
    /// Where its traffic comes from.
    pub route: RouteTarget,
    /// How the gateway spreads requests over the pods of a revision; `None`: as it does by itself.
    pub load_balancing: Option<LoadBalancing>,
    /// How the model is brought in.
    pub strategy: Strategy,
    /// The judge.
    pub gate: Gate,
    /// Comparing a promoted model on with fp16; `None`: it is not.
    pub guard: Option<GuardRule>,
    /// How long the old stable's pods stay after a promotion.
    pub scale_down_delay: Span,
    /// Limit of waiting for cluster objects (pods, endpoints, route acceptance) before a roll back.
    pub progress_deadline: Span,
    /// Where the candidate's pods come from.
    pub capacity: Capacity,
    /// What deletion leaves behind.
    pub deletion_policy: DeletionPolicy,
}

impl Rollout {
    /// The latch key of an attempt: `<uid>/<candidate revision>/<attempt>`.
    pub fn latch_key(&self, candidate: &Revision, attempt: u32) -> LatchKey {
        LatchKey { uid: self.uid.clone(), revision: candidate.clone(), attempt }
    }
}

/// One model with its serving settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Serving {
    /// Name made from a hash of source, precision, pool and serving as the user gave them.
    pub revision: Revision,
    /// Where the model files come from.
    pub source: Source,
    /// `ternary`, `binary`, `mixed`, `fp16` or `auto`.
    pub precision: String,
    /// Name of a node pool that the admin declared.
    pub pool: String,
    /// Pods that carry 100 % of the traffic.
    pub replicas: u32,
    /// Settings of the worker.
    pub settings: Settings,
}

/// How a promoted model is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardRule {
    /// Time between two comparisons.
    pub interval: Span,
    /// Margins against fp16, and the alarm budget.
    pub settings: GuardSettings,
}

/// Where model files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An OCI image, mounted read-only as an image volume; the reference carries its digest.
    Image(String),
    /// A directory of a PersistentVolumeClaim; the worker verifies the model digest.
    Claim {
        /// Name of the claim in the rollout's namespace.
        claim: String,
        /// Path inside the claim.
        path: String,
        /// Model digest, lower-case hex SHA-256.
        digest: String,
    },
}

/// Settings of the worker; `None`: the worker's own default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Largest decode batch, 1..=256.
    pub max_batch: Option<u32>,
    /// How long a batch may wait to fill.
    pub batch_wait: Option<Span>,
    /// Requests that may wait for a place in the batch.
    pub queue: Option<u32>,
    /// Longest sequence in tokens; by default what the model files say.
    pub context_length: Option<u32>,
    /// Tokens whose keys and values are kept after their requests; 0: none.
    pub prefix_cache_tokens: Option<u32>,
    /// Bits of a cached key or value: 16, 8, 4 or 3.
    pub kv_bits: Option<u32>,
    /// How logits are computed: `exact`, `screened` or `int8`.
    pub head: Option<&'static str>,
    /// Bytes for weights, cache and passes; by default as much as they take.
    pub memory_budget: Option<u64>,
    /// Name of the claim of the rollout's namespace that keeps repacked weights, for later starts and for the other pods
    /// of a node; by default none.
    pub weights_cache: Option<String>,
    /// From the arrival of a request to the end of its answer.
    pub request_timeout: Option<Span>,
    /// Single requests may be answered by fp16; `None`: what the model fails has failed.
    pub fallback: Option<Fallback>,
}

/// Single requests that fp16 answers in the model's place, before the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fallback {
    /// Also where the model is less sure of its answer than this, above 0 and below 1; `None`: only where it fails.
    pub min_confidence: Option<f64>,
    /// Which pod of fp16 is asked; `None`: the worker's default.
    pub balance: Option<FallbackBalance>,
    /// A model without a first token after this time has failed; `None`: the worker's default.
    pub first_token: Option<Span>,
}

/// Which pod of fp16 a worker asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackBalance {
    /// The one with the fewest requests of this worker.
    LeastLoaded,
    /// One after the other.
    RoundRobin,
}

/// The rule whose backends the operator sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// One rule of a route that the user owns; `rule: None` means the only rule.
    Adopt {
        /// Name of the HTTPRoute.
        http_route: String,
        /// Name of the rule.
        rule: Option<String>,
    },
    /// A route of our own, named like the rollout, attached to this Gateway.
    Own {
        /// Name of the Gateway in the rollout's namespace.
        gateway: String,
        /// Host names of the route; empty: all.
        hostnames: Vec<String>,
    },
}

impl RouteTarget {
    /// Name of the HTTPRoute, given the rollout's name.
    pub fn route_name<'a>(&'a self, rollout: &'a str) -> &'a str {
        match self {
            Self::Adopt { http_route, .. } => http_route,
            Self::Own { .. } => rollout,
        }
    }
}

/// How a gateway spreads requests over the pods of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancing {
    /// One after the other.
    RoundRobin,
    /// The pod with the fewest requests under way, of some that are drawn.
    LeastRequest,
}

/// How a model is brought in.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// Rising weights.
    Canary(Canary),
    /// All traffic at once, with an instant way back.
    BlueGreen(BlueGreen),
    /// A share of the users for a time.
    AbTest(AbTest),
}

/// The one step of a blue-green rollout: the switch.
static SWITCH: CanaryStep = CanaryStep::plain(100, Span(0));

impl Strategy {
    /// The candidate's weights on trial, in their order: those below 100 of a canary, the switch of a blue-green rollout,
    /// the split of an A/B test.
    pub fn steps(&self) -> &[CanaryStep] {
        match self {
            Self::Canary(canary) => &canary.steps,
            Self::BlueGreen(_) => std::slice::from_ref(&SWITCH),
            Self::AbTest(test) => &test.split,
        }
    }
}

/// The steps of a canary below 100 %; reaching 100 is the promotion and no step of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// At least one step; weights rise strictly, each 1..=99.
    pub steps: Vec<CanaryStep>,
    /// What ends a step.
    pub pace: Pace,
}

/// What ends a step of a canary, beside the evidence that each raise needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Its duration.
    Time,
    /// A whole rollback block of live data at this weight, and evidence that does not lean against the candidate.
    Evidence,
}

/// All traffic at once: the candidate is judged at weight 0, then takes all of it in one write, and stable stays whole
/// beside it for `scale_down_delay`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlueGreen {
    /// The switch comes by itself once everything is proven; otherwise it waits for the verb `promote`.
    pub auto_promote: bool,
    /// Host name under which people reach the candidate before the switch.
    pub preview_host: Option<String>,
}

/// One step of a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanaryStep {
    /// Share of the traffic for the candidate, 1..=99.
    pub weight: u32,
    /// Least time at this weight (pace `Time`); an arm without a live request for so long is without traffic.
    pub duration: Span,
    /// Wait for the verb `promote` after the step's time.
    pub pause: bool,
    /// Pods of the candidate at this step, enough for its weight and at most all; `None`: all of them. They do not fall from
    /// step to step.
    pub replicas: Option<u32>,
    /// Requests with all of these headers go to the candidate, beside the weight's share of the others; empty: none do.
    pub matches: Vec<HeaderMatch>,
}

impl CanaryStep {
    /// A share of the traffic for a time, with all of the candidate's pods.
    pub const fn plain(weight: u32, duration: Span) -> Self {
        Self { weight, duration, pause: false, replicas: None, matches: Vec::new() }
    }
}

/// Where the candidate's pods come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// They are there beside all of those that serve.
    Surge,
    /// Pods of stable make room for them as its share falls; fp16's never do.
    Swap,
}

/// What the deletion of the custom resource leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// The route as it was before, where its original backends are ready; otherwise as `Orphan`.
    Delete,
    /// The serving revision and the route on it.
    Orphan,
}

/// `<uid>/<candidate revision>/<attempt>`: what a rollback latches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatchKey {
    /// UID of the rollout.
    pub uid: String,
    /// The candidate's revision.
    pub revision: Revision,
    /// The attempt.
    pub attempt: u32,
}

impl fmt::Display for LatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.uid, self.revision, self.attempt)
    }
}

impl LatchKey {
    /// Reads the annotation's form; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (uid, revision, attempt) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || uid.is_empty() || revision.is_empty() {
            return None;
        }
        Some(Self { uid: uid.into(), revision: Revision(revision.into()), attempt: attempt.parse().ok()? })
    }
}
