//! Bets per request and per user: E[e] ≤ 1 by exact enumeration, and what bad input gets.

#![allow(clippy::unwrap_used, reason = "a test may")]

use bitnet_core::stats::{
    asymptotic::{self, Moments},
    detector::Detector,
    histogram::CELLS,
    label_odds::{Dominance, Odds, VIEWS},
    mann_whitney::{Classification, kayenta, mann_whitney},
    rate_ratio::RateRatio,
    sample_ratio::{self, dirichlet_ln_e},
    wealth::Wealth,
};
use proptest::prelude::*;
use statrs::distribution::{Binomial, Discrete};

const ROUNDING: f64 = 1e-9;

/// E[e] over two binomial arms.
fn expected<const K: usize>(
    (theta_c, n_c): (f64, u64),
    (theta_b, n_b): (f64, u64),
    increments: impl Fn((u64, u64), (u64, u64)) -> [f64; K],
) -> f64 {
    let (c, b) = (Binomial::new(theta_c, n_c).unwrap(), Binomial::new(theta_b, n_b).unwrap());
    let mut sum = 0.0;
    for (s_c, s_b) in (0..=n_c).flat_map(|s_c| (0..=n_b).map(move |s_b| (s_c, s_b))) {
        let mut wealth = Wealth::default();
        wealth.add(&increments((s_c, n_c), (s_b, n_b)));
        sum += c.pmf(s_c) * b.pmf(s_b) * wealth.ln_e().exp();
    }
    sum
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bets_on_a_rate_ratio_are_fair_or_worse(
        rho in 0.2..4.0f64,
        delta in prop_oneof![Just(0.0), 0.0..0.2f64],
        theta_b in 0.0..1.0f64,
        part in 0.0..=1.0f64,
        n_c in 1..14u64,
        n_b in 1..14u64,
    ) {
        let edge = rho * theta_b + delta;
        prop_assume!(edge <= 1.0);
        let worse = RateRatio::worse(rho, delta);
        let not_worse = RateRatio::not_worse(rho, delta);
        let (inside, outside) = (edge * part, edge + (1.0 - edge) * part);
        let found = expected((inside, n_c), (theta_b, n_b), |c, b| worse.increments(c, b));
        prop_assert!(found <= 1.0 + ROUNDING, "worse: {found}");
        let found = expected((outside, n_c), (theta_b, n_b), |c, b| not_worse.increments(c, b));
        prop_assert!(found <= 1.0 + ROUNDING, "not worse: {found}");
    }

    #[test]
    fn bets_on_label_odds_are_fair_or_worse(
        guess in 0.001..0.999f64,
        theta_b in 0.0..=1.0f64,
        part in 0.0..=1.0f64,
        n_c in 1..14u64,
        n_b in 1..14u64,
    ) {
        let (larger, smaller, different) = (Odds::larger(guess), Odds::smaller(guess), Odds::different(guess));
        let found = expected((theta_b * part, n_c), (theta_b, n_b), |c, b| larger.increments(c, b));
        prop_assert!(found <= 1.0 + ROUNDING, "larger: {found}");
        let above = theta_b + (1.0 - theta_b) * part;
        let found = expected((above, n_c), (theta_b, n_b), |c, b| smaller.increments(c, b));
        prop_assert!(found <= 1.0 + ROUNDING, "smaller: {found}");
        let found = expected((theta_b, n_c), (theta_b, n_b), |c, b| different.increments(c, b));
        prop_assert!(found <= 1.0 + ROUNDING, "different: {found}");
    }

    /// Every pair of distributions over four cells, the candidate's with some mass moved down.
    #[test]
    fn bets_on_dominated_histograms_are_fair_or_worse(
        history in prop::collection::vec(1..50u64, 4),
        stable in prop::collection::vec(0.01..1.0f64, 4),
        moved in prop::array::uniform3(0.0..=1.0f64),
        at in prop::array::uniform4(0..8usize),
        (n_c, n_b) in (1..4usize, 1..4usize),
    ) {
        // Four cells anywhere in the window, in rising order.
        let places: Vec<usize> = at.iter().scan(0, |cell, step| { *cell += step; Some(std::mem::replace(cell, *cell + 1).min(CELLS - 1)) }).collect();
        prop_assume!(places.windows(2).all(|w| w[0] < w[1]));
        let mut known = [0; CELLS];
        for (place, n) in places.iter().zip(&history) {
            known[*place] = *n;
        }
        let test = Dominance::of(&known).unwrap();
        for ell in test.ell() {
            prop_assert!(ell.iter().all(|l| *l > 0.0) && ell.windows(2).all(|w| w[0] <= w[1]), "{ell:?}");
        }
        let total: f64 = stable.iter().sum();
        let f_b: Vec<f64> = stable.iter().map(|x| x / total).collect();
        let mut f_c = f_b.clone();
        for (j, part) in moved.iter().enumerate() {
            let mass = f_c[j + 1] * part;
            f_c[j + 1] -= mass;
            f_c[j] += mass;
        }
        let mut sum = [0.0; VIEWS];
        let units = n_c + n_b;
        for code in 0..4usize.pow(units as u32) {
            let (mut c, mut b, mut p) = ([0; CELLS], [0; CELLS], 1.0);
            for unit in 0..units {
                let j = code / 4usize.pow(unit as u32) % 4;
                if unit < n_c { c[places[j]] += 1; p *= f_c[j]; } else { b[places[j]] += 1; p *= f_b[j]; }
            }
            for (s, i) in sum.iter_mut().zip(test.increments(&c, &b)) {
                *s += p * i.exp();
            }
        }
        for (view, e) in sum.iter().enumerate() {
            prop_assert!(*e <= 1.0 + ROUNDING, "{} ({view}): {e}", Dominance::name(view));
        }
    }

    #[test]
    fn bets_on_the_split_are_fair(weight in 0.001..0.999f64, n in 1..40u64) {
        let arrivals = Binomial::new(weight, n).unwrap();
        let mut sum = [0.0; sample_ratio::RATIOS];
        let mut mixed = 0.0;
        for c in 0..=n {
            for (s, i) in sum.iter_mut().zip(sample_ratio::increments(weight, c, n - c)) {
                *s += arrivals.pmf(c) * i.exp();
            }
            mixed += arrivals.pmf(c) * dirichlet_ln_e(weight, 100.0, c, n - c).unwrap().exp();
        }
        for e in sum {
            prop_assert!((e - 1.0).abs() < ROUNDING, "{e}");
        }
        prop_assert!((mixed - 1.0).abs() < 1e-8, "{mixed}");
    }

    /// E[M_t] = t exactly where each observation's bets are fair: the average run length.
    #[test]
    fn a_detector_gains_one_per_observation(p in 0.05..0.95f64, f in 0.01..0.97f64, t in 1..9u32) {
        // Payoff (1 − p)/p with probability p, −1 otherwise.
        let outcomes = [((1.0 - p) / p * f).ln_1p(), (-f).ln_1p()];
        let mut mean = 0.0;
        for code in 0..1u32 << t {
            let (mut detector, mut probability) = (Detector::<1>::default(), 1.0);
            for i in 0..t {
                let one = code >> i & 1 == 1;
                probability *= if one { p } else { 1.0 - p };
                detector.observe(&[outcomes[usize::from(!one)]]);
            }
            mean += probability * detector.ln_m().exp();
        }
        prop_assert!((mean - f64::from(t)).abs() < 1e-9 * f64::from(t), "{mean} after {t}");
    }

    #[test]
    fn a_stored_detector_goes_on_bit_for_bit(xs in prop::collection::vec(-0.5..0.5f64, 1..60), cut in 0..60usize) {
        let (mut whole, mut parts) = (Detector::<3>::default(), Detector::<3>::default());
        for (i, x) in xs.iter().enumerate() {
            if i == cut {
                parts = Detector::from_steps(parts.to_steps());
            }
            for detector in [&mut whole, &mut parts] {
                detector.observe(&[*x, -x, x / 3.0]);
                detector.settle();
            }
        }
        prop_assert_eq!(whole, parts);
    }

    /// Whatever the counts, no engine gives a number that is none.
    #[test]
    fn any_counts_give_finite_evidence(
        s_c in any::<u32>(), n_c in any::<u32>(), s_b in any::<u32>(), n_b in any::<u32>(), x in any::<f64>(),
    ) {
        let (c, b) = ((u64::from(s_c), u64::from(n_c)), (u64::from(s_b), u64::from(n_b)));
        prop_assert!(RateRatio::worse(1.0, 0.002).increments(c, b).iter().all(|i| i.is_finite()));
        prop_assert!(RateRatio::not_worse(1.5, 0.0).increments(c, b).iter().all(|i| i.is_finite()));
        prop_assert!(Odds::larger(x).increments(c, b).iter().all(|i| i.is_finite()));
        prop_assert!(Odds::different(x).increments(c, b).iter().all(|i| i.is_finite()));
        prop_assert!(sample_ratio::increments(x, c.1, b.1).iter().all(|i| i.is_finite()));
    }
}

