use crate::{
    assume::{Assumptions, Defect, percent},
    files::{Files, Subject, length},
    output::{Format, Paint, print_object, table},
};
use anyhow::{Result, bail};
use bitnet_core::{
    Span,
    evidence::{OnInconclusive, ab::AbVerdict},
    model::{AbTest, GuardRule, OnEnd},
    simulate::{Forecast, Outcome, Run, Spread, World, interval, lint::lint, run as simulated, test_users, watch},
};
use serde::Serialize;
use std::{
    fmt::Write,
    io::IsTerminal,
    num::NonZero,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

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

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Prediction {
    subject: String,
    strategy: String,
    gate: String,
    requests_per_second: f64,
    seed: u64,
    /// An A/B test that only reports: "promoted" means that the gate's proofs were complete at its end.
    reports_only: bool,
    /// What happens at the deadline to what could not be decided.
    at_deadline: &'static str,
    /// What the confidence of the gate promises, whatever the simulation found.
    promised_false_rollback: f64,
    promised_false_promotion: f64,
    good: Outlook,
    defects: Vec<Outlook>,
    /// What the users of an A/B test bring.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    users: Vec<UsersOutlook>,
    /// What the guard does after a promotion.
    #[serde(skip_serializing_if = "Option::is_none")]
    guard: Option<GuardOutlook>,
    remarks: Vec<String>,
}

/// What becomes of an A/B test for its users.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UsersOutlook {
    users: String,
    runs: u64,
    candidate_better: Chance,
    candidate_worse: Chance,
    no_difference_proven: Chance,
    sample_ratio_mismatch: Chance,
    /// Seconds from the start of the split to the first proof, where there was one.
    seconds_until_proven: Option<Quantiles>,
}

/// What the guard of a promoted model promises and does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardOutlook {
    /// Seconds between two comparisons.
    interval_seconds: f64,
    /// Days to a false alarm of a model that lies exactly on its margins, on average, at least.
    days_to_false_alarm: f64,
    /// Ticks that were simulated of a good model, and the runs in which it was called.
    healthy_ticks: u32,
    healthy_called: Chance,
    defects: Vec<GuardDefect>,
}

/// A defect that begins after [`GUARD_GOOD`] good ticks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardDefect {
    defect: String,
    called: Chance,
    /// Seconds from its beginning.
    seconds_until_called: Option<Quantiles>,
}

/// Ticks before a defect that the guard is to find, and those that it is given.
const GUARD_GOOD: u32 = 500;
const GUARD_BAD: u32 = 1000;

/// What becomes of one candidate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outlook {
    candidate: String,
    runs: u64,
    promoted: Chance,
    rolled_back: Chance,
    inconclusive: Chance,
    /// Seconds from the first comparison (of a defect that begins later: from its beginning) to the end.
    seconds_until_promoted: Option<Quantiles>,
    seconds_until_rolled_back: Option<Quantiles>,
    /// Live requests that the candidate answered.
    live_requests: Quantiles,
    /// Most frequent reasons of rollbacks, and what undecided runs waited for.
    rolled_back_for: Vec<Count>,
    waited_for: Vec<Count>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Count {
    what: String,
    runs: u64,
}

/// Share of the runs, and the 95 % interval of the chance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Chance {
    share: f64,
    at_least: f64,
    at_most: f64,
}

/// 10 %, 50 % and 90 % quantile.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Quantiles {
    p10: f64,
    p50: f64,
    p90: f64,
}

impl Quantiles {
    fn of<T: Copy>(spread: Spread<T>, number: impl Fn(T) -> f64) -> Self {
        Self { p10: number(spread.low), p50: number(spread.median), p90: number(spread.high) }
    }
}

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

impl Chance {
    fn of(count: u64, runs: u64) -> Self {
        let (at_least, at_most) = interval(count, runs);
        Self { share: count as f64 / runs as f64, at_least, at_most }
    }
}

