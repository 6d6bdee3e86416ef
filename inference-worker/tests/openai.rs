//! What OpenAI, vLLM and llama-server clients ask for beside text: choices, likelihoods, tokens, deadlines, metrics.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use inference_worker::engine::random::Random;
use inference_worker::model::{LoadOptions, Model, Step, Want};
use inference_worker::serve::{MetricNames, TIME_HEADER};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{BREAKS, Fake, Running, WAITS, ask, client, counters, fake, object, text, tiny, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn post(fake: &Fake, path: &str, body: &Value) -> Response {
    ask(&fake.worker, Request::post(path).body(Body::from(body.to_string())).unwrap()).await
}

fn chunks(stream: &str) -> Vec<Value> {
    let data = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let mut data: Vec<&str> = data.collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{stream}");
    data.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

#[tokio::test]
async fn several_choices_have_an_index_each_and_are_one_request() {
    let fake = fake("one é", |_| ()).await;
    let body = json!({"messages": [{"role": "user", "content": "x"}], "n": 3});
    let answer = object(post(&fake, CHAT, &body).await).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(choices.iter().all(|c| c["message"]["content"] == "one é" && c["finish_reason"] == "stop"));
    assert_eq!(answer["usage"]["completion_tokens"], 18);
    let body = json!({"messages": [{"role": "user", "content": "x"}], "n": 3, "stream": true});
    let chunks = chunks(&text(post(&fake, CHAT, &body).await).await);
    for index in 0..3 {
        let mine: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
        assert_eq!(mine[0]["delta"]["role"], "assistant");
        assert_eq!(mine.iter().filter_map(|c| c["delta"]["content"].as_str()).collect::<String>(), "one é");
        assert_eq!(mine.last().unwrap()["finish_reason"], "stop");
        assert_eq!(mine.iter().filter(|c| !c["finish_reason"].is_null()).count(), 1);
    }
    let counted = counters(&fake).await;
    assert_eq!((counted.started, counted.finished, counted.generated_tokens), (2, 2, 36));
    assert_eq!((counted.ttft.total(), counted.tpot.total()), (2, 2));
    let broken = post(&fake, COMPLETIONS, &json!({"prompt": BREAKS.to_string(), "n": 2})).await;
    assert_eq!(broken.status(), 500);
    assert_eq!(counters(&fake).await.errors.non_finite, 1, "one request, one error");
}

#[tokio::test]
async fn choices_of_a_seed_differ_and_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let worker = tiny(&dir).await;
    let body = json!({"prompt": [1, 2, 3], "n": 3, "seed": 9, "temperature": 1, "max_tokens": 12, "ignore_eos": true});
    let run = async || {
        let request = Request::post(COMPLETIONS).body(Body::from(body.to_string())).unwrap();
        let answer = object(ask(&worker, request).await).await;
        let choices = answer["choices"].as_array().unwrap().clone();
        choices.into_iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = run().await;
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    assert_eq!(run().await, first);
}

#[tokio::test]
async fn likelihoods_are_those_of_the_models_logits() {
    let dir = tempfile::tempdir().unwrap();
    let worker = tiny(&dir).await;
    let prompt = [7_u32, 8, 9];
    let body = json!({"prompt": prompt, "max_tokens": 5, "temperature": 0, "logprobs": 3, "ignore_eos": true});
    let request = Request::post(COMPLETIONS).body(Body::from(body.to_string())).unwrap();
    let answer = object(ask(&worker, request).await).await;
    let said = &answer["choices"][0]["logprobs"];
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let found = numbers(&said["token_logprobs"]);
    assert_eq!((found.len(), said["tokens"].as_array().unwrap().len()), (5, 5));
    let model = Model::load(dir.path(), &LoadOptions::default()).unwrap();
    let mut cache = model.new_cache(16);
    let mut tokens = prompt.to_vec();
    for (step, found) in found.iter().enumerate() {
        let new = if step == 0 { tokens.clone() } else { vec![*tokens.last().unwrap()] };
        let mut steps = [Step::new(&mut cache, &new, Want::Last)];
        model.forward(&mut steps).unwrap();
        let logits = &steps[0].logits;
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|x| f64::from(x - best).exp()).sum();
        assert!((found + total.ln()).abs() < 1e-5, "{found} {}", -total.ln());
        let top = said["top_logprobs"][step].as_object().unwrap();
        let largest = top.values().map(|v| v.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert!((largest - found).abs() < 1e-6 && top.len() <= 3, "greedy takes the likeliest");
        tokens.push(logits.iter().position(|x| *x == best).unwrap() as u32);
    }
}

#[tokio::test]
async fn likelihoods_have_openais_form_in_both_endpoints_and_in_streams() {
    let fake = fake("aé", |_| ()).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    let body = json!({"messages": messages, "logprobs": true, "top_logprobs": 2});
    let whole = object(post(&fake, CHAT, &body).await).await;
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    // Three bytes, the last two of which are one character.
    assert_eq!(content.len(), 3);
    assert_eq!((&content[0]["token"], &content[0]["bytes"]), (&json!("a"), &json!([97])));
    assert_eq!(
        (&content[1]["bytes"], &content[2]["bytes"]),
        (&json!([0xc3]), &json!([0xa9])),
        "parts of one character"
    );
    assert!(content[0]["logprob"].as_f64().unwrap().abs() < 1e-6);
    assert_eq!(content[0]["top_logprobs"][0]["token"], "a");
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let body = json!({"messages": messages, "logprobs": true, "top_logprobs": 2, "stream": true});
    let streamed = chunks(&text(post(&fake, CHAT, &body).await).await);
    let lists = streamed.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(lists.flatten().cloned().collect::<Vec<_>>(), content, "each token once, in order");
    let body = json!({"prompt": "x", "logprobs": 0});
    let columns = object(post(&fake, COMPLETIONS, &body).await).await["choices"][0]["logprobs"].clone();
    assert_eq!(columns["text_offset"], json!([0, 1, 2]));
    assert_eq!(columns["top_logprobs"][0], json!({"a": columns["token_logprobs"][0]}), "the token itself, always");
    let plain = object(post(&fake, COMPLETIONS, &json!({"prompt": "x"})).await).await;
    assert!(plain["choices"][0]["logprobs"].is_null());
}

#[tokio::test]
async fn ids_can_end_an_answer_and_the_models_own_end_can_be_ignored() {
    let fake = fake("abc", |_| ()).await;
    let stopped = object(post(&fake, COMPLETIONS, &json!({"prompt": "x", "stop_token_ids": [98]})).await).await;
    assert_eq!(
        (&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]),
        (&json!("a"), &json!("stop"))
    );
    let body = json!({"prompt": "x", "ignore_eos": true, "max_tokens": 6});
    let full = object(post(&fake, COMPLETIONS, &body).await).await;
    assert_eq!((&full["usage"]["completion_tokens"], &full["choices"][0]["text"]), (&json!(6), &json!("abc")));
}

#[tokio::test]
async fn an_unlikely_token_that_was_taken_is_among_the_likely_ones() {
    let dir = tempfile::tempdir().unwrap();
    let worker = tiny(&dir).await;
    let body = json!({"prompt": [7], "max_tokens": 40, "temperature": 3, "seed": 1, "logprobs": 1, "ignore_eos": true});
    let request = Request::post(COMPLETIONS).body(Body::from(body.to_string())).unwrap();
    let said = object(ask(&worker, request).await).await["choices"][0]["logprobs"].clone();
    let mut unlikely = 0;
    for at in 0..40 {
        let top = said["top_logprobs"][at].as_object().unwrap();
        assert!(top.contains_key(said["tokens"][at].as_str().unwrap()) && top.len() <= 2, "{top:?}");
        unlikely += usize::from(top.len() == 2);
    }
    assert!(unlikely > 0, "at this temperature not all tokens are the likeliest");
}

#[tokio::test]
async fn what_vllms_clients_rely_on() {
    let fake = fake("one two", |_| ()).await;
    let said = async |more: Value| {
        let mut body = json!({"prompt": "x", "max_tokens": 12, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let response = post(&fake, COMPLETIONS, &body).await;
        assert_eq!(response.status(), 200, "{more}");
        let answer = object(response).await;
        let choice = &answer["choices"][0];
        (choice["text"].as_str().unwrap().to_owned(), answer["usage"]["completion_tokens"].as_u64().unwrap())
    };
    let text = async |more: Value| said(more).await.0;
    assert_eq!(text(json!({"stop": " tw"})).await, "one");
    assert_eq!(text(json!({"stop": " tw", "include_stop_str_in_output": true})).await, "one tw");
    assert_eq!(text(json!({"stop": "o", "min_tokens": 2})).await, "one tw", "not looked for in the first two tokens");
    assert_eq!(text(json!({"echo": true})).await, "xone two");
    assert_eq!(said(json!({"min_tokens": 10})).await.1, 10, "the model's own end is not taken before that");
    let endless = json!({"ignore_eos": true, "max_tokens": 8});
    assert_eq!(text(endless.clone()).await, "one two");
    let mut written = endless;
    written["skip_special_tokens"] = json!(false);
    assert_eq!(text(written).await, "one two<eos>");
    // The script's logits are 60 above the others.
    assert!(text(json!({"logit_bias": {"110": -100}})).await.starts_with('o'), "110 is n");
    assert!(!text(json!({"logit_bias": {"110": -100}})).await.contains('n'));
    assert!(text(json!({"logit_bias": {"122": 100}})).await.starts_with("zzz"));
    assert_eq!(text(json!({"temperature": 50, "top_k": 1})).await, "one two");
    for (field, value) in [
        ("logit_bias", json!({"257": 1})),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("min_tokens", json!(13)),
        ("frequency_penalty", json!(-2.5)),
        ("repetition_penalty", json!(0)),
    ] {
        let response = post(&fake, COMPLETIONS, &json!({"prompt": "x", "max_tokens": 12, field: value})).await;
        assert_eq!(response.status(), 400, "{field}");
        assert_eq!(object(response).await["error"]["param"], field);
    }
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false});
    let answer = object(post(&fake, CHAT, &chat).await).await;
    assert_eq!(answer["usage"]["prompt_tokens"], "<user>x\n".len());
}

#[tokio::test]
async fn penalties_keep_a_model_from_repeating_itself() {
    let dir = tempfile::tempdir().unwrap();
    let worker = tiny(&dir).await;
    let distinct = async |penalty: Value| {
        let mut body = json!({
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 100, "temperature": 0, "ignore_eos": true, "logprobs": true,
        });
        body.as_object_mut().unwrap().extend(penalty.as_object().unwrap().clone());
        let request = Request::post(CHAT).body(Body::from(body.to_string())).unwrap();
        let answer = object(ask(&worker, request).await).await;
        let said = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
        said.iter().map(|token| token["bytes"].to_string()).collect::<std::collections::BTreeSet<_>>().len()
    };
    let plain = distinct(json!({})).await;
    assert!(distinct(json!({"frequency_penalty": 2})).await > plain, "{plain} of 100");
    assert!(distinct(json!({"repetition_penalty": 1.5})).await > plain, "{plain} of 100");
}

#[tokio::test]
async fn a_request_that_says_nothing_gets_the_models_own_way_of_drawing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("generation_config.json"), json!({"top_k": 1}).to_string()).unwrap();
    let worker = tiny(&dir).await;
    let said = async |more: Value| {
        let mut body = json!({"prompt": [7], "max_tokens": 30, "ignore_eos": true, "seed": 4});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = Request::post(COMPLETIONS).body(Body::from(body.to_string())).unwrap();
        object(ask(&worker, request).await).await["choices"][0]["text"].clone()
    };
    let greedy = said(json!({"temperature": 0})).await;
    assert_eq!(said(json!({})).await, greedy);
    assert_ne!(said(json!({"top_k": -1, "temperature": 2})).await, greedy, "what a request says counts");
}

