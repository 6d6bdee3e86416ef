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
        let mut before = "";
        for case in text.split("\n---\n") {
            let (expected, name, answer) =
                ask(&stand, case, before).await.with_context(|| format!("in {}", path.display()))?;
            before = case;
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

/// What the case expects, its name, and what the API server says to a strict dry run: of creating the object, or, for a
/// case that begins with `# then:`, of replacing the one `before` it, which is created for that.
async fn ask(stand: &Stand, case: &str, before: &str) -> Result<(String, String, Result<(), String>)> {
    let heading = |prefix: &str| case.lines().find_map(|l| l.strip_prefix(prefix)).map(str::to_owned);
    let (expected, update) = match (heading("# expect: "), heading("# then: ")) {
        (Some(expected), None) => (expected, false),
        (None, Some(expected)) => (expected, true),
        _ => anyhow::bail!("a case begins with either `# expect: …` or `# then: …`:\n{case}"),
    };
    let mut object: Value = serde_yaml::from_str(case)?;
    let name = object["metadata"]["name"].as_str().context("a case without a name")?.to_owned();
    let version = object["apiVersion"].as_str().context("a case without apiVersion")?;
    let (group, version) = version.split_once('/').context("apiVersion without a group")?;
    let kind = object["kind"].as_str().context("a case without a kind")?;
    let (resource, _) = discovery::pinned_kind(&stand.client, &GroupVersionKind::gvk(group, version, kind)).await?;
    let url = format!("/apis/{}/namespaces/{}/{}", resource.api_version, stand.namespace(), resource.plural);
    let strict = "dryRun=All&fieldValidation=Strict";
    let (method, url) = if update {
        let first = serde_json::to_vec(&serde_yaml::from_str::<Value>(before)?)?;
        let request = hyper::Request::post(&url).header("content-type", "application/json").body(first)?;
        let stored: Value = stand.client.request(request).await.context("creating what is to be replaced")?;
        let stored = with_status(stand, &url, &name, before, stored).await?;
        object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        ("PUT", format!("{url}/{name}?{strict}"))
    } else {
        ("POST", format!("{url}?{strict}"))
    };
    let request = hyper::Request::builder()
        .method(method)
        .uri(url)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&object)?)?;
    let answer = match stand.client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => return Err(error.into()),
    };
    Ok((expected, name, answer))
}

/// The status of the case, which creating an object leaves out, written as a controller does.
async fn with_status(stand: &Stand, url: &str, name: &str, case: &str, mut stored: Value) -> Result<Value> {
    let mut case: Value = serde_yaml::from_str(case)?;
    if case["status"].is_null() {
        return Ok(stored);
    }
    stored["status"] = case["status"].take();
    let request = hyper::Request::put(format!("{url}/{name}/status"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&stored)?)?;
    stand.client.request(request).await.context("writing the status of what is to be replaced")
}
