//! The judge as an object: it can be stored and read back at any tick, takes any input, and stays small.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../examples/montecarlo/gates.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod gates;

use bitnet_core::{
    Span,
    evidence::{
        Assessment, Evidence, Finding, Gate, GenerationSample, Histogram, LiveArm, Percentiles, Probes, PromptSample,
        SignalState, Tick,
        codec::{CodecError, Reader, Writer},
    },
    simulate::{Course, World, ticks},
};
use gates::{demo_gate, demo_steps};
use proptest::prelude::*;

const VERSION: u8 = 1;

fn encode(evidence: &Evidence, gate: &Gate) -> String {
    let mut w = Writer::new();
    evidence.encode_into(&mut w);
    w.seal(VERSION, gate.parameters())
}

fn decode(text: &str) -> Result<Evidence, CodecError> {
    let mut r = Reader::open(text, VERSION)?;
    let evidence = Evidence::decode_from(&mut r)?;
    r.finish()?;
    Ok(evidence)
}

/// Ticks of an attempt under everything at once: traffic, bursts, noise, a fault.
fn eventful(gate: &Gate, count: u32) -> Vec<Tick> {
    let world = World { latency: 1.1, bursts: 0.05, errors: (0.01, 0.002), tail: 0.03, ..World::equal(40.0) };
    let mut all = ticks(gate, &Course::by_time(&demo_steps()), &world, 3, count);
    // Scrapes fail, pods warm up, weights are being accepted, jobs take longer than a tick.
    for tick in &mut all {
        match tick.number % 17 {
            3 => tick.live = None,
            5 => tick.warm = false,
            7 => tick.weight = None,
            9 | 11 => tick.probes = None,
            _ => {}
        }
        if tick.number > count / 2 {
            tick.weight_change += 1;
        }
    }
    all
}

/// Bit for bit: two assessments are the same even where they hold −0 or differ in the last place of a float.
fn same(a: &Assessment, b: &Assessment) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

#[test]
fn stored_and_read_back_at_every_tick_it_goes_on_as_if_nothing_had_happened() {
    for gate in [demo_gate(), Gate::default(), Gate { percentiles: ALL, ..demo_gate() }] {
        let mut uninterrupted = Evidence::new(&gate);
        let mut text = encode(&Evidence::new(&gate), &gate);
        for tick in eventful(&gate, 140) {
            let expected = uninterrupted.step(&gate, &tick);
            let mut restored = decode(&text).unwrap();
            let found = restored.step(&gate, &tick);
            assert!(same(&found, &expected), "tick {}: {found:?} instead of {expected:?}", tick.number);
            assert_eq!(restored, uninterrupted, "tick {}", tick.number);
            text = encode(&restored, &gate);
            assert_eq!(decode(&text).unwrap(), restored);
            // Between ticks the summary says the same, but for a tripped wire.
            if !matches!(expected.finding, Finding::Tripwire { .. }) {
                assert!(same(&decode(&text).unwrap().summary(&gate), &expected), "tick {}", tick.number);
            }
        }
    }
}

const ALL: Percentiles = Percentiles { body: true, p95: true, p99: true };

/// As much as a state can hold: every latency bucket in use, in numbers of a service with 100,000 requests per second,
/// at the last step with both blocks open, ticks of a second.
#[test]
fn the_largest_state_is_small() {
    let gate = Gate { interval: Span::seconds(1), percentiles: ALL, max_excess: 1e-6, ..Gate::default() };
    let spread = |per_bucket: u64| LiveArm {
        requests: 181 * per_bucket,
        errors: 90 * per_bucket,
        ttft: Histogram((-126..=54).map(|b| (b, per_bucket)).collect()),
        tpot: Histogram((-126..=54).map(|b| (b, per_bucket)).collect()),
    };
    for (history, live) in [(5, 3), (1_000, 500), (50_000, 90_000)] {
        let mut evidence = Evidence::new(&gate);
        let mut longest = 0;
        for (i, mut tick) in
            ticks(&gate, &Course::by_time(&demo_steps()), &World::equal(20.0), 5, 150).into_iter().enumerate()
        {
            tick.stable_total = (i == 0).then(|| (spread(history), 100.0));
            tick.live = Some((spread(live), spread(live + 1), 1.0));
            evidence.step(&gate, &tick);
            let mut w = Writer::new();
            evidence.encode_into(&mut w);
            longest = longest.max(w.len());
        }
        assert!(longest <= Evidence::MAX_BYTES, "{longest} bytes with {live} requests per bucket and tick");
        // Beside the evidence a state holds names and times of the attempt: 600 bytes, and 4 KB as text in all.
        assert!((Evidence::MAX_BYTES + 600 + 13).div_ceil(3) * 4 < 4096);
    }
}

