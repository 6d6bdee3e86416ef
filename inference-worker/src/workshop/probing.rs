//! What a comparison would see of two models, measured on all probes and all positions.
//!
//! As in serving: the baseline continues each prompt greedily up to the end of its text, both models get that text
//! (teacher forcing), and the logits of each continued position are compared as they would arrive over the wire. A tick
//! draws prompts and positions at random; here every one is taken, so the numbers are the expectations of what ticks see.

use super::WorkshopError;
use crate::compare::similarity::{RowSimilarity, compare_rows, first_maximum};
use crate::compare::{Probes, halves};
use crate::model::{ForwardError, LoadOptions, Model, Step, Text, Want};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
        Self::with_options(dir, &LoadOptions::default())
    }

    /// Loads it with other kernels or a shorter context.
    pub fn with_options(dir: &Path, options: &LoadOptions) -> Result<Self, WorkshopError> {
        let model = Model::load(dir, options).map_err(WorkshopError::load(dir))?;
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

    /// The greedy continuation of a prompt, without the token that ends the text, and the logits that it was chosen by;
    /// at least one row, because an empty continuation still has the prediction that ended it.
    fn continue_greedily(&self, prompt: &[u32], most: usize) -> Result<Continued, WorkshopError> {
        let mut cache = self.model.new_cache(prompt.len() + most);
        let (mut text, mut rows) = (prompt.to_vec(), Vec::new());
        let mut fed = 0;
        loop {
            let mut steps = [Step::new(&mut cache, &text[fed..], Want::Last)];
            self.forward(&mut steps)?;
            let [step] = steps;
            let token = first_maximum(&step.logits) as u32;
            let ended = self.model.config().eos.contains(&token);
            // The prediction of the end is a row only if there is no other.
            if !ended || rows.is_empty() {
                rows.extend_from_slice(&step.logits);
            }
            fed = text.len();
            if ended || fed + 1 == prompt.len() + most {
                halves::through(&mut rows);
                return Ok(Continued { first: prompt.len() - 1, text, rows });
            }
            text.push(token);
        }
    }
}

/// The baseline's side of the comparison, computed once for any number of candidates.
pub struct Baseline {
    vocabulary: usize,
    threads: usize,
    probes: Vec<Continued>,
}

/// A prompt with its continuation.
struct Continued {
    /// All tokens but the last continued one, whose successor nobody asks for.
    text: Vec<u32>,
    /// Index of the prompt's last token: its logits are the first row.
    first: usize,
    /// The baseline's logits, `[continued tokens, vocabulary]`.
    rows: Vec<f32>,
}

impl Baseline {
    /// Continues every prompt of a probe file by at most `tokens` tokens: a gate's `probes.maxTokens`. Later tokens differ
    /// more, so figures of different lengths are not to be compared.
    ///
    /// # Errors
    /// If the file is no probe set, or a prompt cannot be encoded or leaves no room in the context.
    pub fn new(dir: &Path, probes: &Path, tokens: usize, threads: usize) -> Result<Self, WorkshopError> {
        let set = Probes::read(Some(probes)).map_err(|source| WorkshopError::Probes { source })?;
        Self::of(dir, &set, tokens, threads)
    }

    /// Continues every prompt of a probe set by at most `tokens` tokens.
    ///
    /// # Errors
    /// If a prompt cannot be encoded or leaves no room in the context.
    pub fn of(dir: &Path, set: &Probes, tokens: usize, threads: usize) -> Result<Self, WorkshopError> {
        let loaded = Loaded::open(dir)?;
        let text = Text::load(dir).map_err(WorkshopError::load(dir))?;
        let context = loaded.model.config().context;
        let all: Vec<usize> = (0..set.len()).collect();
        let probes = parallel(&all, threads, |&index| {
            let prompt =
                set.tokens(index, &text).map_err(|source| WorkshopError::Prompt { number: index + 1, source })?;
            if prompt.is_empty() || prompt.len() >= context {
                return Err(WorkshopError::Refused(format!(
                    "probe {} must have from 1 to {} tokens to leave room in the context of {context} but has {}: shorten or remove it",
                    index + 1,
                    context - 1,
                    prompt.len()
                )));
            }
            loaded.continue_greedily(&prompt, tokens.min(context - prompt.len()))
        })?;
        Ok(Self { vocabulary: loaded.model.config().vocab_size, threads, probes })
    }

    /// Number of probes.
    pub fn len(&self) -> usize {
        self.probes.len()
    }

