//! `docs/reasons.md` is written from the code: every condition, every reason, and every rule of the schemas.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use bitnet_api::{conditions, reasons};
use serde_json::Value;
use std::{collections::BTreeSet, fmt::Write, fs};

const HEAD: &str = "# Conditions, reasons and refusals

Written by `UPDATE_GOLDEN=1 cargo test -p bitnet-api --test reasons`; do not edit. Every reason that a condition, an \
event, a notification or `kubectl bitnet` can show is here, with what to do about it; `kubectl bitnet explain REASON` \
prints the same. The message beside a reason has the names and numbers of your case.

## Conditions of a ModelRollout

| condition | True means |
|---|---|
";

fn page() -> String {
    let mut text = HEAD.to_owned();
    for (name, meaning) in conditions::MEANINGS {
        let _ = writeln!(text, "| `{name}` | {meaning} |");
    }
    text.push_str("\n## Reasons\n\n| reason | what it says | what to do |\n|---|---|---|\n");
    for entry in reasons::all() {
        let _ = writeln!(text, "| `{}` | {} | {} |", entry.name, entry.meaning, entry.remedy);
    }
    text.push_str(
        "\n## What the API server refuses\n\nRules of the schemas (CEL). The API server's refusal has the field and this text.\n",
    );
    for kind in ["ModelRollout", "QualityGate", "RolloutDecision"] {
        let mut rules = Vec::new();
        walk(support::schema(kind), "", &mut rules);
        let _ = write!(text, "\n### {kind}\n\n| field | rule |\n|---|---|\n");
        for (path, message) in rules {
            let path = if path.is_empty() { "the object".to_owned() } else { format!("`{path}`") };
            let _ = writeln!(text, "| {path} | {} |", message.replace('|', "\\|"));
        }
    }
    text
}

fn walk(schema: &Value, path: &str, rules: &mut Vec<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        rules.push((path.to_owned(), rule["message"].as_str().unwrap().to_owned()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(property, &path, rules);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), rules);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}{{}}"), rules);
    }
}

#[test]
fn the_page_says_what_the_code_says() {
    let path = support::root().join("docs/reasons.md");
    let text = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "docs/reasons.md has drifted: run `UPDATE_GOLDEN=1 cargo test -p bitnet-api --test reasons` and read the difference"
    );
}

#[test]
fn names_are_what_kubernetes_takes_and_every_reason_has_its_words() {
    let all = reasons::all();
    let names: BTreeSet<_> = all.iter().map(|entry| &entry.name).collect();
    assert_eq!(names.len(), all.len(), "a name stands for one thing");
    for entry in &all {
        // The pattern of a condition's reason, without what we never use.
        assert!(entry.name.starts_with(|c: char| c.is_ascii_uppercase()), "{}", entry.name);
        assert!(entry.name.chars().all(|c| c.is_ascii_alphanumeric()), "{}", entry.name);
        assert!(entry.meaning.len() > 10 && entry.meaning.ends_with('.'), "{}: {}", entry.name, entry.meaning);
        assert!(entry.remedy.ends_with('.') && !entry.remedy.contains('|'), "{}: {}", entry.name, entry.remedy);
    }
    let listed: Vec<_> = conditions::MEANINGS.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, conditions::ALL);
}
