//! The BackendTrafficPolicy of a rollout: how Envoy Gateway spreads requests over the pods of each revision. It carries no
//! weight and no ledger: nothing rests on it.

use super::{Action, Kind, Operations, Write, create, delete, labels, owned_by};
use crate::observe::World;
use bitnet_core::{
    model::{LoadBalancing, Rollout},
    observation::RouteState,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

/// The request that makes the policy what the spec asks for; `None` where it is, or where the route is not ours.
pub(super) fn render(rollout: &Rollout, world: &World, owner: &OwnerReference) -> Option<Write> {
    let ours = matches!(&world.observation.route, RouteState::Found(route) if route.ledger.is_some());
    if !ours || !world.balancing.possible || rollout.deleting {
        return None;
    }
    let found = world.balancing.policy.as_ref();
    let owned = found.is_some_and(|policy| owned_by(&policy.metadata, &rollout.uid));
    let wanted = rollout.load_balancing.map(|how| spec(rollout, world, how));
    match (wanted, found) {
        (Some(spec), None) => {
            let object = json!({
                "apiVersion": "gateway.envoyproxy.io/v1alpha1",
                "kind": "BackendTrafficPolicy",
                "metadata": {
                    "name": rollout.name,
                    "namespace": rollout.namespace,
                    "labels": labels::of_rollout(&rollout.name),
                    "ownerReferences": [owner],
                },
                "spec": spec,
            });
            Some(create(Kind::BackendTrafficPolicy, &rollout.name, &object))
        }
        (Some(spec), Some(policy)) if owned && !says(&policy.data["spec"], &spec) => {
            let mut operations = Operations::on(&policy.metadata);
            operations.replace(["spec"], spec);
            let action = Action::Patch(operations.patch());
            Some(Write { kind: Kind::BackendTrafficPolicy, name: rollout.name.clone(), action })
        }
        (None, Some(policy)) if owned => Some(delete(Kind::BackendTrafficPolicy, &policy.metadata)),
        _ => None,
    }
}

/// What a policy of the Gateway says beside it (timeouts, limits) stays in force: the two are merged.
fn spec(rollout: &Rollout, world: &World, how: LoadBalancing) -> Value {
    json!({
        "targetRefs": targets(rollout, world),
        "mergeType": "StrategicMerge",
        "loadBalancer": {"type": match how {
            LoadBalancing::RoundRobin => "RoundRobin",
            LoadBalancing::LeastRequest => "LeastRequest",
        }},
    })
}

/// The whole route where our rule and those derived from it are all of it, else these rules by their names.
fn targets(rollout: &Rollout, world: &World) -> Vec<Value> {
    let route = json!({
        "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": rollout.route.route_name(&rollout.name),
    });
    let derived = world.route.derived();
    let theirs = world.route.rules().len().saturating_sub(derived.len());
    let Some(name) = world.route.rule_name().filter(|_| theirs > 1) else { return vec![route] };
    let names = derived.iter().filter_map(|(_, rule)| rule["name"].as_str());
    std::iter::once(name)
        .chain(names)
        .map(|section| {
            let mut target = route.clone();
            target["sectionName"] = json!(section);
            target
        })
        .collect()
}

/// The policy says all of this; defaults that the API server filled in do not count.
fn says(found: &Value, wanted: &Value) -> bool {
    found["targetRefs"] == wanted["targetRefs"]
        && found["mergeType"] == wanted["mergeType"]
        && found["loadBalancer"]["type"] == wanted["loadBalancer"]["type"]
}
