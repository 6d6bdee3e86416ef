//! Bad input, row by row: data that would promote a candidate stop doing so once any part of them is no evidence, and nothing
//! that is no evidence rolls a candidate back. What is refused before it comes here: gates (`api/tests/validate.rs`), answers
//! of workers (`operator/src/worker/checks.rs`, `tests/worker_client.rs`).

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../examples/montecarlo/gates.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod gates;

mod ticks;
mod world;

use bitnet_core::{
    Span, Time,
    evidence::{Evidence, Finding, Gate, Histogram, LiveArm, Probes, Tick},
    plan::{State, StateError},
    report::Phase,
    stats::counters::{PodCounters, delta},
};
use gates::demo_gate;
use ticks::{good, history, live};
use world::{
    Behaviour, World,
    spec::{revision, rollout, serving},
};

fn gate() -> Gate {
    Gate { deadline: Span::seconds(122), ..demo_gate() }
}

/// What promotes: enough of everything, with a look at it spoilt by `with`; the last finding of a whole deadline, and whether
/// any was a promotion.
fn judged(gate: &Gate, with: impl Fn(&mut Tick)) -> (Finding, bool) {
    let mut evidence = Evidence::new(gate);
    let (mut last, mut promoted) = (Finding::Continue, false);
    for number in 1..=gate.horizon() {
        let mut tick = ticks::tick(number, 50);
        tick.probes = good(8);
        tick.stable_total = history(5_000);
        tick.live = live((0, 20), (0, 20), 0);
        with(&mut tick);
        last = evidence.step(gate, &tick).finding;
        promoted |= last == Finding::Promote;
    }
    (last, promoted)
}

/// The same pairs with other times of the candidate.
fn timed(tick: &mut Tick, seconds: f64) {
    for (candidate, _) in &mut tick.probes.as_mut().unwrap().pairs {
        (candidate.ttft, candidate.tpot) = (seconds, seconds);
    }
}

fn counted(tick: &mut Tick, change: impl Fn(&mut LiveArm)) {
    let (candidate, stable, _) = tick.live.as_mut().unwrap();
    change(candidate);
    change(stable);
}

#[test]
fn whole_data_promote() {
    assert!(judged(&gate(), |_| ()).1, "the control: without it no row below says anything");
}

#[test]
fn each_row_of_bad_input_ends_inconclusive() {
    type Spoil = fn(&mut Tick);
    let rows: [(&str, Spoil); 17] = [
        ("times are NaN", |t| timed(t, f64::NAN)),
        ("times are infinite", |t| timed(t, f64::INFINITY)),
        ("times are minus infinity", |t| timed(t, f64::NEG_INFINITY)),
        ("times are negative", |t| timed(t, -1.0)),
        ("times are zero", |t| timed(t, 0.0)),
        ("no pairs", |t| t.probes.as_mut().unwrap().pairs.clear()),
        ("no prompts (n = 0)", |t| t.probes.as_mut().unwrap().prompts.clear()),
        ("an empty answer", |t| t.probes = Some(Probes::default())),
        ("no answer", |t| t.probes = None),
        ("fewer than half of the prompts", |t| t.probes.as_mut().unwrap().drawn = 100),
        ("no requests (n = 0)", |t| t.live = live((0, 0), (0, 0), 0)),
        ("requests of one arm only", |t| t.live = live((0, 0), (0, 20), 0)),
        ("missing scrapes", |t| t.live = None),
        ("more errors than requests", |t| counted(t, |arm| arm.errors = arm.requests + 1)),
        ("counts that no interval has", |t| counted(t, |arm| arm.requests = u64::MAX)),
        ("latencies that no interval has", |t| {
            counted(t, |arm| arm.ttft = Histogram([(0, u64::MAX), (1, u64::MAX)].into()));
        }),
        ("weights that changed within each interval", |t| t.weight = None),
    ];
    // Without live requests the gate is not to fall back on the pairs' generations here: these rows are about requests.
    let gate = Gate { on_no_traffic: bitnet_core::evidence::OnNoTraffic::Hold, ..gate() };
    assert!(judged(&gate, |_| ()).1);
    for (row, spoil) in rows {
        let (last, promoted) = judged(&gate, spoil);
        assert!(!promoted, "{row}: promoted");
        assert_eq!(last, Finding::Inconclusive, "{row}");
    }
}

/// A single look that is out of order changes nothing: counting it twice would break the error rates.
#[test]
fn duplicated_and_late_ticks_change_nothing() {
    let gate = gate();
    let mut evidence = Evidence::new(&gate);
    for number in 1..=10 {
        let mut tick = ticks::tick(number, 0);
        tick.probes = good(8);
        evidence.step(&gate, &tick);
    }
    let before = evidence.clone();
    for number in [10, 9, 1, 0] {
        let mut again = ticks::tick(number, 0);
        again.probes = ticks::prompts(8, 0.0, 0.0);
        evidence.step(&gate, &again);
        assert_eq!(evidence, before, "tick {number} again");
    }
}

/// Clocks of workers and of the operator say when, never what: the same verdicts in the same tick.
#[test]
fn skewed_clocks_change_no_verdict() {
    let skews: [fn(&mut Tick); 5] = [
        |t| t.at = Time(i64::MIN),
        |t| t.at = Time(i64::MAX),
        |t| t.live.as_mut().unwrap().2 = -5.0,
        |t| t.live.as_mut().unwrap().2 = f64::NAN,
        |t| t.stable_total.as_mut().unwrap().1 = f64::INFINITY,
    ];
    let straight = judged(&gate(), |_| ());
    for (i, skew) in skews.into_iter().enumerate() {
        assert_eq!(judged(&gate(), skew), straight, "skew {i}");
    }
}

