//! Setting the spec back to the model that serves: an edit of the spec, as a person would make it, and nothing else.

use crate::{
    cluster::Place,
    output::{Machine, print_machine},
};
use anyhow::{Context, Result, bail};
use bitnet_api::{
    v1alpha1::{ArmSpec, ClaimSource, ModelRollout, SourceSpec},
    validate::revision_name,
};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the rollout.
    name: String,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Output: json or yaml (`spec.model` as it is written).
    #[arg(short, long)]
    output: Option<Machine>,
}

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let connection = place.connect().await?;
    let api = connection.api::<ModelRollout>();
    let rollout = api.get(&args.name).await.with_context(|| format!("getting ModelRollout {}", args.name))?;
    let Some(model) = serving(&rollout)? else {
        println!("{} asks for what serves already: nothing to undo", args.name);
        return Ok(ExitCode::SUCCESS);
    };
    if !args.dry_run {
        // The version says that nobody edited the spec since it was read.
        let patch = json!({
            "metadata": {"uid": rollout.uid(), "resourceVersion": rollout.resource_version()},
            "spec": {"model": whole(&model)?},
        });
        let params = PatchParams { field_manager: Some("kubectl-bitnet".into()), ..PatchParams::default() };
        api.patch(&args.name, &params, &Patch::Merge(&patch)).await.context("setting spec.model back")?;
    }
    if let Some(format) = args.output {
        print_machine(format, &model)?;
        return Ok(ExitCode::SUCCESS);
    }
    let verb = if args.dry_run { "would be set" } else { "was set" };
    println!(
        "spec.model of {} {verb} back to {}: {}",
        args.name,
        revision_name(&args.name, &model),
        source(&model.source)
    );
    println!("Where the object comes from Git, change it there, too: the next sync brings it back otherwise.");
    Ok(ExitCode::SUCCESS)
}

/// The model that serves, as the spec has to ask for it; `None` where it does already. A revision's name is a hash of what
/// was asked for, so a guess is checked and never written unchecked.
fn serving(rollout: &ModelRollout) -> Result<Option<ArmSpec>> {
    let name = rollout.name_any();
    let status = rollout.status.clone().unwrap_or_default();
    let Some(stable) = status.stable else {
        bail!("nothing of {name} serves yet: there is nothing to go back to");
    };
    let (model, baseline) = (&rollout.spec.model, &rollout.spec.baseline);
    if revision_name(&name, model).as_str() == stable.revision {
        return Ok(None);
    }
    let sources = [named(&stable.image), Some(baseline.source.clone()), Some(model.source.clone())];
    for source in sources.into_iter().flatten() {
        for precision in [model.precision, baseline.precision, None] {
            for pool in [&model.pool, &baseline.pool, &None] {
                for serving in [&model.serving, &baseline.serving, &None] {
                    let guess = ArmSpec {
                        source: source.clone(),
                        precision,
                        pool: pool.clone(),
                        serving: serving.clone(),
                        replicas: model.replicas,
                    };
                    if revision_name(&name, &guess).as_str() == stable.revision {
                        return Ok(Some(guess));
                    }
                }
            }
        }
    }
    bail!(
        "only the image of {} is known ({}), not all of its settings: set spec.model by hand, or apply the earlier \
         manifest. `kubectl bitnet abort {name}` takes the traffic back at once",
        stable.revision,
        stable.image
    )
}

/// A source as status shows it: an image by digest, or `claim/path@sha256:digest`.
fn named(text: &str) -> Option<SourceSpec> {
    let (before, digest) = text.split_once("@sha256:")?;
    let image = SourceSpec { image: Some(text.to_owned()), persistent_volume_claim: None };
    let Some((claim, path)) = before.split_once('/') else { return Some(image) };
    // A host has a dot or a port; a name of Docker Hub has none, but status has it as it was given, with its digest.
    if claim.contains(['.', ':']) || digest.len() != 64 {
        return Some(image);
    }
    let claim = json!({"claimName": claim, "path": path, "digest": digest});
    let claim = serde_json::from_value::<ClaimSource>(claim).ok();
    Some(SourceSpec { image: None, persistent_volume_claim: claim })
}

