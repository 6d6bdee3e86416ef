//! What a plan becomes: one snapshot per kind, and patches that are carried out on real-looking objects.

#![allow(clippy::unwrap_used, reason = "clippy knows tests by their attribute, not their helpers")]

mod balancing;
mod record;
mod route;
mod workloads;

use bitnet_api::keys::route as key;
use bitnet_core::{
    Span, Time,
    evidence::{Assessment, Finding, Gate, ProbeSettings, Signal, SignalKind, SignalState},
    model::{
        Canary, CanaryStep, Capacity, DeletionPolicy, Fallback, FallbackBalance, HeaderMatch, LatchKey, Pace, Revision,
        Rollout, RouteTarget, Serving, Settings, Source, Strategy,
    },
    observation::{Detour, Detours, Ledger},
    plan::{DecisionRecord, Grow, Plan, PreviewWrite, RouteWrite, Shrink, State, Verdict},
    report::{Note, Phase, Reason, Report},
};
use bitnet_operator::{
    config::Config,
    observe::{RouteView, World},
    render::{Action, Compact, Kind, Write, render},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::PodSpec};
use kube::api::DynamicObject;
use serde_json::{Value, json};

/// As a snapshot holds it: fields by name, whether or not this build keeps JSON as it was written.
fn sorted(object: &Value) -> Value {
    let mut object = object.clone();
    object.sort_all_objects();
    object
}

fn serving(hash: &str, source: Source) -> Serving {
    Serving {
        revision: Revision(format!("chat-{hash}")),
        source,
        precision: "auto".into(),
        pool: "gpu".into(),
        replicas: 3,
        settings: Settings {
            max_batch: Some(16),
            batch_wait: Some(Span(10)),
            context_length: Some(4096),
            ..Settings::default()
        },
    }
}

fn image(digit: &str) -> Source {
    Source::Image(format!("registry.example/chat@sha256:{}", digit.repeat(64)))
}

fn rollout() -> Rollout {
    Rollout {
        namespace: "tenant".into(),
        name: "chat".into(),
        uid: "uid-of-chat".into(),
        generation: 4,
        deleting: false,
        paused: false,
        baseline: serving("aaaaaaaaaa", image("a")),
        model: serving("bbbbbbbbbb", image("b")),
        route: RouteTarget::Adopt { http_route: "shop".into(), rule: Some("completions".into()) },
        strategy: Strategy::Canary(Canary { steps: vec![CanaryStep::plain(5, Span::seconds(20))], pace: Pace::Time }),
        gate: Gate {
            name: "chat".into(),
            probes: ProbeSettings { config_map: "chat-probes".into(), ..ProbeSettings::default() },
            ..Gate::default()
        },
        guard: None,
        scale_down_delay: Span::seconds(600),
        progress_deadline: Span::seconds(3600),
        capacity: Capacity::Surge,
        deletion_policy: DeletionPolicy::Delete,
        load_balancing: None,
    }
}

fn config() -> Config {
    serde_yaml::from_str(
        "{workerImage: 'localhost/worker:1', pools: {cpu: {}, gpu: {nodeSelector: {zone: a}, \
         tolerations: [{key: nvidia.com/gpu, operator: Exists}], resources: {limits: {nvidia.com/gpu: '1'}}, \
         runtimeClassName: nvidia, image: 'localhost/worker:1-cuda'}}}",
    )
    .unwrap()
}

fn ledger(epoch: u64) -> Ledger {
    Ledger {
        uid: "uid-of-chat".into(),
        stable: Revision("chat-aaaaaaaaaa".into()),
        candidate: Some(Revision("chat-bbbbbbbbbb".into())),
        attempt: 2,
        step: 1,
        epoch,
        rollback_of: None,
        decision: None,
    }
}

