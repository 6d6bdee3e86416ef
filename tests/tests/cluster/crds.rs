//! The cases of the API's own tests, asked of the real API server: what a rule says in a unit test it says here.

use crate::{Suite, stand::Stand};
use anyhow::{Context, Result, ensure};
use e2e::stage::checkout;
use kube::{core::GroupVersionKind, discovery};
use serde_json::Value;
use std::{fs, sync::Arc};

pub(crate) async fn cases_get_the_answer_that_they_name(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::empty(suite, "cases").await?;
    let folder = checkout().join("operator/api/tests/cases");
    let (mut accepted, mut refused) = (0, 0);
    let mut wrong = Vec::new();
    for file in fs::read_dir(&folder)? {
        let path = file?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for case in text.split("\n---\n") {
            let (expected, name, answer) = ask(&stand, case).await.with_context(|| format!("in {}", path.display()))?;
            match (expected.as_str(), answer) {
                ("accepted", Ok(())) => accepted += 1,
                ("accepted", Err(message)) => wrong.push(format!("{name}: refused: {message}")),
                (_, Err(message)) if message.contains(&expected) => refused += 1,
                (_, Err(message)) => wrong.push(format!("{name}: expected {expected:?}, got {message}")),
                (_, Ok(())) => wrong.push(format!("{name}: accepted, expected {expected:?}")),
            }
        }
    }
    println!("{accepted} objects accepted and {refused} refused as their files say");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(accepted > 0 && refused > 0, "{} holds no cases", folder.display());
    stand.away().await
}

/// What the case expects, its name, and what the API server says to a strict dry run of creating it.
async fn ask(stand: &Stand, case: &str) -> Result<(String, String, Result<(), String>)> {
    let expected = case.lines().find_map(|l| l.strip_prefix("# expect: ")).context("a case without `# expect:`")?;
    let object: Value = serde_yaml::from_str(case)?;
    let text = |path: &str| object[path].as_str().unwrap_or_default().to_owned();
    let (group, version) = (text("apiVersion"), text("kind"));
    let (group, kind) = (group.split_once('/').context("apiVersion without a group")?, version);
    let kind = GroupVersionKind::gvk(group.0, group.1, &kind);
    let (resource, _) = discovery::pinned_kind(&stand.client, &kind).await?;
    let url = format!(
        "/apis/{}/namespaces/{}/{}?dryRun=All&fieldValidation=Strict",
        resource.api_version,
        stand.namespace(),
        resource.plural
    );
    let request =
        hyper::Request::post(url).header("content-type", "application/json").body(serde_json::to_vec(&object)?)?;
    let answer = match stand.client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => return Err(error.into()),
    };
    let name = object["metadata"]["name"].as_str().unwrap_or("a case without a name").to_owned();
    Ok((expected.to_owned(), name, answer))
}
