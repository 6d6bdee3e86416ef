//! `inference-worker damage`.

use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::progress::Console;
use inference_worker::workshop::{Damage, Fault, Outcome, damage};
use std::path::PathBuf;

/// Arguments of `damage`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The fp16 model that candidates are compared with.
    #[arg(long, value_name = "DIR")]
    baseline: PathBuf,
    /// The healthy packed model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Probe prompts, one {"id": …, "prompt": …} per line.
    #[arg(long, value_name = "FILE")]
    probes: PathBuf,
    /// What to break.
    #[arg(long, value_enum)]
    fault: FaultKind,
    /// With `--fault zero`: part of the name of the projection [default: the o_proj that shows most].
    #[arg(long, value_name = "PATTERN")]
    tensor: Option<String>,
    /// YAML file with the QualityGate that is to see the fault: its probes.maxTokens count [default: the gate of all
    /// defaults, as in `evaluate`].
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Directory to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Threads for measuring [default: the CPUs at hand].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FaultKind {
    /// Wrong 2-bit order in all packed matrices: gross.
    Order,
    /// Wrong rotary base: passes the mean, fails the tail.
    Rope,
    /// One projection zeroed.
    Zero,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let fault = match (args.fault, args.tensor) {
        (FaultKind::Zero, tensor) => Fault::Zero { tensor },
        (_, Some(_)) => anyhow::bail!("--tensor belongs to --fault zero: remove it or change the fault"),
        (FaultKind::Order, None) => Fault::Order,
        (FaultKind::Rope, None) => Fault::Rope,
    };
    let order = Damage {
        baseline: args.baseline,
        model: args.model,
        probes: args.probes,
        fault,
        tokens: read_gate(args.gate.as_deref())?.probes.max_tokens as usize,
        out: args.out,
        threads: args.threads.unwrap_or_else(super::cpus).max(1),
    };
    let outcome = damage(&order, &mut Console::new())?;
    let verb = match &outcome {
        Outcome::Made(_) => "made",
        Outcome::Present(_) => "kept",
    };
    let report = outcome.into_inner();
    println!("{verb} {}: {}", order.out.display(), report.change);
    println!("damaged: {}; over {} tokens", report.damaged, report.tokens);
    println!("In a rollout: {}.", report.expect);
    Ok(())
}
