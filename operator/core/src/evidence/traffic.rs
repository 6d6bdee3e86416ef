use super::{
    Gate, GenerationSample, LiveArm, Tick,
    codec::{CodecError, Reader, Writer},
};
use std::collections::VecDeque;

/// No interval of one arm has more requests; a larger number is no count.
const MOST: u64 = 20_000_000;

/// Below this share of errors stable counts as healthy.
const STABLE_HEALTHY: f64 = 0.05;

/// Errors and requests of both arms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// `(errors, requests)`.
    pub(super) candidate: (u64, u64),
    /// The same of stable.
    pub(super) stable: (u64, u64),
}

impl Counts {
    pub(super) fn of_live(candidate: &LiveArm, stable: &LiveArm) -> Self {
        Self { candidate: (candidate.errors, candidate.requests), stable: (stable.errors, stable.requests) }
    }

    pub(super) fn of_pairs(pairs: &[(GenerationSample, GenerationSample)]) -> Self {
        let all = pairs.len() as u64;
        let failed =
            |f: fn(&(GenerationSample, GenerationSample)) -> bool| pairs.iter().filter(|p| f(p)).count() as u64;
        Self { candidate: (failed(|p| !p.0.ok), all), stable: (failed(|p| !p.1.ok), all) }
    }

    pub(super) fn add(&mut self, more: Self) {
        let sum = |a: &mut (u64, u64), b: (u64, u64)| *a = (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
        sum(&mut self.candidate, more.candidate);
        sum(&mut self.stable, more.stable);
    }

    /// The candidate fails at least at `rate` while stable does not.
    fn only_candidate_fails(self, rate: f64) -> bool {
        share(self.candidate).is_some_and(|s| s >= rate) && share(self.stable).is_none_or(|s| s < STABLE_HEALTHY)
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        for n in [self.candidate.0, self.candidate.1, self.stable.0, self.stable.1] {
            w.u64(n);
        }
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self { candidate: (r.u64()?, r.u64()?), stable: (r.u64()?, r.u64()?) })
    }
}

/// Share of errors; `None` without requests.
pub(super) fn share((errors, requests): (u64, u64)) -> Option<f64> {
    (requests > 0).then(|| errors as f64 / requests as f64)
}

/// Live counts of the candidate and of stable.
pub(super) type Arms<'a> = (&'a LiveArm, &'a LiveArm);

/// The live counts of a tick, if they are counts.
pub(super) fn live(tick: &Tick) -> Option<Arms<'_>> {
    let (candidate, stable, _) = tick.live.as_ref()?;
    (sane(candidate) && sane(stable)).then_some((candidate, stable))
}

pub(super) fn sane(arm: &LiveArm) -> bool {
    arm.requests <= MOST && arm.errors <= arm.requests && arm.ttft.total() <= MOST && arm.tpot.total() <= MOST
}

/// Slots of the tripwire's window.
const SLOTS: u32 = 15;

/// Live requests as such: the tripwire's window, whether there are any, and how many users met the candidate.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Traffic {
    /// Whole ticks since the last weight change, oldest first, `(ticks, counts)`.
    window: VecDeque<(u32, Counts)>,
    /// Ticks at a weight without a live request, by arm.
    idle: [u32; 2],
    pub(super) none: bool,
    /// Requests were seen at the current weight, by arm.
    seen: [bool; 2],
    pub(super) exposed: u64,
}

impl Traffic {
    pub(super) fn weight_changed(&mut self) {
        self.window.clear();
        self.seen = [false; 2];
    }

    /// Takes a tick's live counts.
    pub(super) fn step(&mut self, gate: &Gate, tick: &Tick, live: Option<Arms>) {
        if let Some((candidate, _)) = live {
            self.exposed = self.exposed.saturating_add(candidate.requests);
        }
        if !tick.weight.is_some_and(|w| (1..=100).contains(&w)) {
            return;
        }
        if let Some((candidate, stable)) = live {
            for (arm, requests) in [candidate.requests, stable.requests].into_iter().enumerate() {
                self.seen[arm] |= requests > 0;
                self.idle[arm] = if requests > 0 { 0 } else { self.idle[arm].saturating_add(1) };
            }
            self.slide(gate, Counts::of_live(candidate, stable));
        }
        let step = tick.step_duration.0;
        let longest = i64::from(self.idle[0].max(self.idle[1]));
        self.none = step > 0 && longest.saturating_mul(gate.interval.0.max(1)) >= step;
    }

