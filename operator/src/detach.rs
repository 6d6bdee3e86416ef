//! `operator detach`: leaves what serves as it is and lets go of it, so that the operator and its custom resources can be
//! removed without an outage and without a namespace that hangs on a finalizer.

use crate::{
    apply::{self, send},
    client::{Category, category},
    config::Config,
    lease::{self, Claim, RENEW_DEADLINE},
    observe::{RouteView, http_routes},
    render::{Action, Kind, Operations, Write, detach_patch, labels, orphan as without_owner},
};
use bitnet_api::keys::{FINALIZER, route as key};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::json;
use std::time::Duration;

/// The lease is kept for this long at a time, so that no replica starts again meanwhile.
const HOLD: Duration = Duration::from_mins(2);
/// And this long after the last rollout was let go.
const LINGER: Duration = Duration::from_secs(30);
/// Attempts per rollout: each conflict means that somebody else wrote first.
const ATTEMPTS: u32 = 5;

/// Why a rollout could not be let go.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lease could not be taken.
    #[error("cannot take the lease")]
    Lease(#[source] kube::Error),
    /// Something cannot be listed.
    #[error("cannot list {what}")]
    List {
        /// Which kind.
        what: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A request failed.
    #[error("cannot let go of a rollout")]
    Apply(#[source] apply::Error),
}

impl Error {
    /// How it is met.
    pub fn category(&self) -> Category {
        match self {
            Self::Lease(source) | Self::List { source, .. } => category(source),
            Self::Apply(error) => error.category(),
        }
    }
}

/// Takes the lease from the running operator and lets go of all rollouts. Returns how many there were.
pub async fn run(client: &Client, config: &Config, claim: &Claim) -> Result<usize, Error> {
    lease::seize(client.clone(), claim, HOLD).await.map_err(Error::Lease)?;
    tracing::info!("the lease is taken; waiting until the operator has noticed");
    tokio::time::sleep(RENEW_DEADLINE + Duration::from_secs(2)).await;
    let resource = apply::resource(Kind::ModelRollout);
    let apis: Vec<_> = if config.watch_namespaces.is_empty() {
        vec![Api::all_with(client.clone(), &resource)]
    } else {
        let namespaced = |name: &String| Api::namespaced_with(client.clone(), name, &resource);
        config.watch_namespaces.iter().map(namespaced).collect()
    };
    let mut count = 0;
    for api in apis {
        let rollouts = list(&api, &ListParams::default(), "ModelRollouts").await?;
        for rollout in &rollouts {
            // Long lists outlive the lease otherwise.
            lease::seize(client.clone(), claim, HOLD).await.map_err(Error::Lease)?;
            orphan(client, &rollout.metadata).await?;
            tracing::info!(namespace = rollout.metadata.namespace, rollout = rollout.metadata.name, "let go");
            count += 1;
        }
    }
    // Long enough for the installation to go, short enough for another one to begin.
    lease::seize(client.clone(), claim, LINGER).await.map_err(Error::Lease)?;
    Ok(count)
}

/// Lets go of one rollout: ledger and ownerReferences off, stable (or what serves) and all pods as they are, finalizer
/// away.
pub async fn orphan(client: &Client, rollout: &ObjectMeta) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        match once(client, rollout).await {
            Err(error) if error.category() == Category::Conflict && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
    }
}

async fn once(client: &Client, rollout: &ObjectMeta) -> Result<(), Error> {
    let namespace = rollout.namespace.as_deref().unwrap_or_default();
    let name = rollout.name.as_deref().unwrap_or_default();
    let uid = rollout.uid.as_deref().unwrap_or_default();
    let api = |resource: &ApiResource| Api::<DynamicObject>::namespaced_with(client.clone(), namespace, resource);
    let mut writes = Vec::new();

    let holder = format!("{name}/{uid}");
    for route in list(&api(&http_routes()), &ListParams::default(), "HTTPRoutes").await? {
        if route.metadata.annotations.as_ref().and_then(|all| all.get(key::ROLLOUT)) == Some(&holder) {
            let name = route.metadata.name.clone().unwrap_or_default();
            let action = Action::Patch(detach_patch(&RouteView::managed(route), uid));
            writes.push(Write { kind: Kind::HttpRoute, name, action });
        }
    }
    let ours = ListParams::default().labels(&labels::query(name));
    for (kind, what) in [(Kind::Deployment, "Deployments"), (Kind::Service, "Services")] {
        for object in list(&api(&apply::resource(kind)), &ours, what).await? {
            writes.extend(without_owner(kind, &object.metadata, uid));
        }
    }
    let resource = apply::resource(Kind::ModelRollout);
    let found = api(&resource).get_opt(name).await;
    let found = found.map_err(|source| Error::List { what: "the ModelRollout", source })?;
    writes.extend(found.as_ref().and_then(|found| finalizer_off(&found.metadata)));
    for write in &writes {
        send(client, namespace, write).await.map_err(Error::Apply)?;
    }
    Ok(())
}

fn finalizer_off(meta: &ObjectMeta) -> Option<Write> {
    let index = meta.finalizers.as_ref()?.iter().position(|name| name == FINALIZER)?.to_string();
    let mut operations = Operations::on(meta);
    operations.test(["metadata", "finalizers", &index], json!(FINALIZER));
    operations.remove(["metadata", "finalizers", &index]);
    let name = meta.name.clone().unwrap_or_default();
    Some(Write { kind: Kind::ModelRollout, name, action: Action::Patch(operations.patch()) })
}

async fn list(api: &Api<DynamicObject>, params: &ListParams, what: &'static str) -> Result<Vec<DynamicObject>, Error> {
    match api.list(params).await {
        Ok(found) => Ok(found.items),
        // A kind that is not installed (any more) has no objects.
        Err(error) if category(&error) == Category::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::List { what, source }),
    }
}
