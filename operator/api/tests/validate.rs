//! `validate`: defaults, every refusal, and that it is total.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use bitnet_api::{
    v1alpha1::{ModelRollout, QualityGate},
    validate::{Pools, Refusal, RefusalReason, revision_name, validate},
};
use bitnet_core::{
    Span,
    evidence::{Gate, Percentiles, ProbeSettings},
    model::{DeletionPolicy, Fallback, FallbackBalance, RouteTarget, Settings, Source},
};
use proptest::{
    prelude::{Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest},
    sample::Index,
    strategy::Strategy as _,
};
use serde_json::{Value, json};

fn pools() -> Pools {
    Pools {
        names: ["cpu", "cpu-large", "gpu"].map(str::to_owned).into(),
        default: "cpu".into(),
        memory: [("gpu".to_owned(), 8 << 30)].into(),
    }
}

fn image(name: &str) -> String {
    format!("registry.example/{name}@sha256:{}", "1".repeat(64))
}

/// The smallest rollout as the API server stores it.
fn smallest() -> Value {
    json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 3},
        "spec": {
            "baseline": {"source": {"image": image("fp16")}},
            "model": {"source": {"image": image("bitnet")}},
            "route": {"gateway": "gw"},
            "gate": {"name": "chat"},
        },
    })
}

fn gate(spec: &Value) -> QualityGate {
    let object = json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate",
        "metadata": {"name": "chat", "namespace": "team"}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn rollout(object: &Value) -> ModelRollout {
    serde_json::from_value(object.clone()).unwrap()
}

fn refused(object: &Value) -> Refusal {
    validate(&rollout(object), Some(&gate(&json!({"probes": {"configMap": "chat-probes"}}))), &pools()).unwrap_err()
}

#[test]
fn the_smallest_objects_are_complete() {
    let object = rollout(&smallest());
    let made = validate(&object, Some(&gate(&json!({"probes": {"configMap": "chat-probes"}}))), &pools()).unwrap();
    assert_eq!((made.namespace.as_str(), made.name.as_str(), made.uid.as_str()), ("team", "chat", "u-1"));
    assert_eq!((made.generation, made.deleting, made.paused), (3, false, false));
    assert_eq!(made.baseline.source, Source::Image(image("fp16")));
    assert_eq!((made.baseline.precision.as_str(), made.model.precision.as_str()), ("fp16", "auto"));
    assert_eq!((made.baseline.pool.as_str(), made.baseline.replicas), ("cpu", 1));
    assert_eq!(made.model.settings, Settings::default(), "the worker's defaults are its own");
    assert_eq!(made.baseline.revision, revision_name("chat", &object.spec.baseline));
    assert_ne!(made.baseline.revision, made.model.revision);
    assert_eq!(made.route, RouteTarget::Own { gateway: "gw".into(), hostnames: vec![] });
    let canary = &made.strategy;
    let steps: Vec<_> = canary.steps().iter().map(|step| (step.weight, step.duration.0, step.pause)).collect();
    assert_eq!(steps, [5, 10, 20, 40, 50].map(|weight| (weight, 300_000, false)));
    assert_eq!((made.scale_down_delay, made.progress_deadline), (Span::seconds(600), Span::seconds(3600)));
    assert_eq!(made.deletion_policy, DeletionPolicy::Delete);
    assert_eq!(
        made.gate,
        Gate {
            name: "chat".into(),
            probes: ProbeSettings { config_map: "chat-probes".into(), ..ProbeSettings::default() },
            ..Gate::default()
        },
        "the schema's defaults are the core's"
    );
}

#[test]
fn everything_that_can_be_given_is_taken() {
    let mut object = smallest();
    let digest = "b".repeat(64);
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    object["spec"] = json!({
        "baseline": {"source": {"image": image("fp16")}, "pool": "cpu-large", "replicas": 2, "precision": "auto"},
        "model": {
            "source": {"persistentVolumeClaim": {"claimName": "models", "path": "chat/v2", "digest": format!("sha256:{digest}")}},
            "precision": "ternary", "pool": "gpu", "replicas": 3,
            "serving": {
                "maxBatch": 8, "batchWait": "10ms", "kvBits": 4, "contextLength": 4096, "memoryBudget": "1.5Gi",
                "queue": 64, "prefixCacheTokens": 0, "head": "screened", "requestTimeout": "2m",
                "weightsCache": {"persistentVolumeClaim": "weights"},
                "fallback": {"minConfidence": "0.95", "balance": "RoundRobin", "firstTokenTimeout": "1500ms"},
            },
        },
        "route": {"httpRoute": "chat", "rule": "completions"},
        "strategy": {"canary": {"steps": [{"weight": 1, "duration": "10m"}, {"pause": {}}, {"weight": 50}]}},
        "gateSpec": {"probes": {"configMap": "inline"}, "signals": {"latency": {"percentiles": ["p99"]}}},
        "scaleDownDelay": "15s", "progressDeadline": "1h30m", "deletionPolicy": "Orphan", "paused": true,
    });
    let made = validate(&rollout(&object), None, &pools()).unwrap();
    assert!(made.deleting && made.paused);
    assert_eq!(made.model.source, Source::Claim { claim: "models".into(), path: "chat/v2".into(), digest });
    assert_eq!((made.model.pool.as_str(), made.model.replicas, made.baseline.replicas), ("gpu", 3, 2));
    let settings = Settings {
        max_batch: Some(8),
        batch_wait: Some(Span(10)),
        queue: Some(64),
        context_length: Some(4096),
        prefix_cache_tokens: Some(0),
        kv_bits: Some(4),
        head: Some("screened"),
        memory_budget: Some(3 << 29),
        weights_cache: Some("weights".into()),
        request_timeout: Some(Span(120_000)),
        fallback: Some(Fallback {
            min_confidence: Some(0.95),
            balance: Some(FallbackBalance::RoundRobin),
            first_token: Some(Span(1500)),
        }),
    };
    assert_eq!(made.model.settings, settings);
    assert_eq!(made.route, RouteTarget::Adopt { http_route: "chat".into(), rule: Some("completions".into()) });
    let canary = &made.strategy;
    let steps: Vec<_> = canary.steps().iter().map(|step| (step.weight, step.duration.0, step.pause)).collect();
    assert_eq!(steps, [(1, 600_000, true), (50, 300_000, false)]);
    assert_eq!((made.gate.name.as_str(), made.gate.probes.config_map.as_str()), ("chat", "inline"));
    assert_eq!(made.gate.percentiles, Percentiles { body: false, p95: false, p99: true });
    assert_eq!((made.scale_down_delay, made.progress_deadline), (Span::seconds(15), Span::seconds(5400)));
    assert_eq!(made.deletion_policy, DeletionPolicy::Orphan);
}

#[test]
fn the_baseline_itself_may_be_asked_for() {
    let mut object = smallest();
    object["spec"]["model"] = object["spec"]["baseline"].clone();
    object["spec"]["model"]["replicas"] = json!(7);
    let made = validate(&rollout(&object), Some(&gate(&json!({"probes": {"configMap": "p"}}))), &pools()).unwrap();
    assert_eq!(made.baseline.revision, made.model.revision);
}

#[test]
fn what_is_missing_is_named() {
    let object = rollout(&smallest());
    let refusal = validate(&object, None, &pools()).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_str()), (RefusalReason::GateMissing, "spec.gate.name"));
    assert!(refusal.rule.contains("`chat`"), "{refusal}");

    let mut elsewhere = smallest();
    elsewhere["spec"]["model"]["pool"] = json!("tpu");
    let refusal = refused(&elsewhere);
    assert_eq!((refusal.reason, refusal.field.as_str()), (RefusalReason::PoolMissing, "spec.model.pool"));
    assert!(refusal.remedy.contains("cpu, cpu-large, gpu"), "{refusal}");
    let none = validate(&object, None, &Pools::default()).unwrap_err();
    assert_eq!((none.reason, none.field.as_str()), (RefusalReason::PoolMissing, "spec.baseline.pool"));

    for field in ["namespace", "uid"] {
        let mut broken = smallest();
        broken["metadata"].as_object_mut().unwrap().remove(field);
        let refusal = refused(&broken);
        assert_eq!((refusal.reason, refusal.field), (RefusalReason::Malformed, format!("metadata.{field}")));
    }
}

