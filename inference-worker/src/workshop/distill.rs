//! A model pair from nothing.

use super::Outcome;
use super::WorkshopError;
use super::corpus::{Corpus, write_prompts};
use super::export::{write_json, write_model};
use super::files;
use super::network::Network;
use super::ops::read;
use super::probing::{Baseline, Loaded, Similarity};
use super::progress::Progress;
use super::recipe::Recipe;
use super::staging::Staging;
use super::train::{Run, Trained, train};
use super::weights::Weights;
use crate::compare::similarity::compare_rows;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// What a pair must reach before it is published.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// Least mean cosine of student and teacher.
    pub mean: f64,
    /// Least 5th percentile of that cosine.
    pub fifth_percentile: f64,
    /// Least mean cosine of an exported model and its training graph.
    pub export: f64,
}

impl Default for Demands {
    /// Well inside the demonstration's gate of .95 and .90.
    fn default() -> Self {
        Self { mean: 0.985, fifth_percentile: 0.95, export: 0.9999 }
    }
}

/// manifest.json of a pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What was asked for.
    pub recipe: Recipe,
    /// SHA-256 of the recipe's JSON: an equal one need not be made again.
    pub recipe_hash: String,
    /// Final training losses, nats.
    pub loss: Losses,
    /// Student against teacher, on the probes, as served, over the demonstration's 16 tokens.
    pub similarity: Similarity,
    /// Mean cosine of each exported model and its training graph.
    pub export: ExportCheck,
    /// SHA-256 of every other file, by path.
    pub files: BTreeMap<String, String>,
    /// Seconds that it took: the only field that differs between equal runs.
    pub seconds: f64,
}

/// Final training losses, nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// Cross entropy of the next token.
    pub teacher: f32,
    /// T² · KL at temperature T.
    pub student: f32,
}

/// Mean cosine of served and trained logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportCheck {
    /// fp16 against its graph.
    pub teacher: f64,
    /// Packed ternary against its graph.
    pub student: f64,
}

/// Makes a pair at `out`: fp16/, bitnet/, probes.jsonl, prompts.jsonl, manifest.json.
///
/// An equal pair that is there already is kept unless `force`; one of another recipe is replaced only with `force`, one
/// of another version of this program always.
///
/// # Errors
/// [`WorkshopError::Missed`] if the pair does not reach `demands`, [`WorkshopError::Refused`] if `out` holds something
/// else. Nothing is left at `out` then, or what was there before.
pub fn distill(
    recipe: &Recipe,
    demands: &Demands,
    out: &Path,
    threads: usize,
    force: bool,
    progress: &mut dyn Progress,
) -> Result<Outcome<Manifest>, WorkshopError> {
    let started = Instant::now();
    check(recipe)?;
    let recipe_hash = hash_of(recipe);
    if let Some(present) = present(out)? {
        if present.recipe_hash == recipe_hash && !force {
            verify_files(out, &present)?;
            return Ok(Outcome::Present(present));
        }
        if !force {
            return Err(WorkshopError::Refused(format!(
                "{} holds a pair of another recipe: choose another --out, or pass --force to replace it",
                out.display()
            )));
        }
    }
    let staging = Staging::new(out)?;
    let dir = staging.path();

    progress.stage("text", 0);
    let corpus = Corpus::new(recipe)?;
    progress.note(&format!(
        "text: {} documents, {} tokens; {} probes and {} live prompts held out",
        corpus.documents.len(),
        corpus.tokens.len(),
        corpus.probes.len(),
        corpus.prompts.len()
    ));
    if let Some(leak) = corpus.leak() {
        return Err(WorkshopError::Missed(format!("the training text contains the held-out prompt {}", leak.id)));
    }

    let (teacher, learned) = make_teacher(recipe, &corpus, threads, progress)?;
    let (student, distilled) = make_student(recipe, &corpus, &teacher, threads, progress)?;

    progress.stage("check", 0);
    let (fp16, bitnet) = (dir.join("fp16"), dir.join("bitnet"));
    write_model(&fp16, &teacher, &corpus.tokenizer)?;
    write_model(&bitnet, &student, &corpus.tokenizer)?;
    write_prompts(&dir.join("probes.jsonl"), &corpus.probes)?;
    write_prompts(&dir.join("prompts.jsonl"), &corpus.prompts)?;

    let baseline = Baseline::new(&fp16, &dir.join("probes.jsonl"), CONTINUATION, threads)?;
    let served = Loaded::open(&bitnet)?;
    let similarity = baseline.compare(&served)?;
    progress.note(&format!("student against teacher: {similarity}"));
    let export = ExportCheck {
        teacher: graph_agreement(&teacher, &Loaded::open(&fp16)?, baseline.texts())?.mean,
        student: graph_agreement(&student, &served, baseline.texts())?.mean,
    };
    progress.note(&format!("served against trained: teacher {:.6}, student {:.6}", export.teacher, export.student));
    demand(demands, &similarity, &export)?;

    let manifest = Manifest {
        recipe: recipe.clone(),
        recipe_hash,
        loss: Losses { teacher: learned.loss, student: distilled.loss },
        similarity,
        export,
        files: files::hash_all(dir)?,
        seconds: started.elapsed().as_secs_f64(),
    };
    let path = dir.join(MANIFEST);
    write_json(&path, &serde_json::to_value(&manifest).map_err(WorkshopError::json(&path))?)?;
    staging.publish()?;
    Ok(Outcome::Made(manifest))
}

