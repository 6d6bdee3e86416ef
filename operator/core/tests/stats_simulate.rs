//! The simulation of whole rollouts: its ends, its courses, its seeds; and the promises of docs/verdict.md in a short form.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../examples/montecarlo/gates.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod gates;

use bitnet_core::{
    Span,
    evidence::{
        Gate, OnInconclusive, OnNoTraffic, SignalKind,
        ab::{AbMetric, AbVerdict},
        guard::GuardSettings,
    },
    model::{AbTest, CanaryStep, OnEnd, Pace, Stickiness},
    simulate::{Course, End, Forecast, Run, Users, World, forecast, run, test_users, watch},
};
use gates::{default_steps, demo_gate, demo_steps, steps};
use statrs::distribution::{Binomial, DiscreteCDF};

fn demo_world() -> World {
    World { cosine: (0.994, 0.005), tail: 0.001, load: 1.1, errors: (0.0, 0.0), ..World::equal(20.0) }
}

#[test]
fn without_steps_nothing_happens_until_the_deadline() {
    let gate = Gate { deadline: Span::seconds(60), ..demo_gate() };
    let found = run(&gate, &Course::by_time(&[]), &demo_world(), 1);
    assert!(matches!(&found.end, End::Inconclusive(missing) if !missing.is_empty()), "{found:?}");
    assert_eq!((found.ticks, found.exposed, found.weight), (30, 0, 0));
    assert_eq!(forecast(&gate, &Course::by_time(&[]), &demo_world(), 0..0), None, "no run is no forecast");
}

#[test]
fn a_seed_gives_the_same_run_and_another_seed_another() {
    let of = |seed| run(&demo_gate(), &Course::by_time(&demo_steps()), &World { tail: 0.1, ..demo_world() }, seed);
    assert_eq!(of(5), of(5));
    assert!((1..10).any(|seed| of(seed) != of(seed + 1)));
}

#[test]
fn a_switch_comes_when_all_is_proven_and_a_trip_leaves_it_to_a_person() {
    let course = Course::Switch { beside: Span::seconds(30) };
    let good = run(&demo_gate(), &course, &demo_world(), 1);
    assert_eq!((&good.end, good.weight), (&End::Promoted, 100));
    let before = run(&demo_gate(), &Course::Switch { beside: Span(0) }, &demo_world(), 1);
    assert!((14..=17).contains(&(good.ticks - before.ticks)), "30 s are 15 ticks: {} and {}", good.ticks, before.ticks);
    let slow = run(&demo_gate(), &course, &World { latency: 2.0, ..demo_world() }, 1);
    assert_eq!((slow.end, slow.exposed), (End::RolledBack(SignalKind::Latency), 0), "found before any user met it");
    // Errors of live requests that no pair has: the reflex after the switch.
    let late = World { onset: 60, errors: (0.9, 0.0), ..demo_world() };
    let found = run(&demo_gate(), &Course::Switch { beside: Span::seconds(600) }, &late, 1);
    assert_eq!((found.end, found.weight), (End::Tripped, 100));
    let waiting = run(&Gate { deadline: Span::seconds(30), ..demo_gate() }, &course, &demo_world(), 1);
    assert!(matches!(waiting.end, End::Inconclusive(_)));
}

#[test]
fn evidence_may_go_faster_than_time_and_stops_where_something_leans_against_it() {
    let (time, evidence) =
        (Course::by_time(&steps(&[5, 10, 20, 50], 60)), Course::Steps(steps(&[5, 10, 20, 50], 60), Pace::Evidence));
    let of = |course: &Course, world: &World| {
        Forecast::of(&demo_gate(), &(1..=8).map(|seed| run(&demo_gate(), course, world, seed)).collect::<Vec<_>>())
            .unwrap()
    };
    let (slow, fast) = (of(&time, &demo_world()), of(&evidence, &demo_world()));
    assert_eq!((slow.promoted, fast.promoted), (8, 8));
    assert!(fast.time.median < slow.time.median, "{fast:?}");
    let hidden = of(&evidence, &World { tail: 0.25, ..demo_world() });
    assert_eq!((hidden.rolled_back, hidden.weight <= 10), (8, true), "{hidden:?}");
}

