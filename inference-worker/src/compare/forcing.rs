//! One prompt compared with the baseline under teacher forcing: the same for probes and for shadowed live prompts.

use super::draw;
use super::halves;
use super::peer::{Connection, PeerError, Peers};
use super::similarity::{RowSimilarity, compare_rows};
use crate::engine::Engine;
use bitnet_api::worker::{GenerateRequest, GenerateResult, PromptComparison, ScoreRequest};
use std::time::Duration;

/// How a prompt is compared, and with whom.
pub(super) struct Forcing<'a> {
    pub(super) engine: &'a Engine,
    pub(super) peers: &'a Peers,
    /// The baseline's revision.
    pub(super) baseline: &'a str,
    /// Tokens of its continuation at most.
    pub(super) max_tokens: u32,
    /// Positions to draw at most.
    pub(super) positions: usize,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    pub(super) limit: Duration,
    /// A live prompt: compared in idle time only, here and at the baseline, which keeps nothing of it.
    pub(super) background: bool,
}

/// Why a prompt or a pair gave nothing.
pub(super) enum Void {
    Peer(PeerError),
    /// The prompt cannot be used: no chat template, or no room for a token after it.
    Prompt,
    /// Our own engine could not score.
    Own,
    /// Our own engine had other work.
    Busy,
    /// Not asked any more.
    Skipped,
}

impl Void {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Void::Peer(error) => error.reason(),
            Void::Prompt => "promptUnusable",
            Void::Own => "ownEngine",
            Void::Busy => "busy",
            Void::Skipped => "skipped",
        }
    }
}

impl Forcing<'_> {
    /// Both models' logits at drawn positions of the baseline's continuation. Row `j` of a continuation of n tokens is
    /// the prediction of its token `j`; an empty one still has the prediction that ended it.
    pub(super) async fn compare(
        &self,
        prompt: &[u32],
        seed: u64,
        connection: Connection,
    ) -> Result<(PromptComparison, GenerateResult), Void> {
        let room = self.context.checked_sub(prompt.len()).filter(|room| *room > 0 && !prompt.is_empty());
        let tokens = self.max_tokens.min(room.ok_or(Void::Prompt)? as u32);
        let background = self.background;
        let ask = GenerateRequest { prompt: prompt.to_vec(), tokens, forced: false, cached: !background, background };
        let continuation = self.peers.generate(self.baseline, connection, &ask).await.map_err(Void::Peer)?;
        if continuation.non_finite > 0 {
            return Err(Void::Peer(PeerError::NonFinite));
        }
        if continuation.tokens.iter().any(|id| *id as usize >= self.vocabulary) {
            return Err(Void::Peer(PeerError::Garbage));
        }
        let rows = continuation.tokens.len().max(1);
        let drawn = draw::positions(seed, rows, self.positions);
        let positions: Vec<u32> = drawn.iter().map(|row| (prompt.len() - 1 + row) as u32).collect();
        let end = positions.iter().max().map_or(prompt.len(), |last| *last as usize + 1);
        let tokens: Vec<u32> = prompt.iter().chain(&continuation.tokens).copied().take(end).collect();
        let request = ScoreRequest { tokens, positions, background };
        let own = self.engine.score(request.tokens.clone(), request.positions.clone(), self.limit);
        let theirs = self.peers.score(self.baseline, connection, &request, self.vocabulary);
        let (theirs, own) = tokio::join!(theirs, own);
        let own = own.map_err(|error| if error.is_busy() { Void::Busy } else { Void::Own })?;
        let theirs = theirs.map_err(Void::Peer)?;
        let vocabulary = self.vocabulary;
        let compared = tokio::task::spawn_blocking(move || summarise(&theirs, own, vocabulary));
        Ok((compared.await.map_err(|_| Void::Own)?, continuation))
    }
}

/// One prompt's numbers from both models' rows `[positions, vocabulary]`; the first row is the tail test's.
fn summarise(baseline: &[f32], mut candidate: Vec<f32>, vocabulary: usize) -> PromptComparison {
    halves::through(&mut candidate);
    let rows: Vec<RowSimilarity> = baseline
        .chunks_exact(vocabulary)
        .zip(candidate.chunks_exact(vocabulary))
        .map(|(theirs, own)| compare_rows(theirs, own))
        .collect();
    of_rows(&rows)
}

/// One prompt's numbers from its rows; the first row is the tail test's.
pub(crate) fn of_rows(rows: &[RowSimilarity]) -> PromptComparison {
    let mean = |of: fn(&RowSimilarity) -> f64| rows.iter().map(of).sum::<f64>() / rows.len().max(1) as f64;
    let non_finite = rows.iter().map(|row| row.non_finite).sum();
    // One broken row says that the answer cannot be trusted: the whole prompt counts as unlike.
    let whole = if non_finite == 0 { 1.0 } else { 0.0 };
    PromptComparison {
        probe: None,
        cosine: whole * mean(|row| row.cosine),
        cosine_at: whole * rows.first().map_or(0.0, |row| row.cosine),
        mse: mean(|row| row.mse),
        kl: mean(|row| row.kl),
        top1: mean(|row| f64::from(u8::from(row.top1))),
        non_finite,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_the_mean_of_its_rows_and_its_tail_is_the_first_one() {
        let baseline = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0];
        let compared = summarise(&baseline, vec![1.0, 0.0, 2.0, 0.0, 1.0, 2.0], 3);
        assert!((compared.cosine_at - 0.5).abs() < 1e-12);
        assert!((compared.cosine - 0.75).abs() < 1e-12);
        assert_eq!((compared.top1, compared.non_finite), (1.0, 0));
        assert!((compared.mse - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn one_broken_row_makes_the_prompt_unlike() {
        let compared = summarise(&[0.0, 1.0, 0.0, 1.0], vec![0.0, 1.0, f32::NAN, 1.0], 2);
        assert_eq!((compared.cosine, compared.cosine_at, compared.non_finite), (0.0, 0.0, 1));
        assert!(compared.mse.is_finite() && compared.kl.is_finite());
    }
}
