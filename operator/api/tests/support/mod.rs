//! Case files, and as much of the API server's structural validation as our schemas use. The rules themselves are
//! evaluated by `kube`'s CEL; the same files run against a real API server in the end-to-end tests.

// Each test file uses a part of this.
#![allow(dead_code)]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::cel::Validator;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::PathBuf, sync::OnceLock};

/// One object and what the API server must say to it.
pub(crate) struct Case {
    /// File and number, for messages.
    pub(crate) place: String,
    /// `accepted`, or a part of the refusal.
    pub(crate) expect: String,
    /// It replaces the accepted object of the same name before it (`# then:` instead of `# expect:`).
    pub(crate) update: bool,
    /// The object.
    pub(crate) object: Value,
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All cases of `tests/cases`: YAML documents that begin with `# expect: …` or `# then: …`.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for file in ["model-rollout.yaml", "quality-gate.yaml", "rollout-decision.yaml"] {
        let text = fs::read_to_string(root().join("operator/api/tests/cases").join(file)).unwrap();
        for (i, document) in text.split("---\n").enumerate() {
            let place = format!("{file}, document {}", i + 1);
            let first = document.lines().next().unwrap();
            let (update, expect) = match (first.strip_prefix("# expect: "), first.strip_prefix("# then: ")) {
                (Some(expect), _) => (false, expect),
                (_, Some(expect)) => (true, expect),
                _ => panic!("{place} does not begin with `# expect:` or `# then:`"),
            };
            let object = serde_yaml::from_str(document).unwrap_or_else(|error| panic!("{place}: {error}"));
            cases.push(Case { place, expect: expect.to_owned(), update, object });
        }
    }
    cases
}

/// All documents of a YAML text.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|value| !value.is_null())
        .collect()
}

/// The schema of a kind, as installed.
pub(crate) fn schema(kind: &str) -> &'static Value {
    static SCHEMAS: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    let of = |crd: &CustomResourceDefinition| {
        serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap())
            .unwrap()
    };
    let all = || bitnet_api::crds::all().iter().map(|(_, crd)| (crd.spec.names.kind.clone(), of(crd))).collect();
    &SCHEMAS.get_or_init(all)[kind]
}

/// What an API server with strict field validation would say against an object; empty: it accepts it.
pub(crate) fn refusals(object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema(object["kind"].as_str().unwrap());
    let object = kube::core::cel::apply_defaults(schema, object);
    let old = old.map(|old| kube::core::cel::apply_defaults(schema, old));
    let mut found = Vec::new();
    for (name, schema) in schema["properties"].as_object().unwrap() {
        match object.get(name) {
            Some(value) => check(schema, value, name, &mut found),
            None if name == "spec" => found.push("spec: Required value".to_owned()),
            None => {}
        }
    }
    if let Err(errors) = Validator::new().validate(schema, &object, old.as_ref()) {
        found.extend(errors.iter().map(ToString::to_string));
    }
    found
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut say = |text: String| found.push(format!("{path}: {text}"));
    let kind = schema["type"].as_str().unwrap_or_else(|| panic!("{path} has no type"));
    let fits = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("{path}: unexpected type {other}"),
    };
    if !fits {
        return say(format!("must be of type {kind}"));
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        say("Unsupported value".into());
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
            say("Too long".into());
        }
        if schema["minLength"].as_u64().is_some_and(|least| length < least) {
            say("should be at least 1 chars long".into());
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && !regex::Regex::new(pattern).unwrap().is_match(text)
        {
            say(format!("should match '{pattern}'"));
        }
        if schema["format"] == "date-time" && !text.contains('T') {
            say("must be of type date-time".into());
        }
    }
    if let Some(number) = value.as_f64() {
        if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
            say(format!("should be less than or equal to {most}"));
        }
        if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
            say(format!("should be greater than or equal to {least}"));
        }
    }
    if let Some(items) = value.as_array() {
        if let Some(most) = schema["maxItems"].as_u64().filter(|most| items.len() as u64 > *most) {
            say(format!("must have at most {most} items"));
        }
        if let Some(least) = schema["minItems"].as_u64().filter(|least| (items.len() as u64) < *least) {
            say(format!("should have at least {least} items"));
        }
        if schema["x-kubernetes-list-type"] == "set"
            && items.iter().enumerate().any(|(i, item)| items[..i].contains(item))
        {
            say("Duplicate value".into());
        }
        for (i, item) in items.iter().enumerate() {
            check(&schema["items"], item, &format!("{path}[{i}]"), found);
        }
    } else if let Some(fields) = value.as_object() {
        check_fields(schema, fields, path, found);
    }
}

fn check_fields(schema: &Value, fields: &serde_json::Map<String, Value>, path: &str, found: &mut Vec<String>) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            found.push(format!("{path}.{name}: Required value"));
        }
    }
    for (name, value) in fields {
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(schema), _) | (None, Some(schema)) => check(schema, value, &format!("{path}.{name}"), found),
            (None, None) if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
            (None, None) => found.push(format!("unknown field \"{path}.{name}\"")),
        }
    }
}
