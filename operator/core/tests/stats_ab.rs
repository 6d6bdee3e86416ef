//! The judge of A/B tests: level and power with a look after every tick, mismatches, and what bad input gets.

#![allow(clippy::unwrap_used, reason = "a test may")]

use bitnet_core::{
    evidence::{
        ab::{Ab, AbMetric, AbSettings, AbTick, AbVerdict},
        codec::{Reader, Writer},
    },
    stats::{asymptotic::Moments, thinning::Draws},
};
use statrs::distribution::{Binomial, DiscreteCDF};

fn happens(draws: &mut Draws, n: u64, p: f64) -> u64 {
    (0..n).filter(|_| draws.uniform() < p).count() as u64
}

fn converted(n: u64, ones: u64) -> Moments {
    Moments { n, sum: ones as f64, squares: ones as f64 }
}

/// Runs a conversion test of `ticks` ticks with 200 users per arm each.
fn conversion(seed: u64, ticks: u64, (p_c, p_b): (f64, f64)) -> (AbVerdict, u64) {
    let settings = AbSettings::conversion();
    let mut draws = Draws::new(seed, 5);
    let mut test = Ab::new(&settings);
    for number in 1..=ticks {
        let outcomes = (converted(200, happens(&mut draws, 200, p_c)), converted(200, happens(&mut draws, 200, p_b)));
        let tick = AbTick { number, share: 0.5, assigned: (200, 200), outcomes, last: number == ticks };
        let said = test.step(&settings, &tick);
        if said.verdict != AbVerdict::Undecided {
            return (said.verdict, number);
        }
    }
    panic!("the last tick ends a test");
}

/// Most of `runs` at a rate of `alpha`, but for one seed in a million.
fn most(runs: u64, alpha: f64) -> u64 {
    Binomial::new(alpha, runs).unwrap().inverse_cdf(1.0 - 1e-6)
}

#[test]
fn equal_conversions_are_seldom_called_different() {
    let runs = 400;
    let wrong =
        (0..runs).filter(|s| conversion(*s, 60, (0.05, 0.05)).0 != AbVerdict::NoDifferenceProven).count() as u64;
    println!("{wrong} of {runs} false verdicts, limit {}", most(runs, 0.05));
    assert!(wrong <= most(runs, 0.05), "{wrong} of {runs}");
}

#[test]
fn different_conversions_are_found_on_the_right_side() {
    for (rates, expected) in [((0.08, 0.05), AbVerdict::CandidateBetter), ((0.05, 0.08), AbVerdict::CandidateWorse)] {
        let mut ends: Vec<u64> = (0..40)
            .map(|seed| {
                let (verdict, tick) = conversion(seed, 200, rates);
                assert_eq!(verdict, expected, "seed {seed}");
                tick
            })
            .collect();
        ends.sort_unstable();
        println!("{rates:?}: median {} ticks of 200 users per arm", ends[20]);
        assert!(ends[20] <= 15, "about 1,500 users per arm: {}", ends[20]);
    }
}

/// A skewed value: most users spend nothing. 20 ticks of 500 users per arm.
fn spending(seed: u64, factor: f64) -> AbVerdict {
    let settings = AbSettings { metric: AbMetric::Mean { low: 0.0, high: 50.0 }, ..AbSettings::conversion() };
    let mut draws = Draws::new(seed, 6);
    let mut test = Ab::new(&settings);
    let arm = |draws: &mut Draws, factor: f64| {
        let mut m = Moments::default();
        for _ in 0..500 {
            let spent = if draws.uniform() < 0.2 { -8.0 * (1.0 - draws.uniform()).ln() * factor } else { 0.0 };
            m.add(spent, (0.0, 50.0));
        }
        m
    };
    let mut verdict = AbVerdict::Undecided;
    for number in 1..=20 {
        let outcomes = (arm(&mut draws, factor), arm(&mut draws, 1.0));
        let tick = AbTick { number, share: 0.5, assigned: (500, 500), outcomes, last: number == 20 };
        let said = test.step(&settings, &tick);
        assert!(number >= 2 || said.verdict == AbVerdict::Undecided, "no asymptotic verdict before 1,000 users");
        verdict = said.verdict;
    }
    verdict
}

#[test]
fn means_keep_their_level_and_find_differences() {
    let runs = 200;
    let wrong = (0..runs).filter(|s| spending(*s, 1.0) != AbVerdict::NoDifferenceProven).count() as u64;
    println!("{wrong} of {runs} false verdicts, limit {}", most(runs, 0.05));
    assert!(wrong <= most(runs, 0.05));
    let found = |factor, verdict| (0..20).filter(|s| spending(*s, factor) == verdict).count();
    assert_eq!(found(1.4, AbVerdict::CandidateBetter), 20);
    assert_eq!(found(0.6, AbVerdict::CandidateWorse), 20);
}

/// Users arrive; a part of the candidate's is lost on the way.
fn arrivals(seed: u64, ticks: u64, lost: f64, share: impl Fn(u64) -> f64) -> Option<u64> {
    let settings = AbSettings::conversion();
    let mut draws = Draws::new(seed, 8);
    let mut test = Ab::new(&settings);
    (1..=ticks).find(|&number| {
        let c = happens(&mut draws, 200, share(number));
        let kept = c - happens(&mut draws, c, lost);
        let tick = AbTick { number, share: share(number), assigned: (kept, 200 - c), ..AbTick::default() };
        test.step(&settings, &tick).verdict == AbVerdict::SampleRatioMismatch
    })
}

