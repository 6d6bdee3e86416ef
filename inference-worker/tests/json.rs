//! Answers that are held to a schema: a model of random weights must write what fits, whatever it would rather say.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use inference_worker::serve::Worker;
use serde_json::{Value, json};
use std::sync::Arc;
use support::{Fake, ask, counters, fake, object, text, tiny};

const CHAT: &str = "/v1/chat/completions";

async fn post(worker: &Arc<Worker>, path: &str, body: &Value) -> Response {
    let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
    ask(worker, request).await
}

/// Everything in it is bounded, so that no answer is longer than some hundred tokens.
fn ticket() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["bug", "question"]},
            "urgent": {"type": "boolean"},
            "title": {"type": "string", "pattern": "^[a-z]{2,8}$"},
            "lines": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 99}, "maxItems": 3},
        },
        "required": ["kind", "urgent", "title", "lines"],
        "additionalProperties": false,
    })
}

fn fits(answer: &str) -> bool {
    let Ok(Value::Object(fields)) = serde_json::from_str(answer) else { return false };
    let title = fields["title"].as_str().unwrap_or_default();
    fields.len() == 4
        && matches!(fields["kind"].as_str(), Some("bug" | "question"))
        && fields["urgent"].is_boolean()
        && (2..=8).contains(&title.len())
        && title.bytes().all(|b| b.is_ascii_lowercase())
        && fields["lines"].as_array().is_some_and(|lines| {
            lines.len() <= 3 && lines.iter().all(|line| line.as_u64().is_some_and(|n| (1..=99).contains(&n)))
        })
}

#[tokio::test]
async fn a_model_of_random_weights_fills_in_the_form() {
    let dir = tempfile::tempdir().unwrap();
    let worker = tiny(&dir).await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "ticket", "strict": true, "schema": ticket()}});
    let body = |seed: u64, format: Option<&Value>| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}], "seed": seed, "max_tokens": 200});
        if let Some(format) = format {
            body["response_format"] = format.clone();
        }
        body
    };
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let answer = object(post(&worker, CHAT, &body(seed, Some(&format))).await).await;
        let choice = &answer["choices"][0];
        let said = choice["message"]["content"].as_str().unwrap();
        assert_eq!(choice["finish_reason"], "stop", "{said}");
        assert!(fits(said), "{said}");
        kinds.insert(serde_json::from_str::<Value>(said).unwrap()["kind"].to_string());
    }
    assert_eq!(kinds.len(), 2, "the model chooses where the form leaves a choice");
    let free = object(post(&worker, CHAT, &body(0, None)).await).await;
    assert!(!fits(free["choices"][0]["message"]["content"].as_str().unwrap()), "without a form it writes anything");

    // The same by vLLM's name, greedy, with choices that go their own ways, and as a stream.
    let mut several = body(1, None);
    several["structured_outputs"] = json!({"json": ticket()});
    several["n"] = json!(3);
    let answer = object(post(&worker, CHAT, &several).await).await;
    let choices = answer["choices"].as_array().unwrap();
    assert!(choices.len() == 3 && choices.iter().all(|c| fits(c["message"]["content"].as_str().unwrap())));
    let mut streamed = body(1, Some(&format));
    streamed["stream"] = json!(true);
    streamed["temperature"] = json!(0);
    let events = text(post(&worker, CHAT, &streamed).await).await;
    let pieces = events.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let said: String = pieces.filter_map(|p| Some(p["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect();
    assert!(fits(&said), "{said}");
}

#[tokio::test]
async fn an_object_of_any_kind_begins_as_one_and_a_cut_one_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let worker = tiny(&dir).await;
    for seed in 0..10 {
        let body = json!({"prompt": "x", "seed": seed, "max_tokens": 60, "response_format": {"type": "json_object"}});
        let answer = object(post(&worker, "/v1/completions", &body).await).await;
        let said = answer["choices"][0]["text"].as_str().unwrap();
        assert!(said.trim_start().starts_with('{'), "{said}");
        match answer["choices"][0]["finish_reason"].as_str() {
            Some("stop") => assert!(serde_json::from_str::<Value>(said).unwrap().is_object(), "{said}"),
            end => assert_eq!(end, Some("length"), "{said}"),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_and_counts_for_nobody() {
    let fake: Fake = fake("ab", |_| ()).await;
    let refused = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let worker = Arc::clone(&fake.worker);
        async move {
            let response = post(&worker, CHAT, &body).await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
            let error = object(response).await["error"].clone();
            (error["param"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
        }
    };
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
    for (body, param, word) in [
        (json!({"response_format": {"type": "xml"}}), "response_format", "json_schema"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format", "`schema`"),
        (schema(json!("x")), "response_format", "object"),
        (schema(json!({"type": "nothing"})), "response_format", "cannot be followed"),
        (schema(json!({"type": "integer", "minimum": 2, "maximum": 1})), "response_format", "cannot be followed"),
        (schema(json!({"$ref": "https://example.com/schema"})), "response_format", "cannot be followed"),
        (json!({"structured_outputs": {"regex": "a+"}}), "structured_outputs", "`json`"),
        (json!({"guided_json": {}}), "guided_json", "response_format"),
        (json!({"response_format": {"type": "json_object"}, "ignore_eos": true}), "ignore_eos", "leave it out"),
        (
            json!({"response_format": {"type": "json_object"}, "structured_outputs": {"json": {}}}),
            "structured_outputs",
            "not both",
        ),
    ] {
        let (named, message) = refused(body.clone()).await;
        assert!(named == param && message.contains(word), "{body}: {named}: {message}");
    }
    let seen = counters(&fake).await;
    assert_eq!((seen.started, seen.errors.total()), (0, 0), "a schema that is none is no error of the model");
}
