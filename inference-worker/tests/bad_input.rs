//! Requests that were made to break the worker, and models that break on good ones: who is told what, and who is counted.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::body::{Body, Bytes};
use axum::http::Request;
use axum::response::Response;
use futures::{StreamExt, stream};
use inference_worker::serve::TIME_HEADER;
use serde_json::{Value, json};
use std::convert::Infallible;
use support::{Fake, Running, ask, counters, fake, fake_with, object, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn post(fake: &Fake, path: &str, body: impl Into<Body>) -> Response {
    ask(&fake.worker, Request::post(path).body(body.into()).unwrap()).await
}

fn chat(content: &str) -> String {
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 4}).to_string()
}

fn schema(schema: &Value) -> Value {
    let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
    json!({"prompt": "a", "max_tokens": 2, "response_format": format})
}

#[tokio::test]
async fn a_prompt_that_cannot_fit_is_refused_unread_and_one_that_might_is_counted() {
    let fake = fake("a", |_| ()).await;
    // 256 tokens of the context, of which the widest, `<eos>`, has five bytes.
    for (bytes, says) in [(1281, "1281 bytes"), (1280, "1280 tokens"), (1_000_000, "1000000 bytes")] {
        let answer = post(&fake, COMPLETIONS, json!({"prompt": "x".repeat(bytes)}).to_string()).await;
        assert_eq!(answer.status(), 400);
        let error = object(answer).await["error"].take();
        assert_eq!(error["code"], "context_length_exceeded");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    assert_eq!(post(&fake, CHAT, chat(&"x".repeat(2000))).await.status(), 400);
    let counted = object(post(&fake, "/tokenize", json!({"prompt": "x".repeat(2000)}).to_string()).await).await;
    assert_eq!(counted["count"], 2000, "tokens are counted whether or not they fit");
    assert_eq!(counters(&fake).await.started, 0, "no error of the model");
}

#[tokio::test]
async fn a_templates_refusal_is_the_clients_and_its_failure_the_models() {
    let template = "{% if 'refuse' in messages[0].content %}{{ raise_exception('no such role') }}{% endif %}\
                    {% if 'fail' in messages[0].content %}{{ messages[0].nope.x }}{% endif %}\
                    {% if 'loop' in messages[0].content %}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}\
                    {% endfor %}{% endif %}{{ messages[0].content }}";
    let write = |dir: &std::path::Path| std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
    let fake = fake_with("a", "fp16", |_| (), write).await;
    let refused = post(&fake, CHAT, chat("refuse")).await;
    assert_eq!(refused.status(), 400);
    assert!(text(refused).await.contains("no such role"));
    assert_eq!(counters(&fake).await.started, 0);
    for (n, broken) in ["fail", "loop"].into_iter().enumerate() {
        let failed = post(&fake, CHAT, chat(broken)).await;
        assert_eq!(failed.status(), 500, "{broken}");
        assert_eq!(object(failed).await["error"]["code"], "template_failed");
        let counted = counters(&fake).await;
        assert_eq!((counted.started, counted.errors.server), (n as u64 + 1, n as u64 + 1));
    }
    assert_eq!(post(&fake, "/tokenize", chat("fail")).await.status(), 500);
    assert_eq!(post(&fake, CHAT, chat("fine")).await.status(), 200);
}

#[tokio::test]
async fn a_request_has_its_time_while_it_is_read_as_well() {
    let fake = fake("a", |_| ()).await;
    // Compiling it takes longer than a millisecond on any machine.
    let large = schema(&json!({"enum": (0..40_000).map(|n| format!("v{n}")).collect::<Vec<_>>()}));
    let request = Request::post(COMPLETIONS).header(TIME_HEADER, "1").body(Body::from(large.to_string())).unwrap();
    let late = ask(&fake.worker, request).await;
    assert_eq!(late.status(), 504);
    assert_eq!(object(late).await["error"]["code"], "deadline_exceeded");
    assert_eq!(counters(&fake).await.errors.total(), 0, "a client's own time is no error of ours");
}

#[tokio::test]
async fn a_schema_that_breaks_the_library_is_refused_in_words_of_ours() {
    let fake = fake("a", |_| ()).await;
    let wide = schema(&json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}));
    let long = schema(&json!({"$ref": format!("#/{}", "x".repeat(5000))}));
    for (body, word) in [(wide, "smaller bounds"), (long, "simpler schema")] {
        let answer = post(&fake, COMPLETIONS, body.to_string()).await;
        assert_eq!(answer.status(), 400);
        let message = object(answer).await["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(word) && message.len() < 400, "{message}");
        assert!(!message.contains("panic") && !message.contains("backtrace"), "{message}");
    }
}

#[tokio::test]
async fn a_body_that_arrives_slowly_is_told_so() {
    let fake = fake("a", |_| ()).await;
    tokio::time::pause();
    let start = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{\"prompt\": "))]);
    let answer = post(&fake, COMPLETIONS, Body::from_stream(start.chain(stream::pending()))).await;
    assert_eq!(answer.status(), 408);
    let error = object(answer).await["error"].take();
    assert_eq!(error["code"], "body_too_slow");
    assert!(error["message"].as_str().unwrap().contains("30s"), "{error}");
}

#[tokio::test]
async fn a_body_that_is_framed_wrongly_is_not_called_too_large() {
    let fake = fake("a", |_| ()).await;
    let mut running = Running::start(fake.worker.clone()).await;
    for (address, path, code) in
        [(running.public, COMPLETIONS, "bad_body"), (running.internal, "/internal/v1/score", "badBody")]
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The connection ends with the answer: nobody knows where the next request would begin.
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(code), "{answer}");
    }
    running.stop(inference_worker::serve::Stop::Now);
    let large = "x".repeat((1 << 20) + 1);
    assert_eq!(post(&fake, COMPLETIONS, large).await.status(), 413);
}