#[tokio::test]
async fn several_prompts_have_choices_each_and_one_usage() {
    let fake = fake("ab", |_| ()).await;
    let body = json!({"prompt": ["x", "yy"], "n": 2, "echo": true});
    let answer = object(post(&fake, COMPLETIONS, &body).await).await;
    let texts: Vec<&str> =
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["xab", "xab", "yyab", "yyab"]);
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(3), &json!(8)));
    let body = json!({"prompt": [[120], [121, 121]], "echo": true, "stream": true});
    let chunks = chunks(&text(post(&fake, COMPLETIONS, &body).await).await);
    for (index, wanted) in ["xab", "yyab"].into_iter().enumerate() {
        let mine = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        assert_eq!(mine.filter_map(|choice| choice["text"].as_str()).collect::<String>(), wanted);
    }
}

#[tokio::test]
async fn choices_of_one_prompt_read_it_once() {
    let fake = fake("ab", |_| ()).await;
    let prompt = "this prompt has four times eleven characters";
    let usage = object(post(&fake, COMPLETIONS, &json!({"prompt": prompt, "n": 16})).await).await["usage"].clone();
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(prompt.len()), &json!(32)));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], prompt.len() - 1);
}

#[tokio::test]
async fn a_model_has_a_page_of_its_own() {
    let fake = fake("ab", |s| s.rollout = Some("chat".to_owned())).await;
    let get = async |path: &str| ask(&fake.worker, Request::get(path).body(Body::empty()).unwrap()).await;
    let list = object(get("/v1/models").await).await;
    assert_eq!(object(get("/v1/models/chat").await).await, list["data"][0]);
    let other = get("/v1/models/gpt").await;
    assert_eq!(other.status(), 404);
    let error = object(other).await["error"].clone();
    assert_eq!(error["code"], "model_not_found");
    assert!(error["message"].as_str().unwrap().contains("`chat`"));
}

