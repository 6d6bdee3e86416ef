//! Cosine mean and tail, latency and errors together: 10 prompts and 100 requests per arm in each tick of 10 s, one hour.

use super::{
    latency::{self, TICKS, Votes, cells, history, quantile},
    promises::Promises,
    table::{BOUND, Checks, Column, Fired, Firsts, Size, print},
};
use bitnet_core::{
    evidence::combine,
    simulate::Random,
    stats::{
        bets::{BoundedMean, Increments, NOTHING, Share, accumulate},
        histogram::CELLS,
        label_odds::{Dominance, VIEWS},
        mann_whitney::{Classification, kayenta},
        rate_ratio::RateRatio,
        votes::{CLIP, errors as vote_on_errors, worse},
        wealth::{RestartPrior, Restarting},
    },
};

/// The candidate, and the length in ticks and share of bursts that hit one arm alone.
#[derive(Clone, Copy)]
struct World {
    cosine: f64,
    latency: f64,
    errors: f64,
    onset: u32,
    /// Length of a burst in ticks; 0: none.
    burst: u32,
}

const STABLE_ERRORS: f64 = 0.002;
const PROMPTS: usize = 10;
const MINUTE: u32 = 6;

const RULES: [&str; 7] = [
    "seed rules, any",
    "Flagger-style, p99 1.5x, 5 fails",
    "Flagger-style, p99 2x, 5 fails",
    "Argo-style, p99 1.5x, failureLimit 0",
    "Kayenta, any of 3, each 5 min",
    "fast mode (bets per prompt and per request)",
    "**ours**",
];

pub(crate) fn tables(short: bool, promises: &mut Promises) {
    let good = World { cosine: 0.965, latency: 1.0, errors: STABLE_ERRORS, onset: 0, burst: 0 };
    let fair = World { cosine: 0.957, latency: 1.1, errors: 0.003, ..good };
    let edge = World { cosine: 0.95, latency: 1.2, errors: 0.004, ..good };
    let columns = [
        Column::silent("healthy", good, 0.0),
        Column::silent("acceptable (.957, 1.1x, .3 %)", fair, 0.0),
        Column::silent("all at the boundary", edge, 0.01),
        Column::silent("healthy, 10 s bursts", World { burst: 1, ..good }, 0.0),
        Column::silent("healthy, 30 s bursts", World { burst: 3, ..good }, 0.0),
        Column::silent("acceptable, 10 s bursts", World { burst: 1, ..fair }, 0.0),
        Column::silent("boundary, 10 s bursts", World { burst: 1, ..edge }, 0.01),
        Column::bad("cosine .945", World { cosine: 0.945, ..good }, 47.0),
        Column::bad("cosine .93", World { cosine: 0.93, ..good }, 4.0),
        Column::bad("latency 1.3x", World { latency: 1.3, ..good }, 28.0),
        Column::bad("latency 1.5x", World { latency: 1.5, ..good }, 15.0),
        Column::bad("1.5x, bursts", World { latency: 1.5, burst: 1, ..good }, 15.0),
        Column::bad("errors 2 %", World { errors: 0.02, ..good }, 20.0),
        Column::bad(
            "all three from tick 180 on",
            World { cosine: 0.93, latency: 1.5, errors: 0.02, onset: 180, ..good },
            6.0,
        )
        .from(180),
    ];
    let title = "Whole decision: false rollbacks in %, then ticks of 10 s until a defect is found";
    print((title, 1), &RULES, &columns, Size::of(short, 2000, 200), promises, one);
}

/// Bursts of an arm: latency times three in 2 % of the ticks, a fifth of the requests failing in 1 %.
#[derive(Clone, Copy, Default)]
struct Burst {
    slow: u32,
    failing: u32,
}

impl Burst {
    fn tick(&mut self, random: &mut Random, length: u32) -> (f64, f64) {
        if length > 0 {
            let starts = |random: &mut Random, share: f64| random.happens(share / f64::from(length));
            self.slow = if starts(random, 0.02) { length } else { self.slow.saturating_sub(1) };
            self.failing = if starts(random, 0.01) { length } else { self.failing.saturating_sub(1) };
        }
        (if self.slow > 0 { 3.0 } else { 1.0 }, if self.failing > 0 { 0.2 } else { 0.0 })
    }
}

