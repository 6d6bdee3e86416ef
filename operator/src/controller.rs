//! The watches, and the loop that they drive. Nothing is decided from what a watch says: it only says when to look.

use crate::{
    admin::Readiness,
    client::Category,
    observe::http_routes,
    reconcile::{Context, Guarded, forget, reconcile, route_name},
};
use bitnet_api::{keys::label, v1alpha1::QualityGate};
use futures::{
    Stream, StreamExt, TryStreamExt, future,
    stream::{self, BoxStream},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::Pod, discovery::v1::EndpointSlice},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DynamicObject, PartialObjectMeta},
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{self, Action},
        reflector::{self, ObjectRef, Store},
        utils::Backoff,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use std::{
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// A watch ends after this and begins again: the bound of what a silently dead connection can hide.
const WATCH_SECONDS: u32 = 45;
/// Reconciles at the same time.
const CONCURRENCY: u16 = 8;

/// Resolves when the process should end.
pub type Stop = future::Shared<future::BoxFuture<'static, ()>>;

/// A watch that ends regularly. Small pages: memory follows the largest answer.
pub(crate) fn watch() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS).page_size(100)
}

/// Runs until `stop` resolves; reconciles that run are finished.
pub async fn run(context: Arc<Context>, readiness: Readiness, stop: Stop) {
    let scopes = Scope::of(&context.config.watch_namespaces);
    let listed = Listed { left: Arc::new(AtomicUsize::new(scopes.len())), readiness };
    let mut controllers = Vec::new();
    let mut stores = Vec::new();
    for scope in scopes {
        let (store, controller) = one(&context, &scope, listed.clone(), stop.clone());
        stores.push(store);
        controllers.push(controller);
    }
    // Set once, before the first reconcile: the controllers are not polled yet.
    let _ = context.stores.set(stores);
    future::join_all(controllers).await;
}

/// Readiness waits for the first whole list of each scope. Not by `Store::wait_until_ready`: it wakes one waiter only,
/// and the controller is one already.
#[derive(Clone)]
struct Listed {
    left: Arc<AtomicUsize>,
    readiness: Readiness,
}

impl Listed {
    fn one_more(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.readiness.watching();
        }
    }
}

/// Time between two attempts of a watch that fails. Each attempt begins with an event of its own, so a backoff that
/// starts anew after every event would never grow.
#[derive(Default)]
pub(crate) struct Patience {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_none_or(|last| now.duration_since(last) > Duration::from_mins(2)) {
            self.failures = 0;
        }
        self.last = Some(now);
        let wait = Duration::from_millis(800).saturating_mul(2u32.saturating_pow(self.failures.min(10)));
        self.failures = self.failures.saturating_add(1);
        Some(wait.min(Duration::from_secs(30)))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {}
}

/// Where to watch.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    Cluster,
    Namespace(String),
}

impl Scope {
    pub(crate) fn of(namespaces: &[String]) -> Vec<Self> {
        if namespaces.is_empty() {
            return vec![Self::Cluster];
        }
        namespaces.iter().cloned().map(Self::Namespace).collect()
    }

    pub(crate) fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self, client: &Client) -> Api<K> {
        match self {
            Self::Cluster => Api::all(client.clone()),
            Self::Namespace(name) => Api::namespaced(client.clone(), name),
        }
    }

    fn routes(&self, client: &Client) -> Api<PartialObjectMeta<DynamicObject>> {
        match self {
            Self::Cluster => Api::all_with(client.clone(), &http_routes()),
            Self::Namespace(name) => Api::namespaced_with(client.clone(), name, &http_routes()),
        }
    }
}

fn one(
    context: &Arc<Context>,
    scope: &Scope,
    listed: Listed,
    stop: Stop,
) -> (Store<Guarded>, impl Future<Output = ()> + use<>) {
    let client = &context.client;
    let (store, writer) = reflector::store::<Guarded>();
    let gone = Arc::clone(context);
    let mut listed = Some(listed);
    let rollouts = anew(scope.api::<Guarded>(client), watch())
        .backoff(Patience::default())
        .inspect_ok(move |event| match event {
            watcher::Event::Delete(object) => forget(&gone, object),
            watcher::Event::InitDone => {
                if let Some(listed) = listed.take() {
                    listed.one_more();
                }
            }
            _ => {}
        })
        .reflect(writer)
        .applied_objects()
        .predicate_filter(worth_a_look, PredicateConfig::default());
    let gates = touched(scope.api::<PartialObjectMeta<QualityGate>>(client), watch(), "QualityGates");
    let routes = touched(scope.routes(client), watch(), "HTTPRoutes");
    let (of_gates, of_routes) = (store.clone(), store.clone());
    let controller = Controller::for_stream(heard(rollouts, "ModelRollouts"), store.clone())
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .watches_stream(owned::<Deployment>(scope.api(client), "Deployments"), |found| by_label(&found))
        .watches_stream(owned::<Pod>(scope.api(client), "pods"), |found| by_label(&found))
        .watches_stream(owned::<EndpointSlice>(scope.api(client), "EndpointSlices"), |found| by_label(&found))
        .watches_stream(gates, move |gate| naming(&of_gates, &gate, gate_name))
        .watches_stream_with(routes, move |route| naming(&of_routes, &route, route_name), http_routes())
        .graceful_shutdown_on(stop);
    let context = Arc::clone(context);
    // Failed reconciles are logged by `retry`, failed watches by `heard`.
    let running = controller.run(reconcile, retry, context).for_each(|_| future::ready(()));
    (store, running)
}

