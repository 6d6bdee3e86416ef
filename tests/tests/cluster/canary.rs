//! The main job: a healthy model is promoted, damaged ones are not, and no client notices.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Result, ensure};
use e2e::{
    demo::{Act, Checks, Outcome, play},
    traffic::{Account, Outcome as Answer},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;
use std::{fs::read_to_string, process::Command, sync::Arc, time::Duration};

/// Traffic before the first candidate: the history that latency and errors are judged against (1,000 requests).
const HISTORY: Duration = Duration::from_secs(55);

pub(crate) async fn healthy_is_promoted_damaged_is_rolled_back(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "canary").await?;
    let history = stand.history();
    stand.serve_baseline().await?;
    let traffic = stand.traffic(20.0).await?;
    tokio::time::sleep(HISTORY).await;
    let mut checks = Checks::default();
    let (bitnet, order, rope) = (suite.images.bitnet.pinned(), suite.images.order.pinned(), suite.images.rope.pinned());
    for act in [
        Act { title: "healthy", image: &bitnet, outcome: Outcome::Promoted },
        Act { title: "gross", image: &order, outcome: Outcome::RolledBackUnseen { ticks: 8 } },
        Act { title: "tail", image: &rope, outcome: Outcome::RolledBackEarly { ticks: 60, weight: 5 } },
    ] {
        play(&stand.client, stand.namespace(), CHAT, &act, &traffic, &history, &mut checks).await?;
    }
    let account = Account::of(&traffic.stop().await);
    println!("{account}");
    checks.check(account.failed == 0, &format!("{} requests in all, {} failed", account.requests, account.failed));
    history.audit()?;
    checks.finish()?;
    stand.away().await
}

/// A/A: the fp16 source with another `maxBatch` is another revision of the same model.
pub(crate) async fn identical_models_are_promoted(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "twins").await?;
    let history = stand.history();
    stand.serve_baseline().await?;
    let traffic = stand.traffic(20.0).await?;
    tokio::time::sleep(HISTORY).await;
    stand.rollouts.edit(CHAT, &json!({"model": {"serving": {"maxBatch": 16}}})).await?;
    let end = stand
        .rollouts
        .wait(CHAT, "a verdict", Duration::from_secs(420), |s| {
            s.decision.is_some() && matches!(s.phase.as_str(), "Serving" | "RolledBack" | "Holding")
        })
        .await?;
    let account = Account::of(&traffic.stop().await);
    println!("{account}");
    let verdict = end.decision.map(|d| d.verdict).unwrap_or_default();
    ensure!(verdict == "Promoted", "identical models: {verdict}, {}", end.message);
    ensure!(account.failed == 0, "{account}");
    history.audit()?;
    stand.away().await
}

/// SIGKILL to the worker in a pod, found by the pod's uid in its cgroup.
fn kill_processes_of(uid: &str) -> Result<()> {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let (Ok(cgroup), Ok(command)) = (read_to_string(path.join("cgroup")), read_to_string(path.join("cmdline")))
        else {
            continue;
        };
        if cgroup.contains(&format!("pod{uid}")) && command.starts_with("/usr/local/bin/inference-worker") {
            let pid = path.file_name().unwrap_or_default();
            killed += usize::from(Command::new("kill").arg("-9").arg(pid).status()?.success());
        }
    }
    ensure!(killed > 0, "no worker process found in pod {uid}");
    Ok(())
}

/// The driver is no optimist: a pod that dies without a drain costs requests, and it says so.
pub(crate) async fn a_killed_pod_is_seen_by_the_driver(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "killed").await?;
    stand.serve_baseline().await?;
    let traffic = stand.traffic(50.0).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = Account::of(&traffic.records());
    ensure!(before.failed == 0, "before the kill: {before}");
    let pods: Api<Pod> = Api::namespaced(stand.client.clone(), stand.namespace());
    let list = pods.list(&ListParams::default().labels("rollouts.bitnet.dev/rollout=chat")).await?;
    ensure!(!list.items.is_empty(), "no worker pod found by its label");
    // Not by the API: a deleted pod is asked to end, and our worker then loses nothing.
    for pod in list {
        kill_processes_of(&pod.uid().unwrap_or_default())?;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let records = traffic.stop().await;
    let account = Account::of(&records);
    println!("{account}");
    ensure!(account.failed > 0, "a pod was killed without drain and the driver saw nothing: {account}");
    let seen = records.iter().any(|r| r.failed() && r.outcome != Answer::Ok);
    ensure!(seen, "failures without a reason");
    stand.away().await
}
