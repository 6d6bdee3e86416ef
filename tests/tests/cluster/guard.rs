//! The guard: a defect that begins after the promotion takes the traffic back to fp16.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use e2e::traffic::Account;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;
use std::{fs, path::PathBuf, sync::Arc, time::Duration};

/// CPU time of a throttled worker in each 100 ms, in microseconds: a tenth of one CPU, in slices that a request feels.
const THROTTLED: &str = "10000";

pub(crate) async fn a_defect_after_the_promotion_goes_back_to_fp16(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "guard").await?;
    let history = stand.history();
    let mut spec = stand.spec(&suite.images.fp16.pinned());
    // Straight to the promotion: what is tested comes after it.
    spec["strategy"] = json!({"blueGreen": {}});
    spec["scaleDownDelay"] = json!("5s");
    spec["guard"] = json!({"enabled": true, "interval": "2s", "maxRatio": "3"});
    stand.serve(&spec).await?;
    let traffic = stand.traffic(2.0).await?;
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

    // Its pods get hardly any CPU: it still answers, but far more slowly than fp16.
    throttle(&stand, &model).await?;
    let mark = history.mark();
    let back = stand
        .rollouts
        .wait(CHAT, "fp16", Duration::from_secs(300), |s| {
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
        let limit = limit_of(&pod.uid().unwrap_or_default())?;
        fs::write(&limit, THROTTLED).with_context(|| format!("writing {}", limit.display()))?;
    }
    Ok(())
}

/// The file that limits the CPU of the worker in a pod, found by the pod's uid: of the second version of cgroups, or of the
/// first. The period is 100 ms where nobody set it.
fn limit_of(uid: &str) -> Result<PathBuf> {
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
        let groups = cgroup.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?.trim_start_matches('/')))
        });
        let files = groups.filter_map(|(controllers, group)| match controllers {
            "" => Some(PathBuf::from("/sys/fs/cgroup").join(group).join("cpu.max")),
            list if list.split(',').any(|one| one == "cpu") => {
                Some(PathBuf::from("/sys/fs/cgroup").join(list).join(group).join("cpu.cfs_quota_us"))
            }
            _ => None,
        });
        return files.into_iter().find(|file| file.exists()).context("its cgroup has no CPU limit to set");
    }
    anyhow::bail!("no worker process found in pod {uid}")
}
