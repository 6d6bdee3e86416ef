//! Rollouts and gates from files, checked as the API server and the operator would check them. Nothing is asked of a cluster.

use anyhow::{Context, Result, bail};
use bitnet_api::{
    crds,
    v1alpha1::{ModelRollout, QualityGate, QualityGateSpec},
    validate::{Pools, resolve_gate, validate},
};
use bitnet_core::{
    evidence::Gate,
    model::{AbTest, CanaryStep, GuardRule, Rollout, Strategy},
    simulate::Course,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, io::Read, path::PathBuf};

/// Where to read from.
#[derive(clap::Args)]
pub(crate) struct Files {
    /// YAML or JSON with a ModelRollout and the QualityGate that it names (or with a QualityGate alone: then a canary with
    /// the default steps is assumed); several documents and several files are fine, `-` is standard input.
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Only the rollout or the gate of this name.
    #[arg(long)]
    name: Option<String>,
}

/// What is simulated or linted: a gate, and the way in which it is used.
#[derive(Debug)]
pub(crate) struct Subject {
    /// `ModelRollout chat`, or `QualityGate chat` where no rollout uses it.
    pub(crate) name: String,
    pub(crate) gate: Gate,
    pub(crate) course: Course,
    /// The strategy in a few words.
    pub(crate) strategy: String,
    /// Pods of the candidate and of stable (in a first rollout the baseline).
    pub(crate) pods: (u32, u32),
    /// What watches a promoted model.
    pub(crate) guard: Option<GuardRule>,
    /// What the spec leaves to a person, or to fate, that no computation can know.
    pub(crate) remarks: Vec<&'static str>,
}

impl Subject {
    /// The A/B test, if it is one.
    pub(crate) fn test(&self) -> Option<&AbTest> {
        match &self.course {
            Course::Test(test) => Some(test),
            Course::Steps(..) | Course::Switch { .. } => None,
        }
    }
}

impl Files {
    /// All that the files hold, in their order.
    pub(crate) fn subjects(&self) -> Result<Vec<Subject>> {
        let mut all = Vec::new();
        for path in &self.filename {
            all.extend(documents(path)?.into_iter().map(|document| (path.display().to_string(), document)));
        }
        let all = subjects(all)?;
        let total = all.len();
        let wanted = |s: &Subject| self.name.as_ref().is_none_or(|n| s.name.split(' ').nth(1) == Some(n));
        let chosen: Vec<Subject> = all.into_iter().filter(wanted).collect();
        match (&self.name, chosen.is_empty()) {
            (Some(name), true) => bail!("none of the {total} rollouts and gates in the files is named {name}"),
            (None, true) => bail!("the files hold neither a ModelRollout nor a QualityGate"),
            _ => Ok(chosen),
        }
    }
}

impl Files {
    /// The one ModelRollout of the files, as the operator would take it. Its gate need not be among them: nothing here asks
    /// for more of a rollout than its revisions, its route and its steps.
    pub(crate) fn rollout(&self) -> Result<Rollout> {
        let mut found = Vec::new();
        for path in &self.filename {
            let shown = path.display().to_string();
            for document in documents(path)?.into_iter().filter(is_rollout) {
                let rollout: ModelRollout = read(&shown, &document)?;
                if self.name.as_ref().is_none_or(|name| rollout.metadata.name.as_ref() == Some(name)) {
                    found.push(rollout);
                }
            }
        }
        let rollout = match (found.pop(), found.len()) {
            (Some(only), 0) => only,
            (Some(_), more) => bail!("the files hold {} ModelRollouts: choose one with --name", more + 1),
            (None, _) => bail!("the files hold no ModelRollout of that name, or none at all"),
        };
        let named = rollout.spec.gate.as_ref();
        let gate = named.map(|gate| QualityGate::new(&gate.name, QualityGateSpec::with_probes("any")));
        validated(rollout, gate.as_ref())
    }
}

fn is_rollout(document: &Value) -> bool {
    let is = |key: &str, value: &str| document.get(key).and_then(Value::as_str) == Some(value);
    is("apiVersion", "rollouts.bitnet.dev/v1alpha1") && is("kind", "ModelRollout")
}

