//! What a comparison would see of two models, measured on all probes and all positions.
//!
//! As in serving: the baseline continues each prompt greedily, both models get that text (teacher forcing), and the
//! logits of each continued position are compared. A tick draws prompts and positions at random; here every one is
//! taken, so the numbers are the expectations of what ticks see.

use super::WorkshopError;
use super::corpus::Prompt;
use crate::compare::similarity::{RowSimilarity, compare_rows, first_maximum};
use crate::model::{ForwardError, LoadOptions, Model, Step, Text, Want};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Tokens of the baseline's continuation, as in the demonstration's gate.
pub const CONTINUATION: usize = 16;
/// Cosine below which a position counts for the tail.
pub const TAIL: f64 = 0.90;

/// A model directory in memory.
pub struct Loaded {
    path: PathBuf,
    /// The model.
    pub model: Model,
}

impl Loaded {
    /// Loads a model directory.
    pub fn open(dir: &Path) -> Result<Self, WorkshopError> {
        let load = Model::load(dir, &LoadOptions::default());
        let model = load.map_err(|source| WorkshopError::Load { path: dir.to_path_buf(), source })?;
        Ok(Self { path: dir.to_path_buf(), model })
    }

    fn forward(&self, steps: &mut [Step<'_>]) -> Result<(), WorkshopError> {
        self.model.forward(steps).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: ForwardError) -> WorkshopError {
        WorkshopError::Forward { path: self.path.clone(), source }
    }

    /// Logits after every token of a text, `[tokens, vocabulary]`.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, WorkshopError> {
        let mut cache = self.model.new_cache(tokens.len());
        let mut steps = [Step::new(&mut cache, tokens, Want::All)];
        self.forward(&mut steps)?;
        let [step] = steps;
        Ok(step.logits)
    }

    /// The greedy continuation of a prompt, whatever ends the text, and the logits that it was chosen by.
    fn continue_greedily(&self, prompt: &[u32], tokens: usize) -> Result<(Vec<u32>, Vec<f32>), WorkshopError> {
        let mut cache = self.model.new_cache(prompt.len() + tokens);
        let (mut continuation, mut rows) = (Vec::new(), Vec::new());
        let mut next = prompt.to_vec();
        while continuation.len() < tokens {
            let mut steps = [Step::new(&mut cache, &next, Want::Last)];
            self.forward(&mut steps)?;
            let [step] = steps;
            let token = first_maximum(&step.logits) as u32;
            rows.extend_from_slice(&step.logits);
            continuation.push(token);
            next = vec![token];
        }
        Ok((continuation, rows))
    }
}

/// The baseline's side of the comparison, computed once for any number of candidates.
pub struct Baseline {
    vocabulary: usize,
    threads: usize,
    probes: Vec<Continued>,
}

struct Continued {
    prompt: Vec<u32>,
    continuation: Vec<u32>,
    rows: Vec<f32>,
}

impl Baseline {
    /// Continues every prompt.
    ///
    /// # Errors
    /// If a prompt cannot be encoded, is empty, or does not fit the context with its continuation.
    pub fn new(dir: &Path, prompts: &[Prompt], threads: usize) -> Result<Self, WorkshopError> {
        let loaded = Loaded::open(dir)?;
        let text = Text::load(dir).map_err(|source| WorkshopError::Load { path: dir.to_path_buf(), source })?;
        let context = loaded.model.config().context;
        let probes = parallel(prompts, threads, |p| {
            let prompt =
                text.encode(&p.prompt).map_err(|source| WorkshopError::Prompt { id: p.id.clone(), source })?;
            if prompt.is_empty() || prompt.len() + CONTINUATION > context {
                return Err(WorkshopError::Refused(format!(
                    "probe {} has {} tokens, but must have from 1 to {} to fit the context of {context} with its continuation: shorten or remove it",
                    p.id,
                    prompt.len(),
                    context.saturating_sub(CONTINUATION)
                )));
            }
            let (continuation, rows) = loaded.continue_greedily(&prompt, CONTINUATION)?;
            Ok(Continued { prompt, continuation, rows })
        })?;
        Ok(Self { vocabulary: loaded.model.config().vocab_size, threads, probes })
    }

    /// Compares a candidate on every probe.
    ///
    /// # Errors
    /// If the vocabularies differ or the candidate does not run.
    pub fn compare(&self, candidate: &Loaded) -> Result<Similarity, WorkshopError> {
        let found = candidate.model.config().vocab_size;
        if found != self.vocabulary {
            return Err(WorkshopError::Refused(format!(
                "baseline and model must have one vocabulary but have {} and {found} tokens: name a pair",
                self.vocabulary
            )));
        }
        let rows = parallel(&self.probes, self.threads, |probe| {
            let text = probe.text();
            let first = probe.prompt.len() - 1;
            let logits = candidate.logits(&text)?;
            let candidate = logits[first * self.vocabulary..].chunks_exact(self.vocabulary);
            let baseline = probe.rows.chunks_exact(self.vocabulary);
            Ok(baseline.zip(candidate).map(|(a, b)| compare_rows(a, b)).collect())
        })?;
        Ok(Similarity::of(&rows))
    }

