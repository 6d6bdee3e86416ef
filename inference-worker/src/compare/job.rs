//! One comparison from its draws to its answer.

use super::draw::{self, Draws, PairOrder, Probe};
use super::forcing::{Forcing, Void};
use super::peer::{Connection, PeerError, Peers};
use super::probes::Probes;
use crate::engine::Engine;
use crate::model::Text;
use bitnet_api::worker::{CompareRequest, GenerateRequest, GenerateResult, Generation, Pair, PromptComparison};
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
        let CompareRequest { baseline, stable, max_tokens, positions, .. } = self.request;
        let forcing = Forcing {
            engine: self.engine,
            peers: self.peers,
            baseline,
            max_tokens: *max_tokens,
            positions: *positions as usize,
            vocabulary: self.vocabulary,
            context: self.context,
            limit: self.limit,
            background: false,
        };
        let outcome = match forcing.compare(&prompt, probe.positions, Connection::Kept).await {
            Err(Void::Peer(error)) if error.may_pass() => {
                forcing.compare(&prompt, probe.positions, Connection::Fresh).await
            }
            outcome => outcome,
        };
        let (comparison, continuation) = outcome?;
        if baseline == stable {
            found.heard(&continuation);
        }
        Ok(PromptComparison { probe: u32::try_from(probe.prompt).ok(), ..comparison })
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
        let ask = GenerateRequest {
            prompt: prompt.to_vec(),
            tokens: *pair_tokens,
            forced: true,
            cached: false,
            background: false,
        };
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
