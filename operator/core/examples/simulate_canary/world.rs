//! A small world in which the judge can be tried: two arms under traffic, probes, and the steps of a canary without a
//! cluster. Seeded: a seed gives the same run on every machine with the same `libm`.

use bitnet_core::{
    Span, Time,
    evidence::{
        Assessment, Evidence, Finding, Gate, GenerationSample, Histogram, LiveArm, OnInconclusive, OnNoTraffic,
        Percentiles, ProbeSettings, Probes, PromptSample, SignalKind, Tick, Tripwire,
    },
    stats::thinning::Draws,
};

/// The default gate.
pub(crate) fn default_gate() -> Gate {
    Gate {
        name: "default".into(),
        probes: ProbeSettings {
            config_map: "probes".into(),
            key: "prompts.jsonl".into(),
            per_tick: 8,
            max_tokens: 32,
            positions: 16,
            pairs: 8,
            pair_tokens: 8,
        },
        preflight: 64,
        interval: Span::seconds(10),
        warmup: Span::seconds(60),
        min_mean: 0.95,
        tail_min: 0.9,
        tail_share: 0.05,
        max_ratio: 1.2,
        percentiles: Percentiles { body: true, p95: true, p99: false },
        max_excess: 0.002,
        alpha_rollback: 0.01,
        alpha_promote: 0.05,
        min_samples: 200,
        deadline: Span::seconds(3600),
        on_inconclusive: OnInconclusive::Hold,
        on_no_traffic: OnNoTraffic::Probe,
        tripwire: Tripwire { error_rate: 0.5, min_requests: 20 },
    }
}

/// The demo's gate: fast ticks, wide margins.
pub(crate) fn demo_gate() -> Gate {
    let default = default_gate();
    Gate {
        name: "demo".into(),
        probes: ProbeSettings { max_tokens: 16, positions: 8, ..default.probes },
        preflight: 48,
        interval: Span::seconds(2),
        warmup: Span::seconds(10),
        max_ratio: 1.5,
        max_excess: 0.02,
        deadline: Span::seconds(600),
        ..default
    }
}

/// A canary: weights and the least seconds at each.
pub(crate) type Steps = &'static [(u32, i64)];

/// The demo's steps.
pub(crate) const DEMO_STEPS: Steps = &[(5, 20), (10, 20), (20, 20), (50, 20)];

/// The default steps.
pub(crate) const DEFAULT_STEPS: Steps = &[(5, 300), (10, 300), (20, 300), (40, 300), (50, 300)];

/// How the candidate differs from stable, and what both live in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// Requests per second of both arms together.
    pub(crate) rate: f64,
    /// The prompts' cosine: mean and standard deviation of 1 − Beta.
    pub(crate) cosine: (f64, f64),
    /// Share of prompts under the tail threshold at a random position.
    pub(crate) tail: f64,
    /// Candidate's latency as a multiple of stable's.
    pub(crate) latency: f64,
    /// Error rates of candidate and stable.
    pub(crate) errors: (f64, f64),
    /// Latency at full load as a multiple of that at none.
    pub(crate) load: f64,
    /// Share of ticks in which one arm alone is three times as slow and fails a fifth of its requests.
    pub(crate) bursts: f64,
    /// Standard deviation of a pair's generation, in logarithms.
    pub(crate) pair_noise: f64,
    /// Chance that a generation had the engine to itself.
    pub(crate) alone: f64,
    /// Requests that stable's counters already hold when the attempt begins.
    pub(crate) history: u64,
    /// Ticks that the gateway takes to accept a new weight.
    pub(crate) confirm: u32,
}

