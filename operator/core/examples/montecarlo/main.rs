//! Prints what the decision rules do, as markdown tables: the judge's procedure of two gates in many worlds, and its engines
//! beside the rules of other tools on the same data. Seeded.
//!
//! `cargo run --release --example montecarlo [-- --short] [part]`: parts are `rules` (the tables beside other tools),
//! `worlds` (the whole procedure), `pods` (pods that differ), `speed`, or a part of a world's name; all of them without.

mod cosine;
mod errors;
mod gates;
mod latency;
mod table;
mod users;
mod whole;

use bitnet_core::{
    evidence::{Evidence, Gate},
    simulate::{Course, Forecast, Run, World, run, ticks},
};
use gates::{default_gate, default_steps, demo_gate, demo_steps};
use table::with_interval;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let short = arguments.iter().any(|a| a == "--short");
    let part = arguments.into_iter().find(|a| a != "--short").unwrap_or_default();
    let wanted = |name: &str| part.is_empty() || part == name;
    if wanted("rules") {
        cosine::tables(short);
        latency::tables(short);
        errors::tables(short);
        whole::tables(short);
        users::tables(short);
    }
    if wanted("pods") {
        pods(if short { 20 } else { 1000 });
    }
    let worlds = if wanted("worlds") { Some("") } else { Some(part.as_str()).filter(|p| !PARTS.contains(p)) };
    if let Some(part) = worlds {
        procedure(if short { 20 } else { 500 }, part);
    }
    if wanted("speed") {
        speed();
    }
}

/// Names of parts; anything else is a part of a world's name.
const PARTS: [&str; 4] = ["rules", "worlds", "pods", "speed"];

/// The judge's whole procedure.
fn procedure(runs: u64, part: &str) {
    println!("\n### The whole procedure, {runs} runs of each world ({} of a defect)\n", runs.min(200));
    println!(
        "| world | rolled back | promoted | inconclusive | ticks to the end: median (90 %) | live requests | state |"
    );
    println!("|---|---|---|---|---|---|---|");
    demo(runs, part);
    defaults(runs, part);
}

/// Identical models whose pods differ, default gate at 20 requests per second.
fn pods(runs: u64) {
    println!("\n### Identical models on pods that differ, {runs} runs: rolled back, % with a 95 % interval\n");
    println!("| spread of a pod's speed | 1 pod per arm | 2 | 3 | 5 |\n|---|---|---|---|---|");
    let (gate, course) = (default_gate(), Course::by_time(&default_steps()));
    for spread in [0.02, 0.05, 0.1] {
        let cells: Vec<String> = [1, 2, 3, 5]
            .iter()
            .map(|&count| {
                let world = World { pods: (count, count), pod_spread: spread, ..World::equal(20.0) };
                let all: Vec<Run> = parallel(runs, |seed| run(&gate, &course, &world, seed + 1));
                Forecast::of(&gate, &all).map_or(String::new(), |f| with_interval(f.rolled_back, f.runs))
            })
            .collect();
        println!("| {:.0} % | {} |", 100.0 * spread, cells.join(" | "));
    }
}

/// Time of one step of the judge in the middle of an attempt, with everything in use.
#[allow(clippy::disallowed_methods, reason = "a program that measures time reads the clock; the library never does")]
fn speed() {
    for (name, gate, rate) in [("demo, 20/s", demo_gate(), 20.0), ("default, 100/s", default_gate(), 100.0)] {
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

/// One line of the table of the whole procedure.
struct Table<'a> {
    name: String,
    gate: &'a Gate,
    course: &'a Course,
    part: &'a str,
}

impl Table<'_> {
    fn line(&self, name: &str, runs: u64, world: &World) {
        let name = format!("{}: {name}", self.name);
        if !name.contains(self.part) {
            return;
        }
        let all: Vec<Run> = parallel(runs, |seed| run(self.gate, self.course, world, seed + 1));
        let Some(f) = Forecast::of(self.gate, &all) else { return };
        let share = |n: u64| 100.0 * n as f64 / f.runs as f64;
        let ticks = |span: bitnet_core::Span| span.0 / self.gate.interval.0;
        println!(
            "| {name} | {:.1} % | {:.1} % | {:.1} % | {} ({}) | {} (weight ≤ {}) | {} B |",
            share(f.rolled_back),
            share(f.promoted),
            share(f.inconclusive),
            ticks(f.time.median),
            ticks(f.time.high),
            f.exposed.median,
            f.weight,
            f.state
        );
    }
}

