//! The reference of the custom resources for readers, `docs/api.md`: made from the schemas, so it cannot drift from them.

use crate::crds;
use serde_json::Value;
use std::fmt::Write;

/// Where the reference is, from the repository's root.
pub const FILE: &str = "docs/api.md";

const HEAD: &str = "<!-- Written by `cargo run -p bitnet-api --example crds`; do not edit. -->\n\
# API reference\n\
\n\
Group `rollouts.bitnet.dev`, version `v1alpha1`; all kinds are namespaced. Unknown fields are refused by `kubectl` and, \
where a client does not ask for that, dropped by the API server. Numbers with a decimal point are strings, lengths of time \
are written like `90s`, `10m`, `1h30m`, with hours as the largest unit (a week is `168h`; days are refused), amounts of \
memory like `512Mi`, `4Gi`. Every rule below runs in the API server and names its field when it refuses; what \
only the operator can see (a missing gate, an undeclared pool) is told in the condition `Accepted`.\n";

/// The whole page.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    let all: Vec<(String, Value)> = crds::all()
        .into_iter()
        .map(|(_, crd)| {
            let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
            let schema = schema.and_then(|schema| schema.open_api_v3_schema.as_ref());
            (crd.spec.names.kind.clone(), serde_json::to_value(schema).unwrap_or_default())
        })
        .collect();
    for (kind, schema) in &all {
        // A text cannot fail to grow.
        let _ = write!(page, "\n## {kind}\n\n{}\n", text(schema));
        let mut walk = Walk { kind, all: &all, rows: Vec::new(), rules: Vec::new() };
        walk.rules(schema, "");
        for part in ["spec", "status"] {
            let Some(part_schema) = schema["properties"].get(part) else { continue };
            walk.rows.clear();
            walk.below(part_schema, part);
            let _ = write!(page, "\n### {kind} {part}\n\n| field | type | what it is |\n|---|---|---|\n");
            for row in &walk.rows {
                page.push_str(row);
            }
        }
        if !walk.rules.is_empty() {
            let _ = write!(page, "\n### Rules of {kind}\n\n| where | rule |\n|---|---|\n");
            for rule in &walk.rules {
                page.push_str(rule);
            }
        }
    }
    page
}

struct Walk<'a> {
    kind: &'a str,
    all: &'a [(String, Value)],
    rows: Vec<String>,
    rules: Vec<String>,
}

impl<'a> Walk<'a> {
    fn below(&mut self, schema: &Value, path: &str) {
        self.rules(schema, path);
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            self.field(field, &format!("{path}.{name}"), required.contains(&name.as_str()));
        }
    }

    fn field(&mut self, schema: &Value, path: &str, required: bool) {
        let words = if required { ", required" } else { "" };
        let elsewhere = self.known_elsewhere(schema, path);
        let what = elsewhere
            .map_or_else(|| cell(&text(schema)), |kind| format!("{} As the spec of a {kind}.", cell(&text(schema))));
        self.rows.push(format!("| `{path}` | {}{words} | {what} |\n", kind_of(schema)));
        if elsewhere.is_some() {
            return;
        }
        self.below(schema, path);
        if schema["items"].is_object() {
            self.below(&schema["items"], &format!("{path}[]"));
        }
    }

    /// The kind whose spec this is: told once, under that kind.
    fn known_elsewhere(&self, schema: &Value, path: &str) -> Option<&'a str> {
        let fields = &schema["properties"];
        let same = |(kind, other): &&(String, Value)| {
            kind != self.kind
                && path != "spec"
                && fields.is_object()
                && other["properties"]["spec"]["properties"] == *fields
        };
        self.all.iter().find(same).map(|(kind, _)| kind.as_str())
    }

    fn rules(&mut self, schema: &Value, path: &str) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let field = rule["fieldPath"].as_str().unwrap_or_default();
            let place = format!("{path}{field}");
            let place = if place.is_empty() { "the object".to_owned() } else { format!("`{place}`") };
            self.rules.push(format!("| {place} | {} |\n", cell(rule["message"].as_str().unwrap_or_default())));
        }
    }
}

fn text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text within a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn kind_of(schema: &Value) -> String {
    let mut words = match schema["type"].as_str() {
        Some("array") => format!("list of {}", kind_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("map to {}", kind_of(&schema["additionalProperties"]))
        }
        Some(other) => other.to_owned(),
        None => String::new(),
    };
    let number = |key: &str| schema[key].as_i64().or_else(|| schema[key].as_f64().map(|number| number as i64));
    for (least, most, unit) in
        [("minimum", "maximum", ""), ("minLength", "maxLength", " characters"), ("minItems", "maxItems", " entries")]
    {
        match (number(least), number(most)) {
            (Some(least), Some(i64::MAX | 2_147_483_647) | None) => drop(write!(words, ", at least {least}{unit}")),
            (Some(least), Some(most)) => drop(write!(words, ", {least} to {most}{unit}")),
            (None, Some(most)) => drop(write!(words, ", at most {most}{unit}")),
            (None, None) => {}
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        let _ = write!(words, ": {}", values.join(", "));
    }
    match &schema["default"] {
        Value::Null => {}
        Value::String(default) => drop(write!(words, ", default `{default}`")),
        default => drop(write!(words, ", default `{default}`")),
    }
    words
}