impl World {
    /// Two equal arms.
    pub(crate) fn equal(rate: f64) -> Self {
        Self {
            rate,
            cosine: (0.965, 0.025),
            tail: 0.01,
            latency: 1.0,
            errors: (0.002, 0.002),
            load: 1.4,
            bursts: 0.0,
            pair_noise: 0.2,
            alone: 0.7,
            history: 20_000,
            confirm: 0,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Promoted,
    RolledBack(SignalKind),
    /// The third tripped wire.
    Tripped,
    Inconclusive(Vec<String>),
}

/// A finished run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) end: End,
    pub(crate) ticks: u32,
    /// Live requests that the candidate served.
    pub(crate) exposed: u64,
    /// Greatest weight that it had.
    pub(crate) weight: u32,
    /// Longest encoded state in bytes.
    pub(crate) state: usize,
}

/// Random variates.
pub(crate) struct Random(Draws);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Draws::new(seed, 99))
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        self.0.uniform()
    }

    pub(crate) fn happens(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 50.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u64;
        }
        let (limit, mut product, mut n) = ((-mean).exp(), self.uniform(), 0);
        while product > limit {
            product *= self.uniform();
            n += 1;
        }
        n
    }

    /// Marsaglia and Tsang.
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * self.uniform().powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// 1 − Beta with this mean and standard deviation.
    fn cosine(&mut self, (mean, sd): (f64, f64)) -> f64 {
        let rest = 1.0 - mean;
        let total = rest * mean / (sd * sd) - 1.0;
        let (a, b) = (self.gamma(rest * total), self.gamma(mean * total));
        1.0 - a / (a + b)
    }

    /// A request's latency: a body and a slow mode.
    fn latency(&mut self, scale: f64) -> f64 {
        let (median, spread) = if self.happens(0.03) { (4.0 * scale, 0.6) } else { (scale, 0.5) };
        median * (spread * self.normal()).exp()
    }
}

fn bucket_of(seconds: f64) -> i16 {
    (2.0 * seconds.ln() / 1.2f64.ln()).ceil().clamp(-126.0, 54.0) as i16
}

fn arm(random: &mut Random, requests: u64, slow: f64, errors: f64) -> LiveArm {
    let mut arm = LiveArm { requests, ..LiveArm::default() };
    for _ in 0..requests {
        if random.happens(errors) {
            arm.errors += 1;
            continue;
        }
        for (histogram, scale) in [(&mut arm.ttft, 0.2), (&mut arm.tpot, 0.02)] {
            let Histogram(counts) = histogram;
            *counts.entry(bucket_of(random.latency(scale * slow))).or_default() += 1;
        }
    }
    arm
}

/// The canary's place between ticks: what a planner would remember.
struct Canary {
    steps: Steps,
    /// 0: weight 0; i: the i-th step.
    step: usize,
    changes: u32,
    /// Ticks at the current weight, counted from its acceptance.
    dwell: u32,
    confirming: u32,
    trips: u32,
    resting: u32,
}

impl Canary {
    fn weight(&self) -> u32 {
        if self.step == 0 { 0 } else { self.steps[self.step - 1].0 }
    }

    fn go(&mut self, step: usize, confirm: u32) {
        self.step = step;
        self.changes += 1;
        self.dwell = 0;
        self.confirming = confirm;
    }

    fn dwelt(&self, gate: &Gate) -> bool {
        self.step > 0 && i64::from(self.dwell) * gate.interval.0 >= self.steps[self.step - 1].1 * 1000
    }

    fn last(&self) -> bool {
        self.step == self.steps.len()
    }

    /// Seconds of dwell before the last step.
    fn until_last(&self, gate: &Gate) -> Span {
        let before = &self.steps[self.step.saturating_sub(1)..self.steps.len() - 1];
        let all: i64 = if self.last() { 0 } else { before.iter().map(|s| s.1 * 1000).sum() };
        Span((all - i64::from(self.dwell) * gate.interval.0).max(0))
    }

    /// One decision; `Some` ends the run.
    fn decide(&mut self, gate: &Gate, assessment: &Assessment, confirm: u32) -> Option<End> {
        match &assessment.finding {
            Finding::RollBack { signal, .. } => return Some(End::RolledBack(*signal)),
            Finding::Tripwire { .. } => {
                self.trips += 1;
                self.resting = 2;
                if self.step > 0 {
                    self.go(0, confirm);
                }
                return (self.trips >= 3).then_some(End::Tripped);
            }
            Finding::Promote if self.dwelt(gate) => return Some(End::Promoted),
            Finding::Inconclusive => return Some(End::Inconclusive(assessment.missing.clone())),
            Finding::Promote | Finding::Continue => {}
        }
        if self.resting > 0 {
            self.resting -= 1;
        } else if self.step == 0 {
            if assessment.preflight_done {
                self.go(1, confirm);
            }
        } else if self.dwelt(gate) && !self.last() && assessment.quality_proven && assessment.fresh {
            self.go(self.step + 1, confirm);
        }
        None
    }
}

