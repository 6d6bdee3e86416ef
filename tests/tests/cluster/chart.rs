//! The operator's chart as Helm renders it: golden files, refusals of the schema, and what the API server says to it.

use crate::Suite;
use anyhow::{Context, Result, ensure};
use e2e::stage::checkout;
use std::{fs, path::Path, sync::Arc};

fn template(suite: &Suite, more: &[&str]) -> Result<String> {
    let chart = checkout().join("charts/bitnet-rollouts").display().to_string();
    let args = ["template", "bitnet-rollouts", &chart, "-n", "bitnet-system", "--kube-version", "1.37.2"];
    suite.cluster.helm(&[&args[..], more].concat())
}

/// `charts/tests/values/NAME.yaml` renders to `charts/tests/golden/NAME.yaml`; UPDATE_GOLDEN=1 writes what differs.
pub(crate) async fn renders_as_its_golden_files(suite: Arc<Suite>) -> Result<()> {
    let folder = checkout().join("charts/tests");
    let mut count = 0;
    for entry in fs::read_dir(folder.join("values"))? {
        let values = entry?.path();
        let golden = folder.join("golden").join(values.file_name().context("a file has a name")?);
        let rendered = template(&suite, &["-f", &values.display().to_string()])?;
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &rendered)?;
        }
        same(&golden, &rendered)?;
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