/// Counters that fell are those of a new process: what it did since, and what died with the old one as errors.
#[test]
fn a_reset_counter_is_a_new_process_and_its_dead_requests_are_errors() {
    let of = |process: &str, requests, errors, in_flight| PodCounters {
        process: process.into(),
        totals: LiveArm { requests, errors, ..LiveArm::default() },
        in_flight,
    };
    let old = of("a", 100, 1, 4);
    for new in [of("a", 10, 0, 0), of("b", 10, 0, 0), of("b", 200, 2, 0)] {
        let found = delta(Some(&old), Some(&new));
        assert_eq!((found.requests, found.errors), (new.totals.requests + 4, new.totals.errors + 4), "{new:?}");
    }
    assert_eq!(delta(None, Some(&old)), LiveArm::default(), "a first look only sets the reference");
    assert_eq!(delta(Some(&old), None), LiveArm::default());
}

/// Validation refuses such gates; one that is stored all the same is judged at the nearest margins that it may have, and never
/// more kindly than those.
#[test]
fn margins_out_of_range_make_no_verdict_easier() {
    let strict: [(&str, Gate); 9] = [
        ("mean is NaN", Gate { min_mean: f64::NAN, ..gate() }),
        ("mean above 1", Gate { min_mean: 7.0, ..gate() }),
        ("tail threshold is NaN", Gate { tail_min: f64::NAN, ..gate() }),
        ("no tail allowed", Gate { tail_share: -1.0, ..gate() }),
        ("ratio under 1", Gate { max_ratio: 0.5, ..gate() }),
        ("ratio is NaN", Gate { max_ratio: f64::NAN, ..gate() }),
        ("negative excess", Gate { max_excess: -0.5, ..gate() }),
        ("excess is NaN", Gate { max_excess: f64::NAN, ..gate() }),
        ("certainty asked for", Gate { alpha_promote: 0.0, ..gate() }),
    ];
    for (row, gate) in strict {
        assert!(!judged(&gate, |_| ()).1, "{row}: promoted");
    }
    // A budget above one half is one half, not a coin that always falls on promotion.
    let spent = Gate { alpha_rollback: f64::INFINITY, alpha_promote: 9.0, ..gate() };
    let (last, promoted) = judged(&spent, |t| t.probes = None);
    assert!(!promoted && last == Finding::Inconclusive, "{last:?}");
}

/// Other parameters are another test: evidence of the old ones proves nothing about the new.
#[test]
fn changed_parameters_begin_a_new_test() {
    let (old, new) = (gate(), Gate { max_ratio: 1.4, ..gate() });
    let mut evidence = Evidence::new(&old);
    let mut whole = |gate: &Gate, number: u32| {
        let mut tick = ticks::tick(number, 50);
        tick.probes = good(8);
        tick.stable_total = history(5_000);
        tick.live = live((0, 20), (0, 20), 0);
        evidence.step(gate, &tick)
    };
    let mut number = 0;
    let mut until = |gate: &Gate| {
        loop {
            number += 1;
            let found = whole(gate, number);
            if found.finding == Finding::Promote {
                return number;
            }
            assert!(number < 120, "never promoted: {:?}", found.missing);
        }
    };
    let first = until(&old);
    let second = until(&new);
    assert!(second - first >= 8, "the second test took {} ticks, the first {first}", second - first);
}

/// A state of another version, cut off, or of something else is refused with the reason; then the evidence starts again.
#[test]
fn a_state_of_another_version_is_refused() {
    let gate = gate();
    let text = State::default().encode(&gate.parameters_hash());
    assert_eq!(State::decode(&text), Ok(State::default()));
    let mut refusals = Vec::new();
    for first in text.chars().next().unwrap()..='z' {
        let other = format!("{first}{}", &text[1..]);
        if let Err(error) = State::decode(&other) {
            refusals.push(error);
        }
    }
    assert!(
        refusals.iter().any(|e| matches!(e, StateError::Version { .. })),
        "another first character is another version: {refusals:?}"
    );
    for garbled in ["", "x", "not a state at all", &text[..text.len() - 1]] {
        assert!(State::decode(garbled).is_err(), "{garbled:?}");
    }
}

/// Through the whole planner: answers that are no numbers never promote, and end held without blame.
#[test]
fn a_worker_that_answers_nonsense_is_held_at_the_deadline() {
    let rows = [
        ("NaN cosines", Behaviour { garbage: true, ..Behaviour::default() }),
        ("half of the prompts are void", Behaviour { void: 0.9, ..Behaviour::default() }),
    ];
    for (row, behaviour) in rows {
        let mut world = World::new(rollout(), 7);
        world.rollout.gate.deadline = Span::seconds(60);
        world.behaviours.insert(revision("b"), behaviour);
        world.rollout.model = serving("b", "ternary", 3);
        let until = world.now + Span::seconds(200);
        while world.now < until {
            let plan = world.reconcile();
            world.advance(plan.requeue_after, until);
        }
        let plan = world.reconcile();
        assert_eq!(plan.report.phase, Phase::Holding, "{row}: {:#?}", plan.report);
        assert_eq!(world.most.get(&revision("b")), Some(&0), "{row}: it never had traffic");
    }
}
