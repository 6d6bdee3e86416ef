use crate::compare::similarity::{RowSimilarity, compare_rows};
use crate::workshop::WorkshopError;
use crate::workshop::network::Network;
use crate::workshop::ops::read;
use crate::workshop::probing::{Loaded, Similarity, surprise};
use crate::workshop::train::in_parallel;
use crate::workshop::weights::Weights;
use serde::{Deserialize, Serialize};

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

impl std::fmt::Display for Validation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cosine mean {:.4}, 5th percentile {:.4}, KL {:.4}, top-1 {:.3}, perplexity {:.3} (teacher {:.3})",
            self.mean, self.fifth_percentile, self.kl, self.top1, self.perplexity, self.perplexity_teacher
        )
    }
}

/// Sequences that are never trained on, with the teacher's logits.
pub(in crate::workshop) struct HeldOut {
    sequences: Vec<(Vec<u32>, Vec<f32>)>,
    perplexity: f64,
}

impl HeldOut {
    /// Up to `count` sequences of `sequence` tokens, spread evenly over `ids`.
    pub(in crate::workshop) fn new(
        ids: &[u32],
        sequence: usize,
        count: usize,
        teacher: &Loaded,
    ) -> Result<Self, WorkshopError> {
        let count = count.min(ids.len() / (sequence + 1));
        let vocabulary = teacher.model.config().vocab_size;
        let (mut sequences, mut sum) = (Vec::new(), 0.0);
        for index in 0..count {
            let start = index * (ids.len() - sequence - 1) / count;
            let ids = ids[start..=start + sequence].to_vec();
            let logits = teacher.logits(&ids[..sequence])?;
            sum += surprise(&logits, &ids, vocabulary);
            sequences.push((ids, logits));
        }
        let perplexity = (sum / sequences.len().max(1) as f64).exp();
        Ok(Self { sequences, perplexity })
    }

    /// The sequences, without the token behind them.
    pub(in crate::workshop) fn texts(&self) -> impl Iterator<Item = &[u32]> {
        self.sequences.iter().map(|(ids, _)| &ids[..ids.len() - 1])
    }

    /// Compares the live weights; the rows of every sequence beside the summary.
    pub(in crate::workshop) fn compare(
        &self,
        weights: &Weights,
        threads: usize,
    ) -> Result<(Validation, Vec<Vec<RowSimilarity>>), WorkshopError> {
        let failed = || WorkshopError::tensor("validating the student");
        let network = Network::frozen(weights).map_err(failed())?;
        let vocabulary = weights.shape.vocabulary;
        let indices: Vec<usize> = (0..self.sequences.len()).collect();
        let work = indices.chunks(indices.len().div_ceil(threads.max(1)).max(1)).map(<[usize]>::to_vec).collect();
        let parts = in_parallel(work, |part: Vec<usize>| {
            part.into_iter()
                .map(|index| {
                    let (ids, teacher) = &self.sequences[index];
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
        let mean = surprises.iter().sum::<f64>() / surprises.len().max(1) as f64;
        let validation = Validation {
            mean: whole.mean,
            fifth_percentile: whole.fifth_percentile,
            kl: whole.kl,
            top1: whole.top1,
            perplexity: mean.exp(),
            perplexity_teacher: self.perplexity,
        };
        Ok((validation, rows))
    }
}