#[test]
fn no_traffic_is_no_evidence() {
    for (c, b) in [((0, 0), (0, 0)), ((0, 0), (7, 90)), ((5, 9), (0, 0))] {
        assert_eq!(RateRatio::worse(1.0, 0.0).increments(c, b), [0.0; 8]);
        assert_eq!(RateRatio::not_worse(1.0, 0.002).increments(c, b), [0.0; 8]);
        assert_eq!(Odds::larger(0.05).increments(c, b), [0.0; 8]);
    }
    let some = std::array::from_fn(|i| i as u64);
    let test = Dominance::of(&some).unwrap();
    assert_eq!(test.increments(&[0; CELLS], &some), [0.0; VIEWS]);
    assert_eq!(test.increments(&some, &[0; CELLS]), [0.0; VIEWS]);
    assert_eq!(Dominance::of(&[0; CELLS]), None, "without a history there are no bets");
    assert_eq!(sample_ratio::increments(0.5, 0, 0), [0.0; 10]);
    assert_eq!(sample_ratio::increments(0.0, 5, 5), [0.0; 10], "no split, no test");
    assert_eq!(sample_ratio::increments(f64::NAN, 5, 5), [0.0; 10]);
    assert_eq!(dirichlet_ln_e(1.0, 100.0, 5, 5), None);
    assert_eq!(dirichlet_ln_e(0.5, f64::NAN, 5, 5), None);
    assert_eq!(Detector::<8>::default().ln_m(), f64::NEG_INFINITY);
}