    /// The forced texts: prompts with their continuations, apart from the last token.
    pub fn texts(&self) -> impl Iterator<Item = Vec<u32>> {
        self.probes.iter().map(Continued::text)
    }
}

impl Continued {
    fn text(&self) -> Vec<u32> {
        let kept = &self.continuation[..self.continuation.len() - 1];
        self.prompt.iter().chain(kept).copied().collect()
    }
}

/// How close a candidate is to its baseline. Cosines are of mean-centred logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Similarity {
    /// Prompts compared.
    pub prompts: usize,
    /// Mean over prompts of the cosine averaged over positions.
    pub mean: f64,
    /// 5th percentile of the cosine at a random position.
    pub fifth_percentile: f64,
    /// Probability that the cosine at a random position is below [`TAIL`].
    pub tail: f64,
    /// Mean KL(baseline ‖ candidate), nats.
    pub kl: f64,
    /// Share of positions with the same most likely token.
    pub top1: f64,
    /// Logits that are not finite.
    pub non_finite: u64,
}

impl Similarity {
    /// Summary of rows, one list per prompt, all of one length.
    fn of(prompts: &[Vec<RowSimilarity>]) -> Self {
        let rows: Vec<&RowSimilarity> = prompts.iter().flatten().collect();
        let n = rows.len().max(1) as f64;
        let mut cosines: Vec<f64> = rows.iter().map(|r| r.cosine).collect();
        cosines.sort_by(f64::total_cmp);
        Self {
            prompts: prompts.len(),
            mean: cosines.iter().sum::<f64>() / n,
            fifth_percentile: cosines.get((rows.len().saturating_sub(1)) / 20).copied().unwrap_or(0.0),
            tail: cosines.iter().filter(|c| **c < TAIL).count() as f64 / n,
            kl: rows.iter().map(|r| r.kl).sum::<f64>() / n,
            top1: rows.iter().filter(|r| r.top1).count() as f64 / n,
            non_finite: rows.iter().map(|r| r.non_finite).sum(),
        }
    }
}

impl std::fmt::Display for Similarity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cosine mean {:.4}, 5th percentile {:.4}, P(< {TAIL:.2}) {:.3}, KL {:.4}, top-1 {:.3} ({} prompts)",
            self.mean, self.fifth_percentile, self.tail, self.kl, self.top1, self.prompts
        )
    }
}

/// Runs `f` on all items, some per thread, and keeps their order.
fn parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    f: impl Fn(&T) -> Result<R, WorkshopError> + Sync,
) -> Result<Vec<R>, WorkshopError> {
    let part = items.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let f = &f;
        let threads: Vec<_> =
            items.chunks(part).map(|some| scope.spawn(move || some.iter().map(f).collect::<Result<Vec<R>, _>>())).collect();
        let mut all = Vec::with_capacity(items.len());
        for thread in threads {
            all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_positions() {
        let row = |cosine| RowSimilarity { cosine, mse: 0.0, kl: 0.5, top1: cosine > 0.95, non_finite: 1 };
        let rows: Vec<Vec<RowSimilarity>> =
            (0..10).map(|p| (0..10).map(|i| row(if p == 0 && i < 6 { 0.5 } else { 1.0 })).collect()).collect();
        let s = Similarity::of(&rows);
        assert_eq!((s.prompts, s.non_finite), (10, 100));
        assert!((s.mean - 0.97).abs() < 1e-12 && (s.tail - 0.06).abs() < 1e-12 && (s.top1 - 0.94).abs() < 1e-12);
        assert_eq!((s.fifth_percentile, s.kl), (0.5, 0.5));
    }

    #[test]
    fn parallel_work_keeps_order_and_errors() {
        let items: Vec<u32> = (0..9).collect();
        for threads in 1..5 {
            assert_eq!(parallel(&items, threads, |x| Ok(x * 2)).unwrap(), (0..9).map(|x| x * 2).collect::<Vec<_>>());
        }
        let refuse = |x: &u32| if *x == 7 { Err(WorkshopError::Refused("no".into())) } else { Ok(*x) };
        assert!(parallel(&items, 2, refuse).is_err());
        assert!(parallel(&[], 2, refuse).unwrap().is_empty());
    }
}