/// A route as users have them: other rules, filters, and fields that no type of ours knows.
fn route(annotations: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "name": "shop", "namespace": "tenant", "uid": "uid-of-route", "resourceVersion": "77", "annotations": annotations,
        },
        "spec": {
            "parentRefs": [{"name": "gw"}],
            "fieldOfTomorrow": {"deep": [1, 2]},
            "rules": [
                {"name": "static", "backendRefs": [{"name": "files", "port": 80}]},
                {
                    "name": "completions",
                    "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}, "newMatcher": true}],
                    "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x"]}}],
                    "timeouts": {"request": "60s"},
                    "backendRefs": [{"name": "legacy", "port": 8000, "weight": 9, "hint": "keep"}],
                },
            ],
        },
    })
}

fn world(route: &Value) -> World {
    let object: DynamicObject = serde_json::from_value(route.clone()).unwrap();
    World { route: RouteView::new(Some(object), 1), ..World::default() }
}

fn plan() -> Plan {
    let note = Note { reason: Reason::Step, object: String::new(), message: String::new(), since: None };
    Plan {
        finalizer: true,
        grow: Vec::new(),
        regrow: None,
        shift: None,
        preview: None,
        record: None,
        shrink: Vec::new(),
        probe: None,
        events: Vec::new(),
        state: State::default(),
        answered: Vec::new(),
        assessment: None,
        users: None,
        guard: None,
        checkpoint: false,
        report: Report { phase: Phase::Progressing, headline: note, notes: Vec::new() },
        requeue_after: Span::seconds(1),
    }
}

fn set(weights: &[(&str, u32)], ledger: Ledger, adopt: bool, decision: Option<DecisionRecord>) -> RouteWrite {
    let backends = weights.iter().map(|(name, weight)| (Revision((*name).into()), *weight)).collect();
    RouteWrite::Set { backends, ledger, detours: Detours::default(), adopt, decision: decision.map(Box::new) }
}

/// The route after a write, as the API server would store it.
fn written(before: &Value, write: RouteWrite) -> Value {
    let shift = shift(before, write);
    let Action::Patch(patch) = shift.action else { panic!("{shift:?}") };
    assert_tests_first(&patch);
    let mut after = before.clone();
    json_patch::patch(&mut after, &patch).unwrap();
    after
}

fn shift(before: &Value, write: RouteWrite) -> Write {
    let plan = Plan { shift: Some(write), ..plan() };
    render(&config(), &rollout(), &world(before), &plan).shift.unwrap()
}

fn assert_tests_first(patch: &json_patch::Patch) {
    let text = serde_json::to_value(patch).unwrap();
    assert_eq!(text[0], json!({"op": "test", "path": "/metadata/uid", "value": "uid-of-route"}));
    assert_eq!(text[1], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "77"}));
}

#[test]
fn the_finalizer_comes_once_and_goes_by_name() {
    let with = |finalizers: Value, present: bool| {
        let meta = json!({"uid": "u", "resourceVersion": "9", "finalizers": finalizers});
        let mut world = World { rollout: serde_json::from_value(meta).unwrap(), ..World::default() };
        world.observation.finalizer = present;
        world
    };
    let patch = |write: Option<Write>| match write.unwrap().action {
        Action::Patch(patch) => serde_json::to_value(patch).unwrap().as_array().unwrap()[2..].to_vec(),
        other => panic!("{other:?}"),
    };
    let rendered = |world: &World, wanted| render(&config(), &rollout(), world, &Plan { finalizer: wanted, ..plan() });
    let ours = "rollouts.bitnet.dev/traffic";
    assert_eq!(
        patch(rendered(&with(Value::Null, false), true).finalizer),
        [json!({"op": "add", "path": "/metadata/finalizers", "value": [ours]})]
    );
    assert_eq!(
        patch(rendered(&with(json!(["x"]), false), true).finalizer),
        [json!({"op": "add", "path": "/metadata/finalizers/-", "value": ours})]
    );
    assert!(rendered(&with(json!([ours]), true), true).finalizer.is_none());
    assert_eq!(
        patch(rendered(&with(json!(["x", ours]), true), false).release),
        [
            json!({"op": "test", "path": "/metadata/finalizers/1", "value": ours}),
            json!({"op": "remove", "path": "/metadata/finalizers/1"}),
        ]
    );
}
