//! `status`: one write per reconcile, last, and only if something differs.

use crate::{apply::patch_params, render::Operations};
use bitnet_api::v1alpha1::{ModelRollout, ModelRolloutStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, Resource, api::Patch};
use serde_json::json;

/// The patch that replaces the status of the object with this metadata, if it still is that object in that version.
/// `None`: nothing differs, nothing is written.
pub fn patch(
    meta: &ObjectMeta,
    old: Option<&ModelRolloutStatus>,
    new: &ModelRolloutStatus,
) -> Option<json_patch::Patch> {
    if old == Some(new) {
        return None;
    }
    let mut operations = Operations::on(meta);
    operations.add(["status"], json!(new));
    Some(operations.patch())
}

/// Sends a status patch. The object's metadata as answered.
pub async fn write(client: &Client, meta: &ObjectMeta, patch: json_patch::Patch) -> Result<ObjectMeta, kube::Error> {
    let api = Api::<ModelRollout>::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    let written = api.patch_status(name, &patch_params(), &Patch::<()>::Json(patch)).await?;
    Ok(written.meta().clone())
}

/// Removes annotations of answered verbs from the object with this metadata.
pub async fn clear_verbs(client: &Client, meta: &ObjectMeta, patch: json_patch::Patch) -> Result<(), kube::Error> {
    let api = Api::<ModelRollout>::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    api.patch_metadata(name, &patch_params(), &Patch::<()>::Json(patch)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nothing_is_written_where_nothing_differs_and_a_write_has_its_preconditions() {
        let meta = ObjectMeta { uid: Some("u".into()), resource_version: Some("7".into()), ..ObjectMeta::default() };
        let status = ModelRolloutStatus { phase: "Serving".into(), ..ModelRolloutStatus::default() };
        assert!(patch(&meta, Some(&status), &status).is_none());
        let written: Value = serde_json::to_value(patch(&meta, None, &status).unwrap()).unwrap();
        assert_eq!(
            written,
            json!([
                {"op": "test", "path": "/metadata/uid", "value": "u"},
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/status", "value": {"phase": "Serving"}},
            ])
        );
    }
}
