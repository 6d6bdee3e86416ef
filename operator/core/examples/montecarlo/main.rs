//! Prints what the decision rules do, as markdown tables: the whole procedure of the two gates in many worlds, and false
//! promotions on errors at thin traffic. Seeded; `cargo run --release --example montecarlo [-- --short] [part of a name]`.
//! At full size 500 runs of every world (200 of the bad ones).

mod gates;

use bitnet_core::{
    evidence::{Evidence, Gate},
    simulate::{Forecast, Random, Run, Step, World, run, ticks},
    stats::{
        thinning::{Draws, hypergeometric},
        votes::{CLIP_PROMOTE_ERRORS, errors, not_worse},
        wealth::Wealth,
    },
};
use gates::{default_gate, default_steps, demo_gate, demo_steps};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let short = arguments.iter().any(|a| a == "--short");
    let part = arguments.into_iter().find(|a| a != "--short").unwrap_or_default();
    let runs = if short { 20 } else { 500 };
    println!(
        "| world | rolled back | promoted | inconclusive | ticks to the end: median (90 %) | live requests | state |"
    );
    println!("|---|---|---|---|---|---|---|");
    demo(runs, &part);
    defaults(runs, &part);
    if part.is_empty() {
        thin_errors(if short { 40 } else { 2000 });
        speed();
    }
}

/// Time of one step of the judge in the middle of an attempt, with everything in use.
#[allow(clippy::disallowed_methods, reason = "a program that measures time reads the clock; the library never does")]
fn speed() {
    for (name, gate, rate) in [("demo, 20/s", demo_gate(), 20.0), ("default, 100/s", default_gate(), 100.0)] {
        let all = ticks(&gate, &demo_steps(), &World::equal(rate), 1, 200);
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
    steps: &'a [Step],
    part: &'a str,
}

impl Table<'_> {
    fn line(&self, name: &str, runs: u64, world: &World) {
        let name = format!("{}: {name}", self.name);
        if !name.contains(self.part) {
            return;
        }
        let all: Vec<Run> = parallel(runs, |seed| run(self.gate, self.steps, world, seed + 1));
        let f = Forecast::of(self.gate, &all);
        let ticks = |span: bitnet_core::Span| span.0 / self.gate.interval.0;
        println!(
            "| {name} | {:.1} % | {:.1} % | {:.1} % | {} ({}) | {} (weight ≤ {}) | {} B |",
            100.0 * f.rolled_back,
            100.0 * f.promoted,
            100.0 * f.inconclusive,
            ticks(f.time.0),
            ticks(f.time.1),
            f.exposed.0,
            f.weight,
            f.state
        );
    }
}

fn demo(runs: u64, part: &str) {
    let (gate, steps) = (demo_gate(), demo_steps());
    let table = Table { name: "demo".into(), gate: &gate, steps: &steps, part };
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
    let (gate, steps) = (default_gate(), default_steps());
    let few = runs.min(200);
    for rate in [20.0, 100.0] {
        let table = Table { name: format!("default, {rate}/s"), gate: &gate, steps: &steps, part };
        let equal = World::equal(rate);
        table.line("healthy", runs, &equal);
        let acceptable = World { cosine: (0.957, 0.025), latency: 1.1, errors: (0.003, 0.002), ..equal };
        table.line("acceptable", runs, &acceptable);
        table.line("healthy with bursts", runs, &World { bursts: 0.015, ..equal });
        table.line("tail at the boundary", runs, &World { tail: 0.05, ..equal });
        table.line("errors at the boundary", runs, &World { errors: (0.004, 0.002), ..equal });
        table.line("latency at the boundary", runs, &World { latency: 1.2, ..equal });
        for spread in [0.05, 0.1] {
            table.line(&format!("3 pods, spread {spread}"), runs, &World { pod_spread: spread, ..equal });
            table.line(&format!("1 pod, spread {spread}"), runs, &World { pods: 1, pod_spread: spread, ..equal });
        }
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
    let table = Table { name: "default, no traffic".into(), gate: &gate, steps: &steps, part };
    let silent = World { history: 0, ..World::equal(0.0) };
    table.line("healthy", runs, &silent);
    table.line("latency 1.5x", few, &World { latency: 1.5, ..silent });
    table.line("errors 0.2", few, &World { errors: (0.2, 0.002), ..silent });
}

/// Errors within which a candidate may exceed stable.
const EXCESS: f64 = 0.002;

/// False promotions on errors, a candidate exactly at its margin, 400 blocks that close as the judge's do.
fn thin_errors(runs: u64) {
    println!("\n| requests per tick, candidate : stable | base rate 0 | .05 % | .2 % | .8 % |");
    println!("|---|---|---|---|---|");
    for (n_c, n_b) in [(1u64, 19u64), (10, 190), (20, 180)] {
        let cells: Vec<String> = [0.0, 0.0005, 0.002, 0.008]
            .iter()
            .map(|base| {
                let promoted = parallel(runs, |seed| promotes_on_errors(seed, (n_c, n_b), *base));
                let share = promoted.iter().filter(|p| **p).count() as f64 / runs as f64;
                format!("{:.1} %", 100.0 * share)
            })
            .collect();
        println!("| {n_c} : {n_b} | {} |", cells.join(" | "));
    }
}

fn promotes_on_errors(seed: u64, (n_c, n_b): (u64, u64), base: f64) -> bool {
    let mut random = Random::new(seed + 1);
    let scale = base.max(0.0005);
    let ticks = (0.25 / EXCESS / n_c as f64).ceil() as u64;
    let (n_c, n_b) = (n_c * ticks, n_b * ticks);
    let mut wealth: Wealth = Wealth::default();
    (0..400).any(|block| {
        let s_c = random.binomial(n_c, base + EXCESS);
        let s_b = random.binomial(n_b, base);
        let thinned = hypergeometric(n_b, s_b, n_c, &mut Draws::new(seed.wrapping_mul(1000) + block, 2));
        wealth.add(&not_worse(errors((s_c, n_c), (thinned, n_c), EXCESS, scale, CLIP_PROMOTE_ERRORS)));
        wealth.ln_e() >= 20f64.ln()
    })
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
