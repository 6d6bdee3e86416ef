//! The internal port: who serves, what it did, bounded bodies, work for peers.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use bitnet_api::worker::{GenerateResult, Identity};
use serde_json::{Value, json};
use support::{counters, fake, internal, object};

#[tokio::test]
async fn the_internal_port_says_who_serves_and_what_it_did() {
    let fake = fake("abc", |_| ()).await;
    let identity: Identity =
        serde_json::from_value(object(internal(&fake, "/internal/v1/identity", None).await).await).unwrap();
    assert_eq!((identity.revision.as_str(), identity.vocabulary, identity.context), ("chat-abcdefg234", 257, 256));
    assert_eq!((identity.eos.as_slice(), identity.tokenizer.len(), identity.chat_template.len()), (&[256][..], 64, 64));
    let counted = counters(&fake).await;
    assert_eq!(counted.process, identity.process);
    assert!(counted.ready_seconds > 0.0);
    assert_eq!(counted.started, 0, "the warm-up is no live request");

    let generate = async |body: Value| internal(&fake, "/internal/v1/generate", Some(&body)).await;
    let result: GenerateResult =
        serde_json::from_value(object(generate(json!({"prompt": [1], "tokens": 8})).await).await).unwrap();
    assert_eq!((result.tokens.as_slice(), result.alone, result.non_finite), (&[97, 98, 99][..], true, 0));
    assert!(result.ttft > 0.0 && result.tpot > 0.0 && result.busy_seconds > 0.0);
    assert_eq!(result.process, identity.process);
    let forced = object(generate(json!({"prompt": [1], "tokens": 5, "forced": true})).await).await;
    assert_eq!(forced["tokens"], json!([97, 98, 99, 256, 256]));
    let broken = object(generate(json!({"prompt": [33, 33], "tokens": 5, "forced": true})).await).await;
    assert_eq!((&broken["tokens"], &broken["nonFinite"]), (&json!([97, 98]), &json!(1)));
    let score = internal(&fake, "/internal/v1/score", Some(&json!({"tokens": [1], "positions": [0]}))).await;
    assert_eq!(score.headers()["content-type"], "application/octet-stream");
    let bytes = axum::body::to_bytes(score.into_body(), usize::MAX).await.unwrap();
    assert_eq!(bytes.len(), 2 * 257);
    assert_eq!(&bytes[2 * 97..2 * 98], half::f16::from_f32(60.0).to_le_bytes());
    assert_eq!(counters(&fake).await.started, 0, "internal work is no live request");
}

#[tokio::test]
async fn a_cached_continuation_asks_the_engine_once() {
    let fake = fake("abc", |_| ()).await;
    let body = json!({"prompt": [1, 2], "tokens": 8, "cached": true});
    let ask = async |body: &Value| -> GenerateResult {
        serde_json::from_value(object(internal(&fake, "/internal/v1/generate", Some(body)).await).await).unwrap()
    };
    let first = ask(&body).await;
    assert!(first.alone && first.ttft > 0.0);
    let second = ask(&body).await;
    assert_eq!((second.tokens, second.ttft, second.alone), (first.tokens, 0.0, false));
    let fresh = ask(&json!({"prompt": [1, 2], "tokens": 8})).await;
    assert!(fresh.ttft > 0.0, "who does not ask for the cache gets none of it");
    let forced = ask(&json!({"prompt": [1, 2], "tokens": 8, "cached": true, "forced": true})).await;
    assert!(forced.ttft > 0.0 && forced.tokens.len() == 8, "pairs are never cached");
}

#[tokio::test]
async fn internal_bodies_are_bounded_and_checked() {
    let fake = fake("a", |s| s.rollout = Some("chat".to_owned())).await;
    let compare = json!({
        "key": "k", "uid": "u", "attempt": 1, "tick": 1, "baseline": "chat-aaaaaaaaaa", "stable": "chat-bbbbbbbbbb",
        "probes": 1, "maxTokens": 4, "positions": 2, "pairs": 1, "pairTokens": 4,
    });
    let with = |field: &str, value: Value| {
        let mut body = compare.clone();
        body[field] = value;
        body
    };
    for (path, body, names) in [
        ("score", json!({"tokens": [], "positions": [0]}), "tokens"),
        ("score", json!({"tokens": [1], "positions": []}), "positions"),
        ("score", json!({"tokens": [1], "positions": [1]}), "positions"),
        ("score", json!({"tokens": [1], "positions": vec![0; 65]}), "positions"),
        ("score", json!({"tokens": [257], "positions": [0]}), "vocabulary"),
        ("score", json!({"tokens": vec![1; 257], "positions": [0]}), "context"),
        ("score", json!({"tokens": [1], "positions": [0], "url": "http://x"}), "url"),
        ("generate", json!({"prompt": [1], "tokens": 0}), "tokens"),
        ("generate", json!({"prompt": [1], "tokens": 513}), "tokens"),
        ("generate", json!({"prompt": vec![1; 250], "tokens": 8}), "context"),
        ("compare", with("probes", json!(0)), "`probes`"),
        ("compare", with("pairTokens", json!(257)), "`pairTokens`"),
        ("compare", with("baseline", json!("chat-baseline")), "`baseline`"),
        ("compare", with("stable", json!("other-aaaaaaaaaa")), "`stable`"),
        ("compare", with("stable", json!("169.254.169.254")), "`stable`"),
        ("compare", with("key", json!("A/../B")), "`key`"),
        ("compare", with("peer", json!("http://x")), "peer"),
        ("compare", with("tick", json!(-1)), "invalid value"),
    ] {
        let response = internal(&fake, &format!("/internal/v1/{path}"), Some(&body)).await;
        assert_eq!(response.status(), 400, "{path} {names}");
        let answer = object(response).await;
        assert_eq!(answer["error"]["code"], "invalid");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(names), "{path}: {message}");
    }
    let large = json!({"tokens": vec![100_000; 400_000], "positions": [0]});
    assert_eq!(internal(&fake, "/internal/v1/score", Some(&large)).await.status(), 413);
    assert_eq!(internal(&fake, "/internal/v1/compare/none", None).await.status(), 404);
    assert_eq!(internal(&fake, "/internal/v1/other", None).await.status(), 404);
}
