//! What the spec changes against what serves, and whether it starts a rollout.

use super::undo::source;
use crate::{
    cluster::Place,
    files,
    output::{Machine, Paint, print_machine},
};
use anyhow::{Context, Result, bail};
use bitnet_api::{
    v1alpha1::{ArmSpec, ModelRollout},
    validate::revision_name,
};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::PathBuf,
    process::ExitCode,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the rollout. With --filename: default, the one in the file.
    #[arg(required_unless_present = "filename")]
    name: Option<String>,
    /// Compare the spec in this file (`-`: standard input) with the stored one, before it is applied.
    #[arg(short, long, value_name = "FILE")]
    filename: Option<PathBuf>,
    /// Exit with 3 if it starts a rollout.
    #[arg(long)]
    exit_code: bool,
    /// Output: json or yaml.
    #[arg(short, long)]
    output: Option<Machine>,
}

/// One field before and after; empty: it is not there.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    field: String,
    before: String,
    after: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    /// Revision that serves, or that the stored spec asks for.
    before: String,
    /// Revision that is asked for.
    after: String,
    /// It starts a rollout.
    starts_rollout: bool,
    changes: Vec<Change>,
    /// What cannot be compared, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
}

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let new = args.filename.as_deref().map(|path| files::rollout(path, args.name.as_deref())).transpose()?;
    let name = match (&args.name, &new) {
        (Some(name), _) => name.clone(),
        (None, Some(new)) => new.name_any(),
        (None, None) => bail!("name a rollout, or give --filename"),
    };
    let connection = place.connect().await?;
    let api = connection.api::<ModelRollout>();
    let stored = api.get_opt(&name).await.with_context(|| format!("getting ModelRollout {name}"))?;
    let difference = match (stored, new) {
        (None, Some(_)) => {
            bail!("namespace {} has no ModelRollout {name}: applying it creates one", connection.namespace)
        }
        (None, None) => bail!("namespace {} has no ModelRollout {name}", connection.namespace),
        (Some(stored), Some(new)) => between_specs(&stored, &new)?,
        (Some(stored), None) => with_what_serves(&stored)?,
    };
    match args.output {
        Some(format) => print_machine(format, &difference)?,
        None => print!("{}", words(&name, &difference, Paint::detect())),
    }
    Ok(if args.exit_code && difference.starts_rollout { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn between_specs(stored: &ModelRollout, new: &ModelRollout) -> Result<Difference> {
    let name = stored.name_any();
    let (before, after) = (revision_name(&name, &stored.spec.model).0, revision_name(&name, &new.spec.model).0);
    Ok(Difference {
        starts_rollout: before != after,
        changes: changes(&serde_json::to_value(&stored.spec)?, &serde_json::to_value(&new.spec)?, "spec"),
        before,
        after,
        remark: None,
    })
}

fn with_what_serves(stored: &ModelRollout) -> Result<Difference> {
    let name = stored.name_any();
    let status = stored.status.clone().unwrap_or_default();
    let Some(stable) = status.stable else {
        bail!("nothing of {name} serves yet: `kubectl bitnet status {name}` says what it waits for");
    };
    let model = &stored.spec.model;
    let after = revision_name(&name, model).0;
    let same_as_baseline = revision_name(&name, &stored.spec.baseline).0 == stable.revision;
    let known = if same_as_baseline { Some(&stored.spec.baseline) } else { None };
    let starts_rollout = after != stable.revision;
    let (changes, remark) = match known {
        _ if !starts_rollout => (Vec::new(), None),
        Some(before) => (arms(before, model)?, None),
        None => {
            let change = Change { field: "source".into(), before: stable.image.clone(), after: source(&model.source) };
            let remark = (change.before == change.after).then(|| {
                format!("settings of {} are not in the spec any more: its Deployment has them", stable.revision)
            });
            (if remark.is_some() { Vec::new() } else { vec![change] }, remark)
        }
    };
    Ok(Difference { before: stable.revision, after, starts_rollout, changes, remark })
}

/// What makes another revision of one arm.
fn arms(before: &ArmSpec, after: &ArmSpec) -> Result<Vec<Change>> {
    let without_replicas = |arm: &ArmSpec| serde_json::to_value(ArmSpec { replicas: None, ..arm.clone() });
    Ok(changes(&without_replicas(before)?, &without_replicas(after)?, "model"))
}

fn changes(before: &Value, after: &Value, path: &str) -> Vec<Change> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten(before, path, &mut old);
    flatten(after, path, &mut new);
    let fields: BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
    let of = |map: &BTreeMap<String, String>, field: &str| map.get(field).cloned().unwrap_or_default();
    let all = fields.into_iter().map(|field| Change { before: of(&old, &field), after: of(&new, &field), field });
    all.filter(|change| change.before != change.after).collect()
}

fn flatten(value: &Value, path: &str, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flatten(value, &format!("{path}.{key}"), out)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| flatten(v, &format!("{path}[{i}]"), out)),
        Value::Null => {}
        Value::String(text) => drop(out.insert(path.to_owned(), text.clone())),
        other => drop(out.insert(path.to_owned(), other.to_string())),
    }
}

