//! The public port: OpenAI's API, health, metrics.

use super::account::{ErrorClass, Ticket};
use super::error::ApiError;
use super::follow::{Answer, End, Piece};
use super::openai::{self, Ask, Kind};
use super::split;
use super::stream;
use super::worker::{Loaded, NotReady, Worker};
use crate::engine::{Class, Job, Work};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bitnet_api::worker::{FEEDBACK_PATH, REVISION_HEADER};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes of a request's body.
const MAX_BODY: usize = 1 << 20;
/// A client must send its body within this time.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Bodies above this size are parsed and tokenised off the threads that serve connections.
const SMALL_BODY: usize = 16 << 10;

/// Routes of the public port.
pub fn router(worker: Arc<Worker>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/models", get(models))
        .route(FEEDBACK_PATH, post(split::feedback))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(|| async { ApiError::http(StatusCode::NOT_FOUND, "not_found", "there is no such path here") })
        .method_not_allowed_fallback(|| async {
            ApiError::http(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path takes another method")
        })
        .layer(from_fn_with_state(Arc::clone(&worker), split::keep))
        .layer(from_fn_with_state(Arc::clone(&worker), sign))
        .with_state(worker)
}

/// Every answer says which revision gave it (one that was passed on says so already); while the worker drains, also that the connection ends with it, so that
/// proxies do not keep it for a next request.
async fn sign(State(worker): State<Arc<Worker>>, request: Request, next: Next) -> Response {
    let version = request.version();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(revision) = HeaderValue::from_str(&worker.settings.revision) {
        headers.entry(HeaderName::from_static(REVISION_HEADER)).or_insert(revision);
    }
    if worker.is_draining() && version <= Version::HTTP_11 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn completions(State(worker): State<Arc<Worker>>, body: Body) -> Response {
    answer(&worker, Kind::Completion, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn chat_completions(State(worker): State<Arc<Worker>>, body: Body) -> Response {
    answer(&worker, Kind::Chat, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(worker: &Arc<Worker>, kind: Kind, body: Body) -> Result<Response, ApiError> {
    let body = read(body).await?;
    // The clock starts when the request is complete: a slow client is not a slow model.
    let arrival = Instant::now();
    let Some(loaded) = worker.loaded() else {
        worker.account.start(arrival).fail(ErrorClass::Server);
        return Err(ApiError::unavailable(NotReady::Loading.text()));
    };
    let ask = parse(worker, loaded, kind, body).await?;
    let mut ticket = worker.account.start(arrival);
    ticket.set_prompt(ask.prompt.len());
    let stream = ask.stream;
    let reply = Reply::new(worker, &ask);
    let mut answer = submit(worker, loaded, ask, ticket, arrival)?;
    if stream {
        // The status line waits for the first token: until then a failure can still have its own status.
        let first = answer.next().await;
        if let Piece::Failed(error) = first {
            return Err(error);
        }
        answer.begin();
        return Ok(stream::response(reply, first, answer));
    }
    let mut text = String::new();
    loop {
        match answer.next().await {
            Piece::Text(more) => text.push_str(&more),
            Piece::End(end) => return Ok(Json(reply.whole(&text, end)).into_response()),
            Piece::Failed(error) => return Err(error),
        }
    }
}

pub(super) async fn read(body: Body) -> Result<Bytes, ApiError> {
    let reading = axum::body::to_bytes(body, MAX_BODY);
    match tokio::time::timeout(BODY_TIME, reading).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // The other cause is a connection that broke, where nobody reads the answer.
        Ok(Err(_)) => {
            let message = format!("the body is larger than {MAX_BODY} bytes; send a shorter prompt");
            Err(ApiError::http(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {BODY_TIME:?}");
            Err(ApiError::http(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
        }
    }
}

async fn parse(worker: &Arc<Worker>, loaded: &Loaded, kind: Kind, body: Bytes) -> Result<Ask, ApiError> {
    if body.len() <= SMALL_BODY {
        return openai::parse(kind, &body, &loaded.text, loaded.limits());
    }
    let (text, limits) = (loaded.text.clone(), loaded.limits());
    let parsing = tokio::task::spawn_blocking(move || openai::parse(kind, &body, &text, limits));
    parsing.await.unwrap_or_else(|_| {
        worker.account.start(Instant::now()).fail(ErrorClass::Server);
        Err(ApiError::internal("tokenizer_failed", "the request could not be read"))
    })
}

fn submit(worker: &Worker, loaded: &Loaded, ask: Ask, ticket: Ticket, arrival: Instant) -> Result<Answer, ApiError> {
    let Ask { prompt, max_tokens, sampling, stops, .. } = ask;
    let work = Work::Generate { max_tokens, sampling, stop: loaded.identity.eos.clone() };
    let (job, events) = Job::new(Class::Live, prompt, work, arrival);
    if let Err(refused) = loaded.engine.submit(job) {
        let (error, class) = ApiError::refused(refused);
        ticket.fail(class);
        return Err(error);
    }
    let limit = worker.settings.request_timeout;
    Ok(Answer::new(events, arrival, limit, loaded.text.stream(), stops, ticket))
}

/// The fields that all objects of one answer share.
pub(super) struct Reply {
    id: String,
    created: u64,
    model: String,
    kind: Kind,
    prompt_tokens: usize,
    pub(super) include_usage: bool,
}

impl Reply {
    fn new(worker: &Worker, ask: &Ask) -> Self {
        let prefix = if ask.kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: worker.answer_id(prefix),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            model: worker.model_name.clone(),
            kind: ask.kind,
            prompt_tokens: ask.prompt.len(),
            include_usage: ask.include_usage,
        }
    }

    fn object(&self, chunk: bool, choices: &Value) -> Value {
        let object = match (self.kind, chunk) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    fn usage(&self, end: End) -> Value {
        let (prompt, answer) = (self.prompt_tokens, end.tokens);
        json!({"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer})
    }

    fn whole(&self, text: &str, end: End) -> Value {
        let reason = end.finish.reason();
        let choice = match self.kind {
            Kind::Completion => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason}),
            Kind::Chat => json!({
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": null,
                "finish_reason": reason,
            }),
        };
        let mut object = self.object(false, &json!([choice]));
        object["usage"] = self.usage(end);
        object
    }

    /// The chunk that opens a chat's stream.
    pub(super) fn role_chunk(&self) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| self.chunk(&json!({"role": "assistant", "content": ""}), "", None))
    }

    pub(super) fn text_chunk(&self, text: &str) -> Value {
        self.chunk(&json!({"content": text}), text, None)
    }

    pub(super) fn end_chunk(&self, end: End) -> Value {
        self.chunk(&json!({}), "", Some(end))
    }

    pub(super) fn usage_chunk(&self, end: End) -> Value {
        let mut object = self.object(true, &json!([]));
        object["usage"] = self.usage(end);
        object
    }

    fn chunk(&self, delta: &Value, text: &str, end: Option<End>) -> Value {
        let reason = end.map(|end| end.finish.reason());
        let choice = match self.kind {
            Kind::Completion => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason}),
            Kind::Chat => json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}),
        };
        let mut object = self.object(true, &json!([choice]));
        if self.include_usage {
            object["usage"] = Value::Null;
        }
        object
    }
}

async fn models(State(worker): State<Arc<Worker>>) -> Json<Value> {
    let context = worker.loaded().map(|loaded| loaded.identity.context);
    let model = json!({
        "id": worker.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "bitnet-rollouts",
        "max_model_len": context,
    });
    Json(json!({"object": "list", "data": [model]}))
}

async fn livez(State(worker): State<Arc<Worker>>) -> Response {
    health(worker.live())
}

async fn readyz(State(worker): State<Arc<Worker>>) -> Response {
    health(worker.ready())
}

fn health(state: Result<(), NotReady>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reason.text())).into_response(),
    }
}

async fn metrics(State(worker): State<Arc<Worker>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let loaded = worker.loaded();
    let room = loaded.map_or(1, |l| l.identity.context as usize * worker.settings.engine.max_batch);
    match worker.account.metrics().render(loaded.map(|l| &l.engine), room) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => ApiError::internal("metrics_failed", "the metrics could not be written").into_response(),
    }
}
