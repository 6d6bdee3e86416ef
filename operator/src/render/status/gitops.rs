//! What Argo CD and Flux make of a status: the Lua of `docs/gitops/` run on statuses of every phase, and kstatus.

use super::{
    tests::{NOW, managed, status_with, workload},
    *,
};
use crate::fake;
use bitnet_api::{
    keys::{label, route as key, verb},
    validate::RefusalReason,
};
use bitnet_core::observation::Workload;
use mlua::{Lua, LuaOptions, LuaSerdeExt, StdLib, Table};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

const VERBS: [&str; 7] = ["promote", "promote-full", "pause", "resume", "abort", "rollback", "retry"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/gitops")
}

fn script(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// Runs a script with the libraries that Argo CD gives it: base, table, and of `os` the two functions for time.
fn run(script: &str, object: &Value) -> Value {
    let lua = Lua::new_with(StdLib::TABLE | StdLib::OS, LuaOptions::default()).unwrap();
    let globals = lua.globals();
    let (os, safe) = (globals.get::<Table>("os").unwrap(), lua.create_table().unwrap());
    for name in ["time", "date"] {
        safe.set(name, os.get::<mlua::Value>(name).unwrap()).unwrap();
    }
    globals.set("os", safe).unwrap();
    globals.set("obj", lua.to_value(object).unwrap()).unwrap();
    let answer: mlua::Value = lua.load(script).eval().unwrap_or_else(|error| panic!("{error}\n{script}"));
    lua.from_value(answer).unwrap()
}

fn decision(verdict: &str, key_of: &str, baseline: &str) -> String {
    json!({
        "id": "chat-d-1", "verdict": verdict, "key": key_of, "at": 1_735_689_600_000_i64, "step": 1, "weight": 5,
        "tick": 9, "reason": verdict, "message": "m", "by": "gate", "stable": baseline, "baseline": baseline,
        "parameters": "p", "probeSet": "s",
    })
    .to_string()
}

/// One status per phase, as the operator writes it, and what Argo CD and kstatus must say to it.
fn statuses() -> Vec<(&'static str, ModelRolloutStatus, &'static str, &'static str)> {
    let rollout = fake::rollout();
    let paused = Rollout { paused: true, ..rollout.clone() };
    let (baseline, model) = (rollout.baseline.revision.0.clone(), rollout.model.revision.0.clone());
    let fresh = ModelRolloutStatus::default();
    let with_model = |world: &World, replicas: u32| {
        let mut world = world.clone();
        let pods = workload(replicas > 0, None);
        let pods = Workload { replicas: Some(replicas), baseline: false, ..pods };
        world.observation.workloads.insert(rollout.model.revision.clone(), pods);
        world
    };
    let all = [(baseline.as_str(), 100), (model.as_str(), 0)];
    let home = managed(&json!({}), &[(&baseline, 100)]);
    let lost = World {
        observation: bitnet_core::observation::Observation {
            workloads: BTreeMap::from([(rollout.baseline.revision.clone(), workload(false, None))]),
            ..home.observation.clone()
        },
        ..home.clone()
    };
    let missing = World {
        observation: bitnet_core::observation::Observation { route: RouteState::Missing, ..Default::default() },
        ..World::default()
    };
    let in_use = World {
        observation: bitnet_core::observation::Observation {
            route: RouteState::InUse("first".into()),
            ..Default::default()
        },
        ..World::default()
    };
    let attempt = format!("u/{model}/1");
    let judged = |verdict: &str| {
        let mut annotations = json!({
            key::CANDIDATE: model, key::ATTEMPT: "1", key::STEP: "1", key::DECISION: decision(verdict, &attempt, &baseline),
        });
        if verdict == "RolledBack" {
            annotations[key::ROLLBACK_OF] = json!(attempt);
        }
        managed(&annotations, &all)
    };
    let promoted = json!({
        key::STABLE: model, key::CANDIDATE: model, key::ATTEMPT: "1", key::STEP: "9",
        key::DECISION: decision("Promoted", &attempt, &baseline),
    });
    let serves = with_model(&managed(&promoted, &[(&model, 100)]), 1);
    let refusal = |reason| refused(&fresh, 1, &Refusal::new(reason, "spec.x", "rule", "remedy"), NOW);
    let of = |world: &World| status_with(&rollout, world, &fresh, NOW);
    vec![
        ("Pending", of(&missing), "Progressing", "InProgress"),
        ("Pending", of(&in_use), "Degraded", "Failed"),
        ("Pending", refusal(RefusalReason::GateMissing), "Progressing", "InProgress"),
        ("Pending", refusal(RefusalReason::InvalidSpec), "Degraded", "Failed"),
        ("Progressing", of(&home), "Progressing", "InProgress"),
        ("Paused", status_with(&paused, &home, &fresh, NOW), "Suspended", "InProgress"),
        ("Serving", of(&serves), "Healthy", "Current"),
        ("Holding", of(&with_model(&judged("Inconclusive"), 1)), "Degraded", "Failed"),
        ("Holding", of(&with_model(&judged("Reported"), 1)), "Suspended", "Failed"),
        ("RollingBack", of(&with_model(&judged("RolledBack"), 1)), "Progressing", "InProgress"),
        ("RolledBack", of(&with_model(&judged("RolledBack"), 0)), "Degraded", "Failed"),
        ("Degraded", of(&lost), "Degraded", "InProgress"),
    ]
}

/// As `sigs.k8s.io/cli-utils/pkg/kstatus/status.Compute` does it for a kind that it does not know.
fn kstatus(object: &Value) -> &'static str {
    let status = &object["status"];
    if status["observedGeneration"] != object["metadata"]["generation"] {
        return "InProgress";
    }
    let is = |type_: &str, word: &str| {
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().any(|condition| condition["type"] == type_ && condition["status"] == word)
    };
    match () {
        () if is("Reconciling", "True") => "InProgress",
        () if is("Stalled", "True") => "Failed",
        () if is("Ready", "True") => "Current",
        () => "InProgress",
    }
}

