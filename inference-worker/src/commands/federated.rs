//! `inference-worker federated`: a coordinator and its clients.

use anyhow::Context as _;
use inference_worker::model;
use inference_worker::workshop::convert::{Phase, PrecisionRule};
use inference_worker::workshop::federated::{
    ClientSettings, Coordinator, CoordinatorSettings, Plan, Rules, Token, take_part,
};
use inference_worker::workshop::progress::Console;
use inference_worker::workshop::student::{DataSource, Form, LearningRate, Text};
use inference_worker::workshop::weights::Rounding;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Arguments of `federated`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Lead the rounds: hand out masters, average what comes back, publish the packed model, end.
    Coordinator(CoordinatorArgs),
    /// Train on a text that stays here, in every round, until the coordinator says that all are done.
    Client(ClientArgs),
}

/// What both have.
#[derive(clap::Args)]
struct Common {
    /// Plain model of the BitNet class (relu2, tied head): teacher and first masters; the same everywhere.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// File with the shared token, at least 16 characters.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Text: .jsonl with {"text": …} lines, or plain text with empty lines between documents. Repeatable [default: the
    /// built-in generator].
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Kilobytes of generated text, where no --data is given.
    #[arg(long, value_name = "KB", default_value_t = 200)]
    generate: usize,
    /// Threads; they do not change the result [default: the CPUs at hand].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Log filter, in the syntax of tracing's EnvFilter.
    #[arg(long, env = "BITNET_LOG", default_value = "info")]
    log: String,
}

#[derive(clap::Args)]
struct CoordinatorArgs {
    #[command(flatten)]
    common: Common,
    /// Directory to make: the packed model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Directory of what a restart needs, and of rounds.jsonl [default: OUT.rounds].
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0:8090")]
    listen: SocketAddr,
    /// Clients that the first round waits for.
    #[arg(long)]
    clients: usize,
    /// Fewest clients that make an average [default: more than half of them].
    #[arg(long)]
    quorum: Option<usize>,
    /// Seconds after which a round with a quorum goes on without the others; without a quorum, it is given up after ten
    /// times as many.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    deadline: u64,
    /// Rounds.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Passes over a client's text per round.
    #[arg(long, default_value_t = 5)]
    epochs: usize,
    /// Sequences per optimiser step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    sequence: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f32,
    /// How the learning rate runs over all rounds.
    #[arg(long, value_enum, default_value_t = LearningRate::Cosine)]
    schedule: LearningRate,
    /// Norm to which gradients are clipped.
    #[arg(long, default_value_t = 1.0)]
    clip: f32,
    /// Temperature T of the distillation loss.
    #[arg(long, default_value_t = 3.0)]
    temperature: f32,
    /// Weight of T² · KL(teacher ‖ student).
    #[arg(long, default_value_t = 1.0)]
    kl: f32,
    /// Weight of the next token's cross entropy.
    #[arg(long, default_value_t = 1.0)]
    cross_entropy: f32,
    /// 1: feed-forward part; 2: and q, k, v; 3: all linear layers; 4: and 4-bit activations and a 3-bit cache
    /// [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
    phase: Option<u8>,
    /// Last precision of the layers that a pattern fits: full, int8, int4, ternary, binary. Repeatable.
    #[arg(long, value_name = "PATTERN=PRECISION")]
    precision: Vec<PrecisionRule>,
    /// Seed of the generator and of the order of sequences.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Held-out sequences of a measurement.
    #[arg(long, default_value_t = 24)]
    sequences: usize,
}

#[derive(clap::Args)]
struct ClientArgs {
    #[command(flatten)]
    common: Common,
    /// Base URL of the coordinator, http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// Name of this client: lower-case letters, digits, hyphens; the same after a restart.
    #[arg(long)]
    name: String,
    /// Seed of the generator: another one for each client.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that a coordinator may be away.
    #[arg(long, default_value_t = 300)]
    patience: u64,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    super::distill::with_quiet_tensors()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // A few small requests; training and measuring have threads of their own.
        .worker_threads(1)
        .enable_all()
        .build()
        .context("the runtime did not start")?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        tokio::select! {
            outcome = role(args.role) => outcome,
            _ = terminate.recv() => anyhow::bail!("stopped by SIGTERM; started again, it goes on where it was"),
        }
    });
    // A step of training that nobody waits for any more.
    runtime.shutdown_background();
    outcome
}

