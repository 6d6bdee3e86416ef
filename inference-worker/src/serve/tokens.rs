//! `/tokenize` and `/detokenize`, in the forms of vLLM and of llama-server.

use super::error::ApiError;
use super::openai;
use super::public::{read, time};
use super::worker::{Loaded, NotReady, Worker};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

pub(super) async fn tokenize(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let (context, tokens) = run(&worker, &headers, body, |body, loaded| {
        let (text, limits) = (loaded.text.clone(), loaded.limits());
        move || openai::tokenize(&body, &text).map(|tokens| (limits.context, tokens))
    })
    .await?;
    Ok(Json(json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens})))
}

pub(super) async fn detokenize(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let said = run(&worker, &headers, body, |body, loaded| {
        let (text, limits) = (loaded.text.clone(), loaded.limits());
        move || openai::detokenize(&body, &text, limits)
    })
    .await?;
    Ok(Json(json!({"prompt": said, "content": said})))
}

/// Reads a body and works on it, as the endpoints of completions do. Nothing here asks for an answer of the model, so
/// nothing is counted.
async fn run<T, W>(
    worker: &Worker,
    headers: &HeaderMap,
    body: Body,
    work: impl FnOnce(Bytes, &Loaded) -> W,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    let body = read(body).await?;
    let loaded = worker.loaded().ok_or_else(|| ApiError::unavailable(NotReady::Loading.text()))?;
    let time = time(headers, Instant::now(), worker.settings.request_timeout)?;
    let bytes = body.len();
    worker.desk.run(bytes, &time, work(body, loaded)).await.map_err(|unread| unread.answer(&time).0)?
}
