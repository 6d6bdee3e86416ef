//! `cargo demo`: the whole product on a real Kubernetes, as a timeline.

use anyhow::{Context, Result};
use clap::Parser;
use e2e::{
    cluster::{Cluster, Config, Progress, cache_dir},
    demo::{Act, Checks, Ground, Outcome, Own, Timeline, play},
    stage::{Binaries, Models, OPERATOR_NAMESPACE},
    traffic::{Account, Config as TrafficConfig, Traffic, first_answer, write_records},
    world::{Manifests, Rollouts, RouteHistory, apply, demo_gate},
};
use jiff::Timestamp;
use kube::Client;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// See a rollout decided by evidence, from nothing, on a real one-node Kubernetes in a network namespace of its own.
///
/// Builds the programs, trains a small fp16 model and its BitNet student, damages two copies of it, brings the cluster
/// up, installs the operator with Helm, and sends 20 requests per second. Then the BitNet model is rolled out
/// 5 → 10 → 20 → 50 → 100 %, a model with a gross fault is rolled back before it gets a single live request, and one
/// whose mean looks fine is caught by the tail test. Every request is recorded; the run fails if one of its promises
/// does not hold.
///
/// Needs root on Debian or the like, Rust, Go and Python; everything else it builds or installs itself. The first run
/// takes up to an hour on two cores, later ones about ten minutes; an interrupted run goes on where it stopped.
#[derive(Parser)]
#[command(name = "cargo demo", version)]
struct Args {
    /// Leave the cluster up afterwards and say how to look around.
    #[arg(long)]
    keep: bool,
    /// Requests per second.
    #[arg(long, default_value_t = 20.0, value_name = "N")]
    rate: f64,
    /// Where to keep the raw records; default: `demo/<time>` in the cache.
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    #[command(flatten)]
    own: Own,
}

