//! The chart's example of federated distillation: a coordinator's Job and an Indexed Job of clients, as anyone would run
//! them, to a published model.

use crate::{Suite, stand::Stand};
use anyhow::{Context, Result, ensure};
use e2e::stage::checkout;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, LogParams},
};
use serde_json::json;
use std::{fs, sync::Arc, time::Duration};

/// What is smaller here than in the example: two short rounds instead of ten.
const SMALLER: [(&str, &str); 4] = [
    ("--rounds=10", "--rounds=2"),
    ("--epochs=5", "--epochs=1"),
    ("--generate=20", "--generate=8"),
    ("--deadline=300", "--deadline=60"),
];

pub(crate) async fn four_clients_and_a_coordinator_publish_a_model(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::empty(suite.clone(), "federated").await?;
    let path = checkout().join("charts/bitnet-rollouts/examples/federated.yaml");
    let mut manifest = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let images = [
        ("registry.example/inference-worker", suite.images.worker.pinned()),
        ("registry.example/chat-fp16", suite.images.fp16.pinned()),
    ];
    for (from, to) in images.iter().map(|(from, to)| (*from, to.as_str())).chain(SMALLER) {
        ensure!(manifest.contains(from), "the example has no {from} any more");
        manifest = manifest.replace(from, to);
    }
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "federated-token"},
        "stringData": {"token": "0123456789abcdef0123456789abcdef"},
    });
    stand.apply(&token).await?;
    // By kubectl, as its reader would: an octal `defaultMode` is a number to it.
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), &manifest)?;
    let file = file.path().to_str().context("a path that is no text")?;
    suite.cluster.kubectl(&["apply", "--namespace", stand.namespace(), "--filename", file])?;

    let jobs: Api<Job> = Api::namespaced(stand.client.clone(), stand.namespace());
    for (name, completions) in [("federated-coordinator", 1), ("federated-client", 4)] {
        finished(&stand, &jobs, name, completions).await?;
    }
    let said = log(&stand, "app.kubernetes.io/name=federated-coordinator").await?;
    ensure!(said.contains("made /result/model after 2 rounds"), "the coordinator published nothing: {said}");
    let delivered = log(&stand, "batch.kubernetes.io/job-completion-index=3").await?;
    ensure!(delivered.contains("delivered in 2 rounds, too late in 0"), "the last client said: {delivered}");
    stand.away().await
}

/// Waits until a Job has so many completions; one that failed ends it, with what its pods said.
async fn finished(stand: &Stand, jobs: &Api<Job>, name: &str, completions: i32) -> Result<()> {
    let begin = std::time::Instant::now();
    loop {
        let status =
            jobs.get(name).await.with_context(|| format!("reading the Job {name}"))?.status.unwrap_or_default();
        if status.succeeded == Some(completions) {
            return Ok(());
        }
        let failed = status.conditions.iter().flatten().find(|c| c.type_ == "Failed" && c.status == "True");
        if failed.is_some() || begin.elapsed() > Duration::from_secs(240) {
            let said = log(stand, &format!("batch.kubernetes.io/job-name={name}")).await.unwrap_or_default();
            let why = failed.and_then(|c| c.message.clone()).unwrap_or_else(|| "not within 240 s".to_owned());
            anyhow::bail!("the Job {name} did not finish: {why}; {:?} of {completions} done; {said}", status.succeeded);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What the pods of a label said, one after the other.
async fn log(stand: &Stand, label: &str) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(stand.client.clone(), stand.namespace());
    let mut all = String::new();
    for pod in pods.list(&ListParams::default().labels(label)).await.context("listing pods")? {
        let name = pod.metadata.name.unwrap_or_default();
        all += &pods.logs(&name, &LogParams::default()).await.with_context(|| format!("reading the log of {name}"))?;
    }
    Ok(all)
}
