//! The guard: does the promoted model still answer like fp16? It watches for months, so it promises an average time to a
//! false alarm instead of an error rate.
//!
//! One observation per tick (60 s by default) and signal: cosine mean, cosine tail, paired latency against fp16. A tick
//! without data is none: silence neither alarms nor hides anything, it only leaves the guard blind (`ticks` stands
//! still).

use super::{
    Gate, GenerationSample, Probes, PromptSample, Signal, SignalKind, SignalState,
    claim::{read_steps, write_steps},
    codec::{CodecError, Fnv, Reader, Writer},
    paired::LN_UNIT,
    quality::valid,
    rules::{strictest, within},
};
use crate::stats::{
    bets::{BoundedMean, Increments, NOTHING, Share, accumulate},
    detector::Detector,
    logspace::log_sum_exp,
    votes::worse,
};

/// Average number of ticks to a false alarm of a model that lies exactly on its margins: 69 days at 60 s. A healthy model
/// lies inside them and lasts far longer.
pub const RUN_LENGTH: f64 = 1e5;

/// Weights of {cosine mean, cosine tail, paired ttft, paired tpot}: a third for each signal.
const WEIGHTS: [f64; 4] = [1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0, 1.0 / 6.0];

/// Share of a shown estimate that each further tick leaves: it tells of about the last ten ticks.
const FADING: f64 = 0.9;

/// What the guard watches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardSettings {
    /// Mean centred cosine must be at least this.
    pub min_mean: f64,
    /// At most `tail_share` of the prompts may lie under `tail_min`.
    pub tail_min: f64,
    /// `0.05` for a 5th percentile.
    pub tail_share: f64,
    /// Latency may be at most this multiple of fp16's, > 1.
    pub max_ratio: f64,
    /// Average ticks to a false alarm, at least 10.
    pub run_length: f64,
    /// Most prompts per tick.
    pub per_tick: u32,
    /// Most latency pairs per tick.
    pub pairs: u32,
}

impl GuardSettings {
    /// A gate's margins, with the latency margin taken against fp16, and [`RUN_LENGTH`].
    pub fn of(gate: &Gate) -> Self {
        Self {
            min_mean: gate.min_mean,
            tail_min: gate.tail_min,
            tail_share: gate.tail_share,
            max_ratio: gate.max_ratio,
            run_length: RUN_LENGTH,
            per_tick: gate.probes.per_tick,
            pairs: gate.probes.pairs,
        }
    }

    fn parameters(&self) -> u64 {
        let values = [self.min_mean, self.tail_min, self.tail_share, self.max_ratio, self.run_length];
        let hash = values.iter().fold(Fnv::default().bytes(b"guard-1"), |h, v| h.bytes(&v.to_bits().to_le_bytes()));
        hash.bytes(&self.per_tick.to_le_bytes()).bytes(&self.pairs.to_le_bytes()).finish()
    }

    /// ln M at which the guard alarms.
    fn bound(&self) -> f64 {
        within(self.run_length, 10.0, 1e15).ln()
    }
}

/// State of the guard of one promoted revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    parameters: u64,
    /// Number of the last tick taken.
    last_number: u64,
    ticks: u64,
    prompts: u64,
    pairs: u64,
    detectors: [Detector; 4],
    /// Fading sums and weights of {cosine, share under the tail threshold, ln ttft ratio, ln tpot ratio}.
    shown: [(f64, f64); 4],
    /// The signal that alarmed, and ln M then: an alarm is for ever.
    alarm: Option<(SignalKind, f64)>,
}

/// What the guard says after a tick.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardAssessment {
    /// The signal that speaks loudest, and ln of the combined M, in every tick from the alarm on.
    pub alarm: Option<(SignalKind, f64)>,
    /// ln of the combined M; the alarm is at `bound`.
    pub ln_m: f64,
    /// ln of the average run length.
    pub bound: f64,
    /// Ticks with data so far.
    pub ticks: u64,
    /// Cosine, tail, latency: `ln_rollback` is ln M of the signal, the estimate is of about the last ten ticks.
    pub signals: Vec<Signal>,
}

impl Guard {
    /// Most bytes that [`Guard::encode_into`] writes.
    pub const MAX_BYTES: usize = 600;

