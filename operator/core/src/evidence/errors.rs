use super::{
    claim::Claim,
    codec::{CodecError, Reader, Writer},
    rules::Rules,
    traffic::Counts,
};
use crate::stats::{
    bets::NOTHING,
    thinning::{Draws, hypergeometric},
    votes::{self, CLIP, CLIP_PROMOTE_ERRORS, not_worse, worse},
};

/// Expected excess errors, at the margin, that a promotion block holds in the smaller arm: fewer skew the votes so much
/// that a candidate at its margin is promoted too often.
const PROMOTE_BLOCK_EXCESS: f64 = 0.25;

/// Errors of both arms in the same intervals.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Errors {
    pub(super) claim: Claim,
    ticks: u32,
    block: Counts,
    promote_block: Counts,
    /// Everything that entered a block, for display.
    pub(super) total: Counts,
    /// Blocks that counted for promotion.
    pub(super) blocks: u32,
    /// The open blocks hold generations of pairs, not live requests.
    from_pairs: bool,
}

impl Errors {
    /// Drops the open blocks.
    pub(super) fn drop_blocks(&mut self) {
        self.ticks = 0;
        self.block = Counts::default();
        self.promote_block = Counts::default();
    }

    /// Takes a tick: `now` are its counts (`None`: unknown, so the open blocks are dropped), `rate` is stable's error
    /// rate in history.
    pub(super) fn step(&mut self, rules: &Rules, tick: u32, now: Option<(Counts, bool)>, rate: Option<f64>, seed: u64) {
        let mut against = NOTHING;
        if let (Some((counts, from_pairs)), Some(rate)) = (now, rate) {
            if from_pairs != self.from_pairs {
                self.drop_blocks();
                self.from_pairs = from_pairs;
            }
            self.total.add(counts);
            self.ticks += 1;
            self.block.add(counts);
            if self.ticks >= rules.block {
                against = worse(vote_worse(rules, self.block, rate, seed));
                (self.ticks, self.block) = (0, Counts::default());
            }
            self.promote(rules, counts, rate, seed);
        } else {
            self.drop_blocks();
        }
        self.claim.worse(rules.prior, tick, &against);
    }

    /// A block for promotion closes when the smaller arm is large enough: sizes say nothing about errors, so this
    /// stopping rule is fair.
    fn promote(&mut self, rules: &Rules, counts: Counts, rate: f64, seed: u64) {
        self.promote_block.add(counts);
        let Counts { candidate, stable } = self.promote_block;
        let size = candidate.1.min(stable.1);
        if (size as f64) * rules.excess < PROMOTE_BLOCK_EXCESS {
            return;
        }
        self.promote_block = Counts::default();
        let mut draws = Draws::new(seed, 2);
        let (candidate, stable) = (thinned(candidate, size, &mut draws), thinned(stable, size, &mut draws));
        let vote = votes::errors(candidate, stable, rules.excess, rate, CLIP_PROMOTE_ERRORS);
        self.claim.not_worse(&not_worse(vote), rules.promote_bound);
        self.blocks = self.blocks.saturating_add(1);
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        self.claim.encode_into(w);
        w.u32(self.ticks);
        self.block.encode_into(w);
        self.promote_block.encode_into(w);
        self.total.encode_into(w);
        w.u32(self.blocks);
        w.bool(self.from_pairs);
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self {
            claim: Claim::decode_from(r)?,
            ticks: r.u32()?,
            block: Counts::decode_from(r)?,
            promote_block: Counts::decode_from(r)?,
            total: Counts::decode_from(r)?,
            blocks: r.u32()?,
            from_pairs: r.bool()?,
        })
    }
}

/// A candidate with more requests than stable is thinned to stable's number: otherwise its many small shares of luck
/// would roll back equal arms.
fn vote_worse(rules: &Rules, block: Counts, rate: f64, seed: u64) -> f64 {
    let candidate = thinned(block.candidate, block.stable.1, &mut Draws::new(seed, 1));
    votes::errors(candidate, block.stable, rules.excess, rate, CLIP)
}

fn thinned((errors, requests): (u64, u64), size: u64, draws: &mut Draws) -> (u64, u64) {
    if requests <= size { (errors, requests) } else { (hypergeometric(requests, errors, size, draws), size) }
}
