use super::checkpoint::{self, State};
use super::data::Text;
use super::journal::{Entry, Journal};
use super::schedule::{LearningRate, Stage, Stages, noise};
use crate::compare::similarity::{RowSimilarity, compare_rows};
use crate::engine::random::Random;
use crate::model::{Activation, LinearKind, ModelConfig, ScaleRule, Shards};
use crate::workshop::convert::{self, PrecisionRule, WeightPrecision, convert};
use crate::workshop::evaluate::{Verdict, rollouts};
use crate::workshop::export::{StoredTensor, write_tensors};
use crate::workshop::network::Network;
use crate::workshop::ops::{Loss, Objective, read};
use crate::workshop::probing::{Loaded, Similarity};
use crate::workshop::progress::Progress;
use crate::workshop::recipe::ModelShape;
use crate::workshop::staging::Staging;
use crate::workshop::train::in_parallel;
use crate::workshop::weights::{Precision, Role, Weights, layout};
use crate::workshop::{WorkshopError, files};
use bitnet_core::evidence::Gate;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use half::f16;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Everything that decides a run, apart from the text.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of a model that the worker serves.
    pub teacher: PathBuf,
    /// Directory of a plain model of the BitNet class (relu2, tied head): where the student begins.
    pub student: PathBuf,
    /// Directory to make.
    pub out: PathBuf,
    /// Directory of checkpoint, log and pictures.
    pub work: PathBuf,
    /// Go on from the checkpoint in `work`.
    pub resume: bool,
    /// Which layers become quantised: as in a conversion.
    pub phase: Option<convert::Phase>,
    /// Their precision by pattern: `full`, `ternary` or `binary`.
    pub rules: Vec<PrecisionRule>,
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

/// Student against teacher on held-out text, without noise, in the last precision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Validation {
    /// Mean cosine of mean-centred logits.
    pub mean: f64,
    /// 5th percentile of it.
    pub fifth_percentile: f64,
    /// KL(teacher ‖ student), nats.
    pub kl: f64,
    /// Share of positions with the same most likely token.
    pub top1: f64,
    /// The student's perplexity.
    pub perplexity: f64,
    /// The teacher's.
    pub perplexity_teacher: f64,
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
    /// Tokens trained on in this call.
    pub tokens: usize,
}

/// Trains a student and publishes it at `settings.out`.
///
/// # Errors
/// [`WorkshopError::Refused`] names the setting or file that cannot be; a loss that is no number ends the run with
/// [`WorkshopError::Missed`], and the last checkpoint stays as it was.
pub fn distill_student(
    settings: &Settings,
    text: &Text,
    progress: &mut dyn Progress,
) -> Result<Summary, WorkshopError> {
    let teacher = Loaded::open(&settings.teacher)?;
    let mut weights = read_student(&settings.student)?;
    check(settings, text, &teacher, &weights.shape)?;
    let last = precisions(settings)?;
    let recipe = recipe(settings, text)?;
    std::fs::create_dir_all(&settings.work).map_err(WorkshopError::file("create", &settings.work))?;
    let kept = settings.work.join("checkpoint");
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
        held_out: HeldOut::new(settings, text, &teacher)?,
        journal: Journal::open(&settings.work, state.step)?,
        settings,
        text,
        teacher,
        last: &last,
    };
    progress.stage("student", settings.steps);
    let (mut tokens, mut outcome) = (0, None);
    while state.step < settings.steps {
        let stage = settings.stages.at(state.step);
        let (loss, rate, spread) = run.step(&mut weights, &state, stage)?;
        state.step += 1;
        tokens += settings.batch * settings.accumulate * settings.sequence;
        let smooth = state.loss.map_or(loss, |s| 0.95 * f32::from_bits(s) + 0.05 * loss);
        state.loss = Some(smooth.to_bits());
        progress.step(state.step, smooth, settings.batch * settings.accumulate * settings.sequence);
        let due = state.step.is_multiple_of(settings.validate) || state.step == settings.steps;
        let validation = if due { Some(run.validate(&mut weights, stage)?) } else { None };
        run.journal.add(Entry {
            step: state.step,
            stage: stage.name().to_owned(),
            loss,
            learning_rate: rate,
            noise: spread,
            validation: validation.as_ref().map(|v| v.0),
        })?;
        let Some((validation, rows)) = validation else { continue };
        progress.note(&format!(
            "step {}: cosine mean {:.4}, 5th percentile {:.4}, KL {:.4}, top-1 {:.3}, perplexity {:.3} (teacher {:.3})",
            state.step,
            validation.mean,
            validation.fifth_percentile,
            validation.kl,
            validation.top1,
            validation.perplexity,
            validation.perplexity_teacher
        ));
        state.updates = weights.moments().1;
        checkpoint::save(&kept, &weights, &state)?;
        let early = stage == Stage::Final && settings.until.as_ref().is_some_and(|gate| passes(gate, &rows));
        outcome = Some(Summary { steps: state.step, early, validation, tokens });
        if early {
            break;
        }
    }
    let summary = match outcome {
        Some(summary) => summary,
        // The checkpoint was at the end already: what is left is to publish.
        None => Summary {
            steps: state.step,
            early: false,
            validation: run.validate(&mut weights, settings.stages.at(state.step))?.0,
            tokens,
        },
    };
    let marks = settings.until.as_ref().map(|gate| (gate.min_mean, format!("gate {}", gate.min_mean)));
    run.journal.draw(marks.as_slice())?;
    publish(settings, &mut weights)?;
    Ok(summary)
}

