//! The BackendTrafficPolicy of Envoy Gateway.

use super::*;
use bitnet_core::{
    model::LoadBalancing,
    observation::{Route, RouteState},
};
use bitnet_operator::observe::Balancing;

/// A route that is ours, run by Envoy Gateway, and the policy that is there.
fn world_with(route: &Value, policy: Option<&Value>) -> World {
    let mut world = world(route);
    world.observation.route = RouteState::Found(Route { ledger: Some(ledger(4)), ..Route::default() });
    let policy = policy.map(|policy| serde_json::from_value(policy.clone()).unwrap());
    world.balancing = Balancing { possible: true, policy, problem: None };
    world
}

fn asking(how: Option<LoadBalancing>) -> Rollout {
    Rollout { load_balancing: how, ..rollout() }
}

fn balancing(rollout: &Rollout, world: &World) -> Option<Write> {
    render(&config(), rollout, world, &plan()).balancing
}

/// The policy as the API server stores it, with a default filled in.
fn stored(how: LoadBalancing, route: &Value) -> Value {
    let write = balancing(&asking(Some(how)), &world_with(route, None)).unwrap();
    let Action::Create(object) = write.action else { panic!("{write:?}") };
    let mut object = *object;
    object["metadata"]["uid"] = json!("uid-of-route");
    object["metadata"]["resourceVersion"] = json!("77");
    object["spec"]["loadBalancer"]["filledIn"] = json!(true);
    object
}

#[test]
fn it_names_our_rule_where_the_route_has_others_and_the_whole_route_where_not() {
    let mut shared = route(&json!({}));
    let write = balancing(&asking(Some(LoadBalancing::LeastRequest)), &world_with(&shared, None)).unwrap();
    assert_eq!((write.kind, write.name.as_str()), (Kind::BackendTrafficPolicy, "chat"));
    let Action::Create(object) = &write.action else { panic!("{write:?}") };
    insta::assert_yaml_snapshot!("policy", sorted(object));

    // A rule that was derived from ours is balanced like it; another rule is not touched.
    shared["metadata"]["annotations"][key::DERIVED_RULES] = json!("bitnet-candidate");
    shared["spec"]["rules"].as_array_mut().unwrap().push(json!({"name": "bitnet-candidate"}));
    let object = stored(LoadBalancing::RoundRobin, &shared);
    let sections: Vec<_> = object["spec"]["targetRefs"].as_array().unwrap().iter().map(|t| &t["sectionName"]).collect();
    assert_eq!(sections, ["completions", "bitnet-candidate"]);
    assert_eq!(object["spec"]["loadBalancer"]["type"], "RoundRobin");

    // Alone with what was derived from it, it is the whole route.
    shared["spec"]["rules"].as_array_mut().unwrap().remove(0);
    let mut world = world_with(&shared, None);
    world.route = RouteView::managed(serde_json::from_value(shared.clone()).unwrap());
    let write = balancing(&asking(Some(LoadBalancing::RoundRobin)), &world).unwrap();
    let Action::Create(object) = &write.action else { panic!("{write:?}") };
    assert_eq!(
        object["spec"]["targetRefs"],
        json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "shop"}])
    );
}

#[test]
fn it_is_written_once_changed_when_the_spec_does_and_goes_with_the_field() {
    let route = route(&json!({}));
    let policy = stored(LoadBalancing::RoundRobin, &route);
    let there = world_with(&route, Some(&policy));
    assert_eq!(
        balancing(&asking(Some(LoadBalancing::RoundRobin)), &there),
        None,
        "a default that was filled in is no change"
    );

    let write = balancing(&asking(Some(LoadBalancing::LeastRequest)), &there).unwrap();
    let Action::Patch(patch) = write.action else { panic!() };
    assert_tests_first(&patch);
    let mut after = policy.clone();
    json_patch::patch(&mut after, &patch).unwrap();
    assert_eq!(after["spec"]["loadBalancer"], json!({"type": "LeastRequest"}));

    let write = balancing(&asking(None), &there).unwrap();
    assert_eq!(write.action, Action::Delete { uid: "uid-of-route".into(), resource_version: "77".into() });
    assert_eq!(balancing(&asking(None), &world_with(&route, None)), None);
}

#[test]
fn what_is_not_ours_or_not_possible_is_left_alone() {
    let route = route(&json!({}));
    let mut policy = stored(LoadBalancing::RoundRobin, &route);
    policy["metadata"]["ownerReferences"] = json!([]);
    let foreign = world_with(&route, Some(&policy));
    for how in [None, Some(LoadBalancing::LeastRequest)] {
        assert_eq!(balancing(&asking(how), &foreign), None);
    }
    let asked = asking(Some(LoadBalancing::LeastRequest));
    let mut world = world_with(&route, None);
    world.balancing.possible = false;
    assert_eq!(balancing(&asked, &world), None);
    world.balancing.possible = true;
    world.observation.route = RouteState::Found(Route::default());
    assert_eq!(balancing(&asked, &world), None, "a route is taken over first");
    let going = Rollout { deleting: true, ..asked };
    assert_eq!(balancing(&going, &world_with(&route, None)), None, "it goes with its owner");
}
