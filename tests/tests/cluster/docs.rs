//! What the documentation tells people to copy, asked of the real API server and of Helm.

use crate::{Suite, stand::Stand};
use anyhow::{Context, Result, ensure};
use e2e::{
    docs::{Use, blocks},
    stage::checkout,
};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery,
};
use serde_json::Value;
use std::sync::Arc;

/// Every whole object is accepted by `--dry-run=server` with strict validation.
pub(crate) async fn every_object_is_accepted(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::empty(suite, "docs").await?;
    let mut count = 0;
    let mut wrong = Vec::new();
    for block in blocks()? {
        let Use::Objects(objects) = &block.use_ else { continue };
        for object in objects {
            count += 1;
            if let Err(error) = dry_run(&stand, object).await {
                wrong.push(format!("{}: {error:#}", block.place));
            }
        }
    }
    ensure!(wrong.is_empty(), "refused:\n{}", wrong.join("\n"));
    ensure!(count >= 15, "only {count} objects were found in the pages");
    stand.away().await
}

async fn dry_run(stand: &Stand, object: &Value) -> Result<()> {
    let mut object: DynamicObject = serde_json::from_value(object.clone()).context("reading an object")?;
    let types = object.types.clone().context("no kind")?;
    let kind = GroupVersionKind::try_from(&types).context("reading apiVersion and kind")?;
    let (resource, capabilities) =
        discovery::pinned_kind(&stand.client, &kind).await.with_context(|| format!("no kind {}", types.kind))?;
    let api: Api<DynamicObject> = match capabilities.scope {
        discovery::Scope::Cluster => Api::all_with(stand.client.clone(), &resource),
        discovery::Scope::Namespaced => {
            // Pages name namespaces that the box has not.
            object.metadata.namespace = Some(stand.namespace().into());
            Api::namespaced_with(stand.client.clone(), stand.namespace(), &resource)
        }
    };
    let name = object.name_any();
    let params = PatchParams::apply("docs").force().dry_run().validation_strict();
    api.patch(&name, &params, &Patch::Apply(&object)).await.with_context(|| format!("{} {name}", types.kind))?;
    Ok(())
}

/// Every block of values renders with the chart.
pub(crate) async fn every_block_of_values_renders(suite: Arc<Suite>) -> Result<()> {
    let chart = checkout().join("charts/bitnet-rollouts").display().to_string();
    let mut count = 0;
    for block in blocks()?.into_iter().filter(|block| block.use_ == Use::Values) {
        count += 1;
        let file = tempfile::NamedTempFile::new().context("making a temporary file")?;
        std::fs::write(file.path(), &block.text)?;
        let values = file.path().display().to_string();
        suite
            .cluster
            .helm(&[
                "template",
                "bitnet-rollouts",
                &chart,
                "-n",
                "bitnet-system",
                "--kube-version",
                "1.37.2",
                "-f",
                &values,
            ])
            .with_context(|| block.place.clone())?;
    }
    ensure!(count >= 2, "only {count} blocks of values were found");
    Ok(())
}