#[test]
fn the_deadline_may_be_extended_but_not_for_ever() {
    let short = Gate { deadline: Span::seconds(60), ..demo_gate() };
    let course = Course::by_time(&demo_steps());
    assert_eq!(run(&short, &course, &demo_world(), 1).ticks, 30);
    let longer = Gate { on_inconclusive: OnInconclusive::Extend, ..short };
    let found = run(&longer, &course, &demo_world(), 1);
    assert_eq!((found.end, found.ticks > 30), (End::Promoted, true));
    let never = run(&longer, &course, &World { cosine: (0.95, 0.03), ..demo_world() }, 1);
    assert!(matches!(never.end, End::Inconclusive(_)) && never.ticks == 90);
}

fn ab_test(weight: u32, hours: i64) -> AbTest {
    AbTest {
        split: [CanaryStep::plain(weight, Span::seconds(3600 * hours))],
        matches: Vec::new(),
        stickiness: Stickiness::Cookie("arm".into()),
        metric: Some(AbMetric::Conversion),
        on_end: OnEnd::Promote,
    }
}

/// The gate's part of an A/B test: quality at weight 0, then the split until its time is over.
#[test]
fn at_the_split_the_gate_goes_on_until_the_test_is_over() {
    let gate = demo_gate();
    let minutes = |minutes: i64| {
        let mut test = ab_test(50, 0);
        test.split[0].duration = Span::seconds(60 * minutes);
        Course::Test(test)
    };
    let good = run(&gate, &minutes(15), &demo_world(), 1);
    assert_eq!((&good.end, good.weight), (&End::Promoted, 50));
    assert!((450..=520).contains(&good.ticks), "15 minutes are 450 ticks, longer than the deadline: {}", good.ticks);
    let longer = run(&gate, &minutes(600), &demo_world(), 1);
    assert!((600..=670).contains(&longer.ticks), "cut off after two deadlines at the split: {}", longer.ticks);
    let hidden = run(&gate, &minutes(15), &World { tail: 0.25, ..demo_world() }, 1);
    assert_eq!((hidden.end, hidden.weight), (End::RolledBack(SignalKind::CosineTail), 0), "no user met it");
    let broken = run(&gate, &minutes(15), &World { onset: 60, errors: (0.9, 0.0), ..demo_world() }, 1);
    assert!(matches!(broken.end, End::Tripped | End::RolledBack(SignalKind::Errors)), "{:?}", broken.end);
    let thin = run(&gate, &minutes(2), &World { rate: 2.0, history: 5_000, ..demo_world() }, 1);
    assert!(matches!(&thin.end, End::Inconclusive(missing) if missing[0].starts_with("errors")), "{:?}", thin.end);
}

/// Errors of 40 verdicts each that a correct test makes once in a million seeds.
#[test]
fn users_are_heard() {
    let users = Users { per_second: 1.0, outcome: (0.05, 0.05), deviation: 0.0, lost: 0.0 };
    let count = |test: &AbTest, users: &Users, verdict| {
        (1..=40).filter(|seed| test_users(test, &Gate::default(), users, *seed).verdict == verdict).count() as u64
    };
    let test = ab_test(50, 24);
    let none = count(&test, &users, AbVerdict::NoDifferenceProven);
    assert!(40 - none <= most(40, 0.05), "{none} of 40");
    let better = Users { outcome: (0.06, 0.05), ..users };
    assert!(count(&test, &better, AbVerdict::CandidateBetter) >= 36, "43,000 users per arm, 9,000 are enough");
    let worse = Users { outcome: (0.04, 0.05), ..users };
    assert!(count(&test, &worse, AbVerdict::CandidateWorse) >= 36);
    let lost = Users { lost: 0.1, ..users };
    assert_eq!(count(&test, &lost, AbVerdict::SampleRatioMismatch), 40, "a tenth lost is 47 instead of 50 %");
    let early = test_users(&test, &Gate::default(), &worse, 1);
    assert!(
        early.proven.is_some_and(|at| at < test.duration()) && early.users < 86_400,
        "it ends with its proof: {early:?}"
    );
    let paid = AbTest { metric: Some(AbMetric::Mean { low: 0.0, high: 10.0 }), ..ab_test(20, 24) };
    let spending = Users { outcome: (4.2, 4.0), deviation: 2.0, ..users };
    assert!(count(&paid, &spending, AbVerdict::CandidateBetter) >= 36);
}

