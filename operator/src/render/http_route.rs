//! The one write of the HTTPRoute: weights and ledger together. Never through a typed struct, which would drop the
//! fields that it does not know.

use super::{Action, Compact, Kind, Operations, Write, detours};
use crate::observe::{RouteView, World};
use bitnet_api::{
    keys::{self, route as key},
    worker::PUBLIC_PORT,
};
use bitnet_core::{
    model::{Revision, Rollout, RouteTarget},
    observation::{Detours, Ledger},
    plan::{DecisionRecord, RouteWrite},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The request that carries out a route write.
pub(super) fn render(rollout: &Rollout, world: &World, write: &RouteWrite, owner: &OwnerReference) -> Write {
    let name = rollout.route.route_name(&rollout.name).to_owned();
    let action = match write {
        RouteWrite::Create { backends, ledger } => {
            Action::Create(Box::new(own_route(rollout, backends, ledger, owner)))
        }
        RouteWrite::Set { backends, ledger, detours, adopt, decision } => {
            let mut operations = set(rollout, world, (backends, detours), ledger, *adopt, decision.as_deref());
            if matches!(rollout.route, RouteTarget::Own { .. }) {
                operations.with_owner(world.route.meta(), owner);
            }
            Action::Patch(operations.patch())
        }
        RouteWrite::Restore => Action::Patch(restore(world, &rollout.uid)),
        RouteWrite::Release => Action::Patch(release(world, &rollout.uid)),
        RouteWrite::Delete => {
            let meta = world.route.meta();
            Action::Delete {
                uid: meta.uid.clone().unwrap_or_default(),
                resource_version: meta.resource_version.clone().unwrap_or_default(),
            }
        }
    };
    Write { kind: Kind::HttpRoute, name, action }
}

fn set(
    rollout: &Rollout,
    world: &World,
    (backends, detours): (&[(Revision, u32)], &Detours),
    ledger: &Ledger,
    adopt: bool,
    decision: Option<&DecisionRecord>,
) -> Operations {
    let route = &world.route;
    let meta = route.meta();
    let existing = route.backend_refs();
    let mut operations = rule_tests(world);
    detours::write(&mut operations, route, backends, detours);

    let mut ledger = ledger.clone();
    if adopt {
        // A route that another rollout left behind keeps its epoch: it never falls.
        let left = meta.annotations.as_ref().and_then(|all| all.get(key::EPOCH)?.parse::<u64>().ok()).unwrap_or(0);
        ledger.epoch = ledger.epoch.max(left + 1);
    }
    let mut wanted = annotations(rollout, route.rule_name(), &ledger, decision);
    wanted.insert(key::DERIVED_RULES, detours::names(detours));
    if adopt {
        let kept = meta.annotations.as_ref().and_then(|all| all.get(key::ORIGINALS)).cloned();
        let originals = kept.unwrap_or_else(|| {
            let mut refs = existing.cloned().unwrap_or(Value::Null);
            // One text for one list, whether or not this build keeps JSON as it was written.
            refs.sort_all_objects();
            refs.to_string()
        });
        wanted.insert(key::ORIGINALS, Some(originals));
    }
    annotate(&mut operations, meta, &wanted);
    operations
}

fn restore(world: &World, uid: &str) -> json_patch::Patch {
    let route = &world.route;
    let mut operations = rule_tests(world);
    let kept = route.meta().annotations.as_ref().and_then(|all| all.get(key::ORIGINALS));
    match kept.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        Some(Value::Array(originals)) => {
            operations.add(["spec", "rules", &route.index(), "backendRefs"], Value::Array(originals));
        }
        _ if route.backend_refs().is_some() => operations.remove(["spec", "rules", &route.index(), "backendRefs"]),
        _ => {}
    }
    detours::clear(&mut operations, route);
    clear(&mut operations, route.meta());
    operations.without_owner(route.meta(), uid);
    operations.patch()
}

fn release(world: &World, uid: &str) -> json_patch::Patch {
    let route = &world.route;
    let meta = route.meta();
    let mut operations = Operations::on(meta);
    detours::clear(&mut operations, route);
    clear(&mut operations, meta);
    operations.without_owner(meta, uid);
    operations.patch()
}

/// Lets go of a route that nobody will watch any more: our annotations and ownerReference go, and a candidate on trial leaves it where
/// stable serves beside it. An unproven model must not keep its share unattended.
pub(crate) fn detach_patch(route: &RouteView, uid: &str) -> json_patch::Patch {
    let meta = route.meta();
    let stable = meta.annotations.as_ref().and_then(|all| all.get(key::STABLE)).cloned().unwrap_or_default();
    let serves = |backend: &&Value| is_service(backend) && backend["name"] == stable.as_str() && backend["weight"] != 0;
    let refs = route.backend_refs().and_then(Value::as_array);
    let alone = refs.and_then(|refs| refs.iter().find(serves)).cloned();
    let mut operations = Operations::on(meta);
    if let Some(mut alone) = alone.filter(|_| refs.is_some_and(|refs| refs.len() > 1)) {
        alone["weight"] = json!(100);
        operations.replace(["spec", "rules", &route.index(), "backendRefs"], json!([alone]));
    }
    detours::clear(&mut operations, route);
    clear(&mut operations, meta);
    operations.without_owner(meta, uid);
    operations.patch()
}

/// Tests that the rule is still the one that was read: by its name, or by its whole backends where it has none.
fn rule_tests(world: &World) -> Operations {
    let route = &world.route;
    let mut operations = Operations::on(route.meta());
    match (route.rule_name(), route.backend_refs()) {
        (Some(name), _) => operations.test(["spec", "rules", &route.index(), "name"], json!(name)),
        (None, Some(refs)) => operations.test(["spec", "rules", &route.index(), "backendRefs"], refs.clone()),
        (None, None) => {}
    }
    operations
}

