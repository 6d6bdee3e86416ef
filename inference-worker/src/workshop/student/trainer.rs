use super::checkpoint::{self, State};
use super::data::Text;
use super::form::Form;
use super::held_out::{HeldOut, Validation};
use super::journal::{Entry, Journal};
use super::lesson::Lesson;
use super::schedule::{LearningRate, Stage, Stages, noise};
use crate::compare::similarity::RowSimilarity;
use crate::engine::random::Random;
use crate::model::{self, LayerPrecision};
use crate::workshop::evaluate::{Verdict, rollouts};
use crate::workshop::network::Network;
use crate::workshop::probing::Loaded;
use crate::workshop::progress::Progress;
use crate::workshop::recipe::ModelShape;
use crate::workshop::weights::{Rounding, Weights};
use crate::workshop::{WorkshopError, files};
use bitnet_core::evidence::Gate;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Everything that decides a run, apart from the text.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of a model that the worker serves.
    pub teacher: PathBuf,
    /// Where the student begins, and which layers become quantised.
    pub form: Form,
    /// Directory to make.
    pub out: PathBuf,
    /// Directory of checkpoint, log and pictures.
    pub work: PathBuf,
    /// Go on from the checkpoint in `work`.
    pub resume: bool,
    /// Seed of batches and noise.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens of a sequence; at most both contexts.
    pub sequence: usize,
    /// Sequences of a batch, each a share of its own.
    pub batch: usize,
    /// Batches whose gradients make one step.
    pub accumulate: usize,
    /// Highest learning rate.
    pub learning_rate: f32,
    /// How it runs.
    pub schedule: LearningRate,
    /// Norm to which gradients are clipped.
    pub clip: f32,
    /// Temperature of the distillation loss.
    pub temperature: f32,
    /// Weights of T² · KL and of the next token's cross entropy.
    pub weights: (f32, f32),
    /// Weight of the hidden states' distance, averaged over layers; above 0, the teacher must be a plain model of the
    /// student's width and layers.
    pub hidden: f32,
    /// Spread of the noise at the start, as a share of the mean of |w|.
    pub noise: f32,
    /// When the precisions begin.
    pub stages: Stages,
    /// Steps between validations, each with a checkpoint.
    pub validate: usize,
    /// Sequences of a validation.
    pub sequences: usize,
    /// Stop as soon as held-out text would pass this gate.
    pub until: Option<Gate>,
    /// Threads; they do not change the result.
    pub threads: usize,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Steps done in all.
    pub steps: usize,
    /// The gate would pass: it ended before its time.
    pub early: bool,
    /// The last validation.
    pub validation: Validation,
    /// Mean cosine of the published model's logits, as served, and of the training graph's.
    pub export: f64,
    /// Tokens trained on in this call.
    pub tokens: usize,
    /// Seconds of training in this call, validation not counted.
    pub seconds: f64,
}

/// Trains a student and publishes it at `settings.out`.
///
/// # Errors
/// [`WorkshopError::Refused`] names the setting or file that cannot be; a loss that is no number ends the run with
/// [`WorkshopError::Missed`], and a file that cannot be written with [`WorkshopError::Interrupted`]: the last checkpoint
/// stays as it was.
pub fn distill_student(
    settings: &Settings,
    text: &Text,
    progress: &mut dyn Progress,
) -> Result<Summary, WorkshopError> {
    let checkpoint = settings.work.join(CHECKPOINT);
    train(settings, text, progress).map_err(|error| match error {
        WorkshopError::File { .. } if checkpoint.exists() => {
            WorkshopError::Interrupted { checkpoint, source: Box::new(error) }
        }
        other => other,
    })
}

