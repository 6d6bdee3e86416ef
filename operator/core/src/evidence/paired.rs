use super::{
    GenerationSample,
    claim::{Claim, decode_sequence, encode_sequence},
    codec::{CodecError, Reader, Writer},
    load::Load,
    quality::DISPLAY_ALPHA,
    rules::Rules,
};
use crate::stats::{
    bets::NOTHING,
    intervals::MeanSequence,
    votes::{not_worse, worse},
};

/// Unit of a block's mean log ratio: a ratio 1.5 times off the margin is as much as one block can say.
pub(super) const LN_UNIT: f64 = 0.405_465_108_108_164_4;

/// Displayed log ratios are clipped to a factor of 4 either way.
const LN_SHOWN: f64 = 1.386_294_361_119_890_6;

/// Pairs after which an engine that was never alone is taken as one that never will be.
const NEVER_ALONE_AFTER: u32 = 32;

/// Latency by pairs: the same prompt, the same number of tokens, one arm after the other, no network.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Paired {
    pub(super) claims: [Claim; 2],
    /// Log ratios of the pairs that counted, mapped to [0, 1].
    pub(super) shown: [MeanSequence; 2],
    /// Pairs that both arms finished.
    finished: u32,
    candidate_alone: u32,
    stable_alone: u32,
    block: Block,
}

/// Sum and number of log ratios in the open block.
#[derive(Clone, Debug, Default, PartialEq)]
struct Block {
    ticks: u32,
    worse: [(f64, u32); 2],
    not_worse: [(f64, u32); 2],
}

impl Paired {
    pub(super) fn step(
        &mut self,
        rules: &Rules,
        tick: u32,
        pairs: &[(GenerationSample, GenerationSample)],
        load: Option<Load>,
    ) {
        for (candidate, stable) in pairs {
            self.take(candidate, stable, load);
        }
        self.block.ticks += 1;
        let closed = (self.block.ticks >= rules.block).then(|| std::mem::take(&mut self.block));
        for (m, claim) in self.claims.iter_mut().enumerate() {
            let vote = |(sum, n): (f64, u32)| {
                let x = (sum / f64::from(n) - rules.ln_ratio) / LN_UNIT;
                (n > 0).then(|| x.clamp(-1.0, 1.0))
            };
            let block = closed.as_ref();
            let against = block.and_then(|b| vote(b.worse[m])).map_or(NOTHING, worse);
            claim.worse(rules.prior, tick, &against);
            if let Some(x) = block.and_then(|b| vote(b.not_worse[m])) {
                claim.not_worse(&not_worse(x), rules.promote_bound);
            }
        }
    }

    fn take(&mut self, candidate: &GenerationSample, stable: &GenerationSample, load: Option<Load>) {
        if !(candidate.ok && stable.ok) {
            return;
        }
        // Load alone is worth up to 1.2x, so pairs count only where both engines had nothing else to do; where an engine
        // always has, only pairs whose difference in load speaks against the claim count for it.
        let strict = self.never_alone();
        self.finished = self.finished.saturating_add(1);
        self.candidate_alone = self.candidate_alone.saturating_add(u32::from(candidate.alone));
        self.stable_alone = self.stable_alone.saturating_add(u32::from(stable.alone));
        let alone = candidate.alone && stable.alone;
        let for_worse = alone || strict && load.is_some_and(Load::candidate_at_most);
        let for_not_worse = alone || strict && load.is_some_and(Load::candidate_at_least);
        let times = [(candidate.ttft, stable.ttft), (candidate.tpot, stable.tpot)];
        for (m, (c, s)) in times.into_iter().enumerate() {
            let ln = (c / s).ln();
            if !(c > 0.0 && s > 0.0 && ln.is_finite()) {
                continue;
            }
            let add = |(sum, n): &mut (f64, u32)| {
                *sum += ln;
                *n += 1;
            };
            if for_worse {
                add(&mut self.block.worse[m]);
            }
            if for_not_worse {
                add(&mut self.block.not_worse[m]);
            }
            if for_worse || for_not_worse {
                self.shown[m].add(ln.clamp(-LN_SHOWN, LN_SHOWN) / (2.0 * LN_SHOWN) + 0.5, DISPLAY_ALPHA);
            }
        }
    }

    /// One of the engines was busy with something else in every pair so far.
    pub(super) fn never_alone(&self) -> bool {
        self.finished >= NEVER_ALONE_AFTER && (self.candidate_alone == 0 || self.stable_alone == 0)
    }

    pub(super) fn finished(&self) -> u32 {
        self.finished
    }

    /// Pairs that counted, by metric.
    pub(super) fn counted(&self) -> [u64; 2] {
        [self.shown[0].count(), self.shown[1].count()]
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        for (claim, shown) in self.claims.iter().zip(&self.shown) {
            claim.encode_into(w);
            encode_sequence(shown, w);
        }
        w.u32(self.finished);
        w.u32(self.candidate_alone);
        w.u32(self.stable_alone);
        w.u32(self.block.ticks);
        for (sum, n) in self.block.worse.iter().chain(&self.block.not_worse) {
            w.u32(*n);
            if *n > 0 {
                w.f64(*sum);
            }
        }
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        let mut paired = Self::default();
        for m in 0..2 {
            paired.claims[m] = Claim::decode_from(r)?;
            paired.shown[m] = decode_sequence(r)?;
        }
        paired.finished = r.u32()?;
        paired.candidate_alone = r.u32()?;
        paired.stable_alone = r.u32()?;
        paired.block.ticks = r.u32()?;
        for (sum, n) in paired.block.worse.iter_mut().chain(&mut paired.block.not_worse) {
            *n = r.u32()?;
            *sum = if *n > 0 { r.f64()? } else { 0.0 };
        }
        Ok(paired)
    }
}

/// The ratio that a displayed value stands for.
pub(super) fn shown_ratio(value: f64) -> f64 {
    ((value - 0.5) * 2.0 * LN_SHOWN).exp()
}

/// Mean and variance of a single pair's contribution in units of a block's vote, from the displayed sequence.
pub(super) fn pair_moments(shown: &MeanSequence, ln_ratio: f64) -> Option<(f64, f64)> {
    let unit = 2.0 * LN_SHOWN / LN_UNIT;
    let mean = (shown.mean()? - 0.5) * unit - ln_ratio / LN_UNIT;
    Some((mean, shown.variance()? * unit * unit))
}