#[test]
fn other_parameters_are_another_test() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let all = ticks(&gate, &Course::by_time(&demo_steps()), &World::equal(20.0), 1, 40);
    for tick in &all[..30] {
        evidence.step(&gate, tick);
    }
    assert!(evidence.summary(&gate).prompts > 200);
    let text = encode(&evidence, &gate);

    let changed = Gate { min_mean: 0.96, ..gate.clone() };
    assert_ne!(changed.parameters_hash(), gate.parameters_hash());
    assert_ne!(Reader::open(&text, VERSION).unwrap().parameters(), changed.parameters());
    let restored = decode(&text).unwrap();
    assert!(restored.is_of(&gate) && !restored.is_of(&changed));
    // Nothing of the old evidence is used, before the next tick and after it; stable's history is not evidence.
    assert_eq!(restored.summary(&changed).prompts, 0);
    let mut restored = restored;
    let after = restored.step(&changed, &all[30]);
    assert_eq!(after.prompts, 8);
    assert!(restored.is_of(&changed));
    assert!(!after.history_pending && after.preflight_done);

    // Policies are no parameters: changing them keeps the evidence.
    let policy =
        Gate { name: "other".into(), on_inconclusive: bitnet_core::evidence::OnInconclusive::Rollback, ..gate };
    assert!(evidence.is_of(&policy));
}

#[test]
fn a_stored_state_that_is_damaged_is_refused() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    for tick in eventful(&gate, 60) {
        evidence.step(&gate, &tick);
    }
    let mut w = Writer::new();
    evidence.encode_into(&mut w);
    let full = w.len();
    let text = encode(&evidence, &gate);
    assert!(matches!(Reader::open(&text, VERSION + 1), Err(CodecError::Version { found: VERSION, .. })));
    // A payload that was cut before it was sealed has a right checksum and still does not read.
    for length in 0..full {
        let mut cut = Writer::new();
        let mut r = Reader::open(&text, VERSION).unwrap();
        for _ in 0..length {
            cut.u8(r.u8().unwrap());
        }
        let sealed = cut.seal(VERSION, 0);
        assert!(decode(&sealed).is_err(), "cut at {length} of {full}");
    }
}

#[test]
fn a_tick_counts_once_and_ticks_go_forward() {
    let gate = demo_gate();
    let mut evidence = Evidence::new(&gate);
    let all = ticks(&gate, &Course::by_time(&demo_steps()), &World::equal(20.0), 1, 30);
    for tick in &all {
        evidence.step(&gate, tick);
    }
    let before = evidence.clone();
    for again in [&all[29], &all[0], &all[15], &Tick::default()] {
        evidence.step(&gate, again);
        assert_eq!(evidence, before);
    }
}

#[test]
fn prompts_may_come_in_any_order() {
    let gate = demo_gate();
    let (mut one, mut other) = (Evidence::new(&gate), Evidence::new(&gate));
    for mut tick in ticks(&gate, &Course::by_time(&demo_steps()), &World::equal(20.0), 9, 40) {
        let a = one.step(&gate, &tick);
        let probes = tick.probes.as_mut().unwrap();
        probes.prompts.reverse();
        probes.pairs.reverse();
        let b = other.step(&gate, &tick);
        assert!((a.ln_rollback - b.ln_rollback).abs() < 1e-4);
        for (a, b) in a.signals.iter().zip(&b.signals) {
            assert_eq!((a.samples, a.state), (b.samples, b.state));
            assert!((a.ln_promote - b.ln_promote).abs() < 1e-4);
        }
    }
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -2.0..2.0f64,
        1 => prop::sample::select(vec![
            f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e300, -1e300, f64::MIN_POSITIVE, 1.0,
        ]),
    ]
}

fn any_count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..300u64, 1 => prop::sample::select(vec![999_999_999, u64::from(u32::MAX), u64::MAX])]
}

fn any_histogram() -> impl Strategy<Value = Histogram> {
    let bucket = prop_oneof![4 => -126..=54i16, 1 => any::<i16>()];
    prop::collection::btree_map(bucket, any_count(), 0..6).prop_map(Histogram)
}

fn any_arm() -> impl Strategy<Value = LiveArm> {
    (any_count(), any_count(), any_histogram(), any_histogram()).prop_map(|(requests, errors, ttft, tpot)| LiveArm {
        requests,
        errors,
        ttft,
        tpot,
    })
}

fn any_probes() -> impl Strategy<Value = Probes> {
    let prompt = prop::array::uniform5(any_number()).prop_map(|[cosine, cosine_at, mse, kl, top1]| PromptSample {
        cosine,
        cosine_at,
        mse,
        kl,
        top1,
    });
    let generation = || {
        (any::<bool>(), any_number(), any_number(), any::<bool>())
            .prop_map(|(ok, ttft, tpot, alone)| GenerationSample { ok, ttft, tpot, alone })
    };
    let pairs = prop::collection::vec((generation(), generation()), 0..12);
    (prop::collection::vec(prompt, 0..12), pairs, 0..20u32).prop_map(|(prompts, pairs, drawn)| Probes {
        drawn,
        prompts,
        pairs,
        ..Probes::default()
    })
}