fn train(settings: &Settings, text: &Text, progress: &mut dyn Progress) -> Result<Summary, WorkshopError> {
    let teacher = Loaded::open(&settings.teacher)?;
    let mut weights = settings.form.read()?;
    check(settings, text, &teacher, &weights.shape)?;
    let states = states(settings, &weights.shape)?;
    let last = settings.form.precisions()?;
    let recipe = recipe(settings, text)?;
    std::fs::create_dir_all(&settings.work).map_err(WorkshopError::file("create", &settings.work))?;
    let kept = settings.work.join(CHECKPOINT);
    let found = checkpoint::state(&kept)?;
    let mut state = match (found, settings.resume) {
        (Some(state), true) if state.recipe == recipe => {
            checkpoint::restore(&kept, &mut weights, &state)?;
            state
        }
        (Some(_), true) => {
            return Err(WorkshopError::Refused(format!(
                "{} is a checkpoint of other settings, models or text: give those again (only --learning-rate and --threads may change), or begin anew in another --work",
                kept.display()
            )));
        }
        (Some(_), false) => {
            return Err(WorkshopError::Refused(format!(
                "{} holds a checkpoint: go on with --resume, or choose another --work",
                kept.display()
            )));
        }
        (None, _) => State { recipe, step: 0, updates: 0, loss: None },
    };
    let mut run = Run {
        held_out: HeldOut::new(&text.held_out, settings.sequence, settings.sequences, &teacher)?,
        journal: Journal::open(&settings.work, state.step)?,
        settings,
        text,
        teacher,
        states,
        last: &last,
        rounding: settings.form.rounding()?,
    };
    progress.stage("student", settings.steps);
    let per_step = settings.batch * settings.accumulate * settings.sequence;
    let per_epoch = text.steps_per_epoch(per_step);
    let (mut tokens, mut seconds, mut outcome) = (0, 0.0, None);
    while state.step < settings.steps {
        let stage = settings.stages.at(state.step);
        let begin = Instant::now();
        let (loss, rate, spread) = run.step(&mut weights, &state, stage)?;
        seconds += begin.elapsed().as_secs_f64();
        let epoch = state.step / per_epoch;
        state.step += 1;
        tokens += per_step;
        let smooth = state.loss.map_or(loss, |s| 0.95 * f32::from_bits(s) + 0.05 * loss);
        state.loss = Some(smooth.to_bits());
        progress.step(state.step, smooth, per_step);
        let due = state.step.is_multiple_of(settings.validate) || state.step == settings.steps;
        let validation = if due { Some(run.validate(&mut weights, stage)?) } else { None };
        run.journal.add(Entry {
            step: state.step,
            epoch,
            stage: stage.name().to_owned(),
            loss,
            learning_rate: rate,
            noise: spread,
            validation: validation.as_ref().map(|v| v.0),
        })?;
        let Some((validation, rows)) = validation else { continue };
        progress.note(&format!("step {}: {validation}", state.step));
        state.updates = weights.moments().1;
        checkpoint::save(&kept, &weights, &state)?;
        let early = stage == Stage::Final && settings.until.as_ref().is_some_and(|gate| passes(gate, &rows));
        outcome = Some((early, validation));
        if early {
            break;
        }
    }
    let (early, validation) = match outcome {
        Some(outcome) => outcome,
        // The checkpoint was at the end already: what is left is to publish.
        None => (false, run.validate(&mut weights, settings.stages.at(state.step))?.0),
    };
    let marks = settings.until.as_ref().map(|gate| (gate.min_mean, format!("gate {}", gate.min_mean)));
    run.journal.draw(marks.as_slice())?;
    let export = run.publish(&mut weights)?;
    Ok(Summary { steps: state.step, early, validation, export, tokens, seconds })
}

/// The teacher in the training graph, where hidden states count.
fn states(settings: &Settings, student: &ModelShape) -> Result<Option<Network>, WorkshopError> {
    if settings.hidden == 0.0 {
        return Ok(None);
    }
    let weights = Form::plain(&settings.teacher, "with --hidden, the teacher")?;
    let network = Network::frozen(&weights).map_err(WorkshopError::tensor(TRAINING))?;
    let teacher = network.shape();
    if (teacher.width, teacher.layers) != (student.width, student.layers) {
        return Err(WorkshopError::Refused(format!(
            "with --hidden, teacher and student must have one width and one number of layers but have {} and {}, {} and {}: leave --hidden out, or choose a student of the teacher's shape",
            teacher.width, student.width, teacher.layers, student.layers
        )));
    }
    Ok(Some(network))
}

