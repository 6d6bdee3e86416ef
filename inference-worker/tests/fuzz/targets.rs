//! What a stranger can hand to the worker, one function per parser: any bytes, no panic, no more memory than they are
//! worth.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use inference_worker::compare::{Probes, continuation, halves};
use inference_worker::model::{ChatMessage, KvBits, LoadOptions, Model, ModelConfig, Text};
use inference_worker::serve::{CONFIDENCE_FILE, Confidence, Settings, Worker, internal_router, public_router};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// A target by its name.
pub(super) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(super) const TARGETS: [Target; 11] = [
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("config", config),
    ("tokenizer", tokenizer),
    ("template", template),
    ("http", http),
    ("frames", frames),
    ("peer", peer),
    ("beside", beside),
    ("confidence", confidence),
    ("probes", probes),
];

/// The model that stands beside what is fuzzed: the smallest that loads.
fn model() -> PathBuf {
    // The fuzzing programs are a package of their own, beside the tests' folder.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = ["tests/fuzz/model", "../tests/fuzz/model"].map(|place| package.join(place));
    place.into_iter().find(|place| place.exists()).expect("the model beside")
}

/// A copy of that model with `bytes` in the place of one file.
fn with(name: &str, bytes: &[u8], beside: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for file in beside {
        std::fs::copy(model().join(file), dir.path().join(file)).expect("the model beside");
    }
    std::fs::write(dir.path().join(name), bytes).expect("the temporary directory takes it");
    dir
}

fn load(dir: &Path) {
    let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
    if let Ok(mut model) = Model::load(dir, &options) {
        // What loads must also run: the checks before serving are a forward pass.
        let _ = model.self_test();
    }
}

/// A weight file.
pub(super) fn safetensors(bytes: &[u8]) {
    load(with("model.safetensors", bytes, &["config.json"]).path());
}

/// A GGUF file with everything in it.
pub(super) fn gguf(bytes: &[u8]) {
    let dir = with("model.gguf", bytes, &[]);
    load(dir.path());
    let _ = Text::load(dir.path());
}

/// A configuration beside good weights.
pub(super) fn config(bytes: &[u8]) {
    let dir = with("config.json", bytes, &["model.safetensors", "tokenizer.json"]);
    let _ = ModelConfig::load(dir.path());
    let _ = Text::load(dir.path());
    load(dir.path());
}

/// A tokenizer: one that loads must also read, and say what it read.
pub(super) fn tokenizer(bytes: &[u8]) {
    let Ok(text) = Text::load(with("tokenizer.json", bytes, &["config.json"]).path()) else { return };
    // The file holds words that it treats in a way of its own.
    let own = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]);
    for sample in ["", "aaa", "a b\t1 é\u{1f980}", &own] {
        for ids in [text.encode(sample), text.encode_chat(sample)] {
            let Ok(ids) = ids else { continue };
            let _ = (text.decode(&ids), text.decode_all(&ids));
            let mut stream = text.stream();
            let _ = ids.iter().take(64).try_for_each(|id| stream.push(*id).map(|_| ()));
            let _ = stream.finish();
        }
    }
}

/// A chat template.
pub(super) fn template(bytes: &[u8]) {
    let dir = with("chat_template.jinja", bytes, &["config.json", "tokenizer.json"]);
    let Ok(text) = Text::load(dir.path()) else { return };
    let message = |role: &str| ChatMessage { role: role.to_owned(), content: "{{ x }}".to_owned() };
    let _ = text.chat(&[message("system"), message("user")], true);
}

/// A worker with the small model, and both its ports.
struct Port {
    runtime: Runtime,
    worker: Arc<Worker>,
}

