//! The internal port, for the operator and for peers: JSON unless said otherwise, bounded bodies, no field that names
//! a place to call.

use super::body;
use super::error::InternalError;
use super::worker::{Loaded, NotReady, Worker};
use crate::compare::{StartRefused, Stored, halves};
use crate::engine::{AskError, Refused};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bitnet_api::worker::{
    COMPARE_PATH, COUNTERS_PATH, CompareRequest, CompareResult, Counters, GENERATE_PATH, GenerateRequest,
    GenerateResult, IDENTITY_PATH, Identity, SCORE_PATH, SHADOW_PATH, ScoreRequest, ShadowRequest, ShadowResult,
};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a request's body: the longest is a context of token ids.
const MAX_BODY: usize = 2 << 20;
const BODY_TIME: Duration = Duration::from_secs(10);
/// Most positions of one score, as the wire type says.
const MAX_POSITIONS: usize = 64;
/// Most tokens of one continuation, as the wire type says.
const MAX_TOKENS: u32 = 512;
/// A peer waits 30 seconds; nobody needs the work after that.
const WORK_TIME: Duration = Duration::from_secs(30);

/// Routes of the internal port.
pub fn router(worker: Arc<Worker>) -> Router {
    Router::new()
        .route(IDENTITY_PATH, get(identity))
        .route(COUNTERS_PATH, get(counters))
        .route(COMPARE_PATH, post(start_compare))
        .route(&format!("{COMPARE_PATH}/{{key}}"), get(compare_result))
        .route(SCORE_PATH, post(score))
        .route(SHADOW_PATH, post(shadow))
        .route(GENERATE_PATH, post(generate))
        .fallback(|| async { InternalError::new(StatusCode::NOT_FOUND, "notFound", "there is no such path here") })
        .method_not_allowed_fallback(|| async {
            InternalError::new(StatusCode::METHOD_NOT_ALLOWED, "methodNotAllowed", "this path takes another method")
        })
        .with_state(worker)
}

type Answer<T> = Result<T, InternalError>;

async fn identity(State(worker): State<Arc<Worker>>) -> Answer<Json<Identity>> {
    Ok(Json(loaded(&worker)?.identity.clone()))
}

async fn counters(State(worker): State<Arc<Worker>>) -> Json<Counters> {
    Json(Counters { users: worker.users.counts(), ..worker.account.counters(worker.busy_seconds()) })
}

async fn start_compare(State(worker): State<Arc<Worker>>, body: Body) -> Answer<StatusCode> {
    let request: CompareRequest = read(body).await?;
    match loaded(&worker)?.comparer.start(request) {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(StartRefused::Invalid(why)) => Err(InternalError::invalid(why.to_string())),
        Err(StartRefused::Running(key)) => Err(InternalError::busy(&key)),
    }
}

async fn compare_result(State(worker): State<Arc<Worker>>, Path(key): Path<String>) -> Answer<Response> {
    match loaded(&worker)?.comparer.result(&key) {
        Stored::Done(result) => Ok(Json::<CompareResult>(CompareResult::clone(&result)).into_response()),
        Stored::Running => Ok(StatusCode::ACCEPTED.into_response()),
        Stored::Unknown => {
            let message = "no comparison of this key runs here or is kept; post it (again)";
            Err(InternalError::new(StatusCode::NOT_FOUND, "unknownKey", message))
        }
    }
}

async fn shadow(State(worker): State<Arc<Worker>>, body: Body) -> Answer<Json<ShadowResult>> {
    let request: ShadowRequest = read(body).await?;
    loaded(&worker)?.shadow.allow(request).map(Json).map_err(|why| InternalError::invalid(why.to_string()))
}

async fn score(State(worker): State<Arc<Worker>>, body: Body) -> Answer<Response> {
    let ScoreRequest { tokens, positions, background } = read(body).await?;
    let loaded = loaded(&worker)?;
    check_tokens("tokens", &tokens, loaded, 0)?;
    if positions.is_empty() || positions.len() > MAX_POSITIONS {
        return Err(InternalError::invalid(format!("`positions` must have 1 to {MAX_POSITIONS} entries")));
    }
    if let Some(p) = positions.iter().find(|p| **p as usize >= tokens.len()) {
        let message = format!("`positions` has {p}, but there are {} tokens; each must be below that", tokens.len());
        return Err(InternalError::invalid(message));
    }
    let engine = if background { loaded.engine.background() } else { loaded.engine.clone() };
    let scores = engine.score(tokens, positions, WORK_TIME).await.map_err(|error| unanswered(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], halves::encode(&scores)).into_response())
}

