use crate::{
    cluster::Place,
    output::{Machine, moment, print_machine, span},
};
use anyhow::{Context, Result, bail};
use bitnet_api::{
    reasons,
    v1alpha1::{ModelRollout, RolloutDecision, RolloutDecisionSpec, SignalStatus},
};
use serde_json::json;
use std::{fmt::Write, process::ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of a RolloutDecision, of a ModelRollout (then its last decision), or a reason as conditions and events have
    /// it (`RouteInUse`): then what it means and what to do.
    name: String,
    /// Output: json or yaml.
    #[arg(short, long)]
    output: Option<Machine>,
}

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    // No object can be called like a reason: names have no capitals.
    if let Some(reason) = reasons::all().into_iter().find(|entry| entry.name == args.name) {
        match args.output {
            Some(format) => {
                let value = json!({"reason": reason.name, "meaning": reason.meaning, "remedy": reason.remedy});
                print_machine(format, &value)?;
            }
            None => println!("{}: {}\n{}", reason.name, reason.meaning, reason.remedy),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let connection = place.connect().await?;
    let decisions = connection.api::<RolloutDecision>();
    let decision = if let Some(decision) = decisions.get_opt(&args.name).await.context("getting the decision")? {
        decision
    } else {
        let rollout = connection.api::<ModelRollout>().get_opt(&args.name).await.context("getting the rollout")?;
        let Some(rollout) = rollout else {
            bail!(
                "namespace {} has neither a RolloutDecision nor a ModelRollout named {}",
                connection.namespace,
                args.name
            );
        };
        let Some(last) = rollout.status.and_then(|s| s.decision) else {
            bail!("nothing was decided about {} yet: `kubectl bitnet status {0}` shows what it waits for", args.name);
        };
        decisions.get(&last.id).await.with_context(|| format!("getting RolloutDecision {}", last.id))?
    };
    match args.output {
        Some(format) => print_machine(format, &decision)?,
        None => print!("{}", words(&decision.spec)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The decision in words.
fn words(d: &RolloutDecisionSpec) -> String {
    let mut text = String::new();
    let what = match d.verdict.as_str() {
        "Promoted" => format!("{} was promoted: it serves 100 % in place of {}.", d.candidate, d.stable),
        "RolledBack" => format!("{} was rolled back: all traffic went to {}.", d.candidate, d.stable),
        "Inconclusive" => format!("{} could not be decided: it was taken to weight 0 and is not blamed.", d.candidate),
        "Reported" => format!("The A/B test of {} ended: it was taken to weight 0, a person decides.", d.candidate),
        other => format!("{}: {other}.", d.candidate),
    };
    let _ = writeln!(text, "{what}");
    let _ = writeln!(text, "Rule:     {} (by {})", d.reason, d.by);
    if !d.message.is_empty() {
        let _ = writeln!(text, "          {}", d.message);
    }
    let took =
        span(d.started_at.as_deref(), Some(&d.decided_at)).map(|s| format!(", {s} after it began")).unwrap_or_default();
    let _ = writeln!(text, "When:     {}{took}", moment(&d.decided_at));
    let at = if d.step == 0 {
        "before its first live request".into()
    } else {
        format!("at step {} ({} %)", d.step, d.weight)
    };
    let _ = writeln!(text, "Where:    attempt {}, tick {}, {at}", d.attempt, d.ticks);
    let _ = writeln!(text, "Exposure: {} live requests had been answered by it", d.exposed_requests);
    if d.signals.is_empty() {
        return text;
    }
    let _ = writeln!(
        text,
        "Evidence: (at the default confidences a rollback needs e^{ROLLBACK:.2} of all signals together, a promotion e^{PROMOTE:.2} of each)"
    );
    for signal in &d.signals {
        let _ = writeln!(text, "  {}", sentence(signal));
    }
    if let Some(evidence) = &d.evidence {
        let _ = writeln!(text, "  together against it: e^{evidence}");
    }
    text
}

/// ln(1 / .01) and ln(1 / .05): the bounds at the default confidences.
const ROLLBACK: f64 = 4.605_170_185_988_091;
const PROMOTE: f64 = 2.995_732_273_553_991;

fn sentence(s: &SignalStatus) -> String {
    let mut text = format!("{:<12} {:<9}", s.name, s.verdict);
    if let Some(estimate) = &s.estimate {
        let _ = write!(text, " {estimate}");
    }
    if let [low, high] = s.interval.as_slice() {
        let _ = write!(text, " [{low}, {high}]");
    }
    let _ = write!(text, " from {} samples", s.samples);
    if let Some(e) = &s.evidence {
        let _ = write!(text, ", against it e^{e}");
    }
    if let Some(e) = &s.evidence_for {
        let _ = write!(text, ", for it e^{e}");
    }
    if let Some(detail) = &s.detail {
        let _ = write!(text, " ({detail})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_is_told_in_words() {
        let spec: RolloutDecisionSpec = serde_json::from_value(serde_json::json!({
            "rollout": "chat", "uid": "u", "candidate": "chat-b", "stable": "chat-a", "baseline": "chat-a",
            "attempt": 1, "step": 0, "weight": 0, "ticks": 3, "exposedRequests": 0, "verdict": "RolledBack",
            "reason": "QualityFailed", "message": "cosine 0.02 is under 0.95", "by": "gate",
            "signals": [{"name": "cosine", "verdict": "Failed", "samples": 24, "estimate": "0.02",
                         "interval": ["0.00", "0.10"], "evidence": "31.2", "evidenceFor": "-40.0"}],
            "evidence": "29.8", "startedAt": "2026-01-01T00:00:00Z", "decidedAt": "2026-01-01T00:00:08Z",
        }))
        .unwrap();
        insta::assert_snapshot!(words(&spec));
    }
}
