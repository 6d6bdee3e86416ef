//! `inference-worker serve`.

use anyhow::Context;
use inference_worker::compare::PeerSettings;
use inference_worker::device::{Device, GpuKv};
use inference_worker::engine;
use inference_worker::model::KvBits;
use inference_worker::serve::{
    Balance, GenerationConfig, MetricNames, ServeError, Server, Settings, StartError, Stop, UpstreamSettings, Worker,
};
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Arguments of `serve`. Each can also be given in the environment.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model directory: config.json, safetensors files, tokenizer.json.
    #[arg(long, env = "BITNET_MODEL", value_name = "DIR")]
    model: PathBuf,
    /// Revision that this pod serves: in the header of every answer and in its id.
    #[arg(long, env = "BITNET_REVISION", value_name = "NAME", default_value = "")]
    revision: String,
    /// Rollout that the revision belongs to. Comparisons call only peers of the same rollout; without it, none.
    #[arg(long, env = "BITNET_ROLLOUT", value_name = "NAME")]
    rollout: Option<String>,
    /// UID of that rollout: only marks of A/B tests with it are believed. Without it, none.
    #[arg(long, env = "BITNET_ROLLOUT_UID", value_name = "UID")]
    rollout_uid: Option<String>,
    /// Probe prompts for comparisons, one JSON object per line: {"prompt": "…"} or {"messages": […]}. Read anew for
    /// each comparison; it may be missing.
    #[arg(long, env = "BITNET_PROBES", value_name = "FILE")]
    probes: Option<PathBuf>,
    /// Content digest that the model directory must have; with another one the worker exits with status 3.
    #[arg(long, env = "BITNET_DIGEST", value_name = "SHA256")]
    digest: Option<String>,
    /// Port of the OpenAI API, health and metrics.
    #[arg(long, env = "BITNET_PORT", default_value_t = bitnet_api::worker::PUBLIC_PORT)]
    port: u16,
    /// Port for the operator and for peers. Not for users.
    #[arg(long, env = "BITNET_INTERNAL_PORT", default_value_t = bitnet_api::worker::INTERNAL_PORT)]
    internal_port: u16,
    /// Address to listen on, both ports.
    #[arg(long, env = "BITNET_BIND", default_value = "0.0.0.0")]
    bind: IpAddr,
    /// Sequences that are generated at once.
    #[arg(long, env = "BITNET_MAX_BATCH", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_batch: u16,
    /// Under dense traffic an idle engine waits at most this long for more requests to start together; a lone request
    /// never waits.
    #[arg(long, env = "BITNET_BATCH_WAIT", default_value = "10ms", value_parser = duration)]
    batch_wait: Duration,
    /// Requests that may wait for a place in the batch; one more is answered 429.
    #[arg(long, env = "BITNET_QUEUE", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,
    /// Longest prompt and answer together in tokens [default: what the model was made for].
    #[arg(long, env = "BITNET_CONTEXT", value_name = "TOKENS")]
    context: Option<usize>,
    /// Threads of a forward pass [default: the CPUs at hand, as the container's limit has it].
    #[arg(long, env = "BITNET_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where the model runs: cpu; cuda, the first GPU (cuda:N: GPU number N), or not at all; auto: the first GPU where this
    /// build, the host and the model allow, else the CPU.
    #[arg(long, env = "BITNET_DEVICE", default_value = "auto")]
    device: Device,
    /// Keys and values on a GPU: f16, or int8 in half the memory.
    #[arg(long, env = "BITNET_GPU_KV", value_enum, default_value = "f16")]
    gpu_kv: GpuKv,
    /// Tokens whose keys and values are kept after their requests, so that a beginning that requests share (a system
    /// prompt, a conversation) is read once; 0: nothing is shared. Comparisons never use it. [default: as many as the
    /// context has, or what fits in the memory]
    #[arg(long, env = "BITNET_PREFIX_CACHE", value_name = "TOKENS")]
    prefix_cache: Option<usize>,
    /// Prompt tokens read in one forward pass at most.
    #[arg(long, env = "BITNET_PREFILL_CHUNK", value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    prefill_chunk: u32,
    /// Time that reading prompts may add to a pass while answers are being written; as many prompt tokens are read in it as
    /// that takes, 16 at least. More of it: prompts are read sooner, answers falter longer.
    #[arg(long, env = "BITNET_PREFILL_BUDGET", default_value = "100ms", value_parser = duration)]
    prefill_budget: Duration,
    /// Bits of cached keys and values: 16, 8, 4 or 3; a model that was made for fewer gets those.
    #[arg(long, env = "BITNET_KV_BITS", default_value = "16")]
    kv_bits: KvBits,
    /// Memory for weights, keys and values, and passes, in bytes or as 4Gi: where it is short, keys and values get fewer
    /// bits, then fewer sequences run at once; one that is too small for one sequence is refused with what is missing.
    #[arg(long, env = "BITNET_MEMORY_BUDGET", value_name = "BYTES", value_parser = bytes)]
    memory_budget: Option<usize>,
    /// How logits are computed: in the checkpoint's precision; in 8 bits with the 40 largest made exact, which changes
    /// neither greedy nor top-k choices; or in 8 bits.
    #[arg(long, env = "BITNET_HEAD", value_enum, default_value = "exact")]
    head: super::Head,
    /// Keep repacked weights in this directory and map them from there: a later start repacks nothing, and the pods of a
    /// node share them. One that cannot be written is said and done without.
    #[arg(long, env = "BITNET_WEIGHTS_CACHE", value_name = "DIR")]
    weights_cache: Option<PathBuf>,
    /// How tokens are drawn where a request does not say: with temperature, top_p and top_k of the model's
    /// generation_config.json, or with OpenAI's defaults.
    #[arg(long, env = "BITNET_GENERATION_CONFIG", value_enum, default_value = "model")]
    generation_config: GenerationConfig,
    /// Show metrics also under the names of another server.
    #[arg(long, env = "BITNET_METRICS_COMPAT", value_name = "SERVER")]
    metrics_compat: Option<MetricsCompat>,
    /// Time for the head of a request, from its first byte.
    #[arg(long, env = "BITNET_HEAD_TIMEOUT", default_value = "10s", value_parser = duration)]
    head_timeout: Duration,
    /// Time for a whole answer, from its request's arrival. A client can ask for less: header x-request-timeout-ms.
    #[arg(long, env = "BITNET_REQUEST_TIMEOUT", default_value = "60s", value_parser = duration)]
    request_timeout: Duration,
    /// After SIGTERM: unready at once, but serving on for this long, until nobody sends requests here any more. Less
    /// than 5s loses requests in a cluster.
    #[arg(long, env = "BITNET_DRAIN", default_value = "5s", value_parser = duration)]
    drain: Duration,
    /// The next tier (the fp16 baseline): it answers what this model fails before the first byte. Repeatable; a host with
    /// several addresses is several endpoints.
    #[arg(long, env = "BITNET_FALLBACK", value_name = "HOST:PORT", value_delimiter = ',', value_parser = endpoint)]
    fallback: Vec<String>,
    /// Which endpoint of the next tier is asked.
    #[arg(long, env = "BITNET_FALLBACK_BALANCE", value_enum, default_value = "least-loaded")]
    fallback_balance: FallbackBalance,
    /// Requests at the next tier at once; more fail here as they would without it.
    #[arg(long, env = "BITNET_FALLBACK_LIMIT", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    fallback_limit: u16,
    /// Time for an answer of the next tier, from handing the request on.
    #[arg(long, env = "BITNET_FALLBACK_TIMEOUT", default_value = "60s", value_parser = duration)]
    fallback_timeout: Duration,
    /// A model that has no first token after this time has failed, where there is a next tier.
    #[arg(long, env = "BITNET_FIRST_TOKEN_TIMEOUT", default_value = "20s", value_parser = duration)]
    first_token_timeout: Duration,
    /// Leave answers to the next tier of which the model is less sure than this, from 0 to 1; the model directory must
    /// hold a calibration (see `calibrate`).
    #[arg(long, env = "BITNET_MIN_CONFIDENCE", value_parser = share, requires = "fallback")]
    min_confidence: Option<f32>,
    /// Internal port of peers.
    #[arg(long, env = "BITNET_PEER_PORT", default_value_t = bitnet_api::worker::INTERNAL_PORT)]
    peer_port: u16,
    /// For development without Services: where a peer listens. Repeatable.
    #[arg(long, value_name = "NAME=HOST:PORT", value_parser = peer)]
    peer: Vec<(String, String)>,
    /// Where the reason of a failed start is written, if the file exists.
    #[arg(long, env = "BITNET_TERMINATION_LOG", default_value = "/dev/termination-log", value_name = "FILE")]
    termination_log: PathBuf,
    /// Log filter, in the syntax of tracing's EnvFilter.
    #[arg(long, env = "BITNET_LOG", default_value = "info")]
    log: String,
    /// How log lines are written [default: text on a terminal, else json].
    #[arg(long, env = "BITNET_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MetricsCompat {
    Vllm,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FallbackBalance {
    LeastLoaded,
    RoundRobin,
}

