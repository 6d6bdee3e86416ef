//! `inference-worker distill --teacher`.

use anyhow::Context as _;
use inference_worker::model;
use inference_worker::workshop::convert::{Phase, PrecisionRule};
use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::progress::Console;
use inference_worker::workshop::student::{DataSource, Form, LearningRate, Settings, Stages, Text, distill_student};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of a student.
#[derive(clap::Args)]
#[command(next_help_heading = "A student of a model that is there")]
pub(crate) struct Args {
    /// The teacher: any model that the worker serves.
    #[arg(long, value_name = "DIR")]
    teacher: Option<PathBuf>,
    /// Where the student begins: a plain model of the BitNet class [default: the teacher].
    #[arg(long, value_name = "DIR", requires = "teacher")]
    student: Option<PathBuf>,
    /// Training text: .jsonl with {"text": …} lines, or plain text with empty lines between documents. Repeatable
    /// [default: the built-in generator].
    #[arg(long, value_name = "FILE", requires = "teacher")]
    data: Vec<PathBuf>,
    /// Kilobytes of generated text, where no --data is given.
    #[arg(long, value_name = "KB", default_value_t = 3000)]
    generate: usize,
    /// Directory of checkpoint, log.jsonl, loss.svg and cosine.svg [default: OUT.training].
    #[arg(long, value_name = "DIR", requires = "teacher")]
    work: Option<PathBuf>,
    /// Go on from the checkpoint, exactly as if there had been no break.
    #[arg(long, requires = "teacher")]
    resume: bool,
    /// 1: feed-forward part; 2: and q, k, v; 3: all linear layers [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4), requires = "teacher")]
    phase: Option<u8>,
    /// Last precision of the layers that a pattern fits: full, ternary, binary. Repeatable.
    #[arg(long, value_name = "PATTERN=PRECISION", requires = "teacher")]
    precision: Vec<PrecisionRule>,
    /// Optimiser steps.
    #[arg(long, default_value_t = 400)]
    steps: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    sequence: usize,
    /// Sequences of a batch.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Batches whose gradients make one step.
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f32,
    /// How the learning rate runs after the warm-up.
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
    /// Weight of the next token's cross entropy. Where the teacher is under-trained, 0 gives the closer student.
    #[arg(long, default_value_t = 1.0)]
    cross_entropy: f32,
    /// Gaussian noise on weights that become quantised: its spread at the start as a share of the mean of |w|, falling to 0
    /// at half of the steps; none in validation.
    #[arg(long, default_value_t = 0.0)]
    noise: f32,
    /// Steps at which 8 bits, 4 bits and the last precision begin [default: the last one from the start].
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', num_args = 3)]
    progressive: Vec<usize>,
    /// Steps between validations, each with a checkpoint.
    #[arg(long, default_value_t = 50)]
    validate: usize,
    /// Held-out sequences of a validation.
    #[arg(long, default_value_t = 24)]
    sequences: usize,
    /// Stop as soon as the student would pass the QualityGate of this file on held-out text.
    #[arg(long, value_name = "FILE", requires = "teacher")]
    until: Option<PathBuf>,
}

impl Args {
    pub(super) fn is_asked_for(&self) -> bool {
        self.teacher.is_some()
    }
}

pub(super) fn run(args: Args, out: PathBuf, seed: u64, threads: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let teacher = args.teacher.context("--teacher is missing")?;
    let phase = match args.phase {
        None | Some(3) => None,
        Some(1) => Some(Phase::FeedForward),
        Some(2) => Some(Phase::Attention),
        Some(_) => anyhow::bail!(
            "--phase 4 asks for 4-bit activations and a 3-bit cache, and this worker serves 8-bit activations and a full cache only: use --phase 3"
        ),
    };
    let stages = <[usize; 3]>::try_from(args.progressive).unwrap_or([0; 3]);
    let source = if args.data.is_empty() {
        DataSource::BuiltIn { bytes: args.generate.saturating_mul(1000), seed }
    } else {
        DataSource::Files(args.data)
    };
    let tokenizer =
        model::Text::load(&teacher).with_context(|| format!("the tokenizer in {} does not load", teacher.display()))?;
    let text = Text::read(&source, &tokenizer)?;
    let work = args.work.unwrap_or_else(|| {
        let mut name = out.clone().into_os_string();
        name.push(".training");
        name.into()
    });
    let settings = Settings {
        form: Form { student: args.student.unwrap_or_else(|| teacher.clone()), phase, rules: args.precision },
        teacher,
        out,
        work,
        resume: args.resume,
        seed,
        steps: args.steps,
        sequence: args.sequence,
        batch: args.batch,
        accumulate: args.accumulate,
        learning_rate: args.learning_rate,
        schedule: args.schedule,
        clip: args.clip,
        temperature: args.temperature,
        weights: (args.kl, args.cross_entropy),
        noise: args.noise,
        stages: Stages(stages),
        validate: args.validate,
        sequences: args.sequences,
        until: args.until.as_deref().map(|path| read_gate(Some(path))).transpose()?,
        threads,
    };
    let made = distill_student(&settings, &text, &mut Console::new())?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "made {} after {} steps{}: cosine mean {:.4}, 5th percentile {:.4} on held-out text",
        settings.out.display(),
        made.steps,
        if made.early { ", because it would pass the gate" } else { "" },
        made.validation.mean,
        made.validation.fifth_percentile
    );
    println!("{:.0} tokens per second; log and pictures in {}", made.tokens as f64 / seconds, settings.work.display());
    Ok(())
}
