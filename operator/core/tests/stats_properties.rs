//! What the engines promise, by exact enumeration where the space is finite: no strategy of looking can make a true null
//! look false more often than its level, because E[e] ≤ 1.

#![allow(clippy::unwrap_used, reason = "a test may")]

use bitnet_core::{
    evidence::{Histogram, LiveArm},
    stats::{
        bets::{BoundedMean, FRACTIONS, Increments, NOTHING, Share, accumulate, bet},
        counters::{PodCounters, add, delta},
        histogram::{CELLS, OVERFLOW, Shift, Window, upper_edge},
        thinning::{Draws, hypergeometric, thin},
        votes::{self, CLIP, CLIP_PROMOTE_ERRORS},
        wealth::{RestartPrior, Restarting, Wealth},
    },
};
use proptest::prelude::*;
use statrs::distribution::{Binomial, Discrete, Hypergeometric};

const ROUNDING: f64 = 1e-12;

/// All sequences of `length` outcomes with their probabilities.
fn sequences(outcomes: &[(f64, f64)], length: u32) -> Vec<(Vec<f64>, f64)> {
    let mut all = vec![(Vec::new(), 1.0)];
    for _ in 0..length {
        all = all
            .iter()
            .flat_map(|(xs, p): &(Vec<f64>, f64)| {
                outcomes.iter().map(move |(x, q)| (xs.iter().copied().chain([*x]).collect(), p * q))
            })
            .collect();
    }
    all
}

