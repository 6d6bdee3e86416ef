//! What the server costs: decoding one answer through HTTP as a stream, beside the same engine asked in its own process, one
//! after the other in one run.
//!
//!     cargo run --release -p inference-worker --example server_overhead -- [SHAPE] [THREADS] [TOKENS] [ROUNDS] [TEMPERATURE] [TOP_P]
//!
//! The engine alone always answers greedily, so with a temperature the overhead is that of drawing tokens as well: `… 0.6 0.9`.

use inference_worker::engine::{Engine, Options};
use inference_worker::model::{KvBits, LoadOptions, Model, Precision, Shape, Text};
use inference_worker::serve::{Facts, Server, Settings, Stop, Worker};
use serde_json::{Map, json};
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(600);
/// Ids of the prompt; none of it is read twice.
const PROMPT: [u32; 8] = [5, 17, 29, 41, 53, 65, 77, 89];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "2b-4t".to_owned());
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let (threads, tokens, rounds) = (number(2)?, number(64)?, number(9)?);
    let mut share = |default: f32| args.next().map_or(Ok(default), |text| text.parse());
    let (temperature, top_p) = (share(0.0)?, share(1.0)?);
    let shape = Shape::ALL.into_iter().find(|shape| shape.name == name).ok_or("there is no such shape")?;
    let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
    let model = Model::random(shape, Precision::Ternary, 1, &options)?;
    println!(
        "random {name}, {}, {}, {threads} threads, {tokens} tokens, HTTP at temperature {temperature}, top-p {top_p}",
        model.precision(),
        model.kernel()
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(model, threads, tokens, rounds, (temperature, top_p)))
}

async fn measure(model: Model, threads: usize, tokens: usize, rounds: usize, sampling: (f32, f32)) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let vocabulary = model.config().vocab_size;
    write_tokenizer(dir.path(), vocabulary)?;
    let facts = Facts {
        vocabulary,
        context: model.config().context,
        eos: Vec::new(),
        digest: "0".repeat(64),
        precision: model.precision().to_owned(),
        kernel: model.kernel().to_owned(),
        device: "cpu",
    };
    let options = Options { prefix_tokens: Some(0), ..Options::default() };
    let engine = Engine::start(model, options)?;
    let worker = Worker::new(settings(dir.path(), threads, options));
    worker.install(engine.clone(), Text::load(dir.path())?, facts)?;
    worker.warm_up().await?;
    let loopback: SocketAddr = "127.0.0.1:0".parse()?;
    let server = Server::bind(worker, loopback, loopback).await?;
    let (public, _) = server.addresses()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(async move {
        let _ = stopped.await;
        Stop::Now
    }));
    let (mut alone, mut served) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let direct = through_engine(&engine, tokens).await?;
        let http = through_http(public, tokens, sampling).await?;
        // The first round warms up.
        if round > 0 {
            alone.push(direct);
            served.push(http);
        }
    }
    let overheads: Vec<f64> = alone.iter().zip(&served).map(|(alone, served)| 100.0 * (served / alone - 1.0)).collect();
    let (alone, served) = (median(&alone), median(&served));
    let rate = |seconds: f64| tokens as f64 / seconds;
    println!("engine alone  {:8.2} tok/s  {:9.3} ms per token", rate(alone), 1e3 * alone / tokens as f64);
    println!("HTTP stream   {:8.2} tok/s  {:9.3} ms per token", rate(served), 1e3 * served / tokens as f64);
    println!(
        "overhead      {:8.2} %  (median of {rounds} pairs: {:.2} %)",
        100.0 * (served / alone - 1.0),
        median(&overheads)
    );
    let _ = stop.send(());
    serving.await??;
    Ok(())
}

/// Seconds of one greedy answer of exactly `tokens` tokens, prompt included.
async fn through_engine(engine: &Engine, tokens: usize) -> Outcome<f64> {
    let begin = Instant::now();
    let answer = engine.generate(PROMPT.to_vec(), tokens, Vec::new(), LIMIT).await?;
    assert!(answer.is_whole(tokens), "the engine did not generate what was asked for");
    Ok(begin.elapsed().as_secs_f64())
}

/// The same through the public port, each token read as it comes.
async fn through_http(public: SocketAddr, tokens: usize, (temperature, top_p): (f32, f32)) -> Outcome<f64> {
    let body = json!({
        "prompt": PROMPT, "max_tokens": tokens, "temperature": temperature, "top_p": top_p, "seed": 1, "ignore_eos": true,
        "stream": true,
    });
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let begin = Instant::now();
    let mut answer = client.post(format!("http://{public}/v1/completions")).json(&body).send().await?;
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        text.extend_from_slice(&chunk);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let text = String::from_utf8(text)?;
    assert!(text.trim_end().ends_with("data: [DONE]"), "the stream broke");
    let events = text.matches("data: ").count();
    assert!(events >= tokens, "{events} events of {tokens} tokens: each is to be an event");
    Ok(seconds)
}

/// A tokenizer that has a word for each id.
fn write_tokenizer(dir: &Path, vocabulary: usize) -> Outcome<()> {
    let words: Map<_, _> = (0..vocabulary).map(|id| (format!("w{id}"), json!(id))).collect();
    let bytewise = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "pre_tokenizer": bytewise, "decoder": bytewise,
        "model": {"type": "BPE", "vocab": words, "merges": []},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    let config = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 64,
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    Ok(())
}

fn settings(model: &Path, threads: usize, engine: Options) -> Settings {
    Settings {
        revision: "chat-abcdefg234".to_owned(),
        engine,
        threads,
        kv_bits: KvBits::default(),
        request_timeout: LIMIT,
        drain: Duration::ZERO,
        ..Settings::new(model)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
