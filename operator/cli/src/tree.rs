//! One rollout as a tree that a person can read at night.

use crate::output::{Paint, age};
use bitnet_api::v1alpha1::{ModelRollout, ModelRolloutStatus, RevisionStatus, SignalStatus};
use jiff::Timestamp;
use kube::ResourceExt;
use std::fmt::Write;

/// The whole picture, ending in a line feed.
pub(crate) fn render(rollout: &ModelRollout, paint: Paint) -> String {
    let status = rollout.status.clone().unwrap_or_default();
    let mut text = String::new();
    let phase = match status.phase.as_str() {
        "" => paint.dim("no status yet: is the operator running?"),
        "Serving" => paint.good("Serving"),
        "RolledBack" | "RollingBack" | "Degraded" => paint.bad(&status.phase),
        "Holding" | "Paused" => paint.warn(&status.phase),
        other => paint.bold(other),
    };
    let _ = write!(text, "{}  {phase}", paint.bold(&rollout.name_any()));
    if let Some(step) = &status.step
        && step.index > 0
        && status.phase != "Serving"
    {
        let since = step.since.as_deref().and_then(|t| t.parse().ok()).map(|t| age(t, Timestamp::now()));
        let since = since.map(|s| format!(" for {s}")).unwrap_or_default();
        let _ = write!(text, "  step {}/{} at {} %{since}", step.index, step.of, step.weight);
    }
    if let (Some(attempt), Some(tick)) = (status.attempt, status.tick) {
        let _ = write!(text, "  attempt {attempt}, tick {tick}");
    }
    text.push('\n');
    if !status.message.is_empty() {
        let _ = writeln!(text, "│ {}", status.message);
    }
    arms(&mut text, &status, paint);
    signals(&mut text, &status, paint);
    shadow(&mut text, &status, paint);
    conditions(&mut text, &status, paint);
    if let Some(decision) = &status.decision {
        let _ = writeln!(
            text,
            "├─ last decision {} ({}) at {}: kubectl bitnet explain {}",
            decision.verdict, decision.reason, decision.at, decision.id
        );
    }
    for verb in status.verbs.iter().take(3) {
        let _ = writeln!(text, "├─ {} by {} at {}: {}", verb.verb, verb.by, verb.at, verb.answer);
    }
    let generation = rollout.metadata.generation;
    if status.observed_generation == generation {
        let _ = writeln!(text, "└─ {}", paint.dim("up to date with the spec"));
    } else {
        let _ = writeln!(text, "└─ {}", paint.warn("the spec was edited and not looked at yet"));
    }
    text
}

fn arms(text: &mut String, status: &ModelRolloutStatus, paint: Paint) {
    let named = [("baseline", &status.baseline), ("stable", &status.stable), ("candidate", &status.candidate)];
    let mut shown: Vec<(String, &RevisionStatus)> = Vec::new();
    for (role, revision) in named {
        let Some(revision) = revision else { continue };
        match shown.iter_mut().find(|(_, r)| r.revision == revision.revision) {
            // One revision in two roles is one line.
            Some((roles, _)) => *roles = format!("{roles} = {role}"),
            None => shown.push((role.into(), revision)),
        }
    }
    for (roles, revision) in shown {
        let weight = status.weights.get(&revision.revision).copied();
        let weight = weight.map_or_else(|| "no traffic".into(), |w| format!("{w:>3} %"));
        let ready = format!("{}/{} ready", revision.ready, revision.replicas);
        let ready = if revision.ready >= revision.replicas { ready } else { paint.warn(&ready) };
        let _ = writeln!(text, "├─ {roles:<20} {:<32} {weight:<10} {ready}", revision.revision);
        let _ = writeln!(text, "│  {}", paint.dim(&revision.image));
    }
}

fn signals(text: &mut String, status: &ModelRolloutStatus, paint: Paint) {
    if status.signals.is_empty() {
        return;
    }
    let exposed =
        status.exposed_requests.map(|n| format!(", {n} live requests answered by the candidate")).unwrap_or_default();
    let _ = writeln!(text, "├─ evidence (natural logarithms){exposed}");
    for signal in &status.signals {
        let _ = writeln!(text, "│  ├─ {}", line(signal, paint));
    }
    // What was missing when it was decided is history: `explain` has it.
    let waiting = if matches!(status.phase.as_str(), "RollingBack" | "RolledBack" | "Serving") {
        &[][..]
    } else {
        &status.missing
    };
    for missing in waiting {
        let _ = writeln!(text, "│  ├─ waits: {missing}");
    }
    let _ = writeln!(text, "│  └─ verdict {}", status.verdict.as_deref().unwrap_or("-"));
}

/// Live prompts compared: numbers that decide nothing.
fn shadow(text: &mut String, status: &ModelRolloutStatus, paint: Paint) {
    let Some(shadow) = &status.shadow else { return };
    if !shadow.consent {
        let label = "its namespace has no label rollouts.bitnet.dev/shadow-consent=granted";
        let _ = writeln!(text, "├─ {}: {label}", paint.warn("live prompts are not compared"));
        return;
    }
    let number =
        |name: &str, value: &Option<String>| value.as_ref().map(|v| format!(", {name} {v}")).unwrap_or_default();
    let _ = writeln!(
        text,
        "├─ live prompts ({} %, shown and not judged): {} compared, {} dropped{}{}{}",
        shadow.percent,
        shadow.samples,
        shadow.dropped,
        number("cosine", &shadow.cosine),
        number("tail", &shadow.tail),
        number("same token", &shadow.agreement),
    );
}

