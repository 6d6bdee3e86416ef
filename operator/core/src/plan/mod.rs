//! `plan(&Rollout, &State, &Observation, now) -> Plan`: total, pure, complete.
//!
//! A [`Plan`] is a whole document: what must exist, the one route write, what may shrink, the next [`State`], what to
//! ask of the workers, and a [`Report`]. `apply` executes it in the order of its fields and takes no decision.

use crate::{
    Span, Time,
    evidence::{Assessment, ab::AbAssessment, guard::GuardAssessment},
    model::{LatchKey, Revision, Rollout},
    observation::{Detours, Ledger, StoredDecision, Verb},
    report::{self, Note, Report},
};

mod ab_test;
mod attempt;
mod baseline;
mod blue_green;
mod canary;
mod capacity;
mod deletion;
mod detours;
mod draft;
mod encoding;
mod guard;
mod route;
mod state;
mod verbs;
mod verdict;
mod view;
mod words;

pub(crate) use ab_test::{asked as ab_asked, settings as ab_settings};
pub use blue_green::preview_name;
pub use guard::{Watch, guard_due};
pub use state::{Attempt, Seen, State, StateError};
pub use verdict::decision_id;
pub use view::DRAIN;

use crate::{
    model::{RouteTarget, Strategy},
    observation::{Observation, RouteState},
};
use draft::{Draft, note};
use report::{Phase, Reason};
use view::{Standing, View};

/// A complete plan. Fields are in the order of execution.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The finalizer must be on the custom resource (`true`) or must go now (`false`, last step of a deletion).
    pub finalizer: bool,
    /// Deployments and Services that must exist with at least these replicas (capacity grows before traffic moves).
    pub grow: Vec<Grow>,
    /// Pods of stable that made room for the candidate's come back: its Deployment, if it exists, gets so many replicas.
    pub regrow: Option<(Revision, u32)>,
    /// The one write of the route, if any.
    pub shift: Option<RouteWrite>,
    /// The ledger's decision whose RolloutDecision object does not exist yet: it is created from the stored text.
    pub record: Option<StoredDecision>,
    /// The write of the preview route, if any.
    pub preview: Option<PreviewWrite>,
    /// What may go: only after traffic has left it, the gateway confirmed, and a drain interval passed.
    pub shrink: Vec<Shrink>,
    /// The probe job to post.
    pub probe: Option<ProbeJob>,
    /// Events, emitted after the status was written.
    pub events: Vec<Event>,
    /// The next state.
    pub state: State,
    /// Verbs answered by this plan (their annotations are removed).
    pub answered: Vec<Answered>,
    /// The last assessment, for status and metrics.
    pub assessment: Option<Assessment>,
    /// Where an A/B test stands, for status.
    pub users: Option<AbAssessment>,
    /// Where the guard of a promoted model stands, for status and metrics.
    pub guard: Option<GuardAssessment>,
    /// The guard's part of the state must be stored now. Else what was stored of it stays stored, and the new one is kept
    /// in memory: a quiet rollout writes nothing.
    pub checkpoint: bool,
    /// Why.
    pub report: Report,
    /// When to look again at the latest.
    pub requeue_after: Span,
}

impl Plan {
    /// What is stored of the next state, given what is: the guard's part only where it would be missed.
    pub fn to_store(&self, stored: &State) -> State {
        let keep = !self.checkpoint && self.state.guard.is_some();
        let guard = if keep { stored.guard.clone() } else { self.state.guard.clone() };
        State { guard, ..self.state.clone() }
    }
}

/// A revision that must exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Grow {
    /// Its serving settings (source, pool, …).
    pub serving: crate::model::Serving,
    /// Least replicas; `None`: leave the number alone (autoscaled, or already larger).
    pub replicas: Option<u32>,
    /// It carries the baseline label.
    pub baseline: bool,
}

