//! The HTTPRoute `<rollout>-preview`: the candidate of a blue-green rollout under a host name of its own. It carries no
//! ledger: nothing rests on it.

use super::{Kind, Write, create, delete, labels};
use crate::observe::World;
use bitnet_api::worker::PUBLIC_PORT;
use bitnet_core::{
    model::{Rollout, RouteTarget},
    plan::{PreviewWrite, preview_name},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

/// The request that carries out a write of the preview; `None` where there is nothing to delete.
pub(super) fn render(rollout: &Rollout, world: &World, write: &PreviewWrite, owner: &OwnerReference) -> Option<Write> {
    let name = preview_name(&rollout.name);
    match write {
        PreviewWrite::Delete => world.preview.as_ref().map(|meta| delete(Kind::HttpRoute, meta)),
        PreviewWrite::Create { host, revision } => {
            let object = json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": {
                    "name": name,
                    "namespace": rollout.namespace,
                    "labels": labels::of_rollout(&rollout.name),
                    "ownerReferences": [owner],
                },
                "spec": {
                    "parentRefs": parents(rollout, world),
                    "hostnames": [host],
                    "rules": [{"backendRefs": [{
                        "group": "", "kind": "Service", "name": revision.as_str(), "port": PUBLIC_PORT, "weight": 100,
                    }]}],
                },
            });
            Some(create(Kind::HttpRoute, &name, &object))
        }
    }
}

/// The parents of the managed route, raw.
fn parents(rollout: &Rollout, world: &World) -> Value {
    match (world.route.parents(), &rollout.route) {
        (Some(parents), _) => parents.clone(),
        (None, RouteTarget::Own { gateway, .. }) => json!([{"name": gateway}]),
        (None, RouteTarget::Adopt { .. }) => json!([]),
    }
}