fn any_tick() -> impl Strategy<Value = Tick> {
    let live = prop::option::weighted(0.9, (any_arm(), any_arm(), any_number()));
    let total = prop::option::of((any_arm(), any_number()));
    let weights = (prop::option::weighted(0.9, prop_oneof![0..=100u32, any::<u32>()]), 0..3u32, any::<u32>());
    let spans = (any::<i64>(), any::<i64>());
    let rest = (any::<bool>(), any::<bool>(), 0..4u32, 0..4u32, any::<u64>(), any::<u32>());
    (live, total, weights, spans, rest, prop::option::of(any_probes())).prop_map(
        |(live, stable_total, weights, spans, rest, probes)| Tick {
            number: if rest.5 % 5 == 0 { rest.5 } else { 0 },
            weight: weights.0,
            weight_change: weights.1,
            last_weight: weights.2,
            until_last_step: Span(spans.0),
            step_duration: Span(spans.1),
            last_step: rest.0,
            warm: rest.1,
            ready_candidate: rest.2,
            ready_stable: rest.3,
            seed: rest.4,
            live,
            stable_total,
            probes,
            ..Tick::default()
        },
    )
}

fn any_gate() -> impl Strategy<Value = Gate> {
    let numbers = prop::array::uniform7(prop_oneof![2 => 0.0..1.0f64, 1 => any_number()]);
    (numbers, any::<i64>(), any::<i64>(), prop::array::uniform4(any::<u32>())).prop_map(
        |(numbers, interval, deadline, counts)| {
            let [min_mean, tail_min, tail_share, max_ratio, max_excess, alpha_rollback, alpha_promote] = numbers;
            Gate {
                interval: Span(interval),
                deadline: Span(deadline),
                preflight: counts[0],
                min_samples: counts[1],
                min_mean,
                tail_min,
                tail_share,
                max_ratio,
                max_excess,
                alpha_rollback,
                alpha_promote,
                tripwire: bitnet_core::evidence::Tripwire { error_rate: max_ratio, min_requests: counts[2] },
                ..Gate::default()
            }
        },
    )
}

fn finite(assessment: &Assessment) -> bool {
    let number = |x: f64| x.is_finite();
    assessment.ln_rollback.is_finite()
        && assessment.signals.iter().all(|s| {
            number(s.ln_rollback)
                && number(s.ln_promote)
                && s.estimate.is_none_or(number)
                && s.interval.is_none_or(|(low, high)| number(low) && number(high) && low <= high)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, no panic, every number finite, and the state can be stored and read.
    #[test]
    fn any_input_is_taken(gate in prop_oneof![Just(demo_gate()), any_gate()], all in prop::collection::vec(any_tick(), 1..12)) {
        let mut evidence = Evidence::new(&gate);
        for (i, tick) in all.iter().enumerate() {
            let number = if tick.number == 0 { i as u32 + 1 } else { tick.number };
            let assessment = evidence.step(&gate, &Tick { number, ..tick.clone() });
            prop_assert!(finite(&assessment), "{assessment:?}");
            prop_assert_eq!(decode(&encode(&evidence, &gate)).unwrap(), evidence.clone());
        }
    }

    /// Without a single usable value nothing is ever proven, either way.
    #[test]
    fn garbage_proves_nothing(mut all in prop::collection::vec(any_tick(), 1..40)) {
        let gate = demo_gate();
        let mut evidence = Evidence::new(&gate);
        for (i, tick) in all.iter_mut().enumerate() {
            tick.number = i as u32 + 1;
            tick.probes = tick.probes.take().map(|p| Probes { prompts: Vec::new(), pairs: Vec::new(), ..p });
            if let Some((candidate, _, _)) = &mut tick.live {
                candidate.errors = candidate.requests.saturating_add(1);
            }
            let assessment = evidence.step(&gate, tick);
            prop_assert!(matches!(assessment.finding, Finding::Continue), "{:?}", assessment.finding);
            prop_assert!(assessment.signals.iter().all(|s| s.state == SignalState::NoData));
            prop_assert!(assessment.ln_rollback <= 1e-9);
        }
    }

    /// Bytes that no judge wrote: refused or read, never a panic; and what was read can go on.
    #[test]
    fn random_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let gate = demo_gate();
        let mut w = Writer::new();
        w.fixed_u64(gate.parameters());
        for byte in bytes {
            w.u8(byte);
        }
        if let Ok(mut evidence) = decode(&w.seal(VERSION, gate.parameters())) {
            evidence.step(&gate, &Tick { number: u32::MAX, ..Tick::default() });
        }
    }
}