#[test]
fn lost_users_are_a_mismatch_and_a_ramp_is_none() {
    // The level is .001: more than 4 of 200 would happen once in a million seeds.
    let ramp = |t: u64| if t < 50 { 0.05 } else { 0.5 };
    let wrong = (0..200).filter(|s| arrivals(*s, 100, 0.0, ramp).is_some()).count() as u64;
    assert!(wrong <= most(200, 0.001), "{wrong} of 200");
    let found = (0..20).filter(|s| arrivals(*s, 200, 0.15, |_| 0.5).is_some()).count();
    assert_eq!(found, 20, "15 % of the candidate's users lost");
}

#[test]
fn a_mismatch_wins_over_a_verdict() {
    let settings = AbSettings::conversion();
    let mut test = Ab::new(&settings);
    let mut number = 0;
    let mut tick = |test: &mut Ab, assigned, c: u64, b: u64| {
        number += 1;
        let outcomes = (converted(200, c), converted(200, b));
        test.step(&settings, &AbTick { number, share: 0.5, assigned, outcomes, last: false })
    };
    for _ in 0..20 {
        tick(&mut test, (200, 200), 60, 10);
    }
    assert_eq!(test.summary(&settings).verdict, AbVerdict::CandidateBetter);
    for _ in 0..20 {
        tick(&mut test, (0, 200), 10, 60);
    }
    let said = tick(&mut test, (200, 200), 10, 10);
    assert_eq!(said.verdict, AbVerdict::SampleRatioMismatch);
    assert!(said.ln_ratio > 0.0 && said.interval.is_some());
}

#[test]
fn bad_input_is_left_out() {
    let settings = AbSettings::conversion();
    let mean = AbSettings { metric: AbMetric::Mean { low: -1.0, high: 1.0 }, ..settings };
    let good = converted(10, 3);
    let wrong = [
        Moments { n: 10, sum: f64::NAN, squares: 3.0 },
        Moments { n: 10, sum: f64::INFINITY, squares: 3.0 },
        Moments { n: 10, sum: 11.0, squares: 11.0 },
        Moments { n: u64::MAX, sum: 3.0, squares: 3.0 },
    ];
    for settings in [settings, mean] {
        for bad in wrong {
            for (number, outcomes) in [(1, (bad, good)), (2, (good, bad))] {
                let mut test = Ab::new(&settings);
                let tick = AbTick { number, share: 0.5, outcomes, ..AbTick::default() };
                assert_eq!(test.step(&settings, &tick).users, (0, 0), "{bad:?}");
            }
        }
        for share in [0.0, 1.0, -0.5, f64::NAN] {
            let mut test = Ab::new(&settings);
            let tick = AbTick { number: 1, share, assigned: (90, 5), outcomes: (good, good), last: false };
            let said = test.step(&settings, &tick);
            assert_eq!((said.users, said.ln_ratio), ((0, 0), 0.0), "without a split there is nothing to compare");
        }
    }
    // Conversions are whole numbers.
    let mut test = Ab::new(&settings);
    let part = Moments { n: 10, sum: 2.5, squares: 2.5 };
    assert_eq!(
        test.step(&settings, &AbTick { number: 1, share: 0.5, outcomes: (part, good), ..AbTick::default() }).users,
        (0, 0)
    );
    // A number that does not rise changes nothing.
    let tick = AbTick { number: 3, share: 0.5, assigned: (5, 5), outcomes: (good, good), last: true };
    let said = test.step(&settings, &tick);
    assert_eq!(said.verdict, AbVerdict::NoDifferenceProven);
    let before = test.clone();
    for number in [0, 2, 3] {
        test.step(&settings, &AbTick { number, ..tick.clone() });
    }
    assert_eq!(test, before);
    // Other settings are another test.
    assert!(!test.is_of(&mean));
    assert_eq!(test.step(&mean, &AbTick { number: 4, share: 0.5, ..AbTick::default() }).verdict, AbVerdict::Undecided);
}

/// A mean needs a constant split: outcomes at another one are left out, arrivals are not.
#[test]
fn a_mean_is_taken_at_one_split() {
    let settings = AbSettings { metric: AbMetric::Mean { low: 0.0, high: 1.0 }, ..AbSettings::conversion() };
    let mut test = Ab::new(&settings);
    let tick = |number, share| AbTick {
        number,
        share,
        assigned: (10, 10),
        outcomes: (converted(10, 3), converted(10, 3)),
        last: false,
    };
    test.step(&settings, &tick(1, 0.5));
    let said = test.step(&settings, &tick(2, 0.2));
    assert_eq!((said.users, said.assigned), ((10, 10), (20, 20)));
    assert_eq!(test.step(&settings, &tick(3, 0.5)).users, (20, 20));
}

#[test]
fn stored_and_read_back_it_goes_on_bit_for_bit() {
    for settings in [
        AbSettings::conversion(),
        AbSettings { metric: AbMetric::Mean { low: 0.0, high: 1.0 }, ..AbSettings::conversion() },
    ] {
        let (mut whole, mut parts) = (Ab::new(&settings), Ab::new(&settings));
        let mut draws = Draws::new(5, 7);
        for number in 1..=100 {
            let outcomes =
                (converted(300, happens(&mut draws, 300, 0.06)), converted(300, happens(&mut draws, 300, 0.05)));
            let tick = AbTick { number, share: 0.5, assigned: (300, 290), outcomes, last: number == 90 };
            let expected = whole.step(&settings, &tick);
            let mut writer = Writer::new();
            parts.encode_into(&mut writer);
            assert!(writer.len() <= Ab::MAX_BYTES, "{}", writer.len());
            let mut reader = Reader::open(&writer.seal(1, 0), 1).unwrap();
            parts = Ab::decode_from(&mut reader).unwrap();
            reader.finish().unwrap();
            assert_eq!(parts.step(&settings, &tick), expected);
            assert_eq!(parts, whole);
        }
    }
}
