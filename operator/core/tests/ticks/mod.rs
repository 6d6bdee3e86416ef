//! Ticks made by hand, for the tests of the judge's rules.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::unnecessary_wraps,
    reason = "each test file uses a part; helpers return what a tick holds"
)]

use bitnet_core::{
    Span,
    evidence::{
        Assessment, Evidence, Gate, GenerationSample, Histogram, LiveArm, Probes, PromptSample, Signal, SignalKind,
        Tick,
    },
};

/// A tick of the demo's gate (2 s) at a weight, without any data.
pub(crate) fn tick(number: u32, weight: u32) -> Tick {
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
pub(crate) fn live(candidate: (u64, u64), stable: (u64, u64), slower: i16) -> Option<(LiveArm, LiveArm, f64)> {
    let arm = |(errors, requests): (u64, u64), bucket: i16| LiveArm {
        requests,
        errors,
        ttft: Histogram((requests > 0).then_some((bucket, requests)).into_iter().collect()),
        tpot: Histogram((requests > 0).then_some((bucket - 20, requests)).into_iter().collect()),
    };
    Some((arm(candidate, -10 + slower), arm(stable, -10), 2.0))
}

pub(crate) fn history(requests: u64) -> Option<(LiveArm, f64)> {
    let (_, stable, _) = live((0, 0), (0, requests), 0)?;
    Some((stable, requests as f64 / 20.0))
}

pub(crate) fn prompts(n: u32, cosine: f64, cosine_at: f64) -> Option<Probes> {
    let prompt = PromptSample { cosine, cosine_at, mse: 0.0, kl: 0.0, top1: 1.0 };
    Some(Probes { drawn: n, prompts: vec![prompt; n as usize], ..Probes::default() })
}

pub(crate) fn generation(ok: bool, seconds: f64, alone: bool) -> GenerationSample {
    GenerationSample { ok, ttft: seconds, tpot: seconds / 10.0, alone }
}

/// Pairs whose candidate takes `ratio` times as long.
pub(crate) fn pairs(n: usize, ratio: f64, alone: (bool, bool)) -> Option<Probes> {
    let pair = (generation(true, ratio, alone.0), generation(true, 1.0, alone.1));
    Some(Probes { pairs: vec![pair; n], ..Probes::default() })
}

pub(crate) fn good(n: u32) -> Option<Probes> {
    let mut probes = prompts(n, 0.99, 0.99);
    if let Some(probes) = &mut probes {
        probes.pairs = pairs(8, 1.0, (true, true)).unwrap().pairs;
    }
    probes
}

pub(crate) fn signal(assessment: &Assessment, kind: SignalKind) -> &Signal {
    assessment.signals.iter().find(|s| s.kind == kind).unwrap()
}

/// Runs ticks from `first` on, changed by `with`; the last assessment.
pub(crate) fn run(
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
