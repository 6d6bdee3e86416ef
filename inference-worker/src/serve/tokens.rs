//! `/tokenize` and `/detokenize`, in the forms of vLLM and of llama-server.

use super::error::ApiError;
use super::openai::{self, Limits};
use super::public::{read, time};
use super::worker::{NotReady, Worker};
use crate::model::Text;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// A text in tokens. Written where it is read: a million numbers are no work for the threads that serve connections.
#[derive(Serialize)]
struct Counted {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
}

/// A text of tokens, under the names of both servers.
#[derive(Serialize)]
struct Said {
    prompt: String,
    content: String,
}

pub(super) async fn tokenize(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    run(&worker, &headers, body, |body, text, limits| {
        let tokens = openai::tokenize(body, text)?;
        Ok(Counted { count: tokens.len(), max_model_len: limits.context, tokens })
    })
    .await
}

pub(super) async fn detokenize(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    run(&worker, &headers, body, |body, text, limits| {
        let prompt = openai::detokenize(body, text, limits)?;
        Ok(Said { content: prompt.clone(), prompt })
    })
    .await
}

/// Reads a body and works on it, as the endpoints of completions do. Nothing here asks for an answer of the model, so
/// nothing is counted.
async fn run<T: Serialize>(
    worker: &Worker,
    headers: &HeaderMap,
    body: Body,
    work: impl FnOnce(&[u8], &Text, Limits) -> Result<T, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let room = worker.desk.room(&body)?;
    let body = read(body).await?;
    let loaded = worker.loaded().ok_or_else(|| ApiError::unavailable(NotReady::Loading.text()))?;
    let time = time(headers, Instant::now(), worker.settings.request_timeout)?;
    let (text, limits, bytes) = (loaded.text.clone(), loaded.limits(), body.len());
    let working = worker.desk.run(bytes, &time, move || {
        let _room = room;
        work(&body, &text, limits).map(|found| Json(found).into_response())
    });
    working.await.map_err(|unread| unread.answer(&time).0)?
}
