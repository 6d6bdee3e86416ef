//! What the server's tests share: tiny models, a scripted network, and workers on loopback.
#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses its part")]

pub mod classic;
mod log;
mod scripted;
mod tiny;

pub use log::{capture_log, captured_log};
pub use scripted::{BREAKS, FALLS, SLOW, Scripted, WAITS};
pub use tiny::{EOS, VOCABULARY, damage, tiny_model, tiny_tokenizer};

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use bitnet_api::worker::Counters;
use inference_worker::engine::Engine;
use inference_worker::model::{KvBits, Text};
use inference_worker::serve::{
    Facts, MetricNames, ServeError, Server, Settings, Stop, Worker, internal_router, public_router,
};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// Settings for tests: no rollout, short times.
pub fn settings(model: &Path) -> Settings {
    Settings {
        revision: "chat-abcdefg234".to_owned(),
        kv_bits: KvBits::default(),
        request_timeout: Duration::from_secs(10),
        head_time: Duration::from_millis(300),
        metric_names: MetricNames::AndVllm,
        drain: Duration::from_secs(2),
        ..Settings::new(model)
    }
}

/// A worker that answers from a script, with its directory (a tokenizer needs one).
pub struct Fake {
    pub worker: Arc<Worker>,
    pub engine: Engine,
    dir: tempfile::TempDir,
}

impl Fake {
    /// Where its tokenizer lies.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }
}

/// A ready worker whose model answers `script`, see [`Scripted`].
pub async fn fake(script: &str, change: impl FnOnce(&mut Settings)) -> Fake {
    scripted(Scripted::new, script, "fp16", change, |_| ()).await
}

/// A ready worker that answers `script` whatever its prompts say.
pub async fn steady(script: &str, change: impl FnOnce(&mut Settings)) -> Fake {
    scripted(Scripted::steady, script, "fp16", change, |_| ()).await
}

/// As [`fake`], of a precision, after `write` has added files to its directory.
pub async fn fake_with(
    script: &str,
    precision: &str,
    change: impl FnOnce(&mut Settings),
    write: impl FnOnce(&Path),
) -> Fake {
    scripted(Scripted::new, script, precision, change, write).await
}

async fn scripted(
    network: impl FnOnce(Vec<u32>) -> Scripted,
    script: &str,
    precision: &str,
    change: impl FnOnce(&mut Settings),
    write: impl FnOnce(&Path),
) -> Fake {
    let dir = tempfile::tempdir().expect("a temporary directory");
    tiny_tokenizer(dir.path());
    write(dir.path());
    let mut settings = settings(dir.path());
    change(&mut settings);
    let text = Text::load(dir.path()).expect("the tokenizer loads");
    let facts = Facts {
        vocabulary: VOCABULARY,
        context: 256,
        eos: vec![EOS],
        digest: "0".repeat(64),
        precision: precision.to_owned(),
        kernel: "scripted".to_owned(),
        device: "cpu",
    };
    let script = text.encode(script).expect("the script has tokens");
    let engine = Engine::start(network(script), settings.engine).expect("a thread");
    let worker = Worker::new(settings);
    worker.install(engine.clone(), text, facts).expect("an HTTP client");
    worker.warm_up().await.expect("the script runs");
    // The warm-up has its answer a moment before its slot is free, and tests wait for slots of their own requests.
    until("the slot is free", || engine.running() == 0).await;
    Fake { worker, engine, dir }
}

/// A worker that listens on loopback.
pub struct Running {
    pub public: SocketAddr,
    pub internal: SocketAddr,
    pub worker: Arc<Worker>,
    stop: Option<oneshot::Sender<Stop>>,
    pub task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    /// Serves `worker` on free ports; returns when it is ready.
    pub async fn start(worker: Arc<Worker>) -> Self {
        let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let server = Server::bind(Arc::clone(&worker), loopback, loopback).await.expect("free ports");
        let (public, internal) = server.addresses().expect("open ports");
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { stopped.await.unwrap_or(Stop::Now) };
        let task = tokio::spawn(server.run(stopped));
        let running = Self { public, internal, worker, stop: Some(stop), task };
        for _ in 0..2000 {
            if running.get("/readyz").await.status() == 200 {
                return running;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the worker did not become ready");
    }

    pub fn stop(&mut self, how: Stop) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(how);
        }
    }

    pub fn url(&self, path: &str) -> String {
        let address = if path.starts_with("/internal") { self.internal } else { self.public };
        format!("http://{address}{path}")
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        client().get(self.url(path)).send().await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        client().post(self.url(path)).json(body).send().await.expect("an answer")
    }

    pub async fn post_json<T: serde::de::DeserializeOwned>(&self, path: &str, body: &Value) -> T {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.expect("the documented answer")
    }

    pub async fn counters(&self) -> Counters {
        self.get(bitnet_api::worker::COUNTERS_PATH).await.json().await.expect("counters")
    }
}

/// A client that neither retries nor keeps connections.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(30))
        .build()
        .expect("a client")
}

/// Waits until `done`, at most five seconds.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come");
}

/// A whole body.
pub async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A body of JSON.
pub async fn object(response: Response) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// Asks the public router.
pub async fn ask(worker: &Arc<Worker>, request: Request<Body>) -> Response {
    public_router(Arc::clone(worker)).oneshot(request).await.expect("a router always answers")
}

/// A worker with a real model of random weights.
pub async fn tiny(dir: &tempfile::TempDir) -> Arc<Worker> {
    tiny_model(dir.path(), 5);
    let worker = Worker::new(settings(dir.path()));
    let loading = Arc::clone(&worker);
    tokio::task::spawn_blocking(move || loading.load()).await.expect("no panic").expect("a model that loads");
    worker.warm_up().await.expect("the model runs");
    worker
}

/// Asks the internal router, with a body by POST, without one by GET.
pub async fn internal(fake: &Fake, path: &str, body: Option<&Value>) -> Response {
    let request = match body {
        Some(body) => Request::post(path).body(Body::from(body.to_string())),
        None => Request::get(path).body(Body::empty()),
    };
    internal_router(Arc::clone(&fake.worker)).oneshot(request.unwrap()).await.unwrap()
}

/// The counters, which always balance.
pub async fn counters(fake: &Fake) -> Counters {
    let counters: Counters =
        serde_json::from_value(object(internal(fake, "/internal/v1/counters", None).await).await).unwrap();
    assert_eq!(counters.started, counters.finished + counters.errors.total() + counters.in_flight, "{counters:?}");
    counters
}
