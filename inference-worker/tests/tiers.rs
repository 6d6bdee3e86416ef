//! The next tier: what a failing model leaves to the baseline, and what it does not.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use bitnet_api::worker::REVISION_HEADER;
use inference_worker::engine::Options;
use inference_worker::serve::{
    Balance, CONFIDENCE_FILE, FALLBACK_HEADER, HOPS_HEADER, Settings, TIER_HEADER, TIME_HEADER, UpstreamSettings,
    public_router,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::{BREAKS, FALLS, Fake, Running, SLOW, WAITS, counters, fake_with, object, steady, text, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::ServiceExt;

const COMPLETIONS: &str = "/v1/completions";

fn upstream(addresses: &[SocketAddr]) -> UpstreamSettings {
    UpstreamSettings {
        endpoints: addresses.iter().map(ToString::to_string).collect(),
        balance: Balance::RoundRobin,
        concurrent: 4,
        limit: Duration::from_secs(5),
        first_token: Duration::from_secs(5),
        min_confidence: None,
    }
}

/// A baseline that says `baseline` whatever it is asked, in revision `chat-base`.
async fn baseline() -> (Fake, Running) {
    let fake = steady("baseline", |s| "chat-base".clone_into(&mut s.revision)).await;
    let running = Running::start(Arc::clone(&fake.worker)).await;
    (fake, running)
}

async fn candidate(change: impl FnOnce(&mut Settings)) -> Fake {
    fake_with("candidate", "ternary", change, |_| ()).await
}

async fn send(fake: &Fake, body: &Value, headers: &[(&str, &str)]) -> Response {
    let mut request = Request::post(COMPLETIONS);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_string())).unwrap();
    public_router(Arc::clone(&fake.worker)).oneshot(request).await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

async fn metrics(fake: &Fake) -> String {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    text(public_router(Arc::clone(&fake.worker)).oneshot(request).await.unwrap()).await
}

async fn handed_on(fake: &Fake, reason: &str, outcome: &str) -> bool {
    let labels = format!("reason=\"{reason}\",outcome=\"{outcome}\"}}");
    metrics(fake)
        .await
        .lines()
        .any(|line| line.starts_with("bitnet_requests_handed_on_total") && line.contains(&labels))
}

#[tokio::test]
async fn broken_logits_are_answered_by_the_baseline_and_count_as_ours() {
    let (_base, running) = baseline().await;
    let fake = candidate(|s| s.upstream = Some(upstream(&[running.public]))).await;
    for stream in [false, true] {
        // Broken at once; and for the whole object also after two good tokens.
        for prompt in [BREAKS.to_string(), format!("{BREAKS}{BREAKS}")] {
            if stream && prompt.len() == 2 {
                continue;
            }
            let response = send(&fake, &json!({"prompt": prompt, "stream": stream}), &[]).await;
            assert_eq!(response.status(), 200);
            assert_eq!(header(&response, REVISION_HEADER), Some("chat-base"), "who spoke");
            assert_eq!(header(&response, TIER_HEADER), Some("fp16"));
            assert_eq!(header(&response, FALLBACK_HEADER), Some("non_finite"));
            let kind = if stream { "text/event-stream" } else { "application/json" };
            assert_eq!(header(&response, "content-type"), Some(kind));
            let said = text(response).await;
            assert_eq!(said.contains("[DONE]"), stream, "{said}");
            assert!(stream || said.contains("baseline"), "{said}");
        }
    }
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.fallback, counted.errors.total(), counted.finished), (3, 3, 0));
    assert_eq!(counted.ttft.total(), 0, "what another tier answers is in no histogram of ours");
    assert!(handed_on(&fake, "non_finite", "answered").await);
    assert_eq!(running.counters().await.finished, 3, "it is the baseline's request, too");
}