fn line(signal: &SignalStatus, paint: Paint) -> String {
    let state = match signal.verdict.as_str() {
        "Proven" => paint.good("proven  "),
        "Failed" => paint.bad("failed  "),
        other => format!("{:<8}", other.to_lowercase()),
    };
    let samples = match signal.required {
        Some(required) => format!("{}/{required}", signal.samples),
        None => signal.samples.to_string(),
    };
    let estimate = match (&signal.estimate, signal.interval.as_slice()) {
        (Some(estimate), [low, high]) => format!("{estimate} [{low}, {high}]"),
        (Some(estimate), _) => estimate.clone(),
        (None, _) => "-".into(),
    };
    let part = |name: &str, value: &Option<String>| value.as_ref().map(|v| format!("  {name} {v}")).unwrap_or_default();
    let detail = signal.detail.as_ref().map(|d| paint.dim(&format!("  {d}"))).unwrap_or_default();
    format!(
        "{:<12} {state} {estimate:<26} n {samples:<12}{}{}{detail}",
        signal.name,
        part("against", &signal.evidence),
        part("for", &signal.evidence_for),
    )
}

/// Only conditions that say something is not as it should be.
fn conditions(text: &mut String, status: &ModelRolloutStatus, paint: Paint) {
    for condition in &status.conditions {
        let healthy = match condition.type_.as_str() {
            "RolledBack" => "False",
            // Both answers are normal: it tells whether something moves.
            "Progressing" => continue,
            _ => "True",
        };
        if condition.status != healthy && condition.status != "Unknown" {
            let what = format!("{} is {}", condition.type_, condition.status);
            let _ = writeln!(text, "├─ {} ({}): {}", paint.warn(&what), condition.reason, condition.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(status: &serde_json::Value) -> ModelRollout {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
            "metadata": {"name": "chat", "generation": 2},
            "spec": {
                "baseline": {"source": {"image": "r/fp16@sha256:0000000000000000000000000000000000000000000000000000000000000000"}},
                "model": {"source": {"image": "r/bitnet@sha256:1111111111111111111111111111111111111111111111111111111111111111"}},
                "route": {"httpRoute": "chat"}, "gate": {"name": "chat"},
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_step_shows_arms_signals_and_what_is_missing() {
        let text = render(
            &rollout(&serde_json::json!({
                "observedGeneration": 2, "phase": "Progressing", "message": "Step 2 of 4: gathering evidence",
                "baseline": {"revision": "chat-aaaaaaaaaa", "image": "r/fp16@sha256:00", "replicas": 1, "ready": 1},
                "stable": {"revision": "chat-aaaaaaaaaa", "image": "r/fp16@sha256:00", "replicas": 1, "ready": 1},
                "candidate": {"revision": "chat-bbbbbbbbbb", "image": "r/bitnet@sha256:11", "replicas": 2, "ready": 1},
                "step": {"index": 2, "of": 4, "position": "2/4", "weight": 10}, "attempt": 1, "tick": 31,
                "weights": {"chat-aaaaaaaaaa": 90, "chat-bbbbbbbbbb": 10}, "verdict": "Continue", "exposedRequests": 77,
                "signals": [{"name": "cosine", "verdict": "Proven", "samples": 248, "required": 300, "estimate": "0.993",
                             "interval": ["0.990", "0.996"], "evidence": "-4.10", "evidenceFor": "5.20"}],
                "missing": ["errors: 120 of about 360 thinned requests"],
                "conditions": [{"type": "Ready", "status": "False", "reason": "CandidateNotReady", "message": "1 of 2 pods",
                                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            })),
            Paint::plain(),
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn live_prompts_are_shown_with_their_consent() {
        let shown = |shadow: serde_json::Value| {
            render(&rollout(&serde_json::json!({"phase": "Progressing", "shadow": shadow})), Paint::plain())
        };
        let text = shown(serde_json::json!({
            "percent": 5, "consent": true, "samples": 40, "dropped": 7, "cosine": "0.9931", "tail": "0.0250",
            "agreement": "0.9500",
        }));
        let line = "live prompts (5 %, shown and not judged): 40 compared, 7 dropped, cosine 0.9931, tail 0.0250, same token 0.9500";
        assert!(text.contains(line), "{text}");
        let text = shown(serde_json::json!({"percent": 5, "consent": false, "samples": 0, "dropped": 0}));
        assert!(text.contains("shadow-consent=granted") && !text.contains("compared,"), "{text}");
    }

    #[test]
    fn a_rollout_without_status_says_what_is_wrong() {
        let text = render(&rollout(&serde_json::json!({})), Paint::plain());
        assert!(text.contains("is the operator running?"), "{text}");
    }
}