fn words(name: &str, difference: &Difference, paint: Paint) -> String {
    let mut text = if difference.starts_rollout {
        format!("{name}: {} instead of {}: a rollout\n", difference.after, difference.before)
    } else if difference.changes.is_empty() {
        return format!("{name}: the spec asks for {}, which serves: no difference\n", difference.before);
    } else {
        format!("{name}: {} stays: no rollout starts\n", difference.before)
    };
    for change in &difference.changes {
        let _ = writeln!(text, "  {}", paint.bold(&change.field));
        for (mark, side) in [("-", &change.before), ("+", &change.after)] {
            if !side.is_empty() {
                let line = format!("    {mark} {side}");
                text.push_str(&if mark == "-" { paint.bad(&line) } else { paint.good(&line) });
                text.push('\n');
            }
        }
    }
    if let Some(remark) = &difference.remark {
        let _ = writeln!(text, "  {remark}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image(digit: &str) -> String {
        format!("r.example/m@sha256:{}", digit.repeat(64))
    }

    fn rollout(model: &Value, stable: Option<(&str, &str)>) -> ModelRollout {
        let stable = stable.map(|(revision, image)| json!({"revision": revision, "image": image}));
        serde_json::from_value(json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout", "metadata": {"name": "chat"},
            "spec": {"baseline": {"source": {"image": image("a")}}, "model": model, "route": {"httpRoute": "r"},
                     "gate": {"name": "g"}},
            "status": {"stable": stable},
        }))
        .unwrap()
    }

    #[test]
    fn only_what_makes_another_revision_starts_a_rollout() {
        let stored = rollout(&json!({"source": {"image": image("b")}, "replicas": 1}), None);
        let scaled = rollout(&json!({"source": {"image": image("b")}, "replicas": 4}), None);
        let difference = between_specs(&stored, &scaled).unwrap();
        assert!(!difference.starts_rollout);
        let text = words("chat", &difference, Paint::plain());
        assert!(text.contains("no rollout starts") && text.contains("spec.model.replicas\n    - 1\n    + 4"), "{text}");
        let other = rollout(&json!({"source": {"image": image("c")}, "replicas": 1}), None);
        let difference = between_specs(&stored, &other).unwrap();
        assert!(difference.starts_rollout);
        assert_eq!(difference.changes.len(), 1);
        assert_eq!(difference.changes[0].field, "spec.model.source.image");
    }

    #[test]
    fn the_spec_is_compared_with_what_serves() {
        let model = json!({"source": {"image": image("b")}, "precision": "ternary"});
        let baseline: ArmSpec = serde_json::from_value(json!({"source": {"image": image("a")}})).unwrap();
        let fp16 = revision_name("chat", &baseline);
        let first = with_what_serves(&rollout(&model, Some((fp16.as_str(), &image("a"))))).unwrap();
        let fields: Vec<_> = first.changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["model.precision", "model.source.image"]);
        let later = with_what_serves(&rollout(&model, Some(("chat-older", &image("9"))))).unwrap();
        assert!(later.starts_rollout && later.changes[0].before == image("9"));
        let settings = with_what_serves(&rollout(&model, Some(("chat-older", &image("b"))))).unwrap();
        assert!(settings.changes.is_empty() && settings.remark.is_some());
        let asked: ArmSpec = serde_json::from_value(model.clone()).unwrap();
        let done = revision_name("chat", &asked);
        let none = with_what_serves(&rollout(&model, Some((done.as_str(), &image("b"))))).unwrap();
        assert!(words("chat", &none, Paint::plain()).contains("no difference"));
        assert!(with_what_serves(&rollout(&model, None)).is_err());
    }
}
