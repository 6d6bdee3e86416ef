//! SIGKILL at any moment changes no end state.

use crate::{
    Suite,
    operator::operator_process,
    stand::{CHAT, Stand, eventually},
};
use anyhow::{Context, Result, ensure};
use e2e::traffic::{Account, Traffic};
use serde_json::json;
use std::{process::Command, sync::Arc, time::Duration};

const KILLS: usize = 20;

/// Four rollouts at once, two healthy and two with a gross fault, and an operator that is killed twenty times.
pub(crate) async fn twenty_kills_change_no_end_state(suite: Arc<Suite>) -> Result<()> {
    let names = ["kill-a", "kill-b", "kill-c", "kill-d"];
    let mut stands = Vec::new();
    for name in names {
        let stand = Stand::new(suite.clone(), name).await?;
        let gate = json!({
            "probes": {"configMap": "chat-probes", "key": "prompts.jsonl", "perTick": 2, "maxTokens": 8, "positions": 4,
                       "pairs": 1, "pairTokens": 8},
            "preflight": 16, "interval": "1s", "warmup": "5s",
            "signals": {"latency": {"maxRatio": "2.0"}, "errors": {"maxExcess": "0.1"}},
            "minSamples": 50, "deadline": "15m",
        });
        stand.apply(&stand.manifests.gate(CHAT, &gate)).await?;
        let mut spec = stand.spec(&suite.images.fp16.pinned());
        spec["strategy"] = json!({"canary": {"steps": [{"weight": 50, "duration": "5s"}]}});
        spec["scaleDownDelay"] = json!("5s");
        stand.apply(&stand.manifests.rollout(CHAT, &spec)).await?;
        stands.push(stand);
    }
    let mut histories = Vec::new();
    let mut early: Vec<Traffic> = Vec::new();
    for stand in &stands {
        stand.rollouts.phase(CHAT, "Serving", Duration::from_secs(180)).await?;
        histories.push(stand.history());
        early.push(stand.traffic(20.0).await?);
    }
    // The history that errors and latency are judged against is 1,000 requests.
    tokio::time::sleep(Duration::from_secs(55)).await;
    let mut traffic: Vec<Traffic> = Vec::new();
    for (stand, early) in stands.iter().zip(early) {
        let account = Account::of(&early.stop().await);
        ensure!(account.failed == 0, "{account}");
        traffic.push(stand.traffic(10.0).await?);
    }
    for (i, stand) in stands.iter().enumerate() {
        let image = if i % 2 == 0 { suite.images.bitnet.pinned() } else { suite.images.order.pinned() };
        stand.rollouts.edit(CHAT, &json!({"model": {"source": {"image": image}}})).await?;
    }

    // Moments that no phase of the operator is locked to: 2.1 s … 5.9 s apart, always the same ones.
    let mut last = 0;
    for kill in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(2100 + (kill as u64 * 1237) % 3800)).await;
        let mut victim = 0;
        eventually("an operator that can be killed", Duration::from_secs(60), async || {
            victim = operator_process().map_or(0, |(pid, _)| pid);
            Ok(victim != 0 && victim != last)
        })
        .await?;
        let killed = Command::new("kill").args(["-9", &victim.to_string()]).status()?;
        ensure!(killed.success(), "kill -9 {victim} failed");
        last = victim;
    }

    for (i, stand) in stands.iter().enumerate() {
        let wanted = if i % 2 == 0 { "Promoted" } else { "RolledBack" };
        let end = stand
            .rollouts
            .wait(CHAT, "its end", Duration::from_secs(900), |s| {
                matches!(s.phase.as_str(), "Serving" | "RolledBack") && s.decision.is_some()
            })
            .await?;
        let decision = end.decision.context("no decision")?;
        ensure!(decision.verdict == wanted, "{}: {decision:?}, wanted {wanted}", stand.namespace());
        let versions = histories[i].audit()?;
        println!("{}: {} after {versions} stored versions", stand.namespace(), decision.verdict);
    }
    for traffic in traffic {
        let account = Account::of(&traffic.stop().await);
        ensure!(account.failed == 0, "an operator's death cost requests: {account}");
    }
    for stand in stands {
        stand.away().await?;
    }
    Ok(())
}
