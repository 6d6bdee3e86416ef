//! The operator's chart as Helm renders it: golden files, refusals of the schema, and what the API server says to it.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use bitnet_api::keys::label;
use e2e::stage::{Install, OPERATOR_NAMESPACE, checkout};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use std::{fs, path::Path, sync::Arc, time::Duration};

fn template(suite: &Suite, more: &[&str]) -> Result<String> {
    let chart = checkout().join("charts/bitnet-rollouts").display().to_string();
    let args = ["template", "bitnet-rollouts", &chart, "-n", "bitnet-system", "--kube-version", "1.37.2"];
    suite.cluster.helm(&[&args[..], more].concat())
}

/// What Helm says after an installation, which `helm template` leaves out. No cluster is asked: custom resources and Gateway
/// API are missing there.
fn notes(suite: &Suite, values: &str) -> Result<String> {
    let chart = checkout().join("charts/bitnet-rollouts").display().to_string();
    let install = ["install", "bitnet-rollouts", &chart, "-n", "bitnet-system", "--dry-run=client", "-o", "json"];
    let said = suite.cluster.helm(&[&install[..], &["-f", values]].concat())?;
    let release: serde_json::Value = serde_json::from_str(&said).context("what Helm printed is no JSON")?;
    Ok(release["info"]["notes"].as_str().context("the release has no notes")?.to_owned())
}

/// `charts/tests/values/NAME.yaml` renders to `charts/tests/golden/NAME.yaml`, and its notes to `NAME.notes.txt`;
/// UPDATE_GOLDEN=1 writes what differs.
pub(crate) async fn renders_as_its_golden_files(suite: Arc<Suite>) -> Result<()> {
    let folder = checkout().join("charts/tests");
    let mut count = 0;
    for entry in fs::read_dir(folder.join("values"))? {
        let values = entry?.path();
        let golden = folder.join("golden").join(values.file_name().context("a file has a name")?);
        let values = values.display().to_string();
        let made = [
            (golden.clone(), template(&suite, &["-f", &values])?),
            (golden.with_extension("notes.txt"), notes(&suite, &values)?),
        ];
        for (golden, text) in made {
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&golden, &text)?;
            }
            same(&golden, &text)?;
        }
        count += 1;
    }
    ensure!(count >= 3, "{} holds no values", folder.display());
    Ok(())
}

fn same(golden: &Path, rendered: &str) -> Result<()> {
    let expected = fs::read_to_string(golden).with_context(|| format!("reading {}", golden.display()))?;
    let (mut old, mut new) = (expected.trim_end().lines(), rendered.trim_end().lines());
    let mut number = 0;
    loop {
        number += 1;
        let (before, after) = (old.next(), new.next());
        ensure!(
            before == after,
            "{}, line {number}: {} became {}; read the difference and run with UPDATE_GOLDEN=1",
            golden.display(),
            before.unwrap_or("the end"),
            after.unwrap_or("the end"),
        );
        if before.is_none() {
            return Ok(());
        }
    }
}

/// A wrong value is refused, and the refusal names it.
pub(crate) async fn wrong_values_are_refused_by_name(suite: Arc<Suite>) -> Result<()> {
    let cases = [
        ("replicas=0", "replicas"),
        ("replcas=2", "replcas"),
        ("logFormat=xml", "logFormat"),
        ("image.digest=sha256:short", "digest"),
        ("watchNamespaces[0]=Team_A", "watchNamespaces"),
        ("defaultPool=gpu", "defaultPool"),
        ("dashboard.login.enabled=perhaps", "dashboard"),
        ("dashboard.port=1", "port"),
        ("notifications.channels[0].name=ops", "format"),
        ("notifications.secret=Upper", "secret"),
        ("monitoring.podMonitors.interval=soon", "interval"),
        ("monitoring.rules.runbooks=javascript:alert(1)", "runbooks"),
        ("otlp.endpoint=collector:4318", "endpoint"),
        ("otlp.sampleRatio=2", "sampleRatio"),
        ("otlp.resourceAttributes.team=a=b", "resourceAttributes"),
        ("networkPolicy.metricsFrom=anywhere", "metricsFrom"),
    ];
    for (value, name) in cases {
        match template(&suite, &["--set", value]) {
            Ok(_) => anyhow::bail!("--set {value} was accepted"),
            Err(error) => {
                let text = format!("{error:#}");
                ensure!(text.contains(name), "--set {value}: the refusal does not name {name}: {text}");
            }
        }
    }
    Ok(())
}