#[test]
fn more_failures_than_requests_are_all_of_them() {
    let (test, odds) = (RateRatio::worse(1.0, 0.0), Odds::larger(0.05));
    assert_eq!(test.increments((9, 5), (0, 5)), test.increments((5, 5), (0, 5)));
    assert_eq!(odds.increments((9, 5), (0, 5)), odds.increments((5, 5), (0, 5)));
}

/// The view with the largest wealth names what is wrong.
#[test]
fn views_name_what_they_see() {
    let mut history = [0; CELLS];
    for (j, n) in history.iter_mut().enumerate() {
        *n = if j < 20 {
            45
        } else if j < 25 {
            16
        } else {
            2
        };
    }
    let test = Dominance::of(&history).unwrap();
    let loudest = |candidate: &[u64; CELLS]| {
        let found = test.increments(candidate, &history);
        let best = (0..VIEWS).max_by(|a, b| found[*a].total_cmp(&found[*b])).unwrap();
        (Dominance::name(best), found[best])
    };
    let mut slower = [0; CELLS];
    for j in 0..CELLS {
        slower[(j + 3).min(CELLS - 1)] += history[j];
    }
    let (name, evidence) = loudest(&slower);
    assert!(name == "body" && evidence > 10.0, "{name} {evidence}");
    let mut tail = history;
    tail[CELLS - 1] += 40;
    let (name, evidence) = loudest(&tail);
    assert!(name == "p99" && evidence > 10.0, "{name} {evidence}");
    assert!(test.increments(&history, &history).iter().all(|i| *i <= 0.0), "equal arms are no evidence");
}

