//! The CustomResourceDefinitions as they are installed: `crds/*.yaml` are written from here.

use crate::v1alpha1::{ModelRollout, QualityGate, RolloutDecision};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

/// All of them with the name of their file, in the order of installation.
pub fn all() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("modelrollouts.yaml", ModelRollout::crd()),
        ("qualitygates.yaml", QualityGate::crd()),
        ("rolloutdecisions.yaml", RolloutDecision::crd()),
    ]
    .map(|(file, mut crd)| {
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                sort_defaults(schema);
            }
        }
        (file, crd)
    })
}

/// Defaults in one order of their fields, whether or not a build of the whole workspace keeps JSON as it was written.
fn sort_defaults(schema: &mut JSONSchemaProps) {
    if let Some(default) = &mut schema.default {
        default.0.sort_all_objects();
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        sort_defaults(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        sort_defaults(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(more)) = &mut schema.additional_properties {
        sort_defaults(more);
    }
}

/// First line of the files that are made from them.
pub const HEADER: &str = "# Written by `cargo run -p bitnet-api --example crds`; do not edit.\n";

/// The files that are made from them: path from the repository's root, and what is in it as YAML after [`HEADER`].
/// `crds/` is for `kubectl apply`; the chart's copies stay when it is uninstalled, because a definition takes all objects
/// of its kind with it.
pub fn files() -> Vec<(String, CustomResourceDefinition)> {
    let mut files = Vec::new();
    for (file, crd) in all() {
        let mut kept = crd.clone();
        kept.metadata.annotations = Some([("helm.sh/resource-policy".to_owned(), "keep".to_owned())].into());
        files.push((format!("crds/{file}"), crd));
        files.push((format!("charts/bitnet-rollouts-crds/templates/{file}"), kept));
    }
    files
}