#[tokio::test]
async fn a_good_answer_says_its_own_tier_and_asks_nobody() {
    let (base, running) = baseline().await;
    let fake = candidate(|s| s.upstream = Some(upstream(&[running.public]))).await;
    for stream in [false, true] {
        let response = send(&fake, &json!({"prompt": "x", "stream": stream}), &[]).await;
        assert_eq!(header(&response, REVISION_HEADER), Some("chat-abcdefg234"));
        assert_eq!((header(&response, TIER_HEADER), header(&response, FALLBACK_HEADER)), (Some("ternary"), None));
        text(response).await;
    }
    let counted = counters(&fake).await;
    assert_eq!((counted.finished, counted.ttft.total(), counted.tpot.total()), (2, 2, 2));
    assert_eq!(counters(&base).await.started, 0);
    let refused = send(&fake, &json!({"prompt": ""}), &[]).await;
    assert_eq!(refused.status(), 400, "a bad request is no failure of the model");
}

#[tokio::test]
async fn a_model_without_a_first_token_is_not_waited_for() {
    let (_base, running) = baseline().await;
    let fake = candidate(|s| {
        s.engine = Options { max_batch: 1, ..Options::default() };
        s.upstream = Some(UpstreamSettings { first_token: Duration::from_millis(200), ..upstream(&[running.public]) });
    })
    .await;
    // The one slot is taken for seconds.
    let blocking = send(&fake, &json!({"prompt": WAITS.to_string(), "max_tokens": 200, "stream": true}), &[]).await;
    let response = send(&fake, &json!({"prompt": "x"}), &[]).await;
    assert_eq!((response.status().as_u16(), header(&response, FALLBACK_HEADER)), (200, Some("timeout")));
    assert!(text(response).await.contains("baseline"));
    drop(blocking);
    // A slow answer that has begun in time is ours.
    until("the slot is free", || fake.engine.running() == 0).await;
    let slow = send(&fake, &json!({"prompt": SLOW.to_string()}), &[]).await;
    assert_eq!((slow.status().as_u16(), header(&slow, FALLBACK_HEADER)), (200, None));
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.fallback, counted.errors.timeout, counted.finished), (1, 0, 1));
}

#[tokio::test]
async fn a_fallen_engine_is_answered_for_until_it_is_restarted() {
    let (_base, running) = baseline().await;
    let fake = candidate(|s| s.upstream = Some(upstream(&[running.public]))).await;
    for prompt in [FALLS.to_string(), "later".to_owned()] {
        let response = send(&fake, &json!({"prompt": prompt}), &[]).await;
        assert_eq!((response.status().as_u16(), header(&response, FALLBACK_HEADER)), (200, Some("server")), "{prompt}");
        until("the engine is gone", || !fake.engine.is_alive()).await;
    }
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.fallback, counted.errors.total(), counted.in_flight), (2, 2, 0));
}

#[tokio::test]
async fn without_a_reachable_baseline_the_failure_stands_as_it_was() {
    let closed: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let fake = candidate(|s| s.upstream = Some(upstream(&[closed]))).await;
    let response = send(&fake, &json!({"prompt": BREAKS.to_string()}), &[]).await;
    assert_eq!((response.status().as_u16(), header(&response, TIER_HEADER)), (500, Some("ternary")));
    assert_eq!(object(response).await["error"]["code"], "non_finite_logits");
    let counted = counters(&fake).await;
    assert_eq!((counted.errors.non_finite, counted.errors.fallback), (1, 0));
    assert!(handed_on(&fake, "non_finite", "unreachable").await);
}

