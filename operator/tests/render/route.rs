//! Writes of HTTPRoutes: ours, a user's, and the preview.

use super::*;

#[test]
fn adoption_changes_one_rule_and_keeps_every_other_byte() {
    let before = route(&json!({"team": "shop"}));
    let write = set(&[("chat-aaaaaaaaaa", 100), ("chat-bbbbbbbbbb", 0)], ledger(1), true, None);
    let mut after = written(&before, write);
    insta::assert_json_snapshot!("adopted_refs", sorted(&after["spec"]["rules"][1]["backendRefs"]));
    insta::assert_json_snapshot!("adopted_annotations", sorted(&after["metadata"]["annotations"]));
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
        ..Detour::default()
    };
    let split = Detour { name: "split".into(), headers: vec![beta.clone()], ..Detour::default() };
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
    insta::assert_json_snapshot!("derived_rules", sorted(&during["spec"]["rules"]).as_array().unwrap()[1..]);
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
fn a_rule_wakes_and_sleeps_in_its_place() {
    let mut before = route(&json!({key::EPOCH: "4", key::ROLLOUT: "chat/uid-of-chat"}));
    let refs = |route: &Value, rule: usize| route["spec"]["rules"][rule]["backendRefs"].clone();
    let with = |wanted: Detours, weights: [(&str, u32); 2]| {
        let mut write = set(&weights, ledger(5), false, None);
        if let RouteWrite::Set { detours, .. } = &mut write {
            *detours = wanted;
        }
        write
    };
    let asleep = || Detours { mark: None, rules: detours().rules.iter().map(|r| Detour::dormant(&r.name)).collect() };
    let none = [("chat-aaaaaaaaaa", 100), ("chat-bbbbbbbbbb", 0)];
    let mut added = written(&before, with(asleep(), none));
    insta::assert_json_snapshot!("dormant_rule", sorted(&added["spec"]["rules"][2]));
    assert_eq!(added["spec"]["rules"][1]["filters"], before["spec"]["rules"][1]["filters"], "no request is marked");
    // A rule that a person adds meanwhile stands behind ours, and stays there.
    let theirs = json!({"name": "theirs", "backendRefs": [{"name": "x", "port": 1}]});
    for route in [&mut before, &mut added] {
        route["spec"]["rules"].as_array_mut().unwrap().push(theirs.clone());
    }
    let awake = written(&added, with(detours(), [("chat-aaaaaaaaaa", 90), ("chat-bbbbbbbbbb", 10)]));
    let names = |route: &Value| -> Vec<Value> {
        route["spec"]["rules"].as_array().unwrap().iter().map(|rule| rule["name"].clone()).collect()
    };
    assert_eq!(names(&awake), names(&added));
    assert_eq!(refs(&awake, 3)[0]["name"], "chat-bbbbbbbbbb");
    // Backends of our rule have no filters of ours: they would give its traffic another cluster in Envoy.
    assert!(!refs(&awake, 1).to_string().contains("x-bitnet-split"), "{awake}");
    let again = written(&awake, with(asleep(), none));
    assert_eq!(again["spec"], added["spec"]);
    let after = written(&again, set(&none, ledger(6), false, None));
    assert_eq!(after["spec"], written(&before, set(&none, ledger(6), false, None))["spec"]);
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
        *wanted =
            Detours { mark: None, rules: vec![Detour { name: "candidate".into(), headers, to, ..Detour::default() }] };
    }
    let during = written(&before, write);
    insta::assert_json_snapshot!("rule_of_a_step", sorted(&during["spec"]["rules"]).as_array().unwrap()[1..]);
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
    insta::assert_yaml_snapshot!("own_route", sorted(object));
}
