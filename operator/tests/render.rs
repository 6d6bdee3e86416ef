//! What a plan becomes: one snapshot per kind, and patches that are carried out on real-looking objects.

#![allow(clippy::unwrap_used, reason = "clippy knows tests by their attribute, not their helpers")]

use bitnet_api::keys::route as key;
use bitnet_core::{
    Span, Time,
    evidence::{
        Assessment, Finding, Gate, OnInconclusive, OnNoTraffic, Percentiles, ProbeSettings, Signal, SignalKind,
        SignalState, Tripwire,
    },
    model::{
        Canary, CanaryStep, Capacity, DeletionPolicy, Fallback, HeaderMatch, LatchKey, Pace, Revision, Rollout,
        RouteTarget, Serving, Settings, Source, Strategy,
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
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::DynamicObject;
use serde_json::{Value, json};

fn serving(hash: &str, source: Source) -> Serving {
    Serving {
        revision: Revision(format!("chat-{hash}")),
        source,
        precision: "auto".into(),
        pool: "gpu".into(),
        replicas: 3,
        settings: Settings {
            max_batch: 16,
            batch_wait: Span(10),
            context_length: Some(4096),
            kv_bits: None,
            memory_budget: None,
            fallback: None,
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
            probes: ProbeSettings {
                config_map: "chat-probes".into(),
                key: "prompts.jsonl".into(),
                per_tick: 8,
                max_tokens: 32,
                positions: 16,
                pairs: 8,
                pair_tokens: 8,
            },
            preflight: 64,
            interval: Span::seconds(10),
            warmup: Span::seconds(60),
            min_mean: 0.95,
            tail_min: 0.9,
            tail_share: 0.05,
            max_ratio: 1.2,
            percentiles: Percentiles { body: true, p95: true, p99: false },
            max_excess: 0.002,
            alpha_rollback: 0.01,
            alpha_promote: 0.05,
            min_samples: 200,
            deadline: Span::seconds(3600),
            on_inconclusive: OnInconclusive::Hold,
            on_no_traffic: OnNoTraffic::Probe,
            tripwire: Tripwire { error_rate: 0.5, min_requests: 20 },
            shadow: 0,
        },
        guard: None,
        scale_down_delay: Span::seconds(600),
        progress_deadline: Span::seconds(3600),
        capacity: Capacity::Surge,
        deletion_policy: DeletionPolicy::Delete,
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
fn adoption_changes_one_rule_and_keeps_every_other_byte() {
    let before = route(&json!({"team": "shop"}));
    let write = set(&[("chat-aaaaaaaaaa", 100), ("chat-bbbbbbbbbb", 0)], ledger(1), true, None);
    let mut after = written(&before, write);
    insta::assert_json_snapshot!("adopted_refs", after["spec"]["rules"][1]["backendRefs"]);
    insta::assert_json_snapshot!("adopted_annotations", after["metadata"]["annotations"]);
    // With refs and annotations put back, nothing else has changed.
    after["spec"]["rules"][1]["backendRefs"] = before["spec"]["rules"][1]["backendRefs"].clone();
    after["metadata"]["annotations"] = before["metadata"]["annotations"].clone();
    assert_eq!(after, before);
}

#[test]
fn the_rule_is_tested_by_its_name_or_by_its_whole_backends() {
    let test_of = |before: &Value| {
        let write = shift(before, set(&[("chat-aaaaaaaaaa", 100)], ledger(2), false, None));
        let Action::Patch(patch) = write.action else { panic!() };
        serde_json::to_value(&patch).unwrap()[2].clone()
    };
    let mut before = route(&json!({}));
    assert_eq!(test_of(&before), json!({"op": "test", "path": "/spec/rules/1/name", "value": "completions"}));
    before["spec"]["rules"][1].as_object_mut().unwrap().remove("name");
    let refs = before["spec"]["rules"][1]["backendRefs"].clone();
    assert_eq!(test_of(&before), json!({"op": "test", "path": "/spec/rules/1/backendRefs", "value": refs}));
}

#[test]
fn weights_are_always_explicit_and_what_a_person_added_to_a_ref_stays() {
    let mut before = route(&json!({key::EPOCH: "4"}));
    before["spec"]["rules"][1]["backendRefs"] =
        json!([{"name": "chat-aaaaaaaaaa", "port": 8080, "weight": 100, "filters": [{"type": "X"}]}]);
    let after = written(&before, set(&[("chat-aaaaaaaaaa", 0), ("chat-bbbbbbbbbb", 100)], ledger(5), false, None));
    let refs = &after["spec"]["rules"][1]["backendRefs"];
    assert_eq!(refs[0], json!({"name": "chat-aaaaaaaaaa", "port": 8080, "weight": 0, "filters": [{"type": "X"}]}));
    assert_eq!(refs[1]["weight"], 100);
}

#[test]
fn adoption_and_restoration_are_inverse() {
    let before = route(&json!({"team": "shop"}));
    let adopted = written(&before, set(&[("chat-aaaaaaaaaa", 100)], ledger(1), true, None));
    assert_eq!(written(&adopted, RouteWrite::Restore), before);
    // A rule that had no backends gets none.
    let mut bare = before.clone();
    bare["spec"]["rules"][1].as_object_mut().unwrap().remove("backendRefs");
    let adopted = written(&bare, set(&[("chat-aaaaaaaaaa", 100)], ledger(1), true, None));
    assert_eq!(written(&adopted, RouteWrite::Restore), bare);
}

/// An A/B test by cookie, of requests with a header.
fn detours() -> Detours {
    let header = |name: &str, value: &str, regex| HeaderMatch { name: name.into(), value: value.into(), regex };
    let beta = header("x-beta", "yes", false);
    let sticky = |name: &str, to: &str| Detour {
        name: name.into(),
        headers: vec![beta.clone(), header("Cookie", &format!("arm={to}.*"), true)],
        to: Some(Revision(to.into())),
    };
    let split = Detour { name: "split".into(), headers: vec![beta.clone()], to: None };
    Detours {
        mark: Some("1;uid-of-chat".into()),
        rules: vec![split, sticky("candidate", "chat-bbbbbbbbbb"), sticky("stable", "chat-aaaaaaaaaa")],
    }
}

#[test]
fn derived_rules_copy_every_field_of_ours_and_vanish_without_a_trace() {
    let mut before = route(&json!({key::EPOCH: "4", key::ROLLOUT: "chat/uid-of-chat"}));
    before["spec"]["rules"][1]["sessionPersistence"] = json!({"sessionName": "mine"});
    before["spec"]["rules"][1]["retry"] = json!({"attempts": 2});
    let weights = [("chat-aaaaaaaaaa", 90), ("chat-bbbbbbbbbb", 10)];
    let mut write = set(&weights, ledger(5), false, None);
    if let RouteWrite::Set { detours: wanted, .. } = &mut write {
        *wanted = detours();
    }
    let during = written(&before, write.clone());
    insta::assert_json_snapshot!("derived_rules", during["spec"]["rules"].as_array().unwrap()[1..]);
    assert_eq!(during["spec"]["rules"][0], before["spec"]["rules"][0]);
    assert_eq!(during["metadata"]["annotations"][key::DERIVED_RULES], "bitnet-split,bitnet-candidate,bitnet-stable");
    // The same again changes no rule.
    assert_eq!(written(&during, write)["spec"], during["spec"]);
    // The end: as if the test had never been.
    let plain = [("chat-aaaaaaaaaa", 100), ("chat-bbbbbbbbbb", 0)];
    let after = written(&during, set(&plain, ledger(6), false, None));
    let without = written(&before, set(&plain, ledger(6), false, None));
    assert_eq!(after, without);
    for leave in [RouteWrite::Restore, RouteWrite::Release] {
        let left = written(&during, leave);
        assert_eq!(left["spec"]["rules"].as_array().unwrap().len(), 2);
        assert!(!left.to_string().contains("1;uid-of-chat"), "no mark is left: {left}");
    }
}

#[test]
fn the_rule_of_a_step_sends_requests_with_its_headers_to_the_candidate_and_goes_with_it() {
    let mut before = route(&json!({key::EPOCH: "4", key::ROLLOUT: "chat/uid-of-chat"}));
    before["spec"]["rules"][1]["sessionPersistence"] = json!({"sessionName": "mine"});
    let weights = [("chat-aaaaaaaaaa", 95), ("chat-bbbbbbbbbb", 5)];
    let mut write = set(&weights, ledger(5), false, None);
    if let RouteWrite::Set { detours: wanted, .. } = &mut write {
        let headers = vec![HeaderMatch { name: "x-beta".into(), value: "yes".into(), regex: false }];
        let to = Some(Revision("chat-bbbbbbbbbb".into()));
        *wanted = Detours { mark: None, rules: vec![Detour { name: "candidate".into(), headers, to }] };
    }
    let during = written(&before, write);
    insta::assert_json_snapshot!("rule_of_a_step", during["spec"]["rules"].as_array().unwrap()[1..]);
    let next = [("chat-aaaaaaaaaa", 80), ("chat-bbbbbbbbbb", 20)];
    let after = written(&during, set(&next, ledger(6), false, None));
    assert_eq!(after, written(&before, set(&next, ledger(6), false, None)), "no trace of the step before");
    for leave in [RouteWrite::Restore, RouteWrite::Release] {
        assert_eq!(written(&during, leave)["spec"]["rules"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn a_second_adoption_keeps_the_first_originals_and_the_epoch_never_falls() {
    let left = route(&json!({key::ROLLOUT: "old/gone", key::EPOCH: "41", key::ORIGINALS: "[{\"name\":\"first\"}]"}));
    let after = written(&left, set(&[("chat-aaaaaaaaaa", 100)], ledger(1), true, None));
    let annotations = &after["metadata"]["annotations"];
    assert_eq!(annotations[key::EPOCH], "42");
    assert_eq!(annotations[key::ORIGINALS], "[{\"name\":\"first\"}]");
    assert_eq!(annotations[key::ROLLOUT], "chat/uid-of-chat");
}

#[test]
fn a_release_takes_our_annotations_and_our_ownership_and_nothing_else() {
    let mut before = route(&json!({"team": "shop", key::EPOCH: "4", key::ROLLOUT: "chat/uid-of-chat"}));
    before["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "v1", "kind": "X", "name": "other", "uid": "other"},
        {"apiVersion": "v1", "kind": "ModelRollout", "name": "chat", "uid": "uid-of-chat"},
    ]);
    let after = written(&before, RouteWrite::Release);
    assert_eq!(after["metadata"]["annotations"], json!({"team": "shop"}));
    assert_eq!(after["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
    assert_eq!(after["metadata"]["ownerReferences"][0]["uid"], "other");
    assert_eq!(after["spec"], before["spec"]);
}

fn record(detail: &str) -> DecisionRecord {
    let signal = |kind| Signal {
        kind,
        state: SignalState::Failed,
        samples: 412,
        required: Some(600),
        estimate: Some(0.93415),
        interval: Some((0.9212, 0.9467)),
        ln_rollback: 5.31,
        ln_promote: -12.0,
        detail: detail.into(),
    };
    DecisionRecord {
        id: "chat-rolledback-abc".into(),
        verdict: Verdict::RolledBack,
        key: LatchKey { uid: "uid-of-chat".into(), revision: Revision("chat-bbbbbbbbbb".into()), attempt: 2 },
        step: 1,
        weight: 5,
        note: Note {
            reason: Reason::QualityFailed,
            object: "Deployment chat-bbbbbbbbbb".into(),
            message: format!("cosine-tail is proven worse {detail}"),
            since: None,
        },
        by: "gate".into(),
        stable: Revision("chat-aaaaaaaaaa".into()),
        baseline: Revision("chat-aaaaaaaaaa".into()),
        at: Time(1_735_689_601_000),
        tick: 37,
        assessment: Some(Assessment {
            finding: Finding::RollBack { signal: SignalKind::CosineTail, ln_e: 4.9 },
            signals: SignalKind::ALL.map(signal).into(),
            prompts: 412,
            preflight_done: true,
            quality_proven: false,
            fresh: true,
            no_traffic: false,
            history_pending: false,
            missing: Vec::new(),
            ln_rollback: 4.91,
            exposed_requests: 57,
        }),
        parameters: "00112233445566aa".into(),
        probe_set: "ab".repeat(32),
    }
}

#[test]
fn a_rollback_is_one_write_with_weights_latch_and_record() {
    let before = route(&json!({key::EPOCH: "7", key::ROLLOUT: "chat/uid-of-chat"}));
    let ledger = Ledger {
        rollback_of: Some(LatchKey {
            uid: "uid-of-chat".into(),
            revision: Revision("chat-bbbbbbbbbb".into()),
            attempt: 2,
        }),
        ..ledger(8)
    };
    let weights = [("chat-aaaaaaaaaa", 100), ("chat-bbbbbbbbbb", 0)];
    let after = written(&before, set(&weights, ledger, false, Some(record("at a random position"))));
    let annotations = &after["metadata"]["annotations"];
    assert_eq!(annotations[key::ROLLBACK_OF], "uid-of-chat/chat-bbbbbbbbbb/2");
    let text = annotations[key::DECISION].as_str().unwrap();
    insta::assert_json_snapshot!("decision_annotation", serde_json::from_str::<Value>(text).unwrap());
    let stored = Compact::stored(text).unwrap();
    assert_eq!((stored.verdict, stored.at, stored.key.attempt), (Verdict::RolledBack, Time(1_735_689_601_000), 2));

    // The object is made from the stored text, and the oldest beyond twenty goes.
    let mut world = world(&after);
    world.decisions = (0..20)
        .map(|n| {
            serde_json::from_value(json!({
                "name": format!("d{n:02}"), "uid": format!("u{n}"), "resourceVersion": "1",
                "creationTimestamp": format!("2025-01-01T00:00:{n:02}Z"),
            }))
            .unwrap()
        })
        .collect();
    let objects = render(&config(), &rollout(), &world, &Plan { record: Some(stored), ..plan() });
    let Action::Create(object) = &objects.record[0].action else { panic!() };
    insta::assert_json_snapshot!("rollout_decision", object);
    let gone: Vec<_> = objects.record[1..].iter().map(|write| write.name.as_str()).collect();
    assert_eq!(gone, ["d00"]);
}

#[test]
fn a_preview_has_the_parents_of_the_route_and_goes_with_its_preconditions() {
    let before = route(&json!({}));
    let create = PreviewWrite::Create { host: "preview.example".into(), revision: Revision("chat-bbbbbbbbbb".into()) };
    let made = render(&config(), &rollout(), &world(&before), &Plan { preview: Some(create), ..plan() });
    let write = made.preview.unwrap();
    let Action::Create(object) = &write.action else { panic!("{write:?}") };
    assert_eq!((write.kind, write.name.as_str()), (Kind::HttpRoute, "chat-preview"));
    assert_eq!(object["spec"]["parentRefs"], before["spec"]["parentRefs"]);
    assert!(object["spec"]["parentRefs"].is_array());
    assert_eq!(object["spec"]["hostnames"], json!(["preview.example"]));
    let refs = &object["spec"]["rules"][0]["backendRefs"];
    assert_eq!((&refs[0]["name"], &refs[0]["weight"]), (&json!("chat-bbbbbbbbbb"), &json!(100)));
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid-of-chat");
    assert!(object["metadata"].get("annotations").is_none(), "no ledger: nothing rests on it");

    let delete = Plan { preview: Some(PreviewWrite::Delete), ..plan() };
    let there = kube::core::ObjectMeta {
        name: Some("chat-preview".into()),
        uid: Some("p".into()),
        resource_version: Some("9".into()),
        ..Default::default()
    };
    let world = World { preview: Some(there), ..world(&before) };
    let gone = render(&config(), &rollout(), &world, &delete).preview.unwrap();
    assert_eq!(gone.action, Action::Delete { uid: "p".into(), resource_version: "9".into() });
    assert!(render(&config(), &rollout(), &World::default(), &delete).preview.is_none());
}

#[test]
fn a_decision_annotation_stays_under_two_kilobytes_and_readable() {
    for length in [0, 10, 100, 1000, 100_000] {
        let text = Compact::of(&record(&"ü".repeat(length))).text();
        assert!(text.len() <= 2048, "{length}: {}", text.len());
        assert!(Compact::stored(&text).is_some(), "{text}");
    }
    assert_eq!(Compact::stored("{}"), None);
    assert_eq!(Compact::stored("not json"), None);
}

#[test]
fn objects_of_a_revision() {
    let baseline = Grow { serving: rollout().baseline, replicas: Some(3), baseline: true };
    let claim = Source::Claim { claim: "models".into(), path: "chat/v2/".into(), digest: "c".repeat(64) };
    let candidate = Grow {
        serving: Serving {
            pool: "cpu".into(),
            settings: Settings { kv_bits: Some(4), memory_budget: Some(3 << 29), ..rollout().model.settings },
            ..serving("bbbbbbbbbb", claim)
        },
        replicas: Some(3),
        baseline: false,
    };
    let objects = render(&config(), &rollout(), &World::default(), &Plan { grow: vec![baseline, candidate], ..plan() });
    let names: Vec<_> = objects.grow.iter().map(|write| (write.kind, write.name.as_str())).collect();
    assert_eq!(
        names,
        [
            (Kind::Service, "chat-aaaaaaaaaa"),
            (Kind::Service, "chat-baseline"),
            (Kind::Deployment, "chat-aaaaaaaaaa"),
            (Kind::Service, "chat-bbbbbbbbbb"),
            (Kind::Deployment, "chat-bbbbbbbbbb"),
        ]
    );
    for (name, write) in
        ["service", "service_baseline", "deployment_image", "_", "deployment_claim"].iter().zip(&objects.grow)
    {
        let Action::Create(object) = &write.action else { panic!() };
        if *name != "_" {
            insta::assert_yaml_snapshot!(*name, object);
        }
    }
}

#[test]
fn pods_that_made_room_come_back_where_their_deployment_is() {
    let regrow = |n| Plan { regrow: Some((Revision("chat-aaaaaaaaaa".into()), n)), ..plan() };
    let writes = render(&config(), &rollout(), &existing(2), &regrow(3)).grow;
    let [Write { kind: Kind::Deployment, action: Action::Patch(patch), .. }] = &writes[..] else {
        panic!("{writes:?}")
    };
    assert_eq!(serde_json::to_value(patch).unwrap()[2]["value"], 3);
    assert!(render(&config(), &rollout(), &existing(3), &regrow(3)).grow.is_empty());
    assert!(render(&config(), &rollout(), &World::default(), &regrow(3)).grow.is_empty(), "never from memory");
}

#[test]
fn a_worker_with_a_fallback_is_told_where_fp16_is() {
    let told = |fallback: Option<Fallback>| -> Vec<String> {
        let mut serving = rollout().model;
        serving.settings.fallback = fallback;
        let grow = vec![Grow { serving, replicas: Some(1), baseline: false }];
        let objects = render(&config(), &rollout(), &World::default(), &Plan { grow, ..plan() });
        let Action::Create(object) = &objects.grow.last().unwrap().action else { panic!() };
        let arguments = object["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
        arguments
            .into_iter()
            .skip_while(|a| a != "--fallback")
            .map(|a| a.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(told(None), [""; 0]);
    assert_eq!(told(Some(Fallback { min_confidence: None })), ["--fallback", "chat-baseline:8080"]);
    let least = Some(Fallback { min_confidence: Some(0.95) });
    assert_eq!(told(least), ["--fallback", "chat-baseline:8080", "--min-confidence", "0.95"]);
}

#[test]
fn the_service_of_fp16_comes_back_alone() {
    let mut world = existing(3);
    let service = world.services.remove("chat-baseline").unwrap();
    let grow = vec![Grow { serving: rollout().baseline, replicas: None, baseline: true }];
    let writes = render(&config(), &rollout(), &world, &Plan { grow: grow.clone(), ..plan() }).grow;
    let names: Vec<_> = writes.iter().map(|write| (write.kind, write.name.as_str())).collect();
    assert_eq!(names, [(Kind::Service, "chat-baseline")]);
    world.services.insert("chat-baseline".into(), service);
    assert!(render(&config(), &rollout(), &world, &Plan { grow, ..plan() }).grow.is_empty());
}

fn existing(replicas: i32) -> World {
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "chat-aaaaaaaaaa", "uid": "d", "resourceVersion": "5"},
        "spec": {"replicas": replicas, "selector": {}, "template": {}},
    }))
    .unwrap();
    let mut world = World::default();
    world.deployments.insert("chat-aaaaaaaaaa".into(), deployment);
    for name in ["chat-aaaaaaaaaa", "chat-baseline"] {
        world.services.insert(name.into(), serde_json::from_value(json!({"metadata": {"name": name}})).unwrap());
    }
    world
}

#[test]
fn an_existing_deployment_is_only_ever_scaled() {
    let grow = |replicas| Grow { serving: rollout().baseline, replicas, baseline: true };
    let rendered = |world: &World, replicas| {
        render(&config(), &rollout(), world, &Plan { grow: vec![grow(replicas)], ..plan() }).grow
    };
    assert!(rendered(&existing(3), Some(3)).is_empty());
    assert!(rendered(&existing(5), Some(3)).is_empty(), "never lowered by growing");
    assert!(rendered(&existing(1), None).is_empty(), "an autoscaler's number is left alone");
    let writes = rendered(&existing(1), Some(3));
    let Action::Patch(patch) = &writes[0].action else { panic!() };
    insta::assert_json_snapshot!("scale", patch);
}

#[test]
fn shrinking_has_preconditions() {
    let revision = Revision("chat-aaaaaaaaaa".into());
    let shrink =
        |shrink: Shrink| render(&config(), &rollout(), &existing(3), &Plan { shrink: vec![shrink], ..plan() }).shrink;
    let deleted = shrink(Shrink::Delete(revision.clone()));
    assert_eq!(deleted[0].action, Action::Delete { uid: "d".into(), resource_version: "5".into() });
    assert_eq!(deleted[1].kind, Kind::Service);
    for (write, replicas) in [(Shrink::ToZero(revision.clone()), 0), (Shrink::To(revision, 2), 2)] {
        let Action::Patch(patch) = &shrink(write)[0].action else { panic!() };
        let text = serde_json::to_value(patch).unwrap();
        assert_eq!(text[2], json!({"op": "replace", "path": "/spec/replicas", "value": replicas}));
    }
}

#[test]
fn an_own_route_is_created_whole() {
    let rollout = Rollout {
        route: RouteTarget::Own { gateway: "gw".into(), hostnames: vec!["chat.example".into()] },
        ..rollout()
    };
    let backends = vec![(rollout.baseline.revision.clone(), 100)];
    let shift = RouteWrite::Create { backends, ledger: Ledger { candidate: None, attempt: 0, step: 0, ..ledger(1) } };
    let write = render(&config(), &rollout, &World::default(), &Plan { shift: Some(shift), ..plan() }).shift.unwrap();
    assert_eq!(write.name, "chat");
    let Action::Create(object) = &write.action else { panic!() };
    insta::assert_yaml_snapshot!("own_route", object);
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