/// Exit status for a model directory that is not the one that was asked for.
const DIGEST_MISMATCH: i32 = 3;
/// The kubelet reads at most 4 KiB.
const TERMINATION_BYTES: usize = 4096;

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    start_log(&args)?;
    // Idle connections are cheap and stay open: the soft limit of many systems is a thousand.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it was");
    }
    let termination_log = args.termination_log.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // HTTP of one small server; the engine has its own thread, and the cores belong to it.
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime did not start")?;
    let outcome = runtime.block_on(serve(args));
    // A model that is still being read is not waited for.
    runtime.shutdown_background();
    let Err(error) = outcome else { return Ok(()) };
    let text = format!("{error:#}");
    tracing::error!(error = text, "stopped by an error");
    write_termination(&termination_log, &text);
    if let Some(ServeError::Start(StartError::DigestMismatch { .. })) = error.downcast_ref() {
        eprintln!("error: {text}");
        std::process::exit(DIGEST_MISMATCH);
    }
    Err(error)
}

async fn serve(args: Args) -> anyhow::Result<()> {
    // Installed first: a signal that comes while the model loads must drain, not kill.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let public = SocketAddr::new(args.bind, args.port);
    let internal = SocketAddr::new(args.bind, args.internal_port);
    let worker = Worker::new(settings(args));
    let server = Server::bind(worker, public, internal).await?;
    let (public, internal) = server.addresses().context("the ports are not open")?;
    tracing::info!(%public, %internal, "listening");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => Stop::Drain,
            _ = interrupt.recv() => Stop::Now,
        }
    };
    Ok(server.run(stop).await?)
}

