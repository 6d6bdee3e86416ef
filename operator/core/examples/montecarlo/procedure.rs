//! The judge's whole procedure: rollouts of two gates in many worlds.

use super::{
    gates::{default_steps, demo_gate, demo_steps},
    parallel,
    promises::Promises,
    table::{short, with_interval},
};
use bitnet_core::{
    Span,
    evidence::Gate,
    model::Pace,
    simulate::{Course, Forecast, Run, World, run},
};

/// What was promised of a world.
#[derive(Clone, Copy)]
enum Promise {
    /// Never rolled back; promoted in at least this share of the runs.
    Good(f64),
    /// Rolled back in at most this share, promoted in at most 5 %.
    Boundary(f64),
    /// Rolled back in all runs but 2 %, with this median of ticks.
    Bad(f64),
    /// The same without a single live request in the median.
    Unseen(f64),
    /// Only shown.
    Nothing,
}

/// Runs of the worlds: of those in which rare ends are counted, of a single boundary, and of a defect.
#[derive(Clone, Copy)]
pub(crate) struct Runs {
    null: u64,
    edge: u64,
    bad: u64,
}

impl Runs {
    pub(crate) fn of(short: bool) -> Self {
        if short { Self { null: 20, edge: 20, bad: 20 } } else { Self { null: 2000, edge: 1000, bad: 200 } }
    }
}

/// All worlds whose name holds `part`.
pub(crate) fn tables(runs: Runs, part: &str, promises: &mut Promises) {
    println!("\n### The whole procedure\n\nRolled back and promoted: % of the runs with a 95 % interval.\n");
    println!(
        "| world | runs | rolled back | promoted | ticks to the end: median (90 %) | live requests: median (weight) |"
    );
    println!("|---|---|---|---|---|---|");
    demo(runs, part, promises);
    for rate in [20.0, 100.0] {
        defaults(runs, rate, part, promises);
    }
    four_hours(runs, part, promises);
    rest(runs, part, promises);
}

/// Lines of one gate.
struct Table<'a> {
    name: String,
    gate: &'a Gate,
    course: &'a Course,
    part: &'a str,
    promises: &'a mut Promises,
}

impl Table<'_> {
    fn line(&mut self, name: &str, runs: u64, world: &World, promise: Promise) {
        let name = format!("{}: {name}", self.name);
        if !name.contains(self.part) {
            return;
        }
        let (gate, course) = (self.gate, self.course);
        let all: Vec<Run> = parallel(runs, |seed| run(gate, course, world, seed + 1));
        let Some(f) = Forecast::of(gate, &all) else { return };
        let ticks = |span: Span| (span.0 / gate.interval.0) as f64;
        println!(
            "| {name} | {runs} | {} | {} | {} ({}) | {} (≤ {} %) |",
            with_interval(f.rolled_back, f.runs),
            with_interval(f.promoted, f.runs),
            ticks(f.time.median),
            ticks(f.time.high),
            f.exposed.median,
            f.weight,
        );
        let promises = &mut *self.promises;
        match promise {
            Promise::Good(least) => {
                promises.at_most(&format!("{name}: rolled back"), f.rolled_back, runs, 0.0);
                promises.at_least(&format!("{name}: promoted"), f.promoted, runs, least);
            }
            Promise::Boundary(most) => {
                promises.at_most(&format!("{name}: rolled back"), f.rolled_back, runs, most);
                promises.at_most(&format!("{name}: promoted"), f.promoted, runs, 0.05);
            }
            Promise::Bad(median) | Promise::Unseen(median) => {
                promises.all_but(&format!("{name}: rolled back"), f.rolled_back, runs, 0.02);
                let found = f.until_rolled_back.map(|s| ticks(s.median) - f64::from(world.onset));
                promises.delay(&name, found, median, 1.0);
                if matches!(promise, Promise::Unseen(_)) {
                    promises.delay(&format!("{name}: live requests"), Some(f.exposed.median as f64), 0.0, 0.0);
                }
            }
            Promise::Nothing => {}
        }
    }
}

fn demo(runs: Runs, part: &str, promises: &mut Promises) {
    let (gate, course) = (demo_gate(), Course::by_time(&demo_steps()));
    let mut table = Table { name: "demo".into(), gate: &gate, course: &course, part, promises };
    let equal = World { cosine: (0.994, 0.005), tail: 0.001, load: 1.1, errors: (0.0, 0.0), ..World::equal(20.0) };
    let (null, bad) = (runs.edge.min(500), runs.bad);
    table.line("healthy", null, &equal, Promise::Good(0.99));
    table.line("healthy, weights accepted after a tick", bad, &World { confirm: 1, ..equal }, Promise::Good(0.99));
    table.line("healthy, history from 0", bad, &World { history: 0, ..equal }, Promise::Good(0.99));
    let rope = |tail: f64| World { cosine: (0.96, 0.04), tail, ..equal };
    table.line("rope fault, tail .055", null, &rope(0.055), Promise::Nothing);
    table.line("rope fault, tail .1", bad, &rope(0.1), Promise::Bad(49.0));
    table.line("rope fault, tail .14", bad, &rope(0.14), Promise::Bad(18.0));
    table.line("rope fault, tail .25", bad, &rope(0.25), Promise::Bad(5.0));
    table.line("gross (cosine .05)", bad, &World { cosine: (0.05, 0.03), tail: 1.0, ..equal }, Promise::Unseen(1.0));
    table.line("latency 2x", bad, &World { latency: 2.0, ..equal }, Promise::Bad(85.0));
    table.line("latency at the margin", null, &World { latency: 1.5, ..equal }, Promise::Boundary(0.01));
    table.line("errors at the margin", null, &World { errors: (0.02, 0.0), ..equal }, Promise::Boundary(0.01));
    table.line("errors 50 %", bad, &World { errors: (0.5, 0.0), ..equal }, Promise::Unseen(18.0));
    table.line("errors 10 %", bad, &World { errors: (0.1, 0.0), ..equal }, Promise::Bad(81.0));
}