/// E[e] of the plain grid and of the mixture over restarts, with one observation per tick.
fn expected(outcomes: &[(f64, f64)], length: u32, horizon: u32, increments: impl Fn(f64) -> Increments) -> (f64, f64) {
    let prior = RestartPrior::new(horizon);
    let (mut plain, mut restarting) = (0.0, 0.0);
    for (xs, p) in sequences(outcomes, length) {
        let (mut wealth, mut mixture) = (Wealth::default(), Restarting::default());
        for (i, x) in xs.into_iter().enumerate() {
            wealth.add(&increments(x));
            mixture.tick(prior, i as u32 + 1, &increments(x));
        }
        plain += p * wealth.ln_e().exp();
        restarting += p * mixture.ln_e(prior, length).exp();
    }
    (plain, restarting)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three values in [0, 1] with any probabilities; the threshold lies where the null is just true, or deeper in it.
    #[test]
    fn bets_on_a_mean_are_fair_or_worse(
        xs in prop::array::uniform3(0.0..=1.0f64),
        ps in prop::array::uniform3(0.01..1.0f64),
        slack in 0.0..0.2f64,
        horizon in 1..8u32,
    ) {
        let total: f64 = ps.iter().sum();
        let outcomes: Vec<_> = xs.iter().zip(ps).map(|(x, p)| (*x, p / total)).collect();
        let mean: f64 = outcomes.iter().map(|(x, p)| x * p).sum();
        // "The mean is below m" is false for any m up to the mean; "above" for any from it on.
        let (low, high) = (mean - slack, mean + slack);
        prop_assume!(low > 0.01 && high < 0.99);
        for found in [
            expected(&outcomes, 4, horizon, |x| BoundedMean::new(low, 0.0, 1.0).below(x)),
            expected(&outcomes, 4, horizon, |x| BoundedMean::new(high, 0.0, 1.0).above(x)),
        ] {
            prop_assert!(found.0 <= 1.0 + ROUNDING, "plain {}", found.0);
            prop_assert!(found.1 <= 1.0 + ROUNDING, "restarting {}", found.1);
        }
        let exact = expected(&outcomes, 4, horizon, |x| BoundedMean::new(mean, 0.0, 1.0).below(x));
        prop_assert!((exact.0 - 1.0).abs() < 1e-9, "at the boundary a bet is fair: {}", exact.0);
    }

    #[test]
    fn bets_on_a_share_are_fair_or_worse(p in 0.001..0.999f64, part in 0.0..=1.0f64, n in 1..40u64) {
        let (above, below) = (Share::above(p), Share::below(p));
        let expected = |test: &Share, theta: f64| -> f64 {
            let binomial = Binomial::new(theta, n).unwrap();
            (0..=n).map(|ones| {
                let mut wealth = Wealth::default();
                wealth.add(&test.increments(ones, n - ones));
                binomial.pmf(ones) * wealth.ln_e().exp()
            }).sum()
        };
        prop_assert!(expected(&above, p * part) <= 1.0 + 1e-9);
        prop_assert!(expected(&below, p + (1.0 - p) * part) <= 1.0 + 1e-9);
        prop_assert!((expected(&above, p) - 1.0).abs() < 1e-9);
    }

    /// Without data a mixture only spends its prior, and rounding for storage takes wealth, never gives any.
    #[test]
    fn no_data_is_no_evidence(horizon in 1..50u32, ticks in 1..100u32) {
        let prior = RestartPrior::new(horizon);
        let (mut mixture, mut settled) = (Restarting::default(), Restarting::default());
        for tick in 1..=ticks {
            mixture.tick(prior, tick, &NOTHING);
            settled.tick(prior, tick, &NOTHING);
            settled.settle();
            prop_assert!(mixture.ln_e(prior, tick).abs() < 1e-9);
            let lost = mixture.ln_e(prior, tick) - settled.ln_e(prior, tick);
            prop_assert!((-1e-12..1e-6 * f64::from(tick)).contains(&lost), "settling lost {lost}");
        }
    }

    #[test]
    fn the_order_of_observations_does_not_matter(xs in prop::collection::vec(0.0..=1.0f64, 1..40), turn in 0..40usize) {
        let test = BoundedMean::new(0.9, 0.0, 1.0);
        let total = |xs: &[f64]| {
            let mut sum = NOTHING;
            for x in xs {
                accumulate(&mut sum, &test.below(*x));
            }
            let mut wealth = Wealth::default();
            wealth.add(&sum);
            wealth.ln_e()
        };
        let mut other = xs.clone();
        other.rotate_left(turn % xs.len());
        other.reverse();
        prop_assert!((total(&xs) - total(&other)).abs() < 1e-9);
        // And two workers' sums are the sum of the union.
        let (a, b) = xs.split_at(turn % xs.len());
        let mut wealth = Wealth::default();
        for part in [a, b] {
            let mut sum = NOTHING;
            for x in part {
                accumulate(&mut sum, &test.below(*x));
            }
            wealth.add(&sum);
        }
        prop_assert!((wealth.ln_e() - total(&xs)).abs() < 1e-9);
    }

    #[test]
    fn swapping_the_arms_turns_the_vote(
        c in prop::collection::vec(0..50u64, 6),
        b in prop::collection::vec(0..50u64, 6),
        p0 in 1e-4..0.5f64,
        rate in 1e-4..0.5f64,
    ) {
        prop_assert!((votes::body(&c, &b, CLIP) + votes::body(&b, &c, CLIP)).abs() < 1e-12);
        let (n_c, n_b) = (c.iter().sum(), b.iter().sum());
        let (over_c, over_b) = (c[4] + c[5], b[4] + b[5]);
        let tail = votes::tail((over_c, n_c), (over_b, n_b), p0, CLIP);
        prop_assert_eq!(tail, -votes::tail((over_b, n_b), (over_c, n_c), p0, CLIP));
        let errors = votes::errors((over_c, n_c), (over_b, n_b), 0.0, rate, CLIP);
        prop_assert_eq!(errors, -votes::errors((over_b, n_b), (over_c, n_c), 0.0, rate, CLIP));
        prop_assert!(tail.abs() <= 1.0 && errors.abs() <= 1.0);
    }

    /// Two blocks of requests with *any* dependence between them, divided between the arms by lot: the expectation over
    /// the lots is at most 1, for body, tail and errors. This is the exchangeability that a vote needs, and nothing more.
    #[test]
    fn votes_on_exchangeable_arms_are_fair_whatever_the_burst(
        values in prop::collection::vec(0..6usize, 8),
        p0 in 1e-4..0.5f64,
        excess in 0.0..0.5f64,
    ) {
        let mut sums = [0.0; 3];
        let mut lots = 0.0;
        for lot in 0u32..1 << 8 {
            if lot.count_ones() != 4 {
                continue;
            }
            let (mut c, mut b) = ([0u64; 6], [0u64; 6]);
            for (i, &value) in values.iter().enumerate() {
                if lot >> i & 1 == 1 { c[value] += 1 } else { b[value] += 1 }
            }
            let tail = |cells: &[u64; 6]| (cells[4] + cells[5], 4);
            let found = [
                votes::body(&c, &b, CLIP),
                votes::tail(tail(&c), tail(&b), p0, CLIP),
                votes::errors(tail(&c), tail(&b), excess, p0, CLIP),
            ];
            for (sum, vote) in sums.iter_mut().zip(found) {
                let mut wealth = Wealth::default();
                wealth.add(&votes::worse(vote));
                *sum += wealth.ln_e().exp();
            }
            lots += 1.0;
        }
        for sum in sums {
            prop_assert!(sum / lots <= 1.0 + ROUNDING, "{}", sum / lots);
        }
    }

    /// A candidate's request that was quicker cannot speak louder against it.
    #[test]
    fn quicker_is_never_worse(
        c in prop::array::uniform6(0..20u64),
        b in prop::collection::vec(0..20u64, 6),
        from in 1..6usize,
    ) {
        prop_assume!(c[from] > 0);
        let mut quicker = c;
        quicker[from] -= 1;
        quicker[from - 1] += 1;
        prop_assert!(votes::body(&quicker, &b, CLIP) <= votes::body(&c, &b, CLIP));
    }

    #[test]
    fn a_subsample_is_a_part_of_the_whole(
        counts in prop::collection::vec(0..2_000u64, 1..40),
        part in 0.0..=1.0f64,
        seed in any::<u64>(),
    ) {
        let all: u64 = counts.iter().sum();
        let size = (all as f64 * part) as u64;
        let mut thinned = counts.clone();
        thin(&mut thinned, size, &mut Draws::new(seed, 1));
        prop_assert_eq!(thinned.iter().sum::<u64>(), size.min(all));
        prop_assert!(thinned.iter().zip(&counts).all(|(t, c)| t <= c));
        let mut again = counts.clone();
        thin(&mut again, size, &mut Draws::new(seed, 1));
        prop_assert_eq!(thinned, again, "a replay draws the same");
    }

    /// Counters of a pod, with restarts at any time: what a watcher adds up never exceeds what happened, and misses only
    /// what fell between its last look at a process and that process's end.
    #[test]
    fn deltas_never_count_twice(steps in prop::collection::vec((0..5u64, 0..3u64, any::<bool>(), any::<bool>()), 1..30)) {
        let (mut sum, mut truth, mut restarts) = (LiveArm::default(), 0, 0);
        let mut pod = PodCounters { process: "p0".into(), ..PodCounters::default() };
        let mut known: Option<PodCounters> = None;
        for (i, (requests, in_flight, restart, look)) in steps.into_iter().enumerate() {
            if restart {
                restarts += 1;
                pod = PodCounters { process: format!("p{}", i + 1), ..PodCounters::default() };
            }
            pod.totals.requests += requests;
            truth += requests;
            pod.in_flight = in_flight;
            if look {
                add(&mut sum, &delta(known.as_ref(), Some(&pod)));
                known = Some(pod.clone());
            }
        }
        // What died with a process is known from the last look only: at most two requests here.
        prop_assert!(sum.requests - sum.errors <= truth, "{} of {truth}", sum.requests);
        prop_assert!(sum.errors <= 2 * restarts);
    }
}

