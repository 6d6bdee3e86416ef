//! The dashboard's own watch of the custom resources: independent of the lease and of the controller.

use super::{Change, Dashboard};
use crate::{
    controller::{Patience, Scope, anew, watch},
    reconcile::Guarded,
};
use futures::{StreamExt, future};
use kube::{
    Resource,
    runtime::{
        WatchStreamExt, reflector,
        watcher::{self, Event},
    },
};
use std::sync::atomic::Ordering;

pub(super) async fn run(dashboard: &Dashboard, namespaces: &[String]) {
    let scopes = Scope::of(namespaces);
    dashboard.inner.unlisted.store(scopes.len(), Ordering::Release);
    let mut stores = Vec::new();
    let mut watches = Vec::new();
    for scope in scopes {
        let (store, writer) = reflector::store::<Guarded>();
        stores.push(store);
        let events =
            anew(scope.api::<Guarded>(&dashboard.inner.client), watch()).backoff(Patience::default()).reflect(writer);
        watches.push(follow(dashboard, events));
    }
    // Set once, before the first event: the watches are not polled yet.
    let _ = dashboard.inner.stores.set(stores);
    future::join_all(watches).await;
}

async fn follow(dashboard: &Dashboard, events: impl futures::Stream<Item = Result<Event<Guarded>, watcher::Error>>) {
    let mut events = std::pin::pin!(events);
    let mut first = true;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                let meta = object.meta().clone();
                dashboard.changed(Change::Object(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default()));
            }
            Ok(Event::InitDone) if first => {
                first = false;
                dashboard.inner.unlisted.fetch_sub(1, Ordering::AcqRel);
            }
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the dashboard's watch failed and starts again"
                );
            }
        }
    }
}