struct Run<'a> {
    settings: &'a Settings,
    text: &'a Text,
    teacher: Loaded,
    held_out: HeldOut,
    journal: Journal,
    last: &'a [(String, Precision)],
}

const TRAINING: &str = "distilling the student";

impl Run<'_> {
    fn quantise(&self, weights: &mut Weights, stage: Stage) -> Result<(), WorkshopError> {
        let of = |name: &str| self.last.iter().find(|(n, _)| n == name).map_or(Precision::Full, |(_, p)| stage.of(*p));
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
        let network = Network::live(weights);
        let threads = s.threads.clamp(1, s.batch);
        let mut sums: Option<Vec<Vec<f32>>> = None;
        let mut loss = 0.0;
        for _ in 0..s.accumulate {
            let mut work: Vec<Vec<(usize, usize)>> = vec![Vec::new(); threads];
            for share in 0..s.batch {
                work[share % threads].push((share, random.below(self.text.training.len() - s.sequence)));
            }
            let parts = in_parallel(work, |part| {
                part.into_iter()
                    .map(|(share, start)| Ok((share, self.gradients(&network, start)?)))
                    .collect::<candle_core::Result<Vec<_>>>()
            });
            let mut parts: Vec<_> = parts.map_err(failed())?.into_iter().flatten().collect();
            parts.sort_by_key(|(share, _)| *share);
            loss += parts.iter().map(|(_, (loss, _))| loss).sum::<f32>();
            let gradients: Vec<GradStore> = parts.into_iter().map(|(_, (_, gradients))| gradients).collect();
            let new = weights.gradients(&gradients).map_err(failed())?;
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
        if !norm.is_finite() || !weights.all.iter().all(|p| p.master.iter().all(|w| w.is_finite())) {
            return Err(self.diverged(state, "the weights are no numbers any more"));
        }
        Ok((loss, rate, spread))
    }

    fn diverged(&self, state: &State, what: &str) -> WorkshopError {
        WorkshopError::Missed(format!(
            "step {}: {what}; the checkpoint in {} is the last good state: go on from it with --resume and a lower --learning-rate",
            state.step + 1,
            self.settings.work.join("checkpoint").display()
        ))
    }

    fn gradients(&self, network: &Network, start: usize) -> candle_core::Result<(f32, GradStore)> {
        let s = self.settings;
        let inputs = &self.text.training[start..start + s.sequence];
        let (kl, entropy) = s.weights;
        let student = network.forward(inputs, s.sequence)?;
        let mut terms = Vec::new();
        if kl > 0.0 {
            let logits = self.teacher.logits(inputs).map_err(candle_core::Error::wrap)?;
            let logits = Tensor::from_vec(logits, student.shape(), &Device::Cpu)?;
            let objective = Objective::Teacher { logits, temperature: s.temperature };
            terms.push((student.apply_op1(Loss(objective))? * f64::from(kl))?);
        }
        if entropy > 0.0 {
            let targets = self.text.training[start + 1..=start + s.sequence].to_vec();
            terms.push((student.apply_op1(Loss(Objective::NextToken(targets)))? * f64::from(entropy))?);
        }
        let mut terms = terms.into_iter();
        let first = terms.next().ok_or_else(|| candle_core::Error::msg("no loss"))?;
        let loss = terms.try_fold(first, |sum, term| sum + term)?;
        Ok((loss.to_scalar::<f32>()?, loss.backward()?))
    }

    /// Compares in the last precision, and goes back to that of `stage`.
    fn validate(
        &self,
        weights: &mut Weights,
        stage: Stage,
    ) -> Result<(Validation, Vec<Vec<RowSimilarity>>), WorkshopError> {
        let failed = || WorkshopError::tensor("validating the student");
        self.quantise(weights, Stage::Final)?;
        let network = Network::frozen(weights).map_err(failed())?;
        let vocabulary = weights.shape.vocabulary;
        let indices: Vec<usize> = (0..self.held_out.sequences.len()).collect();
        let threads = self.settings.threads.max(1);
        let work = indices.chunks(indices.len().div_ceil(threads)).map(<[usize]>::to_vec).collect();
        let parts = in_parallel(work, |part: Vec<usize>| {
            part.into_iter()
                .map(|index| {
                    let (ids, teacher) = &self.held_out.sequences[index];
                    let inputs = &ids[..ids.len() - 1];
                    read(&network.forward(inputs, inputs.len())?, |student| {
                        let rows = teacher.chunks_exact(vocabulary).zip(student.chunks_exact(vocabulary));
                        Ok((
                            rows.map(|(a, b)| compare_rows(a, b)).collect::<Vec<_>>(),
                            surprise(student, ids, vocabulary),
                        ))
                    })
                })
                .collect::<candle_core::Result<Vec<_>>>()
        });
        let (rows, surprises): (Vec<_>, Vec<f64>) = parts.map_err(failed())?.into_iter().flatten().unzip();
        let whole = Similarity::of(&rows);
        self.quantise(weights, stage)?;
        let mean = surprises.iter().sum::<f64>() / surprises.len().max(1) as f64;
        let validation = Validation {
            mean: whole.mean,
            fifth_percentile: whole.fifth_percentile,
            kl: whole.kl,
            top1: whole.top1,
            perplexity: mean.exp(),
            perplexity_teacher: self.held_out.perplexity,
        };
        Ok((validation, rows))
    }
}

