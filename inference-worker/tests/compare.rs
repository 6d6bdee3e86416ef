//! Comparisons between real workers with tiny models on loopback, and with peers that misbehave.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::any;
use bitnet_api::worker::{CompareRequest, CompareResult, GenerateResult, PromptComparison};
use inference_worker::compare::{Probes, draw};
use inference_worker::model::Text;
use inference_worker::serve::Worker;
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use support::{Running, VOCABULARY, damage, tiny_model};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const BASELINE: &str = "chat-aaaaaaaaaa";
const STABLE: &str = "chat-bbbbbbbbbb";
const PROMPTS: usize = 12;

/// A directory for models and the probe file.
struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lines: Vec<String> = (0..PROMPTS)
            .map(|i| match i % 3 {
                0 => json!({"messages": [{"role": "user", "content": format!("PROBEMARK {i}")}]}),
                _ => json!({"id": i, "prompt": format!("PROBEMARK prompt {}", "x".repeat(i))}),
            })
            .map(|line| line.to_string())
            .collect();
        std::fs::write(dir.path().join("probes.jsonl"), lines.join("\n")).unwrap();
        Self { dir }
    }

    fn model(&self, name: &str, make: impl FnOnce(&Path)) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        make(&path);
        path
    }

    /// A running worker of rollout `chat` that knows these peers.
    async fn worker(&self, model: &Path, peers: &[(&str, SocketAddr)]) -> Running {
        let mut settings = support::settings(model);
        settings.rollout = Some("chat".to_owned());
        settings.probes = Some(self.dir.path().join("probes.jsonl"));
        settings.peers.addresses = peers.iter().map(|(name, at)| ((*name).to_owned(), at.to_string())).collect();
        settings.peers.limit = Duration::from_millis(1500);
        Running::start(Worker::new(settings)).await
    }
}

fn request(key: &str, tick: u32) -> CompareRequest {
    CompareRequest {
        key: key.to_owned(),
        uid: "6c8e".to_owned(),
        attempt: 1,
        tick,
        baseline: BASELINE.to_owned(),
        stable: STABLE.to_owned(),
        probes: 6,
        max_tokens: 10,
        positions: 4,
        pairs: 3,
        pair_tokens: 5,
    }
}

async fn post(worker: &Running, request: &CompareRequest) -> reqwest::Response {
    worker.post("/internal/v1/compare", &serde_json::to_value(request).unwrap()).await
}

/// Posts and waits for the result.
async fn compare(worker: &Running, request: &CompareRequest) -> CompareResult {
    assert_eq!(post(worker, request).await.status(), StatusCode::ACCEPTED);
    result(worker, &request.key).await
}

