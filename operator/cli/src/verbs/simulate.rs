mod answer;
mod runs;
mod words;

use crate::{
    assume::{Assumptions, Defect, percent},
    files::{Files, Subject},
    output::{Format, Paint, print_object},
};
use answer::{Chance, GuardDefect, GuardOutlook, Outlook, Prediction, Quantiles, UsersOutlook};
use anyhow::{Result, bail};
use bitnet_core::{
    Span,
    evidence::{OnInconclusive, ab::AbVerdict},
    model::{AbTest, GuardRule, OnEnd},
    simulate::{Outcome, Run, Spread, World, lint::lint, run as simulated, test_users, watch},
};
use runs::{Progress, parallel};
use std::{io::IsTerminal, process::ExitCode};
use words::words;

/// Predict a rollout from files, before it runs: time to promote, chance of a false rollback, time to find given defects and
/// what they cost. The operator's own judge is driven through many simulated rollouts; no cluster is needed.
///
/// The same seed gives the same numbers. The answer is as good as the assumptions: look at `--help` for each of them.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    assume: Assumptions,
    /// A defect to find, for example `latency=1.5` or `cosine=0.93,tail=0.15,after=10m` (latency: multiple of stable's; errors,
    /// tail: shares; cosine: mean); may be repeated. Default: a clear one in each signal, and all of them in the middle.
    #[arg(short, long = "defect", value_name = "KEY=VALUE,…", value_parser = Defect::parse)]
    defects: Vec<Defect>,
    /// Simulated rollouts of a good candidate; each defect gets half as many.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    runs: u64,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// `-o` of a computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl Output {
    /// The machine-readable format; `None`: for people.
    pub(crate) fn format(self) -> Option<Format> {
        match self {
            Self::Table => None,
            Self::Json => Some(Format::Json),
            Self::Yaml => Some(Format::Yaml),
        }
    }
}

/// Ticks before a defect that the guard is to find, and those that it is given.
const GUARD_GOOD: u32 = 500;
const GUARD_BAD: u32 = 1000;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let subjects = args.files.subjects()?;
    let [subject] = subjects.as_slice() else {
        let names: Vec<&str> = subjects.iter().map(|s| s.name.as_str()).collect();
        bail!("the files hold {} of them ({}): choose one with --name", names.len(), names.join(", "));
    };
    let progress = Progress::new(std::io::stderr().is_terminal());
    let prediction = predict(args, subject, &progress);
    progress.end();
    match args.output.format() {
        Some(format) => print_object(format, &prediction)?,
        None => print!("{}", words(&prediction, Paint::detect())),
    }
    Ok(ExitCode::SUCCESS)
}

fn predict(args: &Args, subject: &Subject, progress: &Progress) -> Prediction {
    let gate = &subject.gate;
    let good = args.assume.world(subject.pods, gate.interval);
    let defects = if args.defects.is_empty() { Defect::usual(gate, &args.assume) } else { args.defects.clone() };
    let few = (args.runs / 2).max(1);
    progress.begin(args.runs + few * defects.len() as u64);
    let outlook = |name: String, runs: u64, world: &World| {
        let all: Vec<Run> = parallel(args.seed, runs, |seed| {
            let run = simulated(gate, &subject.course, world, seed);
            progress.step();
            run
        });
        Outlook::of(name, subject, world, &all)
    };
    let mut remarks: Vec<String> = subject.remarks.iter().map(|r| (*r).to_owned()).collect();
    let setting = args.assume.setting(subject.pods, subject.test());
    let findings = lint(gate, &subject.course, subject.guard.as_ref(), &setting);
    remarks.extend(findings.into_iter().map(|f| format!("{}: {}; {}", f.field, f.rule, f.remedy)));
    Prediction {
        subject: subject.name.clone(),
        strategy: subject.strategy.clone(),
        gate: gate.name.clone(),
        requests_per_second: args.assume.rate,
        seed: args.seed,
        reports_only: subject.test().is_some_and(|test| test.on_end == OnEnd::Report),
        at_deadline: match gate.on_inconclusive {
            OnInconclusive::Hold => "weight 0, held and not blamed",
            OnInconclusive::Rollback => "rolled back",
            OnInconclusive::Extend => "another deadline (simulated: three)",
            OnInconclusive::PromoteIfCompatible => {
                "promoted if every interval lies within its margin (no error rate), else weight 0, held and not blamed"
            }
        },
        promised_false_rollback: gate.alpha_rollback,
        promised_false_promotion: gate.alpha_promote,
        good: outlook("as good as assumed".into(), args.runs, &good),
        defects: defects.iter().map(|d| outlook(d.name(), few, &d.of(&good, gate))).collect(),
        users: subject.test().map(|test| users(args, subject, test)).unwrap_or_default(),
        guard: subject.guard.as_ref().map(|rule| guard(args, rule, &good, few)),
        remarks,
    }
}

