use super::*;
use crate::fake;
use bitnet_api::{keys::route as key, validate::RefusalReason};
use bitnet_core::{
    observation::{Route, Workload},
    plan::{State, plan},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) const NOW: Time = Time(1_735_689_660_000);

pub(super) fn workload(ready: bool, problem: Option<&str>) -> Workload {
    let pod = Pod {
        name: "pod-1".into(),
        ready_since: ready.then_some(Time(1_735_689_600_000)),
        problem: problem.map(str::to_owned),
    };
    Workload {
        replicas: Some(1),
        service: true,
        pods: vec![pod],
        ready_endpoints: u32::from(ready),
        autoscaled: false,
        baseline: true,
    }
}

/// Plans against a world and renders its status, as a reconcile does.
fn status_of(world: &World, old: &ModelRolloutStatus, now: Time) -> ModelRolloutStatus {
    status_with(&fake::rollout(), world, old, now)
}

pub(super) fn status_with(rollout: &Rollout, world: &World, old: &ModelRolloutStatus, now: Time) -> ModelRolloutStatus {
    let state = old.evidence.as_ref().map_or_else(State::default, |text| State::decode(text).unwrap());
    let plan = plan(rollout, &state, &world.observation, now);
    let state = &world.observation.route;
    let stored = State::default();
    render(&Facts { rollout, old, stored: &stored, world, plan: &plan, route: &world.route, state, failures: &[], now })
}

fn condition<'a>(status: &'a ModelRolloutStatus, type_: &str) -> (&'a str, &'a str) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (&found.status, &found.reason)
}

pub(super) fn managed(extra: &Value, weights: &[(&str, i32)]) -> World {
    let rollout = fake::rollout();
    let baseline = rollout.baseline.revision.clone();
    let refs: Vec<_> = weights.iter().map(|(name, weight)| json!({"name": name, "weight": weight})).collect();
    let mut annotations = json!({
        key::ROLLOUT: "chat/u", key::STABLE: baseline.0, key::ATTEMPT: "0", key::STEP: "0", key::EPOCH: "3",
    });
    for (name, value) in extra.as_object().unwrap() {
        annotations[name] = value.clone();
    }
    let object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "shop", "namespace": "tenant", "uid": "r", "resourceVersion": "9", "annotations": annotations},
        "spec": {"rules": [{"backendRefs": refs}]},
    });
    let mut world = World::default();
    let (state, view) = crate::observe::reread(&rollout, serde_json::from_value(object).unwrap(), &[], &world);
    let RouteState::Found(route) = state else { panic!("{state:?}") };
    world.observation.route = RouteState::Found(Route { accepted: true, ..route });
    world.route = view;
    world.observation.finalizer = true;
    world.observation.workloads = BTreeMap::from([(baseline, workload(true, None))]);
    world
}

#[test]
fn a_missing_route_is_named_and_nothing_progresses() {
    let mut world = World::default();
    world.observation.route = RouteState::Missing;
    let status = status_of(&world, &ModelRolloutStatus::default(), NOW);
    assert_eq!((status.phase.as_str(), status.observed_generation), ("Pending", Some(1)));
    assert_eq!(condition(&status, kind::ACCEPTED), ("True", "Accepted"));
    assert_eq!(condition(&status, kind::PROGRESSING), ("False", "RouteMissing"));
    assert_eq!(condition(&status, kind::TRAFFIC_MANAGED), ("False", "RouteMissing"));
    assert_eq!(condition(&status, kind::QUALITY_HEALTHY), ("Unknown", "NoEvidence"));
    let order: Vec<_> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(order, kind::ALL);
    world.observation.route = RouteState::InUse("first".into());
    let status = status_of(&world, &status, NOW);
    assert_eq!(condition(&status, kind::ACCEPTED), ("False", "RouteInUse"));
}

#[test]
fn a_pod_with_a_problem_stops_progress_with_its_words() {
    let mut world = World::default();
    let baseline = fake::rollout().baseline.revision;
    world.observation.route = RouteState::Found(Route::default());
    world.observation.workloads =
        BTreeMap::from([(baseline, workload(false, Some("ErrImagePull: no such image registry.example/chat")))]);
    let status = status_of(&world, &ModelRolloutStatus::default(), NOW);
    assert_eq!(condition(&status, kind::PROGRESSING), ("False", "BaselineNotReady"));
    let baseline = status.conditions.iter().find(|condition| condition.type_ == kind::BASELINE_SERVING).unwrap();
    assert!(baseline.message.contains("no such image registry.example/chat"), "{}", baseline.message);
}

#[test]
fn times_move_only_when_a_condition_flips_and_a_second_look_changes_nothing() {
    let rollout = fake::rollout();
    let weights = [(rollout.baseline.revision.as_str(), 100)];
    let world = managed(&json!({}), &weights);
    let first = status_of(&world, &ModelRolloutStatus::default(), NOW);
    assert_eq!(first.weights, BTreeMap::from([(rollout.baseline.revision.0.clone(), 100)]));
    assert_eq!(condition(&first, kind::TRAFFIC_MANAGED).0, "True");
    let second = status_of(&world, &first, Time(NOW.0 + 60_000));
    let third = status_of(&world, &second, Time(NOW.0 + 120_000));
    assert_eq!(second, third, "a quiet rollout writes nothing");
    for (before, after) in first.conditions.iter().zip(&third.conditions) {
        assert_eq!(before.last_transition_time, after.last_transition_time, "{}", after.type_);
    }
}

