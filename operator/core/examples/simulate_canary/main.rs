//! Prints what the decision rules do: how long healthy candidates take, how often equal ones are rolled back, how fast
//! damaged ones go. `cargo run --release -p bitnet-core --example simulate_canary [runs [part of a world's name]]`
//! (default 500 runs of every world).

mod world;

use bitnet_core::evidence::{Evidence, Gate, Tick};
use std::{collections::BTreeMap, time::Instant};
use world::{DEFAULT_STEPS, DEMO_STEPS, End, Run, Steps, World, default_gate, demo_gate, run};

fn main() {
    let runs = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(500);
    println!(
        "| world | rolled back | promoted | inconclusive | ticks to the end: median (90 %) | live requests | state |"
    );
    println!("|---|---|---|---|---|---|---|");
    demo(runs);
    defaults(runs);
    speed();
}

fn demo(runs: u64) {
    let gate = demo_gate();
    let equal = World { cosine: (0.994, 0.005), tail: 0.001, load: 1.1, errors: (0.0, 0.0), ..World::equal(20.0) };
    let go = |name: &str, world: World| report(&format!("demo: {name}"), &gate, DEMO_STEPS, &world, runs);
    go("healthy", equal);
    go("healthy, weights accepted after a tick", World { confirm: 1, ..equal });
    go("healthy, history from 0", World { history: 0, ..equal });
    go("healthy, half of the pairs alone", World { alone: 0.7, pair_noise: 0.1, ..equal });
    for (name, tail) in
        [("tail .055", 0.055), ("tail .10", 0.1), ("tail .14", 0.14), ("tail .18", 0.18), ("tail .25", 0.25)]
    {
        go(&format!("rope fault, {name}"), World { cosine: (0.96, 0.04), tail, ..equal });
    }
    go("gross (cosine 0)", World { cosine: (0.05, 0.03), tail: 1.0, ..equal });
    go("gross (cosine .8)", World { cosine: (0.8, 0.1), tail: 0.8, ..equal });
    go("latency 2x", World { latency: 2.0, ..equal });
    go("latency at the margin", World { latency: 1.5, ..equal });
    go("errors 50 %", World { errors: (0.5, 0.0), ..equal });
    go("errors 10 %", World { errors: (0.1, 0.0), ..equal });
    go("errors at the margin", World { errors: (0.02, 0.0), ..equal });
}

fn defaults(runs: u64) {
    let gate = default_gate();
    for rate in [20.0, 100.0] {
        let equal = World::equal(rate);
        let go = |name: &str, runs: u64, world: World| {
            report(&format!("default, {rate}/s: {name}"), &gate, DEFAULT_STEPS, &world, runs);
        };
        go("healthy", runs, equal);
        let acceptable = World { cosine: (0.957, 0.025), latency: 1.1, errors: (0.003, 0.002), ..equal };
        go("acceptable", runs, acceptable);
        go("healthy with bursts", runs, World { bursts: 0.015, ..equal });
        go("tail at the boundary", runs, World { tail: 0.05, ..equal });
        go("errors at the boundary", runs, World { errors: (0.004, 0.002), ..equal });
        go("latency at the boundary", runs, World { latency: 1.2, ..equal });
        let few = runs.min(200);
        for factor in [1.3, 1.5, 2.0] {
            go(&format!("latency {factor}x"), few, World { latency: factor, ..equal });
        }
        for errors in [0.01, 0.02, 0.5] {
            go(&format!("errors {errors}"), few, World { errors: (errors, 0.002), ..equal });
        }
        go("cosine .80", few, World { cosine: (0.8, 0.06), tail: 0.8, ..equal });
        go("cosine .93", few, World { cosine: (0.93, 0.03), ..equal });
        for tail in [0.1, 0.15, 0.25] {
            go(&format!("tail {tail}"), few, World { tail, ..equal });
        }
    }
}

fn report(name: &str, gate: &Gate, steps: Steps, world: &World, runs: u64) {
    if std::env::args().nth(2).is_some_and(|part| !name.contains(&part)) {
        return;
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let all: Vec<Run> = std::thread::scope(|scope| {
        let part = |first| {
            move || (first..runs).step_by(threads as usize).map(|seed| run(gate, steps, world, seed + 1)).collect()
        };
        let handles: Vec<_> = (0..threads).map(|first| scope.spawn(part(first))).collect();
        handles
            .into_iter()
            .flat_map(|h: std::thread::ScopedJoinHandle<Vec<Run>>| h.join().unwrap_or_default())
            .collect()
    });
    let share = |f: fn(&End) -> bool| 100.0 * all.iter().filter(|r| f(&r.end)).count() as f64 / all.len().max(1) as f64;
    let mut ticks: Vec<u32> = all.iter().map(|r| r.ticks).collect();
    ticks.sort_unstable();
    let at = |p: f64| {
        ticks.get(((ticks.len() as f64 * p) as usize).min(ticks.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    let mut exposed: Vec<u64> = all.iter().map(|r| r.exposed).collect();
    exposed.sort_unstable();
    println!(
        "| {name} | {:.1} % | {:.1} % | {:.1} % | {} ({}; 95 %: {}) | {} (weight ≤ {}) | {} B |",
        share(|e| matches!(e, End::RolledBack(_) | End::Tripped)),
        share(|e| *e == End::Promoted),
        share(|e| matches!(e, End::Inconclusive(_))),
        at(0.5),
        at(0.9),
        at(0.95),
        exposed.get(exposed.len() / 2).copied().unwrap_or(0),
        all.iter().map(|r| r.weight).max().unwrap_or(0),
        all.iter().map(|r| r.state).max().unwrap_or(0),
    );
    let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
    for run in &all {
        if let End::Inconclusive(missing) = &run.end {
            let first = missing.first().map_or_else(String::new, |m| m.split(':').next().unwrap_or(m).to_owned());
            *reasons.entry(first).or_default() += 1;
        }
    }
    if !reasons.is_empty() {
        println!("|  inconclusive for want of: {reasons:?} |");
    }
}

/// Time of one step in the middle of an attempt, with everything in use.
#[allow(clippy::disallowed_methods, reason = "a program that measures time reads the clock; the library never does")]
fn speed() {
    for (name, gate, rate) in [("demo, 20/s", demo_gate(), 20.0), ("default, 100/s", default_gate(), 100.0)] {
        let ticks: Vec<Tick> = world::ticks(&gate, DEMO_STEPS, &World::equal(rate), 1, 200);
        let mut evidence = Evidence::new(&gate);
        // The quickest of many rounds: what the step takes when nothing else runs on the machine.
        let mut quickest = f64::INFINITY;
        for round in 0..200 {
            let mut again = ticks.clone();
            for tick in &mut again {
                tick.number += round * ticks.len() as u32;
            }
            let start = Instant::now();
            for tick in &again {
                std::hint::black_box(evidence.step(&gate, tick));
            }
            quickest = quickest.min(start.elapsed().as_secs_f64());
        }
        let each = quickest * 1e6 / ticks.len() as f64;
        println!("\nOne step ({name}): {each:.1} µs");
    }
}