#[tokio::test]
async fn a_second_endpoint_is_asked_where_the_first_fails() {
    let (_base, running) = baseline().await;
    let closed: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let fake = candidate(|s| s.upstream = Some(upstream(&[closed, running.public]))).await;
    for _ in 0..3 {
        let response = send(&fake, &json!({"prompt": BREAKS.to_string()}), &[]).await;
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn requests_go_round_in_no_circle_and_a_full_queue_stays_ours() {
    let (_base, running) = baseline().await;
    let fake = candidate(|s| {
        s.engine = Options { max_batch: 1, queue: 1, ..Options::default() };
        s.upstream = Some(upstream(&[running.public]));
    })
    .await;
    for hops in ["2", "99", "x"] {
        let response = send(&fake, &json!({"prompt": BREAKS.to_string()}), &[(HOPS_HEADER, hops)]).await;
        assert_eq!(response.status(), 500, "{hops}");
    }
    let endless = json!({"prompt": WAITS.to_string(), "max_tokens": 200, "stream": true});
    let first = send(&fake, &endless, &[]).await;
    let waiting = {
        let router = public_router(Arc::clone(&fake.worker));
        let request = Request::post(COMPLETIONS).body(Body::from(endless.to_string())).unwrap();
        tokio::spawn(router.oneshot(request))
    };
    until("one waits", || fake.engine.waiting() == 1).await;
    let full = send(&fake, &json!({"prompt": "x"}), &[]).await;
    assert_eq!(full.status(), 429);
    assert_eq!(counters(&fake).await.errors.overloaded, 1);
    waiting.abort();
    drop(first);
}

#[tokio::test]
async fn a_tier_can_be_asked_for() {
    let (_base, running) = baseline().await;
    let fake = candidate(|s| s.upstream = Some(upstream(&[running.public]))).await;
    let body = json!({"prompt": "x"});
    let response = send(&fake, &body, &[(TIER_HEADER, "fp16")]).await;
    assert_eq!((header(&response, TIER_HEADER), header(&response, FALLBACK_HEADER)), (Some("fp16"), Some("asked")));
    assert!(text(response).await.contains("baseline"));
    let own = send(&fake, &body, &[(TIER_HEADER, "ternary")]).await;
    assert_eq!((header(&own, TIER_HEADER), header(&own, FALLBACK_HEADER)), (Some("ternary"), None));
    assert_eq!(send(&fake, &body, &[(TIER_HEADER, "int7")]).await.status(), 400);
    let counted = counters(&fake).await;
    assert_eq!((counted.finished, counted.errors.total(), counted.started), (1, 0, 1), "asking elsewhere is no error");
    let alone = candidate(|_| ()).await;
    let refused = send(&alone, &body, &[(TIER_HEADER, "fp16")]).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(object(refused).await["error"]["code"], "tier_unavailable");
}

#[tokio::test]
async fn a_doubtful_answer_is_left_to_the_baseline_and_counted_apart() {
    let (_base, running) = baseline().await;
    // The scripted model is always certain: agreement .9 at that.
    let calibration = r#"{"bins": [{"upTo": 0.5, "agreement": 0.2, "positions": 9}, {"upTo": 1.0, "agreement": 0.9, "positions": 9}]}"#;
    let with = async |least: f32| {
        let settings = UpstreamSettings { min_confidence: Some(least), ..upstream(&[running.public]) };
        let write = |dir: &std::path::Path| std::fs::write(dir.join(CONFIDENCE_FILE), calibration).unwrap();
        fake_with("candidate", "ternary", |s| s.upstream = Some(settings), write).await
    };
    let sure = with(0.85).await;
    let doubtful = with(0.95).await;
    for stream in [false, true] {
        for max_tokens in [2, 50] {
            let body = json!({"prompt": "x", "stream": stream, "max_tokens": max_tokens});
            let own = send(&sure, &body, &[]).await;
            assert_eq!(header(&own, TIER_HEADER), Some("ternary"));
            let said = text(own).await;
            assert!(!said.contains("logprobs\":{"), "confidence is not reported unasked: {said}");
            let other = send(&doubtful, &body, &[]).await;
            assert_eq!(
                (header(&other, TIER_HEADER), header(&other, FALLBACK_HEADER)),
                (Some("fp16"), Some("confidence"))
            );
            text(other).await;
        }
    }
    let own = send(&doubtful, &json!({"prompt": "x"}), &[(TIER_HEADER, "ternary")]).await;
    assert_eq!(header(&own, TIER_HEADER), Some("ternary"), "asked for, it answers whatever its confidence");
    let counted = counters(&doubtful).await;
    assert_eq!((counted.errors.total(), counted.finished, counted.ttft.total(), counted.in_flight), (0, 1, 1, 0));
    assert!(handed_on(&doubtful, "confidence", "answered").await);
    assert_eq!(counters(&sure).await.finished, 4);
    until("the slots are free", || doubtful.engine.running() == 0).await;
}

#[tokio::test]
async fn doubt_without_a_baseline_costs_nothing_but_time() {
    let closed: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let calibration = r#"{"bins": [{"upTo": 1.0, "agreement": 0.1, "positions": 9}]}"#;
    let settings = UpstreamSettings { min_confidence: Some(0.95), ..upstream(&[closed]) };
    let write = |dir: &std::path::Path| std::fs::write(dir.join(CONFIDENCE_FILE), calibration).unwrap();
    let fake = fake_with("candidate", "ternary", |s| s.upstream = Some(settings), write).await;
    let whole = object(send(&fake, &json!({"prompt": "x"}), &[]).await).await;
    assert_eq!(whole["choices"][0]["text"], "candidate");
    let stream = text(send(&fake, &json!({"prompt": "x", "stream": true}), &[]).await).await;
    let texts = stream.split("\n\n").filter_map(|e| serde_json::from_str::<Value>(e.strip_prefix("data: ")?).ok());
    let said: String = texts.filter_map(|c| c["choices"][0]["text"].as_str().map(ToOwned::to_owned)).collect();
    assert_eq!(said, "candidate");
    assert_eq!(counters(&fake).await.finished, 2);
}

#[tokio::test]
async fn a_baseline_that_breaks_off_ends_a_stream_with_an_error_event() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let read = connection.read(&mut request).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(b"9\r\ndata: a\n\n\r\n").await.unwrap();
        String::from_utf8_lossy(&request[..read]).to_lowercase()
    });
    let fake = candidate(|s| s.upstream = Some(upstream(&[address]))).await;
    let response = send(&fake, &json!({"prompt": BREAKS.to_string(), "stream": true}), &[]).await;
    assert_eq!(response.status(), 200);
    let said = text(response).await;
    assert!(said.starts_with("data: a\n\n") && said.contains("fallback_broken") && !said.contains("[DONE]"), "{said}");
    let request = serving.await.unwrap();
    assert!(request.contains(&format!("{HOPS_HEADER}: 1")), "{request}");
    assert_eq!(counters(&fake).await.errors.fallback, 1);
}

