//! The guard of a promoted model: how long it stays quiet, how soon it sees, and what silence and garbage do.

#![allow(clippy::unwrap_used, reason = "a test may")]

use bitnet_core::{
    evidence::{
        GenerationSample, Probes, PromptSample, SignalKind, SignalState,
        codec::{Reader, Writer},
        guard::{Guard, GuardSettings, RUN_LENGTH},
    },
    stats::thinning::Draws,
};

fn settings() -> GuardSettings {
    GuardSettings {
        min_mean: 0.95,
        tail_min: 0.9,
        tail_share: 0.05,
        max_ratio: 1.2,
        run_length: RUN_LENGTH,
        per_tick: 10,
        pairs: 4,
    }
}

/// Ten prompts with cosines around a mean, a share of them in the tail, and four pairs with a latency ratio.
fn probes(draws: &mut Draws, mean: f64, tail: f64, ratio: f64) -> Probes {
    let noise = |draws: &mut Draws| (0..4).map(|_| draws.uniform() - 0.5).sum::<f64>();
    let prompts = (0..10).map(|_| PromptSample {
        cosine: (mean + 0.04 * noise(draws)).min(1.0),
        cosine_at: if draws.uniform() < tail { 0.7 } else { 0.97 },
        mse: 0.1,
        kl: 0.01,
        top1: 0.95,
    });
    let prompts = prompts.collect();
    let generation = |draws: &mut Draws, slow: f64| GenerationSample {
        ok: true,
        ttft: 0.1 * slow * (0.2 * noise(draws)).exp(),
        tpot: 0.01 * slow * (0.2 * noise(draws)).exp(),
        alone: draws.uniform() < 0.8,
    };
    let pairs = (0..4).map(|_| (generation(draws, ratio), generation(draws, 1.0))).collect();
    Probes { probe_set: "set".into(), probe_set_size: 200, drawn: 10, prompts, pairs, ..Probes::default() }
}

/// Ticks until the alarm, `None` if there is none in `ticks`.
fn alarm(
    settings: &GuardSettings,
    seed: u64,
    ticks: u64,
    world: impl Fn(u64) -> (f64, f64, f64),
) -> Option<(u64, SignalKind)> {
    let mut draws = Draws::new(seed, 7);
    let mut guard = Guard::new(settings);
    (1..=ticks).find_map(|number| {
        let (mean, tail, ratio) = world(number);
        let probes = probes(&mut draws, mean, tail, ratio);
        guard.step(settings, number, Some(&probes)).alarm.map(|(kind, _)| (number, kind))
    })
}

/// A run length of 100,000 ticks means at most one alarm in 100 per thousand ticks at the margins; a healthy model lies
/// inside them. None in 40 x 1,000 ticks shows that, with seeds that do not change.
#[test]
fn a_healthy_model_is_left_alone() {
    for seed in 0..40 {
        assert_eq!(alarm(&settings(), seed, 1000, |_| (0.965, 0.01, 0.6)), None, "seed {seed}");
    }
}

/// On the margins, with a run length of 200 ticks: E[M_t] ≤ t, so at most 30 % of the runs alarm within 60 ticks (Markov).
/// Of 200 runs more than 85 would happen once in ten thousand seeds.
#[test]
fn on_its_margins_it_keeps_its_run_length() {
    let quick = GuardSettings { run_length: 200.0, ..settings() };
    let early = (0..200).filter(|seed| alarm(&quick, *seed, 60, |_| (0.95, 0.05, 1.2)).is_some()).count();
    println!("{early} of 200 alarmed within 60 ticks");
    assert!(early <= 85, "{early} of 200");
}

#[test]
fn a_defect_after_a_thousand_good_ticks_is_seen_within_minutes() {
    let sees = |bad: (f64, f64, f64), kind: SignalKind| {
        let mut delays: Vec<u64> = (0..20)
            .map(|seed| {
                let world = |t| if t <= 1000 { (0.965, 0.01, 0.6) } else { bad };
                let (tick, found) = alarm(&settings(), seed, 1200, world).unwrap();
                assert_eq!(found, kind, "seed {seed}");
                tick - 1000
            })
            .collect();
        delays.sort_unstable();
        delays
    };
    let cosine = sees((0.93, 0.01, 0.6), SignalKind::Cosine);
    let tail = sees((0.96, 0.25, 0.6), SignalKind::CosineTail);
    let latency = sees((0.965, 0.01, 1.6), SignalKind::Latency);
    println!("delays in ticks: cosine {cosine:?}, tail {tail:?}, latency {latency:?}");
    assert!(cosine[10] <= 8 && tail[10] <= 10 && latency[10] <= 40);
}

