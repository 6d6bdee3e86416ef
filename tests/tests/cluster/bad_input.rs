//! Bad input costs a clear message and loses nothing.

use crate::{
    Suite,
    stand::{CHAT, Stand, eventually},
};
use anyhow::{Context, Result, ensure};
use bitnet_api::v1alpha1::ModelRolloutStatus;
use e2e::world::demo_gate;
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

const SOON: Duration = Duration::from_secs(60);

/// Some text of the status says `fragment`: message or a condition.
fn says(status: &ModelRolloutStatus, fragment: &str) -> bool {
    status.message.contains(fragment)
        || status.conditions.iter().any(|c| c.message.contains(fragment) || c.reason.contains(fragment))
}

async fn told(stand: &Stand, name: &str, fragments: &[&str]) -> Result<ModelRolloutStatus> {
    stand.rollouts.wait(name, &fragments.join(" and "), SOON, |s| fragments.iter().all(|f| says(s, f))).await
}

pub(crate) async fn a_missing_gate_is_named_and_recovers(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "no-gate").await?;
    let mut spec = stand.spec(&stand.suite.images.fp16.pinned());
    spec["gate"]["name"] = json!("later");
    stand.apply(&stand.manifests.rollout(CHAT, &spec)).await?;
    let status = told(&stand, CHAT, &["later"]).await?;
    let accepted = status.conditions.iter().find(|c| c.type_ == "Accepted").context("no condition Accepted")?;
    ensure!(accepted.status == "False", "{accepted:?}");
    stand.apply(&stand.manifests.gate("later", &demo_gate())).await?;
    stand.rollouts.phase(CHAT, "Serving", SOON * 2).await?;
    stand.away().await
}

pub(crate) async fn a_missing_route_is_named_and_recovers(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "no-route").await?;
    let mut spec = stand.spec(&stand.suite.images.fp16.pinned());
    spec["route"]["httpRoute"] = json!("later");
    stand.apply(&stand.manifests.rollout(CHAT, &spec)).await?;
    told(&stand, CHAT, &["RouteMissing", "later"]).await?;
    let mut route = stand.route();
    route["metadata"]["name"] = json!("later");
    route["spec"]["hostnames"] = json!(["later.example"]);
    stand.apply(&route).await?;
    stand.rollouts.phase(CHAT, "Serving", SOON * 2).await?;
    spec["route"] = json!({"httpRoute": CHAT, "rule": "no-such-rule"});
    stand.apply(&stand.manifests.rollout("other", &spec)).await?;
    told(&stand, "other", &["RuleMissing", "no-such-rule"]).await?;
    stand.away().await
}

pub(crate) async fn the_second_rollout_on_a_route_is_refused(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "one-route").await?;
    stand.serve_baseline().await?;
    let second = stand.manifests.rollout("second", &stand.spec(&stand.suite.images.fp16.pinned()));
    stand.apply(&second).await?;
    told(&stand, "second", &["RouteInUse", CHAT]).await?;
    let first = stand.rollouts.status(CHAT).await?;
    ensure!(first.phase == "Serving", "the first rollout was disturbed: {}", first.phase);
    stand.away().await
}

pub(crate) async fn a_missing_probe_set_moves_nothing(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "no-probes").await?;
    let mut gate = demo_gate();
    gate["probes"]["configMap"] = json!("not-there");
    stand.apply(&stand.manifests.gate(CHAT, &gate)).await?;
    stand.serve(&stand.spec(&stand.suite.images.fp16.pinned())).await?;
    let bitnet = stand.suite.images.bitnet.pinned();
    stand.rollouts.edit(CHAT, &json!({"model": {"source": {"image": bitnet}}})).await?;
    let status = told(&stand, CHAT, &["ProbeSetMissing", "not-there"]).await?;
    ensure!(status.step.as_ref().is_none_or(|s| s.weight == 0), "the candidate has weight: {:?}", status.step);
    stand.away().await
}

/// A copy of a model directory that `change` edits, as an image.
pub(crate) fn edited(
    stand: &Stand,
    name: &str,
    model: &Path,
    change: impl FnOnce(&Path) -> Result<()>,
) -> Result<String> {
    let folder = tempfile::tempdir()?;
    for file in fs::read_dir(model)? {
        let file = file?;
        fs::copy(file.path(), folder.path().join(file.file_name()))?;
    }
    change(folder.path())?;
    Ok(stand.suite.cluster.load_model(name, folder.path())?.pinned())
}