/// The one conditional write of the route.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteWrite {
    /// Create our own route with these backends.
    Create {
        /// Backends and weights, sum 100.
        backends: Vec<(Revision, u32)>,
        /// The annotations.
        ledger: Ledger,
    },
    /// Replace the backends of our rule and our annotations (adoption keeps the originals in an annotation).
    Set {
        /// Backends and weights, sum 100, every weight explicit.
        backends: Vec<(Revision, u32)>,
        /// The annotations, epoch already raised.
        ledger: Ledger,
        /// What the route does beside the weights.
        detours: Detours,
        /// First write: keep the original backends in an annotation.
        adopt: bool,
        /// The verdict that this very write carries: rendered into the `decision` annotation (then
        /// `ledger.decision` is not yet it). `None`: the annotation stays as it is.
        decision: Option<Box<DecisionRecord>>,
    },
    /// Put the original backends back and remove our annotations (deletion).
    Restore,
    /// Remove our annotations (and our ownerReference from an own route), leave the backends as they are (deletion with
    /// `Orphan`).
    Release,
    /// Delete our own route (deletion).
    Delete,
}

/// A write of the HTTPRoute `<rollout>-preview`, which only people who know its host name meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewWrite {
    /// Create it: the parents of the managed route, this host, all of it to this revision.
    Create {
        /// Its host name.
        host: String,
        /// Its backend.
        revision: Revision,
    },
    /// Delete it.
    Delete,
}

/// A revision that may shrink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// Scale its Deployment to 0, keep the objects.
    ToZero(Revision),
    /// Scale its Deployment down to this number, at least 1: the spec asks for fewer replicas.
    To(Revision, u32),
    /// Delete its Deployment and Service.
    Delete(Revision),
    /// Remove our ownerReferences from its Deployment and Service (orphaning).
    Orphan(Revision),
}

/// A comparison to ask of one candidate pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeJob {
    /// Name of the job: the same key on another pod draws the same prompts.
    pub key: String,
    /// Tick in which it was first asked.
    pub tick: u32,
    /// The candidate pod.
    pub pod: String,
    /// The candidate.
    pub candidate: Revision,
    /// The fp16 baseline (quality).
    pub baseline: Revision,
    /// The revision that serves beside the candidate (paired latency).
    pub stable: Revision,
    /// Attempt.
    pub attempt: u32,
}

/// An event on the custom resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// Reason and words.
    pub note: Note,
}

/// A verb that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The verb.
    pub verb: Verb,
    /// Id of the request.
    pub id: String,
    /// What was done, or why nothing was.
    pub outcome: String,
}

/// What ended an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The candidate is the new stable.
    Promoted,
    /// Traffic is back, the attempt is latched.
    RolledBack,
    /// Undecided at the deadline: weight 0, not latched.
    Inconclusive,
    /// An A/B test ended and a person decides: weight 0, not latched.
    Reported,
}

impl Verdict {
    /// Name as in status and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promoted => "Promoted",
            Self::RolledBack => "RolledBack",
            Self::Inconclusive => "Inconclusive",
            Self::Reported => "Reported",
        }
    }
}

/// The record of one verdict: what the route's `decision` annotation and the RolloutDecision object hold.
#[derive(Clone, Debug, PartialEq)]
pub struct DecisionRecord {
    /// hash(uid, candidate revision, attempt, verdict) as a DNS label: the name of the object.
    pub id: String,
    /// What was decided.
    pub verdict: Verdict,
    /// Attempt that it ends.
    pub key: LatchKey,
    /// Step and weight at which it was decided.
    pub step: u32,
    /// Weight of the candidate when it was decided.
    pub weight: u32,
    /// The rule that fired.
    pub note: Note,
    /// Who asked: `gate`, `deadline`, or the `by` of a verb.
    pub by: String,
    /// Stable and baseline at that time.
    pub stable: Revision,
    /// The fp16 baseline.
    pub baseline: Revision,
    /// When.
    pub at: Time,
    /// Tick in which it was decided.
    pub tick: u32,
    /// Signals at that time.
    pub assessment: Option<Assessment>,
    /// Hash of the gate's parameters.
    pub parameters: String,
    /// Hash of the probe set.
    pub probe_set: String,
}

/// Does the next `plan` want a [`crate::observation::Sample`]? True when the state has an attempt whose next tick is
/// due. A pair that cannot be compared takes no more ticks.
pub fn tick_due(rollout: &Rollout, state: &State, now: Time) -> bool {
    state.attempt.as_ref().is_some_and(|a| a.mismatch.is_none() && now - a.last_tick >= rollout.gate.interval)
}

