//! The dashboard: rollouts as people watch and steer them, in a browser.
//!
//! Two doors lead to the same pages. The one on the loopback address (reached by `kubectl port-forward`, which has
//! rights of its own) shows everything without a login and changes nothing without one. The other one listens on all
//! addresses and answers only to a bearer token that passes a TokenReview, and shows only what a SubjectAccessReview
//! allows its owner. A verb is written with the caller's own token on both: the dashboard itself may change nothing.
//!
//! It watches the custom resources by itself, so that a replica without the lease shows the same. The points of the
//! charts are what a leading process has seen since it started ([`Ticks`]).

mod access;
mod action;
mod comparisons;
mod forecast;
mod pages;
mod probes;
mod spending;
mod stream;
mod ticks;
mod view;
mod watch;

pub use access::Reviewer;
pub use action::{AsCaller, as_caller};
pub use ticks::Ticks;

use crate::{lease::Fence, reconcile::Guarded};
use access::Caller;
use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bitnet_api::v1alpha1::{ModelRollout, RolloutDecision};
use kube::{Api, Client, api::ListParams, runtime::reflector::Store};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, broadcast},
};

/// Browsers that may follow at the same time.
const STREAMS: usize = 128;
/// Changes that a slow browser may be behind before it is sent everything again.
const BACKLOG: usize = 1024;

/// What changed: namespace and name of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// The object.
    Object(String, String),
    /// Its points: a tick was taken.
    Tick(String, String),
}

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The loopback address: reading needs no login.
    Loopback,
    /// Any address: everything needs a login.
    Login,
}

/// What pages are made from. Cheap to clone.
#[derive(Clone)]
pub struct Dashboard {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    reviewer: Reviewer,
    caller: AsCaller,
    ticks: Ticks,
    fence: Fence,
    identity: String,
    stores: OnceLock<Vec<Store<Guarded>>>,
    unlisted: AtomicUsize,
    changes: broadcast::Sender<Change>,
    streams: Arc<Semaphore>,
}

impl Dashboard {
    /// A dashboard of the process `identity`. `client` reads (its writes are reviews of tokens and rights, which also a
    /// replica without the lease must make: it has no fence), `caller` makes clients of people's tokens.
    pub fn new(client: Client, caller: AsCaller, ticks: Ticks, fence: Fence, identity: &str) -> Self {
        let (changes, _) = broadcast::channel(BACKLOG);
        ticks.tell(changes.clone());
        Self {
            inner: Arc::new(Inner {
                reviewer: Reviewer::new(client.clone()),
                client,
                caller,
                ticks,
                fence,
                identity: identity.to_owned(),
                stores: OnceLock::new(),
                unlisted: AtomicUsize::new(1),
                changes,
                streams: Arc::new(Semaphore::new(STREAMS)),
            }),
        }
    }

    /// Watches the rollouts of these namespaces (none: of all) for ever.
    pub async fn watch(&self, namespaces: &[String]) {
        watch::run(self, namespaces).await;
    }

    /// The pages and the API behind them, for requests that come in by `door`.
    pub fn router(&self, door: Door) -> Router {
        Router::new()
            .merge(pages::router())
            .route("/api/v1/about", get(about))
            .route("/api/v1/rollouts", get(rollouts))
            .route("/api/v1/rollouts/{namespace}/{name}", get(rollout))
            .route("/api/v1/rollouts/{namespace}/{name}/decisions", get(decisions))
            .route("/api/v1/rollouts/{namespace}/{name}/probes", get(probes::texts))
            .route("/api/v1/rollouts/{namespace}/{name}/{verb}", post(action::act))
            .route("/api/v1/stream", get(stream::all))
            .route("/api/v1/stream/{namespace}/{name}", get(stream::one))
            .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is no such page: begin at /") })
            .layer(middleware::from_fn(move |request, next| host(door, request, next)))
            .layer(middleware::map_response(pages::guarded))
            .with_state(Visit { dashboard: self.clone(), door })
    }

    fn listed(&self) -> bool {
        self.inner.unlisted.load(Ordering::Acquire) == 0
    }

    fn all(&self) -> Vec<Arc<Guarded>> {
        self.inner.stores.get().into_iter().flatten().flat_map(Store::state).collect()
    }

    fn find(&self, namespace: &str, name: &str) -> Option<ModelRollout> {
        let all = self.all();
        let found = all.iter().find(|object| {
            let meta = kube::Resource::meta(&***object);
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        });
        found.and_then(|object| object.0.as_ref().ok().cloned())
    }

    fn changed(&self, change: Change) {
        // Without a browser nobody listens, which is no error.
        let _ = self.inner.changes.send(change);
    }
}

/// Binds the door on the loopback address.
pub async fn bind_loopback(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((IpAddr::from(Ipv4Addr::LOCALHOST), port))).await
}

