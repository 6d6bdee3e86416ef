//! One reconcile: `validate → observe → plan → render → apply → status`. The driver only; each step has its file.

use crate::{
    apply, backoff,
    client::{Category, category},
    config::Config,
    counters::References,
    dashboard::Ticks,
    events::Events,
    guards::Guards,
    metrics::{Facts, Metrics, Object},
    notifications::{Notification, Notifier},
    observe::{self, Rival, Sources, World},
    render::{self, status as words},
    status, traces,
    worker::{Posted, Workers},
};
use bitnet_api::{
    reasons,
    v1alpha1::{ModelRollout, ModelRolloutStatus, QualityGate},
    validate::{Pools, Refusal, RefusalReason, validate},
    worker::CompareRequest,
};
use bitnet_core::{
    Time,
    check::check,
    model::{Revision, Rollout},
    observation::RouteState,
    plan::{Plan, ProbeJob, State, plan},
};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};
use std::{sync::Arc, time::Duration};
use tracing::{Instrument, Span, debug_span, field, info_span};

/// A custom resource that may be malformed.
pub type Guarded = DeserializeGuard<ModelRollout>;

/// Longest time without a look: a safety net under the watches.
const HEARTBEAT: Duration = Duration::from_mins(5);
/// Shortest time between two looks that a plan can ask for.
const SHORTEST: Duration = Duration::from_millis(100);

/// What all reconciles share.
pub struct Context {
    /// The fenced client.
    pub client: Client,
    /// The installation's settings.
    pub config: Config,
    /// Pools as `validate` wants them.
    pub pools: Pools,
    /// Client of the workers.
    pub workers: Workers,
    /// Counters as of the last stored tick.
    pub references: References,
    /// What the guards of promoted models remember.
    pub guards: Guards,
    /// Metrics.
    pub metrics: Metrics,
    /// Receivers of verdicts and of phases that need somebody.
    pub notifier: Arc<Notifier>,
    /// Ticks of running attempts, for the dashboard.
    pub ticks: Ticks,
    /// Events.
    pub events: Events,
    /// Failures in a row, by object.
    pub backoff: backoff::Backoff,
    /// The custom resources as watched: only for questions between rollouts, never for decisions.
    pub stores: std::sync::OnceLock<Vec<Store<Guarded>>>,
}

