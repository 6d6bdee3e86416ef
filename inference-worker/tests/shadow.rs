//! Live prompts compared with the baseline: between real workers with tiny models on loopback.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use bitnet_api::worker::{GenerateResult, SHADOW_BLOCK, SHADOW_PATH, ShadowRequest, ShadowResult};
use inference_worker::compare::similarity::{RowSimilarity, compare_rows};
use inference_worker::serve::Worker;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;
use support::{Running, VOCABULARY, client, damage, tiny_model};

const BASELINE: &str = "chat-aaaaaaaaaa";
/// Text, and two headers that have nothing to do with it: none of them may come out anywhere.
const MARKS: [&str; 3] = ["LIVEMARK", "AUTHMARK", "COOKIEMARK"];

/// A baseline and a candidate that knows it.
struct Pair {
    baseline: Running,
    candidate: Running,
    _dir: tempfile::TempDir,
}

async fn pair(make: impl FnOnce(&Path)) -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    std::fs::create_dir(&one).unwrap();
    std::fs::create_dir(&other).unwrap();
    tiny_model(&one, 1);
    make(&other);
    let worker = |model: &Path, peers: Vec<(String, String)>| {
        let mut settings = support::settings(model);
        settings.rollout = Some("chat".to_owned());
        settings.peers.addresses = peers;
        Running::start(Worker::new(settings))
    };
    let baseline = worker(&one, Vec::new()).await;
    let candidate = worker(&other, vec![(BASELINE.to_owned(), baseline.internal.to_string())]).await;
    Pair { baseline, candidate, _dir: dir }
}

fn permission(percent: u32, seconds: u32) -> ShadowRequest {
    ShadowRequest {
        uid: "6c8e".to_owned(),
        attempt: 1,
        baseline: BASELINE.to_owned(),
        percent,
        max_tokens: 6,
        // More than there are: all of them are compared, whatever is drawn.
        positions: 64,
        tail_min: 0.999_9,
        seconds,
    }
}

async fn allow(candidate: &Running, permission: &ShadowRequest) -> ShadowResult {
    candidate.post_json(SHADOW_PATH, &serde_json::to_value(permission).unwrap()).await
}

/// Ids whose hash lies in the first tenth, or does not.
fn ids(chosen: bool) -> impl Iterator<Item = String> {
    (0u32..).map(|n| format!("request-{n}")).filter(move |id| {
        let digest = Sha256::digest(id);
        let first = digest[..8].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        (first < u64::MAX / 10) == chosen
    })
}

async fn ask(worker: &Running, id: &str, prompt: &str) {
    let body = json!({"prompt": prompt, "max_tokens": 3, "temperature": 0});
    let request = client().post(worker.url("/v1/completions")).json(&body).header("x-request-id", id);
    let request = request.header("authorization", "Bearer AUTHMARK").header("cookie", "session=COOKIEMARK");
    assert_eq!(request.send().await.unwrap().status(), 200);
}

/// Sends chosen requests of one prompt until a block of them is complete.
async fn first_block(candidate: &Running, prompt: &str) -> ShadowResult {
    let (mut pause, mut dropped) = (Duration::from_millis(25), 0);
    for id in ids(true).take(200) {
        let found = allow(candidate, &permission(10, 60)).await;
        assert_eq!(found.samples % SHADOW_BLOCK, 0, "only whole blocks are told: {found:?}");
        if found.samples > 0 {
            return found;
        }
        // What is asked next takes the engine away from the comparison: a slow machine needs longer pauses between.
        let now = found.dropped.iter().map(|(_, count)| count).sum();
        if now > dropped {
            (pause, dropped) = ((pause * 2).min(Duration::from_secs(2)), now);
        }
        ask(candidate, &id, prompt).await;
        tokio::time::sleep(pause).await;
    }
    panic!("no block of live prompts was complete: {:?}", allow(candidate, &permission(10, 60)).await);
}

