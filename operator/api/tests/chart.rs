//! The chart's permissions and the examples.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use bitnet_api::{
    v1alpha1::{ModelRollout, QualityGate},
    validate::{Pools, validate},
};
use serde_json::{Value, json};
use std::{fmt::Write as _, fs};

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
        rule("gateway.envoyproxy.io", "backendtrafficpolicies", "get create patch delete"),
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
    let pools = Pools { names: ["cpu".to_owned()].into(), default: "cpu".into(), ..Pools::default() };
    assert!(read("rollout.yaml").lines().count() <= 15, "the smallest useful rollout fits on a screen's corner");
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

/// The rendered chart: `charts/tests/golden/*.yaml`, which a test on a cluster compares with what Helm makes.
fn rendered(name: &str) -> Vec<Value> {
    let path = support::root().join("charts/tests/golden").join(name);
    support::documents(&fs::read_to_string(path).unwrap())
}

#[test]
fn every_pod_of_the_chart_meets_the_restricted_standard() {
    let mut count = 0;
    for name in ["default.yaml", "full.yaml", "minimal.yaml", "placed.yaml"] {
        for object in rendered(name) {
            let Some(pod) = object.pointer("/spec/template/spec") else { continue };
            count += 1;
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod.get(forbidden).is_none(), "{name}: {forbidden}");
            }
            for volume in pod["volumes"].as_array().unwrap() {
                let receivers = volume["name"] == "notifications" && volume.get("secret").is_some();
                let known = volume.get("configMap").is_some() || receivers;
                assert!(known, "{name}: only the settings and the receivers' addresses are mounted: {volume}");
            }
            for container in pod["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false);
                assert_eq!(context["readOnlyRootFilesystem"], true);
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}: memory is bounded");
            }
        }
    }
    assert_eq!(count, 7, "three Deployments with their detach jobs, and one without");
}

/// Every value of `values.yaml` is set to something else in one of `charts/tests/values/*.yaml`, so each option shows in a
/// golden file.
#[test]
fn every_value_has_a_rendering_without_its_default() {
    let folder = support::root().join("charts");
    let read =
        |path: std::path::PathBuf| -> Value { serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
    let defaults = read(folder.join("bitnet-rollouts/values.yaml"));
    let mut left = Vec::new();
    leaves(&defaults, "", &mut left);
    assert!(left.len() > 40, "{left:?}");
    for file in fs::read_dir(folder.join("tests/values")).unwrap() {
        let values = read(file.unwrap().path());
        left.retain(|path| values.pointer(path).is_none_or(|value| Some(value) == defaults.pointer(path)));
    }
    // What `pools.cpu` says is that of any pool; an override of the whole name leaves nothing of the other.
    left.retain(|path| !path.starts_with("/pools/cpu/"));
    assert_eq!(left, Vec::<String>::new(), "give it in charts/tests/values/placed.yaml");
}

/// JSON pointers of values that hold no other value, or anything that a user fills.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(name, value)| leaves(value, &format!("{path}/{}", name.replace('/', "~1")), found));
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn the_dashboards_login_may_review_and_nothing_else_and_is_off_by_default() {
    let roles = |name: &str| -> Vec<Value> {
        let all = rendered(name).into_iter();
        all.filter(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "bitnet-rollouts-dashboard").collect()
    };
    assert!(roles("default.yaml").is_empty() && roles("minimal.yaml").is_empty());
    let granted = roles("full.yaml").remove(0)["rules"].clone();
    assert_eq!(
        granted,
        json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
            {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        ])
    );
    let flag = |name: &str, flag: &str| -> bool {
        let all = rendered(name);
        let operator = all.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
        arguments.iter().any(|argument| argument == flag)
    };
    assert!(flag("default.yaml", "--dashboard-port=8082") && flag("default.yaml", "--dashboard-login-port=0"));
    assert!(flag("full.yaml", "--dashboard-login-port=8083"));
    assert!(flag("minimal.yaml", "--dashboard-port=0") && flag("minimal.yaml", "--dashboard-login-port=0"));
}

#[test]
fn every_alert_has_its_runbook() {
    let text = fs::read_to_string(support::root().join("charts/bitnet-rollouts/files/rules.yaml")).unwrap();
    let rules = support::documents(&text).remove(0)["groups"][0]["rules"].clone();
    let runbooks = fs::read_to_string(support::root().join("docs/runbooks.md")).unwrap();
    let rules = rules.as_array().unwrap();
    assert!(rules.len() >= 10);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(runbooks.contains(&format!("\n## {name}\n")), "docs/runbooks.md has no section {name}");
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert_eq!(url, format!("@RUNBOOKS@#{}", name.to_lowercase()));
    }
    for heading in runbooks.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(rules.iter().any(|rule| rule["alert"] == heading), "no alert is called {heading}");
    }
}

/// Rows of a table made of `values.yaml`: path, default, and the comment before or behind it.
fn table(values: &str) -> String {
    let mut rows = String::from("| value | default | what it is |\n|---|---|---|\n");
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut before: Vec<&str> = Vec::new();
    // The first line is about the file.
    for line in values.lines().skip(1) {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(comment) = text.strip_prefix("# ") {
            before.push(comment.trim());
            continue;
        }
        let Some((key, rest)) = text.split_once(':').filter(|_| !text.is_empty()) else {
            before.clear();
            continue;
        };
        path.retain(|(depth, _)| *depth < indent);
        path.push((indent, key.to_owned()));
        let (default, behind) = rest.split_once(" # ").unwrap_or((rest, ""));
        let words = [before.join(" "), behind.trim().to_owned()].into_iter().filter(|words| !words.is_empty());
        let words = words.collect::<Vec<_>>().join(" ").replace('|', "\\|");
        before.clear();
        let name = path.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
        let default = match default.trim() {
            "" => String::new(),
            default => format!("`{default}`"),
        };
        if !default.is_empty() || !words.is_empty() {
            writeln!(rows, "| `{name}` | {default} | {words} |").unwrap();
        }
    }
    rows
}

/// UPDATE_GOLDEN=1 writes the table.
#[test]
fn the_readme_lists_every_value() {
    const BEGIN: &str = "<!-- values: made of values.yaml -->\n";
    const END: &str = "<!-- end of values -->";
    let chart = support::root().join("charts/bitnet-rollouts");
    let values = fs::read_to_string(chart.join("values.yaml")).unwrap();
    let readme = fs::read_to_string(chart.join("README.md")).unwrap();
    let (head, rest) = readme.split_once(BEGIN).unwrap();
    let (old, tail) = rest.split_once(END).unwrap();
    let new = table(&values);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(chart.join("README.md"), format!("{head}{BEGIN}{new}{END}{tail}")).unwrap();
    } else {
        assert!(old == new, "charts/bitnet-rollouts/README.md has drifted from values.yaml: run with UPDATE_GOLDEN=1");
    }
    // Every value is in the table, and every value has a rule in the schema.
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart.join("values.schema.json")).unwrap()).unwrap();
    let all: Value = serde_yaml::from_str(&values).unwrap();
    for name in all.as_object().unwrap().keys() {
        assert!(new.contains(&format!("| `{name}")), "{name} is not in the table");
        assert!(schema["properties"].get(name).is_some(), "{name} is not in values.schema.json");
    }
}