#[tokio::test]
async fn a_client_waits_no_longer_for_the_next_tier_than_it_said() {
    let base = fake_with("baseline", "fp16", |_| (), |_| ()).await;
    let running = Running::start(Arc::clone(&base.worker)).await;
    let fake = candidate(|s| s.upstream = Some(upstream(&[running.public]))).await;
    let endless = |stream| json!({"prompt": WAITS.to_string(), "max_tokens": 200, "stream": stream});
    for time in ["1", "200"] {
        let response = send(&fake, &endless(false), &[(TIER_HEADER, "fp16"), (TIME_HEADER, time)]).await;
        assert_eq!(response.status(), 504, "{time}");
        assert_eq!(object(response).await["error"]["code"], "deadline_exceeded");
    }
    assert!(handed_on(&fake, "asked", "late").await);
    let response = send(&fake, &endless(true), &[(TIER_HEADER, "fp16"), (TIME_HEADER, "300")]).await;
    assert_eq!(response.status(), 200, "it begins in time");
    let said = text(response).await;
    assert!(said.contains("deadline_exceeded") && !said.contains("[DONE]"), "{said}");
    until("the slots are free", || base.engine.running() == 0).await;
    assert_eq!(counters(&base).await.errors.total(), 0, "a client without patience is no error of the baseline");
    let enough = send(&fake, &json!({"prompt": "x"}), &[(TIER_HEADER, "fp16"), (TIME_HEADER, "4000")]).await;
    assert_eq!(enough.status(), 200);
}

