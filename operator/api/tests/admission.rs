//! The chart's admission policy of managed routes, evaluated by `kube`'s CEL over the steps of
//! `charts/tests/route-policy.yaml`. The same steps run against a real API server in the end-to-end tests.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use kube::core::cel::{
    KubeCelExt,
    cel::{
        Context, IdedExpr, Value,
        objects::{Key, Map},
        parser::Parser,
    },
};
use serde_json::{Value as Json, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::{Arc, Mutex},
};

const OPERATOR: &str = "system:serviceaccount:bitnet:operator";

/// The template without its few directives: what Helm renders, but for labels and names.
fn policy(name: &str) -> Json {
    let text = fs::read_to_string(support::root().join("charts/bitnet-rollouts/templates/admission.yaml")).unwrap();
    let kept: Vec<_> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("{{") && !line.contains("include \"bitnet.labels\""))
        .map(|line| line.replace("{{ include \"bitnet.user\" . }}", OPERATOR).replace("{{ $name }}", "bitnet"))
        .collect();
    // The list of namespaces is the only other value.
    let text = kept.join("\n").replace("{{ toJson . }}", "[]");
    let all = support::documents(&text).into_iter();
    let mut named = all.filter(|o| o["kind"] == "ValidatingAdmissionPolicy" && o["metadata"]["name"] == name);
    named.next().unwrap()
}

/// What the policy says against a write; `None`: it is allowed.
fn denial(policy: &Json, user: &str, object: &Json, old: Option<&Json>) -> Option<String> {
    denial_in(&json!({"metadata": {"name": "tenant"}}), policy, user, object, old)
}

/// The same in a namespace.
fn denial_in(namespace: &Json, policy: &Json, user: &str, object: &Json, old: Option<&Json>) -> Option<String> {
    let mut context = Context::default().with_all();
    context.add_variable_from_value("object", value(object));
    context.add_variable_from_value("oldObject", old.map_or(Value::Null, value));
    context.add_variable_from_value("namespaceObject", value(namespace));
    context.add_variable_from_value("request", value(&json!({"userInfo": {"username": user}})));
    let run = |expression: &Json, context: &Context<'_>| {
        Value::resolve(&parsed(expression["expression"].as_str().unwrap()), context)
    };
    for condition in policy["spec"]["matchConditions"].as_array().into_iter().flatten() {
        if run(condition, &context) == Ok(Value::Bool(false)) {
            return None;
        }
    }
    let mut variables: HashMap<Key, Value> = HashMap::new();
    for variable in policy["spec"]["variables"].as_array().unwrap() {
        // The API server evaluates a variable where it is used: an error in one that is not used is none.
        if let Ok(found) = run(variable, &context) {
            let name = variable["name"].as_str().unwrap().to_owned();
            variables.insert(Key::String(Arc::new(name)), found);
        }
        context.add_variable_from_value("variables", Value::Map(Map { map: Arc::new(variables.clone()) }));
    }
    let mut denied: Vec<_> = policy["spec"]["validations"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|validation| match run(validation, &context) {
            Ok(Value::Bool(true)) => None,
            Ok(_) => Some(validation["message"].as_str().unwrap().to_owned()),
            Err(error) => Some(error.to_string()),
        })
        .collect();
    (!denied.is_empty()).then(|| denied.remove(0))
}

/// Expressions are parsed once: in a debug build that takes longer than everything else.
fn parsed(text: &str) -> Arc<IdedExpr> {
    static PARSED: Mutex<BTreeMap<String, Arc<IdedExpr>>> = Mutex::new(BTreeMap::new());
    let mut known = PARSED.lock().unwrap();
    if let Some(expression) = known.get(text) {
        return expression.clone();
    }
    // This CEL's `.?` fails where the field is missing; on maps `[?]` means the same and does not.
    let plain = regex::Regex::new(r"\.\?(\w+)").unwrap().replace_all(text, "[?'$1']");
    let parsed = Parser::default().enable_optional_syntax(true).parse(&plain);
    let expression = Arc::new(parsed.unwrap_or_else(|error| panic!("{text}: {error}")));
    known.insert(text.to_owned(), expression.clone());
    expression
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => Value::Int(number.as_i64().unwrap()),
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(value).collect())),
        Json::Object(fields) => {
            let entries = fields.iter().map(|(name, field)| (Key::String(Arc::new(name.clone())), value(field)));
            Value::Map(Map { map: Arc::new(entries.collect()) })
        }
    }
}

/// RFC 7386.
fn merge(target: &mut Json, patch: &Json) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, field) in fields {
        if field.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], field);
        }
    }
}

