//! Errors, margin .002: 100 requests per arm and tick of 10 s, one hour; and false promotions at thin traffic.

use super::{
    promises::Promises,
    table::{BOUND, Checks, Column, Fired, Firsts, Size, Z, print, with_interval},
};
use bitnet_core::{
    simulate::Random,
    stats::{
        asymptotic::msprt_ln_e,
        mann_whitney::{Classification, kayenta, mann_whitney},
        rate_ratio::RateRatio,
        thinning::{Draws, hypergeometric},
        votes::{self, CLIP, CLIP_PROMOTE_ERRORS},
        wealth::{RestartPrior, Restarting, Wealth},
    },
};

/// Error rates of stable and candidate, the tick from which the candidate's holds, share of ticks in which one arm alone
/// fails a fifth of its requests.
#[derive(Clone, Copy)]
struct World {
    rates: (f64, f64),
    onset: u32,
    bursts: f64,
}

/// Errors within which a candidate may exceed stable.
const EXCESS: f64 = 0.002;
const TICKS: u32 = 360;
const REQUESTS: u64 = 100;
const MINUTE: u32 = 6;

const RULES: [&str; 10] = [
    "last 1,000 over 1 % (seed rule)",
    "Flagger: success under 99 % per minute, 5 fails",
    "Argo: success under 99 %, failureLimit 0",
    "Kayenta, each 5 min",
    "Mann-Whitney 98 % each minute",
    "z-test, 1 %, peek, without a margin",
    "z-test, 1 %, peek, margin",
    "mSPRT, margin",
    "bets per request with restarts (fast mode)",
    "**ours: block votes with restarts**",
];

pub(crate) fn tables(short: bool, promises: &mut Promises) {
    let of = |stable, candidate, onset, bursts| World { rates: (stable, candidate), onset, bursts };
    let columns = [
        Column::silent(".2 against .2 %", of(0.002, 0.002, 0, 0.0), 0.0),
        Column::silent(".8 against .8 %", of(0.008, 0.008, 0, 0.0), 0.0),
        Column::silent("boundary .2/.4", of(0.002, 0.004, 0, 0.0), 0.01),
        Column::silent("boundary .8/1.0", of(0.008, 0.01, 0, 0.0), 0.01),
        Column::silent(".2 against .2 %, bursts", of(0.002, 0.002, 0, 0.01), 0.0),
        Column::bad(".2 to .6 %", of(0.002, 0.006, 0, 0.0), 246.0),
        Column::bad("to 1.2 %", of(0.002, 0.012, 0, 0.0), 30.0),
        Column::bad("to 2 %", of(0.002, 0.02, 0, 0.0), 16.0),
        Column::bad("to 5 %", of(0.002, 0.05, 0, 0.0), 10.0),
        Column::bad("2 % from tick 180 on", of(0.002, 0.02, 180, 0.0), 0.0).from(180),
        Column::bad("50 %", of(0.002, 0.5, 0, 0.0), 10.0),
    ];
    let title = "Errors, margin .2 %: false rollbacks in %, then ticks of 10 s until they are found";
    print((title, 1), &RULES, &columns, Size::of(short, 2000, 400), promises, one);
    thin(if short { 40 } else { 4000 }, promises);
}