#[tokio::test]
async fn the_next_tier_learns_the_time_that_is_left_and_whose_request_it_is() {
    let (heard, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let next = axum::Router::new().fallback(move |request: Request<Body>| {
        heard.send(request.headers().clone()).unwrap();
        async { "{}" }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, next).await });
    let fake = candidate(|s| s.upstream = Some(upstream(&[address]))).await;
    let trace = [("x-request-id", "r-1"), ("traceparent", "00-1-2-01"), ("tracestate", "a=b")];
    let with_time = [trace.as_slice(), &[(TIME_HEADER, "3000"), ("authorization", "Bearer x")]].concat();
    assert_eq!(send(&fake, &json!({"prompt": BREAKS.to_string()}), &with_time).await.status(), 200);
    let headers = requests.recv().await.unwrap();
    for (name, value) in trace {
        assert_eq!(headers[name], value);
    }
    let left: u64 = headers[TIME_HEADER].to_str().unwrap().parse().unwrap();
    assert!((1..3000).contains(&left), "{left}");
    assert!(!headers.contains_key("authorization"), "what it need not know it is not told");
    assert_eq!(send(&fake, &json!({"prompt": BREAKS.to_string()}), &[]).await.status(), 200);
    let headers = requests.recv().await.unwrap();
    assert!(!headers.contains_key(TIME_HEADER) && !headers.contains_key("x-request-id"), "{headers:?}");
}

#[tokio::test]
async fn a_model_of_few_bits_is_a_tier_of_its_own() {
    let (_base, running) = baseline().await;
    for precision in ["int4", "int8"] {
        let change = |s: &mut Settings| s.upstream = Some(upstream(&[running.public]));
        let fake = fake_with("candidate", precision, change, |_| ()).await;
        let body = json!({"prompt": "x"});
        for headers in [&[][..], &[(TIER_HEADER, precision)]] {
            assert_eq!(header(&send(&fake, &body, headers).await, TIER_HEADER), Some(precision));
        }
        let fp16 = send(&fake, &body, &[(TIER_HEADER, "fp16")]).await;
        assert_eq!((header(&fp16, TIER_HEADER), header(&fp16, FALLBACK_HEADER)), (Some("fp16"), Some("asked")));
    }
}

#[tokio::test]
async fn three_tiers_answer_in_their_order() {
    let (base, last) = baseline().await;
    let middle = fake_with(
        "ternary says",
        "ternary",
        |s| {
            "chat-middle".clone_into(&mut s.revision);
            s.upstream = Some(upstream(&[last.public]));
        },
        |_| (),
    )
    .await;
    let between = Running::start(Arc::clone(&middle.worker)).await;
    // What the first one doubts the second one answers; what both break is the last one's.
    let calibration = r#"{"bins": [{"upTo": 1.0, "agreement": 0.5, "positions": 9}]}"#;
    let first = fake_with(
        "binary says",
        "binary",
        |s| s.upstream = Some(UpstreamSettings { min_confidence: Some(0.9), ..upstream(&[between.public]) }),
        |dir| std::fs::write(dir.join(CONFIDENCE_FILE), calibration).unwrap(),
    )
    .await;
    let asked = async |prompt: &str, headers: &[(&str, &str)]| {
        let response = send(&first, &json!({"prompt": prompt}), headers).await;
        assert_eq!(response.status(), 200, "{prompt} {headers:?}");
        let said = |name: &str| header(&response, name).map(ToOwned::to_owned);
        (said(TIER_HEADER).unwrap(), said(FALLBACK_HEADER))
    };
    let is = |tier: &str, reason: Option<&str>| (tier.to_owned(), reason.map(ToOwned::to_owned));
    assert_eq!(asked("x", &[]).await, is("ternary", Some("confidence")));
    assert_eq!(asked(&BREAKS.to_string(), &[]).await, is("fp16", Some("non_finite")));
    assert_eq!(asked("x", &[(TIER_HEADER, "fp16")]).await, is("fp16", Some("asked")));
    assert_eq!(asked("x", &[(TIER_HEADER, "ternary")]).await, is("ternary", Some("asked")));
    assert_eq!(asked("x", &[(TIER_HEADER, "binary")]).await, is("binary", None));
    assert_eq!(counters(&first).await.errors.fallback, 1, "the first one failed once");
    assert_eq!(counters(&middle).await.errors.fallback, 1, "and so did the second one");
    assert_eq!(counters(&base).await.finished, 2);
}