/// Our tests of the prompts, and the two ways to test requests.
struct Tests {
    mean: BoundedMean,
    tail: Share,
    bets: RateRatio,
    dominance: Dominance,
    prior: RestartPrior,
    quality: [Restarting; 2],
    votes: Votes,
    errors: Restarting,
    fast_latency: Restarting<VIEWS>,
    fast_errors: Restarting,
    scale: f64,
}

/// What a tick brought.
struct Data<'a> {
    prompts: &'a [f64],
    /// Requests, as logarithms of their seconds.
    arms: &'a [Vec<f64>; 2],
    /// Mean seconds of stable, and of the candidate's last 50.
    means: (f64, f64),
    failed: [u64; 2],
}

impl Tests {
    fn new(random: &mut Random) -> Self {
        let window = history(random);
        let mut before = [0; CELLS];
        window.add(&mut before, &latency::histogram(&(0..2000).map(|_| latency::request(random)).collect::<Vec<_>>()));
        Self {
            mean: BoundedMean::new(0.95, 0.0, 1.0),
            tail: Share::above(0.05),
            bets: RateRatio::worse(1.0, 0.002),
            dominance: Dominance::of(&before).expect("a history"),
            prior: RestartPrior::new(TICKS),
            quality: [Restarting::default(); 2],
            votes: Votes::new(window),
            errors: Restarting::default(),
            fast_latency: Restarting::default(),
            fast_errors: Restarting::default(),
            scale: ((random.binomial(2000, STABLE_ERRORS) as f64 + 0.5) / 2001.0).max(0.0005),
        }
    }

    /// ln of the combined e-value with bets per request, and with block votes.
    fn tick(&mut self, window: &bitnet_core::stats::histogram::Window, t: u32, data: &Data) -> (f64, f64) {
        let mut mean: Increments = NOTHING;
        for x in data.prompts {
            accumulate(&mut mean, &self.mean.below(*x));
        }
        let low = data.prompts.iter().filter(|x| **x < 0.9).count() as u64;
        let tail = self.tail.increments(low, data.prompts.len() as u64 - low);
        for (claim, increments) in self.quality.iter_mut().zip([mean, tail]) {
            claim.tick(self.prior, t, &increments);
        }
        let quality = self.quality.each_ref().map(|claim| claim.ln_e(self.prior, t));
        let cells = cells(window, data.arms);
        let latency = self.votes.tick(t, &cells);
        let arms = [0, 1].map(|arm| (data.failed[arm], data.arms[arm].len() as u64));
        self.errors.tick(self.prior, t, &worse(vote_on_errors(arms[0], arms[1], 0.002, self.scale, CLIP)));
        self.fast_latency.tick(self.prior, t, &self.dominance.increments(&cells[0], &cells[1]));
        self.fast_errors.tick(self.prior, t, &self.bets.increments(arms[0], arms[1]));
        let of = |latency, errors| combine::ln_rollback(&[quality[0], quality[1], latency, errors]);
        (
            of(self.fast_latency.ln_e(self.prior, t), self.fast_errors.ln_e(self.prior, t)),
            of(latency, self.errors.ln_e(self.prior, t)),
        )
    }
}

fn one(world: &World, seed: u64) -> Fired {
    let mut random = Random::new(seed);
    let mut firsts = Firsts::new(RULES.len());
    let mut tests = Tests::new(&mut random);
    let window = tests.votes.window();
    let mut bursts = [Burst::default(); 2];
    let mut seeds = Seeds::default();
    let mut minutes = Minutes::default();
    for t in 1..=TICKS {
        let on = t > world.onset;
        let cosine = if on { world.cosine } else { 0.965 };
        let total = cosine * (1.0 - cosine) / (0.025f64 * 0.025) - 1.0;
        let prompts: Vec<f64> =
            (0..PROMPTS).map(|_| 1.0 - random.beta((1.0 - cosine) * total, cosine * total)).collect();
        let now = latency::World { factor: if on { world.latency } else { 1.0 }, tail: 0.0, onset: 0, bursts: 0.0 };
        let mut arms = latency::tick(now, t, &mut random);
        let mut failed = [0; 2];
        for (arm, burst) in bursts.iter_mut().enumerate() {
            let (slow, failing) = burst.tick(&mut random, world.burst);
            let shift = slow.ln();
            arms[arm].iter_mut().for_each(|ln| *ln += shift);
            let rate = if arm == 0 && on { world.errors } else { STABLE_ERRORS };
            failed[arm] = random.binomial(arms[arm].len() as u64, (rate + failing).min(1.0));
        }
        let mean = |logs: &[f64]| logs.iter().map(|ln| ln.exp()).sum::<f64>() / logs.len() as f64;
        let means = (mean(&arms[1]), mean(&arms[0][arms[0].len() - 50..]));
        let data = Data { prompts: &prompts, arms: &arms, means, failed };
        firsts.at(0, t, || seeds.fires(&data));
        minutes.add(&data);
        if t.is_multiple_of(MINUTE) {
            let found = minutes.close();
            for (rule, fires) in found.into_iter().enumerate() {
                firsts.at(1 + rule, t, || fires);
            }
        }
        let (fast, ours) = tests.tick(&window, t, &data);
        firsts.at(5, t, || fast >= BOUND);
        firsts.at(6, t, || ours >= BOUND);
    }
    firsts.0
}

