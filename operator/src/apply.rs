//! `apply`: sends the requests of a plan in their order. It takes no decision: it looks at nothing but the answers.
//!
//! Each request is sent once. Requests that make room or keep books may fail without stopping the route write, which
//! rests on what was observed ready and not on them; nothing shrinks after a route write that failed.

use crate::{
    client::{Category, category},
    observe::{http_routes, policies},
    render::{Action, Kind, Objects, Prepared, Write, adopt, labels::MANAGED_BY, owned_by},
    traces,
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
use tracing::{Instrument, debug_span, field};

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
    let Objects { finalizer, grow, shift, preview, balancing, record, shrink, release, .. } = &outcome.objects;
    if let Some(write) = finalizer {
        outcome.rollout = send(client, namespace, write).await?;
    }
    for write in grow {
        note(&mut outcome.failures, send(client, namespace, write).await)?;
    }
    if let Some(write) = shift {
        outcome.route = send(client, namespace, write).await?;
    }
    for write in preview.iter().chain(balancing).chain(record).chain(shrink) {
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
    let action = match &write.action {
        Action::Create(_) => "create",
        Action::Patch(_) => "patch",
        Action::Delete { .. } => "delete",
    };
    let span = debug_span!(
        "write",
        action,
        kind = write.kind.name(),
        name = write.name,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
    );
    let outcome = once(client, namespace, write).instrument(span.clone()).await;
    if let Err(error) = &outcome {
        traces::failed(&span, error);
    }
    outcome
}

async fn once(client: &Client, namespace: &str, write: &Write) -> Result<Option<DynamicObject>, Error> {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource(write.kind));
    let failed =
        |verb| move |source| Error { verb, kind: write.kind, name: write.name.clone(), source: Box::new(source) };
    match &write.action {
        Action::Create(object) => create(&api, write, object).await.map_err(failed("create")),
        Action::Patch(patch) => {
            let params = patch_params();
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
    let taken = match api.create(&post_params(), &wanted).await {
        Ok(created) => return Ok(Some(created)),
        Err(error) if category(&error) == Category::AlreadyExists => error,
        Err(error) => return Err(error),
    };
    let found = api.get(&write.name).await?;
    let Some([owner]) = wanted.metadata.owner_references.as_deref() else { return Err(taken) };
    let owners = found.metadata.owner_references.as_deref().unwrap_or_default();
    if owned_by(&found.metadata, &owner.uid) {
        return Ok(Some(found));
    }
    let same_rollout = found.metadata.labels.as_ref().and_then(|labels| labels.get(label::ROLLOUT)).map(String::as_str)
        == object["metadata"]["labels"][label::ROLLOUT].as_str();
    if !same_rollout || owners.iter().any(|known| known.controller == Some(true)) {
        return Err(taken);
    }
    let adoption = adopt(write.kind, &found.metadata, owner);
    let Action::Patch(patch) = &adoption.action else { return Err(taken) };
    api.patch(&write.name, &patch_params(), &Patch::<()>::Json(patch.clone())).await.map(Some)
}

/// Patches under our name (`metadata.managedFields`).
pub(crate) fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGED_BY.into()), ..PatchParams::default() }
}

fn post_params() -> PostParams {
    PostParams { field_manager: Some(MANAGED_BY.into()), ..PostParams::default() }
}

