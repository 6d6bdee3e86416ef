use anyhow::{Context, Result};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery,
};
use serde::Deserialize;

/// Server-side apply of every document of a YAML text, as `kubectl apply --server-side` does it. Objects without a
/// namespace go to `namespace` where their kind has one.
pub async fn apply(client: &Client, namespace: &str, yaml: &str) -> Result<()> {
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let value = serde_yaml::Value::deserialize(document).context("reading YAML")?;
        if value.is_null() {
            continue;
        }
        let object: DynamicObject = serde_yaml::from_value(value).context("reading an object")?;
        let types = object.types.clone().context("an object without apiVersion and kind")?;
        let name = object.name_any();
        let kind = GroupVersionKind::try_from(&types).context("reading apiVersion and kind")?;
        let (resource, capabilities) = discovery::pinned_kind(client, &kind)
            .await
            .with_context(|| format!("the cluster does not know {}/{}", types.api_version, types.kind))?;
        let api: Api<DynamicObject> = match capabilities.scope {
            discovery::Scope::Cluster => Api::all_with(client.clone(), &resource),
            discovery::Scope::Namespaced => {
                let namespace = object.namespace().unwrap_or_else(|| namespace.into());
                Api::namespaced_with(client.clone(), &namespace, &resource)
            }
        };
        api.patch(&name, &PatchParams::apply("e2e").force(), &Patch::Apply(&object))
            .await
            .with_context(|| format!("applying {} {name}", types.kind))?;
    }
    Ok(())
}