/// Sequences that are never trained on, with the teacher's logits.
struct HeldOut {
    sequences: Vec<(Vec<u32>, Vec<f32>)>,
    perplexity: f64,
}

impl HeldOut {
    fn new(s: &Settings, text: &Text, teacher: &Loaded) -> Result<Self, WorkshopError> {
        let most = text.held_out.len() / (s.sequence + 1);
        let vocabulary = teacher.model.config().vocab_size;
        let (mut sequences, mut sum) = (Vec::new(), 0.0);
        for index in 0..s.sequences.min(most) {
            let start = index * (text.held_out.len() - s.sequence - 1) / s.sequences.min(most);
            let ids = text.held_out[start..=start + s.sequence].to_vec();
            let logits = teacher.logits(&ids[..s.sequence])?;
            sum += surprise(&logits, &ids, vocabulary);
            sequences.push((ids, logits));
        }
        let perplexity = (sum / sequences.len().max(1) as f64).exp();
        Ok(Self { sequences, perplexity })
    }
}

/// Mean cross entropy of the next token, nats.
fn surprise(logits: &[f32], ids: &[u32], vocabulary: usize) -> f64 {
    let rows = logits.chunks_exact(vocabulary).zip(&ids[1..]);
    let count = rows.len().max(1) as f64;
    let one = |(row, next): (&[f32], &u32)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        sum.ln() - f64::from(row[*next as usize] - top)
    };
    rows.map(one).sum::<f64>() / count
}

/// Simulated rollouts of an early stop: enough to tell 95 % from chance.
const ROLLOUTS: u32 = 40;

fn passes(gate: &Gate, rows: &[Vec<RowSimilarity>]) -> bool {
    rollouts(gate, "held-out", rows, ROLLOUTS).verdict() == Verdict::Promoted
}

