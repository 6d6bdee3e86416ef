//! `inference-worker evaluate`.

use anyhow::Context as _;
use inference_worker::workshop::evaluate::{Evaluation, Order, Verdict, evaluate, texts};
use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::report::{html, markdown, picture, sentence};
use std::fs;
use std::path::{Path, PathBuf};

/// Arguments of `evaluate`.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0 promoted, 10 rolled back, 11 undecided, 12 not comparable, 1 an error.")]
pub(crate) struct Args {
    /// The fp16 model.
    #[arg(long, value_name = "DIR")]
    baseline: PathBuf,
    /// The model that may come beside it.
    #[arg(long, value_name = "DIR")]
    candidate: PathBuf,
    /// Probe prompts, one JSON object per line, as in the gate's ConfigMap.
    #[arg(long, value_name = "FILE")]
    probes: PathBuf,
    /// YAML file with one QualityGate [default: the gate of all defaults].
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Simulated rollouts.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rollouts: u32,
    /// Report to write, .md (with an .svg beside it), .html or .json. Repeatable.
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Show the worst prompts' texts in the report, not only their ids.
    #[arg(long)]
    texts: bool,
    /// Threads for measuring [default: the CPUs at hand].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Does not return after a verdict: the exit status tells it.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    for report in &args.report {
        form(report)?;
    }
    let order = Order {
        gate: read_gate(args.gate.as_deref())?,
        baseline: args.baseline,
        candidate: args.candidate,
        probes: args.probes,
        rollouts: args.rollouts,
        threads: args.threads.unwrap_or_else(super::cpus).max(1),
    };
    let evaluation = evaluate(&order)?;
    let texts = if args.texts { Some(texts(&order.probes)?) } else { None };
    for report in &args.report {
        write(report, &evaluation, texts.as_deref())?;
    }
    println!("{}: {}", evaluation.verdict, sentence(&evaluation));
    if let Some(measured) = &evaluation.measured {
        println!("candidate:   {}", measured.similarity);
        println!("noise floor: {}", measured.floor);
        let worst: Vec<String> =
            measured.prompts.iter().take(5).map(|p| format!("{} ({:.4})", p.id, p.cosine)).collect();
        println!("worst prompts: {}", worst.join(", "));
    }
    std::process::exit(match evaluation.verdict {
        Verdict::Promoted => 0,
        Verdict::RolledBack => 10,
        Verdict::Undecided => 11,
        Verdict::NotComparable => 12,
    })
}

#[derive(Clone, Copy)]
enum Form {
    Markdown,
    Html,
    Json,
}

fn form(path: &Path) -> anyhow::Result<Form> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("md") => Ok(Form::Markdown),
        Some("html") => Ok(Form::Html),
        Some("json") => Ok(Form::Json),
        _ => anyhow::bail!("--report must end in .md, .html or .json but is {}", path.display()),
    }
}

fn write(path: &Path, evaluation: &Evaluation, texts: Option<&[String]>) -> anyhow::Result<()> {
    let written = match form(path)? {
        Form::Html => fs::write(path, html(evaluation, texts)),
        Form::Json => fs::write(path, serde_json::to_string_pretty(evaluation)? + "\n"),
        Form::Markdown => {
            let image = path.with_extension("svg");
            if let Some(svg) = picture(evaluation) {
                fs::write(&image, svg).with_context(|| format!("cannot write {}", image.display()))?;
            }
            let name = image.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            fs::write(path, markdown(evaluation, &name, texts))
        }
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}
