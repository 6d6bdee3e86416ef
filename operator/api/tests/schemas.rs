//! The custom resource definitions: no drift, no unbounded field, and every rule says what it should.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use bitnet_api::{crds, reference};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// Larger objects need `kubectl apply --server-side`: the annotation of the plain one holds 256 KiB.
const LARGEST_CRD: usize = 200_000;

#[test]
fn the_committed_files_are_what_the_types_say() {
    for (file, crd) in crds::files() {
        let text = format!("{}{}", crds::HEADER, serde_yaml::to_string(&crd).unwrap());
        let committed = fs::read_to_string(support::root().join(&file)).unwrap_or_default();
        assert!(committed == text, "{file} has drifted: run `cargo run -p bitnet-api --example crds`");
        assert!(committed.len() < LARGEST_CRD, "{file} has {} bytes", committed.len());
        // The chart's copies go through Helm's templates.
        assert!(!committed.contains("{{"), "{file} has a template in it");
    }
}

#[test]
fn the_reference_is_what_the_schemas_say() {
    let committed = fs::read_to_string(support::root().join(reference::FILE)).unwrap_or_default();
    assert!(
        committed == reference::markdown(),
        "docs/api.md has drifted: run `cargo run -p bitnet-api --example crds`"
    );
    for field in ["`spec.model.source.image`", "`spec.signals.cosine.minMean`", "`status.conditions[].reason`"] {
        assert!(committed.contains(field), "{field} is missing");
    }
}

#[test]
fn every_case_gets_its_answer() {
    let mut accepted: Option<Value> = None;
    let (mut yes, mut no) = (0, 0);
    for case in support::cases() {
        let old = if case.update { accepted.as_ref() } else { None };
        let refusals = support::refusals(&case.object, old);
        if case.expect == "accepted" {
            assert!(refusals.is_empty(), "{}: {refusals:#?}", case.place);
            accepted = Some(case.object);
            yes += 1;
        } else {
            let found = refusals.iter().any(|refusal| refusal.contains(&case.expect));
            assert!(found, "{}: expected `{}`, got {refusals:#?}", case.place, case.expect);
            no += 1;
        }
    }
    assert!(yes >= 13 && no >= 110, "{yes} accepted, {no} refused: cases are missing");
}

/// Each rule must be the one that refuses some case, so that none can be lost or be always true unnoticed.
#[test]
fn every_rule_refuses_some_case() {
    let mut messages = BTreeSet::new();
    for kind in ["ModelRollout", "QualityGate", "RolloutDecision"] {
        walk(support::schema(kind), "", &mut |_, schema| {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                messages.insert(rule["message"].as_str().expect("every rule has a message").to_owned());
            }
        });
    }
    assert!(messages.len() > 40);
    let mut accepted: Option<Value> = None;
    for case in support::cases() {
        let old = if case.update { accepted.as_ref() } else { None };
        for refusal in support::refusals(&case.object, old) {
            messages.retain(|message| !refusal.ends_with(message.as_str()));
        }
        if case.expect == "accepted" {
            accepted = Some(case.object);
        }
    }
    assert!(messages.is_empty(), "no case is refused by: {messages:#?}");
}

#[test]
fn everything_is_bounded() {
    for kind in ["ModelRollout", "QualityGate", "RolloutDecision"] {
        walk(support::schema(kind), kind, &mut |path, schema| {
            // The fields of metav1.Condition are the API machinery's own; the list itself is bounded.
            if path.contains(".conditions[]") {
                return;
            }
            let has = |key: &str| !schema[key].is_null();
            match schema["type"].as_str() {
                Some("string") => assert!(has("maxLength") || has("enum"), "{path} has no maxLength"),
                Some("integer") => {
                    assert!(path.ends_with(".weights{}") || has("minimum") && has("maximum"), "{path} has no bounds");
                    assert!(
                        matches!(schema["format"].as_str(), Some("int32" | "int64")),
                        "{path}: {}",
                        schema["format"]
                    );
                }
                Some("array") => assert!(has("maxItems"), "{path} has no maxItems"),
                Some("object") => {
                    assert!(!has("additionalProperties") || has("maxProperties"), "{path} has no maxProperties");
                }
                Some("boolean") => {}
                other => panic!("{path}: {other:?}"),
            }
            let nullable = schema["nullable"] == true;
            assert!(!nullable || path == "ModelRollout.status", "{path} is nullable: has() would see a null as given");
        });
    }
}

/// A tenant who may write our objects must not reach another namespace or make the operator call a URL.
#[test]
fn no_field_names_a_namespace_or_a_url() {
    for kind in ["ModelRollout", "QualityGate", "RolloutDecision"] {
        walk(support::schema(kind), kind, &mut |path, _| {
            let name = path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            for word in ["namespace", "url", "uri", "endpoint", "host", "address", "webhook"] {
                // Names under which a gateway listens: the operator calls none of them.
                let harmless = ["hostnames", "hostnames[]", "previewhost"].contains(&name.as_str());
                assert!(harmless || !name.contains(word), "{path}");
            }
        });
    }
}

#[test]
fn the_columns_are_those_that_people_know() {
    let (_, crd) = crds::all().into_iter().next().unwrap();
    let columns: Vec<_> = crd.spec.versions[0]
        .additional_printer_columns
        .iter()
        .flatten()
        .map(|column| column.name.to_uppercase())
        .collect();
    assert_eq!(columns, ["PHASE", "STEP", "WEIGHT", "VERDICT", "COSINE", "LATENCY", "ERRORS", "AGE"]);
    let short: Vec<_> =
        crds::all().into_iter().flat_map(|(_, crd)| crd.spec.names.short_names.unwrap_or_default()).collect();
    assert_eq!(short, ["mr", "qg", "rd"]);
}

/// Calls `visit` for a schema and everything below it, with its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}{{}}"), visit);
    }
}
