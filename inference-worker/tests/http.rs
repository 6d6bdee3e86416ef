//! The public router, over sockets where a socket matters.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use bitnet_api::worker::{ErrorCounts, REVISION_HEADER};
use inference_worker::engine::Options;
use inference_worker::serve::{Stop, internal_router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{BREAKS, FALLS, Fake, Running, SLOW, WAITS, ask, client, counters, fake, object, text, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tower::ServiceExt;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn send(fake: &Fake, request: Request<Body>) -> Response {
    ask(&fake.worker, request).await
}

async fn raw(fake: &Fake, path: &str, body: impl Into<Body>) -> Response {
    send(fake, Request::post(path).body(body.into()).unwrap()).await
}

async fn post(fake: &Fake, path: &str, body: &Value) -> Response {
    raw(fake, path, body.to_string()).await
}

fn endless() -> Value {
    json!({"prompt": WAITS.to_string(), "max_tokens": 200})
}

/// Two requests that do not end, of which the first one has the only slot and the second one waits.
async fn crowd(fake: &Fake, running: &Running) -> [JoinHandle<reqwest::Result<reqwest::Response>>; 2] {
    let ask = || tokio::spawn(client().post(running.url(COMPLETIONS)).json(&endless()).send());
    let first = ask();
    until("the first one runs", || fake.engine.running() == 1).await;
    let second = ask();
    until("the second one waits", || fake.engine.waiting() == 1).await;
    [first, second]
}

/// The data of each event; the last one must be `[DONE]` where the stream is whole.
fn events(stream: &str) -> Vec<String> {
    let data = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.map(ToOwned::to_owned).collect()
}

fn chunks(stream: &str) -> Vec<Value> {
    let mut events = events(stream);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{stream}");
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let fake = fake("grüß dich", |_| ()).await;
    let response = post(&fake, COMPLETIONS, &json!({"prompt": "hi", "max_tokens": 100, "temperature": 0})).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[REVISION_HEADER], "chat-abcdefg234");
    let answer = object(response).await;
    assert_eq!(answer["object"], "text_completion");
    let id = answer["id"].as_str().unwrap();
    assert!(id.strip_prefix("cmpl-chat-abcdefg234-").is_some_and(|n| n.len() >= 8), "{id}");
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("grüß dich"), &json!("stop")));
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(2), &json!(11), &json!(13))
    );
    let short = object(post(&fake, COMPLETIONS, &json!({"prompt": [104, 105], "max_tokens": 2})).await).await;
    assert_eq!((&short["choices"][0]["text"], &short["choices"][0]["finish_reason"]), (&json!("gr"), &json!("length")));
    assert_ne!(short["id"], answer["id"]);
    let counted = counters(&fake).await;
    assert_eq!((counted.finished, counted.prompt_tokens, counted.generated_tokens), (2, 4, 13));
    assert_eq!((counted.ttft.total(), counted.tpot.total()), (2, 2));
    assert!(counted.busy_seconds > 0.0);
}

#[tokio::test]
async fn a_chat_goes_through_the_template() {
    let fake = fake("yes", |_| ()).await;
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]);
    let answer = object(post(&fake, CHAT, &json!({"messages": messages})).await).await;
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-chat-abcdefg234-"));
    assert_eq!(answer["choices"][0]["message"], json!({"role": "assistant", "content": "yes"}));
    assert_eq!(answer["usage"]["prompt_tokens"], "<system>s\n<user>ab\n<assistant>".len());
}

#[tokio::test]
async fn a_chat_stream_begins_with_its_role_and_ends_with_reason_usage_and_done() {
    let fake = fake("abc", |_| ()).await;
    let body = json!({
        "messages": [{"role": "user", "content": "x"}],
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let response = post(&fake, CHAT, &body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()[REVISION_HEADER], "chat-abcdefg234");
    let chunks = chunks(&text(response).await);
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == chunks[0]["id"]));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let said: String = chunks[1..].iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, "abc");
    let [end, usage] = &chunks[chunks.len() - 2..] else { panic!("too few chunks") };
    assert_eq!((&end["choices"][0]["finish_reason"], &end["choices"][0]["delta"]), (&json!("stop"), &json!({})));
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(3)));
    assert!(chunks[..chunks.len() - 1].iter().all(|c| c["usage"].is_null()));
}