#[test]
fn moments_know_what_cannot_be() {
    let mut m = Moments::default();
    for x in [1.0, f64::NAN, f64::INFINITY, -7.0, 3.0] {
        m.add(x, (0.0, 5.0));
    }
    assert_eq!((m.n, m.sum, m.squares), (5, 9.0, 35.0));
    assert!(m.are_of((0.0, 5.0)) && !m.are_of((0.0, 2.0)));
    for wrong in [
        Moments { n: 2, sum: f64::NAN, squares: 1.0 },
        Moments { n: 2, sum: 1.0, squares: f64::INFINITY },
        Moments { n: 2, sum: -1.0, squares: 1.0 },
        Moments { n: 2, sum: 11.0, squares: 61.0 },
        Moments { n: 2, sum: 8.0, squares: 1.0 },
        Moments { n: 0, sum: 1.0, squares: 1.0 },
    ] {
        assert!(!wrong.are_of((0.0, 5.0)), "{wrong:?}");
    }
    assert_eq!(Moments::default().mean(), None);
    assert_eq!(Moments { n: 1, sum: 1.0, squares: 1.0 }.variance(), None);
    let few = Moments { n: asymptotic::LEAST - 1, sum: 1.0, squares: 1.0 };
    let many = Moments { n: 5000, sum: 1.0, squares: 1.0 };
    assert_eq!(asymptotic::difference(&few, &many, 0.1, 0.05), None, "too few for an asymptotic claim");
    assert!(asymptotic::difference(&many, &many, 0.1, 0.05).unwrap().1.is_finite());
}

/// Narrowest where it was planned to be.
#[test]
fn a_planned_interval_is_narrowest_there() {
    let rho = asymptotic::narrowest_at(10_000.0, 0.05);
    let at_plan = asymptotic::half_width(10_000.0, 1.0, rho, 0.05);
    for other in [rho * 0.5, rho * 0.8, rho * 1.25, rho * 2.0] {
        assert!(asymptotic::half_width(10_000.0, 1.0, other, 0.05) > at_plan);
    }
}

#[test]
fn kayenta_wants_a_clear_shift() {
    let base: Vec<f64> = (0..30).map(|i| 100.0 + f64::from(i * 7 % 30)).collect();
    let shifted = |by: f64| -> Vec<f64> { base.iter().map(|x| x + by).collect() };
    assert_eq!(kayenta(&base, &base, 1.0), Classification::Pass);
    assert_eq!(kayenta(&base, &shifted(2.0), 1.0), Classification::Pass, "significant for no one");
    assert_eq!(kayenta(&base, &shifted(15.0), 1.0), Classification::High);
    assert_eq!(kayenta(&base, &shifted(-15.0), 1.0), Classification::Low);
    assert_eq!(kayenta(&base, &shifted(15.0), 1.2), Classification::Pass, "an allowed increase of 20 %");
    assert_eq!(kayenta(&[1.0; 5], &[1.0; 5], 1.0), Classification::Pass);
    assert_eq!(kayenta(&[], &base, 1.0), Classification::Pass);
    assert_eq!(kayenta(&base, &[f64::NAN; 9], 1.0), Classification::Pass);
    let found = mann_whitney(&base, &shifted(15.0), 0.98).unwrap();
    assert!(found.interval.0 < 15.0 && 15.0 < found.interval.1 && found.interval.0 > 3.0, "{found:?}");
    let tiny = mann_whitney(&[1.0], &[2.0], 0.98).unwrap();
    assert_eq!((tiny.u, tiny.interval), (1.0, (1.0, 1.0)), "two values bound nothing");
}
