//! What goes on beside the judge of a rollout: the guard of a promoted model, and the users of an A/B test.

use super::{parallel, promises::Promises, table::with_interval};
use bitnet_core::{
    Span,
    evidence::{
        Gate,
        ab::{AbMetric, AbVerdict},
        guard::GuardSettings,
    },
    model::{AbTest, CanaryStep, OnEnd, Stickiness},
    simulate::{Outcome, Users, World, test_users, watch},
};

/// The guard's average run length, and its delays after 1,000 good ticks.
pub(crate) fn guard(short: bool, promises: &mut Promises) {
    let settings = GuardSettings::of(&Gate::default());
    let healthy = World::equal(0.0);
    let margins = World { cosine: (0.95, 0.03), tail: 0.05, latency: 1.2, ..healthy };
    println!("\n### The guard: ticks with data until it calls\n\n| model | runs | found |\n|---|---|---|");

    let (runs, limit) = if short { (4, 1000) } else { (200, 5000) };
    let called = parallel(runs, |seed| watch(&settings, &healthy, limit, seed + 1));
    let count = called.iter().flatten().count() as u64;
    println!("| healthy, {limit} ticks | {runs} | called in {} % |", with_interval(count, runs));
    promises.at_most("guard: a healthy model is called", count, runs, 0.0);

    // A run length of 100,000 cannot be waited for: the promise is the same for a smaller one.
    let quick = GuardSettings { run_length: 1000.0, ..settings };
    let (runs, limit) = if short { (20, 10_000) } else { (400, 10_000) };
    let times = parallel(runs, |seed| watch(&quick, &margins, limit, seed + 1).unwrap_or(limit));
    let mean = times.iter().map(|t| f64::from(*t)).sum::<f64>() / runs as f64;
    println!("| on all margins, run length 1,000 | {runs} | after {mean:.0} ticks on average or later |");
    promises.quantity("guard: average run length", mean, 1000.0);

    let runs = if short { 8 } else { 200 };
    // A detector of cosine alone with a run length of 1e4 and 10 prompts per tick needs 5 ticks for .93. A delay is about
    // ln of the bound over what one tick gains: here the bound is 1e5, a third of the weight is the cosine's, and 8 prompts
    // come per tick.
    let cosine = 5.0 * (settings.run_length * 3.0).ln() / 1e4f64.ln() * 10.0 / f64::from(settings.per_tick);
    let defects = [
        ("cosine .93", World { cosine: (0.93, 0.03), ..healthy }, cosine),
        ("tail .25", World { tail: 0.25, ..healthy }, 6.0),
        ("latency 1.6x", World { latency: 1.6, ..healthy }, 27.0),
    ];
    for (name, world, promised) in defects {
        let world = World { onset: 1000, ..world };
        let called = parallel(runs, |seed| watch(&settings, &world, 1400, seed + 1));
        let mut delays: Vec<u32> = called.iter().flatten().filter_map(|t| t.checked_sub(1000)).collect();
        delays.sort_unstable();
        let at = |p: f64| delays.get((delays.len() as f64 * p) as usize).copied();
        println!(
            "| {name} after 1,000 good ticks | {runs} | {:?} (90 %: {:?}) |",
            at(0.5).unwrap_or(0),
            at(0.9).unwrap_or(0)
        );
        promises.all_but(&format!("guard: {name} is called"), delays.len() as u64, runs, 0.02);
        promises.delay(&format!("guard: {name}"), at(0.5).map(f64::from), promised, 1.0);
    }
}

/// Verdicts of A/B tests of a day at 1 new user per second.
pub(crate) fn verdicts(short: bool, promises: &mut Promises) {
    let runs = if short { 20 } else { 1000 };
    println!("\n### A/B: verdicts after a day at 1 new user per second, % of {runs} runs with a 95 % interval\n");
    println!(
        "| metric and split | world | better | worse | no difference proven | mismatch |\n|---|---|---|---|---|---|"
    );
    let mean = AbMetric::Mean { low: 0.0, high: 10.0 };
    for (metric, outcome, deviation) in [(AbMetric::Conversion, 0.05, 0.0), (mean, 4.0, 2.0)] {
        for weight in [50, 10] {
            let test = AbTest {
                split: [CanaryStep::plain(weight, Span::seconds(86_400))],
                matches: Vec::new(),
                stickiness: Stickiness::Cookie("bitnet-arm".into()),
                metric: Some(metric),
                on_end: OnEnd::Report,
            };
            for (name, factor, lost) in
                [("equal", 1.0, 0.0), ("10 % better", 1.1, 0.0), ("10 % worse", 0.9, 0.0), ("5 % lost", 1.0, 0.05)]
            {
                let users = Users { per_second: 1.0, outcome: (outcome * factor, outcome), deviation, lost };
                let all: Vec<Outcome> = parallel(runs, |seed| test_users(&test, &Gate::default(), &users, seed + 1));
                let of = |verdict: AbVerdict| all.iter().filter(|o| o.verdict == verdict).count() as u64;
                let found = [
                    of(AbVerdict::CandidateBetter),
                    of(AbVerdict::CandidateWorse),
                    of(AbVerdict::NoDifferenceProven),
                    of(AbVerdict::SampleRatioMismatch),
                ];
                let kind = if metric == AbMetric::Conversion { "conversion 5 %" } else { "mean 4, sd 2" };
                let cells = found.map(|n| with_interval(n, runs));
                println!("| {kind}, {weight} % | {name} | {} |", cells.join(" | "));
                let what = format!("A/B, {kind}, {weight} %, {name}");
                if lost == 0.0 {
                    promises.at_most(&format!("{what}: mismatch"), found[3], runs, 0.001);
                }
                match name {
                    "equal" => promises.at_most(&format!("{what}: a difference"), found[0] + found[1], runs, 0.05),
                    "10 % better" => promises.at_most(&format!("{what}: called worse"), found[1], runs, 0.025),
                    "10 % worse" => promises.at_most(&format!("{what}: called better"), found[0], runs, 0.025),
                    _ => {}
                }
            }
        }
    }
}