#[test]
fn a_rolled_back_model_is_told_with_its_decision_once() {
    let rollout = fake::rollout();
    let (baseline, model) = (rollout.baseline.revision.0.clone(), rollout.model.revision.0.clone());
    let decision = json!({
        "id": "chat-rb-1", "verdict": "RolledBack", "key": format!("u/{model}/1"), "at": 1_735_689_600_000_i64, "step": 1,
        "weight": 5, "tick": 9, "reason": "QualityFailed", "message": "m", "by": "gate", "stable": baseline,
        "baseline": baseline, "parameters": "p", "probeSet": "s",
    });
    let annotations = json!({
        key::CANDIDATE: model, key::ATTEMPT: "1", key::STEP: "1", key::ROLLBACK_OF: format!("u/{model}/1"),
        key::DECISION: decision.to_string(),
    });
    let world = managed(&annotations, &[(&baseline, 100), (&model, 0)]);
    let status = status_of(&world, &ModelRolloutStatus::default(), NOW);
    assert_eq!(condition(&status, kind::ROLLED_BACK), ("True", "QualityFailed"));
    assert_eq!(condition(&status, kind::READY).0, "False");
    assert_eq!(status.verdict.as_deref(), Some("RolledBack"));
    assert_eq!(status.decision.as_ref().unwrap().id, "chat-rb-1");
    assert_eq!(status.history.len(), 1);
    let again = status_of(&world, &status, Time(NOW.0 + 1000));
    assert_eq!(again.history.len(), 1, "a verdict enters the history once");
}

#[test]
fn a_refusal_is_told_and_the_rest_stays() {
    let rollout = fake::rollout();
    let world = managed(&json!({}), &[(rollout.baseline.revision.as_str(), 100)]);
    let before = status_of(&world, &ModelRolloutStatus::default(), NOW);
    let refusal =
        Refusal::new(RefusalReason::GateMissing, "spec.gate.name", "QualityGate chat does not exist", "create it");
    let after = refused(&before, 2, &refusal, Time(NOW.0 + 1000));
    assert_eq!(condition(&after, kind::ACCEPTED), ("False", "GateMissing"));
    assert!(after.message.contains("QualityGate chat does not exist"));
    assert_eq!((after.evidence.as_ref(), &after.weights), (before.evidence.as_ref(), &before.weights));
    assert_eq!(refused(&after, 2, &refusal, Time(NOW.0 + 9000)), after, "told once");
    let recovered = status_of(&world, &after, Time(NOW.0 + 20_000));
    assert_eq!(condition(&recovered, kind::ACCEPTED), ("True", "Accepted"));
}

#[test]
fn numbers_have_no_negative_zero() {
    assert_eq!(decimal(-0.001, 2), "0.00");
    assert_eq!(decimal(-0.01, 2), "-0.01");
    assert_eq!(decimal(0.93415, 4), "0.9342");
}

#[test]
fn live_prompts_are_shown_as_means_and_go_with_the_gates_wish() {
    let mut world = managed(&json!({}), &[(fake::rollout().baseline.revision.as_str(), 100)]);
    world.shadow = Some(Shadowed { consent: true, samples: 40, cosine: 39.0, below: 1, top1: 36.0, dropped: 3 });
    let mut rollout = fake::rollout();
    rollout.gate.shadow = 5;
    let old = ModelRolloutStatus::default();
    let rendered = |rollout: &Rollout, old: &ModelRolloutStatus, world: &World| {
        let plan = plan(rollout, &State::default(), &world.observation, NOW);
        let (route, state, stored) = (&world.route, &world.observation.route, State::default());
        let facts = Facts { rollout, old, stored: &stored, world, plan: &plan, route, state, failures: &[], now: NOW };
        render(&facts)
    };
    let first = rendered(&rollout, &old, &world);
    let shown = first.shadow.clone().unwrap();
    assert_eq!((shown.percent, shown.consent, shown.samples, shown.dropped), (5, true, 40, 3));
    let number = |text: &Option<String>| text.clone().unwrap();
    assert_eq!(
        [number(&shown.cosine), number(&shown.tail), number(&shown.agreement)],
        ["0.9750", "0.0250", "0.9000"].map(String::from)
    );
    // A look between two ticks knows nothing new, and a gate that asks for nothing shows nothing.
    world.shadow = None;
    assert_eq!(rendered(&rollout, &first, &world).shadow, first.shadow);
    world.shadow = Some(Shadowed::default());
    let refused = rendered(&rollout, &first, &world).shadow.unwrap();
    assert_eq!((refused.consent, refused.samples, refused.cosine), (false, 0, None));
    rollout.gate.shadow = 0;
    assert_eq!(rendered(&rollout, &first, &world).shadow, None);
}