async fn result(worker: &Running, key: &str) -> CompareResult {
    let path = format!("/internal/v1/compare/{key}");
    for _ in 0..3000 {
        let response = worker.get(&path).await;
        if response.status() == StatusCode::OK {
            let text = response.text().await.unwrap();
            assert!(!text.contains("PROBEMARK"), "only numbers leave");
            return serde_json::from_str(&text).unwrap();
        }
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the comparison did not end");
}

async fn score(worker: &Running, tokens: &[u32], positions: &[u32]) -> Vec<Vec<f64>> {
    let body = json!({"tokens": tokens, "positions": positions});
    let bytes = worker.post("/internal/v1/score", &body).await.bytes().await.unwrap();
    assert_eq!(bytes.len(), positions.len() * VOCABULARY * 2);
    let values: Vec<f64> =
        bytes.chunks(2).map(|b| f64::from(half::f16::from_le_bytes([b[0], b[1]]).to_f32())).collect();
    values.chunks(VOCABULARY).map(<[f64]>::to_vec).collect()
}

/// The definitions again, written for reading and not for speed.
fn by_hand(baseline: &[Vec<f64>], candidate: &[Vec<f64>]) -> PromptComparison {
    let centred = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        row.iter().map(|x| x - mean).collect::<Vec<_>>()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let softmax = |row: &[f64]| {
        let top = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
        row.iter().map(|x| (x - top).exp() / sum).collect::<Vec<_>>()
    };
    let first_best = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap();
    let rows: Vec<[f64; 4]> = baseline
        .iter()
        .zip(candidate)
        .map(|(b, c)| {
            let (bc, cc) = (centred(b), centred(c));
            let cosine = dot(&bc, &cc) / (dot(&bc, &bc) * dot(&cc, &cc)).sqrt();
            let mse = b.iter().zip(c).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / b.len() as f64;
            let kl = softmax(b).iter().zip(softmax(c)).map(|(p, q)| p * (p / q).ln()).sum();
            [cosine, mse, kl, if first_best(b) == first_best(c) { 1.0 } else { 0.0 }]
        })
        .collect();
    let mean = |i: usize| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64;
    PromptComparison {
        probe: None,
        cosine: mean(0),
        cosine_at: rows[0][0],
        mse: mean(1),
        kl: mean(2),
        top1: mean(3),
        non_finite: 0,
    }
}

fn close(a: &PromptComparison, b: &PromptComparison) -> bool {
    let near = |x: f64, y: f64| (x - y).abs() < 1e-9 * (1.0 + x.abs());
    near(a.cosine, b.cosine)
        && near(a.cosine_at, b.cosine_at)
        && near(a.mse, b.mse)
        && near(a.kl, b.kl)
        && a.top1 == b.top1
        && a.non_finite == b.non_finite
}

#[tokio::test]
async fn equal_models_are_equal_and_their_pairs_have_times() {
    let shop = Shop::new();
    let model = shop.model("one", |dir| tiny_model(dir, 1));
    let baseline = shop.worker(&model, &[]).await;
    let peers = [(BASELINE, baseline.internal), (STABLE, baseline.internal)];
    let candidate = shop.worker(&model, &peers).await;
    let result = compare(&candidate, &request("a", 1)).await;
    assert_eq!((result.key.as_str(), result.tick, result.drawn, result.prompts.len()), ("a", 1, 6, 6));
    assert_eq!(result.probe_set.as_ref().map(|set| set.size), Some(PROMPTS as u32));
    assert!(result.peer_errors.is_empty(), "{:?}", result.peer_errors);
    for prompt in &result.prompts {
        assert!(prompt.cosine > 1.0 - 1e-12 && prompt.cosine_at > 1.0 - 1e-12, "{prompt:?}");
        assert_eq!((prompt.mse, prompt.top1, prompt.non_finite), (0.0, 1.0, 0));
        assert!(prompt.kl < 1e-12);
    }
    assert_eq!(result.pairs.len(), 3);
    for pair in &result.pairs {
        for side in [pair.candidate, pair.stable] {
            assert!(side.ok && side.alone && side.ttft > 0.0 && side.tpot > 0.0, "{pair:?}");
        }
    }
    assert!(result.busy.candidate > 0.0 && result.busy.candidate < 1.0);
    assert_eq!(result.busy.stable, None, "it was not read before");
    let second = compare(&candidate, &request("b", 2)).await;
    assert!(second.busy.stable.is_some_and(|share| share > 0.0 && share < 1.0), "{:?}", second.busy);
}

#[tokio::test]
async fn a_damaged_model_shows_exactly_as_much_as_its_logits_differ() {
    let shop = Shop::new();
    let healthy = shop.model("healthy", |dir| tiny_model(dir, 1));
    let broken = shop.model("broken", |dir| damage(dir, 1, "model.layers.1.mlp.down_proj.weight", |x| -x));
    let baseline = shop.worker(&healthy, &[]).await;
    let peers = [(BASELINE, baseline.internal), (STABLE, baseline.internal)];
    let candidate = shop.worker(&broken, &peers).await;
    let request = CompareRequest { probes: 10, ..request("a", 7) };
    let result = compare(&candidate, &request).await;
    assert_eq!(result.prompts.len(), 10);
    let mean = result.prompts.iter().map(|p| p.cosine).sum::<f64>() / 10.0;
    assert!(mean < 0.97, "the damage shows: {mean}");

    // The same draws, but everything else again from the outside: tokens, continuation, logits, numbers.
    let text = Text::load(&healthy).unwrap();
    let probes = Probes::read(Some(&shop.dir.path().join("probes.jsonl"))).unwrap();
    for (probe, found) in draw::draws(&request, probes.len()).probes.iter().zip(&result.prompts) {
        let prompt = probes.tokens(probe.prompt, &text).unwrap();
        let body = json!({"prompt": prompt, "tokens": request.max_tokens});
        let continuation: GenerateResult = baseline.post_json("/internal/v1/generate", &body).await;
        let drawn = draw::positions(probe.positions, continuation.tokens.len().max(1), 4);
        let positions: Vec<u32> = drawn.iter().map(|row| (prompt.len() - 1 + row) as u32).collect();
        let tokens: Vec<u32> = prompt.iter().chain(&continuation.tokens).copied().collect();
        let wanted =
            by_hand(&score(&baseline, &tokens, &positions).await, &score(&candidate, &tokens, &positions).await);
        assert!(close(found, &wanted), "{found:?} is not {wanted:?}");
    }
}

#[tokio::test]
async fn the_seed_and_nothing_else_decides_the_draws() {
    let shop = Shop::new();
    let healthy = shop.model("healthy", |dir| tiny_model(dir, 1));
    let broken = shop.model("broken", |dir| damage(dir, 1, "model.layers.0.self_attn.v_proj.weight", |x| x * 0.3));
    let baseline = shop.worker(&healthy, &[]).await;
    let peers = [(BASELINE, baseline.internal), (STABLE, baseline.internal)];
    let first = shop.worker(&broken, &peers).await;
    let other = shop.worker(&broken, &peers).await;
    let once = compare(&first, &request("a", 1)).await;
    assert_eq!(compare(&first, &request("b", 1)).await.prompts, once.prompts, "another key, the same tick");
    assert_eq!(compare(&other, &request("a", 1)).await.prompts, once.prompts, "another pod, the same tick");
    assert_ne!(compare(&first, &request("c", 2)).await.prompts, once.prompts, "another tick");
    let attempt = CompareRequest { attempt: 2, ..request("d", 1) };
    assert_ne!(compare(&first, &attempt).await.prompts, once.prompts, "another attempt");
}

#[tokio::test]
async fn one_job_runs_at_a_time_and_results_are_kept() {
    let shop = Shop::new();
    let model = shop.model("one", |dir| tiny_model(dir, 1));
    // A peer that never answers keeps the job running.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let worker = shop.worker(&model, &[(BASELINE, at), (STABLE, at)]).await;
    let slow = CompareRequest { probes: 1, pairs: 0, ..request("slow", 1) };
    assert_eq!(post(&worker, &slow).await.status(), StatusCode::ACCEPTED);
    assert_eq!(post(&worker, &slow).await.status(), StatusCode::ACCEPTED, "the same key is the same job");
    let refused = post(&worker, &request("other", 2)).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    let answer: serde_json::Value = refused.json().await.unwrap();
    assert_eq!((&answer["error"]["code"], &answer["error"]["running"]), (&json!("busy"), &json!("slow")));
    assert_eq!(worker.get("/internal/v1/compare/other").await.status(), StatusCode::NOT_FOUND);
    let done = result(&worker, "slow").await;
    assert_eq!((done.drawn, done.prompts.len()), (1, 0));
    assert_eq!(done.peer_errors, [("timeout".to_owned(), 1)]);
    assert_eq!(post(&worker, &slow).await.status(), StatusCode::ACCEPTED, "a kept key starts nothing");
    assert_eq!(result(&worker, "slow").await, done);
    drop(silent);
    for i in 0..17 {
        compare(&worker, &CompareRequest { probes: 1, pairs: 0, ..request(&format!("k{i}"), i) }).await;
    }
    assert_eq!(worker.get("/internal/v1/compare/slow").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(worker.get("/internal/v1/compare/k0").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(worker.get("/internal/v1/compare/k1").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn without_prompts_the_answer_says_so_at_once() {
    let shop = Shop::new();
    let model = shop.model("one", |dir| tiny_model(dir, 1));
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let worker = shop.worker(&model, &[(BASELINE, nowhere), (STABLE, nowhere)]).await;
    let file = shop.dir.path().join("probes.jsonl");
    for (key, content) in [("empty", Some("\n \n")), ("bad", Some("{\"prompt\": 1}")), ("gone", None)] {
        std::fs::remove_file(&file).ok();
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let result = compare(&worker, &request(key, 1)).await;
        assert_eq!((result.probe_set, result.drawn), (None, 0), "{key}");
        assert!(result.prompts.is_empty() && result.pairs.is_empty());
    }
    // A mounted file may come later.
    std::fs::write(&file, "{\"prompt\": \"a\"}\n").unwrap();
    let result = compare(&worker, &request("late", 1)).await;
    assert_eq!((result.probe_set.map(|set| set.size), result.drawn), (Some(1), 6));
}

#[tokio::test]
async fn broken_logits_of_the_candidate_are_evidence_and_those_of_the_baseline_are_void() {
    let shop = Shop::new();
    let healthy = shop.model("healthy", |dir| tiny_model(dir, 1));
    // Finite weights whose products are not.
    let broken = shop.model("broken", |dir| damage(dir, 1, "lm_head.weight", |x| x * 3e38));
    let good = shop.worker(&healthy, &[]).await;
    let bad = shop.worker(&broken, &[]).await;
    let peers = [(BASELINE, good.internal), (STABLE, good.internal)];
    let result = compare(&shop.worker(&broken, &peers).await, &request("a", 1)).await;
    assert_eq!(result.prompts.len(), 6);
    assert!(result.prompts.iter().all(|p| p.non_finite > 0 && p.cosine == 0.0 && p.cosine_at == 0.0));
    assert!(result.prompts.iter().all(|p| p.mse.is_finite() && p.kl.is_finite()));
    assert!(result.pairs.iter().all(|pair| !pair.candidate.ok && pair.stable.ok), "{:?}", result.pairs);
    let peers = [(BASELINE, bad.internal), (STABLE, bad.internal)];
    let result = compare(&shop.worker(&healthy, &peers).await, &request("a", 1)).await;
    assert_eq!((result.drawn, result.prompts.len()), (6, 0));
    assert_eq!(result.peer_errors, [("nonFinite".to_owned(), 4), ("skipped".to_owned(), 2)]);
    assert!(result.pairs.iter().all(|pair| pair.candidate.ok && !pair.stable.ok), "{:?}", result.pairs);
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    at
}

#[tokio::test]
async fn peers_that_misbehave_are_void_with_a_reason() {
    let shop = Shop::new();
    let model = shop.model("one", |dir| tiny_model(dir, 1));
    let honest = shop.worker(&model, &[]).await;
    let elsewhere = Arc::new(AtomicU32::new(0));
    let visits = Arc::clone(&elsewhere);
    let target = serve(Router::new().fallback(any(move || async move {
        visits.fetch_add(1, Ordering::Relaxed);
    })))
    .await;
    let redirect = move || async move {
        (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("http://{target}/internal/v1/generate"))])
    };
    let large = || async { [b'x'; 1 << 12].repeat(600).into_response() };
    let wrong = json!({"tokens": [300], "ttft": 0.1, "tpot": 0.1, "alone": true, "busySeconds": 0.0,
        "process": "p", "nonFinite": 0});
    let cases = [
        ("garbage", serve(Router::new().fallback(any(|| async { "{\"tokens\": \"no\"}" }))).await),
        ("garbage", serve(Router::new().fallback(any(move || async move { axum::Json(wrong) }))).await),
        ("redirect", serve(Router::new().fallback(any(redirect))).await),
        ("tooLarge", serve(Router::new().fallback(any(large))).await),
        ("refused", serve(Router::new()).await),
        ("overloaded", serve(Router::new().fallback(any(|| async { StatusCode::TOO_MANY_REQUESTS }))).await),
        ("failed", serve(Router::new().fallback(any(|| async { StatusCode::INTERNAL_SERVER_ERROR }))).await),
        ("broken", cutting().await),
        ("connect", "127.0.0.1:9".parse().unwrap()),
    ];
    for (reason, at) in cases {
        let worker = shop.worker(&model, &[(BASELINE, at), (STABLE, honest.internal)]).await;
        let result = compare(&worker, &CompareRequest { probes: 2, pairs: 1, ..request("a", 1) }).await;
        assert_eq!((result.drawn, result.prompts.len()), (2, 0), "{reason}");
        assert_eq!(result.peer_errors, [(reason.to_owned(), 2)]);
        assert_eq!(result.pairs.len(), 1, "pairs do not need the baseline");
    }
    assert_eq!(elsewhere.load(Ordering::Relaxed), 0, "no redirect is followed");
}

/// Begins an answer and cuts it.
async fn cutting() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                socket.readable().await.ok();
                socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"tok").await.ok();
            });
        }
    });
    at
}

