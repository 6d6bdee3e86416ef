//! A QualityGate from a file, resolved as the operator resolves it.

use super::WorkshopError;
use bitnet_api::v1alpha1::QualityGateSpec;
use bitnet_api::validate::resolve_gate;
use bitnet_core::evidence::Gate;
use serde::Deserialize as _;
use serde_yaml::{Deserializer, Value};
use std::fs;
use std::path::Path;

/// The gate of a YAML file, which may hold other objects besides its one QualityGate; without a file, the gate of all
/// defaults.
///
/// # Errors
/// [`WorkshopError::Refused`] names the file, the field and the rule: no QualityGate or several, an unknown field, a value
/// out of bounds.
pub fn read_gate(path: Option<&Path>) -> Result<Gate, WorkshopError> {
    let Some(path) = path else {
        return resolve("default", &QualityGateSpec::with_probes("probes"), "the default gate");
    };
    let text = fs::read_to_string(path).map_err(WorkshopError::file("read", path))?;
    let place = path.display().to_string();
    let mut gates = Vec::new();
    for document in Deserializer::from_str(&text) {
        let value = Value::deserialize(document)
            .map_err(|error| WorkshopError::Refused(format!("{place} is not YAML: {error}; correct it")))?;
        if value.get("kind").and_then(Value::as_str) == Some("QualityGate") {
            gates.push(value);
        }
    }
    let [gate] = gates.as_slice() else {
        return Err(WorkshopError::Refused(format!(
            "{place} must hold exactly one object of kind QualityGate but holds {}: leave one (an inline gateSpec of a rollout does not count)",
            gates.len()
        )));
    };
    let name = gate.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str).unwrap_or("gate");
    let given = gate.get("spec").cloned().unwrap_or(Value::Null);
    let spec: QualityGateSpec = serde_yaml::from_value(given.clone())
        .map_err(|error| WorkshopError::Refused(format!("{place}: spec of QualityGate {name}: {error}; correct it")))?;
    // The API server drops fields that it does not know; here a misspelt margin would silently be the default.
    let known = serde_yaml::to_value(&spec)
        .map_err(|error| WorkshopError::Refused(format!("{place}: spec of QualityGate {name}: {error}")))?;
    if let Some(field) = unknown(&given, &known, "spec") {
        return Err(WorkshopError::Refused(format!(
            "{place}: `{field}` is no field of a QualityGate: correct its name or remove it"
        )));
    }
    resolve(name, &spec, &place)
}

fn resolve(name: &str, spec: &QualityGateSpec, place: &str) -> Result<Gate, WorkshopError> {
    resolve_gate(name, spec).map_err(|refusal| WorkshopError::Refused(format!("{place}: spec.{refusal}")))
}

/// Path of the first key that the second value does not have.
fn unknown(given: &Value, known: &Value, path: &str) -> Option<String> {
    let (Value::Mapping(given), Value::Mapping(known)) = (given, known) else { return None };
    given.iter().find_map(|(key, value)| {
        let path = format!("{path}.{}", key.as_str().unwrap_or("?"));
        match known.get(key) {
            Some(known) => unknown(value, known, &path),
            // Optional fields that are not given are not written either.
            None if value.is_null() => None,
            None => Some(path),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Gate, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate.yaml");
        fs::write(&path, text).unwrap();
        read_gate(Some(&path)).map_err(|e| e.to_string())
    }

    const HEAD: &str = "apiVersion: rollouts.bitnet.dev/v1alpha1\nkind: QualityGate\nmetadata: {name: strict}\n";

    #[test]
    fn one_gate_among_other_objects_is_read_and_resolved() {
        let spec = "spec: {probes: {configMap: p}, signals: {cosine: {minMean: \"0.993\"}}, minSamples: 400}\n";
        let gate = read(&format!("{HEAD}{spec}---\nkind: ConfigMap\n")).unwrap();
        assert_eq!((gate.name.as_str(), gate.min_mean, gate.min_samples), ("strict", 0.993, 400));
        assert_eq!((gate.tail_min, gate.tail_share), (0.90, 0.05));
        let default = read_gate(None).unwrap();
        assert_eq!((default.min_mean, default.probes.per_tick), (0.95, 8));
    }

    #[test]
    fn what_is_no_gate_is_refused_by_name() {
        let cases = [
            ("kind: ConfigMap\n".to_owned(), "exactly one object of kind QualityGate but holds 0"),
            (format!("{HEAD}spec: {{probes: {{configMap: p}}}}\n---\n{HEAD}spec: {{}}\n"), "holds 2"),
            (format!("{HEAD}spec: {{probes: {{configMap: p}}, minSample: 3}}\n"), "`spec.minSample` is no field"),
            (
                format!("{HEAD}spec: {{probes: {{configMap: p}}, signals: {{cosine: {{minMeen: \"0.9\"}}}}}}\n"),
                "`spec.signals.cosine.minMeen`",
            ),
            (
                format!("{HEAD}spec: {{probes: {{configMap: p}}, signals: {{cosine: {{minMean: \"1.5\"}}}}}}\n"),
                "spec.signals.cosine.minMean",
            ),
            (format!("{HEAD}spec: {{}}\n"), "probes"),
            ("a: [".to_owned(), "is not YAML"),
        ];
        for (text, part) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