#[test]
fn a_payoff_that_is_no_number_is_the_worst() {
    assert_eq!(bet(f64::NAN), bet(-1.0));
    assert_eq!(bet(f64::NEG_INFINITY), bet(-1.0));
    for (k, l) in bet(-1.0).into_iter().enumerate() {
        assert!((l - (1.0 - FRACTIONS[k]).ln()).abs() < 1e-15);
    }
    let test = BoundedMean::new(0.95, 0.0, 1.0);
    assert_eq!(test.below(f64::NAN), test.below(0.0), "no number counts as no similarity");
    assert_eq!(test.below(f64::INFINITY), test.below(1.0));
}

#[test]
fn an_empty_arm_has_no_vote() {
    assert_eq!(votes::body(&[0; 4], &[1, 2, 3, 4], CLIP), 0.0);
    assert_eq!(votes::tail((0, 0), (3, 9), 0.05, CLIP), 0.0);
    assert_eq!(votes::errors((3, 9), (0, 0), 0.1, 0.05, CLIP), 0.0);
}

/// Promotion on errors at the margin, the smaller arm holding at least .25 expected excess errors: with a clip of three
/// deviations the mean vote stays on the candidate's wrong side or so close to 0 that promotion is as rare as promised.
#[test]
fn error_votes_for_promotion_are_nearly_fair_at_the_margin() {
    for (excess, n) in [(0.02, 13u64), (0.02, 25), (0.002, 125), (0.1, 3)] {
        for base in [0.0, 0.0005, 0.002, 0.008] {
            let (candidate, stable) = (Binomial::new(base + excess, n).unwrap(), Binomial::new(base, n).unwrap());
            let rate = f64::max(base, 0.0005);
            let mean: f64 = (0..=n)
                .flat_map(|c| (0..=n).map(move |b| (c, b)))
                .map(|(c, b)| {
                    let vote = votes::errors((c, n), (b, n), excess, rate, CLIP_PROMOTE_ERRORS);
                    candidate.pmf(c) * stable.pmf(b) * vote
                })
                .sum();
            assert!(mean > -0.02, "excess {excess}, {n} requests, base {base}: mean vote {mean}");
        }
    }
}

