//! The chart's permissions and the examples.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use bitnet_api::{
    v1alpha1::{ModelRollout, QualityGate},
    validate::{Pools, validate},
};
use serde_json::{Value, json};
use std::fs;

/// What the operator may do in a namespace. A change here is a change of what a stolen token can do.
#[test]
fn the_operator_may_do_this_and_nothing_else() {
    let template = fs::read_to_string(support::root().join("charts/bitnet-rollouts/templates/rbac.yaml")).unwrap();
    let block = template.split("{{- define \"bitnet.rules\" -}}").nth(1).unwrap().split("{{- end -}}").next().unwrap();
    let granted: Vec<Value> = serde_yaml::from_str(block).unwrap();
    let rule = |group: &str, resources: &str, verbs: &str| {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        json!({"apiGroups": [group], "resources": words(resources), "verbs": words(verbs)})
    };
    let expected = [
        rule("gateway.networking.k8s.io", "httproutes", "get list watch patch create delete"),
        rule("gateway.networking.k8s.io", "gateways", "get"),
        rule("", "services", "get list watch create patch delete"),
        rule("", "pods", "list watch"),
        rule("discovery.k8s.io", "endpointslices", "list watch"),
        rule("apps", "deployments", "get list watch create patch delete"),
        rule("autoscaling", "horizontalpodautoscalers", "list watch"),
        rule("rollouts.bitnet.dev", "modelrollouts", "get list watch patch"),
        rule("rollouts.bitnet.dev", "modelrollouts/status", "patch"),
        rule("rollouts.bitnet.dev", "modelrollouts/finalizers", "update"),
        rule("rollouts.bitnet.dev", "qualitygates", "get list watch"),
        rule("rollouts.bitnet.dev", "rolloutdecisions", "get list watch create delete"),
        rule("events.k8s.io", "events", "create patch"),
    ];
    assert_eq!(granted, expected);
    for line in template.lines().filter(|line| line.contains("resources:")) {
        for forbidden in ["secrets", "configmaps", "persistentvolumeclaims", "pods/", "*", "roles"] {
            assert!(!line.contains(forbidden), "the chart grants {forbidden}: {line}");
        }
    }
}

#[test]
fn the_chart_brings_no_webhook() {
    for file in fs::read_dir(support::root().join("charts/bitnet-rollouts/templates")).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("WebhookConfiguration"), "{}", path.display());
    }
}

#[test]
fn the_examples_are_valid() {
    let read = |file: &str| fs::read_to_string(support::root().join("examples").join(file)).unwrap();
    let gate = support::documents(&read("gate.yaml")).remove(0);
    assert_eq!(support::refusals(&gate, None), Vec::<String>::new());
    let gate: QualityGate = serde_json::from_value(gate).unwrap();
    let pools = Pools { names: ["cpu".to_owned()].into(), default: "cpu".into() };
    for file in ["rollout.yaml", "rollout-full.yaml"] {
        let mut object = support::documents(&read(file)).remove(0);
        assert_eq!(support::refusals(&object, None), Vec::<String>::new(), "{file}");
        object["metadata"]["namespace"] = json!("team");
        object["metadata"]["uid"] = json!("u-1");
        let rollout: ModelRollout = serde_json::from_value(object).unwrap();
        assert_eq!(validate(&rollout, Some(&gate), &pools).err(), None, "{file}");
    }
    let routes = support::documents(&read("route.yaml"));
    let kinds: Vec<_> = routes.iter().map(|route| route["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Gateway", "HTTPRoute"]);
    assert_eq!(routes[1]["spec"]["rules"][0]["name"], "completions");
}
