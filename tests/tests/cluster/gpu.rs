//! Node pools with an extended resource, which the node is given by hand: the scheduler counts it like a real one.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
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