#[tokio::test]
async fn a_failing_stable_arm_is_a_failed_generation_and_a_silent_network_is_a_void() {
    let shop = Shop::new();
    let model = shop.model("one", |dir| tiny_model(dir, 1));
    let honest = shop.worker(&model, &[]).await;
    let failing = serve(Router::new().fallback(any(|| async { StatusCode::INTERNAL_SERVER_ERROR }))).await;
    let gone: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let worker = shop.worker(&model, &[(BASELINE, honest.internal), (STABLE, failing)]).await;
    let result = compare(&worker, &request("a", 1)).await;
    assert_eq!((result.prompts.len(), result.pairs.len()), (6, 3));
    assert!(result.pairs.iter().all(|pair| pair.candidate.ok && !pair.stable.ok));
    let worker = shop.worker(&model, &[(BASELINE, honest.internal), (STABLE, gone)]).await;
    let result = compare(&worker, &request("a", 1)).await;
    assert_eq!((result.prompts.len(), result.pairs.len()), (6, 0));
    assert_eq!(result.peer_errors, [("connect".to_owned(), 3)]);
}

#[tokio::test]
async fn a_peer_that_breaks_one_connection_is_asked_again_on_another() {
    let shop = Shop::new();
    let model = shop.model("one", |dir| tiny_model(dir, 1));
    let honest = shop.worker(&model, &[]).await;
    // The first connection is cut, all others lead to the honest worker.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let behind = honest.internal;
    let connections = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                continue;
            }
            tokio::spawn(async move {
                let mut onward = TcpStream::connect(behind).await.unwrap();
                tokio::io::copy_bidirectional(&mut socket, &mut onward).await.ok();
            });
        }
    });
    let worker = shop.worker(&model, &[(BASELINE, at), (STABLE, at)]).await;
    let result = compare(&worker, &request("a", 1)).await;
    assert_eq!((result.prompts.len(), result.pairs.len()), (6, 3));
    assert!(result.peer_errors.is_empty(), "{:?}", result.peer_errors);
    // Cut; generate and score of the repeat on one new connection each; one that is kept for all the rest.
    assert_eq!(connections.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn no_probe_text_is_logged() {
    support::capture_log();
    let shop = Shop::new();
    let model = shop.model("one", |dir| tiny_model(dir, 1));
    let baseline = shop.worker(&model, &[]).await;
    let peers = [(BASELINE, baseline.internal), (STABLE, baseline.internal)];
    let candidate = shop.worker(&model, &peers).await;
    compare(&candidate, &request("a", 1)).await;
    std::fs::write(shop.dir.path().join("probes.jsonl"), "{\"prompt\": \"PROBEMARK\", \"PROBEMARK\"").unwrap();
    compare(&candidate, &request("b", 2)).await;
    let log = support::captured_log();
    assert!(log.contains("compared") && log.contains("no probe set"));
    assert!(!log.contains("PROBEMARK"), "{}", log.lines().find(|l| l.contains("PROBEMARK")).unwrap_or_default());
}