    fn slide(&mut self, gate: &Gate, counts: Counts) {
        let ticks = (60_000 / gate.interval.0.max(1)).clamp(1, 3600) as u32;
        let per_slot = ticks.div_ceil(SLOTS);
        match self.window.back_mut().filter(|slot| slot.0 < per_slot) {
            Some(slot) => {
                slot.0 += 1;
                slot.1.add(counts);
            }
            None => self.window.push_back((1, counts)),
        }
        while self.window.len() > 1 && self.window.iter().map(|slot| slot.0).sum::<u32>() > ticks {
            self.window.pop_front();
        }
    }

    /// Why the wire trips, if it does.
    pub(super) fn tripped(&self, gate: &Gate) -> Option<String> {
        let mut sum = Counts::default();
        let mut ticks = 0;
        for (n, counts) in &self.window {
            ticks += n;
            sum.add(*counts);
        }
        let (errors, requests) = sum.candidate;
        let enough = requests >= u64::from(gate.tripwire.min_requests.max(1));
        (enough && sum.only_candidate_fails(gate.tripwire.error_rate)).then(|| {
            let seconds = f64::from(ticks) * gate.interval.as_seconds();
            let (stable_errors, stable_requests) = sum.stable;
            format!(
                "{errors} of {requests} requests to the candidate failed within {seconds:.0} s, {stable_errors} of \
                 {stable_requests} to stable"
            )
        })
    }

    /// Both arms had requests at the current weight.
    pub(super) fn fresh(&self) -> bool {
        self.seen == [true; 2]
    }

    /// The pairs' generations stand in for requests at the current weight.
    pub(super) fn seen_pairs(&mut self) {
        self.seen = [true; 2];
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        w.u32(self.window.len() as u32);
        for (ticks, counts) in &self.window {
            w.u32(*ticks);
            counts.encode_into(w);
        }
        w.u32(self.idle[0]);
        w.u32(self.idle[1]);
        w.bool(self.none);
        w.bool(self.seen[0]);
        w.bool(self.seen[1]);
        w.u64(self.exposed);
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        let slots = r.u32()?;
        if slots > SLOTS + 1 {
            return Err(CodecError::Garbled("the tripwire's window is too long"));
        }
        let mut window = VecDeque::with_capacity(slots as usize);
        for _ in 0..slots {
            let ticks = r.u32()?;
            if ticks > 3600 {
                return Err(CodecError::Garbled("a slot of the tripwire's window is too long"));
            }
            window.push_back((ticks, Counts::decode_from(r)?));
        }
        Ok(Self {
            window,
            idle: [r.u32()?, r.u32()?],
            none: r.bool()?,
            seen: [r.bool()?, r.bool()?],
            exposed: r.u64()?,
        })
    }
}

/// Comparisons at weight 0 before the first live request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Preflight {
    pub(super) prompts: u32,
    /// Generations of latency pairs.
    generations: Counts,
    pub(super) done: bool,
}

/// Share of the candidate's generations that may fail before the first live request.
const MOST_FAILED: f64 = 0.1;

/// Generations that say something when the prompts are complete but the generations are fewer.
const FEWEST_GENERATIONS: u64 = 20;

impl Preflight {
    /// Takes a tick's prompts and pairs; the reason if the candidate's generations fail: then the counts restart.
    pub(super) fn step(
        &mut self,
        gate: &Gate,
        prompts: u32,
        pairs: &[(GenerationSample, GenerationSample)],
    ) -> Option<String> {
        if self.done {
            return None;
        }
        self.prompts = self.prompts.saturating_add(prompts);
        self.generations.add(Counts::of_pairs(pairs));
        let complete = self.prompts >= gate.preflight;
        let (failed, all) = self.generations.candidate;
        let enough = all >= u64::from(gate.preflight.max(1)) || complete && all >= FEWEST_GENERATIONS;
        if enough && self.generations.only_candidate_fails(MOST_FAILED) {
            let (stable_failed, _) = self.generations.stable;
            *self = Self::default();
            return Some(format!(
                "{failed} of {all} generations of the candidate failed before its first live request, \
                 {stable_failed} of stable's"
            ));
        }
        self.done = complete;
        None
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        w.u32(self.prompts);
        self.generations.encode_into(w);
        w.bool(self.done);
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self { prompts: r.u32()?, generations: Counts::decode_from(r)?, done: r.bool()? })
    }
}