/// Why a reconcile ended early. It is tried again after a while.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The custom resource or its gate cannot be read.
    #[error("cannot read the {what}")]
    Read {
        /// Which object.
        what: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Something else cannot be read.
    #[error("cannot observe")]
    Observe(#[source] observe::Error),
    /// A request failed.
    #[error("cannot apply the plan")]
    Apply(#[source] apply::Error),
    /// The lint refused the plan: a bug, and better no write than a wrong one.
    #[error("the plan breaks invariants and was not applied: {0}")]
    Violations(String),
    /// Status cannot be written.
    #[error("cannot write status")]
    Status(#[source] kube::Error),
    /// A deletion cannot be finished.
    #[error("cannot release the rollout")]
    Release(#[source] crate::detach::Error),
}

impl Error {
    /// How the next attempt should be timed; also the metric's label.
    pub fn category(&self) -> Category {
        match self {
            Self::Read { source, .. } | Self::Status(source) => category(source),
            Self::Observe(error) => category(&error.source),
            Self::Apply(error) => error.category(),
            Self::Release(error) => error.category(),
            Self::Violations(_) => Category::Transient,
        }
    }
}

/// Reconciles one rollout.
pub async fn reconcile(trigger: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let object = ObjectRef::from_obj(&*trigger);
    // The root of a trace. Not for the log: kube's own span names the object there.
    let span = debug_span!(
        "reconcile",
        namespace = trigger.namespace(),
        rollout = trigger.name_any(),
        phase = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
    );
    let outcome = Box::pin(run(&trigger, &context)).instrument(span.clone()).await;
    if let Err(error) = &outcome {
        traces::failed(&span, error);
    }
    match outcome? {
        Next::Change => {
            context.backoff.succeeded(&object);
            context.metrics.reconciled("ok");
            Ok(Action::await_change())
        }
        Next::After(wait) => {
            context.backoff.succeeded(&object);
            context.metrics.reconciled("ok");
            Ok(Action::requeue(wait))
        }
        // Parts that fail again and again must not slow the ticks of a running attempt down.
        Next::Incomplete(wait) => {
            context.metrics.reconciled("incomplete");
            Ok(Action::requeue(context.backoff.failed(object, Category::Transient).min(wait)))
        }
    }
}

/// When to look again.
enum Next {
    /// When something changes.
    Change,
    /// After this time at the latest.
    After(Duration),
    /// The same, but parts of the plan failed.
    Incomplete(Duration),
}

async fn run(trigger: &Guarded, context: &Context) -> Result<Next, Error> {
    let root = Span::current();
    let Some(object) = read(trigger, context).await? else { return Ok(Next::Change) };
    let old = object.status.clone().unwrap_or_default();
    let now = Time(Timestamp::now().as_millisecond());

    // validate: no client but for the gate that the spec names.
    let rollout = match validated(context, &object).instrument(info_span!("validate")).await? {
        Ok(rollout) => rollout,
        Err(refusal) if object.metadata.deletion_timestamp.is_some() => {
            return released(context, &object, &refusal).await;
        }
        Err(refusal) => return refused(context, &object, &old, &refusal, now).await,
    };
    let stored = stored_state(context, &object, &old).await;
    let state = State { guard: context.guards.get(&rollout.uid).or(stored.guard.clone()), ..stored.clone() };

    // observe: client.
    let rivals = rivals(context, &object);
    let sources = Sources {
        client: &context.client,
        workers: &context.workers,
        references: &context.references,
        metrics: &context.metrics,
        rivals: &rivals,
    };
    let watch = context.metrics.step("observe");
    let world =
        Box::pin(observe::observe(sources, &object, &rollout, &state, now)).instrument(info_span!("observe")).await;
    drop(watch);
    let world = world.map_err(Error::Observe)?;

    // plan and render: no client.
    let plan = {
        let (_span, _watch) = (info_span!("plan").entered(), context.metrics.step("plan"));
        plan(&rollout, &state, &world.observation, now)
    };
    root.record("phase", plan.report.phase.name());
    lint(context, &rollout, &world, &plan).map_err(Error::Violations)?;
    let objects = {
        let (_span, _watch) = (info_span!("render").entered(), context.metrics.step("render"));
        render::render(&context.config, &rollout, &world, &plan)
    };

    // apply: client.
    let watch = context.metrics.step("apply");
    let outcome = apply::apply(&context.client, &rollout.namespace, objects).instrument(info_span!("apply")).await;
    drop(watch);
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return Err(not_applied(context, &object, &old, error, now).await),
    };
    if outcome.route.is_some() {
        context.metrics.route_written();
    }
    if outcome.released {
        forget(context, &object);
        context.events.publish(&object.object_ref(&()), &plan.events).await;
        return Ok(Next::Change);
    }

    // status: client, once, last.
    let meta = outcome.rollout.as_ref().map_or(&object.metadata, |written| &written.metadata);
    let (route_state, route) = match outcome.route {
        Some(written) => observe::reread(&rollout, written, &rivals, &world),
        None => (world.observation.route.clone(), world.route.clone()),
    };
    let facts = words::Facts {
        rollout: &rollout,
        old: &old,
        stored: &stored,
        world: &world,
        plan: &plan,
        route: &route,
        state: &route_state,
        failures: &outcome.failures,
        now,
    };
    let status = words::render(&facts);
    let meta = store(context, meta, object.status.as_ref(), &status).await?;

    // Only what was stored has happened: counters advance, events, jobs and answers follow.
    if let Some(verdict) = outcome.objects.verdict {
        context.metrics.verdict(verdict.name());
    }
    let told = Notification::between(&rollout.namespace, &rollout.name, &old, &status, &render::rfc3339(now));
    context.notifier.tell(&told);
    observe_metrics(context, &rollout, &world, &plan, &route_state);
    context.guards.set(&rollout.uid, plan.state.guard.clone());
    context.ticks.record(&context.config, &rollout, &state, &world, &plan, now);
    if let Some(pending) = world.pending.clone() {
        context.references.commit(pending);
    }
    afterwards(context, &rollout, &world, &plan, &object.object_ref(&()), &meta).await;
    let after = u64::try_from(plan.requeue_after.0).unwrap_or(0);
    let wait = Duration::from_millis(after).clamp(SHORTEST, HEARTBEAT);
    Ok(if outcome.failures.is_empty() { Next::After(wait) } else { Next::Incomplete(wait) })
}

/// The custom resource as it is now. `None`: it is gone, or malformed and reported.
async fn read(trigger: &Guarded, context: &Context) -> Result<Option<ModelRollout>, Error> {
    let namespace = trigger.namespace().unwrap_or_default();
    let api = Api::<Guarded>::namespaced(context.client.clone(), &namespace);
    let read = api.get_opt(&trigger.name_any()).await;
    match read.map_err(|source| Error::Read { what: "ModelRollout", source })? {
        None => {
            forget(context, trigger);
            Ok(None)
        }
        Some(DeserializeGuard(Ok(object))) => Ok(Some(object)),
        Some(DeserializeGuard(Err(invalid))) => {
            tracing::error!(error = invalid.error, "the stored object is malformed: it is left alone");
            let about = ObjectReference {
                api_version: Some(ModelRollout::api_version(&()).into_owned()),
                kind: Some(ModelRollout::kind(&()).into_owned()),
                name: invalid.metadata.name.clone(),
                namespace: invalid.metadata.namespace.clone(),
                uid: invalid.metadata.uid.clone(),
                ..ObjectReference::default()
            };
            context.events.warn(&about, RefusalReason::Malformed.name(), &invalid.error).await;
            Ok(None)
        }
    }
}

async fn validated(context: &Context, object: &ModelRollout) -> Result<Result<Rollout, Refusal>, Error> {
    let _watch = context.metrics.step("validate");
    let gate = match &object.spec.gate {
        None => None,
        Some(reference) => {
            let namespace = object.namespace().unwrap_or_default();
            let api = Api::<DeserializeGuard<QualityGate>>::namespaced(context.client.clone(), &namespace);
            let read = api.get_opt(&reference.name).await;
            match read.map_err(|source| Error::Read { what: "QualityGate", source })? {
                None => None,
                Some(DeserializeGuard(Ok(gate))) => Some(gate),
                Some(DeserializeGuard(Err(invalid))) => {
                    let field = format!("QualityGate {}", reference.name);
                    let remedy = "correct it, or create it again";
                    return Ok(Err(Refusal::new(RefusalReason::InvalidGate, field, invalid.error, remedy)));
                }
            }
        }
    };
    let outcome = validate(object, gate.as_ref(), &context.pools);
    if outcome.is_err() && object.metadata.deletion_timestamp.is_some() {
        return Ok(validate_to_delete(object, &context.pools).or(outcome));
    }
    Ok(outcome)
}

/// A rollout goes in order even where its gate or its pools went first: a deletion judges nothing and creates no pod.
fn validate_to_delete(object: &ModelRollout, pools: &Pools) -> Result<Rollout, Refusal> {
    let mut going = object.clone();
    let mut pools = pools.clone();
    pools.names.extend([&going.spec.baseline, &going.spec.model].into_iter().filter_map(|arm| arm.pool.clone()));
    going.spec.gate = None;
    going.spec.gate_spec = serde_json::from_value(serde_json::json!({"probes": {"configMap": "none"}})).ok();
    validate(&going, None, &pools)
}

async fn refused(
    context: &Context,
    object: &ModelRollout,
    old: &ModelRolloutStatus,
    refusal: &Refusal,
    now: Time,
) -> Result<Next, Error> {
    let new = words::refused(old, object.metadata.generation.unwrap_or(0), refusal, now);
    if object.status.as_ref() != Some(&new) {
        store(context, &object.metadata, object.status.as_ref(), &new).await?;
        context.events.warn(&object.object_ref(&()), refusal.reason.name(), &refusal.to_string()).await;
    }
    Ok(Next::Change)
}

/// A rollout that is not understood (any more) is being deleted: what serves stays, and nothing blocks the deletion.
async fn released(context: &Context, object: &ModelRollout, refusal: &Refusal) -> Result<Next, Error> {
    let note = format!("deleted without being understood ({refusal}): what serves is left as it is");
    context.events.warn(&object.object_ref(&()), refusal.reason.name(), &note).await;
    crate::detach::orphan(&context.client, &object.metadata).await.map_err(Error::Release)?;
    forget(context, object);
    Ok(Next::Change)
}

async fn stored_state(context: &Context, object: &ModelRollout, old: &ModelRolloutStatus) -> State {
    let Some(text) = &old.evidence else { return State::default() };
    match State::decode(text) {
        Ok(state) => state,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the stored evidence is not taken");
            context.events.warn(&object.object_ref(&()), reasons::EVIDENCE_RESTARTED, &error.to_string()).await;
            State::default()
        }
    }
}

/// The other rollouts of the namespace: which routes they name, and which came first.
fn rivals(context: &Context, object: &ModelRollout) -> Vec<Rival> {
    let ours = (&object.metadata.creation_timestamp, &object.metadata.name);
    let stores = context.stores.get().map(Vec::as_slice).unwrap_or_default();
    let all = stores.iter().flat_map(Store::state);
    all.filter(|other| other.meta().namespace == object.metadata.namespace && other.meta().uid != object.metadata.uid)
        .map(|other| Rival {
            name: other.name_any(),
            uid: other.meta().uid.clone().unwrap_or_default(),
            older: (&other.meta().creation_timestamp, &other.meta().name) < ours,
            route: route_name(&other).unwrap_or_default(),
        })
        .collect()
}

/// The HTTPRoute that a rollout names or owns; `None` for a malformed one.
pub fn route_name(object: &Guarded) -> Option<String> {
    let object = object.0.as_ref().ok()?;
    let route = &object.spec.route;
    route.http_route.clone().or_else(|| route.gateway.as_ref().map(|_| object.name_any()))
}

fn lint(context: &Context, rollout: &Rollout, world: &World, plan: &Plan) -> Result<(), String> {
    let violations = check(rollout, &world.observation, plan);
    if violations.is_empty() {
        return Ok(());
    }
    context.metrics.violations(violations.len());
    Err(violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// A request failed. A denied one is told in status, without storing the plan's state: the plan did not happen.
async fn not_applied(
    context: &Context,
    object: &ModelRollout,
    old: &ModelRolloutStatus,
    error: apply::Error,
    now: Time,
) -> Error {
    if error.category() == Category::Denied {
        let text = format!("{error}: {}", apply::summary(&error.source));
        let new = words::denied(old, object.metadata.generation.unwrap_or(0), &text, now);
        let told = object.status.as_ref() == Some(&new);
        if !told && store(context, &object.metadata, object.status.as_ref(), &new).await.is_ok() {
            context.events.warn(&object.object_ref(&()), reasons::WRITE_DENIED, &text).await;
        }
    }
    Error::Apply(error)
}

async fn store(
    context: &Context,
    meta: &ObjectMeta,
    old: Option<&ModelRolloutStatus>,
    new: &ModelRolloutStatus,
) -> Result<ObjectMeta, Error> {
    let _watch = context.metrics.step("status");
    let Some(patch) = status::patch(meta, old, new) else { return Ok(meta.clone()) };
    let written = status::write(&context.client, meta, patch).instrument(info_span!("status")).await;
    let written = written.map_err(Error::Status)?;
    context.metrics.status_written();
    Ok(written)
}

/// What follows a stored plan; none of it can fail the reconcile.
async fn afterwards(
    context: &Context,
    rollout: &Rollout,
    world: &World,
    plan: &Plan,
    about: &ObjectReference,
    meta: &ObjectMeta,
) {
    let probe = async {
        if let Some(job) = &plan.probe {
            start(context, rollout, world, job).await;
        }
    };
    let answers = async {
        let Some(patch) = render::answered(meta, &plan.answered) else { return };
        if let Err(error) = status::clear_verbs(&context.client, meta, patch).await {
            tracing::info!(error = &error as &dyn std::error::Error, "answered verbs stay for now: they act only once");
        }
    };
    futures::join!(probe, answers, context.events.publish(about, &plan.events));
}

/// Posts a comparison. Its key is stored: if this fails, the next look finds the job unknown and asks again.
async fn start(context: &Context, rollout: &Rollout, world: &World, job: &ProbeJob) {
    let Some(ip) = world.pods.get(&job.pod) else { return };
    let settings = &rollout.gate.probes;
    let service = |revision: &Revision| revision.0.clone();
    let request = CompareRequest {
        key: job.key.clone(),
        uid: rollout.uid.clone(),
        attempt: job.attempt,
        tick: job.tick,
        baseline: service(&job.baseline),
        stable: service(&job.stable),
        probes: settings.per_tick,
        max_tokens: settings.max_tokens,
        positions: settings.positions,
        pairs: settings.pairs,
        pair_tokens: settings.pair_tokens,
    };
    match context.workers.start(*ip, &request).await {
        Ok(Posted::Accepted) => context.metrics.called("start", "ok"),
        Ok(Posted::Busy) => {
            context.metrics.called("start", "busy");
            tracing::info!(pod = job.pod, "the worker has another job");
        }
        Err(error) => {
            context.metrics.called("start", error.class());
            tracing::warn!(pod = job.pod, error = &error as &dyn std::error::Error, "a comparison was not started");
        }
    }
}

fn observe_metrics(context: &Context, rollout: &Rollout, world: &World, plan: &Plan, route: &RouteState) {
    let weight = match route {
        RouteState::Found(route) => {
            let candidate = route.ledger.as_ref().and_then(|ledger| ledger.candidate.as_ref());
            candidate.map_or(0, |candidate| route.weight(candidate))
        }
        _ => 0,
    };
    let assessment = plan.assessment.as_ref();
    let guard = plan.guard.as_ref().filter(|_| assessment.is_none());
    let signals = assessment.map(|assessment| &assessment.signals).or(guard.map(|guard| &guard.signals));
    let facts = Facts {
        phase: plan.report.phase.name(),
        weight,
        ln_rollback: assessment.map(|assessment| assessment.ln_rollback).or(guard.map(|guard| guard.ln_m)),
        estimates: signals.into_iter().flatten().map(|signal| (signal.kind.name(), signal.estimate)).collect(),
        samples: signals.into_iter().flatten().map(|signal| (signal.kind.name(), signal.samples)).collect(),
        shadow: world.shadow.map(|found| (found.samples, found.cosine)),
    };
    context.metrics.observe(&Object { namespace: rollout.namespace.clone(), rollout: rollout.name.clone() }, &facts);
}

/// Drops what is kept in memory about a rollout.
pub fn forget(context: &Context, object: &impl Resource<DynamicType = ()>) {
    context.references.forget(object.meta().uid.as_deref().unwrap_or_default());
    context.guards.set(object.meta().uid.as_deref().unwrap_or_default(), None);
    let namespace = object.meta().namespace.clone().unwrap_or_default();
    let rollout = object.meta().name.clone().unwrap_or_default();
    context.ticks.forget(&namespace, &rollout);
    context.metrics.forget(&Object { namespace, rollout });
}

#[cfg(test)]
mod tests;