fn settings(args: Args) -> Settings {
    let upstream = (!args.fallback.is_empty()).then(|| UpstreamSettings {
        endpoints: args.fallback,
        balance: match args.fallback_balance {
            FallbackBalance::LeastLoaded => Balance::LeastLoaded,
            FallbackBalance::RoundRobin => Balance::RoundRobin,
        },
        concurrent: usize::from(args.fallback_limit),
        limit: args.fallback_timeout,
        first_token: args.first_token_timeout,
        min_confidence: args.min_confidence,
    });
    Settings {
        model: args.model,
        revision: args.revision,
        rollout: args.rollout,
        rollout_uid: args.rollout_uid,
        probes: args.probes,
        digest: args.digest,
        context: args.context,
        engine: engine::Options {
            max_batch: usize::from(args.max_batch),
            batch_wait: args.batch_wait,
            queue: usize::from(args.queue),
            prefill_chunk: args.prefill_chunk as usize,
            prefill_budget: args.prefill_budget,
            prefix_tokens: args.prefix_cache,
            ..engine::Options::default()
        },
        threads: args.threads.map_or_else(super::cpus, usize::from),
        kv_bits: args.kv_bits,
        memory_budget: args.memory_budget,
        head: args.head.mode(),
        weights_cache: args.weights_cache,
        device: args.device,
        gpu_kv: args.gpu_kv,
        generation_config: args.generation_config,
        request_timeout: args.request_timeout,
        head_time: args.head_timeout,
        metric_names: args.metrics_compat.map_or(MetricNames::Ours, |MetricsCompat::Vllm| MetricNames::AndVllm),
        drain: args.drain,
        upstream,
        peers: PeerSettings { port: args.peer_port, addresses: args.peer, ..PeerSettings::default() },
    }
}