const MANIFEST: &str = "manifest.json";
/// Tokens of the continuations on which a pair is measured: `probes.maxTokens` of the demonstration's gate.
const CONTINUATION: usize = 16;

fn make_teacher(
    recipe: &Recipe,
    corpus: &Corpus,
    threads: usize,
    progress: &mut dyn Progress,
) -> Result<(Weights, Trained), WorkshopError> {
    progress.stage("teacher", recipe.teacher.steps);
    let failed = || WorkshopError::tensor("training the teacher");
    let mut weights = Weights::random(recipe.shape, recipe.seed).map_err(failed())?;
    let run = Run { recipe, schedule: recipe.teacher, tokens: &corpus.tokens, teacher: None, threads };
    let trained = train(&mut weights, &run, progress).map_err(failed())?;
    // The student learns from the model that will be served.
    weights.round_to_stored().map_err(failed())?;
    Ok((weights, trained))
}

fn make_student(
    recipe: &Recipe,
    corpus: &Corpus,
    teacher: &Weights,
    threads: usize,
    progress: &mut dyn Progress,
) -> Result<(Weights, Trained), WorkshopError> {
    progress.stage("student", recipe.student.steps);
    let failed = || WorkshopError::tensor("distilling the student");
    let mut weights = teacher.student().map_err(failed())?;
    let network = Network::frozen(teacher).map_err(failed())?;
    let run = Run { recipe, schedule: recipe.student, tokens: &corpus.tokens, teacher: Some(&network), threads };
    let trained = train(&mut weights, &run, progress).map_err(failed())?;
    weights.round_to_stored().map_err(failed())?;
    Ok((weights, trained))
}

/// Cosines of the logits that an exported model serves with those of its training graph, over positions. Rounding flips
/// (a number between two codes that falls the other way) keep some positions below 1; a fault of the export, all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
}