#[tokio::test]
async fn a_stream_never_cuts_a_character() {
    // Each byte is a token: every character of these is cut by some token.
    let said = "aé€🦀z";
    let fake = fake(said, |_| ()).await;
    let response = post(&fake, COMPLETIONS, &json!({"prompt": "x", "stream": true})).await;
    let chunks = chunks(&text(response).await);
    let texts: Vec<&str> = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(texts.concat(), said);
    assert!(texts.iter().all(|t| !t.contains('\u{fffd}') && t.chars().count() <= 1), "{texts:?}");
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let fake = fake("one, two, three", |_| ()).await;
    for stream in [false, true] {
        let body = json!({"prompt": "x", "stop": [", th", "zz"], "max_tokens": 100, "stream": stream});
        let answer = text(post(&fake, COMPLETIONS, &body).await).await;
        let said: String = if stream {
            chunks(&answer).iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect()
        } else {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
            answer["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        assert_eq!(said, "one, two");
    }
    until("the slot is free", || fake.engine.running() == 0).await;
    assert_eq!(counters(&fake).await.finished, 2);
}

#[tokio::test]
async fn bad_requests_are_named_and_not_counted() {
    let fake = fake("a", |_| ()).await;
    let long = "y".repeat(300);
    for (path, body, status, names) in [
        (COMPLETIONS, "{".to_owned(), 400, "not JSON"),
        (COMPLETIONS, "[]".to_owned(), 400, "must be a JSON object"),
        (COMPLETIONS, json!({}).to_string(), 400, "prompt"),
        (COMPLETIONS, json!({"prompt": ""}).to_string(), 400, "no token"),
        (COMPLETIONS, json!({"prompt": [257]}).to_string(), 400, "vocabulary"),
        (COMPLETIONS, json!({"prompt": ["a", 3]}).to_string(), 400, "`prompt`"),
        (COMPLETIONS, json!({"prompt": ["a", ""]}).to_string(), 400, "no token"),
        (COMPLETIONS, json!({"prompt": long}).to_string(), 400, "300 tokens"),
        (COMPLETIONS, json!({"prompt": "a", "max_tokens": 256}).to_string(), 400, "at most 255"),
        (COMPLETIONS, json!({"prompt": "a", "max_tokens": 0}).to_string(), 400, "max_tokens"),
        (COMPLETIONS, json!({"prompt": "a", "max_tokens": -1}).to_string(), 400, "`max_tokens`"),
        (COMPLETIONS, json!({"prompt": "a", "n": 17}).to_string(), 400, "`n`"),
        (COMPLETIONS, json!({"prompt": "a", "n": 0}).to_string(), 400, "`n`"),
        (COMPLETIONS, json!({"prompt": "a", "best_of": 2}).to_string(), 400, "`best_of`"),
        (COMPLETIONS, json!({"prompt": "a", "min_p": 2}).to_string(), 400, "`min_p`"),
        (COMPLETIONS, json!({"prompt": "a", "repetition_penalty": 0}).to_string(), 400, "`repetition_penalty`"),
        (COMPLETIONS, json!({"prompt": "a", "stop_token_ids": [300]}).to_string(), 400, "vocabulary"),
        (COMPLETIONS, json!({"prompt": "a", "temperature": -1}).to_string(), 400, "`temperature`"),
        (COMPLETIONS, json!({"prompt": "a", "top_p": 0}).to_string(), 400, "`top_p`"),
        (COMPLETIONS, json!({"prompt": "a", "top_k": -2}).to_string(), 400, "`top_k`"),
        (COMPLETIONS, json!({"prompt": "a", "logprobs": 21}).to_string(), 400, "`logprobs`"),
        (COMPLETIONS, json!({"prompt": "a", "echo": true, "logprobs": 1}).to_string(), 400, "`echo`"),
        (COMPLETIONS, json!({"prompt": "a", "stop": [""]}).to_string(), 400, "`stop`"),
        (COMPLETIONS, json!({"prompt": "a", "stream_options": {}}).to_string(), 400, "`stream_options`"),
        (COMPLETIONS, json!({"prompt": "a", "presence_penalty": 3}).to_string(), 400, "`presence_penalty`"),
        (CHAT, json!({"messages": []}).to_string(), 400, "messages"),
        (CHAT, json!({"messages": [], "top_logprobs": 2}).to_string(), 400, "`top_logprobs`"),
        (CHAT, json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}).to_string(), 400, "text"),
        (CHAT, json!({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}).to_string(), 400, "`tools`"),
        (COMPLETIONS, "x".repeat((1 << 20) + 1), 413, "larger"),
        ("/v1/embeddings", "{}".to_owned(), 404, "path"),
        ("/v1/models", "{}".to_owned(), 405, "method"),
    ] {
        let response = raw(&fake, path, body.clone()).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!(response.status(), status, "{shown}");
        assert_eq!(response.headers()[REVISION_HEADER], "chat-abcdefg234", "{shown}");
        let answer = object(response).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(names), "{shown}: {message}");
        assert_eq!(answer["error"]["type"], "invalid_request_error", "{shown}");
    }
    let counted = counters(&fake).await;
    assert_eq!((counted.started, counted.errors), (0, ErrorCounts::default()));
}

