//! The guard: a defect that begins after the promotion takes the traffic back to fp16.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use e2e::{traffic::Account, world::demo_gate};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;
use std::{fs, path::PathBuf, sync::Arc, time::Duration};

/// CPU time of a throttled worker, and the period in which it gets it, in microseconds. A generation of 32 tokens of the
/// small pair needs about 5 ms: the slice must be smaller, or it fits into one and nothing is slower.
const THROTTLED: (u32, u32) = (1_000, 50_000);

pub(crate) async fn a_defect_after_the_promotion_goes_back_to_fp16(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "guard").await?;
    let history = stand.history();
    // Generations of 32 tokens need more CPU time than a slice of the throttled worker gives; the comparison itself is
    // small, so that a tick is not many times its interval.
    let mut gate = demo_gate();
    gate["probes"]["perTick"] = json!(4);
    gate["probes"]["pairs"] = json!(4);
    gate["probes"]["pairTokens"] = json!(32);
    stand.apply(&stand.manifests.gate(CHAT, &gate)).await?;
    let mut spec = stand.spec(&suite.images.fp16.pinned());
    // Straight to the promotion: what is tested comes after it.
    spec["strategy"] = json!({"blueGreen": {}});
    spec["scaleDownDelay"] = json!("5s");
    spec["guard"] = json!({"enabled": true, "interval": "2s", "maxRatio": "1.5"});
    stand.serve(&spec).await?;
    let traffic = stand.traffic(1.0).await?;
    stand.rollouts.edit(CHAT, &json!({"model": {"source": {"image": suite.images.bitnet.pinned()}}})).await?;
    let promoted = stand
        .rollouts
        .wait(CHAT, "the promotion", Duration::from_secs(420), |s| {
            s.phase == "Serving" && s.decision.as_ref().is_some_and(|d| d.verdict == "Promoted")
        })
        .await?;
    let model = promoted.stable.context("no stable")?.revision;
    ensure!(promoted.message.contains("guarded"), "status does not say so: {}", promoted.message);

    // Healthy: nothing is written while it watches.
    let versions = stand.rollouts.get(CHAT).await?.resource_version();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let later = stand.rollouts.get(CHAT).await?;
    ensure!(later.resource_version() == versions, "the guard of a healthy model wrote: {:?}", later.status);

    // Its pods get a fiftieth of a CPU: it still answers, but far more slowly than fp16.
    throttle(&stand, &model).await?;
    let mark = history.mark();
    let back = stand
        .rollouts
        .wait(CHAT, "fp16", Duration::from_secs(420), |s| {
            s.decision.as_ref().is_some_and(|d| d.verdict == "RolledBack")
        })
        .await?;
    println!("{}", back.message);
    let decision = back.decision.context("no decision")?;
    ensure!(decision.reason == "LatencyFailed", "{decision:?}");
    let first = history.versions()[mark..].iter().find(|v| v.ledger.contains_key("rollback-of")).cloned();
    let first = first.context("no rollback in the route")?;
    let fp16 = back.baseline.context("no baseline")?.revision;
    ensure!(
        first.weights.get(&fp16) == Some(&100) && first.weights.get(&model) == Some(&0),
        "not one write: {:?}",
        first.weights
    );
    ensure!(back.stable.is_some_and(|s| s.revision == fp16), "fp16 is not stable");
    stand.rollouts.phase(CHAT, "RolledBack", Duration::from_secs(90)).await?;
    let account = Account::of(&traffic.stop().await);
    println!("{account}");
    ensure!(account.failed == 0, "{account}");
    history.audit()?;
    stand.away().await
}

/// Limits the CPU of a revision's pods, as a noisy node would.
async fn throttle(stand: &Stand, revision: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(stand.client.clone(), stand.namespace());
    let of = ListParams::default().labels(&format!("rollouts.bitnet.dev/revision={revision}"));
    let list = pods.list(&of).await?;
    ensure!(!list.items.is_empty(), "no pod of {revision}");
    for pod in list {
        limit(&pod.uid().unwrap_or_default())?;
    }
    Ok(())
}

/// Limits the worker in a pod, found by the pod's uid, through cgroups of the second version or of the first.
fn limit(uid: &str) -> Result<()> {
    let (slice, period) = THROTTLED;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let (Ok(cgroup), Ok(command)) =
            (fs::read_to_string(path.join("cgroup")), fs::read_to_string(path.join("cmdline")))
        else {
            continue;
        };
        if !cgroup.contains(&format!("pod{uid}")) || !command.starts_with("/usr/local/bin/inference-worker") {
            continue;
        }
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
            let root = PathBuf::from("/sys/fs/cgroup");
            let group = group.trim_start_matches('/');
            let files = match controllers {
                "" => vec![(root.join(group).join("cpu.max"), format!("{slice} {period}"))],
                list if list.split(',').any(|one| one == "cpu") => {
                    let group = root.join(list).join(group);
                    let file = |name, value: u32| (group.join(name), value.to_string());
                    vec![file("cpu.cfs_period_us", period), file("cpu.cfs_quota_us", slice)]
                }
                _ => continue,
            };
            if files.iter().all(|(file, _)| file.exists()) {
                for (file, value) in files {
                    fs::write(&file, value).with_context(|| format!("writing {}", file.display()))?;
                }
                return Ok(());
            }
        }
        anyhow::bail!("the cgroup of the worker in pod {uid} has no CPU limit to set");
    }
    anyhow::bail!("no worker process found in pod {uid}")
}