/// The backend of a revision with an explicit weight; what a person added to an existing one stays.
pub(super) fn backend_ref(existing: Option<&Value>, revision: &Revision, weight: u32) -> Value {
    let known = existing
        .and_then(Value::as_array)
        .and_then(|refs| refs.iter().find(|found| is_service(found) && found["name"] == revision.as_str()));
    let mut backend = known.and_then(Value::as_object).cloned().unwrap_or_else(|| {
        Map::from_iter([
            ("group".into(), json!("")),
            ("kind".into(), json!("Service")),
            ("name".into(), json!(revision.as_str())),
            ("port".into(), json!(PUBLIC_PORT)),
        ])
    });
    backend.insert("weight".into(), json!(weight));
    Value::Object(backend)
}

fn is_service(backend: &Value) -> bool {
    let group = backend["group"].as_str().unwrap_or_default();
    let kind = backend["kind"].as_str().unwrap_or("Service");
    group.is_empty() && kind == "Service"
}

fn own_route(rollout: &Rollout, backends: &[(Revision, u32)], ledger: &Ledger, owner: &OwnerReference) -> Value {
    let (gateway, hostnames) = match &rollout.route {
        RouteTarget::Own { gateway, hostnames } => (gateway.as_str(), hostnames.as_slice()),
        // Core creates no route for a rollout that adopts one.
        RouteTarget::Adopt { .. } => ("", [].as_slice()),
    };
    let refs: Vec<_> = backends.iter().map(|(revision, weight)| backend_ref(None, revision, *weight)).collect();
    let annotations: BTreeMap<_, _> = annotations(rollout, None, ledger, None)
        .into_iter()
        .filter_map(|(key, value)| value.map(|value| (key, value)))
        .collect();
    let mut spec = json!({"parentRefs": [{"name": gateway}], "rules": [{"backendRefs": refs}]});
    if !hostnames.is_empty() {
        spec["hostnames"] = json!(hostnames);
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": rollout.name,
            "namespace": rollout.namespace,
            "labels": super::labels::of_rollout(&rollout.name),
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": spec,
    })
}

type Annotations = BTreeMap<&'static str, Option<String>>;

/// The ledger as annotations; `None`: the annotation must not be there.
fn annotations(
    rollout: &Rollout,
    rule: Option<&str>,
    ledger: &Ledger,
    decision: Option<&DecisionRecord>,
) -> Annotations {
    let stored = ledger.decision.as_ref().map(|stored| stored.text.clone());
    Annotations::from([
        (key::ROLLOUT, Some(format!("{}/{}", rollout.name, rollout.uid))),
        (key::RULE, rule.map(str::to_owned)),
        (key::STABLE, Some(ledger.stable.0.clone())),
        (key::CANDIDATE, ledger.candidate.as_ref().map(|candidate| candidate.0.clone())),
        (key::ATTEMPT, Some(ledger.attempt.to_string())),
        (key::STEP, Some(ledger.step.to_string())),
        (key::EPOCH, Some(ledger.epoch.to_string())),
        (key::ROLLBACK_OF, ledger.rollback_of.as_ref().map(ToString::to_string)),
        (key::DECISION, decision.map(|record| Compact::of(record).text()).or(stored)),
    ])
}

fn annotate(operations: &mut Operations, meta: &ObjectMeta, wanted: &Annotations) {
    let empty = BTreeMap::new();
    let present = meta.annotations.as_ref().unwrap_or(&empty);
    if present.is_empty() {
        operations.add(["metadata", "annotations"], json!({}));
    }
    for (&key, value) in wanted {
        match (value, present.get(key)) {
            (Some(value), before) if before != Some(value) => {
                operations.add(["metadata", "annotations", key], json!(value));
            }
            (None, Some(_)) => operations.remove(["metadata", "annotations", key]),
            _ => {}
        }
    }
}

fn clear(operations: &mut Operations, meta: &ObjectMeta) {
    let ours = meta.annotations.iter().flatten().filter(|(key, _)| key.starts_with(keys::PREFIX));
    for (key, _) in ours {
        operations.remove(["metadata", "annotations", key]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detached(refs: &Value) -> Value {
        let mut route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "uid": "r", "resourceVersion": "1", "annotations": {
                key::ROLLOUT: "chat/u", key::RULE: "two", key::STABLE: "chat-a", "team": "x",
            }},
            "spec": {"rules": [{"name": "one"}, {"name": "two", "backendRefs": refs}]},
        });
        let patch = detach_patch(&RouteView::managed(serde_json::from_value(route.clone()).unwrap()), "u");
        json_patch::patch(&mut route, &patch).unwrap();
        assert_eq!(route["metadata"]["annotations"], json!({"team": "x"}));
        route["spec"]["rules"][1]["backendRefs"].clone()
    }

    #[test]
    fn an_unproven_candidate_keeps_no_share_when_nobody_watches_any_more() {
        let on_trial =
            json!([{"name": "chat-a", "port": 8080, "weight": 90}, {"name": "chat-b", "port": 8080, "weight": 10}]);
        assert_eq!(detached(&on_trial), json!([{"name": "chat-a", "port": 8080, "weight": 100}]));
        let fallen_back = json!([{"name": "chat-a", "weight": 0}, {"name": "chat-fp16", "weight": 100}]);
        assert_eq!(detached(&fallen_back), fallen_back, "what serves goes on serving");
        let alone = json!([{"name": "chat-a", "weight": 100}]);
        assert_eq!(detached(&alone), alone);
    }
}