    /// Always false: an empty probe file is refused.
    pub fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }

    /// Compares a candidate on every probe.
    ///
    /// # Errors
    /// If the vocabularies differ or the candidate does not run.
    pub fn compare(&self, candidate: &Loaded) -> Result<Similarity, WorkshopError> {
        Ok(Similarity::of(&self.rows(candidate)?))
    }

    /// The similarity at every continued position, one list per probe, none of them empty.
    ///
    /// # Errors
    /// If the vocabularies differ, the candidate's context is shorter than a text, or it does not run.
    pub fn rows(&self, candidate: &Loaded) -> Result<Vec<Vec<RowSimilarity>>, WorkshopError> {
        let found = candidate.model.config().vocab_size;
        if found != self.vocabulary {
            return Err(WorkshopError::Refused(format!(
                "baseline and model must have one vocabulary but have {} and {found} tokens: name a pair",
                self.vocabulary
            )));
        }
        parallel(&self.probes, self.threads, |probe| {
            let mut logits = candidate.logits(&probe.text)?;
            halves::through(&mut logits);
            let candidate = logits[probe.first * self.vocabulary..].chunks_exact(self.vocabulary);
            let baseline = probe.rows.chunks_exact(self.vocabulary);
            Ok(baseline.zip(candidate).map(|(a, b)| compare_rows(a, b)).collect())
        })
    }

    /// The forced texts: prompts with their continuations.
    pub fn texts(&self) -> impl Iterator<Item = &[u32]> {
        self.probes.iter().map(|probe| probe.text.as_slice())
    }
}

/// Perplexity of a text for a model: e to the mean surprise of the next token, in whole sequences one after the other.
///
/// # Errors
/// [`WorkshopError::Refused`] if the text is shorter than a sequence and its next token; or if the model does not run.
pub fn perplexity(model: &Loaded, ids: &[u32], sequence: usize) -> Result<f64, WorkshopError> {
    let count = ids.len().saturating_sub(1).checked_div(sequence).unwrap_or(0);
    if count == 0 {
        return Err(WorkshopError::Refused(format!(
            "a text of {} tokens has no sequence of {sequence} with a token after it: give more text or a shorter sequence",
            ids.len()
        )));
    }
    let vocabulary = model.model.config().vocab_size;
    let mut sum = 0.0;
    for index in 0..count {
        let ids = &ids[index * sequence..=(index + 1) * sequence];
        sum += surprise(&model.logits(&ids[..sequence])?, ids, vocabulary);
    }
    Ok((sum / count as f64).exp())
}

/// Mean cross entropy of the next token, nats; `ids` has one more than there are rows of logits.
pub(super) fn surprise(logits: &[f32], ids: &[u32], vocabulary: usize) -> f64 {
    let rows = logits.chunks_exact(vocabulary).zip(&ids[1..]);
    let count = rows.len().max(1) as f64;
    let one = |(row, next): (&[f32], &u32)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        sum.ln() - f64::from(row[*next as usize] - top)
    };
    rows.map(one).sum::<f64>() / count
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
    /// Summary of rows, one list per prompt. Prompts weigh equally, as when they are drawn; within a prompt, positions
    /// do.
    pub(super) fn of(prompts: &[Vec<RowSimilarity>]) -> Self {
        let weighed = || prompts.iter().flat_map(|rows| rows.iter().map(|r| (r, 1.0 / rows.len() as f64)));
        let n = prompts.len().max(1) as f64;
        let mean = |of: &dyn Fn(&RowSimilarity) -> f64| weighed().map(|(r, weight)| weight * of(r)).sum::<f64>() / n;
        let mut cosines: Vec<(f64, f64)> = weighed().map(|(r, weight)| (r.cosine, weight)).collect();
        cosines.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut passed = 0.0;
        let fifth = cosines.iter().find(|(_, weight)| {
            passed += weight;
            passed >= 0.05 * n
        });
        Self {
            prompts: prompts.len(),
            mean: mean(&|r| r.cosine),
            fifth_percentile: fifth.map_or(0.0, |(cosine, _)| *cosine),
            tail: mean(&|r| f64::from(u8::from(r.cosine < TAIL))),
            kl: mean(&|r| r.kl),
            top1: mean(&|r| f64::from(u8::from(r.top1))),
            non_finite: weighed().map(|(r, _)| r.non_finite).sum(),
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
        let threads: Vec<_> = items
            .chunks(part)
            .map(|some| scope.spawn(move || some.iter().map(f).collect::<Result<Vec<R>, _>>()))
            .collect();
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
    fn the_summary_weighs_prompts_equally() {
        let row = |cosine| RowSimilarity { cosine, mse: 0.0, kl: 0.5, top1: cosine > 0.95, non_finite: 1 };
        // Nine good prompts of ten positions, and a bad one of two.
        let mut rows: Vec<Vec<RowSimilarity>> = (0..9).map(|_| vec![row(1.0); 10]).collect();
        rows.push(vec![row(0.5), row(1.0)]);
        let s = Similarity::of(&rows);
        assert_eq!((s.prompts, s.non_finite), (10, 92));
        assert!((s.kl - 0.5).abs() < 1e-12);
        assert!((s.mean - 0.975).abs() < 1e-12 && (s.tail - 0.05).abs() < 1e-12 && (s.top1 - 0.95).abs() < 1e-12);
        assert_eq!(s.fifth_percentile, 0.5);
        rows.push(vec![row(1.0)]);
        assert_eq!(Similarity::of(&rows).fifth_percentile, 1.0);
    }

    #[test]
    fn an_even_guess_is_surprised_by_the_logarithm_of_the_vocabulary() {
        let even = surprise(&[0.5; 12], &[0, 3, 1, 2], 4);
        assert!((even - 4f64.ln()).abs() < 1e-12, "{even}");
        let sure = surprise(&[0.0, 50.0, 0.0, 0.0], &[0, 1], 4);
        assert!(sure < 1e-12, "{sure}");
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