#[tokio::test]
async fn texts_become_tokens_and_tokens_texts() {
    let fake = fake("a", |_| ()).await;
    let tokens = async |body: Value| object(post(&fake, "/tokenize", &body).await).await;
    let vllm = tokens(json!({"model": "chat", "prompt": "hé"})).await;
    assert_eq!(vllm, json!({"count": 3, "max_model_len": 256, "tokens": [104, 195, 169]}));
    assert_eq!(tokens(json!({"content": "hé", "add_special": false})).await["tokens"], vllm["tokens"]);
    let chat = tokens(json!({"messages": [{"role": "user", "content": "x"}]})).await;
    assert_eq!(chat["count"], "<user>x\n<assistant>".len());
    let back = object(post(&fake, "/detokenize", &json!({"tokens": [104, 195, 169, 256]})).await).await;
    assert_eq!((&back["prompt"], &back["content"]), (&json!("hé<eos>"), &json!("hé<eos>")));
    for (path, body, names) in [
        ("/tokenize", json!({}), "exactly one"),
        ("/tokenize", json!({"prompt": "a", "content": "b"}), "exactly one"),
        ("/tokenize", json!({"prompt": 3}), "must be a string"),
        ("/detokenize", json!({"tokens": [257]}), "vocabulary"),
        ("/detokenize", json!({"tokens": [-1]}), "token ids"),
    ] {
        let response = post(&fake, path, &body).await;
        assert_eq!(response.status(), 400, "{body}");
        let answer = object(response).await;
        assert!(answer["error"]["message"].as_str().unwrap().contains(names), "{body}: {answer}");
    }
    assert_eq!(counters(&fake).await.started, 0);
}

