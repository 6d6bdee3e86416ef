//! `/tokenize` and `/detokenize`, in the forms of vLLM and of llama-server.

use super::error::ApiError;
use super::openai;
use super::public::{off_thread, read};
use super::worker::{NotReady, Worker};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn tokenize(State(worker): State<Arc<Worker>>, body: Body) -> Result<Json<Value>, ApiError> {
    let body = read(body).await?;
    let loaded = worker.loaded().ok_or_else(|| ApiError::unavailable(NotReady::Loading.text()))?;
    let (text, limits) = (loaded.text.clone(), loaded.limits());
    let tokens = off_thread(body.len(), move || openai::tokenize(&body, &text)).await??;
    Ok(Json(json!({"count": tokens.len(), "max_model_len": limits.context, "tokens": tokens})))
}

pub(super) async fn detokenize(State(worker): State<Arc<Worker>>, body: Body) -> Result<Json<Value>, ApiError> {
    let body = read(body).await?;
    let loaded = worker.loaded().ok_or_else(|| ApiError::unavailable(NotReady::Loading.text()))?;
    let (text, limits) = (loaded.text.clone(), loaded.limits());
    let said = off_thread(body.len(), move || openai::detokenize(&body, &text, limits)).await??;
    Ok(Json(json!({"prompt": said, "content": said})))
}