    /// A guard before its first tick.
    pub fn new(settings: &GuardSettings) -> Self {
        Self {
            parameters: settings.parameters(),
            last_number: 0,
            ticks: 0,
            prompts: 0,
            pairs: 0,
            detectors: [Detector::default(); 4],
            shown: [(0.0, 0.0); 4],
            alarm: None,
        }
    }

    /// The state was gathered under these settings. [`Guard::step`] with others begins anew by itself.
    pub fn is_of(&self, settings: &GuardSettings) -> bool {
        self.parameters == settings.parameters()
    }

    /// Takes tick `number` (rising; one that is not above the last changes nothing) with the probe job that finished in
    /// it, if one did. Total: a cosine that is no number counts as 0, a time that is none is left out.
    pub fn step(&mut self, settings: &GuardSettings, number: u64, probes: Option<&Probes>) -> GuardAssessment {
        if !self.is_of(settings) {
            *self = Self { last_number: self.last_number, ..Self::new(settings) };
        }
        if number > self.last_number {
            self.last_number = number;
            let prompts = probes.map_or(&[][..], |p| valid(p, settings.per_tick));
            let pairs = probes.map_or(&[][..], |p| &p.pairs[..p.pairs.len().min(settings.pairs as usize)]);
            let seen = self.take_prompts(settings, prompts) | self.take_pairs(settings, pairs);
            self.ticks += u64::from(seen);
            let ln_m = self.ln_m();
            if self.alarm.is_none() && ln_m >= settings.bound() {
                self.alarm = Some((self.loudest(), ln_m));
            }
        }
        self.assess(settings)
    }

    /// What the state says, without a new tick.
    pub fn summary(&self, settings: &GuardSettings) -> GuardAssessment {
        if self.is_of(settings) { self.assess(settings) } else { Self::new(settings).assess(settings) }
    }

    fn take_prompts(&mut self, settings: &GuardSettings, prompts: &[PromptSample]) -> bool {
        if prompts.is_empty() {
            return false;
        }
        let mean = BoundedMean::new(within(strictest(settings.min_mean), 1e-6, 1.0 - 1e-6), 0.0, 1.0);
        let tail = Share::above(within(settings.tail_share, 1e-6, 1.0 - 1e-6));
        let tail_min = strictest(settings.tail_min);
        let mut below: Increments = NOTHING;
        let (mut low, mut sum) = (0u64, 0.0);
        for prompt in prompts {
            accumulate(&mut below, &mean.below(prompt.cosine));
            low += u64::from(prompt.cosine_at.is_nan() || prompt.cosine_at < tail_min);
            sum += prompt.cosine.clamp(0.0, 1.0).max(0.0);
        }
        let n = prompts.len() as u64;
        self.observe(0, &below);
        self.observe(1, &tail.increments(low, n - low));
        self.show(0, sum / n as f64);
        self.show(1, low as f64 / n as f64);
        self.prompts = self.prompts.saturating_add(n);
        true
    }

    fn take_pairs(&mut self, settings: &GuardSettings, pairs: &[(GenerationSample, GenerationSample)]) -> bool {
        let ln_margin = within(settings.max_ratio, 1.000_001, 1e3).ln();
        let ratios = |time: fn(&GenerationSample) -> f64| -> Vec<f64> {
            // The fp16 baseline has no traffic after a promotion: only pairs that were alone compare like with like.
            let alone = pairs.iter().filter(|(c, b)| c.ok && b.ok && c.alone && b.alone);
            let times = alone.map(|(c, b)| (time(c), time(b))).filter(|(c, b)| *c > 0.0 && *b > 0.0);
            times.map(|(c, b)| (c / b).ln()).filter(|ln| ln.is_finite()).collect()
        };
        let metrics = [ratios(|g| g.ttft), ratios(|g| g.tpot)];
        for (m, ratios) in metrics.iter().enumerate() {
            if !ratios.is_empty() {
                let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
                self.observe(2 + m, &worse(((mean - ln_margin) / LN_UNIT).clamp(-1.0, 1.0)));
                self.show(2 + m, mean);
            }
        }
        let counted = metrics[0].len().max(metrics[1].len()) as u64;
        self.pairs = self.pairs.saturating_add(counted);
        counted > 0
    }

