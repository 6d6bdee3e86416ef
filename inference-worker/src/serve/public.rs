//! The public port: OpenAI's API, health, metrics.

use super::account::{ErrorClass, Ticket};
use super::error::ApiError;
use super::follow::{Answer, Failed, Piece, Time};
use super::openai::{self, Ask, Kind};
use super::reply::Reply;
use super::split;
use super::tiers::{TIER_HEADER, Tiers, tier};
use super::worker::{Loaded, NotReady, Worker};
use super::{body, parsing, stream, tokens};
use crate::engine::{Class, Grammar, Job, Sampling, Work};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bitnet_api::exposition::Exposition;
use bitnet_api::worker::{FEEDBACK_PATH, REVISION_HEADER};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A client may ask for an answer within fewer milliseconds than this server allows.
pub const TIME_HEADER: &str = "x-request-timeout-ms";
/// A gateway's id of a request; its hash decides whether the prompt is shadowed. No other header plays a part in that.
pub(super) const ID_HEADER: &str = "x-request-id";
/// Bytes of a request's body.
pub(super) const MAX_BODY: usize = 1 << 20;
/// A client must send its body within this time.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Routes of the public port.
pub fn router(worker: Arc<Worker>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route(FEEDBACK_PATH, post(split::feedback))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/health", get(llama_health))
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

/// Every answer says which revision and which tier gave it (what another pod or the next tier answered says so already);
/// while the worker drains, also that the connection ends with it, so that proxies do not keep it for a next request.
async fn sign(State(worker): State<Arc<Worker>>, request: Request, next: Next) -> Response {
    let version = request.version();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(revision) = HeaderValue::from_str(&worker.settings.revision) {
        headers.entry(HeaderName::from_static(REVISION_HEADER)).or_insert(revision);
    }
    if let Some(loaded) = worker.loaded()
        && !headers.contains_key(TIER_HEADER)
    {
        headers.insert(TIER_HEADER, HeaderValue::from_static(tier(&loaded.identity.precision)));
    }
    if worker.is_draining() && version <= Version::HTTP_11 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn completions(State(worker): State<Arc<Worker>>, headers: HeaderMap, body: Body) -> Response {
    answer(&worker, Kind::Completion, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn chat_completions(State(worker): State<Arc<Worker>>, headers: HeaderMap, body: Body) -> Response {
    answer(&worker, Kind::Chat, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(worker: &Arc<Worker>, kind: Kind, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    // Until the answer is on its way: the next tier may be sent the body.
    let _room = worker.desk.room(&body)?;
    let body = read(body).await?;
    // The clock starts when the request is complete: a slow client is not a slow model.
    let arrival = Instant::now();
    let Some(loaded) = worker.loaded() else {
        worker.account.start(arrival).fail(ErrorClass::Server);
        return Err(ApiError::unavailable(NotReady::Loading.text()));
    };
    let mut time = time(headers, arrival, worker.settings.request_timeout)?;
    let bytes = body.len();
    let ask = parse(worker, loaded, kind, body.clone(), &time).await?;
    fits(&ask, worker.settings.engine.queue)?;
    let grammar = grammar(worker, loaded, &ask, bytes, &time).await?;
    let tiers = Tiers::new(worker, loaded, headers, kind.path(), body, ask.stream, arrival)?;
    if tiers.is_elsewhere() {
        return tiers.asked_for().await;
    }
    time.first = tiers.first_token();
    let mut ticket = worker.account.start(arrival);
    ticket.set_prompt(ask.prompts.iter().map(Vec::len).sum());
    if tiers.may_hand_on() {
        ticket.defer();
    }
    let stream = ask.stream;
    let mut reply = Reply::new(worker, &ask, &loaded.text);
    let id = headers.get(ID_HEADER).map_or(reply.id().as_bytes(), HeaderValue::as_bytes);
    let chosen = loaded.shadow.choose(id, &ask.prompts[0]);
    let mut answer = match submit(loaded, ask, grammar, ticket, time, tiers.doubts()) {
        Ok(answer) => {
            if let Some(chosen) = chosen {
                chosen.start();
            }
            answer
        }
        Err(refused) => {
            let (ticket, failed) = *refused;
            let outcome = tiers.take_over(&failed).await;
            ticket.fail(if outcome.is_some() { ErrorClass::Fallback } else { failed.class });
            return outcome.ok_or(failed.error);
        }
    };
    let mut pieces = Vec::new();
    let mut trusted = !tiers.doubts();
    loop {
        match open(&mut answer, &mut pieces, stream, &tiers, trusted).await {
            Opening::Trusted => break,
            // The engine goes on meanwhile: if nobody takes over, nothing was lost.
            Opening::Doubted => match tiers.escalate().await {
                Some(response) => {
                    answer.hand_on();
                    return Ok(response);
                }
                None => trusted = true,
            },
            Opening::Failed(Failed { error, class }) => {
                let failed = class.map(|class| Refusal { error: error.clone(), class });
                let outcome = match &failed {
                    Some(failed) => tiers.take_over(failed).await,
                    None => None,
                };
                answer.close(if outcome.is_some() { Some(ErrorClass::Fallback) } else { class });
                return outcome.ok_or(error);
            }
        }
    }
    answer.begin();
    if stream {
        return Ok(stream::response(reply, pieces, answer));
    }
    let mut usage = None;
    for piece in pieces {
        match piece {
            Piece::Text { choice, text, said } => reply.write(choice, &text, &said, None),
            Piece::End { choice, finish, said } => reply.write(choice, "", &said, Some(finish)),
            Piece::Done(all) => usage = Some(all),
            Piece::Failed(failed) => return Err(failed.error),
        }
    }
    let incomplete = || ApiError::internal("incomplete", "the answer has no end");
    Ok(Json(reply.whole(usage.ok_or_else(incomplete)?)).into_response())
}

/// What is known before the first byte.
enum Opening {
    /// The answer goes out.
    Trusted,
    /// The model is not sure of it.
    Doubted,
    /// There is none.
    Failed(Failed),
}

/// Collects the pieces that must be there before the first byte: of a stream its first one, of an object all; and
/// enough tokens to know whether the model is sure.
async fn open(
    answer: &mut Answer,
    pieces: &mut Vec<Piece>,
    stream: bool,
    tiers: &Tiers<'_>,
    mut trusted: bool,
) -> Opening {
    loop {
        if !trusted && let Some(opening) = answer.opening() {
            if tiers.doubt(&opening) {
                return Opening::Doubted;
            }
            trusted = true;
        }
        let complete = matches!(pieces.last(), Some(Piece::Done(_)));
        if trusted && (complete || stream && !pieces.is_empty()) {
            return Opening::Trusted;
        }
        match answer.next().await {
            Piece::Failed(failed) => return Opening::Failed(failed),
            piece => pieces.push(piece),
        }
    }
}

/// The server's limit, or a shorter one that the client asks for.
pub(super) fn time(headers: &HeaderMap, arrival: Instant, limit: Duration) -> Result<Time, ApiError> {
    let Some(asked) = headers.get(TIME_HEADER) else {
        return Ok(Time { arrival, limit, first: None, by_client: false });
    };
    let milliseconds = asked.to_str().ok().and_then(|text| text.parse().ok()).filter(|n| *n > 0);
    let Some(asked) = milliseconds.map(Duration::from_millis) else {
        let message = format!("the header `{TIME_HEADER}` must be a whole number of milliseconds above 0");
        return Err(ApiError::invalid(TIME_HEADER, message));
    };
    Ok(Time { arrival, limit: asked.min(limit), first: None, by_client: asked < limit })
}

pub(super) async fn read(body: Body) -> Result<Bytes, ApiError> {
    body::read(body, MAX_BODY, BODY_TIME).await.map_err(|unread| match unread {
        body::Unread::TooLarge => {
            let message = format!("the body is larger than {MAX_BODY} bytes; send a shorter prompt");
            ApiError::http(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
        }
        body::Unread::TooSlow => {
            let message = format!("the body did not arrive within {BODY_TIME:?}; send it at once");
            ApiError::http(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message)
        }
        body::Unread::Broken => {
            let message = "the body ended early or its chunks are not framed as HTTP says; send it again";
            ApiError::http(StatusCode::BAD_REQUEST, "bad_body", message)
        }
    })
}

async fn parse(worker: &Arc<Worker>, loaded: &Loaded, kind: Kind, body: Bytes, time: &Time) -> Result<Ask, ApiError> {
    let (text, limits) = (loaded.text.clone(), loaded.limits());
    let parsed = worker.desk.run(body.len(), time, move || openai::parse(kind, &body, &text, limits)).await;
    let (error, class) = match parsed {
        Ok(Ok(ask)) => return Ok(ask),
        Ok(Err(error)) => {
            let class = error.is_ours().then_some(ErrorClass::Server);
            (error, class)
        }
        Err(unread) => unread.answer(time),
    };
    if let Some(class) = class {
        worker.account.start(time.arrival).fail(class);
    }
    Err(error)
}

/// The form that the answer must have, where one is asked for. One that is not compiled in time is the client's, as one
/// that outgrows its limits later.
async fn grammar(
    worker: &Arc<Worker>,
    loaded: &Loaded,
    ask: &Ask,
    bytes: usize,
    time: &Time,
) -> Result<Option<Grammar>, ApiError> {
    let Some(form) = ask.form.clone() else { return Ok(None) };
    let grammars = Arc::clone(&loaded.grammars);
    let compiled = match worker.desk.run(bytes, time, move || grammars.compile(&form)).await {
        Ok(compiled) => compiled,
        Err(parsing::Unread::Late) => {
            let message = format!("the schema was not compiled within {:?}; ask for a simpler one", time.limit);
            return Err(ApiError::deadline(message));
        }
        Err(unread) => {
            let (error, class) = unread.answer(time);
            if let Some(class) = class {
                worker.account.start(time.arrival).fail(class);
            }
            return Err(error);
        }
    };
    compiled.map(Some).map_err(|error| ApiError::invalid("response_format", error.to_string()))
}

/// What can never be queued is not worth trying again.
fn fits(ask: &Ask, queue: usize) -> Result<(), ApiError> {
    let (prompts, n) = (ask.prompts.len(), ask.choices);
    if prompts * n <= queue {
        return Ok(());
    }
    let param = if prompts > 1 { "prompt" } else { "n" };
    let message = format!(
        "`n` is {n} for each of {prompts} prompts, and the queue (--queue) has {queue} places; ask for at most {queue} answers at once"
    );
    Err(ApiError::invalid(param, message))
}

/// A job that was not taken, or whose answer failed.
pub(super) struct Refusal {
    pub(super) error: ApiError,
    pub(super) class: ErrorClass,
}

fn submit(
    loaded: &Loaded,
    ask: Ask,
    mut grammar: Option<Grammar>,
    ticket: Ticket,
    time: Time,
    doubts: bool,
) -> Result<Answer, Box<(Ticket, Refusal)>> {
    let Ask { prompts, max_tokens, sampling, processors, stops, special, choices, .. } = ask;
    let likelihood = ask.likelihood.or(doubts.then_some(0));
    let mut stop = if stops.ignore_eos { Vec::new() } else { loaded.identity.eos.clone() };
    stop.extend(&stops.ids);
    let all = prompts.len() * choices;
    let (mut jobs, mut events) = (Vec::with_capacity(all), Vec::with_capacity(all));
    for choice in 0..all {
        let prompt = &prompts[choice / choices];
        // Choices of one seed differ, and each repeats.
        let seed = sampling.seed.map(|seed| seed.wrapping_add((choice % choices) as u64));
        // A copy costs as much as the grammar has states; the last choice needs none.
        let grammar = if choice + 1 == all { grammar.take() } else { grammar.clone() };
        let (sampling, grammar) = (Sampling { seed, ..sampling }, grammar.map(Box::new));
        let (stop, processors) = (stop.clone(), processors.clone().map(Box::new));
        let work = Work::Generate { max_tokens, sampling, stop, likelihood, grammar, processors };
        let (job, receiver) = Job::new(Class::Live, prompt.clone(), work, time.arrival);
        jobs.push(job);
        events.push((receiver, loaded.text.stream_after(prompt, special)));
    }
    if let Err(refused) = loaded.engine.submit_all(jobs) {
        let (error, class) = ApiError::refused(refused, loaded.engine.slot_gap());
        return Err(Box::new((ticket, Refusal { error, class })));
    }
    Ok(Answer::new(events, choices, time, &stops, ticket))
}

async fn models(State(worker): State<Arc<Worker>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&worker)]}))
}

async fn model(State(worker): State<Arc<Worker>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    if id == worker.model_name {
        return Ok(Json(card(&worker)));
    }
    let message = format!("there is no such model here; ask for `{}`", worker.model_name);
    Err(ApiError::http(StatusCode::NOT_FOUND, "model_not_found", message))
}

fn card(worker: &Worker) -> Value {
    json!({
        "id": worker.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "bitnet-rollouts",
        "max_model_len": worker.loaded().map(|loaded| loaded.identity.context),
    })
}

async fn livez(State(worker): State<Arc<Worker>>) -> Response {
    health(worker.live())
}

async fn readyz(State(worker): State<Arc<Worker>>) -> Response {
    health(worker.ready())
}

/// Health as llama-server says it.
async fn llama_health(State(worker): State<Arc<Worker>>) -> Response {
    match worker.ready() {
        Ok(()) => Json(json!({"status": "ok"})).into_response(),
        Err(reason) => {
            let error = json!({"code": 503, "message": reason.text(), "type": "unavailable_error"});
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": error}))).into_response()
        }
    }
}

fn health(state: Result<(), NotReady>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reason.text())).into_response(),
    }
}

async fn metrics(State(worker): State<Arc<Worker>>, headers: HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Exposition::asked(accept);
    let loaded = worker.loaded();
    let room = loaded.map_or(1, |l| l.identity.context as usize * worker.settings.engine.max_batch);
    let shadow = loaded.map(|l| l.shadow.report());
    match worker.account.metrics().render(loaded.map(|l| &l.engine), room, shadow.as_ref()) {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], format.text(text)).into_response(),
        Err(_) => ApiError::internal("metrics_failed", "the metrics could not be written").into_response(),
    }
}
