//! The rules that decide which data count, when, and what follows from them.

#![allow(clippy::unwrap_used, clippy::unnecessary_wraps, reason = "a test may; the helpers return what a tick holds")]

#[path = "../examples/simulate_canary/world.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod world;

use bitnet_core::{
    Span,
    evidence::{
        Assessment, Evidence, Finding, Gate, GenerationSample, Histogram, LiveArm, OnNoTraffic, Probes, PromptSample,
        Signal, SignalKind, SignalState, Tick,
    },
};
use world::demo_gate;

/// A tick of the demo's gate (2 s) at a weight, without any data.
fn tick(number: u32, weight: u32) -> Tick {
    Tick {
        number,
        weight: Some(weight),
        last_weight: 50,
        last_step: weight == 50,
        step_duration: Span::seconds(20),
        ready_candidate: 3,
        ready_stable: 3,
        warm: true,
        seed: u64::from(number),
        ..Tick::default()
    }
}

/// Both arms' requests and errors of a tick; latencies in one bucket each.
fn live(candidate: (u64, u64), stable: (u64, u64), slower: i16) -> Option<(LiveArm, LiveArm, f64)> {
    let arm = |(errors, requests): (u64, u64), bucket: i16| LiveArm {
        requests,
        errors,
        ttft: Histogram((requests > 0).then_some((bucket, requests)).into_iter().collect()),
        tpot: Histogram((requests > 0).then_some((bucket - 20, requests)).into_iter().collect()),
    };
    Some((arm(candidate, -10 + slower), arm(stable, -10), 2.0))
}

fn history(requests: u64) -> Option<(LiveArm, f64)> {
    let (_, stable, _) = live((0, 0), (0, requests), 0)?;
    Some((stable, requests as f64 / 20.0))
}

fn prompts(n: u32, cosine: f64, cosine_at: f64) -> Option<Probes> {
    let prompt = PromptSample { cosine, cosine_at, mse: 0.0, kl: 0.0, top1: 1.0 };
    Some(Probes { drawn: n, prompts: vec![prompt; n as usize], ..Probes::default() })
}

fn generation(ok: bool, seconds: f64, alone: bool) -> GenerationSample {
    GenerationSample { ok, ttft: seconds, tpot: seconds / 10.0, alone }
}

/// Pairs whose candidate takes `ratio` times as long.
fn pairs(n: usize, ratio: f64, alone: (bool, bool)) -> Option<Probes> {
    let pair = (generation(true, ratio, alone.0), generation(true, 1.0, alone.1));
    Some(Probes { pairs: vec![pair; n], ..Probes::default() })
}

fn good(n: u32) -> Option<Probes> {
    let mut probes = prompts(n, 0.99, 0.99);
    if let Some(probes) = &mut probes {
        probes.pairs = pairs(8, 1.0, (true, true)).unwrap().pairs;
    }
    probes
}

fn signal(assessment: &Assessment, kind: SignalKind) -> &Signal {
    assessment.signals.iter().find(|s| s.kind == kind).unwrap()
}

/// Runs ticks from `first` on, changed by `with`; the last assessment.
fn run(
    evidence: &mut Evidence,
    gate: &Gate,
    numbers: std::ops::RangeInclusive<u32>,
    with: impl Fn(&mut Tick),
) -> Assessment {
    let mut last = evidence.summary(gate);
    for number in numbers {
        let mut tick = tick(number, 0);
        with(&mut tick);
        last = evidence.step(gate, &tick);
    }
    last
}

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