/// As a merge patch that leaves nothing of the old value.
fn whole(model: &ArmSpec) -> Result<Value> {
    let mut value = serde_json::to_value(model)?;
    for field in ["precision", "pool", "replicas", "serving"] {
        if value.get(field).is_none() {
            value[field] = Value::Null;
        }
    }
    for field in ["image", "persistentVolumeClaim"] {
        if value["source"].get(field).is_none() {
            value["source"][field] = Value::Null;
        }
    }
    Ok(value)
}

/// A source in one line.
pub(crate) fn source(source: &SourceSpec) -> String {
    match (&source.image, &source.persistent_volume_claim) {
        (Some(image), _) => image.clone(),
        (None, Some(claim)) => {
            let value = serde_json::to_value(claim).unwrap_or_default();
            let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            format!("{}/{}@sha256:{}", text("claimName"), text("path"), text("digest"))
        }
        (None, None) => "nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digit: &str) -> String {
        format!("r.example/m@sha256:{}", digit.repeat(64))
    }

    fn rollout(model: &Value, stable: &str, image_of_stable: &str) -> ModelRollout {
        serde_json::from_value(json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout", "metadata": {"name": "chat"},
            "spec": {"baseline": {"source": {"image": image("a")}, "pool": "big"}, "model": model,
                     "route": {"httpRoute": "r"}, "gate": {"name": "g"}},
            "status": {"stable": {"revision": stable, "image": image_of_stable, "replicas": 1, "ready": 1}},
        }))
        .unwrap()
    }

    #[test]
    fn the_model_before_is_found_by_its_name_and_never_guessed() {
        let before: ArmSpec =
            serde_json::from_value(json!({"source": {"image": image("b")}, "pool": "cpu", "replicas": 2})).unwrap();
        let stable = revision_name("chat", &before);
        let edited = json!({"source": {"image": image("c")}, "pool": "cpu", "replicas": 5});
        let found = serving(&rollout(&edited, stable.as_str(), &image("b"))).unwrap().unwrap();
        assert_eq!(found.source, before.source);
        assert_eq!(found.replicas, Some(5), "replicas are no part of a revision and stay");
        // Back to fp16, with the baseline's own settings.
        let baseline: ArmSpec =
            serde_json::from_value(json!({"source": {"image": image("a")}, "pool": "big"})).unwrap();
        let fp16 = revision_name("chat", &baseline);
        let found = serving(&rollout(&edited, fp16.as_str(), &image("a"))).unwrap().unwrap();
        assert_eq!(found.pool.as_deref(), Some("big"));
        // What serves already.
        let same = serving(&rollout(&serde_json::to_value(&before).unwrap(), stable.as_str(), &image("b"))).unwrap();
        assert_eq!(same, None);
        // A pool that neither arm names any more.
        let lost: ArmSpec = serde_json::from_value(json!({"source": {"image": image("b")}, "pool": "gone"})).unwrap();
        let error = serving(&rollout(&edited, revision_name("chat", &lost).as_str(), &image("b"))).unwrap_err();
        assert!(error.to_string().contains("set spec.model by hand"), "{error}");
    }

    #[test]
    fn nothing_of_the_old_model_is_left_by_the_patch() {
        let model: ArmSpec = serde_json::from_value(json!({"source": {"image": image("b")}})).unwrap();
        let patch = whole(&model).unwrap();
        for field in ["/precision", "/pool", "/serving", "/replicas", "/source/persistentVolumeClaim"] {
            assert_eq!(patch.pointer(field), Some(&Value::Null), "{field}");
        }
    }

    #[test]
    fn claims_are_told_from_images() {
        let digest = "d".repeat(64);
        let claim = named(&format!("models/chat/v2@sha256:{digest}")).unwrap();
        assert_eq!(source(&claim), format!("models/chat/v2@sha256:{digest}"));
        assert!(claim.image.is_none());
        assert_eq!(named(&image("b")).unwrap().image, Some(image("b")));
        assert_eq!(named("nothing"), None);
    }
}
