use crate::{
    cluster::Place,
    output::{Format, moment, print_object, table},
};
use anyhow::{Context, Result};
use bitnet_api::{
    keys::label,
    v1alpha1::{ModelRollout, RolloutDecision},
};
use kube::{ResourceExt, api::ListParams};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the rollout.
    name: String,
    /// Output: json, yaml, or wide.
    #[arg(short, long)]
    output: Option<Format>,
}

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let connection = place.connect().await?;
    // A name without a rollout is a mistake, no empty history.
    let rollouts = connection.api::<ModelRollout>();
    rollouts.get(&args.name).await.with_context(|| format!("getting ModelRollout {}", args.name))?;
    let of_rollout = ListParams::default().labels(&format!("{}={}", label::ROLLOUT, args.name));
    let found = connection.api::<RolloutDecision>().list(&of_rollout).await.context("listing its decisions")?;
    let decisions = newest_first(found.items);
    match args.output {
        Some(format @ (Format::Json | Format::Yaml)) => print_object(format, &decisions)?,
        _ if decisions.is_empty() => eprintln!("Nothing was decided about {} yet.", args.name),
        wide => print!("{}", rows(&decisions, wide.is_some())),
    }
    Ok(ExitCode::SUCCESS)
}

fn newest_first(mut decisions: Vec<RolloutDecision>) -> Vec<RolloutDecision> {
    decisions.sort_by(|a, b| (&b.spec.decided_at, b.name_any()).cmp(&(&a.spec.decided_at, a.name_any())));
    decisions
}

fn rows(decisions: &[RolloutDecision], wide: bool) -> String {
    let mut header = vec!["DECIDED", "VERDICT", "REASON", "CANDIDATE", "ATTEMPT", "WEIGHT", "BY"];
    if wide {
        header.extend(["DECISION", "STABLE", "EXPOSED", "MESSAGE"]);
    }
    let rows: Vec<Vec<String>> = decisions
        .iter()
        .map(|decision| {
            let spec = &decision.spec;
            let mut row = vec![
                moment(&spec.decided_at),
                spec.verdict.clone(),
                spec.reason.clone(),
                spec.candidate.clone(),
                spec.attempt.to_string(),
                format!("{} %", spec.weight),
                spec.by.clone(),
            ];
            if wide {
                let exposed = spec.exposed_requests.to_string();
                row.extend([decision.name_any(), spec.stable.clone(), exposed, spec.message.clone()]);
            }
            row
        })
        .collect();
    table(&header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(name: &str, at: &str, verdict: &str) -> RolloutDecision {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "RolloutDecision", "metadata": {"name": name},
            "spec": {"rollout": "chat", "uid": "u", "candidate": "chat-b", "stable": "chat-a", "baseline": "chat-a",
                     "attempt": 1, "step": 1, "weight": 5, "verdict": verdict, "reason": "QualityFailed", "by": "gate",
                     "message": "m", "decidedAt": at},
        }))
        .unwrap()
    }

    #[test]
    fn the_newest_decision_stands_first_and_wide_names_it() {
        let decisions = newest_first(vec![
            decision("old", "2026-01-01T00:00:00Z", "RolledBack"),
            decision("new", "2026-01-02T00:00:00Z", "Promoted"),
        ]);
        let short = rows(&decisions, false);
        assert!(short.lines().nth(1).unwrap().contains("Promoted"), "{short}");
        assert!(!short.contains("old") && rows(&decisions, true).contains("old"), "{short}");
    }
}