/// The defaults of an HTTPRoute that matter here.
fn with_defaults(mut route: Json) -> Json {
    for rule in route["spec"]["rules"].as_array_mut().into_iter().flatten() {
        for backend in rule["backendRefs"].as_array_mut().into_iter().flatten() {
            let fields = backend.as_object_mut().unwrap();
            fields.entry("weight").or_insert(json!(1));
            fields.entry("kind").or_insert(json!("Service"));
            fields.entry("group").or_insert(json!(""));
        }
    }
    route
}

#[test]
fn every_step_gets_its_answer() {
    let policy = policy("bitnet-routes");
    let text = fs::read_to_string(support::root().join("charts/tests/route-policy.yaml")).unwrap();
    let mut file: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    file.apply_merge().unwrap();
    let file: Json = serde_json::to_value(file).unwrap();
    let mut stored = None;
    let mut denied = 0;
    for step in file["steps"].as_array().unwrap() {
        let name = step["name"].as_str().unwrap();
        let user = if step["by"] == "operator" { OPERATOR } else { "alice" };
        let (object, old) = match (step.get("create"), step.get("patch")) {
            (Some(object), _) => (object.clone(), None),
            (None, Some(patch)) => {
                let mut object = stored.clone().unwrap();
                merge(&mut object, patch);
                (object, stored.clone())
            }
            // The policy does not match the status subresource.
            (None, None) => continue,
        };
        let object = with_defaults(object);
        let said = denial(&policy, user, &object, old.as_ref());
        let expect = step["expect"].as_str().unwrap();
        if expect == "allowed" {
            assert_eq!(said, None, "{name}");
            stored = Some(object);
        } else {
            let said = said.unwrap_or_else(|| panic!("{name}: allowed"));
            assert!(said.contains(expect), "{name}: expected `{expect}`, got `{said}`");
            denied += 1;
        }
    }
    assert!(denied >= 30, "{denied} denials");
}

#[test]
fn only_status_and_unmanaged_routes_are_not_looked_at() {
    let policy = policy("bitnet-routes");
    let rules = &policy["spec"]["matchConstraints"]["resourceRules"];
    assert_eq!(rules[0]["resources"], json!(["httproutes"]), "status must stay out: gateways write it");
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let plain = json!({"metadata": {"name": "a"}, "spec": {"rules": []}});
    assert_eq!(denial(&policy, "alice", &plain, Some(&plain)), None);
    // A route without rules must not make an expression fail.
    let empty = json!({"metadata": {"annotations": {
        "rollouts.bitnet.dev/rollout": "a/u", "rollouts.bitnet.dev/epoch": "1", "rollouts.bitnet.dev/attempt": "0",
    }}, "spec": {}});
    let said = denial(&policy, OPERATOR, &empty, Some(&plain)).unwrap();
    assert!(said.contains("managed rule must stay"), "{said}");
}

#[test]
fn live_prompts_are_compared_only_in_namespaces_that_consent() {
    let policy = policy("bitnet-shadow");
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let namespace = |label: Option<&str>| match label {
        Some(value) => json!({"metadata": {"labels": {"rollouts.bitnet.dev/shadow-consent": value}}}),
        None => json!({"metadata": {"name": "tenant"}}),
    };
    let gate = |percent: i64| json!({"spec": {"probes": {"configMap": "p"}, "shadow": {"percent": percent}}});
    let rollout = |percent: i64| json!({"spec": {"gateSpec": gate(percent)["spec"]}});
    let objects: [&dyn Fn(i64) -> Json; 2] = [&gate, &rollout];
    for object in objects {
        for (label, allowed) in [(None, false), (Some("no"), false), (Some("granted"), true)] {
            let said = denial_in(&namespace(label), &policy, "alice", &object(5), None);
            assert_eq!(said.is_none(), allowed, "{label:?}: {said:?}");
            assert!(said.is_none_or(|said| said.contains("shadow-consent=granted")));
        }
        let without = namespace(None);
        let denied = |old: i64, new: i64| denial_in(&without, &policy, OPERATOR, &object(new), Some(&object(old)));
        assert!(denied(0, 1).is_some() && denied(5, 6).is_some(), "more of it needs the consent, whoever asks");
        assert_eq!((denied(5, 5), denied(5, 0)), (None, None), "a finalizer goes without it");
        assert_eq!(denial_in(&without, &policy, "alice", &object(0), None), None);
    }
    let plain = json!({"spec": {"gate": {"name": "chat"}}});
    assert_eq!(denial_in(&namespace(None), &policy, "alice", &plain, None), None);
}