#[test]
fn silence_neither_alarms_nor_forgets() {
    let settings = settings();
    let mut guard = Guard::new(&settings);
    for number in 1..=5000 {
        let said = guard.step(&settings, number, None);
        assert_eq!((said.alarm, said.ticks), (None, 0));
        assert!(said.signals.iter().all(|s| s.state == SignalState::NoData && s.ln_rollback == 0.0));
    }
    let mut draws = Draws::new(3, 7);
    let mut number = 5000;
    let mut bad = |guard: &mut Guard| {
        number += 1;
        guard.step(&settings, number, Some(&probes(&mut draws, 0.94, 0.01, 0.6)))
    };
    let before = bad(&mut guard);
    let mut quiet = guard.clone();
    for number in 5002..6000 {
        quiet.step(&settings, number, None);
    }
    assert_eq!(quiet.summary(&settings).ln_m, before.ln_m, "no evidence is no evidence, however long");
}

#[test]
fn fewer_than_half_of_the_prompts_are_no_observation() {
    let settings = settings();
    let mut guard = Guard::new(&settings);
    let mut draws = Draws::new(1, 7);
    let mut half = probes(&mut draws, 0.1, 1.0, 1.0);
    half.prompts.truncate(4);
    half.pairs.clear();
    let said = guard.step(&settings, 1, Some(&half));
    assert_eq!((said.ticks, said.alarm), (0, None));
}

#[test]
fn numbers_that_are_none_count_against_quality_and_not_at_all_in_latency() {
    let settings = settings();
    let mut guard = Guard::new(&settings);
    let mut draws = Draws::new(1, 7);
    let mut garbage = probes(&mut draws, 0.965, 0.0, 1.0);
    for prompt in &mut garbage.prompts {
        prompt.cosine = f64::NAN;
        prompt.cosine_at = f64::NAN;
    }
    for (pair, time) in garbage.pairs.iter_mut().zip([f64::NAN, 0.0, f64::INFINITY, -1.0]) {
        pair.0.ttft = time;
        pair.0.tpot = time;
    }
    let said = guard.step(&settings, 1, Some(&garbage));
    assert_eq!(said.signals[0].estimate, Some(0.0));
    assert_eq!(said.signals[1].estimate, Some(1.0));
    assert_eq!(said.signals[2].state, SignalState::NoData);
    assert!(said.ln_m.is_finite());
    let said = (2..10).map(|n| guard.step(&settings, n, Some(&garbage))).last().unwrap();
    assert!(said.alarm.is_some(), "a model without numbers is no good model");
}

#[test]
fn an_alarm_stays_and_an_old_tick_changes_nothing() {
    let settings = settings();
    let mut guard = Guard::new(&settings);
    let mut draws = Draws::new(1, 7);
    for number in 1..=10 {
        guard.step(&settings, number, Some(&probes(&mut draws, 0.5, 1.0, 1.0)));
    }
    let alarmed = guard.step(&settings, 11, Some(&probes(&mut draws, 0.5, 1.0, 1.0)));
    assert!(matches!(alarmed.alarm, Some((SignalKind::CosineTail, _))), "{alarmed:?}");
    let again = guard.step(&settings, 11, Some(&probes(&mut draws, 0.99, 0.0, 0.5)));
    assert_eq!(again, alarmed);
    for number in 12..100 {
        let said = guard.step(&settings, number, Some(&probes(&mut draws, 0.99, 0.0, 0.5)));
        assert_eq!(said.alarm, alarmed.alarm);
    }
    let other = GuardSettings { min_mean: 0.4, ..settings };
    assert!(!guard.is_of(&other));
    assert_eq!(guard.summary(&other).alarm, None);
    assert_eq!(guard.step(&other, 100, None).alarm, None, "other margins are another watch");
}

#[test]
fn stored_and_read_back_it_goes_on_bit_for_bit() {
    let settings = settings();
    let (mut whole, mut parts) = (Guard::new(&settings), Guard::new(&settings));
    let mut draws = Draws::new(5, 7);
    let mut longest = 0;
    for number in 1..=400 {
        let probes = (number % 7 != 0).then(|| probes(&mut draws, 0.95, 0.06, 1.1));
        let expected = whole.step(&settings, number, probes.as_ref());
        let mut writer = Writer::new();
        parts.encode_into(&mut writer);
        longest = longest.max(writer.len());
        let text = writer.seal(1, 0);
        let mut reader = Reader::open(&text, 1).unwrap();
        parts = Guard::decode_from(&mut reader).unwrap();
        reader.finish().unwrap();
        assert_eq!(parts.step(&settings, number, probes.as_ref()), expected);
        assert_eq!(parts, whole);
    }
    println!("longest state: {longest} bytes");
    assert!(longest <= Guard::MAX_BYTES);
}
