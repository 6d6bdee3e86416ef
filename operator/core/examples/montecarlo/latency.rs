//! Live latency, margin 1.2: 100 requests per arm and tick of 10 s, one hour.

use super::{
    promises::Promises,
    table::{BOUND, Checks, Column, Fired, Firsts, Size, Sums, Z, print, with_interval},
};
use bitnet_core::{
    evidence::Histogram,
    simulate::{Latencies, Random},
    stats::{
        asymptotic::msprt_ln_e,
        histogram::{CELLS, Cells, FIRST, OVERFLOW, Shift, Window},
        label_odds::{Dominance, VIEWS},
        logspace::log_mean_exp,
        mann_whitney::{Classification, kayenta, mann_whitney},
        thinning::{Draws, thin},
        votes::{self, CLIP},
        wealth::{RestartPrior, Restarting, Wealth},
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

pub(crate) fn tables(short: bool, promises: &mut Promises) {
    let of = |factor, tail, onset, bursts| World { factor, tail, onset, bursts };
    let columns = [
        Column::silent("identical", of(1.0, 0.0, 0, 0.0), 0.0),
        Column::silent("1.1x", of(1.1, 0.0, 0, 0.0), 0.0),
        Column::silent("1.2x (boundary)", of(1.2, 0.0, 0, 0.0), 0.01),
        Column::silent("identical, bursts", of(1.0, 0.0, 0, 0.02), 0.0),
        Column::silent("boundary, bursts", of(1.2, 0.0, 0, 0.02), 0.01),
        Column::bad("1.3x", of(1.3, 0.0, 0, 0.0), 24.0),
        Column::bad("1.5x", of(1.5, 0.0, 0, 0.0), 12.0),
        Column::bad("2x", of(2.0, 0.0, 0, 0.0), 11.0),
        Column::bad("5 % of requests 4x", of(1.0, 0.05, 0, 0.0), 59.0),
        Column::bad("1.5x from tick 180 on", of(1.5, 0.0, 180, 0.0), 21.0).from(180),
    ];
    let title = "Live latency, margin 1.2: false rollbacks in %, then ticks of 10 s until it is found";
    print((title, 1), &RULES, &columns, Size::of(short, 600, 200), promises, one);
    unequal(if short { 12 } else { 600 }, promises);
}

/// ln of the seconds of one request: a log-normal body and a slow mode of 3 %.
pub(crate) fn request(random: &mut Random) -> f64 {
    let (ln_median, spread) = if random.happens(0.03) { (-0.223_143_551, 0.6) } else { (-1.609_437_912, 0.5) };
    ln_median + spread * random.normal()
}

/// Requests of both arms in one tick, as logarithms of their seconds.
pub(crate) fn tick(world: World, tick: u32, random: &mut Random) -> [Vec<f64>; 2] {
    let on = tick > world.onset;
    [0, 1].map(|arm| {
        let burst = if random.happens(world.bursts) { 3.0 } else { 1.0 };
        let candidate = arm == 0 && on;
        let shift = f64::ln(burst * if candidate { world.factor } else { 1.0 });
        let mut one = || {
            let slow = candidate && world.tail > 0.0 && random.happens(world.tail);
            shift + request(random) + if slow { 4f64.ln() } else { 0.0 }
        };
        (0..REQUESTS).map(|_| one()).collect()
    })
}

pub(crate) fn histogram(logs: &[f64]) -> Histogram {
    let mut counts = [0; (OVERFLOW - FIRST + 1) as usize];
    for ln in logs {
        // Edges are 1.2^(i/2).
        let bucket = (ln * (2.0 / 0.182_321_556_793_954_6)).ceil().clamp(f64::from(FIRST), f64::from(OVERFLOW));
        counts[(bucket as i16 - FIRST) as usize] += 1;
    }
    let used = counts.into_iter().enumerate().filter(|(_, n)| *n > 0);
    Histogram(used.map(|(i, n)| (FIRST + i as i16, n)).collect())
}

/// What is known before the canary: 2,000 requests of stable.
pub(crate) fn history(random: &mut Random) -> Window {
    let logs: Vec<f64> = (0..2000).map(|_| request(random)).collect();
    Window::of(&histogram(&logs)).expect("a history")
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
    let (mut minute, mut sums) = ([Vec::new(), Vec::new()], [0.0; 2]);
    let (mut p99, mut means) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let (mut loose, mut strict, mut argo) = (Checks::default(), Checks::default(), Checks::default());
    for t in 1..=TICKS {
        let arms = tick(*world, t, &mut random);
        let mut totals = [0.0; 2];
        let mut last = 0.0;
        for (arm, of) in arms.iter().enumerate() {
            for (i, ln) in of.iter().enumerate() {
                logs[arm].add(*ln);
                let seconds = ln.exp();
                totals[arm] += seconds;
                if arm == 0 && i >= REQUESTS - 50 {
                    last += seconds;
                }
            }
            minute[arm].extend(of);
            sums[arm] += totals[arm];
        }
        firsts.at(0, t, || last / 50.0 > 2.0 * totals[1] / REQUESTS as f64);
        if t.is_multiple_of(MINUTE) {
            for arm in 0..2 {
                means[arm].push(sums[arm] / minute[arm].len() as f64);
                p99[arm].push(quantile(&mut minute[arm], 0.99).exp());
                minute[arm].clear();
                sums[arm] = 0.0;
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

/// Arms of different size, at the margin and identical: rollbacks with all requests, promotions with the larger arm thinned to
/// the smaller one, in blocks of 30 s.
fn unequal(runs: u64, promises: &mut Promises) {
    println!(
        "\n### Live latency with unequal arms, 1 h, % of {runs} runs with a 95 % interval; promotion in ticks of 10 s\n"
    );
    println!(
        "| requests per tick, candidate : stable | false rollbacks at the margin | false promotions at the margin: body | p95 \
         | identical: promoted on p95, after (90 %) |"
    );
    println!("|---|---|---|---|---|");
    for sizes in [(1u64, 19u64), (10, 190), (20, 180), (100, 100)] {
        let edge = super::parallel(runs, |seed| small(sizes, 1.2, seed + 1));
        let good = super::parallel(runs / 3, |seed| small(sizes, 1.0, seed + 1));
        let count = |of: fn(&Decided) -> Option<u32>| edge.iter().filter(|d| of(d).is_some()).count() as u64;
        let (back, body, p95) = (count(|d| d.back), count(|d| d.body), count(|d| d.p95));
        let name = format!("unequal arms {} : {}", sizes.0, sizes.1);
        promises.at_most(&format!("{name}: rolled back at the margin"), back, runs, 0.01);
        promises.at_most(&format!("{name}: body promoted at the margin"), body, runs, 0.05);
        promises.at_most(&format!("{name}: p95 promoted at the margin"), p95, runs, 0.05);
        let mut times: Vec<u32> = good.iter().filter_map(|d| d.p95).collect();
        times.sort_unstable();
        let at = |p: f64| times.get((times.len() as f64 * p) as usize).map_or("-".to_owned(), u32::to_string);
        println!(
            "| {} : {} | {} | {} | {} | {}, {} ({}) |",
            sizes.0,
            sizes.1,
            with_interval(back, runs),
            with_interval(body, runs),
            with_interval(p95, runs),
            with_interval(times.len() as u64, runs / 3),
            at(0.5),
            at(0.9)
        );
    }
}

/// When a rollback, and a promotion on body and on p95, was decided.
#[derive(Default)]
struct Decided {
    back: Option<u32>,
    body: Option<u32>,
    p95: Option<u32>,
}

fn small((n_c, n_b): (u64, u64), factor: f64, seed: u64) -> Decided {
    const BLOCK: u32 = 3;
    let mut random = Random::new(seed);
    let mut latencies = Latencies::default();
    let window = history(&mut random);
    let shift = Shift::of(1.2);
    let mut votes = Votes::new(window);
    let mut promote = [Wealth::default(); 2];
    let mut found = Decided::default();
    let mut block = [[0; CELLS]; 2];
    for t in 1..=TICKS {
        latencies.add(&mut random, n_c, 0.2 * factor);
        let candidate = latencies.take();
        latencies.add(&mut random, n_b, 0.2);
        let stable = latencies.take();
        let mut cells = [[0; CELLS]; 2];
        window.add_worse(&mut cells[0], &candidate, shift);
        window.add(&mut cells[1], &stable);
        if found.back.is_none() && votes.tick(t, &cells) >= BOUND {
            found.back = Some(t);
        }
        window.add_not_worse(&mut block[0], &candidate, shift);
        window.add(&mut block[1], &stable);
        if t.is_multiple_of(BLOCK) {
            let [mut c, mut b] = std::mem::replace(&mut block, [[0; CELLS]; 2]);
            let size = c.iter().sum::<u64>().min(b.iter().sum());
            let mut draws = Draws::new(random.bits(), 3);
            thin(&mut c, size, &mut draws);
            thin(&mut b, size, &mut draws);
            let p95 = window.p95();
            let seen = [votes::body(&c, &b, CLIP), votes::tail(p95.over(&c), p95.over(&b), p95.p0, CLIP)];
            for (wealth, vote) in promote.iter_mut().zip(seen) {
                wealth.add(&votes::not_worse(vote));
            }
            let proven = |wealth: &Wealth| (wealth.ln_e() >= 20f64.ln()).then_some(t);
            found.body = found.body.or(proven(&promote[0]));
            found.p95 = found.p95.or(proven(&promote[1]));
        }
    }
    found
}
