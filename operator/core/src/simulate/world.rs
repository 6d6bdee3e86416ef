use super::{Course, Latencies, Place, Random};
use crate::{
    Time,
    evidence::{Gate, GenerationSample, LiveArm, ProbeSettings, Probes, PromptSample, Tick},
};

/// How the candidate differs from stable, and what both live in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct World {
    /// Requests per second of both arms together.
    pub rate: f64,
    /// The prompts' cosine against fp16: mean and standard deviation of 1 − Beta.
    pub cosine: (f64, f64),
    /// Share of prompts under the tail threshold at a random position.
    pub tail: f64,
    /// Candidate's latency as a multiple of stable's.
    pub latency: f64,
    /// Error rates of candidate and stable.
    pub errors: (f64, f64),
    /// Ticks before which the candidate is as good as stable, with `before` for its cosine: a defect that begins later.
    pub onset: u32,
    /// The prompts' cosine (mean and standard deviation) and tail before `onset`.
    pub before: ((f64, f64), f64),
    /// Latency as a multiple of that at no load, for an arm that serves all requests with as many pods as the larger arm.
    pub load: f64,
    /// Share of ticks in which one arm alone is three times as slow and fails a fifth of its requests.
    pub bursts: f64,
    /// Ticks that such a burst lasts, at least 1.
    pub burst: u32,
    /// Standard deviation of a pair's generation, in logarithms.
    pub pair_noise: f64,
    /// Chance that a generation had the engine to itself.
    pub alone: f64,
    /// Pods of candidate and stable.
    pub pods: (u32, u32),
    /// Standard deviation of a pod's own speed, in logarithms: it stays the same over a run.
    pub pod_spread: f64,
    /// Clients wait for their answers: an arm that is slower gets fewer requests.
    pub closed_loop: bool,
    /// Ticks between two edits of the gate (each starts a new test with half of the budget); 0: none.
    pub edits: u32,
    /// Requests that stable's counters already hold when the attempt begins.
    pub history: u64,
    /// Ticks that the gateway takes to accept a new weight.
    pub confirm: u32,
}

impl World {
    /// Two equal arms of three pods each under `rate` requests per second.
    pub fn equal(rate: f64) -> Self {
        Self {
            rate,
            cosine: (0.965, 0.025),
            tail: 0.01,
            latency: 1.0,
            errors: (0.002, 0.002),
            onset: 0,
            before: ((0.965, 0.025), 0.01),
            load: 1.4,
            bursts: 0.0,
            burst: 1,
            pair_noise: 0.2,
            alone: 0.7,
            pods: (3, 3),
            pod_spread: 0.0,
            closed_loop: false,
            edits: 0,
            history: 20_000,
            confirm: 0,
        }
    }

    /// What is true in a tick.
    pub(super) fn at(&self, tick: u32) -> Self {
        if tick <= self.onset { self.before_onset() } else { *self }
    }

    /// What is true before the defect begins.
    fn before_onset(&self) -> Self {
        let (cosine, tail) = self.before;
        Self { cosine, tail, latency: 1.0, errors: (self.errors.1, self.errors.1), ..*self }
    }
}

/// Median seconds of the two latencies, unloaded: time to first token, time per output token.
const MEDIANS: [f64; 2] = [0.2, 0.02];

/// What a burst does to the arm that it hits.
const BURST: (f64, f64) = (3.0, 0.2);

/// A world that runs: its random stream and what was drawn once for the whole run.
pub(super) struct Running {
    pub(super) random: Random,
    latencies: Latencies,
    /// Speeds of the pods of candidate and stable.
    pods: [Vec<f64>; 2],
    /// Ticks that a burst of each arm still lasts.
    bursts: [u32; 2],
    before: LiveArm,
}

impl Running {
    pub(super) fn new(world: &World, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let pods = [world.pods.0, world.pods.1]
            .map(|count| (0..count.max(1)).map(|_| (world.pod_spread * random.normal()).exp()).collect::<Vec<_>>());
        let (latencies, before) = (Latencies::default(), LiveArm::default());
        let mut running = Self { random, latencies, pods, bursts: [0; 2], before };
        running.before = running.arm(1, world.history, world.load, world.errors.1);
        running
    }

    /// Live counts of one arm (0: candidate, 1: stable).
    fn arm(&mut self, arm: usize, requests: u64, slow: f64, errors: f64) -> LiveArm {
        let failed = self.random.binomial(requests, errors.clamp(0.0, 1.0));
        let mut live = LiveArm { requests, errors: failed, ..LiveArm::default() };
        let served = requests - failed;
        // Equal pods are as one.
        let speeds = &self.pods[arm];
        let different = if speeds.iter().all(|s| *s == speeds[0]) { 1 } else { speeds.len() };
        let mut parts = Vec::with_capacity(different);
        let mut rest = served;
        for (pod, speed) in speeds.iter().take(different).enumerate() {
            let left = different - pod;
            let here = if left == 1 { rest } else { self.random.binomial(rest, 1.0 / left as f64) };
            rest -= here;
            parts.push((here, slow * speed));
        }
        for (metric, median) in [&mut live.ttft, &mut live.tpot].into_iter().zip(MEDIANS) {
            for (here, slow) in &parts {
                self.latencies.add(&mut self.random, *here, median * slow);
            }
            *metric = self.latencies.take();
        }
        live
    }