fn object(status: &ModelRolloutStatus) -> Value {
    json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
        "metadata": {"name": "chat", "namespace": "tenant", "generation": 1, "labels": {label::ROLLOUT: "chat"}},
        "spec": {}, "status": status,
    })
}

#[test]
fn every_phase_has_its_health_in_argo_cd_and_in_kstatus() {
    let health = script("health.lua");
    for (phase, status, argo, flux) in statuses() {
        let shown = format!("{phase}: {} {:?}", status.message, status.conditions);
        assert_eq!(status.phase, phase, "{shown}");
        let object = object(&status);
        let answer = run(&health, &object);
        assert_eq!(answer["status"], argo, "{shown}");
        assert_eq!(answer["message"], json!(status.message), "{shown}");
        assert_eq!(kstatus(&object), flux, "{shown}");
        // Reconciling and Stalled are never both true, and neither is while it is ready.
        let truths = [kind::READY, kind::RECONCILING, kind::STALLED]
            .iter()
            .filter(|type_| status.conditions.iter().any(|c| c.type_ == **type_ && c.status == "True"));
        assert!(truths.count() <= 1, "{shown}");
    }
}

#[test]
fn an_unseen_generation_and_a_deletion_progress() {
    let health = script("health.lua");
    let (_, status, ..) = statuses().into_iter().find(|(phase, ..)| *phase == "Serving").unwrap();
    let mut edited = object(&status);
    edited["metadata"]["generation"] = json!(2);
    assert_eq!((run(&health, &edited)["status"].as_str(), kstatus(&edited)), (Some("Progressing"), "InProgress"));
    let mut going = object(&status);
    going["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    assert_eq!(run(&health, &going)["status"], "Progressing");
    let mut new = object(&status);
    new.as_object_mut().unwrap().remove("status");
    assert_eq!(run(&health, &new)["status"], "Progressing");
}

#[test]
fn an_action_writes_what_the_operator_reads() {
    let (discovery, action) = (script("discovery.lua"), script("action.lua"));
    for (phase, status, ..) in statuses() {
        let object = object(&status);
        let offered = run(&discovery, &object);
        assert_eq!(offered.as_object().unwrap().len(), VERBS.len());
        let known = status.candidate.as_ref().or(status.stable.as_ref()).map(|revision| revision.revision.clone());
        for name in VERBS {
            let enabled = offered[name]["disabled"] == false;
            assert!(!enabled || known.is_some(), "{phase}: {name} is offered before there is a revision");
            let after = run(&action.replace("@VERB@", name), &object);
            let annotations: BTreeMap<String, String> =
                serde_json::from_value(after["metadata"]["annotations"].clone()).unwrap();
            assert_eq!(annotations.keys().collect::<Vec<_>>(), [&format!("{}{name}", bitnet_api::keys::PREFIX)]);
            let read = crate::observe::verbs::read(&annotations);
            assert_eq!(read.len(), 1);
            assert_eq!((read[0].by.as_str(), read[0].revision.clone()), ("argocd", known.clone().unwrap_or_default()));
            assert_eq!(read[0].attempt, status.attempt.unwrap_or(0).unsigned_abs());
            assert!(read[0].id.starts_with("argocd-20"), "{}", read[0].id);
            assert_eq!((&after["spec"], &after["status"]["phase"]), (&object["spec"], &object["status"]["phase"]));
        }
        let enabled = |name: &str| offered[name]["disabled"] == false;
        assert_eq!(enabled("resume"), phase == "Paused", "{phase}");
        assert_eq!(
            enabled("abort"),
            ["Progressing", "Paused", "Holding"].contains(&phase) && known.is_some(),
            "{phase}"
        );
    }
    assert!(VERBS.iter().all(|name| format!("{}{name}", bitnet_api::keys::PREFIX).len() > name.len()));
    assert_eq!(verb::PROMOTE_FULL, "rollouts.bitnet.dev/promote-full");
}

/// `argocd-cm.yaml` holds the scripts; UPDATE_GOLDEN=1 writes it.
#[test]
fn the_config_map_holds_the_scripts() {
    let indented = |text: &str, by: usize| {
        let pad = " ".repeat(by);
        text.lines()
            .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("{pad}{line}\n") })
            .collect::<String>()
    };
    let mut text = String::from(
        "# Health and actions of ModelRollouts in Argo CD: merge the two keys into yours.\n\
         # Made of the Lua files beside it by `UPDATE_GOLDEN=1 cargo test -p bitnet-operator the_config_map`.\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: argocd-cm, namespace: argocd}\ndata:\n",
    );
    text += "  resource.customizations.health.rollouts.bitnet.dev_ModelRollout: |\n";
    text += &indented(&script("health.lua"), 4);
    text += "  resource.customizations.actions.rollouts.bitnet.dev_ModelRollout: |\n    discovery.lua: |\n";
    text += &indented(&script("discovery.lua"), 6);
    text += "    definitions:\n";
    for name in VERBS {
        write!(text, "    - name: {name}\n      action.lua: |\n").unwrap();
        text += &indented(&script("action.lua").replace("@VERB@", name), 8);
    }
    let file = folder().join("argocd-cm.yaml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap_or_default() == text, "argocd-cm.yaml has drifted");
    // Argo CD reads the second key as YAML again.
    let map: Value = serde_yaml::from_str(&text).unwrap();
    let actions = &map["data"]["resource.customizations.actions.rollouts.bitnet.dev_ModelRollout"];
    let actions: Value = serde_yaml::from_str(actions.as_str().unwrap()).unwrap();
    assert_eq!(actions["discovery.lua"], json!(script("discovery.lua")));
    assert_eq!(actions["definitions"].as_array().unwrap().len(), VERBS.len());
}
