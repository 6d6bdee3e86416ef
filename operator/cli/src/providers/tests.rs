use super::*;

fn split() -> Split {
    Split {
        namespace: "team".into(),
        rollout: "chat".into(),
        stable: Revision("chat-aaaaaaaaaa".into()),
        candidate: Revision("chat-bbbbbbbbbb".into()),
        weight: 10,
        headers: Vec::new(),
        cookie: None,
        hosts: vec!["chat.example".into()],
        balancing: None,
    }
}

fn header(name: &str, value: &str, regex: bool) -> HeaderMatch {
    HeaderMatch { name: name.into(), value: value.into(), regex }
}

fn full() -> Split {
    Split {
        weight: 25,
        headers: vec![header("X-Tester", "yes|y", true)],
        cookie: Some("beta".into()),
        balancing: Some(LoadBalancing::RoundRobin),
        ..split()
    }
}

fn providers() -> [Provider; 3] {
    [
        Provider::Istio { gateway: None },
        Provider::Nginx { class: "nginx".into() },
        Provider::InferencePool { gateway: "gw".into(), picker: "{}-epp".into(), picker_port: 9002 },
    ]
}

/// Applied as one file.
fn text(objects: &[Value]) -> String {
    objects.iter().map(|object| crate::output::yaml(object).unwrap()).collect::<Vec<_>>().join("---\n")
}

#[test]
fn istio_is_a_virtual_service() {
    let [plain, ..] = providers();
    insta::assert_snapshot!("istio", text(&plain.render(&split()).unwrap()));
    let bound = Provider::Istio { gateway: Some("istio-system/public".into()) };
    let more = Split { headers: vec![header("X-Tester", "yes", false), header("X-Region", "eu-.*", true)], ..full() };
    insta::assert_snapshot!("istio_full", text(&bound.render(&more).unwrap()));
}

#[test]
fn nginx_is_an_ingress_and_its_canary() {
    let [_, nginx, _] = providers();
    insta::assert_snapshot!("nginx", text(&nginx.render(&split()).unwrap()));
    insta::assert_snapshot!("nginx_full", text(&nginx.render(&full()).unwrap()));
    let exact = Split { headers: vec![header("X-Tester", "a.b", false)], hosts: Vec::new(), ..split() };
    let canary = nginx.render(&exact).unwrap().remove(1);
    let annotation =
        |key: &str| canary["metadata"]["annotations"][format!("nginx.ingress.kubernetes.io/{key}")].clone();
    assert_eq!(annotation("canary-by-header-value"), "a.b");
    assert_eq!(annotation("canary-by-header-pattern"), Value::Null, "a value is no pattern");
    assert_eq!(canary["spec"]["rules"][0].get("host"), None, "no host: all of them");
}

#[test]
fn inference_pools_stand_behind_a_route() {
    let [.., pools] = providers();
    insta::assert_snapshot!("inference_pool", text(&pools.render(&split()).unwrap()));
    let full = Split { balancing: None, ..full() };
    insta::assert_snapshot!("inference_pool_full", text(&pools.render(&full).unwrap()));
}

/// All weights that a provider is given are of both arms, sum to 100, and 0 is written, too.
#[test]
fn weights_are_explicit_at_every_step() {
    for weight in [0, 1, 50, 99, 100] {
        let split = Split { weight, ..split() };
        let [istio, nginx, pools] = providers().map(|provider| provider.render(&split).unwrap());
        let of = |refs: &Value| -> Vec<u64> {
            refs.as_array().unwrap().iter().map(|one| one["weight"].as_u64().unwrap()).collect()
        };
        let wanted = vec![u64::from(100 - weight), u64::from(weight)];
        assert_eq!(of(&istio[0]["spec"]["http"][0]["route"]), wanted);
        assert_eq!(of(&pools[2]["spec"]["rules"][0]["backendRefs"]), wanted);
        let annotations = &nginx[1]["metadata"]["annotations"];
        assert_eq!(annotations["nginx.ingress.kubernetes.io/canary-weight"], weight.to_string());
        assert_eq!(nginx[0]["metadata"].get("annotations"), None, "stable's Ingress is a plain one");
    }
}

#[test]
fn what_a_provider_cannot_do_is_refused_with_its_name() {
    let [istio, nginx, pools] = providers();
    let least = Split { balancing: Some(LoadBalancing::LeastRequest), ..split() };
    let two = Split { headers: vec![header("a", "1", false), header("b", "2", false)], ..split() };
    let cases = [
        (&istio, Split { hosts: Vec::new(), ..split() }, "Istio cannot do this: --host"),
        (&nginx, least.clone(), "ingress-nginx cannot do this: spec.route.loadBalancing"),
        (&nginx, two, "ingress-nginx cannot do this: spec.strategy.canary.steps[].match.headers"),
        (&pools, least.clone(), "an InferencePool cannot do this: spec.route.loadBalancing"),
    ];
    for (provider, split, part) in cases {
        let refusal = provider.render(&split).unwrap_err().to_string();
        assert!(refusal.starts_with(part), "{refusal}");
    }
    let rule = &istio.render(&least).unwrap()[2];
    assert_eq!(rule["spec"]["trafficPolicy"]["loadBalancer"]["simple"], "LEAST_REQUEST", "Istio can");
}