struct Run<'a> {
    settings: &'a Settings,
    text: &'a Text,
    teacher: Loaded,
    states: Option<Network>,
    held_out: HeldOut,
    journal: Journal,
    last: &'a [(String, LayerPrecision)],
    rounding: Rounding,
}

/// Name of the checkpoint in the work directory.
const CHECKPOINT: &str = "checkpoint";
const TRAINING: &str = "distilling the student";

impl Run<'_> {
    fn quantise(&self, weights: &mut Weights, stage: Stage) -> Result<(), WorkshopError> {
        let of =
            |name: &str| self.last.iter().find(|(n, _)| n == name).map_or(LayerPrecision::Full, |(_, p)| stage.of(*p));
        weights.rounding = if stage == Stage::Final { self.rounding } else { Rounding::default() };
        weights.quantise(of).map_err(WorkshopError::tensor(TRAINING))
    }

    /// One step of the optimiser: loss, learning rate, noise.
    fn step(&self, weights: &mut Weights, state: &State, stage: Stage) -> Result<(f32, f32, f32), WorkshopError> {
        let s = self.settings;
        let failed = || WorkshopError::tensor(TRAINING);
        self.quantise(weights, stage)?;
        // A step's randomness depends on its number alone, so that a resumed run draws what an uninterrupted one does.
        let mut random = Random::from_seed(s.seed ^ (state.step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let noise_seed = random.bits();
        let spread = noise(s.noise, state.step, s.steps);
        if spread > 0.0 {
            weights.disturb(spread, noise_seed).map_err(failed())?;
        }
        let lesson = Lesson {
            teacher: &self.teacher,
            tokens: &self.text.training,
            sequence: s.sequence,
            temperature: s.temperature,
            weights: s.weights,
            states: self.states.as_ref().map(|network| (network, s.hidden)),
            threads: s.threads,
        };
        let mut sums: Option<Vec<Vec<f32>>> = None;
        let mut loss = 0.0;
        for _ in 0..s.accumulate {
            let starts: Vec<usize> =
                (0..s.batch).map(|_| random.below(self.text.training.len() - s.sequence)).collect();
            let (more, new) = lesson.gradients(weights, &starts).map_err(failed())?;
            loss += more;
            match &mut sums {
                None => sums = Some(new),
                Some(sums) => {
                    let pairs = sums.iter_mut().flatten().zip(new.iter().flatten());
                    pairs.for_each(|(sum, new)| *sum += new);
                }
            }
        }
        let shares = s.batch * s.accumulate;
        loss /= shares as f32;
        if !loss.is_finite() {
            return Err(self.diverged(state, &format!("the loss is {loss}")));
        }
        let rate = s.learning_rate * s.schedule.share(state.step, s.steps);
        let norm = weights.apply(&sums.unwrap_or_default(), shares, rate, s.clip, s.threads.max(1)).map_err(failed())?;
        // A gradient that is no number shows in the weights before it shows in a loss.
        if !norm.is_finite() || !weights.all_finite() {
            return Err(self.diverged(state, "the weights are no numbers any more"));
        }
        Ok((loss, rate, spread))
    }

    fn diverged(&self, state: &State, what: &str) -> WorkshopError {
        let kept = self.settings.work.join(CHECKPOINT);
        let step = state.step + 1;
        WorkshopError::Missed(if kept.exists() {
            format!(
                "step {step}: {what}; the checkpoint in {} is the last good state: go on from it with --resume and a lower --learning-rate",
                kept.display()
            )
        } else {
            format!(
                "step {step}: {what}; there is no checkpoint before step {}: begin again with a lower --learning-rate",
                self.settings.validate.min(self.settings.steps)
            )
        })
    }

    /// Publishes the student in the last precision; as [`Form::publish`].
    fn publish(&self, weights: &mut Weights) -> Result<f64, WorkshopError> {
        let s = self.settings;
        self.quantise(weights, Stage::Final)?;
        s.form.publish(weights, &s.work, &s.out, self.held_out.texts())
    }

    /// Compares in the last precision, and goes back to that of `stage`.
    fn validate(
        &self,
        weights: &mut Weights,
        stage: Stage,
    ) -> Result<(Validation, Vec<Vec<RowSimilarity>>), WorkshopError> {
        self.quantise(weights, Stage::Final)?;
        let found = self.held_out.compare(weights, self.settings.threads)?;
        self.quantise(weights, stage)?;
        Ok(found)
    }
}

/// Simulated rollouts of an early stop: enough to tell 95 % from chance.
const ROLLOUTS: u32 = 40;

fn passes(gate: &Gate, rows: &[Vec<RowSimilarity>]) -> bool {
    rollouts(gate, "held-out", rows, ROLLOUTS).verdict() == Verdict::Promoted
}

fn check(s: &Settings, text: &Text, teacher: &Loaded, student: &ModelShape) -> Result<(), WorkshopError> {
    let config = teacher.model.config();
    let context = config.context.min(student.context);
    let numbers = [s.learning_rate, s.clip, s.temperature];
    let refusal = if config.vocab_size != student.vocabulary {
        format!(
            "teacher and student must have one vocabulary but have {} and {} tokens: name models of one tokenizer",
            config.vocab_size, student.vocabulary
        )
    } else if s.sequence == 0 || s.sequence > context {
        format!(
            "--sequence must be from 1 to {context}, the shorter context of teacher and student, but is {}",
            s.sequence
        )
    } else if s.steps == 0 || s.batch == 0 || s.accumulate == 0 || s.validate == 0 || s.sequences == 0 {
        "--steps, --batch, --accumulate, --validate and --sequences must be at least 1".to_owned()
    } else if !numbers.iter().all(|n| n.is_finite() && *n > 0.0) {
        "--learning-rate, --clip and --temperature must be finite numbers above 0".to_owned()
    } else if !(s.noise.is_finite() && s.noise >= 0.0) {
        "--noise must be a finite number of at least 0".to_owned()
    } else if ![s.weights.0, s.weights.1].iter().all(|w| w.is_finite() && *w >= 0.0) || s.weights.0 + s.weights.1 == 0.0
    {
        "--kl and --cross-entropy must be at least 0, and one of them above".to_owned()
    } else if !(s.hidden.is_finite() && s.hidden >= 0.0) {
        "--hidden must be a finite number of at least 0".to_owned()
    } else if let Some(refusal) = tokenizers(s) {
        refusal
    } else if !s.stages.0.is_sorted() || s.stages.0[2] >= s.steps {
        format!("--progressive must be three rising steps below --steps {}", s.steps)
    } else if text.training.len() < s.sequence + 2 || text.held_out.len() < s.sequence + 2 {
        format!(
            "the text has {} tokens to train on and {} held out, but each needs more than a sequence of {}: give more text (one document in twenty is held out) or a shorter --sequence",
            text.training.len(),
            text.held_out.len(),
            s.sequence
        )
    } else if s.out.exists() {
        format!("{} exists: choose another --out", s.out.display())
    } else {
        return Ok(());
    };
    Err(WorkshopError::Refused(refusal))
}

/// Why the models cannot read one text, where both have a tokenizer.
fn tokenizers(s: &Settings) -> Option<String> {
    let hash = |dir: &Path| model::Text::load(dir).ok().map(|text| text.tokenizer_hash().to_owned());
    let (teacher, student) = (hash(&s.teacher)?, hash(&s.form.student)?);
    (teacher != student).then(|| {
        format!(
            "teacher and student must have one tokenizer, byte for byte, but {} and {} differ (SHA-256 {teacher} and {student}): ids would mean other texts; copy the teacher's tokenizer.json",
            s.teacher.display(),
            s.form.student.display()
        )
    })
}

/// Everything that decides the numbers; the learning rate may change, because a run that diverged needs another one.
fn recipe(s: &Settings, text: &Text) -> Result<String, WorkshopError> {
    let digest = |dir: &Path| model::digest(dir).map_err(WorkshopError::load(dir));
    let parts = (
        (digest(&s.teacher)?, digest(&s.form.student)?, &text.hash, s.form.phase, &s.form.rules, s.seed),
        (s.steps, s.sequence, s.batch, s.accumulate, s.schedule, s.clip, s.temperature),
        (s.weights, s.hidden, s.noise, s.stages, s.validate, s.sequences),
    );
    Ok(files::hash(format!("student-3 {parts:?}").as_bytes()))
}
