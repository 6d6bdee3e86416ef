//! Live prompts compared with the baseline: refused without the namespace's consent, shown with it, judged never.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use bitnet_api::v1alpha1::ModelRolloutStatus;
use e2e::world::demo_gate;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

const LABEL: &str = "rollouts.bitnet.dev/shadow-consent";

async fn consent(stand: &Stand, value: Option<&str>) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(stand.client.clone());
    let patch = json!({"metadata": {"labels": {LABEL: value}}});
    namespaces.patch(stand.namespace(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Compared live prompts in status.
fn compared(status: &ModelRolloutStatus) -> i64 {
    status.shadow.as_ref().map_or(0, |shadow| shadow.samples)
}

pub(crate) async fn live_prompts_need_the_namespaces_consent(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "shadow").await?;
    let mut gate = demo_gate();
    gate["shadow"] = json!({"percent": 10});
    // Nothing is decided while it is looked at.
    gate["minSamples"] = json!(100_000);
    let asking = stand.manifests.gate(CHAT, &gate);
    let refused = stand.apply(&asking).await.err().context("a gate with shadow was stored without consent")?;
    ensure!(format!("{refused:#}").contains("shadow-consent=granted"), "refused for another reason: {refused:#}");
    consent(&stand, Some("granted")).await?;
    stand.apply(&asking).await?;

    stand.serve_baseline().await?;
    let traffic = stand.traffic(12.0).await?;
    let model = json!({"model": {"source": {"image": suite.images.bitnet.pinned()}}});
    stand.rollouts.edit(CHAT, &model).await?;
    let status =
        stand.rollouts.wait(CHAT, "compared live prompts", Duration::from_secs(300), |s| compared(s) >= 20).await?;
    let shadow = status.shadow.context("no shadow in status")?;
    println!("{shadow:?}");
    ensure!(shadow.consent && shadow.percent == 10 && shadow.samples % 20 == 0, "{shadow:?}");
    let cosine: f64 = shadow.cosine.context("no cosine")?.parse()?;
    ensure!(cosine > 0.9, "the healthy model's live prompts are like the baseline's: {cosine}");
    ensure!(status.signals.iter().all(|signal| !signal.name.contains("shadow")), "it is no signal");

    consent(&stand, None).await?;
    let status = stand
        .rollouts
        .wait(CHAT, "the consent to be seen gone", Duration::from_secs(30), |s| {
            s.shadow.as_ref().is_some_and(|shadow| !shadow.consent)
        })
        .await?;
    ensure!(compared(&status) == 0, "numbers without consent: {:?}", status.shadow);
    ensure!(status.phase != "RolledBack" && status.decision.as_ref().is_none_or(|d| d.verdict != "RolledBack"));
    drop(traffic.stop().await);
    stand.away().await
}
