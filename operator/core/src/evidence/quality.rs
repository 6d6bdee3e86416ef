use super::{
    Probes, PromptSample,
    claim::{Claim, decode_sequence, encode_sequence},
    codec::{CodecError, Reader, Writer},
    rules::Rules,
};
use crate::stats::{
    bets::{Increments, NOTHING, accumulate},
    intervals::MeanSequence,
};

/// Level of the displayed intervals: 1 − .95.
pub(super) const DISPLAY_ALPHA: f64 = 0.05;

/// Output similarity: one prompt is one independent unit. The mean test sees its cosine averaged over positions, the
/// tail test its cosine at one random position, because averages hide tails.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Quality {
    pub(super) mean: Claim,
    pub(super) tail: Claim,
    pub(super) prompts: u32,
    /// Prompts under the tail threshold.
    pub(super) low: u32,
    pub(super) shown: MeanSequence,
}

impl Quality {
    /// Takes a tick; returns how many prompts counted.
    pub(super) fn step(&mut self, rules: &Rules, tick: u32, probes: Option<&Probes>, per_tick: u32) -> u32 {
        let prompts = probes.map_or(&[][..], |p| valid(p, per_tick));
        let (mut below, mut above): (Increments, Increments) = (NOTHING, NOTHING);
        let mut low = 0;
        for prompt in prompts {
            accumulate(&mut below, &rules.mean.below(prompt.cosine));
            accumulate(&mut above, &rules.mean.above(prompt.cosine));
            self.shown.add(prompt.cosine, DISPLAY_ALPHA);
            // A cosine that is no number lies in the tail.
            low += u32::from(prompt.cosine_at.is_nan() || prompt.cosine_at < rules.tail_min);
        }
        let count = prompts.len() as u32;
        let (ones, zeros) = (u64::from(low), u64::from(count - low));
        self.mean.worse(rules.prior, tick, &below);
        self.mean.not_worse(&above, rules.promote_bound);
        self.tail.worse(rules.prior, tick, &rules.tail_above.increments(ones, zeros));
        self.tail.not_worse(&rules.tail_below.increments(ones, zeros), rules.promote_bound);
        self.prompts = self.prompts.saturating_add(count);
        self.low = self.low.saturating_add(low);
        count
    }

    pub(super) fn proven(&self) -> bool {
        self.mean.proven() && self.tail.proven()
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        self.mean.encode_into(w);
        self.tail.encode_into(w);
        w.u32(self.prompts);
        w.u32(self.low);
        encode_sequence(&self.shown, w);
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self {
            mean: Claim::decode_from(r)?,
            tail: Claim::decode_from(r)?,
            prompts: r.u32()?,
            low: r.u32()?,
            shown: decode_sequence(r)?,
        })
    }
}

/// The prompts that count: none where fewer than half of those drawn were compared, at most `per_tick` (the first,
/// whatever their values).
pub(super) fn valid(probes: &Probes, per_tick: u32) -> &[PromptSample] {
    let all = &probes.prompts;
    if (all.len() as u64) * 2 < u64::from(probes.drawn) {
        return &[];
    }
    &all[..all.len().min(per_tick.max(1) as usize)]
}
