//! Deployments and Services of revisions.

use super::*;

#[test]
fn objects_of_a_revision() {
    let baseline = Grow { serving: rollout().baseline, replicas: Some(3), baseline: true };
    let claim = Source::Claim { claim: "models".into(), path: "chat/v2/".into(), digest: "c".repeat(64) };
    let candidate = Grow {
        serving: Serving {
            pool: "cpu".into(),
            settings: Settings {
                queue: Some(64),
                prefix_cache_tokens: Some(0),
                kv_bits: Some(4),
                head: Some("screened"),
                memory_budget: Some(3 << 29),
                weights_cache: Some("weights".into()),
                request_timeout: Some(Span::seconds(120)),
                ..rollout().model.settings
            },
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

/// The Deployment of a model with these settings.
fn deployment(settings: Settings) -> Deployment {
    let serving = Serving { settings, ..rollout().model };
    let grow = vec![Grow { serving, replicas: Some(1), baseline: false }];
    let objects = render(&config(), &rollout(), &World::default(), &Plan { grow, ..plan() });
    let Action::Create(object) = &objects.grow.last().unwrap().action else { panic!() };
    serde_json::from_value((**object).clone()).unwrap()
}

fn pod(settings: Settings) -> PodSpec {
    deployment(settings).spec.unwrap().template.spec.unwrap()
}

/// What a worker is told after its probe set.
fn told(settings: Settings) -> String {
    let arguments = pod(settings).containers.remove(0).args.unwrap();
    let probes = arguments.iter().position(|argument| argument == "--probes").unwrap();
    arguments[probes + 2..].join(" ")
}

#[test]
fn a_worker_is_told_what_was_given_and_nothing_else() {
    assert_eq!(told(Settings::default()), "--metrics-compat vllm");
    let settings = Settings { batch_wait: Some(Span(0)), prefix_cache_tokens: Some(0), ..Settings::default() };
    assert_eq!(told(settings), "--metrics-compat vllm --batch-wait 0ms --prefix-cache 0");
}

#[test]
fn a_worker_with_a_fallback_is_told_where_fp16_is() {
    let told =
        |fallback, request_timeout| told(Settings { fallback: Some(fallback), request_timeout, ..Settings::default() });
    let least = Fallback { min_confidence: Some(0.95), ..Fallback::default() };
    assert_eq!(told(Fallback::default(), None), "--metrics-compat vllm --fallback chat-baseline:8080");
    assert_eq!(told(least, None), "--metrics-compat vllm --fallback chat-baseline:8080 --min-confidence 0.95");
    let turns =
        Fallback { balance: Some(FallbackBalance::RoundRobin), first_token: Some(Span(500)), ..Fallback::default() };
    assert_eq!(
        told(turns, Some(Span::seconds(120))),
        "--metrics-compat vllm --request-timeout 120000ms --fallback chat-baseline:8080 --fallback-balance round-robin \
         --fallback-timeout 120000ms --first-token-timeout 500ms"
    );
    let least_loaded = Fallback { balance: Some(FallbackBalance::LeastLoaded), ..Fallback::default() };
    assert!(told(least_loaded, None).ends_with("--fallback-balance least-loaded"));
}

/// A worker that asks for one of several addresses must find them all.
#[test]
fn the_service_of_fp16_gives_the_addresses_of_its_pods_and_those_of_routes_have_one() {
    let grow = vec![Grow { serving: rollout().baseline, replicas: Some(3), baseline: true }];
    let objects = render(&config(), &rollout(), &World::default(), &Plan { grow, ..plan() });
    let address = |name: &str| {
        let write = objects.grow.iter().find(|write| write.kind == Kind::Service && write.name == name).unwrap();
        let Action::Create(object) = &write.action else { panic!() };
        object["spec"].get("clusterIP").cloned()
    };
    assert_eq!(address("chat-baseline"), Some(json!("None")));
    assert_eq!(address("chat-aaaaaaaaaa"), None, "given by the API server");
}

#[test]
fn repacked_weights_lie_where_the_pods_user_can_write() {
    let with = |cache| pod(Settings { weights_cache: cache, ..Settings::default() });
    let (none, claim) = (with(None), with(Some("weights".into())));
    let group = |pod: &PodSpec| pod.security_context.as_ref().unwrap().fs_group;
    assert_eq!([group(&none), group(&claim)], [None, Some(65_532)]);
    let volume = |pod: &PodSpec| pod.volumes.iter().flatten().find(|volume| volume.name == "weights").cloned();
    assert_eq!(volume(&none), None);
    assert_eq!(volume(&claim).unwrap().persistent_volume_claim.unwrap().read_only, None);
    let container = &claim.containers[0];
    let mount = container.volume_mounts.iter().flatten().find(|mount| mount.name == "weights").unwrap();
    assert_eq!((mount.mount_path.as_str(), mount.read_only), ("/weights", None));
    assert!(container.args.as_ref().unwrap().join(" ").contains("--weights-cache /weights"));
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