#[test]
fn the_guard_is_forecast_by_the_guard() {
    let settings = GuardSettings::of(&Gate::default());
    let good = World::equal(0.0);
    assert_eq!(watch(&settings, &good, 2000, 1), None);
    let late = World { onset: 300, cosine: (0.93, 0.03), ..good };
    let called = watch(&settings, &late, 400, 1).unwrap();
    assert!((301..=320).contains(&called), "{called}");
}

/// A gate that holds without traffic stays where traffic ended; one that probes goes on.
#[test]
fn without_traffic_a_gate_holds_or_probes() {
    let silent = World { rate: 0.0, history: 0, ..demo_world() };
    let course = Course::by_time(&demo_steps());
    let holding = Gate { on_no_traffic: OnNoTraffic::Hold, ..demo_gate() };
    let found = run(&holding, &course, &silent, 1);
    assert!(matches!(found.end, End::Inconclusive(_)) && found.weight == 5, "{found:?}");
    let found = run(&demo_gate(), &course, &silent, 1);
    assert_eq!((&found.end, found.weight), (&End::Promoted, 50), "{found:?}");
}

fn all(world: &World, runs: u64) -> Vec<Run> {
    let course = Course::by_time(&default_steps());
    (1..=runs).map(|seed| run(&Gate::default(), &course, world, seed)).collect()
}

fn back(runs: &[Run]) -> u64 {
    runs.iter().filter(|r| matches!(r.end, End::RolledBack(_) | End::Tripped)).count() as u64
}

/// Most that a chance of `p` gives in `runs` runs, but for one seed in a million.
fn most(runs: u64, p: f64) -> u64 {
    Binomial::new(p, runs).unwrap().inverse_cdf(1.0 - 1e-6)
}

/// Inside its margins a candidate is not rolled back, bursts or not. The true chance is some ten thousandths at most, so that
/// 3 x 16 runs would show one in less than 5 of 1,000 seeds, and this seed is fixed. At all margins at once: promised 1 %.
#[test]
fn the_default_gate_keeps_its_promise_about_rollbacks() {
    let equal = World::equal(20.0);
    let acceptable = World { cosine: (0.957, 0.025), latency: 1.1, errors: (0.003, 0.002), ..equal };
    for world in [equal, acceptable, World { bursts: 0.015, ..equal }] {
        assert_eq!(back(&all(&world, 16)), 0, "{world:?}");
    }
    let edge = World { cosine: (0.95, 0.03), tail: 0.05, latency: 1.2, errors: (0.004, 0.002), ..equal };
    let found = all(&edge, 24);
    assert!(back(&found) <= most(24, 0.01), "{} of 24", back(&found));
    let up = found.iter().filter(|r| r.end == End::Promoted).count() as u64;
    assert!(up <= most(24, 0.05), "{up} of 24 promoted");
}

/// Delays are those of the tables of docs/verdict.md: the median of 16 runs lies within 10 % of them, or within a tick where
/// that is more, plus what 16 runs leave open (a quarter: three standard errors of such a median).
#[test]
fn defects_are_found_as_fast_as_the_tables_say() {
    let equal = World::equal(20.0);
    let rows = [
        ("latency 1.5x", World { latency: 1.5, ..equal }, 30.0),
        ("latency 2x", World { latency: 2.0, ..equal }, 18.0),
        ("errors 50 %", World { errors: (0.5, 0.002), ..equal }, 24.0),
        ("cosine .80", World { cosine: (0.8, 0.06), tail: 0.8, ..equal }, 1.0),
        ("tail .25", World { tail: 0.25, ..equal }, 5.0),
    ];
    for (name, world, table) in rows {
        let found = all(&world, 16);
        assert_eq!(back(&found), 16, "{name}");
        let mut ticks: Vec<u32> = found.iter().map(|r| r.ticks).collect();
        ticks.sort_unstable();
        let median = f64::from(ticks[8]);
        assert!(median <= table * 1.1 * 1.25 + 1.0, "{name}: {median} ticks, the table has {table}");
    }
}
