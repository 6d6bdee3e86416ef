//! `/metrics`: its formats, and what its numbers mean.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use inference_worker::engine::Options;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::{BREAKS, Fake, Running, WAITS, ask, client, fake, text, until};

const COMPLETIONS: &str = "/v1/completions";

async fn post(fake: &Fake, body: &Value) -> Response {
    ask(&fake.worker, Request::post(COMPLETIONS).body(Body::from(body.to_string())).unwrap()).await
}

async fn metrics(fake: &Fake) -> BTreeMap<String, f64> {
    let answer = ask(&fake.worker, Request::get("/metrics").body(Body::empty()).unwrap()).await;
    support::classic::read(&text(answer).await).unwrap()
}

#[tokio::test]
async fn the_phases_of_an_answer_add_up_also_where_a_stop_string_ends_it() {
    let fake = fake("one, two, three", |s| s.rollout = Some("chat".to_owned())).await;
    post(&fake, &json!({"prompt": "x", "stop": [", th"], "max_tokens": 100})).await;
    until("the slot is free", || fake.engine.running() == 0).await;
    let samples = metrics(&fake).await;
    let of = |name: &str, part: &str| samples[&format!("bitnet_{name}_seconds_{part}{{model_name=\"chat\"}}")];
    let phases = ["request_queue_time", "request_prefill_time", "request_decode_time"];
    for name in phases.iter().chain(&["request_latency"]) {
        assert_eq!(of(name, "count"), 1.0, "{name}");
    }
    let sum: f64 = phases.iter().map(|name| of(name, "sum")).sum();
    assert!((sum - of("request_latency", "sum")).abs() < 1e-6, "{sum}");
}

#[tokio::test]
async fn those_who_wait_are_users_who_are_still_there() {
    let fake = fake("ab", |s| {
        s.rollout = Some("chat".to_owned());
        s.engine = Options { max_batch: 1, ..Options::default() };
    })
    .await;
    let running = Running::start(Arc::clone(&fake.worker)).await;
    let endless = json!({"prompt": WAITS.to_string(), "max_tokens": 200});
    let start = |path: &str, body: &Value| tokio::spawn(client().post(running.url(path)).json(body).send());
    let first = start(COMPLETIONS, &endless);
    until("the first one runs", || fake.engine.running() == 1).await;
    let waiting = async || metrics(&fake).await["vllm:num_requests_waiting{model_name=\"chat\"}"];
    let comparison = start("/internal/v1/score", &json!({"tokens": [1, 2], "positions": [0]}));
    until("the comparison waits", || fake.engine.waiting() == 1).await;
    assert_eq!(waiting().await, 0.0, "a comparison is no user");
    let second = start(COMPLETIONS, &endless);
    until("the second one waits", || fake.engine.waiting() == 2).await;
    assert_eq!(waiting().await, 1.0);
    second.abort();
    until("nobody waits", || fake.engine.waiting_users() == 0).await;
    assert_eq!((waiting().await, fake.engine.waiting()), (0.0, 2), "the job lies there until its turn");
    first.abort();
    comparison.abort();
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let fake = fake("abc", |s| s.rollout = Some("a \"b\" \\".to_owned())).await;
    post(&fake, &json!({"prompt": "x"})).await;
    post(&fake, &json!({"prompt": BREAKS.to_string()})).await;
    let get = async |accept: Option<&str>| {
        let request = accept.into_iter().fold(Request::get("/metrics"), |request, kind| request.header("accept", kind));
        let answer = ask(&fake.worker, request.body(Body::empty()).unwrap()).await;
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (kind, text(answer).await)
    };
    // What Go's parser sends, what curl sends, and what Prometheus sends where it is told to.
    for accept in [None, Some("*/*"), Some("text/plain;version=0.0.4;q=0.5,*/*;q=0.1")] {
        let (kind, classic) = get(accept).await;
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accept:?}");
        let samples = support::classic::read(&classic).unwrap();
        assert!(samples.len() > 200, "{}", samples.len());
        let build = samples.iter().find(|(series, _)| series.starts_with("bitnet_build_info{")).unwrap();
        assert!(build.0.contains("kernel=\"scripted\"") && *build.1 == 1.0, "{build:?}");
    }
    let (kind, open) = get(Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2")).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE bitnet_prompt_tokens counter\n"), "{open}");
    assert!(support::classic::read(&open).is_err(), "the reader tells the formats apart");
}
