//! What changes, as server-sent events. A stream ends by itself after a while: the browser comes again, and the rights
//! of its caller are asked again.

use super::{Change, Dashboard, Visit, access::Scope, missing, problem, seen, view};
use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, stream};
use kube::Resource;
use serde_json::{Value, json};
use std::{collections::BTreeSet, convert::Infallible, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, broadcast::Receiver, broadcast::error::RecvError};

/// Life of a stream.
const LIFE: Duration = Duration::from_mins(5);
/// Least time between two batches of events to one browser.
const PAUSE: Duration = Duration::from_millis(250);

/// What came since the last batch.
enum Batch {
    /// These, each once.
    Changes(BTreeSet<(String, String, bool)>),
    /// More than was kept.
    Lost,
}

async fn batch(changes: &mut Receiver<Change>) -> Option<Batch> {
    let mut all = BTreeSet::new();
    let mut add = |change| match change {
        Change::Object(namespace, name) => all.insert((namespace, name, false)),
        Change::Tick(namespace, name) => all.insert((namespace, name, true)),
    };
    match changes.recv().await {
        Ok(change) => add(change),
        Err(RecvError::Lagged(_)) => return Some(Batch::Lost),
        Err(RecvError::Closed) => return None,
    };
    tokio::time::sleep(PAUSE).await;
    while let Ok(change) = changes.try_recv() {
        add(change);
    }
    Some(Batch::Changes(all))
}

fn event(name: &str, data: &Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

/// A place among the browsers that follow, or the answer that refuses one more.
fn place(dashboard: &Dashboard) -> Result<OwnedSemaphorePermit, Box<Response>> {
    dashboard.inner.streams.clone().try_acquire_owned().map_err(|_| {
        let text = "too many browsers follow already: the page reads again every few seconds instead";
        Box::new(problem(StatusCode::SERVICE_UNAVAILABLE, text))
    })
}

fn answer(
    place: OwnedSemaphorePermit,
    first: Vec<Event>,
    rest: impl Stream<Item = Vec<Event>> + Send + 'static,
) -> Response {
    let end = tokio::time::sleep(LIFE);
    let events = stream::once(async { first }).chain(rest).take_until(end).flat_map(stream::iter).map(move |event| {
        // The place is given back when the stream is dropped.
        let _ = &place;
        Ok::<_, Infallible>(event)
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// The list: `rows` at first, then `row` and `gone`.
pub(super) async fn all(State(visit): State<Visit>, headers: HeaderMap) -> Response {
    let place = match place(&visit.dashboard) {
        Ok(place) => place,
        Err(refused) => return *refused,
    };
    // Subscribed before it is listed: what changes in between is sent twice rather than lost.
    let changes = visit.dashboard.inner.changes.subscribe();
    let (scope, rows) = match seen(&visit, &headers).await {
        Ok(seen) => seen,
        Err(refused) => return *refused,
    };
    let rest = stream::unfold((changes, visit.dashboard, scope), |(mut changes, dashboard, scope)| async move {
        let batch = batch(&mut changes).await?;
        let events = changed_rows(&dashboard, &scope, batch);
        Some((events, (changes, dashboard, scope)))
    });
    answer(place, vec![event("rows", &json!(rows))], rest)
}

fn changed_rows(dashboard: &Dashboard, scope: &Scope, batch: Batch) -> Vec<Event> {
    let all = dashboard.all();
    let changes = match batch {
        Batch::Changes(changes) => changes,
        Batch::Lost => {
            let rows: Vec<_> = all.iter().filter(|object| scope.sees(object)).map(|object| view::row(object)).collect();
            return vec![event("rows", &json!(rows))];
        }
    };
    let objects = changes.into_iter().filter(|(namespace, _, tick)| !tick && scope.holds(namespace));
    objects
        .map(|(namespace, name, _)| {
            let found = all.iter().find(|object| {
                object.meta().namespace.as_ref() == Some(&namespace) && object.meta().name.as_ref() == Some(&name)
            });
            match found {
                Some(object) => event("row", &view::row(object)),
                None => event("gone", &json!({"namespace": namespace, "name": name})),
            }
        })
        .collect()
}

/// One rollout: `detail` and `watched` at first and on every change.
pub(super) async fn one(
    State(visit): State<Visit>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let place = match place(&visit.dashboard) {
        Ok(place) => place,
        Err(refused) => return *refused,
    };
    if let Err(refused) = visit.reader(&headers, &namespace).await {
        return *refused;
    }
    let dashboard = visit.dashboard;
    let changes = dashboard.inner.changes.subscribe();
    let Some(object) = dashboard.find(&namespace, &name) else { return missing(&namespace, &name) };
    let first = vec![
        event("detail", &view::detail(&object)),
        event("watched", &view::watched(&object, &dashboard.inner.ticks)),
    ];
    let rest =
        stream::unfold((changes, dashboard, namespace, name), |(mut changes, dashboard, namespace, name)| async {
            let batch = batch(&mut changes).await?;
            let about = |tick| match &batch {
                Batch::Changes(changes) => changes.contains(&(namespace.clone(), name.clone(), tick)),
                Batch::Lost => true,
            };
            let mut events = Vec::new();
            match dashboard.find(&namespace, &name) {
                Some(object) => {
                    if about(false) {
                        events.push(event("detail", &view::detail(&object)));
                    }
                    if about(true) {
                        events.push(event("watched", &view::watched(&object, &dashboard.inner.ticks)));
                    }
                }
                None if about(false) => events.push(event("gone", &json!({"namespace": namespace, "name": name}))),
                None => {}
            }
            Some((events, (changes, dashboard, namespace, name)))
        });
    answer(place, first, rest)
}
