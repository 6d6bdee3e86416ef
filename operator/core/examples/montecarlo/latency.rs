//! Live latency, margin 1.2: 100 requests per arm and tick of 10 s, one hour.

use super::table::{BOUND, Checks, Column, Fired, Firsts, Size, Sums, Z, print};
use bitnet_core::{
    evidence::Histogram,
    simulate::Random,
    stats::{
        asymptotic::msprt_ln_e,
        histogram::{CELLS, Cells, FIRST, OVERFLOW, Shift, Window},
        label_odds::{Dominance, VIEWS},
        logspace::log_mean_exp,
        mann_whitney::{Classification, kayenta, mann_whitney},
        votes::{self, CLIP},
        wealth::{RestartPrior, Restarting},
    },
};

/// Multiple of stable's latency, share of requests that take four times as long, tick from which both hold, and share of
/// ticks in which one arm alone is three times as slow.
#[derive(Clone, Copy)]
pub(crate) struct World {
    pub(crate) factor: f64,
    pub(crate) tail: f64,
    pub(crate) onset: u32,
    pub(crate) bursts: f64,
}

pub(crate) const TICKS: u32 = 360;
const REQUESTS: usize = 100;
const MINUTE: u32 = 6;

const RULES: [&str; 13] = [
    "mean of the last 50 over 2x (seed rule)",
    "Flagger: p99 per minute over 1.2x, 5 fails",
    "Flagger: p99 per minute over 1.5x, 5 fails",
    "Argo: p99 per minute over 1.2x, failureLimit 0",
    "Kayenta, p99 series, each 5 min",
    "Kayenta, p99, allowedIncrease 1.2",
    "Kayenta, mean series",
    "Mann-Whitney 98 % each minute",
    "t-test of logs, 1 %, peek, margin 1.2",
    "t-test of logs, once at 1 h, margin 1.2",
    "mSPRT of logs, margin 1.2",
    "bets per request with restarts (fast mode)",
    "**ours: block votes with restarts**",
];

pub(crate) fn tables(short: bool) {
    let of = |factor, tail, onset, bursts| World { factor, tail, onset, bursts };
    let columns = [
        (true, "identical", of(1.0, 0.0, 0, 0.0)),
        (true, "1.1x", of(1.1, 0.0, 0, 0.0)),
        (true, "1.2x (boundary)", of(1.2, 0.0, 0, 0.0)),
        (true, "identical, bursts", of(1.0, 0.0, 0, 0.02)),
        (true, "boundary, bursts", of(1.2, 0.0, 0, 0.02)),
        (false, "1.3x", of(1.3, 0.0, 0, 0.0)),
        (false, "1.5x", of(1.5, 0.0, 0, 0.0)),
        (false, "2x", of(2.0, 0.0, 0, 0.0)),
        (false, "5 % of requests 4x", of(1.0, 0.05, 0, 0.0)),
        (false, "1.5x from tick 180 on", of(1.5, 0.0, 180, 0.0)),
    ]
    .map(|(silent, name, world)| Column { name, silent, world });
    let title = "Live latency, margin 1.2: false rollbacks in %, then ticks of 10 s until it is found";
    print(title, &RULES, &columns, Size::of(short, 600, 200), one);
}

/// Seconds of one request: a log-normal body and a slow mode of 3 %.
pub(crate) fn request(random: &mut Random) -> f64 {
    let (median, spread) = if random.happens(0.03) { (0.8, 0.6) } else { (0.2, 0.5) };
    median * (spread * random.normal()).exp()
}

/// Requests of both arms in one tick.
pub(crate) fn tick(world: World, tick: u32, random: &mut Random) -> [Vec<f64>; 2] {
    let on = tick > world.onset;
    [0, 1].map(|arm| {
        let burst = if random.happens(world.bursts) { 3.0 } else { 1.0 };
        let candidate = arm == 0 && on;
        let factor = burst * if candidate { world.factor } else { 1.0 };
        let mut one = || {
            let slow = candidate && world.tail > 0.0 && random.happens(world.tail);
            factor * request(random) * if slow { 4.0 } else { 1.0 }
        };
        (0..REQUESTS).map(|_| one()).collect()
    })
}

pub(crate) fn histogram(seconds: &[f64]) -> Histogram {
    let mut histogram = Histogram::default();
    for x in seconds {
        let bucket = (2.0 * x.ln() / 1.2f64.ln()).ceil().clamp(f64::from(FIRST), f64::from(OVERFLOW)) as i16;
        *histogram.0.entry(bucket).or_default() += 1;
    }
    histogram
}

/// What is known before the canary: 2,000 requests of stable.
pub(crate) fn history(random: &mut Random) -> Window {
    let seconds: Vec<f64> = (0..2000).map(|_| request(random)).collect();
    Window::of(&histogram(&seconds)).expect("a history")
}

/// The body, p95 and p99 votes of a block.
pub(crate) struct Votes {
    window: Window,
    prior: RestartPrior,
    claims: [Restarting; 3],
}