    /// A burst hits this arm in the next tick.
    fn bursts(&mut self, world: &World, arm: usize) -> bool {
        let length = world.burst.max(1);
        // As many begin as make the given share of all ticks.
        let begins = self.random.happens(world.bursts / f64::from(length));
        self.bursts[arm] = if begins { length } else { self.bursts[arm].saturating_sub(1) };
        self.bursts[arm] > 0
    }

    fn cosine(&mut self, (mean, sd): (f64, f64)) -> f64 {
        let rest = 1.0 - mean;
        if sd <= 0.0 || rest <= 0.0 {
            return mean;
        }
        // No distribution on [0, 1] is wider than that on its ends.
        let total = (rest * mean / (sd * sd) - 1.0).max(0.05);
        1.0 - self.random.beta(rest * total, mean * total)
    }

    pub(super) fn probes(&mut self, gate: &ProbeSettings, tail_min: f64, world: &World, number: u32) -> Probes {
        let prompts = (0..gate.per_tick).map(|_| PromptSample {
            cosine: self.cosine(world.cosine),
            cosine_at: if self.random.happens(world.tail) { tail_min - 0.2 } else { 1.0 },
            mse: 0.1,
            kl: 0.01,
            top1: 0.95,
        });
        let prompts = prompts.collect();
        // One candidate pod in turn compares itself with whichever stable pod its peers' Service picks.
        let own = number as usize % self.pods[0].len();
        let pairs = (0..gate.pairs).map(|_| {
            let peer = (self.random.bits() % self.pods[1].len() as u64) as usize;
            let speeds = [self.pods[0][own] * world.latency, self.pods[1][peer]];
            let [c, s] = [(speeds[0], world.errors.0), (speeds[1], world.errors.1)].map(|(slow, errors)| {
                let mut time = |seconds: f64| seconds * slow * (world.pair_noise * self.random.normal()).exp();
                let (ttft, tpot) = (time(0.1), time(0.01));
                GenerationSample {
                    ok: !self.random.happens(errors),
                    ttft,
                    tpot,
                    alone: self.random.happens(world.alone),
                }
            });
            (c, s)
        });
        let pairs: Vec<_> = pairs.collect();
        Probes {
            probe_set: "set".into(),
            probe_set_size: 200,
            drawn: gate.per_tick,
            prompts,
            pairs,
            busy_candidate: 0.1,
            busy_stable: Some(0.1),
            peer_errors: Vec::new(),
        }
    }

    /// What the judge sees of tick `number`.
    pub(super) fn tick(&mut self, gate: &Gate, world: &World, place: &Place, number: u32) -> Tick {
        let seconds = gate.interval.as_seconds();
        let weight = place.weight();
        let share = f64::from(weight) / 100.0;
        let now = world.at(number);
        let most = self.pods[0].len().max(self.pods[1].len()) as f64;
        let mut one = |arm: usize, share: f64, slow: f64, errors: f64| {
            let (slower, failing) = if self.bursts(world, arm) { BURST } else { (1.0, 0.0) };
            let load = share * most / self.pods[arm].len() as f64;
            let slow = slow * slower * (1.0 + (world.load - 1.0) * load);
            let arriving = world.rate * seconds * share / if world.closed_loop { slow } else { 1.0 };
            let requests = self.random.poisson(arriving);
            self.arm(arm, requests, slow, (errors + failing).min(1.0))
        };
        let candidate = one(0, share, now.latency, now.errors.0);
        let stable = one(1, 1.0 - share, 1.0, now.errors.1);
        Tick {
            number,
            at: Time(i64::from(number) * gate.interval.0),
            weight: place.confirmed().then_some(weight),
            chosen: false,
            weight_change: place.changes(),
            last_step: place.last(),
            until_last_step: place.until_last(gate),
            last_weight: place.last_weight(),
            step_duration: place.step_duration(),
            ready_candidate: world.pods.0.max(1),
            ready_stable: world.pods.1.max(1),
            live: Some((candidate, stable, seconds)),
            warm: true,
            stable_total: (number == 1).then(|| (self.before.clone(), world.history as f64 / world.rate.max(1e-3))),
            probes: Some(self.probes(&gate.probes, gate.tail_min, &now, number)),
            seed: self.random.bits(),
        }
    }
}

/// The ticks of an attempt at the last step, as they would come without any verdict (the first nine at weight 0).
pub fn ticks(gate: &Gate, course: &Course, world: &World, seed: u64, count: u32) -> Vec<Tick> {
    let mut running = Running::new(world, seed);
    let mut place = Place::new(course);
    let mut all = Vec::new();
    for number in 1..=count {
        if number == 10 {
            place.go_to_last();
        }
        all.push(running.tick(gate, world, &place, number));
    }
    all
}
