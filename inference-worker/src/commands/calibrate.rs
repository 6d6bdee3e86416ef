//! `inference-worker calibrate`.

use anyhow::Context as _;
use inference_worker::compare::{Probes, calibrate};
use inference_worker::model::{self, LoadOptions, Model, Text};
use inference_worker::serve::CONFIDENCE_FILE;
use std::path::PathBuf;

/// Arguments of `calibrate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model that is to know how sure it is; the calibration is written into its directory, which gets another digest:
    /// calibrate before you package.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The fp16 baseline.
    #[arg(long, value_name = "DIR")]
    baseline: PathBuf,
    /// Probe prompts, one JSON object per line, as in the gate's ConfigMap.
    #[arg(long, value_name = "FILE")]
    probes: PathBuf,
    /// Tokens by which each prompt is continued.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    tokens: u16,
    /// Threads [default: the CPUs at hand].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(super::cpus).max(1);
    let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
    let load = |dir: &PathBuf| Model::load(dir, &options).with_context(|| format!("cannot load {}", dir.display()));
    let (model, baseline) = (load(&args.model)?, load(&args.baseline)?);
    let text = Text::load(&args.model)?;
    let probes = Probes::read(Some(&args.probes))?;
    let found = calibrate(&model, &baseline, &text, &probes, usize::from(args.tokens))?;
    let path = args.model.join(CONFIDENCE_FILE);
    std::fs::write(&path, serde_json::to_string_pretty(&found)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}: {found}", path.display());
    let digest = model::digest(&args.model)?;
    println!("the model directory has the digest sha256:{digest} now: package it, or give a claim this digest");
    Ok(())
}