/// Rolling means: 100 prompts under .95, 50 requests over twice stable's mean, 1,000 requests over 1 % errors.
#[derive(Default)]
struct Seeds {
    prompts: Vec<f64>,
    failed: Vec<u64>,
}

impl Seeds {
    fn fires(&mut self, data: &Data) -> bool {
        self.prompts.extend(data.prompts);
        self.failed.push(data.failed[0]);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let slow = data.means.1 > 2.0 * data.means.0;
        let (n, ticks) = (self.prompts.len(), self.failed.len());
        let far = n >= 100 && mean(&self.prompts[n - 100..]) < 0.95;
        let failing = ticks >= 10 && self.failed[ticks - 10..].iter().sum::<u64>() > 10;
        slow || far || failing
    }
}

/// Points of one minute each, and what is checked at its end.
#[derive(Default)]
struct Minutes {
    prompts: Vec<f64>,
    /// Logarithms of seconds.
    logs: [Vec<f64>; 2],
    failed: [u64; 2],
    requests: u64,
    /// Series of p99, error rate and mean cosine, candidate and stable (the threshold stands for stable's cosine).
    series: [[Vec<f64>; 2]; 3],
    checks: [Checks; 3],
}

impl Minutes {
    fn add(&mut self, data: &Data) {
        self.prompts.extend(data.prompts);
        self.requests += data.arms[0].len() as u64;
        for arm in 0..2 {
            self.logs[arm].extend(&data.arms[arm]);
            self.failed[arm] += data.failed[arm];
        }
    }

    /// Flagger-style with 1.5x and 2x, Argo-style, Kayenta.
    fn close(&mut self) -> [bool; 4] {
        let cosine = self.prompts.iter().sum::<f64>() / self.prompts.len() as f64;
        let [candidate, stable] = self.logs.each_mut().map(|logs| quantile(logs, 0.99).exp());
        let rates = self.failed.map(|f| f as f64 / self.requests as f64);
        let values = [[candidate, stable], rates, [-cosine, -0.95]];
        for (series, value) in self.series.iter_mut().zip(values) {
            series[0].push(value[0]);
            series[1].push(value[1]);
        }
        let bad = |limit: f64| candidate > limit * stable || rates[0] > 0.01 || cosine < 0.95;
        let found = [
            self.checks[0].fails(bad(1.5), 5),
            self.checks[1].fails(bad(2.0), 5),
            self.checks[2].fails(bad(1.5), 1),
            self.kayenta(),
        ];
        self.prompts.clear();
        self.logs.iter_mut().for_each(Vec::clear);
        (self.failed, self.requests) = ([0; 2], 0);
        found
    }

    fn kayenta(&self) -> bool {
        let minutes = self.series[0][0].len();
        if minutes < 10 || !minutes.is_multiple_of(5) {
            return false;
        }
        // A cosine has no second arm: Kayenta is given its plain threshold there.
        let [latency, errors, _] = &self.series;
        let high = |[candidate, stable]: &[Vec<f64>; 2]| kayenta(stable, candidate, 1.0) == Classification::High;
        let cosine = self.series[2][0].iter().sum::<f64>() / minutes as f64;
        high(latency) || high(errors) || cosine > -0.95
    }
}
