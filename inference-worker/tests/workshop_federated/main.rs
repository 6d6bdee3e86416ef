//! Federated rounds over real HTTP in one process, with every fault that a client or a coordinator can have.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod ground;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use ground::{Ground, Hand, MODELS, SHAPE, loopback, masters, start, text, token};
use inference_worker::model::{LoadOptions, Model};
use inference_worker::workshop::WorkshopError;
use inference_worker::workshop::export::read_tensors;
use inference_worker::workshop::federated::{ClientSettings, Coordinator, FederatedError, Part, take_part};
use inference_worker::workshop::inspect::inspect;
use inference_worker::workshop::progress::Silent;
use inference_worker::workshop::recipe::ModelShape;
use inference_worker::workshop::text::documents;
use inference_worker::workshop::weights::layout;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_several_clients_come_closer_than_any_client_alone() {
    let ground = Ground::new();
    let (address, coordinator) = ground.coordinator(3, |_| ()).await;
    let clients: Vec<_> =
        ["a", "b", "c"].iter().zip(1..).map(|(name, seed)| ground.joins(address, name, seed)).collect();
    for client in clients {
        let part = client.await.unwrap().unwrap();
        assert_eq!((part.delivered, part.late), (3, 0));
        assert!(part.loss.unwrap().is_finite());
    }
    let finished = coordinator.await.unwrap().unwrap();
    assert_eq!(finished.rounds, 3);

    let rounds = ground.rounds();
    assert_eq!(rounds.len(), 3);
    let kl = |validation: &Value| validation["kl"].as_f64().unwrap();
    let (mut averages, mut means) = (0.0, 0.0);
    for round in &rounds {
        let clients = round["clients"].as_object().unwrap();
        assert_eq!(clients.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        averages += kl(&round["average"]);
        means += clients.values().map(|client| kl(&client["validation"])).sum::<f64>() / 3.0;
    }
    // A loss that is convex between the clients is no larger at their average than its mean over them (Jensen). Live
    // weights are ternary, a step at every border, so a single round may miss that by some per cent, and its average may
    // lie above its best client; over all rounds the steps cancel.
    assert!(averages < means, "averages of masters are closer than the clients' own: {rounds:?}");
    assert!(kl(&rounds[2]["average"]) < kl(&rounds[0]["average"]), "rounds bring it closer");
    // The same rounds alone, for each of them. Everything is seeded: this is a fact of these texts.
    for (name, seed) in ["a", "b", "c"].iter().zip(1..) {
        let alone = Ground::new();
        let (address, coordinator) = alone.coordinator(1, |_| ()).await;
        alone.joins(address, name, seed).await.unwrap().unwrap();
        let alone = coordinator.await.unwrap().unwrap().validation;
        assert!(finished.validation.kl < alone.kl, "{name}: {alone} {}", finished.validation);
    }
    let found = inspect(&ground.path("out")).unwrap();
    let projections = found.tensors.iter().filter(|t| t.name.contains("_proj") && !t.name.contains("scale"));
    assert!(projections.clone().count() == 14 && projections.clone().all(|t| t.precision == "ternary"));

    // The same texts give the same model, in whatever order the clients come.
    let again = Ground::new();
    let (address, coordinator) = again.coordinator(3, |_| ()).await;
    let clients: Vec<_> =
        [("c", 3), ("a", 1), ("b", 2)].map(|(name, seed)| again.joins(address, name, seed)).into_iter().collect();
    for client in clients {
        client.await.unwrap().unwrap();
    }
    coordinator.await.unwrap().unwrap();
    assert_eq!(again.model(), ground.model());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_die_stall_or_send_no_numbers_do_not_stop_the_others() {
    let ground = Ground::new();
    let (address, coordinator) = ground
        .coordinator(5, |settings| {
            settings.rules.quorum = 2;
            settings.rules.deadline = Duration::from_secs(10);
        })
        .await;
    let hand = Hand::new(address);
    for name in ["dead", "stalled", "broken"] {
        assert_eq!(hand.join(name).await.0, StatusCode::OK);
    }
    let good = [ground.joins(address, "good-a", 1), ground.joins(address, "good-b", 2)];
    // "dead" is never heard of again. "stalled" takes the masters and comes when the round is over.
    assert_eq!(hand.until_training("stalled").await, 0);
    assert_eq!(hand.get("/v1/model/0").await.0, StatusCode::OK);
    for bad in [f32::NAN, f32::INFINITY] {
        let (status, text) = hand.post("/v1/update/0/broken", masters(&SHAPE, bad)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{text}");
        assert!(text.contains("model.embed_tokens.weight") && text.contains("finite"), "{text}");
    }
    let (status, text) = hand.post("/v1/update/0/broken", masters(&ModelShape { ffn: 20, ..SHAPE }, 0.1)).await;
    assert!(status == StatusCode::UNPROCESSABLE_ENTITY && text.contains("mlp."), "{text}");
    for client in good {
        let part = client.await.unwrap().unwrap();
        assert_eq!((part.delivered, part.late), (3, 0));
    }
    let (status, text) = hand.post("/v1/update/0/stalled", masters(&SHAPE, 0.1)).await;
    assert!(status == StatusCode::CONFLICT && text.contains("over"), "{text}");
    hand.get("/v1/now/stalled").await;
    coordinator.await.unwrap().unwrap();
    let rounds = ground.rounds();
    let of = |index: usize| rounds[index]["clients"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for index in 0..3 {
        assert_eq!(of(index), ["good-a", "good-b"], "what was refused or late is in no average");
    }
    assert_eq!(rounds[0]["missing"], json!(["broken", "dead", "stalled"]));
    assert_eq!(rounds[1]["missing"], json!([]), "who failed is not waited for again");
    assert!(rounds[1]["seconds"].as_f64().unwrap() < 10.0, "{}", rounds[1]);
    Model::load(&ground.path("out"), &LoadOptions::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_killed_goes_on_where_it_was() {
    let whole = Ground::new();
    let (address, coordinator) = whole.coordinator(2, |_| ()).await;
    let clients = [whole.joins(address, "a", 1), whole.joins(address, "b", 2)];
    for client in clients {
        client.await.unwrap().unwrap();
    }
    coordinator.await.unwrap().unwrap();

    let ground = Ground::new();
    let (address, coordinator) = ground.coordinator(2, |_| ()).await;
    // "b" only says that it is there, so that the first round begins and cannot end.
    assert_eq!(Hand::new(address).join("b").await.0, StatusCode::OK);
    let a = ground.joins(address, "a", 1);
    let state = ground.path("work/state.json");
    let delivered = || {
        let state: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
        state["delivered"].as_object().unwrap().len()
    };
    for _ in 0..6000 {
        if delivered() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(delivered(), 1);
    coordinator.abort();
    assert!(coordinator.await.unwrap_err().is_cancelled());
    // Another coordinator on the same port; connections of the first one let its directory go a moment later.
    let mut tries = 0;
    let coordinator = loop {
        match Coordinator::open(ground.settings(2, |_| ()), address).await {
            Ok(coordinator) => break coordinator,
            Err(error) if tries < 100 => {
                let expected =
                    matches!(error, FederatedError::Workshop(WorkshopError::Busy(_)) | FederatedError::Listen { .. });
                assert!(expected, "{error}");
                tries += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(delivered(), 1, "what was delivered is kept");
    let coordinator = tokio::spawn(coordinator.run());
    let b = ground.joins(address, "b", 2);
    let (a, b) = (a.await.unwrap().unwrap(), b.await.unwrap().unwrap());
    assert_eq!((a.delivered, b.delivered), (3, 3));
    coordinator.await.unwrap().unwrap();
    assert_eq!(ground.model(), whole.model(), "the break changes nothing");

    // Started once more, it finds all rounds done and says so; other settings are another run.
    let (_, again) = start(ground.settings(2, |s| s.linger = Duration::ZERO), loopback()).await;
    assert_eq!(again.await.unwrap().unwrap().rounds, 3);
    let other = ground.settings(2, |settings| settings.plan.temperature = 2.0);
    let Err(error) = Coordinator::open(other, loopback()).await else { panic!("other settings must be refused") };
    assert!(error.to_string().contains("belongs to other settings"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_model_or_without_the_token_is_refused_by_name() {
    let ground = Ground::new();
    let (address, coordinator) = ground.coordinator(2, |_| ()).await;
    let take = |settings: ClientSettings| take_part(settings, text(1, 6000), Box::new(Silent));
    let refused = |result: Result<Part, FederatedError>| match result {
        Err(FederatedError::Refused { status, reason }) => (status, reason),
        other => panic!("{other:?}"),
    };
    let other_model =
        |name: &str| ClientSettings { model: MODELS.path().join(name).join("fp16"), ..ground.client(address, "a") };
    let (status, reason) = refused(take(other_model("wider")).await);
    assert!(status == 409 && reason.contains("feed-forward width") && reason.contains("24 but is 32"), "{reason}");
    // The same shape, but another teacher.
    let (status, reason) = refused(take(other_model("other")).await);
    assert!(status == 409 && reason.contains("model digest"), "{reason}");
    let wrong = ClientSettings { token: token(ground.dir.path(), "another-token-here"), ..ground.client(address, "a") };
    assert_eq!(refused(take(wrong).await).0, 401);
    let name = ClientSettings { name: "../a".to_owned(), ..ground.client(address, "a") };
    assert!(take(name).await.unwrap_err().to_string().contains("--name"));
    let scheme = ClientSettings { coordinator: "https://x".to_owned(), ..ground.client(address, "a") };
    assert!(take(scheme).await.unwrap_err().to_string().contains("http://"));
    let few = take_part(ground.client(address, "few"), vec![1; 20], Box::new(Silent)).await.unwrap_err();
    assert!(few.to_string().contains("20 tokens"), "{few}");

    let hand = Hand::new(address);
    assert_eq!(hand.join("..").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(hand.join_with("a", |body| body["samples"] = json!(0)).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let tokenizer = hand.join_with("a", |body| body["architecture"]["tokenizer"] = json!("x")).await;
    assert!(tokenizer.0 == StatusCode::CONFLICT && tokenizer.1.contains("tokenizer"), "{}", tokenizer.1);
    assert_eq!(hand.post("/v1/update/0/nobody", Vec::new()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(hand.get("/v1/now/nobody").await.0, StatusCode::NOT_FOUND);
    let open = hand.http.get(format!("{}/anything", hand.base)).send().await.unwrap();
    assert_eq!(open.status(), StatusCode::UNAUTHORIZED);
    coordinator.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_without_a_quorum_is_given_up_and_says_who_is_missing() {
    let ground = Ground::new();
    let (address, coordinator) =
        ground.coordinator(2, |settings| settings.rules.deadline = Duration::from_millis(100)).await;
    let hand = Hand::new(address);
    hand.join("a").await;
    hand.join("b").await;
    let error = coordinator.await.unwrap().unwrap_err();
    assert!(matches!(error, FederatedError::Starved { delivered: 0, quorum: 2, .. }), "{error}");
    assert!(error.to_string().contains("missing: a, b"), "{error}");
    assert!(!ground.path("out").exists());

    let away = ClientSettings { patience: Duration::from_millis(500), ..ground.client(address, "a") };
    let error = take_part(away, text(1, 6000), Box::new(Silent)).await.unwrap_err();
    assert!(matches!(error, FederatedError::Unreachable { .. }), "{error}");
}

type Seen = Arc<Mutex<Vec<(Method, String, Bytes)>>>;

/// Passes everything on and remembers what clients sent.
async fn relay(
    State((to, seen)): State<(SocketAddr, Seen)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    seen.lock().unwrap().push((method.clone(), uri.path().to_owned(), body.clone()));
    let http = Client::builder().no_proxy().build().unwrap();
    let mut request = http.request(method, format!("http://{to}{}", uri.path())).body(body);
    if let Some(token) = headers.get("authorization") {
        request = request.header("authorization", token);
    }
    match request.send().await {
        Ok(answer) => (answer.status(), answer.bytes().await.unwrap()).into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_training_text_leaves_a_client() {
    let ground = Ground::new();
    let (address, coordinator) = ground.coordinator(1, |settings| settings.plan.rounds = 2).await;
    let seen = Seen::default();
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    let between = listener.local_addr().unwrap();
    let limit = axum::extract::DefaultBodyLimit::disable();
    let router = Router::new().fallback(relay).layer(limit).with_state((address, Arc::clone(&seen)));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let tokens = text(31, 6000);
    let part = take_part(ground.client(between, "a"), tokens.clone(), Box::new(Silent)).await.unwrap();
    assert_eq!(part.delivered, 2);
    coordinator.await.unwrap().unwrap();

    let words: Vec<String> = documents(31, 6000)
        .iter()
        .flat_map(|document| document.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter(|word| word.len() >= 6)
        .collect();
    assert!(words.len() > 50);
    let ids: Vec<Vec<u8>> = tokens.windows(4).map(|w| w.iter().flat_map(|id| id.to_le_bytes()).collect()).collect();
    let holds = |body: &[u8], part: &[u8]| body.windows(part.len()).any(|window| window == part);
    let names: Vec<String> = layout(&SHAPE).into_iter().map(|(name, ..)| name).collect();
    let seen = seen.lock().unwrap();
    let (mut joins, mut updates) = (0, 0);
    for (method, path, body) in seen.iter() {
        match (method, path.as_str()) {
            (&Method::GET, _) => assert!(body.is_empty()),
            (&Method::POST, "/v1/join") => {
                joins += 1;
                let body: Value = serde_json::from_slice(body).unwrap();
                let mut keys: Vec<&String> = body.as_object().unwrap().keys().collect();
                keys.sort_unstable();
                assert_eq!(keys, ["architecture", "client", "samples"]);
                assert_eq!(body["samples"], json!(tokens.len()));
            }
            (&Method::POST, path) if path.starts_with("/v1/update/") => {
                updates += 1;
                let file = ground.path("seen.safetensors");
                fs::write(&file, body).unwrap();
                let mut found: Vec<String> = read_tensors(&file).unwrap().into_iter().map(|t| t.name).collect();
                let mut expected = names.clone();
                found.sort();
                expected.sort();
                assert_eq!(found, expected, "masters and nothing else");
                assert!(ids.iter().all(|part| !holds(body, part)));
            }
            other => panic!("{other:?}"),
        }
        let text = String::from_utf8_lossy(body);
        assert!(words.iter().all(|word| !text.contains(word.as_str())), "{method} {path}");
    }
    assert_eq!((joins, updates), (1, 2));
}