/// The one place where a failed reconcile is logged and timed.
#[allow(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn retry(object: Arc<Guarded>, error: &crate::reconcile::Error, context: Arc<Context>) -> Action {
    let category = error.category();
    let wait = context.backoff.failed(ObjectRef::from_obj(&*object), category);
    context.metrics.reconciled(category.name());
    if category == Category::Conflict {
        // Gateways write the route's status all the time: nothing to worry about.
        tracing::info!(rollout = object.name_any(), retry_in = ?wait, "somebody else wrote first: {error}");
        return Action::requeue(wait);
    }
    tracing::warn!(
        namespace = object.namespace(),
        rollout = object.name_any(),
        error = error as &dyn std::error::Error,
        retry_in = ?wait,
        "a reconcile failed",
    );
    Action::requeue(wait)
}

/// Changes of the custom resource that are worth a look. Our own status writes are not; a wiped status is.
#[allow(clippy::unnecessary_wraps, reason = "the predicate's signature")]
fn worth_a_look(object: &Guarded) -> Option<u64> {
    let meta = object.meta();
    let mut hasher = DefaultHasher::new();
    (meta.generation, &meta.annotations, &meta.finalizers).hash(&mut hasher);
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    object.0.as_ref().is_ok_and(|object| object.status.is_none()).hash(&mut hasher);
    Some(hasher.finish())
}

/// A watch whose failures are logged and kept from the other watches: the controller would slow all of them down.
fn heard<K: Send + 'static>(
    stream: impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
    what: &'static str,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send + 'static {
    stream.filter(move |item| {
        if let Err(error) = item {
            tracing::warn!(what, error = error as &dyn std::error::Error, "a watch failed and is started again");
        }
        future::ready(item.is_ok())
    })
}

/// A watch that begins with a new list after every error. The library goes on reading the stream that failed: a refusal
/// in several lines ("storage is (re)initializing", right after the CRDs came) would be one more error per line, each
/// with a longer wait, and the watch blind for minutes.
pub(crate) fn anew<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    restarting(move || watcher(api.clone(), config.clone()).boxed())
}

/// The items of a stream that `begin` makes, and makes again after each error.
fn restarting<T: Send + 'static, E: Send + 'static>(
    begin: impl Fn() -> BoxStream<'static, Result<T, E>> + Send + 'static,
) -> impl Stream<Item = Result<T, E>> + Send + 'static {
    stream::unfold((None, begin), |(running, begin)| async move {
        let mut running = running.unwrap_or_else(&begin);
        let item = running.next().await?;
        let running = item.is_ok().then_some(running);
        Some((item, (running, begin)))
    })
}

/// Metadata of objects as they change or go.
fn touched<K>(
    api: Api<K>,
    config: watcher::Config,
    what: &'static str,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send + 'static
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    heard(anew(api, config).backoff(Patience::default()).touched_objects(), what)
}

fn owned<K>(
    api: Api<PartialObjectMeta<K>>,
    what: &'static str,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + 'static,
{
    touched(api, watch().labels(label::ROLLOUT), what)
}

fn by_label<K: Resource<DynamicType = ()>>(found: &PartialObjectMeta<K>) -> Option<ObjectRef<Guarded>> {
    let name = found.metadata.labels.as_ref()?.get(label::ROLLOUT)?;
    Some(ObjectRef::new(name).within(found.metadata.namespace.as_deref()?))
}

/// The rollouts of the same namespace that name this object.
fn naming<K: Resource>(
    store: &Store<Guarded>,
    found: &PartialObjectMeta<K>,
    name: impl Fn(&Guarded) -> Option<String>,
) -> Vec<ObjectRef<Guarded>> {
    let all = store.state();
    all.iter()
        .filter(|object| object.meta().namespace == found.metadata.namespace && name(object) == found.metadata.name)
        .map(|object| ObjectRef::from_obj(&**object))
        .collect()
}

fn gate_name(object: &Guarded) -> Option<String> {
    object.0.as_ref().ok()?.spec.gate.as_ref().map(|gate| gate.name.clone())
}

/// How long a leader's last reconciles may take after SIGTERM.
pub const DRAIN: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_that_failed_begins_anew_and_does_not_read_the_rest_of_its_refusal() {
        let begun = AtomicUsize::new(0);
        let refusal = move || {
            let first = begun.fetch_add(1, Ordering::Relaxed) == 0;
            let lines = if first { vec![Err("kind: Status"), Err("code: 429")] } else { vec![Ok(1), Ok(2)] };
            stream::iter(lines).boxed()
        };
        let items: Vec<Result<u32, &str>> = restarting(refusal).collect().await;
        assert_eq!(items, [Err("kind: Status"), Ok(1), Ok(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_again_and_again_is_tried_less_and_less() {
        let mut patience = Patience::default();
        let waits: Vec<_> = (0..8).filter_map(|_| patience.next()).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        // The list that begins each attempt succeeds: no reason to start anew.
        patience.reset();
        assert_eq!(patience.next(), Some(Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(121)).await;
        assert_eq!(patience.next(), Some(Duration::from_millis(800)));
    }
}