/// The one ModelRollout of a file, with every field known; `-` is standard input.
pub(crate) fn rollout(path: &std::path::Path, name: Option<&str>) -> Result<ModelRollout> {
    let shown = path.display().to_string();
    let mut found = Vec::new();
    for document in documents(path)?.into_iter().filter(is_rollout) {
        let rollout: ModelRollout = read(&shown, &document)?;
        if name.is_none_or(|name| rollout.metadata.name.as_deref() == Some(name)) {
            found.push(rollout);
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(rollout), true) => Ok(rollout),
        (Some(_), false) => bail!("{shown} holds several ModelRollouts: name one"),
        (None, _) => bail!("{shown} holds no ModelRollout{}", name.map(|n| format!(" named {n}")).unwrap_or_default()),
    }
}

/// The documents of a file.
fn documents(path: &std::path::Path) -> Result<Vec<Value>> {
    let shown = path.display();
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("reading {shown}"))?
    };
    let all = serde_yaml::Deserializer::from_str(&text).map(Value::deserialize).collect::<Result<Vec<_>, _>>();
    let all = all.with_context(|| format!("{shown} is no YAML"))?;
    Ok(all.into_iter().filter(|value| !value.is_null()).collect())
}

fn subjects(documents: Vec<(String, Value)>) -> Result<Vec<Subject>> {
    let (mut rollouts, mut gates) = (Vec::new(), BTreeMap::new());
    for (file, document) in documents {
        let of = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match (of("apiVersion").as_str(), of("kind").as_str()) {
            ("rollouts.bitnet.dev/v1alpha1", "ModelRollout") => rollouts.push(read::<ModelRollout>(&file, &document)?),
            ("rollouts.bitnet.dev/v1alpha1", "QualityGate") => {
                let gate: QualityGate = read(&file, &document)?;
                let name = gate.metadata.name.clone().unwrap_or_default();
                if gates.insert(name.clone(), gate).is_some() {
                    bail!("{file}: a second QualityGate {name}: give each one once");
                }
            }
            // Routes, probe sets and other neighbours in the same files.
            _ => {}
        }
    }
    let mut used = Vec::new();
    let mut all = Vec::new();
    for rollout in rollouts {
        let named = rollout.spec.gate.as_ref().map(|g| g.name.clone());
        all.push(of_rollout(rollout, named.as_ref().and_then(|n| gates.get(n)))?);
        used.extend(named);
    }
    for (name, gate) in gates.iter().filter(|(name, _)| !used.contains(name)) {
        let gate = resolve_gate(name, &gate.spec).with_context(|| format!("QualityGate {name}"))?;
        let course = Course::by_time(&[5, 10, 20, 40, 50].map(default_step));
        let strategy = "canary 5 10 20 40 50 %, 5m each (the default: no rollout uses this gate here)".into();
        let remarks = Vec::new();
        all.push(Subject {
            name: format!("QualityGate {name}"),
            gate,
            course,
            strategy,
            pods: (3, 3),
            guard: None,
            remarks,
        });
    }
    Ok(all)
}

fn default_step(weight: u32) -> bitnet_core::simulate::Step {
    bitnet_core::simulate::Step { weight, duration: bitnet_core::Span::seconds(300) }
}

/// One object, with every field known.
fn read<K: DeserializeOwned>(file: &str, document: &Value) -> Result<K> {
    let kind = document["kind"].as_str().unwrap_or_default();
    let name = document["metadata"]["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        bail!("{file}: a {kind} without metadata.name");
    }
    if let Some(field) = crds::all().iter().find_map(|(_, crd)| {
        let version = crd.spec.versions.first().filter(|_| crd.spec.names.kind == kind)?;
        let schema = serde_json::to_value(version.schema.as_ref()?.open_api_v3_schema.as_ref()?).ok()?;
        unknown(&schema["properties"]["spec"], &document["spec"], "spec")
    }) {
        bail!("{file}: {kind} {name}: {field}: there is no such field; correct its name or remove it");
    }
    serde_json::from_value(document.clone()).with_context(|| format!("{file}: {kind} {name}"))
}

