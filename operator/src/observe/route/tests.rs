use super::*;
use crate::fake;
use bitnet_core::observation::Detour;
use serde_json::json;

fn route(annotations: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "name": "shop", "namespace": "tenant", "uid": "r", "resourceVersion": "9", "generation": 3,
            "annotations": annotations,
        },
        "spec": {
            "parentRefs": [{"name": "gw"}],
            "rules": [
                {"name": "static", "backendRefs": [{"name": "files", "port": 80}]},
                {"name": "completions", "backendRefs": [{"name": "a", "weight": 95}, {"name": "b", "weight": 5}, {"name": "c"}]},
            ],
        },
        "status": {"parents": [{
            "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw", "namespace": "tenant"},
            "controllerName": "x",
            "conditions": [
                {"type": "Accepted", "status": "True", "observedGeneration": 3},
                {"type": "ResolvedRefs", "status": "True", "observedGeneration": 3},
            ],
        }]},
    })
}

fn ours() -> Value {
    json!({
        key::ROLLOUT: "chat/u", key::STABLE: "chat-a", key::CANDIDATE: "chat-b", key::ATTEMPT: "2", key::STEP: "1",
        key::EPOCH: "7", key::ROLLBACK_OF: "u/chat-b/1",
    })
}

fn read_as(rollout: &Rollout, value: &Value, rivals: &[Rival]) -> RouteState {
    read(rollout, Some(serde_json::from_value(value.clone()).unwrap()), rivals).0
}

fn adopting(rule: Option<&str>) -> Rollout {
    let route = RouteTarget::Adopt { http_route: "shop".into(), rule: rule.map(str::to_owned) };
    Rollout { route, ..fake::rollout() }
}