#[test]
fn history_comes_first_and_is_not_tested_itself() {
    let gate = demo_gate();
    let bad = |t: &mut Tick| {
        t.weight = Some(50);
        t.live = live((4, 20), (0, 20), 0);
    };
    // Stable's counters hold 900 requests; 20 a tick fill it up in 5 more, and tests start in the tick after that.
    let mut evidence = Evidence::new(&gate);
    let filling = |t: &mut Tick| {
        bad(t);
        t.stable_total = history(900);
    };
    let found = run(&mut evidence, &gate, 1..=5, filling);
    assert!(found.history_pending);
    assert!(
        found.missing.iter().any(|m| m.starts_with("history: 980 of 1000 requests of stable")),
        "{:?}",
        found.missing
    );
    assert!(!run(&mut evidence, &gate, 6..=6, filling).history_pending);
    assert_eq!(signal(&evidence.summary(&gate), SignalKind::Errors).samples, 0);
    let found = run(&mut evidence, &gate, 7..=11, bad);
    assert_eq!(signal(&found, SignalKind::Errors).samples, 100);
    assert!(signal(&found, SignalKind::Errors).ln_rollback > 0.0);
    // Without cumulative counters stable's own requests of the attempt are the history.
    let mut evidence = Evidence::new(&gate);
    assert!(run(&mut evidence, &gate, 1..=49, bad).history_pending);
    assert!(!run(&mut evidence, &gate, 50..=50, bad).history_pending);
}

/// A block of 10 s is five ticks here.
#[test]
fn an_open_block_is_dropped_by_a_weight_change_and_by_a_lost_scrape() {
    let gate = demo_gate();
    let failing = |t: &mut Tick| {
        t.weight = Some(50);
        t.weight_change = 1;
        t.live = live((10, 20), (0, 20), 0);
    };
    let ready = |evidence: &mut Evidence| run(evidence, &gate, 1..=1, |t| t.stable_total = history(5_000));
    let evidence_of = |a: &Assessment| signal(a, SignalKind::Errors).ln_rollback;

    let mut whole = Evidence::new(&gate);
    ready(&mut whole);
    assert!(evidence_of(&run(&mut whole, &gate, 2..=5, failing)).abs() < 1e-4);
    assert!(evidence_of(&run(&mut whole, &gate, 6..=6, failing)) > 0.1);

    for interruption in
        [|t: &mut Tick| t.live = None, |t: &mut Tick| t.weight_change = 2, |t: &mut Tick| t.weight = None]
    {
        let mut evidence = Evidence::new(&gate);
        ready(&mut evidence);
        run(&mut evidence, &gate, 2..=5, failing);
        let found = run(&mut evidence, &gate, 6..=6, |t| {
            failing(t);
            interruption(t);
        });
        assert!(evidence_of(&found).abs() < 1e-4);
    }
}

#[test]
fn live_latency_counts_only_where_the_load_speaks_against_it() {
    let gate = demo_gate();
    let latency = |weight: u32, ready: (u32, u32), slower: i16, warm: bool| {
        let mut evidence = Evidence::new(&gate);
        run(&mut evidence, &gate, 1..=1, |t| t.stable_total = history(5_000));
        let found = run(&mut evidence, &gate, 2..=41, |t| {
            t.weight = Some(weight);
            t.weight_change = 1;
            (t.ready_candidate, t.ready_stable) = ready;
            t.warm = warm;
            t.live = live((0, 20), (0, 20), slower);
        });
        signal(&found, SignalKind::Latency).ln_rollback
    };
    // 1.5x is between 4 and 5 buckets: 4 are within the margin, 6 over it.
    assert!(latency(20, (3, 3), 6, true) > 1.0);
    assert!(latency(20, (3, 3), 4, true) < 0.1);
    assert!(latency(50, (3, 3), 6, true) > 1.0, "equal load counts");
    // 20 % on one pod against 80 % on nine: the candidate's pod has more to do.
    assert!(latency(20, (1, 9), 6, true).abs() < 1e-3);
    assert!(latency(80, (3, 3), 6, true).abs() < 1e-3);
    assert!(latency(20, (3, 3), 6, false).abs() < 1e-3, "warm-up");
    assert!(latency(20, (0, 3), 6, true).abs() < 1e-3, "nobody ready");
}

