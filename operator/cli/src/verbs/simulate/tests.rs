use super::*;
use crate::{Cli, Verb, output::Paint};
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
    assert!(json["good"]["rolledBack"]["atMost"].as_f64().is_some_and(|most| most > 0.3), "8 runs say little: {json}");
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
