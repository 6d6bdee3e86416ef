//! Node pools with an extended resource, which the node is given by hand: the scheduler counts it like a real one.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use e2e::traffic::Account;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// A candidate whose pool has no room is told with the scheduler's words, moves nothing, and goes on when there is room.
pub(crate) async fn a_pod_without_a_gpu_is_explained_and_goes_on(suite: Arc<Suite>) -> Result<()> {
    suite.cluster.set_gpus(0)?;
    let stand = Stand::new(suite, "gpu").await?;
    stand.serve_baseline().await?;
    let model = json!({"model": {"source": {"image": stand.suite.images.bitnet.pinned()}, "pool": "gpu"}});
    stand.rollouts.edit(CHAT, &model).await?;
    let words = "Insufficient nvidia.com/gpu";
    let told = |status: &bitnet_api::v1alpha1::ModelRolloutStatus| status.message.contains(words);
    let status = stand.rollouts.wait(CHAT, "the scheduler's words", Duration::from_secs(90), told).await?;
    ensure!(status.phase == "Progressing", "phase {}", status.phase);
    let progressing = status.conditions.iter().find(|condition| condition.type_ == "Progressing");
    let progressing = progressing.context("no condition Progressing")?;
    ensure!(
        progressing.status == "False"
            && progressing.reason == "CandidateNotReady"
            && progressing.message.contains(words),
        "Progressing is {} ({}): {}",
        progressing.status,
        progressing.reason,
        progressing.message
    );
    let stable = status.stable.as_ref().context("no stable")?;
    let elsewhere: i32 =
        status.weights.iter().filter(|(name, _)| **name != stable.revision).map(|(_, weight)| weight).sum();
    ensure!(status.weights.get(&stable.revision) == Some(&100) && elsewhere == 0, "{:?}", status.weights);

    stand.suite.cluster.set_gpus(1)?;
    let up =
        |status: &bitnet_api::v1alpha1::ModelRolloutStatus| status.candidate.as_ref().is_some_and(|c| c.ready == 1);
    stand.rollouts.wait(CHAT, "a ready candidate", Duration::from_secs(120), up).await?;
    let suite = Arc::clone(&stand.suite);
    stand.away().await?;
    suite.cluster.set_gpus(0)
}

/// Three GPUs, and a model of two pods that shall follow another of two: beside each other they would need four. With
/// `capacity: swap` the stable model's pods make room, no request is lost, and no pod ever waits for more than its place.
pub(crate) async fn a_model_takes_the_place_of_another(suite: Arc<Suite>) -> Result<()> {
    suite.cluster.set_gpus(3)?;
    let stand = Stand::new(suite.clone(), "swap").await?;
    let history = stand.history();
    stand.serve_baseline().await?;
    let traffic = stand.traffic(10.0).await?;
    let image = suite.images.bitnet.pinned();
    let model =
        |batch: u32| json!({"source": {"image": image}, "pool": "gpu", "replicas": 2, "serving": {"maxBatch": batch}});
    let steps = json!({"canary": {"steps": [{"weight": 50, "duration": "10s"}]}});
    stand.rollouts.edit(CHAT, &json!({"model": model(8), "capacity": "swap", "strategy": steps})).await?;
    let first = promoted(&stand, None).await?;
    ensure!(pods(&stand, &first).await? == 2, "the first model has both of its pods");

    let mark = traffic.mark();
    stand.rollouts.edit(CHAT, &json!({"model": model(16)})).await?;
    // At 50 % one pod of each is enough: the other pod of stable has left its GPU to the candidate's second.
    let halves =
        stand.rollouts.wait(CHAT, "50 %", Duration::from_secs(180), |s| s.weights.get(&first) == Some(&50)).await?;
    let second = halves.candidate.context("no candidate")?.revision;
    crate::stand::eventually(
        "stable made room",
        Duration::from_secs(60),
        async || Ok(pods(&stand, &first).await? == 1),
    )
    .await?;
    ensure!(promoted(&stand, Some(&first)).await? == second, "another revision was promoted");
    crate::stand::eventually("the second model has both of its pods", Duration::from_secs(90), async || {
        Ok(pods(&stand, &second).await? == 2)
    })
    .await?;
    let there = Account::of(&traffic.since(mark));
    ensure!(there.answered_by(&first) > 0 && there.answered_by(&second) > 0, "{there}");
    let account = Account::of(&traffic.stop().await);
    println!("{account}");
    ensure!(account.failed == 0, "{account}");
    history.audit()?;
    stand.away().await?;
    suite.cluster.set_gpus(0)
}

/// The revision that was promoted, once it is another than `before`.
async fn promoted(stand: &Stand, before: Option<&str>) -> Result<String> {
    let status = stand
        .rollouts
        .wait(CHAT, "a promotion", Duration::from_secs(420), |s| {
            let stable = s.stable.as_ref().map(|stable| stable.revision.as_str());
            let promoted = s.decision.as_ref().is_some_and(|d| d.verdict == "Promoted");
            s.phase == "Serving" && promoted && stable.is_some() && stable != before
        })
        .await?;
    Ok(status.stable.context("no stable")?.revision)
}

/// Running pods of a revision.
async fn pods(stand: &Stand, revision: &str) -> Result<usize> {
    let pods: Api<Pod> = Api::namespaced(stand.client.clone(), stand.namespace());
    let list = pods.list(&ListParams::default().labels(&format!("rollouts.bitnet.dev/revision={revision}"))).await?;
    let running = |pod: &&Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    Ok(list.items.iter().filter(running).count())
}