/// Holds an exported model against its training graph on up to 64 texts.
///
/// # Errors
/// If either does not run.
pub fn graph_agreement<'a>(
    weights: &Weights,
    served: &Loaded,
    texts: impl Iterator<Item = &'a [u32]>,
) -> Result<Agreement, WorkshopError> {
    let failed = || WorkshopError::tensor("running the training graph");
    let network = Network::frozen(weights).map_err(failed())?;
    let mut cosines = Vec::new();
    for text in texts.take(64) {
        let trained = network.forward(text, text.len()).map_err(failed())?;
        let served = served.logits(text)?;
        let add = |trained: &[f32]| {
            let vocabulary = weights.shape.vocabulary;
            for (a, b) in trained.chunks_exact(vocabulary).zip(served.chunks_exact(vocabulary)) {
                cosines.push(compare_rows(a, b).cosine);
            }
            Ok(())
        };
        read(&trained, add).map_err(failed())?;
    }
    cosines.sort_by(f64::total_cmp);
    let mean = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
    Ok(Agreement { mean, median: cosines.get(cosines.len() / 2).copied().unwrap_or(0.0) })
}

fn demand(demands: &Demands, similarity: &Similarity, export: &ExportCheck) -> Result<(), WorkshopError> {
    let found = [
        ("mean cosine of student and teacher", similarity.mean, demands.mean),
        ("5th percentile of that cosine", similarity.fifth_percentile, demands.fifth_percentile),
        ("cosine of the exported teacher and its training graph", export.teacher, demands.export),
        ("cosine of the exported student and its training graph", export.student, demands.export),
    ];
    let mut missed = String::new();
    for (what, value, least) in found {
        if value.is_nan() || value < least {
            let _ = write!(missed, "\n  {what} must be at least {least} but is {value:.5}");
        }
    }
    if missed.is_empty() {
        return Ok(());
    }
    Err(WorkshopError::Missed(format!(
        "the pair was not written, because it is not good enough:{missed}\n  train longer (--steps-teacher, --steps-student) or use another --seed"
    )))
}

fn check(recipe: &Recipe) -> Result<(), WorkshopError> {
    let s = &recipe.shape;
    let refusal = if recipe.shares == 0 || !recipe.batch.is_multiple_of(recipe.shares) || recipe.batch == 0 {
        "batch must be a multiple of shares, both above 0"
    } else if s.kv_heads == 0 || !s.heads.is_multiple_of(s.kv_heads) || !s.head_dim.is_multiple_of(2) {
        "kv_heads must divide heads, and head_dim must be even"
    } else if recipe.teacher.steps == 0 || recipe.student.steps == 0 {
        "--steps-teacher and --steps-student must be at least 1"
    } else if recipe.probes == 0 {
        "at least one probe is needed to measure the pair"
    } else {
        return Ok(());
    };
    Err(WorkshopError::Refused(refusal.to_owned()))
}

/// The manifest at `out`; `None` if nothing is there that counts: nothing at all, or a pair of another version of this
/// program, which cannot be made or compared any more.
fn present(out: &Path) -> Result<Option<Manifest>, WorkshopError> {
    if !out.exists() || is_empty(out) {
        return Ok(None);
    }
    let path = out.join(MANIFEST);
    let value = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let format = value.as_ref().and_then(|value| value["recipe"]["format"].as_u64());
    if format.is_some_and(|format| format != u64::from(Recipe::FORMAT)) {
        return Ok(None);
    }
    let manifest = value.and_then(|value| serde_json::from_value(value).ok());
    manifest.map(Some).ok_or_else(|| {
        WorkshopError::Refused(format!(
            "{} exists and is not a pair of this program: choose another --out",
            out.display()
        ))
    })
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn verify_files(out: &Path, manifest: &Manifest) -> Result<(), WorkshopError> {
    let mut found = files::hash_all(out)?;
    found.remove(MANIFEST);
    if found == manifest.files {
        return Ok(());
    }
    Err(WorkshopError::Refused(format!(
        "files in {} differ from its manifest.json: pass --force to make the pair again",
        out.display()
    )))
}

fn hash_of(recipe: &Recipe) -> String {
    // Serialising a plain struct of numbers to memory cannot fail.
    files::hash(&serde_json::to_vec(recipe).unwrap_or_default())
}