/// The student's first masters: a plain checkpoint of the class that the training graph computes.
fn read_student(dir: &Path) -> Result<Weights, WorkshopError> {
    let config = ModelConfig::load(dir).map_err(WorkshopError::load(dir))?;
    let wanted = [
        (config.sub_norms, "have the norms of the BitNet class: `convert --phase 3 --precision layers=full` adds them"),
        (config.activation == Activation::Relu2, "use relu2: other gate functions cannot be trained here"),
        (config.tied, "have a tied head: one of its own cannot be trained here"),
        (
            !matches!(config.linear, LinearKind::Packed(_)),
            "be plain, not packed: name the checkpoint that it was packed from",
        ),
    ];
    if let Some((_, rule)) = wanted.iter().find(|(met, _)| !met) {
        return Err(WorkshopError::Refused(format!("the student {} must {rule}", dir.display())));
    }
    let shape = ModelShape {
        vocabulary: config.vocab_size,
        width: config.hidden_size,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        ffn: config.intermediate_size,
        context: config.context,
    };
    let shards = Shards::open(dir).map_err(WorkshopError::load(dir))?;
    let mut tensors = shards.tensors().map_err(WorkshopError::load(dir))?;
    let mut masters = Vec::new();
    for (name, dims, _) in layout(&shape) {
        let tensor = tensors.take(&name).map_err(WorkshopError::load(dir))?;
        let values = tensor.floats_as_f32(&name, &dims).map_err(WorkshopError::load(dir))?;
        masters.push(values);
    }
    Weights::of(shape, config.rope_theta, config.rms_eps, masters).map_err(WorkshopError::tensor("reading the student"))
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

/// Last precision of every layer, as [`convert`] would store it.
fn precisions(s: &Settings) -> Result<Vec<(String, Precision)>, WorkshopError> {
    let config = ModelConfig::load(&s.student).map_err(WorkshopError::load(&s.student))?;
    let plan = convert::plan(&conversion(s, &s.student), &config)?;
    plan.into_iter()
        .map(|(module, precision)| {
            let precision = match precision {
                WeightPrecision::Full => Precision::Full,
                WeightPrecision::Ternary => Precision::Ternary,
                WeightPrecision::Binary => Precision::Binary,
                WeightPrecision::Int8 | WeightPrecision::Int4 => {
                    return Err(WorkshopError::Refused(format!(
                        "--precision: {module} is to be {}, but a student's layers end as full, ternary or binary; int8 and int4 are stages of --progressive",
                        precision.name()
                    )));
                }
            };
            Ok((format!("{module}.weight"), precision))
        })
        .collect()
}

fn conversion(s: &Settings, model: &Path) -> convert::Order {
    convert::Order {
        model: model.to_path_buf(),
        out: s.out.clone(),
        phase: s.phase,
        rules: s.rules.clone(),
        scale: ScaleRule::Multiply,
        shard: 5_000_000_000,
    }
}

/// Everything that decides the numbers; the learning rate may change, because a run that diverged needs another one.
fn recipe(s: &Settings, text: &Text) -> Result<String, WorkshopError> {
    let digest = |dir: &Path| crate::model::digest(dir).map_err(WorkshopError::load(dir));
    let parts = (
        (digest(&s.teacher)?, digest(&s.student)?, &text.hash, s.phase, &s.rules, s.seed),
        (s.steps, s.sequence, s.batch, s.accumulate, s.schedule, s.clip, s.temperature),
        (s.weights, s.noise, s.stages, s.validate, s.sequences),
    );
    Ok(files::hash(format!("student-1 {parts:?}").as_bytes()))
}

/// Writes the masters as a plain checkpoint and converts it: packed layers keep their masters' precision until then.
fn publish(s: &Settings, weights: &mut Weights) -> Result<(), WorkshopError> {
    let plain = s.work.join("plain");
    let staging = Staging::new(&plain)?;
    convert::copy_other_files(&s.student, staging.path())?;
    let from = s.student.join("config.json");
    std::fs::copy(&from, staging.path().join("config.json")).map_err(WorkshopError::file("copy", &from))?;
    let tensors: Vec<StoredTensor> = weights
        .all
        .iter()
        .map(|p| {
            let packed = p.role == Role::Projection && p.precision != Precision::Full;
            let bytes = if packed {
                p.master.iter().flat_map(|w| w.to_le_bytes()).collect()
            } else {
                p.master.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect()
            };
            let dtype = if packed { Dtype::F32 } else { Dtype::F16 };
            StoredTensor { name: p.name.clone(), dtype, shape: p.dims.clone(), bytes }
        })
        .collect();
    write_tensors(&staging.path().join("model.safetensors"), &tensors)?;
    staging.publish()?;
    convert(&conversion(s, &plain))?;
    std::fs::remove_dir_all(&plain).map_err(WorkshopError::file("remove", &plain))
}
