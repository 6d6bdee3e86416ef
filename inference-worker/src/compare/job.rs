//! One comparison from its draws to its answer.

use super::draw::{self, Draws, PairOrder, Probe};
use super::halves;
use super::peer::{Connection, PeerError, Peers};
use super::probes::Probes;
use super::similarity::{RowSimilarity, compare_rows};
use crate::engine::Engine;
use crate::model::Text;
use bitnet_api::worker::{
    CompareRequest, GenerateRequest, GenerateResult, Generation, Pair, PromptComparison, ScoreRequest,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Voids in a row after which the rest is not asked for: a peer that is gone is not waited for 256 times.
const HOPELESS: u32 = 4;

/// What a comparison works with.
pub(super) struct Bench<'a> {
    pub(super) engine: &'a Engine,
    pub(super) text: &'a Text,
    pub(super) peers: &'a Peers,
    pub(super) probes: &'a Probes,
    pub(super) request: &'a CompareRequest,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    pub(super) limit: Duration,
}

/// What it found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) prompts: Vec<PromptComparison>,
    pub(super) pairs: Vec<Pair>,
    pub(super) errors: BTreeMap<&'static str, u32>,
    /// Process and busy seconds of the stable pod that answered last, and when.
    pub(super) stable: Option<(String, f64, Instant)>,
}

/// Why a prompt or a pair gave nothing.
enum Void {
    Peer(PeerError),
    /// The prompt cannot be used: no chat template, or no room for a token after it.
    Prompt,
    /// Our own engine could not score.
    Own,
    /// Not asked any more.
    Skipped,
}

impl Void {
    fn reason(&self) -> &'static str {
        match self {
            Void::Peer(error) => error.reason(),
            Void::Prompt => "promptUnusable",
            Void::Own => "ownEngine",
            Void::Skipped => "skipped",
        }
    }
}

