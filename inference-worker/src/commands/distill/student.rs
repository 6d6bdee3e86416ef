//! `inference-worker distill --teacher`.

use anyhow::Context as _;
use inference_worker::model;
use inference_worker::workshop::convert::{Phase, PrecisionRule};
use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::memory;
use inference_worker::workshop::progress::Console;
use inference_worker::workshop::student::{DataSource, Form, LearningRate, Settings, Stages, Text, distill_student};
use std::path::PathBuf;

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
    /// 1: feed-forward part; 2: and q, k, v; 3: all linear layers; 4: and 4-bit activations and a 3-bit cache
    /// [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4), requires = "teacher")]
    phase: Option<u8>,
    /// Last precision of the layers that a pattern fits: full, int8, int4, ternary, binary. Repeatable.
    #[arg(long, value_name = "PATTERN=PRECISION", requires = "teacher")]
    precision: Vec<PrecisionRule>,
    /// Optimiser steps.
    #[arg(long, default_value_t = 400)]
    steps: usize,
    /// Epochs instead of steps: one is as many steps as see the number of tokens that there are to train on.
    #[arg(long, value_name = "N", conflicts_with = "steps", requires = "teacher")]
    epochs: Option<usize>,
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
    /// Weight of the distance of hidden states behind every layer, `|x - t|² / |t|²`, averaged; the teacher must then be a
    /// plain model of the BitNet class of the student's width and layers.
    #[arg(long, default_value_t = 0.0)]
    hidden: f32,
    /// Gaussian noise on weights that become quantised: its spread at the start as a share of the mean of |w|, falling to 0
    /// at half of the steps; none in validation.
    #[arg(long, default_value_t = 0.0)]
    noise: f32,
    /// Steps at which 8 bits, 4 bits and the last precision begin [default: the last one from the start].
    #[arg(long, value_name = "A,B,C")]
    progressive: Option<Three>,
    /// The same by epochs, from 0 [without a value: 11,21,31].
    #[arg(long, value_name = "A,B,C", num_args = 0..=1, require_equals = true, default_missing_value = "11,21,31",
          conflicts_with = "progressive", requires = "teacher")]
    progressive_epochs: Option<Three>,
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

/// Three steps or epochs.
#[derive(Clone, Copy, Debug)]
struct Three([usize; 3]);

impl std::str::FromStr for Three {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        let three = numbers.and_then(|numbers| numbers.try_into().ok()).map(Self);
        three.ok_or_else(|| "write three numbers, for example 11,21,31".to_owned())
    }
}

impl Args {
    pub(super) fn is_asked_for(&self) -> bool {
        self.teacher.is_some()
    }
}

pub(super) fn run(args: Args, out: PathBuf, seed: u64, threads: usize) -> anyhow::Result<()> {
    let teacher = args.teacher.context("--teacher is missing")?;
    let phase = match args.phase {
        None | Some(3) => None,
        Some(1) => Some(Phase::FeedForward),
        Some(2) => Some(Phase::Attention),
        Some(_) => Some(Phase::FourBits),
    };
    let source = if args.data.is_empty() {
        DataSource::BuiltIn { bytes: args.generate.saturating_mul(1000), seed }
    } else {
        DataSource::Files(args.data)
    };
    let tokenizer =
        model::Text::load(&teacher).with_context(|| format!("the tokenizer in {} does not load", teacher.display()))?;
    let text = Text::read(&source, &tokenizer)?;
    let per_epoch = text.steps_per_epoch(args.batch.saturating_mul(args.accumulate).saturating_mul(args.sequence));
    let steps = args.epochs.map_or(args.steps, |epochs| epochs.saturating_mul(per_epoch));
    let stages = match args.progressive_epochs {
        Some(Three(epochs)) => epochs.map(|epoch| epoch.saturating_mul(per_epoch)),
        None => args.progressive.map_or([0; 3], |Three(steps)| steps),
    };
    anyhow::ensure!(
        args.progressive_epochs.is_none() || stages[2] < steps,
        "--progressive-epochs: the last precision begins with step {}, but there are {steps} steps: an epoch has {per_epoch} steps of this text; raise --epochs or lower the schedule",
        stages[2]
    );
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
        steps,
        sequence: args.sequence,
        batch: args.batch,
        accumulate: args.accumulate,
        learning_rate: args.learning_rate,
        schedule: args.schedule,
        clip: args.clip,
        temperature: args.temperature,
        weights: (args.kl, args.cross_entropy),
        hidden: args.hidden,
        noise: args.noise,
        stages: Stages(stages),
        validate: args.validate,
        sequences: args.sequences,
        until: args.until.as_deref().map(|path| read_gate(Some(path))).transpose()?,
        threads,
    };
    let made = distill_student(&settings, &text, &mut Console::new())?;
    println!(
        "made {} after {} steps{}: {} on held-out text; served against trained {:.6}",
        settings.out.display(),
        made.steps,
        if made.early { ", because it would pass the gate" } else { "" },
        made.validation,
        made.export
    );
    println!(
        "{:.0} tokens per second{}; log and pictures in {}",
        made.tokens as f64 / made.seconds.max(1e-9),
        memory::sentence(),
        settings.work.display()
    );
    Ok(())
}