/// Where the API server has a kind.
pub fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::ModelRollout => ApiResource::erase::<ModelRollout>(&()),
        Kind::Deployment => ApiResource::erase::<Deployment>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::HttpRoute => http_routes(),
        Kind::RolloutDecision => ApiResource::erase::<RolloutDecision>(&()),
        Kind::BackendTrafficPolicy => policies(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Guard,
        fake::{Asked, Log, refusal, server},
    };
    use serde_json::json;
    use std::marker::PhantomData;

    fn patch(kind: Kind, name: &str) -> Write {
        let patch = serde_json::from_value(json!([{"op": "test", "path": "/metadata/uid", "value": "u"}])).unwrap();
        Write { kind, name: name.into(), action: Action::Patch(patch) }
    }

    fn create(name: &str) -> Write {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": {label::ROLLOUT: "chat"}, "ownerReferences": [{
                "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout", "name": "chat", "uid": "mine",
                "controller": true,
            }]},
        });
        Write { kind: Kind::Deployment, name: name.into(), action: Action::Create(Box::new(object)) }
    }

    fn plan() -> Objects<Prepared> {
        let delete = Action::Delete { uid: "u".into(), resource_version: "7".into() };
        Objects {
            finalizer: Some(patch(Kind::ModelRollout, "chat")),
            grow: vec![create("chat-a")],
            shift: Some(patch(Kind::HttpRoute, "chat")),
            preview: None,
            balancing: None,
            record: Vec::new(),
            shrink: vec![Write { kind: Kind::Deployment, name: "chat-b".into(), action: delete }],
            release: None,
            verdict: None,
            stage: PhantomData,
        }
    }

    fn object(name: &str) -> (u16, Value) {
        (200, json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": name}}))
    }

    fn lines(log: &Log) -> Vec<String> {
        log.lock().unwrap().iter().map(Asked::line).collect()
    }

    #[tokio::test]
    async fn requests_are_sent_in_the_order_of_the_plan_with_their_preconditions() {
        let (client, log) = server(&Guard::new(None), |_| object("x"));
        let outcome = apply(&client, "ns", plan()).await.unwrap();
        assert!(outcome.failures.is_empty() && outcome.route.is_some() && outcome.rollout.is_some());
        assert_eq!(
            lines(&log),
            ["PATCH modelrollouts/chat", "POST ns/deployments", "PATCH httproutes/chat", "DELETE deployments/chat-b"]
        );
        let log = log.lock().unwrap();
        assert_eq!(log[2].body[0], json!({"op": "test", "path": "/metadata/uid", "value": "u"}));
        assert_eq!(log[3].body["preconditions"], json!({"uid": "u", "resourceVersion": "7"}));
    }

    #[tokio::test]
    async fn a_quota_does_not_hold_a_route_write_up_and_a_conflict_there_stops_the_rest() {
        let (client, log) = server(&Guard::new(None), |asked| match asked.method.as_str() {
            "POST" => refusal(403, "Forbidden", "exceeded quota"),
            _ => object("x"),
        });
        let outcome = apply(&client, "ns", plan()).await.unwrap();
        assert!(outcome.route.is_some());
        assert!(outcome.failures[0].contains("exceeded quota"), "{:?}", outcome.failures);
        assert_eq!(lines(&log).len(), 4);

        let (client, log) = server(&Guard::new(None), |asked| {
            if asked.path.contains("httproutes") { refusal(422, "Invalid", "the test failed") } else { object("x") }
        });
        let error = apply(&client, "ns", plan()).await.unwrap_err();
        assert_eq!(error.category(), Category::Conflict);
        assert_eq!(lines(&log).last().unwrap(), "PATCH httproutes/chat", "nothing shrinks");
    }

    #[tokio::test]
    async fn a_name_that_is_taken_is_ours_or_an_orphan_or_an_error() {
        let found = |owners: Value, rollout: &str| {
            let rollout = rollout.to_owned();
            move |asked: &Asked| match asked.method.as_str() {
                "POST" => refusal(409, "AlreadyExists", "deployments \"chat-a\" already exists"),
                _ => (
                    200,
                    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {
                        "name": "chat-a", "uid": "d", "resourceVersion": "3", "ownerReferences": owners,
                        "labels": {label::ROLLOUT: rollout},
                    }}),
                ),
            }
        };
        let owner = |uid: &str| json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]);
        let (client, log) = server(&Guard::new(None), found(owner("mine"), "chat"));
        send(&client, "ns", &create("chat-a")).await.unwrap();
        assert_eq!(lines(&log), ["POST ns/deployments", "GET deployments/chat-a"]);

        let (client, log) = server(&Guard::new(None), found(json!([]), "chat"));
        send(&client, "ns", &create("chat-a")).await.unwrap();
        let adoption = log.lock().unwrap()[2].clone();
        assert_eq!(adoption.line(), "PATCH deployments/chat-a");
        assert_eq!(adoption.body[1], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "3"}));
        assert_eq!(adoption.body[2]["value"][0]["uid"], "mine");

        for foreign in [found(owner("theirs"), "chat"), found(json!([]), "other")] {
            let (client, log) = server(&Guard::new(None), foreign);
            let error = send(&client, "ns", &create("chat-a")).await.unwrap_err();
            assert_eq!(error.category(), Category::AlreadyExists);
            assert_eq!(log.lock().unwrap().len(), 2, "nothing of theirs is touched");
        }
    }

    #[tokio::test]
    async fn what_is_gone_already_is_done() {
        let (client, _) = server(&Guard::new(None), |_| refusal(404, "NotFound", "no"));
        let delete = Action::Delete { uid: "u".into(), resource_version: "7".into() };
        let gone = Write { kind: Kind::Service, name: "chat-b".into(), action: delete };
        assert!(send(&client, "ns", &gone).await.unwrap().is_none());
        assert!(send(&client, "ns", &patch(Kind::Deployment, "chat-b")).await.unwrap().is_none());
        assert!(send(&client, "ns", &patch(Kind::HttpRoute, "chat")).await.is_err(), "a lost route is no success");
    }
}
