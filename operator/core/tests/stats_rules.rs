//! The rules of preflight, quality, promotion, deadline and tripwire.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../examples/montecarlo/gates.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod gates;

mod ticks;

use bitnet_core::{
    Span,
    evidence::{Evidence, Finding, Gate, Probes, SignalKind, SignalState, Tick},
};
use gates::demo_gate;
use ticks::*;

#[test]
fn a_gross_model_is_rolled_back_in_its_first_ticks_at_weight_0() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=2, |t| t.probes = prompts(8, 0.1, 0.0));
    assert!(matches!(found.finding, Finding::RollBack { signal: SignalKind::Cosine | SignalKind::CosineTail, .. }));
    assert!(!found.preflight_done, "a rejected model never passes the preflight");
    // A crossing is for ever: better prompts afterwards do not take it back.
    let later = run(&mut evidence, &gate, 3..=60, |t| t.probes = good(8));
    assert!(matches!(later.finding, Finding::RollBack { .. }));
    assert!(matches!(evidence.summary(&gate).finding, Finding::RollBack { .. }));
}

#[test]
fn preflight_ends_with_its_prompts() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let before = run(&mut evidence, &gate, 1..=5, |t| t.probes = good(8));
    assert!(!before.preflight_done);
    assert_eq!(before.missing[0], "preflight: 40 of 48 prompts compared before the first live request");
    assert!(run(&mut evidence, &gate, 6..=6, |t| t.probes = good(8)).preflight_done);
}

#[test]
fn generations_that_fail_before_the_first_request_trip_the_wire_and_restart_the_count() {
    let gate = demo_gate();
    let failing = |n: usize| {
        let pair = |i: usize| (generation(i >= n, 1.0, true), generation(true, 1.0, true));
        let mut probes = good(8).unwrap();
        probes.pairs = (0..8).map(pair).collect();
        Some(probes)
    };
    let mut evidence = Evidence::new(&gate);
    // 1 of 8 fails: 6 of 48 are over a tenth.
    let quiet = run(&mut evidence, &gate, 1..=5, |t| t.probes = failing(1));
    assert!(matches!(quiet.finding, Finding::Continue));
    let found = run(&mut evidence, &gate, 6..=6, |t| t.probes = failing(1));
    let Finding::Tripwire { reason } = &found.finding else { panic!("{:?}", found.finding) };
    assert_eq!(reason, "6 of 48 generations of the candidate failed before its first live request, 0 of stable's");
    assert!(!found.preflight_done);
    assert_eq!(found.prompts, 48, "prompts of the attempt still count");
    assert!(matches!(evidence.summary(&gate).finding, Finding::Continue), "a reflex belongs to its tick");
    // The count starts again, and where stable fails as well it is not the candidate's fault.
    let both = |t: &mut Tick| {
        let mut probes = good(8).unwrap();
        probes.pairs = vec![(generation(false, 1.0, true), generation(false, 1.0, true)); 8];
        t.probes = Some(probes);
    };
    assert!(!run(&mut evidence, &gate, 7..=11, both).preflight_done);
    assert!(run(&mut evidence, &gate, 12..=12, both).preflight_done);
}

#[test]
fn a_candidate_that_answers_nothing_at_all_trips_without_a_single_prompt() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let silent = |t: &mut Tick| {
        t.probes = Some(Probes {
            drawn: 8,
            pairs: vec![(generation(false, f64::NAN, false), generation(true, 1.0, true)); 8],
            ..Probes::default()
        });
    };
    let found = run(&mut evidence, &gate, 1..=6, silent);
    assert!(matches!(found.finding, Finding::Tripwire { .. }), "{:?}", found.finding);
}

#[test]
fn a_tick_with_fewer_than_half_of_its_prompts_is_void_and_no_number_is_no_similarity() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let half = |drawn: u32| {
        move |t: &mut Tick| {
            t.probes = prompts(3, 0.99, 0.99);
            t.probes.as_mut().unwrap().drawn = drawn;
        }
    };
    assert_eq!(run(&mut evidence, &gate, 1..=1, half(7)).prompts, 0);
    assert_eq!(run(&mut evidence, &gate, 2..=2, half(6)).prompts, 3);
    // More prompts than were asked for: only as many as were asked for count.
    assert_eq!(run(&mut evidence, &gate, 3..=3, |t| t.probes = prompts(1_000, 0.99, 0.99)).prompts, 11);
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=3, |t| t.probes = prompts(8, f64::NAN, f64::NAN));
    assert!(matches!(found.finding, Finding::RollBack { .. }));
    assert_eq!(signal(&found, SignalKind::CosineTail).estimate, Some(1.0));
}

#[test]
fn quality_is_proven_by_mean_and_tail_together() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    // A good mean that hides a tail: 1 prompt of 8 far off.
    let hiding = |t: &mut Tick| {
        let mut probes = prompts(8, 0.99, 0.99).unwrap();
        probes.prompts[0].cosine_at = 0.5;
        t.probes = Some(probes);
    };
    let found = run(&mut evidence, &gate, 1..=60, hiding);
    assert!(matches!(found.finding, Finding::RollBack { signal: SignalKind::CosineTail, .. }), "{:?}", found.finding);
    assert_eq!(signal(&found, SignalKind::Cosine).state, SignalState::Proven);
    assert_eq!(signal(&found, SignalKind::CosineTail).state, SignalState::Failed);
    assert_eq!(signal(&found, SignalKind::CosineTail).detail, "60 of 480 prompts under 0.9");
    assert!(!found.quality_proven);

    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=30, |t| t.probes = good(8));
    assert!(found.quality_proven);
}