impl Outlook {
    fn of(candidate: String, subject: &Subject, world: &World, runs: &[Run]) -> Self {
        let since = i64::from(world.onset).saturating_mul(subject.gate.interval.0);
        let seconds = |span: Span| Span((span.0 - since).max(0)).as_seconds();
        let Some(f) = Forecast::of(&subject.gate, runs) else { unreachable!("at least one run is asked for") };
        let chance = |count: u64| Chance::of(count, f.runs);
        let counts = |all: &[(String, u64)]| {
            all.iter().take(3).map(|(what, runs)| Count { what: what.clone(), runs: *runs }).collect()
        };
        Self {
            candidate,
            runs: f.runs,
            promoted: chance(f.promoted),
            rolled_back: chance(f.rolled_back),
            inconclusive: chance(f.inconclusive),
            seconds_until_promoted: f.until_promoted.map(|s| Quantiles::of(s, Span::as_seconds)),
            seconds_until_rolled_back: f.until_rolled_back.map(|s| Quantiles::of(s, seconds)),
            live_requests: Quantiles::of(f.exposed, |n| n as f64),
            rolled_back_for: counts(&f.rolled_back_for),
            waited_for: counts(&f.waited_for),
        }
    }
}

/// Runs of the seeds that follow from `seed`, in their order, on all processors.
fn parallel<T: Send>(seed: u64, runs: u64, f: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let first = seed.wrapping_mul(1_000_003);
    let part = |thread: u64| -> Vec<(u64, T)> {
        (thread..runs).step_by(threads as usize).map(|i| (i, f(first.wrapping_add(i)))).collect()
    };
    let mut all: Vec<(u64, T)> = std::thread::scope(|scope| {
        let part = &part;
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        // A panic of a run is a defect of ours: it goes on here.
        let joined = handles.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, run)| run).collect()
}

/// How far it is, on a terminal's standard error.
struct Progress {
    shown: bool,
    all: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    fn new(shown: bool) -> Self {
        Self { shown, all: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    fn begin(&self, all: u64) {
        self.all.store(all, Ordering::Relaxed);
    }

    fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.all.load(Ordering::Relaxed).max(1);
        // Once per percent.
        if self.shown && done * 100 / all != (done - 1) * 100 / all {
            eprint!("\rsimulating: {} %", done * 100 / all);
        }
    }

    fn end(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

fn words(p: &Prediction, paint: Paint) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}: {}, gate {}", paint.bold(&p.subject), p.strategy, p.gate);
    let good = &p.good;
    let traffic =
        if p.requests_per_second > 0.0 { format!("{} requests/s", p.requests_per_second) } else { "no traffic".into() };
    let _ = writeln!(text, "{traffic}, {} simulated rollouts of a good candidate, seed {}\n", good.runs, p.seed);
    let promoted = match &good.seconds_until_promoted {
        Some(time) => format!("{}, after {}", chance(&good.promoted), times(time)),
        None => format!("{}: none was", chance(&good.promoted)),
    };
    let what = if p.reports_only { "gate's proofs  " } else { "promoted       " };
    let _ = writeln!(text, "  {what} {promoted}");
    let _ = writeln!(
        text,
        "  rolled back     {}; by its confidence the gate promises at most {} %",
        chance(&good.rolled_back),
        percent(p.promised_false_rollback)
    );
    let undecided = if good.inconclusive.share > 0.0 {
        let waits: Vec<&str> = good.waited_for.iter().map(|c| c.what.as_str()).collect();
        format!(", waiting for {} ({})", waits.join(", "), p.at_deadline)
    } else {
        String::new()
    };
    let _ = writeln!(text, "  undecided       {}{undecided}\n", chance(&good.inconclusive));
    let rows: Vec<Vec<String>> = p.defects.iter().map(|d| row(d, paint)).collect();
    let header = ["DEFECT", "FOUND", "AFTER (80 % OF RUNS)", "BY", "LIVE REQUESTS SERVED", "PROMOTED"];
    text += &table(&header, &rows);
    if !p.users.is_empty() {
        let header = ["USERS FARE", "BETTER", "WORSE", "NO DIFFERENCE", "MISMATCH", "PROVEN AFTER"];
        let rows: Vec<Vec<String>> = p.users.iter().map(users_row).collect();
        let _ = write!(text, "\n{}", table(&header, &rows));
    }
    if let Some(guard) = &p.guard {
        let _ = writeln!(
            text,
            "\nguard: fp16 is compared every {}; on its margins a model is called after {:.0} days on average or later, this one \
             in {} of {} comparisons",
            length(Span((guard.interval_seconds * 1000.0) as i64)),
            guard.days_to_false_alarm,
            chance(&guard.healthy_called),
            guard.healthy_ticks
        );
        let rows = guard.defects.iter().map(|d| {
            let time = d.seconds_until_called.as_ref().map_or("-".into(), times);
            vec![d.defect.clone(), format!("{} %", percent(d.called.share)), time]
        });
        text += &table(&["DEFECT AFTER THE PROMOTION", "CALLED", "AFTER (80 % OF RUNS)"], &rows.collect::<Vec<_>>());
    }
    for remark in &p.remarks {
        let _ = writeln!(text, "{} {remark}", paint.warn("note:"));
    }
    text
}

fn users_row(users: &UsersOutlook) -> Vec<String> {
    let share = |chance: &Chance| format!("{} %", percent(chance.share));
    vec![
        users.users.clone(),
        share(&users.candidate_better),
        share(&users.candidate_worse),
        share(&users.no_difference_proven),
        share(&users.sample_ratio_mismatch),
        users.seconds_until_proven.as_ref().map_or("-".into(), times),
    ]
}

fn row(outlook: &Outlook, paint: Paint) -> Vec<String> {
    let time = outlook.seconds_until_rolled_back.as_ref().map_or("-".into(), times);
    let by: Vec<&str> = outlook.rolled_back_for.iter().map(|c| c.what.as_str()).collect();
    let promoted = format!("{} %", percent(outlook.promoted.share));
    vec![
        outlook.candidate.clone(),
        format!("{} %", percent(outlook.rolled_back.share)),
        time,
        if by.is_empty() { "-".into() } else { by.join(", ") },
        format!("{:.0} ({:.0})", outlook.live_requests.p50, outlook.live_requests.p90),
        if outlook.promoted.share > 0.0 { paint.warn(&promoted) } else { promoted },
    ]
}

/// `97.5 % (95.2 to 98.9)`.
fn chance(chance: &Chance) -> String {
    let Chance { share, at_least, at_most } = chance;
    format!("{} % ({} to {})", percent(*share), percent(*at_least), percent(*at_most))
}

/// `31m (27m to 42m)`.
fn times(time: &Quantiles) -> String {
    let of = |seconds: f64| length(Span((seconds * 1000.0) as i64));
    format!("{} ({} to {})", of(time.p50), of(time.p10), of(time.p90))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cli, Verb};
    use clap::Parser;