fn start_log(args: &Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).context("--log is not a filter")?;
    let terminal = if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match args.log_format.unwrap_or(terminal) {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!(error).context("the log did not start"))
}

/// The kubelet shows this file as the container's termination message.
fn write_termination(path: &Path, text: &str) {
    if !path.exists() {
        return;
    }
    let end = text.floor_char_boundary(TERMINATION_BYTES);
    if let Err(error) = std::fs::write(path, &text[..end]) {
        tracing::warn!(%error, path = %path.display(), "the termination message could not be written");
    }
}

/// `10ms`, `5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "write a whole number and a unit, for example 500ms".to_owned())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(|| "too long".to_owned()),
        _ => Err("the unit must be ms, s or m".to_owned()),
    }
}

/// `4294967296`, `4Gi`, `500M`: as Kubernetes writes quantities.
fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: usize = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err("the unit must be k, M, G, Ki, Mi or Gi".to_owned()),
    };
    let number: usize = digits.parse().map_err(|_| "write a whole number of bytes, for example 4Gi".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

/// `host:port`.
fn endpoint(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("write HOST:PORT".to_owned()),
    }
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("write a number from 0 to 1, for example 0.95".to_owned()),
    }
}

fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() && address.contains(':') => Ok((name.to_owned(), address.to_owned())),
        _ => Err("write NAME=HOST:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(duration("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["10", "s", "-1s", "1.5s", "1h", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_written_as_quantities() {
        assert_eq!(bytes("1234"), Ok(1234));
        assert_eq!(bytes("4Gi"), Ok(4 << 30));
        assert_eq!(bytes("500M"), Ok(500_000_000));
        for bad in ["", "Gi", "1.5Gi", "-1", "4GB", "99999999999999Gi"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints_and_shares_are_checked() {
        assert_eq!(endpoint("chat-baseline:8080"), Ok("chat-baseline:8080".into()));
        assert!(["chat", "chat:", ":80", "chat:http"].iter().all(|bad| endpoint(bad).is_err()));
        assert_eq!(share("0.95"), Ok(0.95));
        assert!(["1.1", "-0.1", "NaN", "x"].iter().all(|bad| share(bad).is_err()));
    }

    #[test]
    fn nobody_is_taken_to_have_asked_for_what_only_a_cpu_has() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let given = |options: &[&str]| {
            let line = ["serve", "--model", "m"].iter().chain(options);
            settings(Line::try_parse_from(line).unwrap().args).for_cpus()
        };
        assert_eq!(given(&[]), None);
        assert_eq!(Settings::new("m").for_cpus(), None);
        assert_eq!(given(&["--kv-bits", "16"]), None, "what a GPU does as well");
        assert_eq!(given(&["--kv-bits", "8"]), Some("--kv-bits"));
        assert_eq!(given(&["--memory-budget", "1Gi"]), Some("--memory-budget"));
    }

    #[test]
    fn peers_are_name_and_address() {
        assert_eq!(peer("a=127.0.0.1:9"), Ok(("a".into(), "127.0.0.1:9".into())));
        assert!(peer("a").is_err() && peer("=x:1").is_err() && peer("a=b").is_err());
    }
}
