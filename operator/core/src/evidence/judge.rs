use super::{
    Assessment, Gate, OnNoTraffic, SignalKind, Tick,
    codec::{CodecError, Reader, Writer},
    combine,
    errors::Errors,
    history::History,
    live::{Live, LiveTick},
    load::Load,
    paired::Paired,
    quality::Quality,
    rules::Rules,
    traffic::{Arms, Counts, Preflight, Traffic, live},
};
use crate::stats::logspace::log_add_exp;

/// The sequential evidence of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// Hash of the gate's parameters.
    parameters: u64,
    /// Ticks taken under these parameters.
    pub(super) ticks: u32,
    /// Number of the last tick taken.
    last_number: u32,
    weight_change: u32,
    /// The last tick was at the last step.
    pub(super) last_step: bool,
    /// The signal that rejected the rollback null, and ln E then: a crossing is for ever.
    pub(super) rejected: Option<(SignalKind, f64)>,
    pub(super) preflight: Preflight,
    pub(super) traffic: Traffic,
    pub(super) history: History,
    pub(super) quality: Quality,
    pub(super) paired: Paired,
    pub(super) live: Live,
    pub(super) errors: Errors,
}

impl Evidence {
    /// Most bytes that [`Evidence::encode_into`] writes.
    pub const MAX_BYTES: usize = 2400;

    /// Evidence before the first tick.
    pub fn new(gate: &Gate) -> Self {
        Self {
            parameters: gate.parameters(),
            ticks: 0,
            last_number: 0,
            weight_change: 0,
            last_step: false,
            rejected: None,
            preflight: Preflight::default(),
            traffic: Traffic::default(),
            history: History::default(),
            quality: Quality::default(),
            paired: Paired::default(),
            live: Live::default(),
            errors: Errors::default(),
        }
    }

    /// The evidence was gathered under this gate's parameters. [`Evidence::step`] with other parameters starts a new
    /// test by itself, as [`Evidence::renew`] does.
    pub fn is_of(&self, gate: &Gate) -> bool {
        self.parameters == gate.parameters()
    }

    /// Begins a new test in the same attempt: all evidence starts again, what was learnt about stable and the preflight
    /// stay. The caller halves the gate's budgets each time, so that all tests of an attempt together keep twice the
    /// first one's.
    pub fn renew(&mut self, gate: &Gate) {
        let old = std::mem::replace(self, Self::new(gate));
        self.last_number = old.last_number;
        self.weight_change = old.weight_change;
        self.rejected = old.rejected;
        self.preflight = old.preflight;
        self.traffic = old.traffic;
        self.history = old.history;
        self.live.refresh(old.live.windows, old.live.current);
    }

    /// Takes one tick that could gather evidence, and says what follows.
    ///
    /// Total: values that are no numbers count against the candidate in quality and are left out elsewhere, counts that
    /// cannot be counts are a missing scrape, and a tick whose `number` is not above the last one changes nothing.
    /// `Finding::Tripwire` is reported in the tick that trips, `Finding::Promote` only at the last step; whether that
    /// step's dwell time is over is for the caller to say. Lost candidate pods are the caller's to see, too: they are
    /// acted on between ticks.
    pub fn step(&mut self, gate: &Gate, tick: &Tick) -> Assessment {
        if !self.is_of(gate) {
            self.renew(gate);
        }
        let rules = Rules::of(gate);
        if tick.number <= self.last_number {
            return self.assess(gate, &rules, &self.ln_rollback(&rules), None);
        }
        self.last_number = tick.number;
        self.ticks = self.ticks.saturating_add(1);
        self.last_step = tick.last_step;
        if tick.weight_change != self.weight_change {
            self.weight_change = tick.weight_change;
            self.traffic.weight_changed();
            self.history.weight_changed();
            self.live.weight_changed();
            self.errors.drop_blocks();
        }
        let arms = live(tick);
        self.traffic.step(gate, tick, arms);

        let probes = tick.probes.as_ref();
        let prompts = self.quality.step(&rules, self.ticks, probes, gate.probes.per_tick);
        let pairs = probes.map_or(&[][..], |p| &p.pairs[..p.pairs.len().min(gate.probes.pairs as usize)]);
        self.paired.step(&rules, self.ticks, pairs, Load::of(tick));
        let generations = self.stand_in(gate, tick, Counts::of_pairs(pairs));
        self.step_live(&rules, gate, tick, arms, generations);
        if let Some(edges) = self.history.step(gate, tick, self.ticks, arms, generations) {
            self.live.refresh(edges.windows, edges.current);
        }

        let mut trip = self.preflight.step(gate, prompts, pairs);
        trip = trip.or_else(|| self.traffic.tripped(gate).filter(|_| tick.weight != Some(0)));
        let ln_e = self.ln_rollback(&rules);
        let combined = combine::ln_rollback(&ln_e);
        if self.rejected.is_none() && combined >= rules.rollback_bound {
            self.rejected = Some((SignalKind::ALL[combine::reason(&ln_e)], combined));
        }
        self.assess(gate, &rules, &ln_e, trip)
    }