fn acceptable(equal: World) -> World {
    World { cosine: (0.957, 0.025), latency: 1.1, errors: (0.003, 0.002), ..equal }
}

fn edge(equal: World) -> World {
    World { cosine: (0.95, 0.03), tail: 0.05, latency: 1.2, errors: (0.004, 0.002), ..equal }
}

fn defaults(runs: Runs, rate: f64, part: &str, promises: &mut Promises) {
    let (gate, course) = (Gate::default(), Course::by_time(&default_steps()));
    let mut table = Table { name: format!("default, {rate}/s"), gate: &gate, course: &course, part, promises };
    let Runs { null, edge: some, bad } = runs;
    let equal = World::equal(rate);
    let slow = rate < 50.0;
    let of = |at_20: f64, at_100: f64| if slow { at_20 } else { at_100 };
    table.line("healthy", null, &equal, Promise::Good(of(0.988, 1.0)));
    table.line("acceptable", null, &acceptable(equal), Promise::Good(of(0.0, 0.955)));
    let bursts = World { bursts: 0.015, ..equal };
    table.line("healthy with bursts", null, &bursts, Promise::Good(of(0.63, 0.957)));
    table.line("acceptable with bursts", null, &acceptable(bursts), Promise::Good(0.0));
    table.line("all at the boundary", null, &edge(equal), Promise::Boundary(0.01));
    table.line("all at the boundary, bursts", some, &edge(bursts), Promise::Boundary(0.01));
    table.line("tail at the boundary", some, &World { tail: 0.05, ..equal }, Promise::Boundary(0.01));
    table.line("errors at the boundary", some, &World { errors: (0.004, 0.002), ..equal }, Promise::Boundary(0.01));
    let at_mean = World { cosine: (0.95, 0.03), ..equal };
    table.line("cosine at the boundary", some, &at_mean, Promise::Boundary(0.01));
    table.line("latency at the boundary", some, &World { latency: 1.2, ..equal }, Promise::Boundary(0.01));
    for (factor, median) in [(1.3, of(80.0, 79.0)), (1.5, of(30.0, 29.0)), (2.0, 18.0)] {
        let world = World { latency: factor, ..equal };
        table.line(&format!("latency {factor}x"), bad, &world, Promise::Bad(median));
    }
    for (errors, median) in [(0.01, of(141.0, 65.0)), (0.02, of(80.0, 33.0))] {
        let world = World { errors: (errors, 0.002), ..equal };
        table.line(&format!("errors {} %", 100.0 * errors), bad, &world, Promise::Bad(median));
    }
    table.line("errors 50 %", bad, &World { errors: (0.5, 0.002), ..equal }, Promise::Unseen(24.0));
    table.line("cosine .80", bad, &World { cosine: (0.8, 0.06), tail: 0.8, ..equal }, Promise::Unseen(1.0));
    // A mean of .93 with a standard deviation of .03 has a seventh of its prompts under .90.
    table.line("cosine .93", bad, &World { cosine: (0.93, 0.03), tail: 0.15, ..equal }, Promise::Unseen(4.0));
    for (tail, median) in [(0.1, 46.0), (0.15, 14.0), (0.25, 5.0)] {
        table.line(&format!("tail {tail}"), bad, &World { tail, ..equal }, Promise::Bad(median));
    }
    let late = World { onset: 60, latency: 1.5, errors: (0.02, 0.002), cosine: (0.93, 0.03), tail: 0.15, ..equal };
    table.line("all defects from tick 60", bad, &late, Promise::Bad(8.0));
}