fn demo(runs: u64, part: &str) {
    let (gate, course) = (demo_gate(), Course::by_time(&demo_steps()));
    let table = Table { name: "demo".into(), gate: &gate, course: &course, part };
    let equal = World { cosine: (0.994, 0.005), tail: 0.001, load: 1.1, errors: (0.0, 0.0), ..World::equal(20.0) };
    table.line("healthy", runs, &equal);
    table.line("healthy, weights accepted after a tick", runs, &World { confirm: 1, ..equal });
    table.line("healthy, history from 0", runs, &World { history: 0, ..equal });
    for tail in [0.055, 0.1, 0.14, 0.18, 0.25] {
        table.line(&format!("rope fault, tail {tail}"), runs, &World { cosine: (0.96, 0.04), tail, ..equal });
    }
    table.line("gross (cosine .05)", runs, &World { cosine: (0.05, 0.03), tail: 1.0, ..equal });
    table.line("latency 2x", runs, &World { latency: 2.0, ..equal });
    table.line("latency at the margin", runs, &World { latency: 1.5, ..equal });
    for errors in [0.5, 0.1, 0.02] {
        table.line(&format!("errors {errors}"), runs, &World { errors: (errors, 0.0), ..equal });
    }
}

fn defaults(runs: u64, part: &str) {
    let (gate, course) = (default_gate(), Course::by_time(&default_steps()));
    let few = runs.min(200);
    for rate in [20.0, 100.0] {
        let table = Table { name: format!("default, {rate}/s"), gate: &gate, course: &course, part };
        let equal = World::equal(rate);
        table.line("healthy", runs, &equal);
        let acceptable = World { cosine: (0.957, 0.025), latency: 1.1, errors: (0.003, 0.002), ..equal };
        table.line("acceptable", runs, &acceptable);
        table.line("healthy with bursts", runs, &World { bursts: 0.015, ..equal });
        table.line("tail at the boundary", runs, &World { tail: 0.05, ..equal });
        table.line("errors at the boundary", runs, &World { errors: (0.004, 0.002), ..equal });
        table.line("latency at the boundary", runs, &World { latency: 1.2, ..equal });
        table.line("closed loop", runs, &World { closed_loop: true, ..equal });
        table.line("closed loop, latency 1.5x", few, &World { closed_loop: true, latency: 1.5, ..equal });
        table.line("edited every 60 ticks", runs, &World { edits: 60, ..equal });
        for factor in [1.3, 1.5, 2.0] {
            table.line(&format!("latency {factor}x"), few, &World { latency: factor, ..equal });
        }
        for errors in [0.01, 0.02, 0.5] {
            table.line(&format!("errors {errors}"), few, &World { errors: (errors, 0.002), ..equal });
        }
        table.line("cosine .80", few, &World { cosine: (0.8, 0.06), tail: 0.8, ..equal });
        table.line("cosine .93", few, &World { cosine: (0.93, 0.03), ..equal });
        for tail in [0.1, 0.15, 0.25] {
            table.line(&format!("tail {tail}"), few, &World { tail, ..equal });
        }
        let late = World { onset: 60, latency: 1.5, errors: (0.02, 0.002), cosine: (0.93, 0.03), ..equal };
        table.line("all defects from tick 60", few, &late);
    }
    let table = Table { name: "default, no traffic".into(), gate: &gate, course: &course, part };
    let silent = World { history: 0, ..World::equal(0.0) };
    table.line("healthy", runs, &silent);
    table.line("latency 1.5x", few, &World { latency: 1.5, ..silent });
    table.line("errors 0.2", few, &World { errors: (0.2, 0.002), ..silent });
}

/// `f` of every seed, on all processors.
fn parallel<T: Send>(runs: u64, f: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        let f = &f;
        let handles: Vec<_> =
            (0..threads).map(|t| scope.spawn(move || (t..runs).step_by(threads as usize).map(f).collect())).collect();
        handles.into_iter().flat_map(|h: std::thread::ScopedJoinHandle<Vec<T>>| h.join().unwrap_or_default()).collect()
    })
}