async fn logits(worker: &Running, tokens: &[u32], positions: &[u32]) -> Vec<f32> {
    let body = json!({"tokens": tokens, "positions": positions});
    let bytes = worker.post("/internal/v1/score", &body).await.bytes().await.unwrap();
    bytes.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

#[tokio::test]
async fn live_prompts_give_what_a_probe_of_the_same_text_gives() {
    let Pair { baseline, candidate, .. } =
        pair(|dir| damage(dir, 1, "model.layers.0.mlp.down_proj.weight", |x| -x)).await;
    let prompt = "a live prompt";
    let found = first_block(&candidate, prompt).await;

    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let ask = json!({"prompt": tokens, "tokens": 6});
    let said: GenerateResult = baseline.post_json("/internal/v1/generate", &ask).await;
    let rows = said.tokens.len().max(1);
    let whole: Vec<u32> = tokens.iter().chain(&said.tokens).copied().collect();
    let positions: Vec<u32> = (0..rows).map(|row| (tokens.len() - 1 + row) as u32).collect();
    let (theirs, ours) = (logits(&baseline, &whole, &positions).await, logits(&candidate, &whole, &positions).await);
    let compared: Vec<RowSimilarity> =
        theirs.chunks(VOCABULARY).zip(ours.chunks(VOCABULARY)).map(|(a, b)| compare_rows(a, b)).collect();
    let mean = |of: fn(&RowSimilarity) -> f64| compared.iter().map(of).sum::<f64>() / rows as f64;
    assert!(compared.iter().all(|row| row.cosine < 0.999), "the damage shows: {compared:?}");
    let samples = found.samples as f64;
    assert!((found.cosine / samples - mean(|row| row.cosine)).abs() < 1e-6, "{found:?}");
    assert!((found.kl / samples - mean(|row| row.kl)).abs() < 1e-6, "{found:?}");
    assert_eq!(found.below, found.samples, "each is under the threshold");
    assert!((found.top1 / samples - mean(|row| f64::from(u8::from(row.top1)))).abs() < 1e-9, "{found:?}");
}

#[tokio::test]
async fn nothing_of_a_live_prompt_comes_out_or_stays() {
    support::capture_log();
    let Pair { baseline, candidate, .. } = pair(|dir| tiny_model(dir, 1)).await;
    let prompt = "LIVEMARK of a user";
    let found = first_block(&candidate, prompt).await;
    assert!((found.cosine - found.samples as f64).abs() < 1e-6, "equal models agree: {found:?}");
    // The baseline did not keep its continuation: one that was kept has no times.
    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let again = json!({"prompt": tokens, "tokens": 6, "cached": true});
    let again: GenerateResult = baseline.post_json("/internal/v1/generate", &again).await;
    assert!(again.ttft > 0.0, "a live prompt's continuation was kept");
    let mut outputs = vec![support::captured_log(), serde_json::to_string(&found).unwrap()];
    for worker in [&baseline, &candidate] {
        for path in ["/metrics", "/internal/v1/counters", "/internal/v1/identity", "/readyz", "/v1/models"] {
            outputs.push(worker.get(path).await.text().await.unwrap());
        }
    }
    let metrics = &outputs[7];
    assert!(metrics.contains("bitnet_shadow_prompts_total{model_name=\"chat\"} 20\n"), "{metrics}");
    assert!(metrics.contains("bitnet_shadow_cosine{model_name=\"chat\"} "), "{metrics}");
    let spelled = format!("{}, {}, {}", b'L', b'I', b'V');
    for output in &outputs {
        for mark in MARKS.iter().copied().chain([spelled.as_str()]) {
            let line = output.lines().find(|line| line.contains(mark));
            assert_eq!(line, None, "{mark} came out");
        }
    }
}

#[tokio::test]
async fn without_permission_and_beyond_the_share_nothing_is_compared() {
    let Pair { baseline, candidate, .. } = pair(|dir| tiny_model(dir, 1)).await;
    let asked = async || {
        let text = baseline.get("/metrics").await.text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with("bitnet_background_seconds_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0
    };
    let send = async |chosen: bool| {
        for id in ids(chosen).take(30) {
            ask(&candidate, &id, "a prompt").await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    send(true).await;
    assert!(!asked().await, "off unless allowed");
    allow(&candidate, &permission(10, 60)).await;
    send(false).await;
    assert!(!asked().await, "the others are not in the share");
    allow(&candidate, &permission(10, 60)).await;
    allow(&candidate, &permission(0, 60)).await;
    send(true).await;
    assert!(!asked().await, "taken back");
    allow(&candidate, &permission(10, 1)).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    send(true).await;
    assert!(!asked().await, "a permission ends by itself");
    allow(&candidate, &permission(10, 60)).await;
    send(true).await;
    assert!(asked().await, "the control: with a permission they are compared");
}

#[tokio::test]
async fn more_than_a_tenth_and_strangers_are_refused() {
    let Pair { candidate, .. } = pair(|dir| tiny_model(dir, 1)).await;
    let cases = [
        ("percent", permission(11, 60)),
        ("seconds", permission(5, 0)),
        ("baseline", ShadowRequest { baseline: "other-aaaaaaaaaa".into(), ..permission(5, 60) }),
        ("baseline", ShadowRequest { baseline: "chat-baseline".into(), ..permission(5, 60) }),
        ("tailMin", ShadowRequest { tail_min: 1.0, ..permission(5, 60) }),
    ];
    for (field, permission) in cases {
        let answer = candidate.post(SHADOW_PATH, &serde_json::to_value(&permission).unwrap()).await;
        assert_eq!(answer.status(), 400, "{field}");
        assert!(answer.text().await.unwrap().contains(&format!("`{field}`")), "{field}");
    }
}

#[tokio::test]
async fn a_busy_engine_drops_live_prompts_and_says_so() {
    let fake = support::fake("yes", |s| s.rollout = Some("chat".to_owned())).await;
    let mut running = Running::start(fake.worker.clone()).await;
    allow(&running, &permission(10, 60)).await;
    // Slow answers keep the engine busy: the places fill up and no prompt is compared meanwhile.
    let prompt = support::WAITS.to_string();
    let mut asked = tokio::task::JoinSet::new();
    for id in ids(true).take(8) {
        let body = json!({"prompt": prompt, "max_tokens": 10});
        let request = client().post(running.url("/v1/completions")).json(&body).header("x-request-id", id);
        asked.spawn(async move { request.send().await.unwrap().status() });
    }
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.unwrap(), 200, "users notice nothing");
    }
    let found = allow(&running, &permission(10, 60)).await;
    assert_eq!(found.samples, 0);
    assert!(found.dropped.contains(&("queueFull".to_owned(), 4)), "{found:?}");
    running.stop(inference_worker::serve::Stop::Now);
}
