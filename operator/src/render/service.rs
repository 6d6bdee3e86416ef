//! Services: one per revision, and one that names the fp16 pods whatever their revision is.

use super::labels;
use bitnet_api::worker::{INTERNAL_PORT, PUBLIC_PORT};
use bitnet_core::model::{Revision, Rollout};
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use std::collections::BTreeMap;

/// The Service of a revision: what the route's weights name, and what peers compare with.
pub(super) fn revision(rollout: &Rollout, revision: &Revision, owner: &OwnerReference) -> Service {
    service(
        revision.as_str().into(),
        labels::of(rollout, revision),
        labels::selector(rollout, revision),
        rollout,
        owner,
    )
}

/// Service `<rollout>-baseline`: the pods that were created as fp16 baseline, for fallback. Headless: workers choose among
/// the pods themselves, and ask another one where one does not answer. One that an earlier version made keeps its virtual
/// IP, which cannot be taken from it, until somebody deletes it.
pub(super) fn baseline(rollout: &Rollout, owner: &OwnerReference) -> Service {
    let mut service = service(
        labels::baseline_service(&rollout.name),
        labels::of_rollout(&rollout.name),
        labels::baseline_selector(rollout),
        rollout,
        owner,
    );
    if let Some(spec) = &mut service.spec {
        spec.cluster_ip = Some("None".into());
    }
    service
}

fn service(
    name: String,
    labels: BTreeMap<String, String>,
    selector: BTreeMap<String, String>,
    rollout: &Rollout,
    owner: &OwnerReference,
) -> Service {
    let port = |name: &str, number: u16| ServicePort {
        name: Some(name.into()),
        port: number.into(),
        target_port: Some(IntOrString::String(name.into())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(rollout.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            ports: Some(vec![port("http", PUBLIC_PORT), port("internal", INTERNAL_PORT)]),
            selector: Some(selector),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