/// `helm lint` has nothing to say to any of the golden values.
pub(crate) async fn lint_finds_nothing(suite: Arc<Suite>) -> Result<()> {
    for name in ["bitnet-rollouts", "bitnet-rollouts-crds"] {
        let chart = checkout().join("charts").join(name).display().to_string();
        let said = suite.cluster.helm(&["lint", "--strict", "--kube-version", "1.37.2", &chart])?;
        ensure!(!said.contains("[ERROR]") && !said.contains("[WARNING]"), "{name}: {said}");
    }
    Ok(())
}

/// Two operators over the same namespaces would lock each other out: Helm refuses the second one, and names the first.
pub(crate) async fn a_second_operator_is_refused_by_name(suite: Arc<Suite>) -> Result<()> {
    let chart = checkout().join("charts/bitnet-rollouts").display().to_string();
    let install = ["install", "second", &chart, "-n", "second", "--create-namespace", "--dry-run=server"];
    match suite.cluster.helm(&[&install[..], &["--set", "watchNamespaces={team-a}"]].concat()) {
        Ok(_) => anyhow::bail!("a second operator was accepted"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(
                text.contains("(bitnet-rollouts) looks after all namespaces")
                    && text.contains("disjoint watchNamespaces"),
                "the refusal does not name the other operator and the remedy: {text}"
            );
            Ok(())
        }
    }
}

/// An upgrade restarts no worker, an uninstall leaves pods and traffic as they are, and a new operator goes on from there.
pub(crate) async fn upgrade_uninstall_and_install_cost_no_request(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(Arc::clone(&suite), "lifecycle").await?;
    stand.serve_baseline().await?;
    let traffic = stand.traffic(5.0).await?;
    let pods = Api::<Pod>::namespaced(stand.client.clone(), stand.namespace());
    let workers = async || -> Result<Vec<String>> {
        let found = pods.list(&ListParams::default().labels(label::ROLLOUT)).await?;
        Ok(found.items.iter().filter_map(|pod| pod.metadata.uid.clone()).collect())
    };
    let before = workers().await?;
    let chart = checkout().join("charts/bitnet-rollouts").display().to_string();
    let upgrade =
        ["upgrade", "bitnet-rollouts", &chart, "-n", OPERATOR_NAMESPACE, "--reuse-values", "--set", "replicas=2"];
    suite.cluster.helm(&[&upgrade[..], &["--wait", "--timeout", "120s"]].concat())?;
    suite.cluster.kubectl(&["get", "poddisruptionbudget", "bitnet-rollouts", "-n", OPERATOR_NAMESPACE])?;
    ensure!(workers().await? == before, "the upgrade restarted a worker");

    suite.cluster.helm(&["uninstall", "bitnet-rollouts", "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "180s"])?;
    let left = stand.rollouts.get(CHAT).await?;
    ensure!(left.metadata.finalizers.unwrap_or_default().is_empty(), "the finalizer stayed");
    ensure!(workers().await? == before, "the uninstall took pods along");

    Install::on_box(&suite.cluster, &suite.images)?;
    stand.rollouts.phase(CHAT, "Serving", Duration::from_secs(120)).await?;
    ensure!(workers().await? == before, "the new operator made other pods");
    let records = traffic.stop().await;
    let failed = records.iter().filter(|record| record.failed()).count();
    ensure!(failed == 0 && records.len() > 50, "{failed} of {} requests failed", records.len());
    stand.away().await
}