/// The dashboard and the door that a request came in by.
#[derive(Clone)]
struct Visit {
    dashboard: Dashboard,
    door: Door,
}

impl Visit {
    /// Who asks, or the answer that refuses them.
    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Box<Response>> {
        let reviewer = &self.dashboard.inner.reviewer;
        reviewer.caller(self.door, headers).await.map_err(|denied| Box::new(denied.into_response()))
    }

    /// The caller may read the rollouts of this namespace, or the answer that refuses them.
    async fn reader(&self, headers: &HeaderMap, namespace: &str) -> Result<Caller, Box<Response>> {
        let caller = self.caller(headers).await?;
        let reviewer = &self.dashboard.inner.reviewer;
        match reviewer.may_list(&caller, "modelrollouts", namespace).await {
            Ok(()) => Ok(caller),
            Err(denied) => Err(Box::new(denied.into_response())),
        }
    }
}

/// An answer that refuses, in words.
fn problem(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({"error": text}))).into_response()
}

/// A page of some other site whose name was made to point at the loopback address must not read through the browser of
/// a person who has a port forwarded: there, only local names are answered.
async fn host(door: Door, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if door == Door::Loopback && !is_local(host) {
        let text = "this door answers only to localhost: use `kubectl bitnet dashboard`, or the door with a login";
        return problem(StatusCode::MISDIRECTED_REQUEST, text);
    }
    next.run(request).await
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn about(State(visit): State<Visit>, headers: HeaderMap) -> Response {
    let user = match visit.caller(&headers).await {
        Ok(caller) => caller.user().map(str::to_owned),
        Err(refused) => return *refused,
    };
    let inner = &visit.dashboard.inner;
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "process": inner.identity,
        "leading": inner.fence.holds(),
        "pointsSince": inner.ticks.since(),
        "user": user,
    }))
    .into_response()
}

async fn rollouts(State(visit): State<Visit>, headers: HeaderMap) -> Response {
    match seen(&visit, &headers).await {
        Ok((_, rows)) => Json(json!({ "rollouts": rows })).into_response(),
        Err(refused) => *refused,
    }
}

/// What the caller may list, and its rows.
async fn seen(visit: &Visit, headers: &HeaderMap) -> Result<(access::Scope, Vec<Value>), Box<Response>> {
    let caller = visit.caller(headers).await?;
    let dashboard = &visit.dashboard;
    if !dashboard.listed() {
        let text = "the rollouts are not listed yet: the operator has just started, or the CRDs are not installed";
        return Err(Box::new(problem(StatusCode::SERVICE_UNAVAILABLE, text)));
    }
    let all = dashboard.all();
    let namespaces = all.iter().filter_map(|object| kube::Resource::meta(&**object).namespace.clone()).collect();
    let scope = dashboard.inner.reviewer.scope(&caller, namespaces).await;
    let scope = scope.map_err(|denied| Box::new(denied.into_response()))?;
    let mut rows: Vec<_> = all.iter().filter(|object| scope.sees(object)).map(|object| view::row(object)).collect();
    rows.sort_by_key(|row| (row["namespace"].as_str().map(str::to_owned), row["name"].as_str().map(str::to_owned)));
    Ok((scope, rows))
}

async fn rollout(
    State(visit): State<Visit>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Err(refused) = visit.reader(&headers, &namespace).await {
        return *refused;
    }
    let dashboard = &visit.dashboard;
    match dashboard.find(&namespace, &name) {
        Some(object) => Json(view::whole(&object, &dashboard.inner.ticks)).into_response(),
        None => missing(&namespace, &name),
    }
}

fn missing(namespace: &str, name: &str) -> Response {
    let text = format!("namespace {namespace} has no ModelRollout {name}, or its stored object is malformed");
    problem(StatusCode::NOT_FOUND, &text)
}

async fn decisions(
    State(visit): State<Visit>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let caller = match visit.caller(&headers).await {
        Ok(caller) => caller,
        Err(refused) => return *refused,
    };
    let inner = &visit.dashboard.inner;
    if let Err(denied) = inner.reviewer.may_list(&caller, "rolloutdecisions", &namespace).await {
        return denied.into_response();
    }
    // Names become part of a path: only those that an object has.
    if visit.dashboard.find(&namespace, &name).is_none() {
        return missing(&namespace, &name);
    }
    let api = Api::<RolloutDecision>::namespaced(inner.client.clone(), &namespace);
    let of_rollout = ListParams::default().labels(&crate::render::labels::query(&name));
    match api.list(&of_rollout).await {
        Ok(list) => Json(json!({ "decisions": view::decisions(list.items) })).into_response(),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the decisions cannot be listed");
            problem(StatusCode::BAD_GATEWAY, "the API server did not list the decisions: see the operator's log")
        }
    }
}

#[cfg(test)]
mod tests;
