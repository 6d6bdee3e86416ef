//! Deployments and Services of revisions.

use super::*;

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
