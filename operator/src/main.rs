//! Command line of the operator.

use anyhow::Context as _;
use bitnet_operator::{
    admin::{self, Readiness},
    backoff::Backoff,
    client::fenced,
    config::Config,
    controller,
    counters::References,
    dashboard::{self, Dashboard, Door, Ticks},
    detach,
    events::Events,
    guards::Guards,
    lease::{self, Claim, Fence},
    metrics::Metrics,
    notifications::Notifier,
    preflight,
    reconcile::Context,
    traces::Traces,
    worker::Workers,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use futures::FutureExt;
use std::{
    io::IsTerminal,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Rolls BitNet models out beside their fp16 baseline, and back, by evidence.
#[derive(Parser)]
#[command(name = "operator", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator.
    Run(Run),
    /// Let go of every rollout and leave its traffic and pods as they are: before the operator is removed.
    Detach(Common),
}

#[derive(Args)]
struct Common {
    /// The installation's settings (YAML).
    #[arg(long, env = "BITNET_CONFIG")]
    config: PathBuf,
    /// Namespace of the leader lease.
    #[arg(long, env = "BITNET_LEASE_NAMESPACE", default_value = "bitnet-rollouts")]
    lease_namespace: String,
    /// Name of the leader lease.
    #[arg(long, env = "BITNET_LEASE_NAME", default_value = "bitnet-rollouts")]
    lease_name: String,
    /// This process in the lease: the pod's name.
    #[arg(long, env = "BITNET_LEASE_IDENTITY")]
    lease_identity: String,
    /// Form of the log.
    #[arg(long, env = "BITNET_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    common: Common,
    /// Port of /healthz and /readyz.
    #[arg(long, default_value_t = 8081)]
    health_port: u16,
    /// Port of /metrics.
    #[arg(long, default_value_t = 8080)]
    metrics_port: u16,
    /// Port of the dashboard on the loopback address: whoever forwards it reads without a login. 0: none.
    #[arg(long, default_value_t = 8082)]
    dashboard_port: u16,
    /// Port of the dashboard on all addresses: nothing is shown without a bearer token of the cluster. 0: none.
    #[arg(long, default_value_t = 0)]
    dashboard_login_port: u16,
    /// Folder of the receivers' addresses: one file per channel of the settings.
    #[arg(long, default_value = "/etc/bitnet-notifications")]
    notifications: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let common = match &cli.command {
        Command::Run(run) => &run.common,
        Command::Detach(common) => common,
    };
    // Before the runtime: the exporter's client blocks, on a thread of its own.
    let traces = Traces::from_env();
    log(common.log_format, traces.as_ref().ok().and_then(Option::as_ref));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(4).enable_all().build();
    let outcome = runtime.context("cannot start the runtime").and_then(|runtime| {
        let traces = traces?;
        let outcome = runtime.block_on(async {
            match cli.command {
                Command::Run(run) => run_operator(run).await,
                Command::Detach(common) => run_detach(common).await,
            }
        });
        // Dropping it would wait for tasks that have nothing left to do; the exporter has a thread of its own.
        runtime.shutdown_background();
        if let Some(traces) = traces {
            traces.flush();
        }
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(format: LogFormat, traces: Option<&Traces>) {
    // Debug lines of the HTTP client may hold objects: they need to be asked for by name.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // Each has its own filter: what the log leaves out may be traced, and the other way round.
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces.map(Traces::layer)).init();
}

async fn start(common: Common) -> anyhow::Result<(Config, kube::Config, Claim)> {
    let config = Config::load(&common.config)?;
    let cluster = kube::Config::infer().await.context("no cluster: run in a pod, or set KUBECONFIG")?;
    let claim = Claim { namespace: common.lease_namespace, name: common.lease_name, identity: common.lease_identity };
    Ok((config, cluster, claim))
}

async fn run_detach(common: Common) -> anyhow::Result<()> {
    let (config, cluster, claim) = start(common).await?;
    let client = fenced(cluster, None).context("cannot make a client of the API server")?;
    let count = detach::run(&client, &config, &claim).await?;
    tracing::info!(count, "all rollouts were let go");
    Ok(())
}

async fn run_operator(run: Run) -> anyhow::Result<()> {
    let (config, cluster, claim) = start(run.common).await?;
    let fence = Fence::default();
    let unfenced = fenced(cluster.clone(), None).context("cannot make a client of the API server")?;
    let client = fenced(cluster.clone(), Some(fence.clone())).context("cannot make a client of the API server")?;
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    preflight::version(&unfenced).await?;

    let health = admin::bind(run.health_port).await.context("cannot listen on the health port")?;
    let scrape = admin::bind(run.metrics_port).await.context("cannot listen on the metrics port")?;
    tokio::spawn(axum::serve(health, admin::health(readiness.clone(), fence.clone())).into_future());
    tokio::spawn(axum::serve(scrape, admin::metrics(metrics.clone())).into_future());

    let lacks = readiness.clone();
    let (namespaces, home) = (config.watch_namespaces.clone(), claim.namespace.clone());
    tokio::spawn(preflight::watch(unfenced.clone(), namespaces, home, move |missing| lacks.missing(missing)));

    let ticks = Ticks::default();
    let (loopback, login) = (run.dashboard_port, run.dashboard_login_port);
    if (loopback, login) != (0, 0) {
        let caller = dashboard::as_caller(&cluster);
        let pages = Dashboard::new(unfenced.clone(), caller, ticks.clone(), fence.clone(), &claim.identity);
        show(pages, loopback, login, config.watch_namespaces.clone()).await?;
    }

    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    }
    .boxed()
    .shared();

    let holding = {
        let (unfenced, claim, fence) = (unfenced.clone(), claim.clone(), fence.clone());
        tokio::spawn(async move {
            let lost = lease::hold(unfenced, &claim, &fence).await;
            tracing::error!(error = &lost as &dyn std::error::Error, "not leading any more");
            // Reconciles may still run; the fence keeps them from writing, and nothing of them may outlive this.
            std::process::exit(1);
        })
    };
    let leading = fence.acquired();
    tokio::select! {
        () = leading => {}
        () = stop.clone() => {
            holding.abort();
            return Ok(());
        }
    }
    let notifier = Notifier::start(&config.notifications, &run.notifications, metrics.clone());
    let notifier = Arc::new(notifier.context("cannot set the notifications up")?);
    let context = Context {
        notifier: Arc::clone(&notifier),
        client: client.clone(),
        pools: config.known_pools(),
        config,
        workers: Workers::internal().context("cannot make a client of the workers")?,
        references: References::default(),
        guards: Guards::default(),
        metrics,
        ticks,
        events: Events::new(client, &claim.identity),
        backoff: Backoff::default(),
        stores: OnceLock::new(),
    };
    let running = controller::run(Arc::new(context), readiness, stop.clone());
    let drained = async {
        stop.await;
        tokio::time::sleep(controller::DRAIN).await;
    };
    tokio::select! { () = running => {}, () = drained => {} }
    notifier.flush().await;
    // What follows may take a moment, in which nobody may take the lease back.
    holding.abort();
    lease::release(unfenced, &claim, &fence).await;
    tracing::info!("stopped");
    Ok(())
}

/// Serves the dashboard by the doors whose port is not 0, with a watch of its own.
async fn show(pages: Dashboard, loopback: u16, login: u16, namespaces: Vec<String>) -> anyhow::Result<()> {
    if loopback != 0 {
        let door = dashboard::bind_loopback(loopback).await.context("cannot listen on the dashboard's port")?;
        tokio::spawn(axum::serve(door, pages.router(Door::Loopback)).into_future());
    }
    if login != 0 {
        let door = admin::bind(login).await.context("cannot listen on the dashboard's login port")?;
        tokio::spawn(axum::serve(door, pages.router(Door::Login)).into_future());
    }
    tokio::spawn(async move { pages.watch(&namespaces).await });
    Ok(())
}