    fn observe(&mut self, part: usize, increments: &Increments) {
        self.detectors[part].observe(increments);
        self.detectors[part].settle();
    }

    fn show(&mut self, part: usize, value: f64) {
        let (sum, weight) = &mut self.shown[part];
        *sum = *sum * FADING + value;
        *weight = *weight * FADING + 1.0;
    }

    fn weighted(&self) -> [f64; 4] {
        std::array::from_fn(|i| WEIGHTS[i].ln() + self.detectors[i].ln_m())
    }

    /// The weighted average of the M: its mean after t ticks is at most t as well.
    fn ln_m(&self) -> f64 {
        log_sum_exp(&self.weighted())
    }

    fn loudest(&self) -> SignalKind {
        let w = self.weighted();
        let by_signal =
            [(SignalKind::Cosine, w[0]), (SignalKind::CosineTail, w[1]), (SignalKind::Latency, w[2].max(w[3]))];
        by_signal.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(SignalKind::Cosine, |(kind, _)| kind)
    }

    fn assess(&self, settings: &GuardSettings) -> GuardAssessment {
        let estimate = |part: usize| (self.shown[part].1 > 0.0).then(|| self.shown[part].0 / self.shown[part].1);
        // Of the two metrics, the one in which the model looks slower.
        let slower = if estimate(3) > estimate(2) { 3 } else { 2 };
        let signal = |kind, samples: u64, estimate: Option<f64>, ln_m: f64, detail: String| Signal {
            kind,
            state: match self.alarm {
                Some((alarmed, _)) if alarmed == kind => SignalState::Failed,
                _ if samples == 0 => SignalState::NoData,
                _ => SignalState::Continue,
            },
            samples,
            required: None,
            estimate,
            interval: None,
            ln_rollback: if samples == 0 { 0.0 } else { ln_m },
            ln_promote: 0.0,
            detail,
        };
        let ln = |part: usize| self.detectors[part].ln_m();
        let latency = log_sum_exp(&[ln(2), ln(3)]) - 2f64.ln();
        GuardAssessment {
            alarm: self.alarm,
            ln_m: self.ln_m(),
            bound: settings.bound(),
            ticks: self.ticks,
            signals: vec![
                signal(SignalKind::Cosine, self.prompts, estimate(0), ln(0), "mean against fp16".into()),
                signal(
                    SignalKind::CosineTail,
                    self.prompts,
                    estimate(1),
                    ln(1),
                    format!("share under {}", settings.tail_min),
                ),
                signal(
                    SignalKind::Latency,
                    self.pairs,
                    estimate(slower).map(f64::exp),
                    latency,
                    if slower == 3 { "paired tpot" } else { "paired ttft" }.into(),
                ),
            ],
        }
    }

    /// Writes the state (at most [`Guard::MAX_BYTES`]).
    pub fn encode_into(&self, w: &mut Writer) {
        w.fixed_u64(self.parameters);
        for n in [self.last_number, self.ticks, self.prompts, self.pairs] {
            w.u64(n);
        }
        for detector in &self.detectors {
            w.option(detector.to_steps(), write_steps);
        }
        for (sum, weight) in self.shown {
            w.f64(sum);
            w.f64(weight);
        }
        w.option(self.alarm, |w, (kind, ln_m)| {
            w.u8(kind as u8);
            w.f64(ln_m);
        });
    }

    /// Reads what [`Guard::encode_into`] wrote.
    pub fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        let parameters = r.fixed_u64()?;
        let [last_number, ticks, prompts, pairs] = [r.u64()?, r.u64()?, r.u64()?, r.u64()?];
        let mut detectors = [Detector::default(); 4];
        for detector in &mut detectors {
            *detector = Detector::from_steps(r.option(read_steps)?);
        }
        let mut shown = [(0.0, 0.0); 4];
        for (sum, weight) in &mut shown {
            *sum = r.f64()?;
            *weight = r.f64()?;
        }
        let alarm = r.option(|r| {
            let kind = SignalKind::ALL.get(usize::from(r.u8()?));
            Ok((*kind.ok_or(CodecError::Garbled("an unknown signal"))?, r.f64()?))
        })?;
        Ok(Self { parameters, last_number, ticks, prompts, pairs, detectors, shown, alarm })
    }
}