/// Path of the first field that the schema does not know: the API server would drop it without a word.
fn unknown(schema: &Value, value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match schema.get("properties") {
                // An object without properties takes any field.
                None => None,
                Some(properties) => match properties.get(key) {
                    Some(schema) => unknown(schema, value, &path),
                    None => Some(path),
                },
            }
        }),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, item)| unknown(&schema["items"], item, &format!("{path}[{i}]")))
        }
        _ => None,
    }
}

fn of_rollout(rollout: ModelRollout, gate: Option<&QualityGate>) -> Result<Subject> {
    let valid = validated(rollout, gate)?;
    Ok(Subject {
        name: format!("ModelRollout {}", valid.name),
        course: Course::of(&valid),
        strategy: strategy(&valid),
        pods: (valid.model.replicas, valid.baseline.replicas),
        remarks: remarks(&valid),
        guard: valid.guard,
        gate: valid.gate,
    })
}

fn validated(mut rollout: ModelRollout, gate: Option<&QualityGate>) -> Result<Rollout> {
    let name = rollout.metadata.name.clone().unwrap_or_default();
    // What only a stored object has; and the pools of an installation that nobody knows here.
    rollout.metadata.namespace.get_or_insert_with(|| "default".into());
    rollout.metadata.uid.get_or_insert_with(|| "not-stored".into());
    let arms = [&rollout.spec.baseline, &rollout.spec.model];
    let default = "default".to_owned();
    let names = arms.iter().filter_map(|a| a.pool.clone()).chain([default.clone()]).collect();
    validate(&rollout, gate, &Pools { names, default, ..Pools::default() })
        .with_context(|| format!("ModelRollout {name} would not be accepted"))
}

/// A length of time as people write it: `90s`, `5m`, `1h30m`.
pub(crate) fn length(span: bitnet_core::Span) -> String {
    let seconds = (span.0 + 500) / 1000;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m, s) {
        (0, m, s) if m < 2 => format!("{}s", 60 * m + s),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, 0, _) => format!("{h}h"),
        (h, m, _) => format!("{h}h{m}m"),
    }
}

fn strategy(rollout: &Rollout) -> String {
    match &rollout.strategy {
        Strategy::Canary(canary) => {
            let weights: Vec<String> = canary.steps.iter().map(|s| s.weight.to_string()).collect();
            let of = |step: &CanaryStep| length(step.duration);
            let lengths: Vec<String> = canary.steps.iter().map(of).collect();
            let pace = match canary.pace {
                bitnet_core::model::Pace::Evidence => "paced by evidence".to_owned(),
                bitnet_core::model::Pace::Time if lengths.iter().all(|l| *l == lengths[0]) => {
                    format!("{} each", lengths[0])
                }
                bitnet_core::model::Pace::Time => lengths.join(" "),
            };
            format!("canary {} %, {pace}", weights.join(" "))
        }
        Strategy::BlueGreen(_) => {
            format!("blue-green, {} beside the old revision", length(rollout.scale_down_delay))
        }
        Strategy::AbTest(test) => format!("A/B test, {} % for {}", test.weight(), length(test.duration())),
    }
}