fn one(world: &World, seed: u64) -> Fired {
    let mut random = Random::new(seed);
    let mut firsts = Firsts::new(RULES.len());
    let (stable, candidate) = world.rates;
    // What history says of stable.
    let scale = ((random.binomial(2000, stable) as f64 + 0.5) / 2001.0).max(0.0005);
    let bets = RateRatio::worse(1.0, EXCESS);
    let prior = RestartPrior::new(TICKS);
    let (mut fast, mut ours) = (Restarting::default(), Restarting::default());
    let (mut last, mut sums, mut minute) = (Vec::new(), [0u64; 2], [0u64; 2]);
    let mut series = [Vec::new(), Vec::new()];
    let (mut flagger, mut argo) = (Checks::default(), Checks::default());
    for t in 1..=TICKS {
        let now = if t > world.onset { candidate } else { stable };
        let failed = [now, stable].map(|rate| {
            let burst = if random.happens(world.bursts) { 0.2 } else { 0.0 };
            random.binomial(REQUESTS, (rate + burst).min(1.0))
        });
        for arm in 0..2 {
            sums[arm] += failed[arm];
            minute[arm] += failed[arm];
        }
        last.push(failed[0]);
        firsts.at(0, t, || t >= 10 && last[last.len() - 10..].iter().sum::<u64>() > 10);
        if t.is_multiple_of(MINUTE) {
            let requests = REQUESTS as f64 * f64::from(MINUTE);
            for arm in 0..2 {
                series[arm].push(minute[arm] as f64 / requests);
                minute[arm] = 0;
            }
            let bad = series[0][series[0].len() - 1] > 0.01;
            let (soon, at_once) = (flagger.fails(bad, 5), argo.fails(bad, 1));
            firsts.at(1, t, || soon);
            firsts.at(2, t, || at_once);
            let minutes = t / MINUTE;
            firsts.at(3, t, || {
                minutes >= 10
                    && minutes.is_multiple_of(5)
                    && kayenta(&series[1], &series[0], 1.0) == Classification::High
            });
            firsts.at(4, t, || {
                minutes >= 5 && mann_whitney(&series[1], &series[0], 0.98).is_some_and(|found| found.interval.0 > 0.0)
            });
        }
        let n = f64::from(t) * REQUESTS as f64;
        let rate = |arm: usize| sums[arm] as f64 / n;
        let difference = rate(0) - rate(1);
        let error = (rate(0) * (1.0 - rate(0)) + rate(1) * (1.0 - rate(1))).max(1e-9) / n;
        let enough = sums[0] + sums[1] >= 5;
        firsts.at(5, t, || enough && difference > Z * error.sqrt());
        firsts.at(6, t, || enough && difference - EXCESS > Z * error.sqrt());
        firsts.at(7, t, || enough && difference > EXCESS && msprt_ln_e(difference - EXCESS, error, 0.005) >= BOUND);
        let arms = ((failed[0], REQUESTS), (failed[1], REQUESTS));
        fast.tick(prior, t, &bets.increments(arms.0, arms.1));
        firsts.at(8, t, || fast.ln_e(prior, t) >= BOUND);
        ours.tick(prior, t, &votes::worse(votes::errors(arms.0, arms.1, EXCESS, scale, CLIP)));
        firsts.at(9, t, || ours.ln_e(prior, t) >= BOUND);
    }
    firsts.0
}

/// False promotions on errors, a candidate exactly at its margin, 400 blocks that close as the judge's do.
fn thin(runs: u64, promises: &mut Promises) {
    println!("\n### False promotions on errors, % of {runs} runs with a 95 % interval (promised: at most 5)\n");
    println!("| requests per tick, candidate : stable | base rate 0 | .05 % | .2 % | .8 % |");
    println!("|---|---|---|---|---|");
    for (n_c, n_b) in [(1u64, 19u64), (10, 190), (20, 180)] {
        let cells: Vec<String> = [0.0, 0.0005, 0.002, 0.008]
            .iter()
            .map(|base| {
                let promoted = super::parallel(runs, |seed| promotes(seed, (n_c, n_b), *base));
                let count = promoted.iter().filter(|p| **p).count() as u64;
                promises.at_most(&format!("false promotion on errors, {n_c} : {n_b}, base {base}"), count, runs, 0.05);
                with_interval(count, runs)
            })
            .collect();
        println!("| {n_c} : {n_b} | {} |", cells.join(" | "));
    }
}

fn promotes(seed: u64, (n_c, n_b): (u64, u64), base: f64) -> bool {
    let mut random = Random::new(seed + 1);
    let scale = base.max(0.0005);
    let ticks = (0.25 / EXCESS / n_c as f64).ceil() as u64;
    let (n_c, n_b) = (n_c * ticks, n_b * ticks);
    let mut wealth: Wealth = Wealth::default();
    (0..400).any(|block| {
        let s_c = random.binomial(n_c, base + EXCESS);
        let s_b = random.binomial(n_b, base);
        let thinned = hypergeometric(n_b, s_b, n_c, &mut Draws::new(seed.wrapping_mul(1000) + block, 2));
        let vote = votes::errors((s_c, n_c), (thinned, n_c), EXCESS, scale, CLIP_PROMOTE_ERRORS);
        wealth.add(&votes::not_worse(vote));
        wealth.ln_e() >= 20f64.ln()
    })
}