async fn generate(State(worker): State<Arc<Worker>>, body: Body) -> Answer<Json<GenerateResult>> {
    let GenerateRequest { prompt, tokens, forced, cached, background } = read(body).await?;
    let loaded = loaded(&worker)?;
    if !(1..=MAX_TOKENS).contains(&tokens) {
        return Err(InternalError::invalid(format!("`tokens` must be from 1 to {MAX_TOKENS}")));
    }
    check_tokens("prompt", &prompt, loaded, tokens as usize)?;
    // What background work asks for is a user's: nothing of it is kept.
    let cached = cached && !forced && !background;
    let engine = if background { loaded.engine.background() } else { loaded.engine.clone() };
    if cached && let Some(tokens) = loaded.continuations.get(&prompt, tokens) {
        return Ok(Json(result(&worker, tokens, 0.0, 0.0, false, 0)));
    }
    let stop = if forced { Vec::new() } else { loaded.identity.eos.clone() };
    let asked = if cached { prompt.clone() } else { Vec::new() };
    let done = engine.generate(prompt, tokens as usize, stop, WORK_TIME).await.map_err(|error| unanswered(&error))?;
    if cached && done.non_finite == 0 {
        loaded.continuations.put(&asked, tokens, done.tokens.clone());
    }
    Ok(Json(result(&worker, done.tokens, done.ttft, done.tpot, done.alone, done.non_finite)))
}

/// A continuation from the cache has no times and was not alone: it says nothing about latency.
fn result(worker: &Worker, tokens: Vec<u32>, ttft: f64, tpot: f64, alone: bool, non_finite: u64) -> GenerateResult {
    let (busy_seconds, process) = (worker.busy_seconds(), worker.account.process().to_owned());
    GenerateResult { tokens, ttft, tpot, alone, busy_seconds, process, non_finite }
}

fn loaded(worker: &Worker) -> Answer<&Loaded> {
    worker
        .loaded()
        .ok_or_else(|| InternalError::new(StatusCode::SERVICE_UNAVAILABLE, "loading", NotReady::Loading.text()))
}

async fn read<T: DeserializeOwned>(body: Body) -> Answer<T> {
    let bytes = body::read(body, MAX_BODY, BODY_TIME).await.map_err(|unread| match unread {
        body::Unread::TooLarge => {
            let message = format!("the body is larger than {MAX_BODY} bytes");
            InternalError::new(StatusCode::PAYLOAD_TOO_LARGE, "bodyTooLarge", message)
        }
        body::Unread::TooSlow => {
            let message = format!("the body did not arrive within {BODY_TIME:?}");
            InternalError::new(StatusCode::REQUEST_TIMEOUT, "bodyTooSlow", message)
        }
        body::Unread::Broken => {
            let message = "the body ended early or its chunks are not framed as HTTP says; send it again";
            InternalError::new(StatusCode::BAD_REQUEST, "badBody", message)
        }
    })?;
    serde_json::from_slice(&bytes).map_err(|error| InternalError::invalid(format!("the body is not valid: {error}")))
}

fn check_tokens(name: &str, tokens: &[u32], loaded: &Loaded, room: usize) -> Answer<()> {
    let limits = loaded.limits();
    if tokens.is_empty() || tokens.len() + room > limits.context {
        let message = format!(
            "`{name}` has {} tokens and {room} are to follow; together they must be 1 to {}, the context",
            tokens.len(),
            limits.context
        );
        return Err(InternalError::invalid(message));
    }
    if let Some(id) = tokens.iter().find(|id| **id as usize >= limits.vocabulary) {
        let message = format!("`{name}` has the id {id}, but the vocabulary has {} ids", limits.vocabulary);
        return Err(InternalError::invalid(message));
    }
    Ok(())
}

fn unanswered(error: &AskError) -> InternalError {
    let (status, code) = match error {
        _ if error.is_busy() => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        AskError::Refused(Refused::Full | Refused::Busy) => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
        AskError::Refused(Refused::Stopped) | AskError::Died => (StatusCode::SERVICE_UNAVAILABLE, "engineStopped"),
        AskError::Deadline(_) => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
        AskError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "engineFailed"),
    };
    InternalError::new(status, code, error.to_string())
}