fn remarks(rollout: &Rollout) -> Vec<&'static str> {
    let mut remarks = Vec::new();
    match &rollout.strategy {
        Strategy::Canary(canary) if canary.steps.iter().any(|s| s.pause) => {
            remarks.push("pauses that wait for a person are taken as over at once");
        }
        Strategy::BlueGreen(way) if !way.auto_promote => {
            remarks.push("the switch waits for a person: it is taken as made at once");
        }
        Strategy::AbTest(test) if test.duration().0 > rollout.gate.deadline.0.saturating_mul(2) => {
            remarks
                .push("of the split, what the gate sees is simulated for twice its deadline: later nothing new comes");
        }
        Strategy::Canary(_) | Strategy::BlueGreen(_) | Strategy::AbTest(_) => {}
    }
    if let Strategy::Canary(canary) = &rollout.strategy
        && canary.steps.iter().any(|s| !s.matches.is_empty())
    {
        remarks.push("live requests at a step with a match are simulated as if they came by lot");
    }
    if rollout.paused {
        remarks.push("spec.paused is set: nothing moves until it is not");
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_core::Span;

    fn example(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
    }

    fn files(names: &[&str]) -> Files {
        Files { filename: names.iter().map(|n| example(n)).collect(), name: None }
    }

    fn of(text: &str) -> Result<Vec<Subject>> {
        let documents = serde_yaml::Deserializer::from_str(text).map(|d| Value::deserialize(d).unwrap());
        subjects(documents.map(|d| ("f".to_owned(), d)).collect())
    }

    #[test]
    fn the_examples_are_read_with_the_defaults_of_the_api() {
        let found = files(&["rollout.yaml", "gate.yaml", "route.yaml"]).subjects().unwrap();
        assert_eq!(found.len(), 1, "the gate belongs to the rollout");
        assert_eq!(found[0].name, "ModelRollout chat");
        assert_eq!(found[0].strategy, "canary 5 10 20 40 50 %, 5m each");
        assert_eq!(found[0].gate.name, "chat");
        assert_eq!((found[0].gate.deadline, found[0].pods), (Span::seconds(3600), (1, 1)));
        let full = files(&["rollout-full.yaml"]).subjects().unwrap();
        assert_eq!(full[0].strategy, "canary 1 10 50 %, 10m 10m 30m");
        assert_eq!(full[0].pods, (3, 3));
        let remarks = [
            "pauses that wait for a person are taken as over at once",
            "live requests at a step with a match are simulated as if they came by lot",
        ];
        assert_eq!(full[0].remarks, remarks);
        let alone = files(&["gate.yaml"]).subjects().unwrap();
        assert_eq!(alone[0].name, "QualityGate chat");
    }

    #[test]
    fn what_the_api_would_refuse_is_refused_with_its_field() {
        let gate = |spec: &str| {
            format!("apiVersion: rollouts.bitnet.dev/v1alpha1\nkind: QualityGate\nmetadata: {{name: g}}\nspec: {spec}")
        };
        let cases = [
            (gate("{probes: {configMap: p}, deadlin: 4h}"), "spec.deadlin: there is no such field"),
            (gate("{probes: {configMap: p, perTik: 4}}"), "spec.probes.perTik: there is no such field"),
            (gate("{probes: {configMap: p}, interval: 1ms}"), "interval"),
            (gate("{probes: {configMap: p}, signals: {latency: {maxRatio: \"0.9\"}}}"), "signals.latency.maxRatio"),
            (gate("{}"), "probes"),
            (
                "apiVersion: rollouts.bitnet.dev/v1alpha1\nkind: QualityGate\nspec: {}".into(),
                "a QualityGate without metadata.name",
            ),
        ];
        for (text, part) in cases {
            let error = format!("{:#}", of(&text).unwrap_err());
            assert!(error.contains(part), "{part}: {error}");
        }
        let rollout = std::fs::read_to_string(example("rollout.yaml")).unwrap();
        let error = format!("{:#}", of(&rollout).unwrap_err());
        assert!(error.contains("there is no QualityGate `chat`"), "{error}");
    }

    #[test]
    fn a_name_chooses_one() {
        let mut both = files(&["rollout.yaml", "gate.yaml", "rollout-full.yaml"]);
        assert_eq!(both.subjects().unwrap().len(), 2);
        both.name = Some("assistant".into());
        assert_eq!(both.subjects().unwrap()[0].name, "ModelRollout assistant");
        both.name = Some("nobody".into());
        assert!(both.subjects().unwrap_err().to_string().contains("none of the 2 rollouts and gates"));
    }

    #[test]
    fn lengths_of_time_are_short() {
        let of = |s| length(Span::seconds(s));
        assert_eq!([of(90), of(300), of(3600), of(5400), of(150)], ["90s", "5m", "1h", "1h30m", "2m30s"]);
    }
}