#[test]
fn hypergeometric_draws_have_their_distribution() {
    // Expected counts of 20,000 draws against those found: the largest of these 11 cells deviates by less than five
    // standard deviations (chance of a false alarm below 1e-5, and the seed is fixed).
    for (population, marked, size) in [(50u64, 20u64, 10u64), (1_000, 10, 500), (40, 35, 30)] {
        let exact = Hypergeometric::new(population, marked, size).unwrap();
        let mut draws = Draws::new(7, population);
        let runs = 20_000u32;
        let mut found = vec![0u32; marked as usize + 1];
        for _ in 0..runs {
            found[hypergeometric(population, marked, size, &mut draws) as usize] += 1;
        }
        for (k, &n) in found.iter().enumerate() {
            let p = exact.pmf(k as u64);
            let deviation = (f64::from(runs) * p * (1.0 - p)).sqrt();
            assert!((f64::from(n) - f64::from(runs) * p).abs() <= 5.0 * deviation + 1.0, "{k} of {marked}: {n}");
        }
    }
    assert_eq!(hypergeometric(10, 10, 4, &mut Draws::new(1, 1)), 4);
    assert_eq!(hypergeometric(10, 0, 4, &mut Draws::new(1, 1)), 0);
    assert_eq!(hypergeometric(10, 20, 30, &mut Draws::new(1, 1)), 10, "no more than there are");
}

#[test]
fn thinning_one_by_one_and_by_cells_agree_on_average() {
    let counts = [4_000u64, 3_000, 2_000, 1_000];
    for size in [9_900u64, 5_000] {
        let mut sums = [0.0; 4];
        for seed in 0..400 {
            let mut thinned = counts;
            thin(&mut thinned, size, &mut Draws::new(seed, 2));
            for (sum, n) in sums.iter_mut().zip(thinned) {
                *sum += n as f64 / 400.0;
            }
        }
        for (sum, n) in sums.iter().zip(counts) {
            let expected = n as f64 * size as f64 / 10_000.0;
            assert!((sum - expected).abs() < 10.0, "{size}: {sum}, expected {expected}");
        }
    }
}

#[test]
fn a_margin_is_rounded_against_the_claim() {
    assert_eq!(Shift::of(1.2), Shift { worse: 2, not_worse: 2 });
    assert_eq!(Shift::of(1.44), Shift { worse: 4, not_worse: 4 });
    assert_eq!(Shift::of(1.5), Shift { worse: 5, not_worse: 4 });
    assert_eq!(Shift::of(1.0), Shift { worse: 0, not_worse: 0 });
    assert!(Shift::of(f64::INFINITY).worse <= OVERFLOW + 126);
    assert!((upper_edge(0) - 1.0).abs() < 1e-12 && (upper_edge(2) - 1.2).abs() < 1e-12);
    assert!(upper_edge(OVERFLOW).is_infinite());
}