fn port() -> &'static Port {
    static PORT: OnceLock<Port> = OnceLock::new();
    PORT.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        // Without probes a comparison calls no peer.
        let settings = Settings {
            revision: "chat-abcdefg234".to_owned(),
            rollout: Some("chat".to_owned()),
            kv_bits: KvBits::default(),
            request_timeout: Duration::from_secs(10),
            drain: Duration::ZERO,
            ..Settings::new(model())
        };
        let worker = Worker::new(settings);
        worker.load().expect("the model beside loads");
        runtime.block_on(worker.warm_up()).expect("and runs");
        Port { runtime, worker }
    })
}

/// Posts a body and reads the answer; a failure of the server is a finding, a refusal is not.
fn post(router: impl Fn(Arc<Worker>) -> Router, path: &str, body: &[u8]) {
    let Port { runtime, worker } = port();
    runtime.block_on(async {
        let ask = |path: &str, body: Option<&[u8]>| {
            let request = if body.is_some() { Request::post(path) } else { Request::get(path) };
            let body = body.map_or_else(Body::empty, |body| Body::from(body.to_vec()));
            router(Arc::clone(worker)).oneshot(request.body(body).expect("a request"))
        };
        let answer = ask(path, Some(body)).await.expect("routers answer");
        let status = answer.status();
        let text = axum::body::to_bytes(answer.into_body(), usize::MAX).await.expect("answers end");
        assert!(!status.is_server_error(), "{path}: {status} {}", String::from_utf8_lossy(&text));
        let alive =
            public_router(Arc::clone(worker)).oneshot(Request::get("/livez").body(Body::empty()).expect("a request"));
        assert_eq!(alive.await.expect("routers answer").status(), 200, "the engine fell");
    });
}

/// Bodies of the public port: the first byte names the endpoint.
pub(super) fn http(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    let path =
        ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/feedback"][*which as usize % 5];
    post(public_router, path, body);
}

/// Bodies of the internal port, and logits as a peer sends them.
pub(super) fn frames(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    let paths = ["compare", "score", "generate", "shadow"];
    if let Some(path) = paths.get(*which as usize % 5) {
        post(internal_router, &format!("/internal/v1/{path}"), body);
        return;
    }
    let decoded = halves::decode(body);
    assert_eq!(decoded.is_some(), body.len().is_multiple_of(2));
    assert!(decoded.is_none_or(|numbers| numbers.len() == body.len() / 2));
}

/// A peer's continuation of a prompt, as a comparison reads it.
pub(super) fn peer(bytes: &[u8]) {
    const TOKENS: u32 = 4;
    if let Some(found) = continuation(bytes, TOKENS) {
        assert!(found.tokens.len() <= TOKENS as usize);
        assert!([found.ttft, found.tpot, found.busy_seconds].iter().all(|time| time.is_finite() && *time >= 0.0));
    }
}

/// A file that belongs to a model and is not its configuration: the first byte names it.
pub(super) fn beside(bytes: &[u8]) {
    let Some((which, content)) = bytes.split_first() else { return };
    let names = ["model.safetensors.index.json", "generation_config.json", "tokenizer_config.json"];
    let dir = with(names[*which as usize % 3], content, &["config.json", "model.safetensors", "tokenizer.json"]);
    let _ = ModelConfig::load(dir.path());
    if let Ok(text) = Text::load(dir.path()) {
        let _ = text.chat(&[ChatMessage { role: "user".to_owned(), content: "x".to_owned() }], true);
    }
    load(dir.path());
}

/// A calibration.
pub(super) fn confidence(bytes: &[u8]) {
    let _ = Confidence::load(with(CONFIDENCE_FILE, bytes, &[]).path());
}

/// A probe file, and what comparisons and reports ask of it.
pub(super) fn probes(bytes: &[u8]) {
    static TEXT: OnceLock<Text> = OnceLock::new();
    let text = TEXT.get_or_init(|| Text::load(&model()).expect("the model beside loads"));
    let dir = with("probes.jsonl", bytes, &[]);
    let Ok(probes) = Probes::read(Some(&dir.path().join("probes.jsonl"))) else { return };
    for probe in 0..probes.len() {
        let _ = (probes.id(probe), probes.text(probe), probes.tokens(probe, text));
    }
}