#[tokio::test]
async fn a_clients_own_deadline_ends_its_request_and_is_nobodys_error() {
    let fake = fake("ab", |_| ()).await;
    let body = json!({"prompt": WAITS.to_string(), "max_tokens": 200}).to_string();
    let timed =
        |value: &str| Request::post(COMPLETIONS).header(TIME_HEADER, value).body(Body::from(body.clone())).unwrap();
    let start = Instant::now();
    let late = ask(&fake.worker, timed("150")).await;
    assert_eq!(late.status(), 504);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(object(late).await["error"]["code"], "deadline_exceeded");
    until("the slot is free", || fake.engine.running() == 0).await;
    let counted = counters(&fake).await;
    assert_eq!((counted.started, counted.errors.total(), counted.in_flight), (0, 0, 0));
    assert_eq!(counted.ttft.total(), 1, "its first token was on time and stays on record");
    for bad in ["0", "-5", "soon", "1.5"] {
        let refused = ask(&fake.worker, timed(bad)).await;
        assert_eq!(refused.status(), 400, "{bad}");
        assert!(object(refused).await["error"]["message"].as_str().unwrap().contains(TIME_HEADER));
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_closes_its_connection_and_nothing_else_does() {
    // Settings of tests: 300 ms for a head.
    let fake = fake("ab", |_| ()).await;
    let running = Running::start(Arc::clone(&fake.worker)).await;
    for address in [running.public, running.internal] {
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"POST /v1/completions HTTP/1.1\r\nhost:").await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the connection is closed");
    }
    let body = json!({"prompt": "x", "max_tokens": 2}).to_string();
    let head = format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut kept = TcpStream::connect(running.public).await.unwrap();
    for round in 0..2 {
        // Idle before the first and between two requests; the body comes late.
        tokio::time::sleep(Duration::from_millis(500)).await;
        kept.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        kept.write_all(body.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = kept.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "round {round}");
    }
    let long = json!({"prompt": WAITS.to_string(), "max_tokens": 40, "stream": true});
    let stream = client().post(running.url(COMPLETIONS)).json(&long).send().await.unwrap().text().await.unwrap();
    assert!(stream.contains("[DONE]"), "40 tokens take 1.2 s");
}

#[tokio::test]
async fn a_beginning_that_was_read_before_is_not_read_again() {
    let fake = fake("ab", |s| s.metric_names = MetricNames::Ours).await;
    let system = "you are a very helpful assistant. ";
    let usage = async |prompt: String| {
        object(post(&fake, COMPLETIONS, &json!({"prompt": prompt})).await).await["usage"].clone()
    };
    assert_eq!(usage(format!("{system}one")).await["prompt_tokens_details"]["cached_tokens"], 0);
    until("the slot is free", || fake.engine.running() == 0).await;
    let second = usage(format!("{system}two")).await;
    assert_eq!(second["prompt_tokens_details"]["cached_tokens"], system.len());
    assert_eq!(second["prompt_tokens"], system.len() + 3);
    let get = Request::get("/metrics").body(Body::empty()).unwrap();
    let metrics = text(ask(&fake.worker, get).await).await;
    let hits = format!("bitnet_prefix_cache_hit_tokens_total{{model_name=\"{}\"}} {}", name(&fake), system.len());
    assert!(metrics.contains(&hits), "{hits} is not in\n{metrics}");
    let queries = format!("bitnet_prefix_cache_query_tokens_total{{model_name=\"{}\"}}", name(&fake));
    let queries = format!("{queries} {}", 2 * (system.len() + 3));
    assert!(metrics.contains(&queries), "{queries} is not in\n{metrics}");
    assert!(!metrics.contains("vllm:"), "names of others only on request");
}

fn name(fake: &Fake) -> String {
    fake.directory().file_name().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn metrics_say_what_serves_what_it_reads_and_what_broke() {
    let fake = fake("ab", |s| s.rollout = Some("chat".to_owned())).await;
    post(&fake, COMPLETIONS, &json!({"prompt": BREAKS.to_string()})).await;
    let get = || Request::get("/metrics").body(Body::empty()).unwrap();
    let metrics = text(ask(&fake.worker, get()).await).await;
    for line in [
        "bitnet_weight_bytes_per_pass{model_name=\"chat\"} 1000",
        "bitnet_non_finite_logits_total{model_name=\"chat\"} 1",
        "bitnet_requests_failed_total{model_name=\"chat\",class=\"non_finite\"} 1",
        "kernel=\"scripted\"",
        "threads=\"1\"",
        "bitnet_involuntary_context_switches_total",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let number = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    assert_eq!(number("bitnet_weight_read_bytes_total"), 1000 * number("bitnet_forward_passes_total"));
    assert!(number("bitnet_forward_passes_total") >= 2);
    let health = ask(&fake.worker, Request::get("/health").body(Body::empty()).unwrap()).await;
    assert_eq!(object(health).await, json!({"status": "ok"}));
    fake.worker.start_draining();
    let health = ask(&fake.worker, Request::get("/health").body(Body::empty()).unwrap()).await;
    assert_eq!(health.status(), 503);
    assert_eq!(object(health).await["error"]["type"], "unavailable_error");
}

/// A value of any kind, small.
fn value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 7 } else { 9 }) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(random.below(5)),
        3 => json!(-1 - random.below(3) as i64),
        4 => json!(random.bits()),
        5 => json!(random.unit() * 3.0 - 1.0),
        6 => json!("é~x".repeat(random.below(3))),
        7 => (0..random.below(3)).map(|_| value(random, depth - 1)).collect(),
        _ => json!({"role": value(random, depth - 1), "content": value(random, depth - 1)}),
    }
}