#[test]
fn pairs_count_where_both_engines_were_alone() {
    let gate = demo_gate();
    let paired = |ratio: f64, alone: (bool, bool), weight: u32| {
        let mut evidence = Evidence::new(&gate);
        let found = run(&mut evidence, &gate, 1..=60, |t| {
            t.weight = Some(weight);
            t.probes = pairs(8, ratio, alone);
        });
        let latency = signal(&found, SignalKind::Latency).clone();
        (latency.ln_rollback, latency.ln_promote, latency.samples)
    };
    let (rollback, promote, samples) = paired(1.0, (true, true), 0);
    assert!(promote > 3.0 && rollback < 0.0 && samples == 480, "{promote} {rollback} {samples}");
    let (rollback, promote, _) = paired(2.0, (true, true), 0);
    assert!(rollback > 2.0 && promote < 0.0, "{rollback} {promote}");
    // One observation per block of 10 s however many pairs: 12 blocks give at most 12 ln 1.97.
    assert!(paired(1e6, (true, true), 0).0 < 12.0 * 1.97f64.ln());

    // An engine that is never alone: pairs count against the candidate where it has no more load, for it where it has
    // no less; the first 32 only find out.
    let (rollback, promote, _) = paired(2.0, (true, false), 20);
    assert!(rollback > 1.0 && promote == 0.0, "{rollback} {promote}");
    let (rollback, promote, _) = paired(1.0, (true, false), 20);
    assert!(rollback < 0.0 && promote == 0.0, "{rollback} {promote}");
    let (rollback, promote, _) = paired(1.0, (false, false), 80);
    assert!(rollback.abs() < 1e-3 && promote > 3.0, "{rollback} {promote}");
    let (_, promote, _) = paired(1.0, (false, false), 50);
    assert!(promote > 3.0, "equal load counts for both claims");
}

#[test]
fn broken_clocks_and_failed_generations_are_no_latency() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=60, |t| {
        let broken = [0.0, -1.0, f64::NAN, f64::INFINITY]
            .map(|seconds| (generation(true, seconds, true), generation(true, 1.0, true)));
        let failed = (generation(false, 9.0, true), generation(true, 1.0, true));
        t.probes = Some(Probes { pairs: broken.into_iter().chain([failed]).collect(), ..Probes::default() });
    });
    let latency = signal(&found, SignalKind::Latency);
    assert_eq!(latency.samples, 0);
    assert!(latency.ln_rollback.abs() < 1e-3);
}

#[test]
fn live_latency_is_asked_of_a_promotion_where_enough_requests_will_come() {
    let gate = demo_gate();
    let asked = |per_second: f64, until_last: i64, last_weight: u32| {
        let mut evidence = Evidence::new(&gate);
        let found = run(&mut evidence, &gate, 1..=1, |t| {
            t.stable_total = history(5_000).map(|(arm, _)| (arm, 5_000.0 / per_second));
            t.until_last_step = Span::seconds(until_last);
            t.last_weight = last_weight;
        });
        found.missing.iter().any(|m| m.starts_with("live ttft p95"))
    };
    // 598 s are left: half of 20/s for 598 - 60 s is 5,380; of 25/s, 6,725.
    assert!(!asked(20.0, 60, 50));
    assert!(asked(25.0, 60, 50));
    assert!(!asked(25.0, 300, 50));
    assert!(!asked(25.0, 60, 80));
}

#[test]
fn live_latency_for_promotion_starts_anew_at_the_last_step_with_its_own_edges() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let at = |weight: u32, change: u32, requests: u64| {
        move |t: &mut Tick| {
            t.weight = Some(weight);
            t.weight_change = change;
            t.last_step = weight == 50;
            t.probes = good(8);
            t.stable_total = history(100_000).map(|(arm, _)| (arm, 1_000.0));
            t.live = live((0, requests), (0, requests), 0);
        }
    };
    let live_lines = |a: &Assessment| a.missing.iter().filter(|m| m.starts_with("live")).cloned().collect::<Vec<_>>();
    let found = run(&mut evidence, &gate, 1..=60, at(20, 1, 100));
    assert_eq!(live_lines(&found).len(), 4, "{:?}", found.missing);
    assert_eq!(live_lines(&found)[0], "live ttft body: counted at the last step only");
    // 40 requests per tick: the edges of the new weight take 25 ticks, and the tests start after them.
    let found = run(&mut evidence, &gate, 61..=80, at(50, 2, 40));
    assert_eq!(live_lines(&found)[0], "live ttft body: 800 of 1000 requests of stable at this weight for its edges");
    run(&mut evidence, &gate, 81..=85, at(50, 2, 40));
    // Blocks of 30 s, 15 ticks. Equal arms four buckets within the margin win every vote: six blocks are enough.
    let found = run(&mut evidence, &gate, 86..=99, at(50, 2, 40));
    assert_eq!(live_lines(&found)[0], "live ttft body: evidence 0.00 of 3.00");
    let found = run(&mut evidence, &gate, 100..=100, at(50, 2, 40));
    assert_ne!(live_lines(&found)[0], "live ttft body: evidence 0.00 of 3.00");
    let found = run(&mut evidence, &gate, 101..=200, at(50, 2, 40));
    assert!(live_lines(&found).iter().all(|l| !l.contains("body")), "{:?}", live_lines(&found));
    // Another weight: it is all to be proven again.
    let found = run(&mut evidence, &gate, 201..=201, at(20, 3, 100));
    assert_eq!(live_lines(&found).len(), 4);
}