#[test]
fn promotion_needs_every_signal_the_samples_and_the_last_step() {
    let gate = demo_gate();
    let with = |weight: u32| {
        move |t: &mut Tick| {
            t.weight = Some(weight);
            t.weight_change = u32::from(weight > 0) + u32::from(weight > 5);
            t.last_step = weight == 50;
            t.probes = good(8);
            t.stable_total = history(5_000);
            t.live = live((0, 20), (0, 20), 0);
        }
    };
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=60, with(5));
    assert!(matches!(found.finding, Finding::Continue));
    assert_eq!(found.missing, ["the last step is still to come"]);
    assert!(found.fresh && found.quality_proven && !found.history_pending);
    assert!(found.signals.iter().all(|s| s.state == SignalState::Proven));
    // Sticky over the weight change, for paired latency and errors; the demo's forecast asks for no live latency.
    let found = run(&mut evidence, &gate, 61..=61, with(50));
    assert_eq!(found.finding, Finding::Promote, "{:?}", found.missing);
    // Without requests at the new weight it waits for them.
    let mut waiting = Evidence::new(&gate);
    run(&mut waiting, &gate, 1..=60, with(5));
    let silent = run(&mut waiting, &gate, 61..=61, |t| {
        with(50)(t);
        t.live = live((0, 0), (0, 0), 0);
    });
    assert_eq!(silent.missing, ["no live request of both arms at this weight yet"]);

    // And with everything else proven, the samples bind.
    let strict = Gate { min_samples: 10_000, ..demo_gate() };
    let mut evidence = Evidence::new(&strict);
    run(&mut evidence, &strict, 1..=60, with(5));
    let found = run(&mut evidence, &strict, 61..=61, with(50));
    assert_eq!(found.missing, ["samples: 488 of 10000 prompts"]);
}

#[test]
fn the_deadline_is_inconclusive_and_a_promotion_in_its_tick_counts() {
    let gate = Gate { deadline: Span::seconds(122), ..demo_gate() };
    assert_eq!(gate.horizon(), 61);
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=60, |t| t.probes = good(8));
    assert!(matches!(found.finding, Finding::Continue));
    assert_eq!(run(&mut evidence, &gate, 61..=61, |t| t.probes = good(8)).finding, Finding::Inconclusive);
    assert_eq!(evidence.summary(&gate).finding, Finding::Inconclusive);

    let mut evidence = Evidence::new(&gate);
    let all = |t: &mut Tick| {
        t.weight = Some(50);
        t.probes = good(8);
        t.stable_total = history(5_000);
        t.live = live((0, 20), (0, 20), 0);
        t.last_step = t.number == 61;
    };
    assert_eq!(run(&mut evidence, &gate, 1..=61, all).finding, Finding::Promote);
}

#[test]
fn errors_in_the_window_trip_the_wire_before_any_verdict() {
    let gate = demo_gate();
    let failing = |candidate, stable| {
        move |t: &mut Tick| {
            t.weight = Some(20);
            t.live = live(candidate, stable, 0);
        }
    };
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=4, failing((3, 4), (0, 16)));
    assert!(matches!(found.finding, Finding::Continue), "16 requests are too few");
    let found = run(&mut evidence, &gate, 5..=5, failing((3, 4), (0, 16)));
    let Finding::Tripwire { reason } = found.finding else { panic!("{:?}", found.finding) };
    assert_eq!(reason, "15 of 20 requests to the candidate failed within 10 s, 0 of 80 to stable");
    // A new weight empties the window, and at weight 0 there is nothing to trip for.
    let found = run(&mut evidence, &gate, 6..=6, |t| {
        t.weight = None;
        t.weight_change = 1;
        t.live = live((3, 4), (0, 16), 0);
    });
    assert!(matches!(found.finding, Finding::Continue));
    // Where stable fails too it is not the candidate.
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=20, failing((3, 4), (1, 16)));
    assert!(matches!(found.finding, Finding::Continue));
    // Stable without requests counts as healthy.
    let found = run(&mut Evidence::new(&gate), &gate, 1..=5, failing((3, 4), (0, 0)));
    assert!(matches!(found.finding, Finding::Tripwire { .. }));
    // Old ticks leave the window after a minute: 19 errors, then 31 quiet ticks, then one more.
    let mut evidence = Evidence::new(&gate);
    run(&mut evidence, &gate, 1..=1, failing((19, 19), (0, 20)));
    run(&mut evidence, &gate, 2..=32, failing((0, 0), (0, 20)));
    let found = run(&mut evidence, &gate, 33..=33, failing((10, 10), (0, 20)));
    assert!(matches!(found.finding, Finding::Continue));
}

/// A block of 10 s is five ticks here.
/// 200 requests of the candidate against 3 of stable, 2 % errors in both: without thinning nearly all of these identical
/// arms are rolled back, because stable's rare errors are clipped and the candidate's many small shares are not.
#[test]
fn every_signal_is_shown_with_numbers() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=20, |t| {
        t.weight = Some(20);
        t.probes = good(8);
        t.stable_total = history(5_000);
        t.live = live((1, 20), (0, 80), 1);
    });
    assert_eq!(found.signals.iter().map(|s| s.kind).collect::<Vec<_>>(), SignalKind::ALL);
    for signal in &found.signals {
        let (low, high) = signal.interval.unwrap();
        let estimate = signal.estimate.unwrap();
        assert!(low <= estimate && estimate <= high, "{signal:?}");
        assert!(!signal.detail.is_empty());
    }
    assert_eq!(signal(&found, SignalKind::Errors).detail, "19 of 380 requests failed, 0 of 1520 at stable");
    assert!((signal(&found, SignalKind::Latency).estimate.unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(found.exposed_requests, 400);
}
