//! `apply`: sends the requests of a plan in their order. It takes no decision: it looks at nothing but the answers.
//!
//! Each request is sent once. Requests that make room or keep books may fail without stopping the route write, which
//! rests on what was observed ready and not on them; nothing shrinks after a route write that failed.

use crate::{
    client::{Category, category},
    observe::http_routes,
    render::{Action, Kind, Objects, Prepared, Write, adopt},
};
use bitnet_api::{
    keys::label,
    v1alpha1::{ModelRollout, RolloutDecision},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::Value;

/// Requests that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied;

/// What the API server answered.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The requests.
    pub objects: Objects<Applied>,
    /// The custom resource after its finalizer was set.
    pub rollout: Option<DynamicObject>,
    /// The route after its write.
    pub route: Option<DynamicObject>,
    /// The finalizer is gone, and with it perhaps the custom resource.
    pub released: bool,
    /// What did not succeed and does not contradict the plan, in words.
    pub failures: Vec<String>,
}

/// A request failed, and nothing after it was sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {} {name}", kind.name())]
pub struct Error {
    verb: &'static str,
    kind: Kind,
    name: String,
    /// What the API server said.
    #[source]
    pub source: Box<kube::Error>,
}

impl Error {
    /// How it is met.
    pub fn category(&self) -> Category {
        category(&self.source)
    }
}

/// Sends the requests.
pub async fn apply(client: &Client, namespace: &str, objects: Objects<Prepared>) -> Result<Outcome, Error> {
    let mut outcome =
        Outcome { objects: objects.at(), rollout: None, route: None, released: false, failures: Vec::new() };
    let Objects { finalizer, grow, shift, record, shrink, release, .. } = &outcome.objects;
    if let Some(write) = finalizer {
        outcome.rollout = send(client, namespace, write).await?;
    }
    for write in grow {
        note(&mut outcome.failures, send(client, namespace, write).await)?;
    }
    if let Some(write) = shift {
        outcome.route = send(client, namespace, write).await?;
    }
    for write in record.iter().chain(shrink) {
        note(&mut outcome.failures, send(client, namespace, write).await)?;
    }
    if let Some(write) = release
        && outcome.failures.is_empty()
    {
        send(client, namespace, write).await?;
        outcome.released = true;
    }
    Ok(outcome)
}

/// Without the lease nothing more is sent; any other failure is told.
fn note<T>(failures: &mut Vec<String>, outcome: Result<T, Error>) -> Result<(), Error> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) if error.category() == Category::Fenced => Err(error),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a request failed");
            failures.push(format!("{error}: {}", summary(&error.source)));
            Ok(())
        }
    }
}

/// What the API server said, without the rest of its answer.
pub fn summary(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Sends one request. The object as answered, where there is one.
pub async fn send(client: &Client, namespace: &str, write: &Write) -> Result<Option<DynamicObject>, Error> {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource(write.kind));
    let failed =
        |verb| move |source| Error { verb, kind: write.kind, name: write.name.clone(), source: Box::new(source) };
    match &write.action {
        Action::Create(object) => create(&api, write, object).await.map_err(failed("create")),
        Action::Patch(patch) => {
            let params = PatchParams::default();
            match api.patch(&write.name, &params, &Patch::<()>::Json(patch.clone())).await {
                Ok(object) => Ok(Some(object)),
                Err(error) if write.kind != Kind::HttpRoute && category(&error) == Category::NotFound => Ok(None),
                Err(error) => Err(failed("patch")(error)),
            }
        }
        Action::Delete { uid, resource_version } => {
            let params = DeleteParams::background().preconditions(Preconditions {
                uid: Some(uid.clone()),
                resource_version: Some(resource_version.clone()),
            });
            match api.delete(&write.name, &params).await {
                Ok(_) => Ok(None),
                Err(error) if category(&error) == Category::NotFound => Ok(None),
                Err(error) => Err(failed("delete")(error)),
            }
        }
    }
}

/// Creates under a deterministic name. An object of that name is ours already, or an orphan that is taken back, or
/// somebody else's.
async fn create(api: &Api<DynamicObject>, write: &Write, object: &Value) -> Result<Option<DynamicObject>, kube::Error> {
    let wanted: DynamicObject = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
    let taken = match api.create(&PostParams::default(), &wanted).await {
        Ok(created) => return Ok(Some(created)),
        Err(error) if category(&error) == Category::AlreadyExists => error,
        Err(error) => return Err(error),
    };
    let found = api.get(&write.name).await?;
    let owner = &object["metadata"]["ownerReferences"][0];
    let owners = found.metadata.owner_references.as_deref().unwrap_or_default();
    if owners.iter().any(|known| owner["uid"] == known.uid.as_str()) {
        return Ok(Some(found));
    }
    let same_rollout = found.metadata.labels.as_ref().and_then(|labels| labels.get(label::ROLLOUT)).map(String::as_str)
        == object["metadata"]["labels"][label::ROLLOUT].as_str();
    if !same_rollout || owners.iter().any(|known| known.controller == Some(true)) {
        return Err(taken);
    }
    let adoption = adopt(write.kind, &found.metadata, owner);
    let Action::Patch(patch) = &adoption.action else { return Err(taken) };
    api.patch(&write.name, &PatchParams::default(), &Patch::<()>::Json(patch.clone())).await.map(Some)
}

/// Where the API server has a kind.
pub fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::ModelRollout => ApiResource::erase::<ModelRollout>(&()),
        Kind::Deployment => ApiResource::erase::<Deployment>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::HttpRoute => http_routes(),
        Kind::RolloutDecision => ApiResource::erase::<RolloutDecision>(&()),
    }
}
