//! `inference-worker convert`.

use inference_worker::model::ScaleRule;
use inference_worker::workshop::convert::{Order, Phase, PrecisionRule, Storage, convert};
use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::memory;
use inference_worker::workshop::probing::{Baseline, Loaded};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `convert`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Plain model directory (Llama-style or BitNet; F32, F16 or BF16), or a packed one to be stored in another form.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Directory to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// 1: feed-forward part; 2: and q, k, v; 3: and all of attention, with the BitNet class's norms; 4: and 4-bit
    /// activations and a 3-bit cache [default: all linear layers, the class as it is].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
    phase: Option<u8>,
    /// Precision of the linear layers that a pattern fits: full, int8, int4, ternary, binary. Repeatable; the last one
    /// that fits counts, also against the phase.
    #[arg(long, value_name = "PATTERN=PRECISION")]
    precision: Vec<PrecisionRule>,
    /// Form of the output: safetensors files, or one GGUF file with I2_S weights (the layout of x86 builds).
    #[arg(long, value_enum, default_value_t = Format::Safetensors)]
    format: Format,
    /// How scales are stored in safetensors: `multiply` (autobitlinear, mean |w|) or `divide` (bitlinear, its inverse)
    /// [default: multiply].
    #[arg(long, value_enum)]
    scale: Option<Scale>,
    /// Most megabytes of tensors in one safetensors file [default: 5000].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    shard: Option<u64>,
    /// Probe prompts: say what the conversion costs in cosine.
    #[arg(long, value_name = "FILE")]
    probes: Option<PathBuf>,
    /// YAML file with the QualityGate whose probes.maxTokens count [default: the gate of all defaults].
    #[arg(long, value_name = "FILE", requires = "probes")]
    gate: Option<PathBuf>,
    /// Threads for measuring [default: the CPUs at hand].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Safetensors,
    Gguf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scale {
    Multiply,
    Divide,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let phase = match args.phase {
        None => None,
        Some(1) => Some(Phase::FeedForward),
        Some(2) => Some(Phase::Attention),
        Some(3) => Some(Phase::SubNorms),
        Some(_) => Some(Phase::FourBits),
    };
    let storage = match args.format {
        Format::Safetensors => Storage::Safetensors {
            scale: match args.scale {
                None | Some(Scale::Multiply) => ScaleRule::Multiply,
                Some(Scale::Divide) => ScaleRule::Divide,
            },
            shard: args.shard.unwrap_or(5000) * 1_000_000,
        },
        Format::Gguf => {
            anyhow::ensure!(
                args.scale.is_none() && args.shard.is_none(),
                "--scale and --shard belong to safetensors: a GGUF file is one file, and its scales multiply"
            );
            Storage::Gguf
        }
    };
    let order = Order { model: args.model, out: args.out, phase, rules: args.precision, storage };
    let gate = read_gate(args.gate.as_deref())?;
    let started = Instant::now();
    let made = convert(&order)?;
    let (before, after) = made.bytes;
    let layers: Vec<String> = made.layers.iter().map(|(precision, n)| format!("{n} {precision}")).collect();
    println!(
        "made {} in {:.1} s: linear layers {}; {before} bytes became {after} in {} file(s){}",
        order.out.display(),
        started.elapsed().as_secs_f64(),
        layers.join(", "),
        made.files,
        memory::sentence()
    );
    if made.new_norms > 0 {
        println!(
            "{} new norms of weight 1 change what the model computes: distil it before it is used",
            made.new_norms
        );
    }
    if let Some(probes) = &args.probes {
        let threads = args.threads.unwrap_or_else(super::cpus).max(1);
        let tokens = gate.probes.max_tokens as usize;
        let baseline = Baseline::new(&order.model, probes, tokens, threads)?;
        println!("cost: {}", baseline.compare(&Loaded::open(&order.out)?)?);
    }
    Ok(())
}