#[tokio::test]
async fn no_body_breaks_the_server() {
    const FIELDS: [&str; 31] = [
        "prompt",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "best_of",
        "stream",
        "stream_options",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "logprobs",
        "top_logprobs",
        "echo",
        "suffix",
        "tools",
        "min_tokens",
        "repetition_penalty",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "response_format",
        "structured_outputs",
        "logit_bias",
        "ignore_eos",
        "content",
        "tokens",
        "add_special",
    ];
    let fake = fake("ab", |_| ()).await;
    let mut random = Random::from_seed(1);
    let mut good = 0;
    for _ in 0..2000 {
        let mut body = json!({"prompt": "a", "messages": [{"role": "user", "content": "b"}], "tokens": [1]});
        for _ in 0..random.below(4) {
            body[FIELDS[random.below(FIELDS.len())]] = value(&mut random, 2);
        }
        let mut bytes = body.to_string().into_bytes();
        if random.below(4) == 0 {
            let at = random.below(bytes.len());
            bytes[at] = random.bits() as u8;
        }
        let path = [COMPLETIONS, CHAT, "/tokenize", "/detokenize"][random.below(4)];
        // The byte `~` in a prompt ends the scripted engine, which is not what is tested here.
        bytes.iter_mut().filter(|b| matches!(**b, b'~' | b'&' | b'%' | b'!')).for_each(|b| *b = b'x');
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let response = ask(&fake.worker, Request::post(path).body(Body::from(bytes)).unwrap()).await;
        let status = response.status().as_u16();
        assert!(status == 200 || status == 400, "{path} {shown}: {status}");
        good += u32::from(status == 200);
        let answer = text(response).await;
        assert!(status == 200 || serde_json::from_str::<Value>(&answer).unwrap()["error"]["message"].is_string());
    }
    assert!(good > 200, "{good} of 2000 were good requests");
    assert!(fake.engine.is_alive());
    assert_eq!(counters(&fake).await.errors.total(), 0);
}