/// What follows from the spec, from what is remembered, and from what was seen. Total: any input gives a plan.
///
/// Nothing is carried out here, and nothing that `apply` does later may fail in a way that the next plan does not see:
/// each plan is made from the route as it is, so a crash between any two effects is healed by planning again.
pub fn plan(rollout: &Rollout, state: &State, observation: &Observation, now: Time) -> Plan {
    let view = View::new(rollout, observation, now);
    let mut d = Draft::new(view, state);
    not_ahead(d.state(), now);
    let ours = d.view.ledger().is_some();
    if rollout.deleting {
        deletion::run(&mut d);
    } else if ours {
        running(&mut d);
    } else {
        let adopts = matches!(
            (&observation.route, &rollout.route),
            (RouteState::Found(_), _) | (RouteState::Missing, RouteTarget::Own { .. })
        );
        verbs::read(&mut d);
        // The verb's pause ends with the route that it was about: there a `resume` would be void.
        d.state().paused = false;
        if adopts {
            baseline::adopt(&mut d);
        } else {
            words::no_route(&mut d);
        }
    }
    finished(d)
}

/// The route is ours: facts, verbs, the tick, then the rules in the order in which they count. The first that writes (or
/// that finds that nothing may be written) ends them.
fn running(d: &mut Draft<'_>) {
    route::look(d);
    attempt::keep(d);
    guard::keep(d);
    verbs::read(d);
    d.waiting = canary::waits(d);
    let now = d.now();
    let waiting = d.waiting.is_some();
    let state = d.state();
    state.waiting_since = waiting.then(|| state.waiting_since.unwrap_or(now));
    let rules: [fn(&mut Draft<'_>) -> bool; 13] = [
        verbs::stop,
        verdict::proven_worse,
        guard::fire,
        verdict::trip,
        route::bring_home,
        verbs::retry,
        verbs::promote_full,
        promote,
        canary::deadlines,
        advance,
        baseline::replace,
        canary::start,
        route::tidy,
    ];
    let _ = rules.iter().any(|rule| rule(d));
    capacity::grow(d);
    capacity::regrow(d);
    capacity::shrink(d);
    blue_green::preview(d);
    d.plan.record = verdict::unrecorded(d);
    words::finish(d);
}

/// Rule: everything was proven where the strategy asks it.
fn promote(d: &mut Draft<'_>) -> bool {
    match d.view.rollout.strategy {
        Strategy::Canary(_) => canary::promote(d),
        Strategy::BlueGreen(_) => blue_green::promote(d),
        Strategy::AbTest(_) => ab_test::promote(d),
    }
}

/// Rule: more traffic for the candidate.
fn advance(d: &mut Draft<'_>) -> bool {
    if d.standing() != Some(Standing::Trial) || d.plan.state.attempt.is_none() {
        return false;
    }
    match d.view.rollout.strategy {
        Strategy::Canary(_) => canary::advance(d),
        Strategy::BlueGreen(_) => blue_green::advance(d),
        Strategy::AbTest(_) => ab_test::advance(d),
    }
}

/// Times that lie ahead (a clock that jumped back, another machine's) must not stop a window from ending.
fn not_ahead(state: &mut State, now: Time) {
    let cap = |t: &mut Time| *t = (*t).min(now);
    state.waiting_since.as_mut().map(cap);
    state.released_at.as_mut().map(cap);
    if let Some(attempt) = &mut state.attempt {
        attempt.last_tick = attempt.last_tick.min(now);
    }
    if let Some(watch) = &mut state.guard {
        watch.last_tick = watch.last_tick.min(now);
    }
}

fn finished(mut d: Draft<'_>) -> Plan {
    if d.view.obs.namespace_terminating && !d.view.rollout.deleting {
        let text = "nothing is created in it any more";
        let object = format!("Namespace {}", d.view.rollout.namespace);
        d.say(Phase::Degraded, note(Reason::NamespaceTerminating, object, text));
    }
    let mut plan = d.plan;
    if plan.state.attempt.is_none() && plan.state.guard.is_none() {
        plan.probe = None;
    }
    plan.requeue_after = Span(plan.requeue_after.0.clamp(50, 300_000));
    plan
}