#[test]
fn without_requests_the_pairs_stand_in_or_the_gate_holds() {
    let quiet = |t: &mut Tick| {
        t.weight = Some(5);
        t.weight_change = 1;
        t.probes = good(8);
        t.live = live((0, 0), (0, 0), 0);
    };
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    // A step takes 20 s: ten ticks without a request of an arm.
    assert!(!run(&mut evidence, &gate, 1..=9, quiet).no_traffic);
    let found = run(&mut evidence, &gate, 10..=10, quiet);
    assert!(found.no_traffic && found.fresh, "the pairs stand in");
    let found = run(&mut evidence, &gate, 11..=150, quiet);
    let errors = signal(&found, SignalKind::Errors);
    assert_eq!(errors.state, SignalState::Proven, "{errors:?}");
    assert!(found.missing.iter().all(|m| m.starts_with("the last step")), "{:?}", found.missing);
    // Generations that fail are errors then.
    let mut evidence = Evidence::new(&gate);
    let found = run(&mut evidence, &gate, 1..=250, |t| {
        quiet(t);
        let probes = t.probes.as_mut().unwrap();
        probes.pairs[0].0.ok = t.number < 60;
        probes.pairs[1].0.ok = t.number < 60;
    });
    assert!(matches!(found.finding, Finding::RollBack { signal: SignalKind::Errors, .. }), "{:?}", found.finding);
    // The first request ends it.
    let mut evidence = Evidence::new(&gate);
    run(&mut evidence, &gate, 1..=12, quiet);
    let found = run(&mut evidence, &gate, 13..=13, |t| {
        quiet(t);
        t.live = live((0, 1), (0, 19), 0);
    });
    assert!(!found.no_traffic);

    let holding = Gate { on_no_traffic: OnNoTraffic::Hold, ..gate };
    let mut evidence = Evidence::new(&holding);
    let found = run(&mut evidence, &holding, 1..=60, quiet);
    assert!(found.no_traffic && !found.fresh);
    assert_eq!(signal(&found, SignalKind::Errors).samples, 0);
}

/// 200 requests of the candidate against 3 of stable, 2 % errors in both: without thinning nearly all of these identical
/// arms are rolled back, because stable's rare errors are clipped and the candidate's many small shares are not.
#[test]
fn a_larger_candidate_is_thinned() {
    let gate = Gate { interval: Span::seconds(10), deadline: Span::seconds(14_400), max_excess: 1e-4, ..demo_gate() };
    for seed in 0..4u64 {
        let mut random = world::Random::new(seed);
        let mut errors = |n: u64| ((0..n).filter(|_| random.happens(0.02)).count() as u64, n);
        let mut evidence = Evidence::new(&gate);
        run(&mut evidence, &gate, 1..=1, |t| {
            t.stable_total = history(5_000);
            t.stable_total.as_mut().unwrap().0.errors = 100;
        });
        for number in 2..=900 {
            let mut t = tick(number, 90);
            t.weight_change = 1;
            t.seed = seed * 1_000 + u64::from(number);
            t.live = live(errors(200), errors(3), 0);
            let found = evidence.step(&gate, &t);
            assert!(!matches!(found.finding, Finding::RollBack { .. }), "seed {seed}, tick {number}");
        }
    }
}

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