#[tokio::test]
async fn a_full_queue_answers_429_at_once() {
    let fake = fake("ab", |s| s.engine = Options { max_batch: 1, queue: 1, ..Options::default() }).await;
    let running = Running::start(Arc::clone(&fake.worker)).await;
    let crowd = crowd(&fake, &running).await;
    let refused = running.post(COMPLETIONS, &endless()).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.headers()[REVISION_HEADER], "chat-abcdefg234");
    let answer: Value = refused.json().await.unwrap();
    assert_eq!(answer["error"]["code"], "queue_full");
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.overloaded, counted.in_flight), (1, 2));
    crowd.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_request_of_several_answers_is_queued_whole_or_not_at_all() {
    let fake = fake("ab", |s| s.engine = Options { max_batch: 1, queue: 3, ..Options::default() }).await;
    for (body, param) in [(json!({"prompt": "x", "n": 4}), "n"), (json!({"prompt": ["x", "y"], "n": 2}), "prompt")] {
        let never = post(&fake, COMPLETIONS, &body).await;
        assert_eq!(never.status(), StatusCode::BAD_REQUEST, "an idle server would refuse it for ever");
        let error = object(never).await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["param"], param);
        assert!(message.contains("`n`") && message.contains("3 places") && message.contains("--queue"), "{message}");
    }
    let running = Running::start(Arc::clone(&fake.worker)).await;
    let crowd = crowd(&fake, &running).await;
    let refused = running.post(COMPLETIONS, &json!({"prompt": "x", "n": 3})).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(fake.engine.waiting(), 1, "none of the three waits");
    crowd.iter().for_each(JoinHandle::abort);
    until("the slot is free", || fake.engine.running() == 0 && fake.engine.waiting() == 0).await;
    let taken = running.post(COMPLETIONS, &json!({"prompt": "x", "n": 3})).await;
    assert_eq!(taken.json::<Value>().await.unwrap()["choices"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn values_of_another_type_are_named_with_their_rule_and_remedy() {
    let fake = fake("a", |_| ()).await;
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    for (path, body, param, names) in [
        (COMPLETIONS, json!({"prompt": 5}), "prompt", "must be a string"),
        (COMPLETIONS, json!({"prompt": []}), "prompt", "no token"),
        (COMPLETIONS, json!({"prompt": [1.5]}), "prompt", "token ids"),
        (COMPLETIONS, json!({"prompt": [[1], "a"]}), "prompt", "token ids"),
        (COMPLETIONS, json!({"prompt": "a", "temperature": "hot"}), "temperature", "must be a number, not a string"),
        (COMPLETIONS, json!({"prompt": "a", "max_tokens": 1.5}), "max_tokens", "not a fraction"),
        (COMPLETIONS, json!({"prompt": "a", "stream": "yes"}), "stream", "true or false"),
        (COMPLETIONS, json!({"prompt": "a", "stop": [1]}), "stop", "an array of strings"),
        (COMPLETIONS, json!({"prompt": "a", "logit_bias": [1]}), "logit_bias", "must be an object"),
        (COMPLETIONS, json!({"prompt": "a", "seed": {}}), "seed", "whole number"),
        (COMPLETIONS, json!([]), "", "must be a JSON object"),
        (COMPLETIONS, json!({}), "prompt", "is missing"),
        (CHAT, json!({}), "messages", "is missing"),
        (CHAT, json!({"messages": "hi"}), "messages", "must be an array, not a string"),
        (CHAT, json!({"messages": [1]}), "messages", "`messages[0]`"),
        (CHAT, json!({"messages": [{"content": "x"}]}), "messages", "`messages[0].role`"),
        (CHAT, user(json!(null)), "messages", "`messages[0].content`"),
        (CHAT, user(json!([{"type": "text", "text": 1}])), "messages", "`messages[0].content[0].text`"),
    ] {
        let response = post(&fake, path, &body).await;
        assert_eq!(response.status(), 400, "{body}");
        let error = object(response).await["error"].clone();
        assert!(error["message"].as_str().unwrap().contains(names), "{body}: {error}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{body}");
        let missing = names == "is missing" || names == "no token";
        assert_eq!(error["code"], if missing { "invalid_value" } else { "invalid_type" }, "{body}");
    }
    let answered = json!({"messages": [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": null}, {"role": "user", "content": "y"},
    ]});
    let answer = object(post(&fake, CHAT, &answered).await).await;
    assert_eq!(answer["usage"]["prompt_tokens"], "<user>x\n<assistant>\n<user>y\n<assistant>".len());
    let broken = object(raw(&fake, CHAT, "{\"messages\": [").await).await;
    assert_eq!(broken["error"]["code"], "invalid_json");
}

#[tokio::test]
async fn what_would_change_the_answer_and_is_not_there_is_refused_by_name() {
    let fake = fake("a", |_| ()).await;
    for (field, value) in [
        ("guided_choice", json!(["a", "b"])),
        ("grammar", json!("root ::= \"a\"")),
        ("continue_final_message", json!(true)),
        ("chat_template", json!("x")),
        ("tool_choice", json!("required")),
        ("truncate_prompt_tokens", json!(3)),
        ("n_predict", json!(3)),
        ("mirostat", json!(2)),
        ("typical_p", json!(0.5)),
        ("use_beam_search", json!(true)),
    ] {
        for (path, mut body) in
            [(COMPLETIONS, json!({"prompt": "x"})), (CHAT, json!({"messages": [{"role": "user", "content": "x"}]}))]
        {
            body[field] = value.clone();
            let response = post(&fake, path, &body).await;
            assert_eq!(response.status(), 400, "{body}");
            let error = object(response).await["error"].clone();
            assert_eq!((&error["param"], &error["code"]), (&json!(field), &json!("unsupported_parameter")), "{error}");
            body[field] = Value::Null;
            body["user"] = json!("somebody");
            assert_eq!(post(&fake, path, &body).await.status(), 200, "{body}");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_slot_and_is_not_counted() {
    let fake = fake("ab", |s| s.engine.max_batch = 1).await;
    let running = Running::start(Arc::clone(&fake.worker)).await;
    for stream in [false, true] {
        let body = json!({"prompt": WAITS.to_string(), "max_tokens": 200, "stream": stream});
        let asking = tokio::spawn(client().post(running.url(COMPLETIONS)).json(&body).send());
        until("it runs", || fake.engine.running() == 1).await;
        if stream {
            let mut response = asking.await.unwrap().unwrap();
            assert!(response.chunk().await.unwrap().is_some());
            drop(response);
        } else {
            asking.abort();
        }
        until("the slot is free", || fake.engine.running() == 0).await;
        let counted = counters(&fake).await;
        assert_eq!((counted.started, counted.in_flight, counted.errors.total()), (0, 0, 0), "stream: {stream}");
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_a_timeout() {
    let fake = fake("ab", |s| s.request_timeout = Duration::from_millis(200)).await;
    let body = json!({"prompt": WAITS.to_string(), "max_tokens": 200});
    let response = post(&fake, COMPLETIONS, &body).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(object(response).await["error"]["type"], "timeout_error");
    // In a stream the first bytes are out: an error event, no [DONE].
    let body = json!({"prompt": WAITS.to_string(), "max_tokens": 200, "stream": true});
    let response = post(&fake, COMPLETIONS, &body).await;
    assert_eq!(response.status(), 200);
    let events = events(&text(response).await);
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "deadline_exceeded");
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.timeout, counted.errors.total(), counted.in_flight), (2, 2, 0));
    until("the slots are free", || fake.engine.running() == 0).await;
}

#[tokio::test]
async fn broken_logits_are_500_before_the_first_byte_and_an_error_event_after_it() {
    let fake = fake("abcdef", |_| ()).await;
    for stream in [false, true] {
        let body = json!({"prompt": BREAKS.to_string(), "stream": stream});
        let response = post(&fake, COMPLETIONS, &body).await;
        assert_eq!(response.status(), 500);
        assert_eq!(object(response).await["error"]["code"], "non_finite_logits");
    }
    let body = json!({"prompt": format!("{BREAKS}{BREAKS}"), "stream": true});
    let events = events(&text(post(&fake, COMPLETIONS, &body).await).await);
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["choices"][0]["text"], "a");
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "non_finite_logits");
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.non_finite, counted.errors.total(), counted.finished), (3, 3, 0));
}