async fn role(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Coordinator(args) => coordinator(args).await,
        Role::Client(args) => client(args).await,
    }
}

async fn coordinator(args: CoordinatorArgs) -> anyhow::Result<()> {
    start_log(&args.common.log)?;
    let phase = match args.phase {
        Some(1) => Some(Phase::FeedForward),
        Some(2) => Some(Phase::Attention),
        Some(4) => Some(Phase::FourBits),
        _ => None,
    };
    let (common, out) = (args.common, args.out);
    let work = args.work.unwrap_or_else(|| {
        let mut name = out.clone().into_os_string();
        name.push(".rounds");
        name.into()
    });
    // Measured on text that no client's generator writes.
    let text = text(&common, !args.seed)?;
    let settings = CoordinatorSettings {
        token: Token::read(&common.token_file)?,
        form: Form { student: common.model, phase, rules: args.precision },
        out: out.clone(),
        work: work.clone(),
        plan: Plan {
            rounds: args.rounds,
            epochs: args.epochs,
            batch: args.batch,
            sequence: args.sequence,
            learning_rate: args.learning_rate,
            schedule: args.schedule,
            clip: args.clip,
            temperature: args.temperature,
            kl: args.kl,
            cross_entropy: args.cross_entropy,
            seed: args.seed,
            precisions: BTreeMap::new(),
            rounding: Rounding::default(),
        },
        rules: Rules {
            rounds: args.rounds,
            clients: args.clients,
            quorum: args.quorum.unwrap_or(args.clients / 2 + 1),
            deadline: Duration::from_secs(args.deadline),
        },
        held_out: text.into_iter().take(args.sequences.saturating_mul(args.sequence + 1) * 4).collect(),
        sequences: args.sequences,
        threads: common.threads.unwrap_or_else(super::cpus).max(1),
        linger: Duration::from_secs(30),
    };
    let coordinator = Coordinator::open(settings, args.listen).await?;
    tracing::info!(address = %coordinator.address().context("the port is not open")?, "listening");
    let finished = coordinator.run().await?;
    println!(
        "made {} after {} rounds: {}; rounds in {}",
        out.display(),
        finished.rounds,
        finished.validation,
        work.display()
    );
    Ok(())
}

async fn client(args: ClientArgs) -> anyhow::Result<()> {
    start_log(&args.common.log)?;
    let common = args.common;
    let tokens = text(&common, args.seed)?;
    let settings = ClientSettings {
        coordinator: args.coordinator,
        token: Token::read(&common.token_file)?,
        name: args.name,
        model: common.model,
        patience: Duration::from_secs(args.patience),
        poll: Duration::from_millis(500),
        threads: common.threads.unwrap_or_else(super::cpus).max(1),
    };
    let part = take_part(settings, tokens, Box::new(Console::new())).await?;
    println!("delivered in {} rounds, too late in {}", part.delivered, part.late);
    Ok(())
}

/// All of a source's ids: what is held out of a training text elsewhere is part of it here.
fn text(common: &Common, seed: u64) -> anyhow::Result<Vec<u32>> {
    let source = if common.data.is_empty() {
        DataSource::BuiltIn { bytes: common.generate.saturating_mul(1000), seed }
    } else {
        DataSource::Files(common.data.clone())
    };
    let text = Text::read(&source, &tokenizer(&common.model)?)?;
    Ok([text.training, text.held_out].concat())
}

fn tokenizer(model: &Path) -> anyhow::Result<model::Text> {
    model::Text::load(model).with_context(|| format!("the tokenizer in {} does not load", model.display()))
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log is not a filter")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    builder.try_init().map_err(|error| anyhow::anyhow!(error).context("the log did not start"))
}