    /// What the evidence says as it stands, without a new tick. A tripped wire is a finding of its tick alone and not
    /// repeated here.
    pub fn summary(&self, gate: &Gate) -> Assessment {
        if !self.is_of(gate) {
            let mut changed = self.clone();
            changed.renew(gate);
            return changed.summary(gate);
        }
        let rules = Rules::of(gate);
        self.assess(gate, &rules, &self.ln_rollback(&rules), None)
    }

    /// The same assessment, of a candidate that takes all traffic at once from weight 0: nothing is asked of live
    /// requests, which it has had none of.
    pub fn for_switch(&self, gate: &Gate, assessment: Assessment) -> Assessment {
        self.without_live(gate, &Rules::of(gate), assessment)
    }

    /// The pairs' generations, where they stand in for requests: an arm is without traffic and the gate says so.
    fn stand_in(&mut self, gate: &Gate, tick: &Tick, generations: Counts) -> Option<Counts> {
        let at_weight = tick.weight.is_some_and(|w| (1..100).contains(&w));
        if !(at_weight && self.traffic.none && gate.on_no_traffic == OnNoTraffic::Probe) {
            return None;
        }
        if generations.candidate.1 > 0 {
            self.traffic.seen_pairs();
        }
        Some(generations)
    }

    /// Errors and latency of live requests, tested with what history knew before this tick.
    fn step_live(&mut self, rules: &Rules, gate: &Gate, tick: &Tick, arms: Option<Arms>, generations: Option<Counts>) {
        let weighted = !tick.chosen && tick.weight.is_some_and(|w| (1..100).contains(&w));
        let arms = arms.filter(|_| weighted);
        let counts = match generations {
            Some(counts) => Some((counts, true)),
            None => arms.map(|(candidate, stable)| (Counts::of_live(candidate, stable), false)),
        };
        self.errors.step(rules, self.ticks, counts, self.history.rate, tick.seed);
        let now = arms.filter(|_| tick.warm && self.history.rate.is_some()).map(|(candidate, stable)| LiveTick {
            candidate,
            stable,
            load: Load::of(tick),
            last_step: tick.last_step,
            seed: tick.seed,
        });
        self.live.step(rules, self.ticks, gate.percentiles, now.as_ref());
    }

    /// ln E of the rollback tests in the order of [`SignalKind::ALL`].
    pub(super) fn ln_rollback(&self, rules: &Rules) -> [f64; 4] {
        let of = |claim: &super::claim::Claim| claim.ln_rollback(rules.prior, self.ticks);
        let average = |ln: &mut dyn Iterator<Item = f64>, n: f64| ln.fold(f64::NEG_INFINITY, log_add_exp) - n.ln();
        // Half on the pairs, which see no load, half on the six views of live requests.
        let live = average(&mut self.live.claims.as_flattened().iter().map(of), 6.0);
        let paired = average(&mut self.paired.claims.iter().map(of), 2.0);
        let latency = log_add_exp(live, paired) - 2f64.ln();
        [of(&self.quality.mean), of(&self.quality.tail), latency, of(&self.errors.claim)]
    }

    /// Writes the state (at most [`Evidence::MAX_BYTES`]).
    pub fn encode_into(&self, w: &mut Writer) {
        w.fixed_u64(self.parameters);
        w.u32(self.ticks);
        w.u32(self.last_number);
        w.u32(self.weight_change);
        w.bool(self.last_step);
        w.option(self.rejected, |w, (signal, ln_e)| {
            w.u8(signal as u8);
            w.f64(ln_e);
        });
        self.preflight.encode_into(w);
        self.traffic.encode_into(w);
        self.history.encode_into(w);
        self.quality.encode_into(w);
        self.paired.encode_into(w);
        self.live.encode_into(w);
        self.errors.encode_into(w);
    }

    /// Reads what [`Evidence::encode_into`] wrote.
    pub fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self {
            parameters: r.fixed_u64()?,
            ticks: r.u32()?,
            last_number: r.u32()?,
            weight_change: r.u32()?,
            last_step: r.bool()?,
            rejected: r.option(|r| {
                let signal = SignalKind::ALL.get(usize::from(r.u8()?));
                Ok((*signal.ok_or(CodecError::Garbled("an unknown signal"))?, r.f64()?))
            })?,
            preflight: Preflight::decode_from(r)?,
            traffic: Traffic::decode_from(r)?,
            history: History::decode_from(r)?,
            quality: Quality::decode_from(r)?,
            paired: Paired::decode_from(r)?,
            live: Live::decode_from(r)?,
            errors: Errors::decode_from(r)?,
        })
    }
}