#[test]
fn quantiles_are_edges_and_windows_hold_them() {
    // 1,000 observations: 950 in bucket -10, 40 in -4, 10 in 3.
    let history = Histogram([(-10, 950), (-4, 40), (3, 10)].into());
    assert_eq!(history.quantile_bucket(0.5), Some(-10));
    assert_eq!(history.quantile_bucket(0.95), Some(-10));
    assert_eq!(history.quantile_bucket(0.951), Some(-4));
    assert_eq!(history.quantile_bucket(0.999), Some(3));
    assert_eq!(history.above(-10), 50);
    assert_eq!(Histogram::default().quantile_bucket(0.5), None);

    let window = Window::of(&history).unwrap();
    assert_eq!(window.p95().p0, 0.05);
    assert_eq!(window.p99().p0, 0.01);
    let mut cells = [0; CELLS];
    window.add(&mut cells, &history);
    assert_eq!(window.p95().over(&cells), (50, 1_000));
    assert_eq!(window.p99().over(&cells), (10, 1_000));

    // A candidate that is slower by exactly the margin looks like stable on both sides; one bucket more does not.
    let slower = |by: i16| Histogram(history.0.iter().map(|(b, n)| (b + by, *n)).collect());
    let shift = Shift::of(1.2);
    for by in [2, 3, 8, 9, 17] {
        let mut worse = [0; CELLS];
        window.add_worse(&mut worse, &slower(by), shift);
        let over: u64 = history.0.iter().filter(|(bucket, _)| **bucket + by - 2 > -4).map(|(_, n)| *n).sum();
        assert_eq!(window.p99().over(&worse), (over, 1_000), "slower by {by}");
    }
    let mut same = [0; CELLS];
    window.add_worse(&mut same, &slower(2), shift);
    assert_eq!(same, cells);
}

#[test]
fn an_observation_above_all_edges_stays_the_slowest_for_promotion() {
    let history = Histogram([(50, 900), (54, 100)].into());
    let window = Window::of(&history).unwrap();
    let candidate = Histogram([(54, 10)].into());
    let shift = Shift::of(1.5);
    let (mut worse, mut not_worse) = ([0; CELLS], [0; CELLS]);
    window.add_worse(&mut worse, &candidate, shift);
    window.add_not_worse(&mut not_worse, &candidate, shift);
    let cell = |cells: &[u64; CELLS]| cells.iter().position(|n| *n > 0).unwrap();
    assert_eq!(cell(&not_worse) - cell(&worse), 5);
}

#[test]
fn windows_of_odd_histories_hold() {
    assert_eq!(Window::of(&Histogram::default()), None);
    // Everything in one bucket, at either end: p0 keeps its floor, nothing divides by zero.
    for bucket in [-126, 54] {
        let window = Window::of(&Histogram([(bucket, 5)].into())).unwrap();
        assert_eq!(window.p99().p0, 1e-4);
        assert_eq!(Window::from_parts(window.first(), window.p95(), window.p99()), Some(window));
    }
    // A median far below the 99th percentile: its edge is moved into the window, with the share that lies above it.
    let wide = Window::of(&Histogram([(-100, 960), (0, 40)].into())).unwrap();
    assert_eq!(wide.p95().p0, 0.04);
    let mut tail = wide.p95();
    tail.p0 = f64::NAN;
    assert_eq!(Window::from_parts(0, tail, wide.p99()), None);
}

#[test]
fn a_crash_counts_what_was_running() {
    let pod = |process: &str, requests, errors, in_flight| PodCounters {
        process: process.into(),
        totals: LiveArm { requests, errors, ..LiveArm::default() },
        in_flight,
    };
    let found = |a: Option<&PodCounters>, b: Option<&PodCounters>| {
        let d = delta(a, b);
        (d.requests, d.errors)
    };
    let before = pod("a", 100, 2, 3);
    assert_eq!(found(None, Some(&before)), (0, 0), "first sight sets the reference");
    assert_eq!(found(Some(&before), Some(&pod("a", 110, 2, 0))), (10, 0));
    assert_eq!(found(Some(&before), Some(&pod("b", 7, 1, 0))), (10, 4), "7 since, and 3 that died");
    assert_eq!(found(Some(&before), Some(&pod("a", 7, 1, 0))), (10, 4), "counters that fall are another process");
    assert_eq!(found(Some(&before), None), (0, 0), "a pod that vanished");
}