/// The namespace, the route and the rollout of the demo.
const NAMESPACE: &str = "demo";
const CHAT: &str = "chat";

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).init();
    let args = Args::parse();
    let progress = Progress::visible();
    let stage = Stage::set(&args, &progress)?;
    if let Ground::Box(cluster) = &stage.ground {
        cluster.enter_netns()?;
    }
    let records = match &args.records {
        Some(dir) => dir.clone(),
        None => cache_dir()?.join("demo").join(Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string()),
    };
    fs::create_dir_all(&records).with_context(|| format!("creating {}", records.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(run(&args, &stage, &progress, &records));
    runtime.shutdown_timeout(Duration::from_secs(2));
    match &stage.ground {
        Ground::Box(cluster) if !args.keep => progress.stage("cluster taken down", || cluster.down())?,
        Ground::Box(cluster) => look_around(cluster, &stage.binaries),
        Ground::Own(_) => println!(
            "\nNamespace {NAMESPACE} and the operator in {OPERATOR_NAMESPACE} are still there. To take them away:\n  \
             kubectl delete namespace {NAMESPACE}; helm uninstall -n {OPERATOR_NAMESPACE} bitnet-rollouts bitnet-rollouts-crds"
        ),
    }
    result
}

/// Programs, models, and the cluster.
struct Stage {
    binaries: Binaries,
    models: Models,
    ground: Ground,
}

impl Stage {
    fn set(args: &Args, progress: &Progress) -> Result<Self> {
        let config = Config::default_place()?;
        if Cluster::entered(&config) && args.own.context.is_none() {
            // The second run of `enter_netns`: all of it was made a moment ago.
            let ground = Ground::Box(Cluster::up(&config, progress)?);
            return Ok(Self { binaries: Binaries::built()?, models: Models::made()?, ground });
        }
        if args.own.context.is_none() {
            // What this machine lacks is named before an hour is spent.
            Cluster::prerequisites(&config, progress)?;
        }
        let binaries = progress.stage("programs built", Binaries::build)?;
        let models = progress.stage("models trained and damaged", || Models::ensure(&binaries.worker))?;
        let ground = match args.own.context {
            Some(_) => Ground::Own(args.own.clone()),
            None => Ground::Box(Cluster::up(&config, progress)?),
        };
        Ok(Self { binaries, models, ground })
    }
}

async fn run(args: &Args, stage: &Stage, progress: &Progress, records: &Path) -> Result<()> {
    let (ground, models) = (&stage.ground, &stage.models);
    let client = ground.client().await?;
    let images = progress.stage("images made and loaded", || ground.images(&stage.binaries, models))?;
    progress.stage("operator installed", || ground.install(&images))?;
    let manifests = Manifests::new(NAMESPACE);
    furnish(&client, &manifests, stage).await?;
    let address = ground.address(&client, NAMESPACE).await?;
    progress.note("gateway programmed");

    let rollouts = Rollouts::new(client.clone(), NAMESPACE);
    let history = RouteHistory::watch(client.clone(), NAMESPACE, CHAT);
    println!("\nA first model: the fp16 baseline");
    let source = json!({"source": {"image": images.fp16.pinned()}});
    let rollout = manifests.rollout(
        CHAT,
        &json!({
            "baseline": source, "model": source,
            "route": {"httpRoute": CHAT, "rule": "completions"},
            "gate": {"name": "demo"},
            "strategy": {"canary": {"steps": [
                {"weight": 5, "duration": "20s"}, {"weight": 10, "duration": "20s"},
                {"weight": 20, "duration": "20s"}, {"weight": 50, "duration": "20s"},
            ]}},
            "scaleDownDelay": "15s",
        }),
    );
    apply(&client, NAMESPACE, &rollout.to_string()).await?;
    let mut timeline = Timeline::start();
    timeline.follow(&rollouts, CHAT, Duration::from_secs(180), |s| s.phase == "Serving").await?;

    let mut traffic_config = TrafficConfig::new(address, &manifests.host, models.live_prompts()?);
    traffic_config.rate = args.rate;
    first_answer(&traffic_config, Duration::from_secs(60)).await?;
    let traffic = Traffic::start(traffic_config);
    timeline.note(&format!("{} requests/s from now on; 55 s of them are the history that the tests need", args.rate));
    tokio::time::sleep(Duration::from_secs(55)).await;

    let mut checks = Checks::default();
    let acts = [
        Act {
            title: "A healthy BitNet model: canary 5 → 10 → 20 → 50 → 100 %",
            image: &images.bitnet.pinned(),
            outcome: Outcome::Promoted,
        },
        Act {
            title: "A gross fault (2-bit fields in the wrong order): gone before its first live request",
            image: &images.order.pinned(),
            outcome: Outcome::RolledBackUnseen { ticks: 8 },
        },
        Act {
            title: "A hidden fault (wrong rope base: the mean passes): the tail test sees it",
            image: &images.rope.pinned(),
            outcome: Outcome::RolledBackEarly { ticks: 60, weight: 5 },
        },
    ];
    let mut failed = None;
    for act in &acts {
        if let Err(error) = play(&client, NAMESPACE, CHAT, act, &traffic, &history, &mut checks).await {
            failed = Some(error);
            break;
        }
    }
    let requests = traffic.stop().await;
    println!("\nThe client's account\n{}", Account::of(&requests));
    let audited = history.audit();
    match &audited {
        Ok(n) => checks
            .check(true, &format!("{n} stored versions of the route: weights sum to 100, epochs rise, latches hold")),
        Err(error) => checks.check(false, &format!("route history: {error:#}")),
    }
    write_records(&records.join("requests.jsonl"), &requests)?;
    let lines: Vec<String> = history
        .versions()
        .iter()
        .map(|v| json!({"seen": v.seen, "weights": v.weights, "ledger": v.ledger}).to_string())
        .collect();
    fs::write(records.join("route.jsonl"), lines.join("\n"))?;
    println!("\nRaw records: {}", records.display());
    if let Some(error) = failed {
        return Err(error);
    }
    let held = checks.held();
    checks.finish()?;
    println!("All {held} checks held.");
    Ok(())
}

/// Namespace, gateway, route, probes and gate: what a user has before the first rollout.
async fn furnish(client: &Client, manifests: &Manifests, stage: &Stage) -> Result<()> {
    let mut gateway = manifests.gateway();
    gateway["spec"]["gatewayClassName"] = json!(stage.ground.gateway_class());
    for object in [
        manifests.namespace(),
        gateway,
        manifests.route(CHAT, NAMESPACE),
        manifests.probes("chat-probes", &stage.models.probes)?,
        manifests.gate("demo", &demo_gate()),
    ] {
        apply(client, NAMESPACE, &object.to_string()).await?;
    }
    Ok(())
}

fn look_around(cluster: &Cluster, binaries: &Binaries) {
    let kubectl_bitnet = binaries.kubectl_bitnet.display();
    println!("\nThe cluster is up. To look around:");
    println!("  cargo box kubectl -n {NAMESPACE} get mr,qg,rd,httproute,pods");
    println!("  cargo box exec -- {kubectl_bitnet} -n {NAMESPACE} status {CHAT} --watch --forever");
    println!("  KUBECONFIG={}", cluster.kubeconfig().display());
    println!("and `cargo box down` takes it away.");
}
