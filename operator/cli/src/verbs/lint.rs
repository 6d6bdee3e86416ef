use crate::{
    assume::Assumptions,
    files::{Files, Subject, length},
    output::{Paint, print_object},
    verbs::simulate::Output,
};
use anyhow::Result;
use bitnet_core::simulate::lint::{Finding, Severity, lint};
use serde::Serialize;
use std::{fmt::Write, process::ExitCode};

/// Find gates that cannot decide, in files, before a rollout: traffic that is too thin for the deadline, margins inside the
/// noise, steps that outlast the deadline, gates that cannot promote without traffic, too few pods. No cluster is needed.
///
/// Exit codes: 0 every gate can decide (hints may be printed); 1 a gate cannot decide, or with --strict there are hints; 2 the
/// files could not be linted: wrong usage, unreadable, or refused by the API.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    assume: Assumptions,
    /// Exit with 1 for hints, too.
    #[arg(long)]
    strict: bool,
    /// Output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Findings about one subject.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linted {
    subject: String,
    strategy: String,
    deadline: String,
    findings: Vec<Found>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    severity: &'static str,
    field: &'static str,
    rule: String,
    remedy: String,
}

impl From<Finding> for Found {
    fn from(finding: Finding) -> Self {
        let severity = match finding.severity {
            Severity::CannotDecide => CANNOT,
            Severity::Weak => "hint",
        };
        Self { severity, field: finding.field, rule: finding.rule, remedy: finding.remedy }
    }
}

/// The severity that fails a lint.
const CANNOT: &str = "cannot-decide";

pub(crate) fn run(args: &Args) -> ExitCode {
    match print(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn print(args: &Args) -> Result<ExitCode> {
    let all: Vec<Linted> = args.files.subjects()?.iter().map(|subject| linted(subject, &args.assume)).collect();
    match args.output.format() {
        Some(format) => print_object(format, &all)?,
        None => print!("{}", words(&all, Paint::detect())),
    }
    Ok(ExitCode::from(code(&all, args.strict)))
}

fn linted(subject: &Subject, assume: &Assumptions) -> Linted {
    let setting = assume.setting(subject.pods, subject.test());
    let found = lint(&subject.gate, &subject.course, subject.guard.as_ref(), &setting);
    Linted {
        subject: subject.name.clone(),
        strategy: subject.strategy.clone(),
        deadline: length(subject.gate.deadline),
        findings: found.into_iter().map(Found::from).collect(),
    }
}

fn code(all: &[Linted], strict: bool) -> u8 {
    let fails = |f: &Found| strict || f.severity == CANNOT;
    u8::from(all.iter().flat_map(|l| &l.findings).any(fails))
}

fn words(all: &[Linted], paint: Paint) -> String {
    let mut text = String::new();
    for linted in all {
        let Linted { subject, strategy, deadline, findings } = linted;
        let _ = writeln!(text, "{} ({strategy}, deadline {deadline})", paint.bold(subject));
        if findings.is_empty() {
            let _ = writeln!(text, "  {} under these assumptions it can decide", paint.good("ok"));
        }
        for Found { severity, field, rule, remedy } in findings {
            let severity = if *severity == CANNOT { paint.bad("cannot decide") } else { paint.warn("hint") };
            let _ = writeln!(text, "  {severity} {field}: {rule}\n      {remedy}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cli, Verb};
    use clap::Parser;

    fn lint_of(arguments: &[&str]) -> (Vec<Linted>, u8) {
        let root = format!("{}/../../examples/", env!("CARGO_MANIFEST_DIR"));
        let path = |a: &&str| if a.contains(".yaml") { format!("{root}{a}") } else { (*a).to_owned() };
        let line = ["kubectl-bitnet".to_owned(), "lint".to_owned()].into_iter().chain(arguments.iter().map(path));
        let Verb::Lint(args) = Cli::try_parse_from(line).unwrap().verb else { panic!("another verb") };
        let all: Vec<Linted> = args.files.subjects().unwrap().iter().map(|s| linted(s, &args.assume)).collect();
        let code = code(&all, args.strict);
        (all, code)
    }

    #[test]
    fn the_examples_can_decide_and_one_pod_is_a_hint() {
        let (full, code) = lint_of(&["-f", "rollout-full.yaml", "--rate", "100"]);
        assert_eq!(code, 0, "{full:?}");
        let (all, code) = lint_of(&["-f", "rollout.yaml", "-f", "gate.yaml", "--pod-spread", "0.1"]);
        assert_eq!(code, 0);
        let (_, strict) = lint_of(&["-f", "rollout.yaml", "-f", "gate.yaml", "--strict"]);
        assert_eq!(strict, 1);
        let text = words(&all, Paint::plain());
        assert!(
            text.starts_with("ModelRollout chat (canary 5 10 20 40 50 %, 5m each, deadline 1h)\n  hint "),
            "{text}"
        );
        assert!(text.contains("hint spec.model.replicas: 1 pod(s) in an arm"), "{text}");
        assert!(text.contains("hint signals.latency.maxRatio: pods that differ by 10 %"), "{text}");
    }

    #[test]
    fn thin_traffic_and_no_traffic_cannot_decide() {
        let (thin, code) = lint_of(&["-f", "gate.yaml", "--rate", "1", "--cosine", "0.951"]);
        assert_eq!(code, 1);
        let text = words(&thin, Paint::plain());
        for field in ["signals.errors.maxExcess", "signals.cosine.minMean"] {
            assert!(text.contains(&format!("cannot decide {field}: ")), "{field}: {text}");
        }
        let (silent, code) = lint_of(&["-f", "gate.yaml", "--rate", "0"]);
        assert_eq!(code, 1);
        let json = serde_json::to_value(&silent).unwrap();
        assert_eq!(json[0]["findings"][0]["severity"], CANNOT);
        assert_eq!(json[0]["deadline"], "1h");
        assert_eq!(json[0]["findings"][0]["field"], "onNoTraffic");
    }

    #[test]
    fn what_cannot_be_linted_is_2() {
        let run_with = |file: &str| {
            let line = ["kubectl-bitnet", "lint", "-f", file];
            let Verb::Lint(args) = Cli::try_parse_from(line).unwrap().verb else { panic!("another verb") };
            format!("{:?}", run(&args))
        };
        assert_eq!(run_with("/nowhere.yaml"), format!("{:?}", ExitCode::from(2)));
        let rollout = format!("{}/../../examples/rollout.yaml", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(run_with(&rollout), format!("{:?}", ExitCode::from(2)), "its gate is missing");
        assert_eq!(Cli::try_parse_from(["kubectl-bitnet", "lint"]).err().map(|e| e.exit_code()), Some(2));
    }
}