impl Bench<'_> {
    /// Quality first, then the pairs. Errors are data: it always ends with what could be found.
    pub(super) async fn run(&self) -> Found {
        let Draws { probes, pairs } = draw::draws(self.request, self.probes.len());
        let mut found = Found::default();
        let mut voids = 0;
        for probe in probes {
            let outcome = if voids < HOPELESS { self.prompt(probe, &mut found).await } else { Err(Void::Skipped) };
            match outcome {
                Ok(comparison) => {
                    voids = 0;
                    found.prompts.push(comparison);
                }
                Err(void) => {
                    voids += 1;
                    *found.errors.entry(void.reason()).or_default() += 1;
                }
            }
        }
        voids = 0;
        for order in pairs {
            let outcome = if voids < HOPELESS { self.pair(order, &mut found).await } else { Err(Void::Skipped) };
            match outcome {
                Ok(pair) => {
                    voids = 0;
                    found.pairs.push(pair);
                }
                Err(void) => {
                    voids += 1;
                    *found.errors.entry(void.reason()).or_default() += 1;
                }
            }
        }
        found
    }

    /// Compares one prompt; after a peer's error once more on a fresh connection.
    async fn prompt(&self, probe: Probe, found: &mut Found) -> Result<PromptComparison, Void> {
        let prompt = self.tokens(probe.prompt, 1)?;
        match self.compare(&prompt, probe.positions, Connection::Kept, found).await {
            Err(Void::Peer(error)) if error.may_pass() => {
                self.compare(&prompt, probe.positions, Connection::Fresh, found).await
            }
            outcome => outcome,
        }
    }

    /// Both models' logits at drawn positions of the baseline's continuation. Row `j` of a continuation of n tokens is
    /// the prediction of its token `j`; an empty one still has the prediction that ended it.
    async fn compare(
        &self,
        prompt: &[u32],
        seed: u64,
        connection: Connection,
        found: &mut Found,
    ) -> Result<PromptComparison, Void> {
        let CompareRequest { baseline, stable, max_tokens, positions, .. } = self.request;
        let tokens = (*max_tokens).min((self.context - prompt.len()) as u32);
        let ask = GenerateRequest { prompt: prompt.to_vec(), tokens, forced: false, cached: true };
        let continuation = self.peers.generate(baseline, connection, &ask).await.map_err(Void::Peer)?;
        if continuation.non_finite > 0 {
            return Err(Void::Peer(PeerError::NonFinite));
        }
        if continuation.tokens.iter().any(|id| *id as usize >= self.vocabulary) {
            return Err(Void::Peer(PeerError::Garbage));
        }
        if baseline == stable {
            found.heard(&continuation);
        }
        let rows = continuation.tokens.len().max(1);
        let drawn = draw::positions(seed, rows, *positions as usize);
        let positions: Vec<u32> = drawn.iter().map(|row| (prompt.len() - 1 + row) as u32).collect();
        let end = positions.iter().max().map_or(prompt.len(), |last| *last as usize + 1);
        let tokens: Vec<u32> = prompt.iter().chain(&continuation.tokens).copied().take(end).collect();
        let request = ScoreRequest { tokens, positions };
        let own = self.engine.score(request.tokens.clone(), request.positions.clone(), self.limit);
        let theirs = self.peers.score(baseline, connection, &request, self.vocabulary);
        let (theirs, own) = tokio::join!(theirs, own);
        let (theirs, own) = (theirs.map_err(Void::Peer)?, own.map_err(|_| Void::Own)?);
        let vocabulary = self.vocabulary;
        let compared = tokio::task::spawn_blocking(move || summarise(&theirs, own, vocabulary));
        compared.await.map_err(|_| Void::Own)
    }

    /// One latency pair; after a peer's error that is not an answer, once more on a fresh connection.
    async fn pair(&self, order: PairOrder, found: &mut Found) -> Result<Pair, Void> {
        let count = self.request.pair_tokens as usize;
        let prompt = self.tokens(order.prompt, count)?;
        match self.generate_both(&prompt, order, Connection::Kept, found).await {
            Err(Void::Peer(error)) if error.may_pass() => {
                self.generate_both(&prompt, order, Connection::Fresh, found).await
            }
            outcome => outcome,
        }
    }

    async fn generate_both(
        &self,
        prompt: &[u32],
        order: PairOrder,
        connection: Connection,
        found: &mut Found,
    ) -> Result<Pair, Void> {
        if order.candidate_first {
            let candidate = self.generate_here(prompt).await;
            Ok(Pair { candidate, stable: self.generate_there(prompt, connection, found).await? })
        } else {
            let stable = self.generate_there(prompt, connection, found).await?;
            Ok(Pair { candidate: self.generate_here(prompt).await, stable })
        }
    }

    async fn generate_here(&self, prompt: &[u32]) -> Generation {
        let count = self.request.pair_tokens as usize;
        match self.engine.generate(prompt.to_vec(), count, Vec::new(), self.limit).await {
            Ok(done) => Generation { ok: done.is_whole(count), ttft: done.ttft, tpot: done.tpot, alone: done.alone },
            Err(_) => FAILED,
        }
    }

    /// Stable's generation. An answer that says that it failed is one; no answer is a void.
    async fn generate_there(
        &self,
        prompt: &[u32],
        connection: Connection,
        found: &mut Found,
    ) -> Result<Generation, Void> {
        let CompareRequest { stable, pair_tokens, .. } = self.request;
        let ask = GenerateRequest { prompt: prompt.to_vec(), tokens: *pair_tokens, forced: true, cached: false };
        match self.peers.generate(stable, connection, &ask).await {
            Ok(done) => {
                found.heard(&done);
                let ok = done.tokens.len() == *pair_tokens as usize && done.non_finite == 0;
                Ok(Generation { ok, ttft: done.ttft, tpot: done.tpot, alone: done.alone })
            }
            Err(PeerError::Failed | PeerError::Overloaded | PeerError::Timeout) => Ok(FAILED),
            Err(error) => Err(Void::Peer(error)),
        }
    }

    /// Tokens of a prompt that leaves room for `room` more; a longer one cannot be used.
    fn tokens(&self, index: usize, room: usize) -> Result<Vec<u32>, Void> {
        let tokens = self.probes.tokens(index, self.text).map_err(|_| Void::Prompt)?;
        if tokens.is_empty() || tokens.len() + room > self.context {
            return Err(Void::Prompt);
        }
        Ok(tokens)
    }
}

/// A generation that gave no times.
const FAILED: Generation = Generation { ok: false, ttft: 0.0, tpot: 0.0, alone: false };

impl Found {
    fn heard(&mut self, answer: &GenerateResult) {
        self.stable = Some((answer.process.clone(), answer.busy_seconds, Instant::now()));
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