pub(crate) async fn models_that_cannot_be_compared_get_no_traffic(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "strangers").await?;
    stand.serve_baseline().await?;
    let image = edited(&stand, "other-tokenizer", &stand.suite.models.bitnet, |dir| {
        let path = dir.join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        tokenizer["truncation"] =
            json!({"direction": "Right", "max_length": 100, "strategy": "LongestFirst", "stride": 0});
        Ok(fs::write(path, tokenizer.to_string())?)
    })?;
    let history = stand.history();
    stand.rollouts.edit(CHAT, &json!({"model": {"source": {"image": image}}})).await?;
    let status = told(&stand, CHAT, &["NotComparable", "tokenizer"]).await?;
    let candidate = status.candidate.context("no candidate in status")?.revision;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let weight = history.largest_weight(&candidate, 0);
    ensure!(weight == 0, "a model that cannot be compared had weight {weight}");
    stand.away().await
}

pub(crate) async fn a_truncated_model_is_named_and_rolled_back(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "truncated").await?;
    let mut spec = stand.spec(&stand.suite.images.fp16.pinned());
    spec["progressDeadline"] = json!("20s");
    stand.serve(&spec).await?;
    let image = edited(&stand, "truncated", &stand.suite.models.bitnet, |dir| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path)?;
        Ok(fs::write(path, &bytes[..bytes.len() / 2])?)
    })?;
    stand.rollouts.edit(CHAT, &json!({"model": {"source": {"image": image}}})).await?;
    told(&stand, CHAT, &["model.safetensors"]).await?;
    let end = stand.rollouts.phase(CHAT, "RolledBack", SOON).await?;
    let decision = end.decision.context("no decision")?;
    ensure!(decision.reason == "ProgressDeadlineExceeded", "{decision:?}");
    stand.away().await
}

pub(crate) async fn a_claim_with_another_digest_is_refused_and_the_right_one_serves(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "claims").await?;
    let folder = stand.suite.models.fp16.parent().context("the models have no folder")?.to_owned();
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "models"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "hostPath": {"path": folder},
                 "storageClassName": "", "claimRef": {"namespace": stand.namespace(), "name": "models"}},
    });
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": "models",
                 "resources": {"requests": {"storage": "1Gi"}}},
    });
    stand.apply(&volume).await?;
    stand.apply(&claim).await?;
    let digest = model_digest(&stand.suite.models.fp16)?;
    let source = |digest: &str| json!({"image": null, "persistentVolumeClaim": {"claimName": "models", "path": "fp16", "digest": digest}});
    let mut spec = stand.spec(&stand.suite.images.fp16.pinned());
    let wrong = "0".repeat(64);
    for arm in ["baseline", "model"] {
        spec[arm]["source"] =
            json!({"persistentVolumeClaim": {"claimName": "models", "path": "fp16", "digest": wrong}});
    }
    stand.apply(&stand.manifests.rollout(CHAT, &spec)).await?;
    told(&stand, CHAT, &["DigestMismatch"]).await?;
    stand
        .rollouts
        .edit(CHAT, &json!({"baseline": {"source": source(&digest)}, "model": {"source": source(&digest)}}))
        .await?;
    stand.rollouts.phase(CHAT, "Serving", SOON * 2).await?;
    stand.suite.cluster.kubectl(&["delete", "pv", "models", "--wait=false"])?;
    stand.away().await
}

/// The model digest as documented: SHA-256 over sorted lines `path NUL size NUL sha256(file) LF`, computed here by
/// standard tools, not by the worker's code.
fn model_digest(dir: &Path) -> Result<String> {
    let script = r#"cd "$1" && find . -type f -printf '%P\n' | LC_ALL=C sort | while IFS= read -r f; do
        printf '%s\0%s\0%s\n' "$f" "$(stat -c %s "$f")" "$(sha256sum < "$f" | cut -d' ' -f1)"; done | sha256sum | cut -d' ' -f1"#;
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(dir).output()?;
    ensure!(output.status.success(), "computing the digest of {}", dir.display());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

pub(crate) async fn no_traffic_holds_where_the_gate_says_so(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "silence").await?;
    let mut gate = demo_gate();
    gate["onNoTraffic"] = json!("Hold");
    stand.apply(&stand.manifests.gate(CHAT, &gate)).await?;
    stand.serve_baseline().await?;
    let bitnet = stand.suite.images.bitnet.pinned();
    stand.rollouts.edit(CHAT, &json!({"model": {"source": {"image": bitnet}}})).await?;
    let mut seen = None;
    eventually("phase Holding for want of traffic", Duration::from_secs(120), async || {
        let status = stand.rollouts.status(CHAT).await?;
        ensure!(status.decision.is_none(), "decided without traffic: {:?}", status.decision);
        let holding = status.phase == "Holding" && says(&status, "NoTraffic");
        seen = Some(status);
        Ok(holding)
    })
    .await
    .with_context(|| format!("{:?}", seen.map(|s| (s.phase, s.message))))?;
    stand.away().await
}
