//! Time of one reconcile's decision in the middle of a trial, and of 10,000 rollouts' ticks on one core.
//! `cargo run --release --example speed`.

#![allow(clippy::disallowed_methods, reason = "a program that measures time reads the clock; the library never does")]

#[path = "montecarlo/gates.rs"]
#[allow(dead_code, reason = "the other example uses the rest")]
mod gates;
#[allow(dead_code, clippy::unwrap_used, reason = "tests use the rest, and theirs may")]
#[path = "../tests/world/spec.rs"]
mod spec;

use bitnet_core::{
    Span, Time,
    evidence::Gate,
    model::{Canary, Pace, Rollout, Strategy},
    observation::{
        Backend, Comparable, Ledger, Live, Observation, Pod, ProbeOutcome, Route, RouteState, Sample, Workload,
    },
    plan::{State, plan},
    simulate::{Course, World, ticks},
};
use std::{collections::BTreeMap, hint::black_box, time::Instant};

const BEGAN: Time = Time(1_000_000_000_000);

/// Ticks that are prepared: the measured ones are after the first 40.
const TICKS: u32 = 120;

fn main() {
    println!(
        "| gate | plan with its tick, µs | with the stored state read and written, µs | 10,000 rollouts, s | state, B |"
    );
    println!("|---|---|---|---|---|");
    for (name, gate, rate) in [
        ("demo, 20/s", gates::demo_gate(), 20.0),
        ("default, 20/s", Gate::default(), 20.0),
        ("default, 100/s", Gate::default(), 100.0),
    ] {
        line(name, &Trial::new(gate, rate));
    }
}

/// A rollout at a long step of 20 %, and what it sees at each tick.
struct Trial {
    rollout: Rollout,
    seen: Vec<(Time, Observation)>,
    /// State before each tick.
    before: Vec<State>,
}

fn line(name: &str, trial: &Trial) {
    let hash = trial.rollout.gate.parameters_hash();
    let (mut alone, mut stored) = (f64::INFINITY, f64::INFINITY);
    let texts: Vec<String> = trial.before.iter().map(|s| s.encode(&hash)).collect();
    let measured = 40..TICKS as usize;
    // The quickest of many rounds: what it takes when nothing else runs on the machine.
    for _ in 0..100 {
        let start = Instant::now();
        for i in measured.clone() {
            let (now, observation) = &trial.seen[i];
            black_box(plan(&trial.rollout, &trial.before[i], observation, *now));
        }
        alone = alone.min(start.elapsed().as_secs_f64() / measured.len() as f64);
        let start = Instant::now();
        for i in measured.clone() {
            let (now, observation) = &trial.seen[i];
            let state = State::decode(&texts[i]).unwrap_or_default();
            black_box(plan(&trial.rollout, &state, observation, *now).state.encode(&hash));
        }
        stored = stored.min(start.elapsed().as_secs_f64() / measured.len() as f64);
    }
    let start = Instant::now();
    for n in 0..10_000 {
        let i = 40 + n % (TICKS as usize - 40);
        let (now, observation) = &trial.seen[i];
        let state = State::decode(&texts[i]).unwrap_or_default();
        black_box(plan(&trial.rollout, &state, observation, *now).state.encode(&hash));
    }
    println!(
        "| {name} | {:.1} | {:.1} | {:.2} | {} |",
        alone * 1e6,
        stored * 1e6,
        start.elapsed().as_secs_f64(),
        texts.iter().map(String::len).max().unwrap_or(0)
    );
}

impl Trial {
    fn new(gate: Gate, rate: f64) -> Self {
        let interval = gate.interval;
        let steps = spec::steps("20:100000,50:100000");
        let mut rollout = spec::rollout();
        rollout.model = spec::serving("b", "ternary", 3);
        rollout.gate = gate;
        rollout.strategy = Strategy::Canary(Canary { steps, pace: Pace::Time });
        let (stable, model) = (rollout.baseline.revision.clone(), rollout.model.revision.clone());
        let weights = [(stable.clone(), 80), (model.clone(), 20)];
        let route = Route {
            uid: "route".into(),
            resource_version: "7".into(),
            accepted: true,
            backends: weights.iter().map(|(r, w)| Backend { name: r.0.clone(), weight: *w }).collect(),
            ledger: Some(Ledger {
                uid: rollout.uid.clone(),
                stable: stable.clone(),
                candidate: Some(model.clone()),
                attempt: 1,
                step: 1,
                epoch: 3,
                rollback_of: None,
                decision: None,
            }),
            originals_ready: Some(true),
            ..Route::default()
        };
        let workloads = BTreeMap::from([(stable, workload(true)), (model, workload(false))]);
        // Steps of 20 % for both: what the simulation sends is what the observed weights ask for.
        let course = Course::by_time(&[bitnet_core::simulate::Step { weight: 20, duration: Span::seconds(100_000) }]);
        let all = ticks(&rollout.gate, &course, &World::equal(rate), 1, TICKS);
        let mut trial = Self { rollout, seen: Vec::new(), before: Vec::new() };
        let mut state = State::default();
        for (i, tick) in all.into_iter().enumerate() {
            let now = BEGAN + Span(interval.0 * i as i64);
            let sample = Sample {
                at: now,
                live: tick.live.map(|(candidate, stable, seconds)| Live {
                    candidate,
                    stable,
                    seconds,
                    users: bitnet_core::observation::Users::default(),
                }),
                stable_total: tick.stable_total,
                probes: tick.probes.map_or(ProbeOutcome::None, ProbeOutcome::Done),
                comparable: Comparable::Yes,
            };
            let observation = Observation {
                route: RouteState::Found(route.clone()),
                workloads: workloads.clone(),
                sample: Some(sample),
                finalizer: true,
                baseline_service: true,
                ..Observation::default()
            };
            let made = plan(&trial.rollout, &state, &observation, now);
            assert!(made.shift.is_none(), "nothing moves while it is measured: {:#?}", made.report);
            trial.seen.push((now, observation));
            trial.before.push(state);
            state = made.state;
        }
        assert!(state.attempt.is_some_and(|a| a.tick >= TICKS - 1), "a tick was taken in each plan");
        trial
    }
}

fn workload(baseline: bool) -> Workload {
    let pod = |i: u32| Pod { name: format!("{baseline}-{i}"), ready_since: Some(Time(0)), problem: None };
    Workload {
        replicas: Some(3),
        service: true,
        pods: (0..3).map(pod).collect(),
        ready_endpoints: 3,
        autoscaled: false,
        baseline,
    }
}