#[test]
fn memory_is_bounded_by_the_pool() {
    let mut object = smallest();
    object["spec"]["model"]["pool"] = json!("gpu");
    object["spec"]["model"]["serving"] = json!({"memoryBudget": "8Gi"});
    let gate = gate(&json!({"probes": {"configMap": "p"}}));
    let made = validate(&rollout(&object), Some(&gate), &pools()).unwrap();
    assert_eq!(made.model.settings.memory_budget, Some(8 << 30));
    object["spec"]["model"]["serving"] = json!({"memoryBudget": "9Gi"});
    let refusal = refused(&object);
    assert_eq!(refusal.field, "spec.model.serving.memoryBudget");
    assert!(refusal.rule.contains("memory limit of the pool, 8589934592 bytes"), "{refusal}");
    // A pool without a limit bounds nothing.
    object["spec"]["model"]["pool"] = json!("cpu");
    assert!(validate(&rollout(&object), Some(&gate), &pools()).is_ok());
}

#[test]
fn a_gate_of_its_own_is_blamed_by_name() {
    let gate = gate(&json!({"probes": {"configMap": "p"}, "interval": "0s"}));
    let refusal = validate(&rollout(&smallest()), Some(&gate), &pools()).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::InvalidGate);
    assert_eq!(refusal.field, "QualityGate chat: spec.interval");
    let mut inline = smallest();
    inline["spec"]["gateSpec"] = json!({"probes": {"configMap": "p"}, "interval": "0s"});
    inline["spec"].as_object_mut().unwrap().remove("gate");
    let refusal = refused(&inline);
    assert_eq!((refusal.reason, refusal.field.as_str()), (RefusalReason::InvalidSpec, "spec.gateSpec.interval"));
}