/// Users who fare alike, better and worse, and users who are lost.
fn users(args: &Args, subject: &Subject, test: &AbTest) -> Vec<UsersOutlook> {
    let Some(metric) = test.metric else { return Vec::new() };
    let effect = args.assume.effect;
    let relative = |direction: &str| format!("{} % {direction} with the candidate", percent(effect));
    let worlds = [
        ("the same in both arms".to_owned(), 1.0, 0.0),
        (relative("better"), 1.0 + effect, 0.0),
        (relative("worse"), 1.0 - effect, 0.0),
        ("the same, 5 % of the candidate's lost".to_owned(), 1.0, 0.05),
    ];
    let of = |(name, factor, lost): (String, f64, f64)| {
        let users = bitnet_core::simulate::Users { lost, ..args.assume.users_of(metric, factor) };
        let all: Vec<Outcome> = parallel(args.seed, args.runs, |seed| test_users(test, &subject.gate, &users, seed));
        let share = |verdict| Chance::of(all.iter().filter(|o| o.verdict == verdict).count() as u64, args.runs);
        let proven = Spread::of(all.iter().filter_map(|o| o.proven).collect());
        UsersOutlook {
            users: name,
            runs: args.runs,
            candidate_better: share(AbVerdict::CandidateBetter),
            candidate_worse: share(AbVerdict::CandidateWorse),
            no_difference_proven: share(AbVerdict::NoDifferenceProven),
            sample_ratio_mismatch: share(AbVerdict::SampleRatioMismatch),
            seconds_until_proven: proven.map(|s| Quantiles::of(s, Span::as_seconds)),
        }
    };
    worlds.into_iter().map(of).collect()
}

/// One clear defect in each of the guard's signals.
fn guard(args: &Args, rule: &GuardRule, good: &World, runs: u64) -> GuardOutlook {
    let settings = &rule.settings;
    let called = |world: &World, limit: u32| -> Vec<Option<u32>> {
        parallel(args.seed, runs, |seed| watch(settings, world, limit, seed))
    };
    let chance = |all: &[Option<u32>]| Chance::of(all.iter().flatten().count() as u64, runs);
    let healthy_ticks = GUARD_GOOD + GUARD_BAD;
    let rounded = |x: f64| (x * 1000.0).round() / 1000.0;
    let (cosine, tail) = (rounded(settings.min_mean - 0.02), rounded((3.0 * settings.tail_share).min(0.9)));
    let latency = rounded(settings.max_ratio * settings.max_ratio);
    let cases = [
        (format!("cosine {cosine}"), World { cosine: (cosine, good.cosine.1), ..*good }),
        (format!("tail {} %", percent(tail)), World { tail, ..*good }),
        (format!("latency {latency}x of fp16's"), World { latency, ..*good }),
    ];
    let defects = cases.into_iter().map(|(defect, world)| {
        let all = called(&World { onset: GUARD_GOOD, ..world }, healthy_ticks);
        let after = all.iter().flatten().map(|t| Span(i64::from(t.saturating_sub(GUARD_GOOD)) * rule.interval.0));
        let after = Spread::of(after.collect()).map(|s| Quantiles::of(s, Span::as_seconds));
        GuardDefect { defect, called: chance(&all), seconds_until_called: after }
    });
    GuardOutlook {
        interval_seconds: rule.interval.as_seconds(),
        days_to_false_alarm: settings.run_length * rule.interval.as_seconds() / 86_400.0,
        healthy_ticks,
        healthy_called: chance(&called(good, healthy_ticks)),
        defects: defects.collect(),
    }
}

#[cfg(test)]
mod tests;
