//! `observe`: one look at everything that a rollout depends on. The custom resource and the route are read from the API
//! server at each reconcile, never from a cache: decisions must not rest on what was.

use crate::{
    config::Config,
    counters::{Pending, References},
    metrics::Metrics,
    render::{labels, owned_by},
    worker::Workers,
};
use bitnet_api::{
    keys::{FINALIZER, label},
    v1alpha1::{ModelRollout, RolloutDecision},
};
use bitnet_core::{
    Time,
    model::{Revision, Rollout, RouteTarget},
    observation::{Observation, RouteState},
    plan::{State, guard_due, preview_name, tick_due},
};
use futures::try_join;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Resource},
    core::GroupVersionKind,
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, fmt::Debug, net::IpAddr};

mod balancing;
mod detours;
mod problems;
mod route;
mod sample;
mod shadow;
pub mod verbs;
mod workloads;

pub use balancing::Balancing;
pub(crate) use balancing::policies;
pub use route::{Rival, RouteView};
pub use sample::Compared;
pub use shadow::Shadowed;

/// What a reconcile knows: core's view, and the objects that `render` needs beside it.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// What `plan` sees.
    pub observation: Observation,
    /// Metadata of the custom resource.
    pub rollout: ObjectMeta,
    /// The route as read.
    pub route: RouteView,
    /// Our Deployments by name.
    pub deployments: BTreeMap<String, Deployment>,
    /// Our Services by name.
    pub services: BTreeMap<String, Service>,
    /// Our RolloutDecisions.
    pub decisions: Vec<ObjectMeta>,
    /// Metadata of the preview route, where it is ours.
    pub preview: Option<ObjectMeta>,
    /// How the gateway spreads requests over pods.
    pub balancing: Balancing,
    /// IPs of our pods by name.
    pub pods: BTreeMap<String, IpAddr>,
    /// Live prompts compared for display, where a tick asked about them.
    pub shadow: Option<Shadowed>,
    /// Prompts that were compared in this look, one by one: for people, never for decisions.
    pub compared: Vec<Compared>,
    /// Counter references that replace the old ones once the status was written.
    pub pending: Option<Pending>,
}

impl World {
    /// The model that a revision's Deployment serves, as status shows it.
    pub fn model_image(&self, revision: &Revision) -> Option<String> {
        let template = self.deployments.get(revision.as_str())?.spec.as_ref()?.template.spec.as_ref()?;
        let model = template.volumes.as_ref()?.iter().find(|volume| volume.name == "model")?;
        match (&model.image, &model.persistent_volume_claim) {
            (Some(image), _) => image.reference.clone(),
            (None, Some(claim)) => Some(claim.claim_name.clone()),
            _ => None,
        }
    }

    /// What one pod of a revision costs in an hour; `None`: its pool has no price, or nobody knows its pool any more.
    pub fn price(&self, config: &Config, revision: &Revision) -> Option<f64> {
        let labels = self.deployments.get(revision.as_str())?.metadata.labels.as_ref()?;
        config.pool(labels.get(label::POOL)?)?.price_per_pod_hour
    }
}

/// A read failed: nothing is concluded.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}")]
pub struct Error {
    /// Which objects.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: kube::Error,
}

/// Where observations come from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The API server.
    pub client: &'a Client,
    /// The workers.
    pub workers: &'a Workers,
    /// Counters as of the last tick that was stored.
    pub references: &'a References,
    /// Counts calls.
    pub metrics: &'a Metrics,
    /// Other rollouts of the namespace, which may hold the same route.
    pub rivals: &'a [Rival],
}

