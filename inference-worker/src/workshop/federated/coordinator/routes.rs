//! What clients ask of a coordinator, over HTTP.

use super::Inner;
use crate::workshop::WorkshopError;
use crate::workshop::federated::http::Refusal;
use crate::workshop::federated::masters;
use crate::workshop::federated::protocol::{JOIN, Join, MODEL, MOST_JSON, NOW, Now, Plan, UPDATE, is_name};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State as Shared};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::sync::Arc;
use std::time::Duration;

/// Bodies that do not come are not waited for longer.
const BODY_TIME: Duration = Duration::from_mins(2);

pub(super) fn failed(error: WorkshopError) -> Refusal {
    let text = format!("{:#}", anyhow::Error::new(error));
    tracing::error!(error = text, "an update could not be stored");
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the update could not be stored: send it again".to_owned())
}

pub(super) fn stranger(client: &str) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("{client} never joined: post to {JOIN} first"))
}

pub(super) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route(JOIN, post(join))
        .route(&format!("{NOW}/{{client}}"), get(now))
        .route(&format!("{MODEL}/{{round}}"), get(model))
        .route(&format!("{UPDATE}/{{round}}/{{client}}"), post(update))
        .fallback(|| async { Refusal(StatusCode::NOT_FOUND, "there is no such path here".to_owned()) })
        .layer(middleware::from_fn_with_state(Arc::clone(&inner), authorised))
        .with_state(inner)
}

/// Every path needs the token, also those that do not exist.
async fn authorised(Shared(inner): Shared<Arc<Inner>>, request: Request, next: Next) -> Response {
    if inner.settings.token.is_in(request.headers()) {
        return next.run(request).await;
    }
    let text = "the header Authorization must be `Bearer` and the coordinator's token: give both the same --token-file";
    Refusal(StatusCode::UNAUTHORIZED, text.to_owned()).into_response()
}

async fn read(body: Body, most: usize) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let text = format!("the body must be whole and have at most {most} bytes");
            Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Err(_) => Err(Refusal(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned())),
    }
}

async fn join(Shared(inner): Shared<Arc<Inner>>, body: Body) -> Result<Json<Plan>, Refusal> {
    let unprocessable = |text: String| Refusal(StatusCode::UNPROCESSABLE_ENTITY, text);
    let bytes = read(body, MOST_JSON).await?;
    let Join { client, samples, architecture } = serde_json::from_slice(&bytes)
        .map_err(|error| unprocessable(format!("the body is no request to join: {error}")))?;
    if !is_name(&client) {
        return Err(unprocessable(
            "client must be 1 to 63 lower-case letters, digits and inner hyphens: choose another --name".to_owned(),
        ));
    }
    if samples == 0 {
        return Err(unprocessable("samples must be at least 1: give this client some text".to_owned()));
    }
    if let Some((field, ours, theirs)) = inner.architecture.difference(&architecture) {
        tracing::warn!(client, field, ours, theirs, "a client with another model is refused");
        return Err(Refusal(
            StatusCode::CONFLICT,
            format!(
                "{field} of the model must be {ours} but is {theirs}: start this client with the coordinator's --model"
            ),
        ));
    }
    let mut running = inner.running();
    let mut next = running.state.clone();
    next.join(&client, samples);
    inner.store.save(&next).map_err(failed)?;
    running.state = next;
    tracing::info!(client, samples, "joined");
    Ok(Json(inner.settings.plan.clone()))
}

async fn now(Shared(inner): Shared<Arc<Inner>>, Path(client): Path<String>) -> Result<Json<Now>, Refusal> {
    let mut running = inner.running();
    if !running.state.clients.contains_key(&client) {
        return Err(stranger(&client));
    }
    let state = &mut running.state;
    let now = if state.done >= inner.settings.rules.rounds {
        Now::Done
    } else {
        if state.heard_of(&client) {
            tracing::info!(client, "is back");
        }
        let round = state.done;
        match state.expects(&client, round, &inner.settings.rules) {
            Ok(_) if !running.closing => Now::Train { round },
            _ => Now::Wait,
        }
    };
    if now == Now::Done {
        running.told.insert(client);
    }
    Ok(Json(now))
}

async fn model(Shared(inner): Shared<Arc<Inner>>, Path(round): Path<usize>) -> Result<Vec<u8>, Refusal> {
    let done = inner.running().state.done;
    if round != done || done >= inner.settings.rules.rounds {
        return Err(Refusal(StatusCode::CONFLICT, format!("round {} is not running: ask {NOW} what to do", round + 1)));
    }
    let read = tokio::task::spawn_blocking(move || inner.store.masters(round)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        // The round ended between the question and the answer, or the disk fails: the client asks again either way.
        _ => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, "the masters cannot be read now: ask again".to_owned())),
    }
}

async fn update(
    Shared(inner): Shared<Arc<Inner>>,
    Path((round, client)): Path<(usize, String)>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    // Before the body: it may be large.
    inner.expects(&client, round)?;
    let bytes = read(body, masters::most_bytes(&inner.first.shape)).await?;
    let _one = inner.upload.lock().await;
    let taking = Arc::clone(&inner);
    let name = client.clone();
    let taken = tokio::task::spawn_blocking(move || taking.take(&name, round, &bytes)).await;
    match taken {
        Ok(Ok(())) => {
            tracing::info!(client, round = round + 1, "delivered");
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(Err(refusal)) => {
            if refusal.0 == StatusCode::UNPROCESSABLE_ENTITY {
                tracing::warn!(client, round = round + 1, why = refusal.1, "an update is refused");
            }
            Err(refusal)
        }
        Err(_) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the update could not be checked".to_owned())),
    }
}
