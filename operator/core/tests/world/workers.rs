//! What the workers of a revision answer.

use bitnet_core::{
    Span,
    evidence::{GenerationSample, Histogram, LiveArm, ProbeSettings, Probes, PromptSample},
};

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Close to a standard normal variable.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// `x` rounded up or down at random, so that its mean is kept.
    pub(crate) fn round(&mut self, x: f64) -> u64 {
        (x + self.unit()).max(0.0) as u64
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    pub(crate) ready_after: Span,
    pub(crate) cosine: f64,
    /// Share of prompts whose cosine at one position is under .9.
    pub(crate) tail: f64,
    pub(crate) ttft: f64,
    pub(crate) tpot: f64,
    pub(crate) errors: f64,
    pub(crate) vocabulary: u32,
    /// Hash of the probe set; empty: none is mounted.
    pub(crate) probe_set: String,
    /// Share of the prompts that could not be compared.
    pub(crate) void: f64,
    /// Answers of `compare` are not numbers.
    pub(crate) garbage: bool,
    /// Share of the users of an A/B test whose feedback is 1.
    pub(crate) conversion: f64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            ready_after: Span::seconds(3),
            cosine: 0.98,
            tail: 0.005,
            ttft: 0.02,
            tpot: 0.004,
            errors: 0.0,
            vocabulary: 32_000,
            probe_set: "5e7".into(),
            void: 0.0,
            garbage: false,
            conversion: 0.2,
        }
    }
}

fn bucket(seconds: f64) -> i16 {
    (2.0 * seconds.ln() / 1.2f64.ln()).floor().clamp(-126.0, 54.0) as i16
}

impl Behaviour {
    pub(crate) fn live(&self, rng: &mut Rng, requests: u64) -> LiveArm {
        let mut arm = LiveArm { requests, ..LiveArm::default() };
        for _ in 0..requests {
            if rng.unit() < self.errors {
                arm.errors += 1;
                continue;
            }
            for (histogram, mean) in [(&mut arm.ttft, self.ttft), (&mut arm.tpot, self.tpot)] {
                let Histogram(counts) = histogram;
                *counts.entry(bucket(mean * (0.25 * rng.normal()).exp())).or_insert(0) += 1;
            }
        }
        arm
    }

    pub(crate) fn compare(&self, stable: &Self, rng: &mut Rng, settings: &ProbeSettings) -> Probes {
        let mut probes = Probes {
            probe_set: self.probe_set.clone(),
            probe_set_size: if self.probe_set.is_empty() { 0 } else { 400 },
            busy_candidate: 0.1,
            busy_stable: Some(0.1),
            ..Probes::default()
        };
        if self.probe_set.is_empty() {
            return probes;
        }
        probes.drawn = settings.per_tick;
        for _ in 0..settings.per_tick {
            if rng.unit() < self.void {
                continue;
            }
            let cosine = (self.cosine + 0.01 * rng.normal()).min(1.0);
            let low = rng.unit() < self.tail;
            let at = if low { 0.8 } else { (self.cosine + 0.015 * rng.normal()).clamp(0.901, 1.0) };
            let garbage = |x: f64| if self.garbage { f64::NAN } else { x };
            let cosine_at = if self.cosine < 0.9 { cosine } else { at };
            probes.prompts.push(PromptSample {
                cosine: garbage(cosine),
                cosine_at: garbage(cosine_at),
                mse: 0.1,
                kl: 0.01,
                top1: 0.9,
            });
        }
        for _ in 0..settings.pairs {
            let mut generation = |b: &Self| GenerationSample {
                ok: rng.unit() >= b.errors,
                ttft: b.ttft * (0.05 * rng.normal()).exp(),
                tpot: b.tpot * (0.05 * rng.normal()).exp(),
                alone: true,
            };
            let pair = (generation(self), generation(stable));
            probes.pairs.push(pair);
        }
        probes
    }
}
