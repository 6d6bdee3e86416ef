//! The CustomResourceDefinitions as they are installed: `crds/*.yaml` are written from here.

use crate::v1alpha1::{ModelRollout, QualityGate, RolloutDecision};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// All of them with the name of their file, in the order of installation.
pub fn all() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("modelrollouts.yaml", ModelRollout::crd()),
        ("qualitygates.yaml", QualityGate::crd()),
        ("rolloutdecisions.yaml", RolloutDecision::crd()),
    ]
}