/// Looks.
pub async fn observe(
    from: Sources<'_>,
    object: &ModelRollout,
    rollout: &Rollout,
    state: &State,
    now: Time,
) -> Result<World, Error> {
    let ours = ListParams::default().labels(&labels::query(&rollout.name));
    let all = ListParams::default();
    let preview = preview_name(&rollout.name);
    let (route, preview, deployments, services, pods, slices, autoscalers, decisions) = try_join!(
        http_route(from.client, rollout, rollout.route.route_name(&rollout.name)),
        http_route(from.client, rollout, &preview),
        list::<Deployment>(from.client, rollout, &ours, "Deployments"),
        list::<Service>(from.client, rollout, &ours, "Services"),
        list::<Pod>(from.client, rollout, &ours, "pods"),
        list::<EndpointSlice>(from.client, rollout, &ours, "EndpointSlices"),
        list::<HorizontalPodAutoscaler>(from.client, rollout, &all, "HorizontalPodAutoscalers"),
        decisions(from.client, rollout, &ours),
    )?;
    let owned = |meta: &ObjectMeta| owned_by(meta, &rollout.uid);
    let deployments = by_name(deployments.into_iter().filter(|found| owned(&found.metadata)));
    let services = by_name(services.into_iter().filter(|found| owned(&found.metadata)));
    let decisions: Vec<_> = decisions.into_iter().filter(|metadata| owned(metadata)).collect();

    let (mut state_of_route, view) = route::read(rollout, route, from.rivals);
    complete(from.client, rollout, &mut state_of_route, &view).await?;
    let balancing = balancing::look(from.client, rollout, &mut state_of_route, &view).await?;
    let nothing_yet = deployments.is_empty();
    let mut world = World {
        observation: Observation {
            route: state_of_route,
            workloads: workloads::read(&deployments, &services, &pods, &slices, &autoscalers),
            baseline_service: services.contains_key(&labels::baseline_service(&rollout.name)),
            verbs: verbs::read(object.annotations()),
            sample: None,
            namespace_terminating: (rollout.deleting || nothing_yet) && terminating(from.client, rollout).await?,
            decisions: decisions.iter().filter_map(|metadata| metadata.name.clone()).collect(),
            finalizer: object.finalizers().iter().any(|name| name == FINALIZER),
            preview: route::preview(rollout, preview.as_ref()),
        },
        rollout: object.metadata.clone(),
        route: view,
        deployments,
        services,
        decisions,
        preview: preview.map(|found| found.metadata).filter(owned),
        balancing,
        pods: pods.iter().filter_map(|pod| Some((pod.name_any(), workloads::address(pod)?))).collect(),
        shadow: None,
        compared: Vec::new(),
        pending: None,
    };
    if tick_due(rollout, state, now)
        && let Some(attempt) = &state.attempt
    {
        let ((sample, compared, pending), shadow) = futures::join!(
            sample::take(from, rollout, attempt, &world, now),
            shadow::take(from, rollout, attempt, &world)
        );
        (world.observation.sample, world.compared) = (Some(sample), compared);
        (world.pending, world.shadow) = (Some(pending), shadow);
    } else if guard_due(rollout, state, now) {
        let job = state.guard.as_ref().and_then(|watch| watch.job.as_ref());
        let (sample, compared) = sample::of_guard(from, rollout, &world, job, now).await;
        (world.observation.sample, world.compared) = (Some(sample), compared);
    }
    Ok(world)
}

/// The route after a write of ours, as the API server answered it.
pub fn reread(rollout: &Rollout, written: DynamicObject, rivals: &[Rival], world: &World) -> (RouteState, RouteView) {
    let (state, view) = route::read(rollout, Some(written), rivals);
    match state {
        // A released route has no rule of ours any more.
        RouteState::RuleMissing(_) | RouteState::InUse(_) | RouteState::Unsupported(_) => {
            (world.observation.route.clone(), view)
        }
        state => (state, view),
    }
}

/// Kind and version of routes.
pub fn http_routes() -> ApiResource {
    gateway_api("HTTPRoute", "httproutes")
}

pub(crate) fn gateway_api(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", kind), plural)
}

async fn http_route(client: &Client, rollout: &Rollout, name: &str) -> Result<Option<DynamicObject>, Error> {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &rollout.namespace, &http_routes());
    api.get_opt(name).await.map_err(|source| Error { what: "the HTTPRoute", source })
}

/// What only some routes need: the Gateway of a missing own route, the endpoints of the originals before a deletion.
async fn complete(client: &Client, rollout: &Rollout, state: &mut RouteState, view: &RouteView) -> Result<(), Error> {
    match (&mut *state, &rollout.route) {
        (RouteState::Missing, RouteTarget::Own { gateway, .. }) => {
            let api = Api::<DynamicObject>::namespaced_with(
                client.clone(),
                &rollout.namespace,
                &gateway_api("Gateway", "gateways"),
            );
            let found = api.get_opt(gateway).await.map_err(|source| Error { what: "the Gateway", source })?;
            if found.is_none() {
                *state = RouteState::GatewayMissing(gateway.clone());
            }
        }
        (RouteState::Found(route), _) if rollout.deleting => {
            let Some(originals) = view.originals() else { return Ok(()) };
            let mut ready = !originals.is_empty();
            for name in &originals {
                let Some(name) = name else {
                    ready = false;
                    break;
                };
                let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
                let slices = list::<EndpointSlice>(client, rollout, &of_service, "EndpointSlices").await?;
                ready &= workloads::ready_endpoints(&slices, name) > 0;
            }
            route.originals_ready = Some(ready);
        }
        _ => {}
    }
    Ok(())
}

async fn terminating(client: &Client, rollout: &Rollout) -> Result<bool, Error> {
    let namespace = Api::<Namespace>::all(client.clone())
        .get_opt(&rollout.namespace)
        .await
        .map_err(|source| Error { what: "the Namespace", source })?;
    Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
}

async fn list<K>(client: &Client, rollout: &Rollout, params: &ListParams, what: &'static str) -> Result<Vec<K>, Error>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), &rollout.namespace);
    Ok(api.list(params).await.map_err(|source| Error { what, source })?.items)
}

/// Metadata is enough, and a record that cannot be read must not stop its rollout.
async fn decisions(client: &Client, rollout: &Rollout, params: &ListParams) -> Result<Vec<ObjectMeta>, Error> {
    let api = Api::<RolloutDecision>::namespaced(client.clone(), &rollout.namespace);
    let found = api.list_metadata(params).await.map_err(|source| Error { what: "RolloutDecisions", source })?;
    Ok(found.items.into_iter().map(|found| found.metadata).collect())
}

fn by_name<K: ResourceExt>(objects: impl Iterator<Item = K>) -> BTreeMap<String, K> {
    objects.map(|object| (object.name_any(), object)).collect()
}