/// An object that is older than a rule reaches `validate`: whatever the schema refuses is refused here too, unless it
/// cannot even be read.
#[test]
fn what_the_schema_refuses_is_refused_here_too() {
    let mut seen = 0;
    for case in support::cases() {
        let mut object = case.object;
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("namespace".into(), json!("team"));
        metadata.insert("uid".into(), json!("u-1"));
        // What is wrong with an update is wrong only beside the object before it.
        if case.update {
            continue;
        }
        // An unknown field is dropped, a duplicate in a set is harmless, and a list of exact size has no reader here.
        let harmless = ["unknown field", "Duplicate value"].iter().any(|text| case.expect.contains(text));
        let result = match object["kind"].as_str().unwrap() {
            "ModelRollout" => {
                let good = gate(&json!({"probes": {"configMap": "p"}}));
                serde_json::from_value(object).map(|rollout: ModelRollout| validate(&rollout, Some(&good), &pools()))
            }
            "QualityGate" => serde_json::from_value(object)
                .map(|gate: QualityGate| validate(&rollout(&smallest()), Some(&gate), &pools())),
            _ => continue,
        };
        match result {
            Ok(Ok(_)) => assert!(case.expect == "accepted" || harmless, "{} passes: {}", case.place, case.expect),
            Ok(Err(refusal)) => {
                assert!(case.expect != "accepted", "{}: {refusal}", case.place);
                assert_complete(&refusal);
                if case.expect.contains("does not drive") {
                    assert_eq!(refusal.reason, RefusalReason::NotLanded, "{}: {refusal}", case.place);
                }
                seen += 1;
            }
            Err(_) => assert_ne!(case.expect, "accepted", "{}", case.place),
        }
    }
    assert!(seen > 80, "only {seen} refusals");
}

fn assert_complete(refusal: &Refusal) {
    for part in [&refusal.field, &refusal.rule, &refusal.remedy] {
        assert!(!part.is_empty() && part.len() < 1000, "{refusal:?}");
    }
    let text = refusal.to_string();
    assert!(text.contains(&refusal.field) && text.contains(&refusal.rule) && text.contains(&refusal.remedy));
    assert!(RefusalReason::ALL.contains(&refusal.reason));
}

/// Replaces the value at a random leaf of `object.spec` by something else that may or may not fit.
fn mutate(object: &mut Value, at: Index, with: &Value) {
    fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                map.iter().for_each(|(name, value)| leaves(value, &format!("{path}/{name}"), found));
            }
            Value::Array(items) if !items.is_empty() => {
                items.iter().enumerate().for_each(|(i, value)| leaves(value, &format!("{path}/{i}"), found));
            }
            _ => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    leaves(&object["spec"], "/spec", &mut found);
    *object.pointer_mut(&found[at.index(found.len())]).unwrap() = with.clone();
}

fn anything() -> impl proptest::strategy::Strategy<Value = Value> {
    prop_oneof![
        any::<i32>().prop_map(Value::from),
        (0..120i32).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[0-9]{1,3}(\\.[0-9]{1,9})?".prop_map(Value::from),
        "([0-9]{1,5}(h|m|s|ms)){1,4}".prop_map(Value::from),
        "[a-z0-9.:/@-]{0,40}".prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!({})),
        Just(Value::from("9".repeat(400))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any object gives a rollout or a complete refusal, never a panic; what the schema takes is never `Malformed`.
    #[test]
    fn validate_is_total(case in any::<Index>(), edits in prop::collection::vec((any::<Index>(), anything()), 0..4)) {
        let cases: Vec<_> = support::cases().into_iter().filter(|case| case.object["kind"] != "RolloutDecision").collect();
        let mut object = cases[case.index(cases.len())].object.clone();
        for (at, with) in &edits {
            mutate(&mut object, *at, with);
        }
        let taken = support::refusals(&object, None).is_empty();
        object["metadata"]["namespace"] = json!("team");
        object["metadata"]["uid"] = json!("u-1");
        let good = gate(&json!({"probes": {"configMap": "p"}}));
        let result = if object["kind"] == "ModelRollout" {
            serde_json::from_value(object).map(|rollout: ModelRollout| validate(&rollout, Some(&good), &pools()))
        } else {
            serde_json::from_value(object)
                .map(|gate: QualityGate| validate(&rollout(&smallest()), Some(&gate), &pools()))
        };
        match result {
            Err(error) => prop_assert!(!taken, "the schema took what cannot be read: {error}"),
            Ok(Err(refusal)) => {
                assert_complete(&refusal);
                if taken {
                    prop_assert_eq!(refusal.reason, RefusalReason::PoolMissing, "the schema took it: {}", refusal);
                }
            }
            Ok(Ok(made)) => {
                let canary = &made.strategy;
                prop_assert!(canary.steps().windows(2).all(|pair| pair[0].weight < pair[1].weight));
                prop_assert!(canary.steps().iter().all(|step| (1..=100).contains(&step.weight)));
                prop_assert!(made.gate.horizon() >= 1 && made.gate.min_mean.is_finite());
                prop_assert!(made.baseline.revision.0.len() <= 63 && made.model.revision.0.len() <= 63);
            }
        }
    }
}