/// A deadline of 4 hours: more may be promoted, and no more is rolled back.
fn four_hours(runs: Runs, part: &str, promises: &mut Promises) {
    let gate = Gate { deadline: Span::seconds(4 * 3600), ..Gate::default() };
    let course = Course::by_time(&default_steps());
    let mut table = Table { name: "default, 20/s, deadline 4 h".into(), gate: &gate, course: &course, part, promises };
    let equal = World::equal(20.0);
    let (some, few) = (runs.edge.min(500), runs.bad);
    table.line("healthy", some, &equal, Promise::Good(0.99));
    table.line("acceptable", some, &acceptable(equal), Promise::Good(0.33));
    table.line("healthy with bursts", some, &World { bursts: 0.015, ..equal }, Promise::Good(0.9));
    table.line("all at the boundary", some, &edge(equal), Promise::Boundary(0.01));
    table.line("tail at the boundary", some, &World { tail: 0.05, ..equal }, Promise::Boundary(0.01));
    table.line("errors at the boundary", some, &World { errors: (0.004, 0.002), ..equal }, Promise::Boundary(0.01));
    table.line("latency 1.5x", few, &World { latency: 1.5, ..equal }, Promise::Bad(31.0));
    let thin = World::equal(4.0);
    table.line("healthy at 4/s", few, &thin, Promise::Good(0.0));
    table.line(
        "errors at the boundary at 4/s",
        some,
        &World { errors: (0.004, 0.002), ..thin },
        Promise::Boundary(0.01),
    );
}

/// What is beside the common case.
fn rest(runs: Runs, part: &str, promises: &mut Promises) {
    let (gate, steps) = (Gate::default(), default_steps());
    let course = Course::by_time(&steps);
    let equal = World::equal(20.0);
    let (some, few) = (runs.edge.min(500), runs.bad);
    let mut table = Table { name: "default, 20/s".into(), gate: &gate, course: &course, part, promises };
    let closed = World { closed_loop: true, ..equal };
    table.line("closed loop: healthy", some, &closed, Promise::Good(0.9));
    table.line("closed loop: all at the boundary", some, &edge(closed), Promise::Boundary(0.01));
    table.line("closed loop: latency 1.5x", few, &World { latency: 1.5, ..closed }, Promise::Bad(30.0));
    // The budget of all tests of one attempt is twice the first one's.
    let edited = World { edits: 60, ..equal };
    table.line("gate edited every 60 ticks: healthy", some, &edited, Promise::Good(0.0));
    table.line("gate edited every 60 ticks: all at the boundary", some, &edge(edited), Promise::Boundary(0.02));
    let long = World { bursts: 0.02, burst: 6, ..equal };
    table.line("healthy, bursts of 60 s (longer than a block)", some, &long, Promise::Nothing);

    let evidence = Course::Steps(steps, Pace::Evidence);
    let mut table = Table { name: "paced by evidence, 20/s".into(), gate: &gate, course: &evidence, part, promises };
    table.line("healthy", some, &equal, Promise::Good(0.0));
    table.line("all at the boundary", some, &edge(equal), Promise::Boundary(0.01));
    table.line("latency 1.5x", few, &World { latency: 1.5, ..equal }, Promise::Bad(30.0));

    let switch = Course::Switch { beside: Span::seconds(600) };
    let mut table = Table { name: "blue-green, 20/s".into(), gate: &gate, course: &switch, part, promises };
    table.line("healthy", some, &equal, Promise::Good(0.99));
    table.line("quality and latency at the boundary", some, &edge(equal), Promise::Boundary(0.01));
    table.line("latency 1.5x", few, &World { latency: 1.5, ..equal }, Promise::Unseen(30.0));

    let silent = World { history: 0, ..World::equal(0.0) };
    let mut table = Table { name: "no traffic".into(), gate: &gate, course: &course, part, promises };
    table.line("healthy", few, &silent, Promise::Good(0.0));
    table.line("latency 1.5x", few, &World { latency: 1.5, ..silent }, Promise::Bad(30.0));
    table.line("errors 20 %", few, &World { errors: (0.2, 0.002), ..silent }, Promise::Unseen(24.0));
    // Pairs stand in for requests where the margin is one that they can prove.
    let mut wide = Gate { max_excess: 0.02, ..Gate::default() };
    wide.probes.pairs = 32;
    let mut table =
        Table { name: "no traffic, 32 pairs, excess 2 %".into(), gate: &wide, course: &course, part, promises };
    table.line("healthy", some, &silent, Promise::Good(0.9));
    table.line("errors at the boundary", some, &World { errors: (0.022, 0.002), ..silent }, Promise::Boundary(0.01));
}

/// Identical models whose pods differ, default gate at 20 requests per second.
pub(crate) fn pods(runs: u64, promises: &mut Promises) {
    println!("\n### Identical models on pods that differ, {runs} runs: rolled back, % with a 95 % interval\n");
    println!("| spread of a pod's speed | 1 pod per arm | 2 | 3 | 5 |\n|---|---|---|---|---|");
    let (gate, course) = (Gate::default(), Course::by_time(&default_steps()));
    for spread in [0.02, 0.05, 0.1] {
        let mut cells = Vec::new();
        for count in [1, 2, 3, 5] {
            let world = World { pods: (count, count), pod_spread: spread, ..World::equal(20.0) };
            let all: Vec<Run> = parallel(runs, |seed| run(&gate, &course, &world, seed + 1));
            let Some(f) = Forecast::of(&gate, &all) else { continue };
            if count >= 3 && spread <= 0.05 {
                promises.at_most(&format!("{count} pods that differ by {spread}"), f.rolled_back, runs, 0.01);
            }
            cells.push(with_interval(f.rolled_back, f.runs));
        }
        println!("| {} % | {} |", short(100.0 * spread), cells.join(" | "));
    }
}
