//! Prints what the decision rules do, as markdown tables: the judge's procedure of two gates in many worlds, and its engines
//! beside the rules of other tools on the same data. Seeded: the same numbers on any number of processors.
//!
//! `cargo run --release --example montecarlo [-- --short] [part]`: parts are `rules` (the tables beside other tools),
//! `worlds` (the whole procedure), `pods` (pods that differ), `guard`, `users` (verdicts of A/B tests), `speed`, or a part of a
//! world's name; all of them without. What was promised is held against what was found: a broken promise makes it exit with 1.

mod beside;
mod cosine;
mod errors;
mod gates;
mod latency;
mod procedure;
mod promises;
mod table;
mod users;
mod whole;

use bitnet_core::{
    evidence::{Evidence, Gate},
    simulate::{Course, World, ticks},
};
use gates::{demo_gate, demo_steps};
use promises::Promises;
use std::process::ExitCode;

/// Names of parts; anything else is a part of a world's name.
const PARTS: [&str; 6] = ["rules", "worlds", "pods", "guard", "users", "speed"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let short = arguments.iter().any(|a| a == "--short");
    let part = arguments.into_iter().find(|a| a != "--short").unwrap_or_default();
    let wanted = |name: &str| part.is_empty() || part == name;
    let mut promises = Promises::default();
    if wanted("rules") {
        timed("cosine", || cosine::tables(short, &mut promises));
        timed("latency", || latency::tables(short, &mut promises));
        timed("errors", || errors::tables(short, &mut promises));
        timed("whole decision", || whole::tables(short, &mut promises));
        timed("users", || users::tables(short, &mut promises));
    }
    if wanted("pods") {
        timed("pods", || procedure::pods(if short { 20 } else { 500 }, &mut promises));
    }
    let worlds = if wanted("worlds") { Some("") } else { Some(part.as_str()).filter(|p| !PARTS.contains(p)) };
    if let Some(part) = worlds {
        timed("worlds", || procedure::tables(procedure::Runs::of(short), part, &mut promises));
    }
    if wanted("guard") {
        timed("guard", || beside::guard(short, &mut promises));
    }
    if wanted("users") {
        timed("verdicts", || beside::verdicts(short, &mut promises));
    }
    if wanted("speed") {
        speed();
    }
    // A tenth of the runs says too little to break a promise.
    if promises.close() || short { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells on standard error what a part took.
#[allow(clippy::disallowed_methods, reason = "a program that measures time reads the clock; the library never does")]
fn timed(name: &str, part: impl FnOnce()) {
    let start = std::time::Instant::now();
    part();
    eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f64());
}

/// Time of one step of the judge in the middle of an attempt, with everything in use.
#[allow(clippy::disallowed_methods, reason = "a program that measures time reads the clock; the library never does")]
fn speed() {
    for (name, gate, rate) in [("demo, 20/s", demo_gate(), 20.0), ("default, 100/s", Gate::default(), 100.0)] {
        let all = ticks(&gate, &Course::by_time(&demo_steps()), &World::equal(rate), 1, 200);
        let mut evidence = Evidence::new(&gate);
        // The quickest of many rounds: what the step takes when nothing else runs on the machine.
        let mut quickest = f64::INFINITY;
        for round in 0..200 {
            let mut again = all.clone();
            for tick in &mut again {
                tick.number += round * all.len() as u32;
            }
            let start = std::time::Instant::now();
            for tick in &again {
                std::hint::black_box(evidence.step(&gate, tick));
            }
            quickest = quickest.min(start.elapsed().as_secs_f64());
        }
        println!("\nOne step of the judge ({name}): {:.1} µs", quickest * 1e6 / all.len() as f64);
    }
}

/// `f` of every seed in their order, on all processors.
fn parallel<T: Send>(runs: u64, f: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut parts: Vec<std::vec::IntoIter<T>> = std::thread::scope(|scope| {
        let f = &f;
        let handles: Vec<_> = (0..threads)
            .map(|t| scope.spawn(move || (t..runs).step_by(threads as usize).map(f).collect::<Vec<T>>()))
            .collect();
        // A run that panics is a defect of ours: it goes on here.
        handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p)).into_iter()).collect()
    });
    (0..runs).filter_map(|seed| parts[(seed % threads) as usize].next()).collect()
}
