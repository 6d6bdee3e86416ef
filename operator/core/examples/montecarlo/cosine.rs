//! Mean cosine against a threshold of .95: 5,000 prompts, a look after every 10.

use super::{
    promises::Promises,
    table::{BOUND, Checks, Column, Fired, Firsts, Size, Sums, Z, print},
};
use bitnet_core::{
    simulate::Random,
    stats::{
        asymptotic::msprt_ln_e,
        bets::{BoundedMean, NOTHING, accumulate},
        mann_whitney::{Classification, kayenta},
        wealth::{RestartPrior, Restarting, Wealth},
    },
};

/// How a candidate's prompts are drawn.
#[derive(Clone, Copy)]
enum World {
    /// 1 − Beta with this mean and standard deviation.
    Even(f64, f64),
    /// A share of bad prompts, around the last number, and the rest as given. (.27 is where a t-test that peeks needs as many
    /// prompts as in the table that the promises are from, which leaves the bad prompts' cosine open.)
    Tail(f64, f64, f64, f64),
    /// .965, then the given mean from this prompt on.
    Late(f64, u32),
}

const M: f64 = 0.95;
const PROMPTS: u32 = 5000;
const LOOK: u32 = 10;

const RULES: [&str; 9] = [
    "mean of the last 100 under .95 (seed rule)",
    "Flagger: 5 failed windows of 100",
    "Argo: failureLimit 0",
    "t-test, 1 %, peek at each look",
    "t-test, 1 %, once at 5,000",
    "mSPRT, tau .01",
    "Kayenta against a series at the threshold",
    "ours without restarts",
    "**ours**",
];

pub(crate) fn tables(short: bool, promises: &mut Promises) {
    let columns = [
        Column::silent("healthy .965, sd .025", World::Even(0.965, 0.025), 0.0),
        Column::silent("healthy .965, sd .06", World::Even(0.965, 0.06), 0.0),
        Column::silent("at .95, sd .03", World::Even(0.95, 0.03), 0.01),
        Column::silent("at .95, heavy tail", World::Tail(0.961_757, 0.02, 0.0325, 0.6), 0.01),
        Column::bad("under by .002", World::Even(0.948, 0.03), 2490.0),
        Column::bad(".005", World::Even(0.945, 0.03), 410.0),
        Column::bad(".01", World::Even(0.94, 0.03), 100.0),
        Column::bad(".02", World::Even(0.93, 0.03), 30.0),
        Column::bad(".05", World::Even(0.9, 0.03), 20.0),
        Column::bad("5 % of prompts around .27", World::Tail(0.965, 0.025, 0.05, 0.27), 490.0),
        Column::bad(".02 from prompt 2,000 on", World::Late(0.93, 2000), 60.0).from(2000),
    ];
    let title = "Mean cosine, threshold .95: false rollbacks in %, then prompts until it is found";
    print((title, LOOK), &RULES, &columns, Size::of(short, 2000, 400), promises, one);
}

fn draw(world: World, random: &mut Random, i: u32) -> f64 {
    let even = |random: &mut Random, mean: f64, sd: f64| {
        let total = (mean * (1.0 - mean) / (sd * sd) - 1.0).max(0.05);
        1.0 - random.beta((1.0 - mean) * total, mean * total)
    };
    match world {
        World::Even(mean, sd) => even(random, mean, sd),
        World::Tail(mean, sd, bad, around) => {
            if random.happens(bad) {
                even(random, around, 0.05)
            } else {
                even(random, mean, sd)
            }
        }
        World::Late(mean, from) => even(random, if i < from { 0.965 } else { mean }, 0.03),
    }
}

fn one(world: &World, seed: u64) -> Fired {
    let (mut random, mut reference) = (Random::new(seed), Random::new(seed ^ 0x5eed));
    let mut firsts = Firsts::new(RULES.len());
    let test = BoundedMean::new(M, 0.0, 1.0);
    let (mut plain, mut restarting) = (Wealth::default(), Restarting::default());
    let prior = RestartPrior::new(PROMPTS / LOOK);
    let (mut all, mut values) = (Sums::default(), Vec::with_capacity(PROMPTS as usize));
    let (mut flagger, mut argo) = (Checks::default(), Checks::default());
    let (mut points, mut control) = (Vec::new(), Vec::new());
    for look in 1..=PROMPTS / LOOK {
        let mut increments = NOTHING;
        for i in (look - 1) * LOOK..look * LOOK {
            let x = draw(*world, &mut random, i);
            all.add(x);
            values.push(x);
            accumulate(&mut increments, &test.below(x));
        }
        plain.add(&increments);
        restarting.tick(prior, look, &increments);
        let at = look * LOOK;
        let mean = |n: usize| values[values.len() - n..].iter().sum::<f64>() / n as f64;
        firsts.at(0, at, || at >= 100 && mean(100) < M);
        if at.is_multiple_of(100) {
            let bad = mean(100) < M;
            let (soon, at_once) = (flagger.fails(bad, 5), argo.fails(bad, 1));
            firsts.at(1, at, || soon);
            firsts.at(2, at, || at_once);
        }
        let z = (all.mean() - M) / all.error().sqrt();
        firsts.at(3, at, || at >= 30 && z < -Z);
        firsts.at(4, at, || at == PROMPTS && z < -Z);
        let difference = all.mean() - M;
        firsts.at(5, at, || at >= 30 && difference < 0.0 && msprt_ln_e(difference, all.error(), 0.01) >= BOUND);
        if at.is_multiple_of(50) {
            points.push(mean(50));
            control.push((0..50).map(|_| draw(World::Even(M, 0.03), &mut reference, 0)).sum::<f64>() / 50.0);
        }
        firsts.at(6, at, || {
            at >= 1000 && at.is_multiple_of(500) && kayenta(&control, &points, 1.0) == Classification::Low
        });
        firsts.at(7, at, || plain.ln_e() >= BOUND);
        firsts.at(8, at, || restarting.ln_e(prior, look) >= BOUND);
    }
    firsts.0
}
