//! The rules of live requests and latency pairs: which blocks count, for which claim.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../examples/montecarlo/gates.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod gates;

mod ticks;

use bitnet_core::{
    Span,
    evidence::{Assessment, Evidence, Finding, Gate, OnNoTraffic, Probes, SignalKind, SignalState, Tick},
};
use gates::demo_gate;
use ticks::*;

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

#[test]
fn a_larger_candidate_is_thinned() {
    let gate = Gate { interval: Span::seconds(10), deadline: Span::seconds(14_400), max_excess: 1e-4, ..demo_gate() };
    for seed in 0..4u64 {
        let mut random = bitnet_core::simulate::Random::new(seed);
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