    fn prediction(arguments: &[&str]) -> Prediction {
        let root = format!("{}/../../examples/", env!("CARGO_MANIFEST_DIR"));
        let path = |a: &&str| if a.contains(".yaml") { format!("{root}{a}") } else { (*a).to_owned() };
        let owned: Vec<String> = arguments.iter().map(path).collect();
        prediction_of(&owned.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn prediction_of(arguments: &[&str]) -> Prediction {
        let line = ["kubectl-bitnet", "simulate"].into_iter().chain(arguments.iter().copied());
        let Verb::Simulate(args) = Cli::try_parse_from(line).unwrap().verb else { panic!("another verb") };
        let subjects = args.files.subjects().unwrap();
        predict(&args, &subjects[0], &Progress::new(false))
    }

    /// A seed gives the same text on every machine with the same `libm`: of 4 runs only what all have in common is certain.
    #[test]
    fn a_prediction_is_the_same_for_the_same_seed_and_another_for_another() {
        let of = |seed: &str| {
            prediction(&["-f", "gate.yaml", "--runs", "8", "--seed", seed, "-d", "cosine=0.8", "-d", "errors=0.5"])
        };
        let (one, again, other) = (of("1"), of("1"), of("2"));
        let text = |p: &Prediction| words(p, Paint::plain());
        assert_eq!(text(&one), text(&again));
        assert_ne!(text(&one), text(&other));
        for part in
            ["QualityGate chat: canary 5 10 20 40 50 %", "20 requests/s, 8 simulated rollouts", "LIVE REQUESTS SERVED"]
        {
            assert!(text(&one).contains(part), "{part}: {}", text(&one));
        }
        let json = serde_json::to_value(&one).unwrap();
        assert_eq!(json["good"]["runs"], 8);
        assert_eq!(json["promisedFalseRollback"], 0.01);
        assert_eq!(json["defects"][0]["rolledBackFor"][0]["what"], "cosine");
        assert!(
            json["good"]["rolledBack"]["atMost"].as_f64().is_some_and(|most| most > 0.3),
            "8 runs say little: {json}"
        );
    }

    #[test]
    fn a_good_candidate_is_promoted_and_gross_defects_are_found() {
        let found = prediction(&["-f", "gate.yaml", "--runs", "10", "--rate", "100"]);
        assert_eq!(found.good.rolled_back.share, 0.0);
        assert!(found.good.promoted.share >= 0.8, "{found:?}");
        assert_eq!(found.defects.len(), 5);
        for defect in &found.defects {
            assert!(defect.rolled_back.share >= 0.8, "{defect:?}");
        }
        // Of what begins after ten minutes the time is counted from there.
        let late = found.defects[4].seconds_until_rolled_back.as_ref().unwrap();
        assert!(late.p90 <= 300.0, "{late:?}");
    }

    #[test]
    fn without_traffic_the_default_gate_is_undecided_and_says_what_for() {
        let found = prediction(&["-f", "gate.yaml", "--runs", "4", "--rate", "0", "-d", "latency=2"]);
        assert_eq!((found.good.promoted.share, found.good.inconclusive.share), (0.0, 1.0));
        assert_eq!(found.good.waited_for[0].what, "errors");
        assert!(found.remarks.iter().any(|r| r.starts_with("onNoTraffic: without live requests 8 pairs")));
        assert_eq!(found.defects[0].rolled_back.share, 1.0);
    }

    fn rollout(strategy: &str, guard: &str) -> Prediction {
        let text = format!(
            "apiVersion: rollouts.bitnet.dev/v1alpha1
kind: QualityGate
metadata: {{name: g}}
spec: {{probes: {{configMap: p}}}}
---
apiVersion: rollouts.bitnet.dev/v1alpha1
kind: ModelRollout
metadata: {{name: chat, namespace: models}}
spec:
  route: {{gateway: gw}}
  gate: {{name: g}}
  baseline: {{source: {{image: \"r.example/fp16@sha256:{0}\"}}, replicas: 3}}
  model: {{source: {{image: \"r.example/bitnet@sha256:{0}\"}}, replicas: 3}}
  guard: {guard}
  strategy: {strategy}
",
            "1".repeat(64)
        );
        let dir = std::env::temp_dir().join(format!("bitnet-simulate-{}-{}", std::process::id(), strategy.len()));
        std::fs::write(&dir, text).unwrap();
        let found = prediction_of(&["-f", dir.to_str().unwrap(), "--runs", "8", "--rate", "40", "-d", "latency=2"]);
        std::fs::remove_file(&dir).unwrap();
        found
    }

    #[test]
    fn an_ab_test_is_forecast_with_its_users() {
        let found = rollout(
            "{abTest: {weight: 50, duration: 72h, stickiness: {cookie: arm}, metric: {type: conversion}, onEnd: Promote}}",
            "{enabled: false}",
        );
        assert_eq!(found.good.promoted.share, 1.0, "what the gate asks is proven: {found:?}");
        assert_eq!(found.users.len(), 4, "{found:?}");
        let [same, better, worse, lost] = &found.users[..] else { panic!("{found:?}") };
        assert!(same.no_difference_proven.share >= 0.7, "{same:?}");
        assert!(better.candidate_better.share >= 0.9 && worse.candidate_worse.share >= 0.9, "{better:?} {worse:?}");
        assert!(lost.sample_ratio_mismatch.share >= 0.5, "{lost:?}");
        assert!(words(&found, Paint::plain()).contains("USERS FARE"));
    }

    #[test]
    fn a_switch_and_a_guard_are_forecast() {
        let found = rollout("{blueGreen: {autoPromote: true}}", "{enabled: true}");
        assert_eq!(found.good.promoted.share, 1.0, "{found:?}");
        assert_eq!(found.defects[0].live_requests.p90, 0.0, "found before any user met it");
        let guard = found.guard.as_ref().unwrap();
        assert_eq!((guard.healthy_called.share, guard.defects.len()), (0.0, 3));
        assert!(guard.defects.iter().all(|d| d.called.share == 1.0), "{guard:?}");
        assert!(words(&found, Paint::plain()).contains("69 days"), "{guard:?}");
    }

    #[test]
    fn several_rollouts_need_a_choice() {
        let root = format!("{}/../../examples/", env!("CARGO_MANIFEST_DIR"));
        let line = ["kubectl-bitnet", "simulate", "-f", &format!("{root}rollout.yaml"), "-f"];
        let more = [format!("{root}gate.yaml"), "-f".into(), format!("{root}rollout-full.yaml")];
        let line = line.iter().map(|s| (*s).to_owned()).chain(more);
        let Verb::Simulate(args) = Cli::try_parse_from(line).unwrap().verb else { panic!("another verb") };
        let error = run(&args).unwrap_err().to_string();
        assert!(error.contains("choose one with --name"), "{error}");
    }
}