impl Votes {
    pub(crate) fn new(window: Window) -> Self {
        Self { window, prior: RestartPrior::new(TICKS), claims: [Restarting::default(); 3] }
    }

    /// Their window.
    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// ln of their average after one more tick.
    pub(crate) fn tick(&mut self, tick: u32, [candidate, stable]: &[Cells; 2]) -> f64 {
        let tail = |t: bitnet_core::stats::histogram::Tail| votes::tail(t.over(candidate), t.over(stable), t.p0, CLIP);
        let found = [votes::body(candidate, stable, CLIP), tail(self.window.p95()), tail(self.window.p99())];
        for (claim, vote) in self.claims.iter_mut().zip(found) {
            claim.tick(self.prior, tick, &votes::worse(vote));
        }
        log_mean_exp(&self.claims.each_ref().map(|c| c.ln_e(self.prior, tick)))
    }
}

/// Cells of both arms, the candidate's shifted down by the margin.
pub(crate) fn cells(window: &Window, arms: &[Vec<f64>; 2]) -> [Cells; 2] {
    let mut cells = [[0; CELLS]; 2];
    window.add_worse(&mut cells[0], &histogram(&arms[0]), Shift::of(1.2));
    window.add(&mut cells[1], &histogram(&arms[1]));
    cells
}

/// The value under which a share of the observations lies; reorders them.
pub(crate) fn quantile(values: &mut [f64], p: f64) -> f64 {
    let at = ((values.len() as f64 * p) as usize).min(values.len() - 1);
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

fn one(world: &World, seed: u64) -> Fired {
    let mut random = Random::new(seed);
    let mut firsts = Firsts::new(RULES.len());
    let window = history(&mut random);
    let mut before = [0; CELLS];
    window.add(&mut before, &histogram(&(0..2000).map(|_| request(&mut random)).collect::<Vec<_>>()));
    let dominance = Dominance::of(&before).expect("a history");
    let prior = RestartPrior::new(TICKS);
    let (mut fast, mut ours) = (Restarting::<VIEWS>::default(), Votes::new(window));
    let mut logs = [Sums::default(); 2];
    let mut minute = [Vec::new(), Vec::new()];
    let (mut p99, mut means) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let (mut loose, mut strict, mut argo) = (Checks::default(), Checks::default(), Checks::default());
    let mut last: Vec<f64> = Vec::new();
    for t in 1..=TICKS {
        let arms = tick(*world, t, &mut random);
        for (arm, seconds) in arms.iter().enumerate() {
            for x in seconds {
                logs[arm].add(x.ln());
            }
            minute[arm].extend(seconds);
        }
        last.clone_from(&arms[0][REQUESTS - 50..].to_vec());
        let stable: f64 = arms[1].iter().sum::<f64>() / REQUESTS as f64;
        firsts.at(0, t, || last.iter().sum::<f64>() / 50.0 > 2.0 * stable);
        if t.is_multiple_of(MINUTE) {
            for arm in 0..2 {
                means[arm].push(minute[arm].iter().sum::<f64>() / minute[arm].len() as f64);
                p99[arm].push(quantile(&mut minute[arm], 0.99));
                minute[arm].clear();
            }
            let ratio = p99[0][p99[0].len() - 1] / p99[1][p99[1].len() - 1];
            let (a, b, c) = (strict.fails(ratio > 1.2, 5), loose.fails(ratio > 1.5, 5), argo.fails(ratio > 1.2, 1));
            firsts.at(1, t, || a);
            firsts.at(2, t, || b);
            firsts.at(3, t, || c);
            let minutes = t / MINUTE;
            let due = minutes >= 10 && minutes.is_multiple_of(5);
            firsts.at(4, t, || due && kayenta(&p99[1], &p99[0], 1.0) == Classification::High);
            firsts.at(5, t, || due && kayenta(&p99[1], &p99[0], 1.2) == Classification::High);
            firsts.at(6, t, || due && kayenta(&means[1], &means[0], 1.0) == Classification::High);
            firsts.at(7, t, || {
                minutes >= 5 && mann_whitney(&p99[1], &p99[0], 0.98).is_some_and(|found| found.interval.0 > 0.0)
            });
        }
        let difference = logs[0].mean() - logs[1].mean() - 1.2f64.ln();
        let error = logs[0].error() + logs[1].error();
        firsts.at(8, t, || difference > Z * error.sqrt());
        firsts.at(9, t, || t == TICKS && difference > Z * error.sqrt());
        firsts.at(10, t, || difference > 0.0 && msprt_ln_e(difference, error, 0.1) >= BOUND);
        let cells = cells(&window, &arms);
        fast.tick(prior, t, &dominance.increments(&cells[0], &cells[1]));
        firsts.at(11, t, || fast.ln_e(prior, t) >= BOUND);
        let ln_e = ours.tick(t, &cells);
        firsts.at(12, t, || ln_e >= BOUND);
    }
    firsts.0
}
