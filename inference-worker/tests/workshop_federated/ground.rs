//! Models, settings and requests that the tests share.

use inference_worker::model;
use inference_worker::workshop::federated::{
    ClientSettings, Coordinator, CoordinatorSettings, FederatedError, Finished, Part, Plan, Rules, Token, take_part,
};
use inference_worker::workshop::progress::Silent;
use inference_worker::workshop::recipe::{ModelShape, Recipe, Schedule, Size};
use inference_worker::workshop::student::{DataSource, Form, LearningRate, Text};
use inference_worker::workshop::weights::{Rounding, layout};
use inference_worker::workshop::{Demands, distill};
use reqwest::{Client, StatusCode};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub(crate) const SHAPE: ModelShape =
    ModelShape { vocabulary: 700, width: 16, layers: 2, heads: 2, kv_heads: 1, head_dim: 8, ffn: 24, context: 48 };
pub(crate) const SECRET: &str = "a-token-of-this-test";

/// A small teacher, made once: for all tests, because it does not change.
pub(crate) static MODELS: LazyLock<TempDir> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    let make = |name: &str, shape: ModelShape, steps| {
        let recipe = Recipe {
            shape,
            text_bytes: 60_000,
            batch: 4,
            teacher: Schedule { steps, learning_rate: 8e-3 },
            student: Schedule { steps: 1, learning_rate: 2e-3 },
            probes: 24,
            prompts: 8,
            ..Recipe::new(Size::Small, 1)
        };
        let demands = Demands { mean: -1.0, fifth_percentile: -1.0, export: -1.0 };
        distill(&recipe, &demands, &root.path().join(name), 2, false, &mut Silent).unwrap();
    };
    make("pair", SHAPE, 60);
    make("wider", ModelShape { ffn: 32, ..SHAPE }, 1);
    make("other", SHAPE, 2);
    root
});

pub(crate) fn teacher() -> PathBuf {
    MODELS.path().join("pair/fp16")
}

/// Ids of generated text, another one for each seed.
pub(crate) fn text(seed: u64, bytes: usize) -> Vec<u32> {
    let tokenizer = model::Text::load(&teacher()).unwrap();
    let text = Text::read(&DataSource::BuiltIn { bytes, seed }, &tokenizer).unwrap();
    [text.training, text.held_out].concat()
}

pub(crate) fn token(dir: &Path, text: &str) -> Token {
    let path = dir.join("token");
    fs::write(&path, text).unwrap();
    Token::read(&path).unwrap()
}

pub(crate) struct Ground {
    pub(crate) dir: TempDir,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn settings(
        &self,
        clients: usize,
        change: impl FnOnce(&mut CoordinatorSettings),
    ) -> CoordinatorSettings {
        let mut settings = CoordinatorSettings {
            form: Form { student: teacher(), phase: None, rules: Vec::new() },
            out: self.path("out"),
            work: self.path("work"),
            plan: Plan {
                rounds: 3,
                epochs: 2,
                batch: 4,
                sequence: 32,
                learning_rate: 4e-3,
                schedule: LearningRate::Cosine,
                clip: 1.0,
                temperature: 3.0,
                kl: 1.0,
                cross_entropy: 0.0,
                seed: 7,
                precisions: BTreeMap::new(),
                rounding: Rounding::default(),
            },
            rules: Rules { rounds: 0, clients, quorum: clients, deadline: Duration::from_secs(60) },
            held_out: text(900, 12_000),
            sequences: 24,
            token: token(self.dir.path(), SECRET),
            threads: 2,
            linger: Duration::from_secs(5),
        };
        change(&mut settings);
        settings
    }

    pub(crate) async fn coordinator(
        &self,
        clients: usize,
        change: impl FnOnce(&mut CoordinatorSettings),
    ) -> (SocketAddr, JoinHandle<Result<Finished, FederatedError>>) {
        start(self.settings(clients, change), loopback()).await
    }

    pub(crate) fn client(&self, address: SocketAddr, name: &str) -> ClientSettings {
        ClientSettings {
            coordinator: format!("http://{address}"),
            token: token(self.dir.path(), SECRET),
            name: name.to_owned(),
            model: teacher(),
            patience: Duration::from_secs(20),
            poll: Duration::from_millis(20),
            threads: 1,
        }
    }

    pub(crate) fn joins(&self, address: SocketAddr, name: &str, seed: u64) -> JoinHandle<Result<Part, FederatedError>> {
        tokio::spawn(take_part(self.client(address, name), text(seed, 6000), Box::new(Silent)))
    }

    pub(crate) fn rounds(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("work/rounds.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn model(&self) -> Vec<u8> {
        fs::read(self.path("out/model.safetensors")).unwrap()
    }
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) async fn start(
    settings: CoordinatorSettings,
    address: SocketAddr,
) -> (SocketAddr, JoinHandle<Result<Finished, FederatedError>>) {
    let coordinator = Coordinator::open(settings, address).await.unwrap();
    (coordinator.address().unwrap(), tokio::spawn(coordinator.run()))
}

/// What the coordinator is sent by hand.
pub(crate) struct Hand {
    pub(crate) base: String,
    pub(crate) http: Client,
}

impl Hand {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { base: format!("http://{address}"), http: Client::builder().no_proxy().build().unwrap() }
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Vec<u8>) {
        let answer = self.http.get(format!("{}{path}", self.base)).bearer_auth(SECRET).send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap().to_vec())
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> (StatusCode, String) {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(SECRET).body(body);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    pub(crate) async fn join(&self, name: &str) -> (StatusCode, String) {
        self.join_with(name, |_| ()).await
    }

    pub(crate) async fn join_with(&self, name: &str, change: impl FnOnce(&mut Value)) -> (StatusCode, String) {
        let tokenizer = fs::read(teacher().join("tokenizer.json")).unwrap();
        let mut body = json!({"client": name, "samples": 500, "architecture": {
            "shape": serde_json::to_value(SHAPE).unwrap(),
            "ropeTheta": 500_000.0,
            "rmsEps": 1e-5,
            "tokenizer": sha256(&tokenizer),
            "model": model::digest(&teacher()).unwrap(),
        }});
        change(&mut body);
        self.post("/v1/join", body.to_string().into_bytes()).await
    }

    pub(crate) async fn until_training(&self, name: &str) -> u64 {
        for _ in 0..6000 {
            let (status, body) = self.get(&format!("/v1/now/{name}")).await;
            assert_eq!(status, StatusCode::OK);
            let now: Value = serde_json::from_slice(&body).unwrap();
            if now["state"] == "train" {
                return now["round"].as_u64().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{name} was never asked to train");
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    format!("{:x}", Sha256::digest(bytes))
}

/// Masters of one value.
pub(crate) fn masters(shape: &ModelShape, value: f32) -> Vec<u8> {
    let layout = layout(shape);
    let bytes: Vec<Vec<u8>> =
        layout.iter().map(|(_, dims, _)| value.to_le_bytes().repeat(dims.iter().product())).collect();
    let views = layout
        .iter()
        .zip(&bytes)
        .map(|((name, dims, _), bytes)| (name.clone(), TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}