#[tokio::test]
async fn a_fallen_engine_is_not_alive_and_its_requests_are_our_errors() {
    let fake = fake("abcdef", |_| ()).await;
    let slow = json!({"prompt": WAITS.to_string(), "max_tokens": 200, "stream": true});
    let streaming = post(&fake, COMPLETIONS, &slow).await;
    assert_eq!(streaming.status(), 200);
    let response = post(&fake, COMPLETIONS, &json!({"prompt": FALLS.to_string()})).await;
    assert_eq!(response.status(), 500);
    let events = events(&text(streaming).await);
    assert!(events.last().unwrap().contains("engine_stopped"), "{events:?}");
    until("the engine is gone", || !fake.engine.is_alive()).await;
    let later = post(&fake, COMPLETIONS, &json!({"prompt": "a"})).await;
    assert_eq!(later.status(), StatusCode::SERVICE_UNAVAILABLE);
    for path in ["/livez", "/readyz"] {
        let health = send(&fake, Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(health.status(), 503, "{path}");
    }
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.server, counted.errors.broken_stream, counted.in_flight), (2, 1, 0));
}

#[tokio::test]
async fn a_draining_worker_loses_no_request() {
    let fake = fake("steady", |_| ()).await;
    let mut running = Running::start(Arc::clone(&fake.worker)).await;
    // A proxy: keeps connections, sends all the time, and stops some time after readiness is gone.
    let withdrawn = Arc::new(AtomicBool::new(false));
    let (url, ready) = (running.url(COMPLETIONS), running.url("/readyz"));
    let senders: Vec<_> = (0..4)
        .map(|i| {
            let (url, withdrawn) = (url.clone(), Arc::clone(&withdrawn));
            tokio::spawn(async move {
                let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
                let prompt = if i == 0 { SLOW.to_string() } else { "x".to_owned() };
                let body = json!({"prompt": prompt, "stream": i % 2 == 0, "max_tokens": 8});
                let (mut sent, mut closing) = (0u32, 0u32);
                while !withdrawn.load(Ordering::Acquire) {
                    let response = client.post(&url).json(&body).send().await.expect("no connection is refused or cut");
                    assert_eq!(response.status(), 200);
                    closing += u32::from(response.headers().get("connection").is_some_and(|c| c == "close"));
                    let answer = response.text().await.expect("no answer is cut");
                    assert!(i % 2 == 1 || answer.contains("[DONE]"));
                    sent += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (sent, closing)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // One request starts just before the end of the drain and must still be finished.
    let last = json!({"prompt": WAITS.to_string(), "max_tokens": 50});
    running.stop(Stop::Drain);
    let told = Instant::now();
    while client().get(&ready).send().await.unwrap().status() == 200 {
        assert!(told.elapsed() < Duration::from_secs(1), "readiness must go at once");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let late = tokio::spawn(client().post(&url).json(&last).send());
    until("the late one runs", || fake.engine.running() > 0).await;
    withdrawn.store(true, Ordering::Release);
    for sender in senders {
        let (sent, closing) = sender.await.unwrap();
        assert!(sent > 1 && closing > 0, "sent {sent}, told to close {closing}");
    }
    let late = late.await.unwrap().unwrap();
    assert_eq!(late.status(), 200);
    let late: Value = late.json().await.unwrap();
    assert_eq!(late["usage"]["completion_tokens"], 50);
    running.task.await.unwrap().expect("a drained worker ends well");
    assert!(told.elapsed() >= Duration::from_secs(2), "it serves on for the drain time");
    assert!(client().get(&ready).send().await.is_err(), "the port is closed");
    assert_eq!(counters(&fake).await.errors, ErrorCounts::default());
}

#[tokio::test]
async fn slow_and_broken_senders_hold_nothing() {
    let fake = fake("a", |_| ()).await;
    let mut running = Running::start(Arc::clone(&fake.worker)).await;
    let mut half = tokio::net::TcpStream::connect(running.public).await.unwrap();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{\"pro").await.unwrap();
    let mut garbage = tokio::net::TcpStream::connect(running.public).await.unwrap();
    garbage.write_all(b"\x16\x03\x01 not http at all\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    garbage.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(running.post(COMPLETIONS, &json!({"prompt": "x"})).await.status(), 200);
    drop(half);
    let counted = counters(&fake).await;
    assert_eq!((counted.started, counted.finished), (1, 1));
    running.stop(Stop::Now);
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn models_health_and_metrics_say_what_serves() {
    let fake = fake("abc", |s| s.rollout = Some("chat".to_owned())).await;
    post(&fake, COMPLETIONS, &json!({"prompt": "x"})).await;
    let get = async |path: &str| send(&fake, Request::get(path).body(Body::empty()).unwrap()).await;
    let models = object(get("/v1/models").await).await;
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("chat")));
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(path).await.status(), 200);
    }
    let metrics = get("/metrics").await;
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let metrics = text(metrics).await;
    for line in [
        "bitnet_time_to_first_token_seconds_count{model_name=\"chat\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"chat\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"chat\"} 2",
        "vllm:e2e_request_latency_seconds_count{model_name=\"chat\"} 1",
        "vllm:request_success_total{model_name=\"chat\",finished_reason=\"stop\"} 1",
        "vllm:num_requests_running{model_name=\"chat\"} 0",
        "vllm:num_requests_waiting{model_name=\"chat\"} 0",
        "vllm:prompt_tokens_total{model_name=\"chat\"} 1",
        "bitnet_generation_tokens_total{model_name=\"chat\"} 3",
        "vllm:request_prefill_time_seconds_count{model_name=\"chat\"} 1",
        "vllm:request_decode_time_seconds_count{model_name=\"chat\"} 1",
        "vllm:prefix_cache_queries_total{model_name=\"chat\"} 1",
        "vllm:prefix_cache_hits_total{model_name=\"chat\"} 0",
        "vllm:num_preemptions_total{model_name=\"chat\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_worker_without_a_model_is_alive_and_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let worker = inference_worker::serve::Worker::new(support::settings(dir.path()));
    let get = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        ask(&worker, request).await
    };
    assert_eq!(get("/livez").await.status(), 200);
    assert_eq!(get("/readyz").await.status(), 503);
    let request = Request::post(COMPLETIONS).body(Body::from("{}")).unwrap();
    let response = ask(&worker, request).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()[REVISION_HEADER], "chat-abcdefg234");
    let request = Request::get("/internal/v1/identity").body(Body::empty()).unwrap();
    assert_eq!(internal_router(worker).oneshot(request).await.unwrap().status(), 503);
}

#[tokio::test]
async fn no_text_of_a_prompt_or_of_an_answer_is_logged() {
    support::capture_log();
    let fake = fake("ANSWERMARK", |s| s.request_timeout = Duration::from_millis(300)).await;
    let running = Running::start(Arc::clone(&fake.worker)).await;
    let mark = "PROMPTMARK";
    for body in [
        json!({"prompt": mark}),
        json!({"prompt": mark, "stream": true, "stop": [mark]}),
        json!({"prompt": format!("{mark}{BREAKS}")}),
        json!({"prompt": format!("{mark}{WAITS}"), "max_tokens": 100}),
        json!({"prompt": mark, "max_tokens": mark}),
        json!({"prompt": mark, "suffix": mark}),
    ] {
        running.post(COMPLETIONS, &body).await.text().await.unwrap();
    }
    let chat = json!({"messages": [{"role": mark, "content": mark}]});
    running.post(CHAT, &chat).await.text().await.unwrap();
    running.post("/internal/v1/score", &json!({"tokens": [mark], "positions": [0]})).await.text().await.unwrap();
    let log = support::captured_log();
    assert!(log.contains("ready"), "something is logged");
    for mark in ["PROMPTMARK", "ANSWERMARK"] {
        assert!(!log.contains(mark), "{}", log.lines().find(|line| line.contains(mark)).unwrap_or_default());
    }
}