/// Runs one attempt to its end.
pub(crate) fn run(gate: &Gate, steps: Steps, world: &World, seed: u64) -> Run {
    let mut random = Random::new(seed);
    let mut canary = Canary { steps, step: 0, changes: 0, dwell: 0, confirming: 0, trips: 0, resting: 0 };
    let mut evidence = Evidence::new(gate);
    let before = arm(&mut random, world.history, world.load, world.errors.1);
    let (mut state, mut heaviest) = (0, 0);
    for number in 1.. {
        let tick = observe(gate, world, &canary, &mut random, number, &before);
        heaviest = heaviest.max(canary.weight());
        let assessment = evidence.step(gate, &tick);
        let mut writer = bitnet_core::evidence::codec::Writer::new();
        evidence.encode_into(&mut writer);
        state = state.max(writer.len());
        if canary.confirming > 0 {
            canary.confirming -= 1;
        } else {
            canary.dwell += 1;
        }
        if let Some(end) = canary.decide(gate, &assessment, world.confirm) {
            return Run { end, ticks: number, exposed: assessment.exposed_requests, weight: heaviest, state };
        }
    }
    unreachable!("every attempt has a deadline")
}

fn observe(gate: &Gate, world: &World, canary: &Canary, random: &mut Random, number: u32, before: &LiveArm) -> Tick {
    let seconds = gate.interval.as_seconds();
    let weight = canary.weight();
    let share = f64::from(weight) / 100.0;
    let burst = |random: &mut Random| if random.happens(world.bursts) { (3.0, 0.2) } else { (1.0, 0.0) };
    let mut one = |share: f64, slow: f64, errors: f64| {
        let (slower, failing) = burst(random);
        let load = 1.0 + (world.load - 1.0) * share;
        let requests = random.poisson(world.rate * seconds * share);
        arm(random, requests, slow * slower * load, (errors + failing).min(1.0))
    };
    let candidate = one(share, world.latency, world.errors.0);
    let stable = one(1.0 - share, 1.0, world.errors.1);
    let prompts = (0..gate.probes.per_tick).map(|_| PromptSample {
        cosine: random.cosine(world.cosine),
        cosine_at: if random.happens(world.tail) { 0.7 } else { 0.97 },
        mse: 0.1,
        kl: 0.01,
        top1: 0.95,
    });
    let prompts = prompts.collect();
    let pairs = (0..gate.probes.pairs).map(|_| {
        let mut generation = |slow: f64, errors: f64| GenerationSample {
            ok: !random.happens(errors),
            ttft: 0.1 * slow * (world.pair_noise * random.normal()).exp(),
            tpot: 0.01 * slow * (world.pair_noise * random.normal()).exp(),
            alone: random.happens(world.alone),
        };
        (generation(world.latency, world.errors.0), generation(1.0, world.errors.1))
    });
    let pairs: Vec<_> = pairs.collect();
    let step = canary.steps[canary.step.saturating_sub(1)];
    Tick {
        number,
        at: Time(i64::from(number) * gate.interval.0),
        weight: (canary.confirming == 0).then_some(weight),
        weight_change: canary.changes,
        last_step: canary.last(),
        until_last_step: canary.until_last(gate),
        last_weight: canary.steps[canary.steps.len() - 1].0,
        step_duration: Span::seconds(step.1),
        ready_candidate: 3,
        ready_stable: 3,
        live: Some((candidate, stable, seconds)),
        warm: true,
        stable_total: (number == 1).then(|| (before.clone(), world.history as f64 / world.rate.max(1e-3))),
        probes: Some(Probes {
            probe_set: "set".into(),
            probe_set_size: 200,
            drawn: gate.probes.per_tick,
            prompts,
            pairs,
            busy_candidate: 0.1,
            busy_stable: Some(0.1),
            peer_errors: Vec::new(),
        }),
        seed: random.0.bits(),
    }
}

/// The ticks of an attempt at the last step, as they would come without any verdict.
pub(crate) fn ticks(gate: &Gate, steps: Steps, world: &World, seed: u64, count: u32) -> Vec<Tick> {
    let mut random = Random::new(seed);
    let mut canary = Canary { steps, step: 0, changes: 0, dwell: 0, confirming: 0, trips: 0, resting: 0 };
    let before = arm(&mut random, world.history, world.load, world.errors.1);
    let mut all = Vec::new();
    for number in 1..=count {
        if number == 10 {
            canary.go(steps.len(), 0);
        }
        all.push(observe(gate, world, &canary, &mut random, number, &before));
    }
    all
}