fn found(state: RouteState) -> Route {
    match state {
        RouteState::Found(route) => route,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ledger_is_read_whole_and_a_missing_weight_is_one() {
    let route = found(read_as(&adopting(Some("completions")), &route(&ours()), &[]));
    assert!(route.accepted, "{}", route.acceptance_message);
    let weights: Vec<_> = route.backends.iter().map(|b| (b.name.as_str(), b.weight)).collect();
    assert_eq!(weights, [("a", 95), ("b", 5), ("c", 1)]);
    let ledger = route.ledger.unwrap();
    assert_eq!((ledger.attempt, ledger.step, ledger.epoch), (2, 1, 7));
    assert_eq!(ledger.rollback_of.unwrap().to_string(), "u/chat-b/1");
    assert!(ledger.decision.is_none());
}

#[test]
fn a_damaged_ledger_moves_nothing_and_is_named() {
    for damaged in [key::STABLE, key::ATTEMPT, key::STEP, key::EPOCH, key::ROLLBACK_OF] {
        let mut annotations = ours();
        annotations[damaged] = json!(if damaged == key::STABLE { "" } else { "x" });
        let RouteState::RuleMissing(reason) = read_as(&adopting(Some("completions")), &route(&annotations), &[]) else {
            panic!("{damaged}");
        };
        assert!(reason.contains(damaged), "{reason}");
    }
}

#[test]
fn rules_are_found_by_name_or_by_being_the_only_one() {
    let reason = |rule| match read_as(&adopting(rule), &route(&json!({})), &[]) {
        RouteState::RuleMissing(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason(Some("other")).contains("no rule named other"));
    assert!(reason(None).contains("has 2 rules"));
    let mut one = route(&json!({}));
    one["spec"]["rules"].as_array_mut().unwrap().truncate(1);
    assert_eq!(found(read_as(&adopting(None), &one, &[])).backends[0].name, "files");
}

#[test]
fn one_rollout_per_route() {
    let rival = |older| Rival { name: "first".into(), uid: "f".into(), older, route: "shop".into() };
    let rollout = adopting(Some("completions"));
    let free = route(&json!({}));
    assert_eq!(
        read_as(&rollout, &free, &[rival(true)]),
        RouteState::InUse("first".into()),
        "the older one comes first"
    );
    assert!(found(read_as(&rollout, &free, &[rival(false)])).ledger.is_none());
    let held = route(&json!({key::ROLLOUT: "first/f"}));
    assert_eq!(read_as(&rollout, &held, &[rival(false)]), RouteState::InUse("first".into()), "the holder keeps it");
    assert!(found(read_as(&rollout, &held, &[])).ledger.is_none(), "a holder that is gone holds nothing");
    assert!(found(read_as(&rollout, &route(&ours()), &[rival(true)])).ledger.is_some(), "ours stays ours");
    assert_eq!(read(&rollout, None, &[rival(true)]).0, RouteState::InUse("first".into()));
    assert_eq!(read(&rollout, None, &[]).0, RouteState::Missing);
}

#[test]
fn acceptance_needs_every_parent_at_this_generation() {
    let message = |change: &dyn Fn(&mut Value)| {
        let mut value = route(&json!({}));
        change(&mut value);
        let route = found(read_as(&adopting(Some("completions")), &value, &[]));
        assert!(!route.accepted);
        route.acceptance_message
    };
    let conditions = |value: &mut Value, index: usize, field: &str, new: Value| {
        value["status"]["parents"][0]["conditions"][index][field] = new;
    };
    assert!(message(&|v| v["metadata"]["generation"] = json!(4)).contains("older version"));
    let refused = message(&|v| {
        conditions(v, 1, "status", json!("False"));
        conditions(v, 1, "message", json!("Service a not found"));
    });
    assert!(refused.contains("ResolvedRefs is False: Service a not found"), "{refused}");
    let silent = message(&|v| v["spec"]["parentRefs"] = json!([{"name": "gw"}, {"name": "second"}]));
    assert!(silent.contains("Gateway second has not answered"), "{silent}");
    assert!(message(&|v| v["status"] = json!({})).contains("has not answered"));
}

#[test]
fn originals_are_services_of_this_namespace_or_nothing() {
    let originals = json!([{"name": "a"}, {"name": "b", "namespace": "tenant"}, {"name": "c", "namespace": "other"},
        {"name": "d", "kind": "InferencePool", "group": "inference.networking.k8s.io"}]);
    let value = route(&json!({key::ORIGINALS: originals.to_string()}));
    let view = RouteView::new(Some(serde_json::from_value(value).unwrap()), 1);
    let names = view.originals().unwrap();
    assert_eq!(names, [Some("a".into()), Some("b".into()), None, None]);
    let none = RouteView::new(Some(serde_json::from_value(route(&json!({key::ORIGINALS: "null"}))).unwrap()), 1);
    assert_eq!(none.originals(), Some(Vec::new()));
}

#[test]
fn an_own_route_is_ours_by_its_owner() {
    let mut value = route(&json!({}));
    let rollout =
        Rollout { route: RouteTarget::Own { gateway: "gw".into(), hostnames: Vec::new() }, ..fake::rollout() };
    assert!(!found(read_as(&rollout, &value, &[])).owned);
    value["metadata"]["labels"] = json!(crate::render::labels::of_rollout("chat"));
    assert!(found(read_as(&rollout, &value, &[])).owned, "left behind by a rollout of this name");
    assert!(!found(read_as(&adopting(Some("completions")), &value, &[])).owned);
    value["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ModelRollout", "name": "chat", "uid": "u"}]);
    assert!(found(read_as(&rollout, &value, &[])).owned);
}

/// The route of an A/B test as `render` writes it, read again.
fn tested(change: impl FnOnce(&mut Value)) -> Route {
    let refs = |weights: &[(&str, u32)]| -> Value {
        weights.iter().map(|(name, weight)| json!({"name": name, "port": 8080, "weight": weight})).collect()
    };
    let mark = json!([{"type": "RequestHeaderModifier", "requestHeaderModifier":
        {"set": [{"name": "x-bitnet-split", "value": "1;u"}]}}]);
    let path = json!({"type": "PathPrefix", "value": "/v1"});
    let beta = json!({"type": "Exact", "name": "x-beta", "value": "yes"});
    let sticky = json!({"type": "RegularExpression", "name": "Cookie", "value": "arm=.*"});
    let nobody = json!({"type": "Exact", "name": "x-bitnet-dormant", "value": "no-request-has-this"});
    let mut annotations = ours();
    annotations[key::DERIVED_RULES] = json!("bitnet-split,bitnet-candidate,bitnet-stable");
    let mut route = route(&annotations);
    route["spec"]["rules"] = json!([
        {"name": "completions", "matches": [{"path": path}], "timeouts": {"request": "9s"},
         "backendRefs": refs(&[("a", 100), ("b", 0)])},
        {"name": "bitnet-split", "matches": [{"path": path, "headers": [beta]}], "timeouts": {"request": "9s"},
         "filters": mark, "backendRefs": refs(&[("a", 90), ("b", 10)])},
        {"name": "bitnet-candidate", "matches": [{"path": path, "headers": [beta, sticky]}],
         "timeouts": {"request": "9s"}, "filters": mark, "backendRefs": refs(&[("b", 100)])},
        {"name": "bitnet-stable", "matches": [{"path": path, "headers": [nobody]}],
         "timeouts": {"request": "9s"}, "filters": mark, "backendRefs": refs(&[("a", 100), ("b", 0)])},
    ]);
    change(&mut route);
    found(read_as(&adopting(None), &route, &[]))
}

#[test]
fn the_split_and_the_rules_of_a_test_are_read_back() {
    let route = tested(|_| ());
    let weights: Vec<_> = route.backends.iter().map(|b| (b.name.as_str(), b.weight)).collect();
    assert_eq!(weights, [("a", 90), ("b", 10)], "the weights are those of the split");
    assert_eq!((route.detours.mark.as_deref(), route.spare_rules), (Some("1;u"), 12));
    let rules: Vec<_> = route.detours.rules.iter().map(|r| (r.name.as_str(), r.headers.len(), r.to.as_ref())).collect();
    assert_eq!(rules, [("split", 1, None), ("candidate", 2, Some(&Revision("b".into()))), ("stable", 0, None)]);
    assert_eq!(route.detours.rules[2], Detour::dormant("stable"));
    assert!(route.detours.rules[1].headers[1].regex);
}

#[test]
fn a_derived_rule_that_is_no_copy_any_more_is_seen() {
    let altered: [fn(&mut Value); 7] = [
        |route| route["spec"]["rules"][0]["filters"] = route["spec"]["rules"][1]["filters"].clone(),
        |route| route["spec"]["rules"][3]["matches"][0]["headers"] = json!([]),
        |route| route["spec"]["rules"][0]["timeouts"]["request"] = json!("60s"),
        |route| route["spec"]["rules"][0]["retry"] = json!({"attempts": 1}),
        |route| route["spec"]["rules"][0]["matches"][0]["method"] = json!("POST"),
        |route| route["spec"]["rules"][0]["backendRefs"][1]["weight"] = json!(5),
        |route| {
            route["spec"]["rules"][2].as_object_mut().unwrap().remove("filters");
        },
    ];
    for change in altered {
        let route = tested(change);
        assert_ne!(route.detours, tested(|_| ()).detours);
    }
    // Without the ledger's word they are the user's rules.
    let reason = read_as(
        &adopting(None),
        &{
            let mut value = route(&ours());
            value["spec"]["rules"] = json!([{"backendRefs": []}, {"name": "bitnet-split"}]);
            value
        },
        &[],
    );
    assert!(matches!(reason, RouteState::RuleMissing(_)));
}
