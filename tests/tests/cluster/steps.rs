//! Steps of a canary that say how many pods the candidate has, and which requests go to it for their headers.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use bitnet_api::worker::REVISION_HEADER;
use e2e::{traffic::Account, world::http_routes};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Requests of each kind: P(all of them meet the candidate by lot at 50 %) = 2^-40.
const REQUESTS: usize = 40;

pub(crate) async fn pods_and_headers_of_a_step(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "steps").await?;
    let history = stand.history();
    stand.serve_baseline().await?;
    let traffic = stand.traffic(10.0).await?;
    // Those whom the rule is for meet it when it wakes and when it goes.
    let chosen_ones = stand.traffic_with(20.0, ("x-beta", "yes"))?;
    let beta = json!({"headers": [{"name": "x-beta", "value": "yes"}]});
    let steps = json!([
        {"weight": 5, "duration": "45s", "replicas": 1, "match": beta},
        {"weight": 50, "duration": "5m"},
    ]);
    let model = json!({"source": {"image": suite.images.bitnet.pinned()}, "replicas": 2});
    stand.rollouts.edit(CHAT, &json!({"model": model, "strategy": {"canary": {"steps": steps}}})).await?;
    let first = stand.rollouts.wait(CHAT, "5 %", Duration::from_secs(180), |s| has(&s.weights, 5)).await?;
    let candidate = first.candidate.context("no candidate")?.revision;
    // The gateway's pods take the rule over.
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(replicas(&stand, &candidate).await? == 1, "one pod at the first step");
    let chosen = arms(&stand, "yes").await?;
    ensure!(chosen == BTreeSet::from([candidate.clone()]), "with the header: {chosen:?}");
    let others = arms(&stand, "no").await?;
    ensure!(others.len() == 2 || !others.contains(&candidate), "with another value: {others:?}");
    copied(&stand).await?;

    let second = stand.rollouts.wait(CHAT, "50 %", Duration::from_secs(180), |s| has(&s.weights, 50)).await?;
    println!("{}", second.message);
    ensure!(replicas(&stand, &candidate).await? == 2, "all pods at the second step");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let by_lot = arms(&stand, "yes").await?;
    ensure!(by_lot.len() == 2, "the header means nothing any more: {by_lot:?}");
    let versions = history.versions();
    let before = versions.iter().rev().find(|v| v.weights.get(&candidate) == Some(&5)).context("no version at 5 %")?;
    ensure!(before.awake == ["bitnet-candidate"], "{:?}", before.awake);
    let last = versions.last().context("no version")?;
    ensure!(last.awake.is_empty(), "rules are left: {:?}", last.awake);

    stand.rollouts.verb(CHAT, "abort", "e2e").await?;
    stand.rollouts.phase(CHAT, "RolledBack", Duration::from_secs(60)).await?;
    for traffic in [traffic, chosen_ones] {
        let account = Account::of(&traffic.stop().await);
        println!("{account}");
        ensure!(account.failed == 0, "{account}");
    }
    let last = history.versions().pop().context("no version")?;
    ensure!(last.derived.is_empty(), "rules are left: {:?}", last.derived);
    history.audit()?;
    stand.away().await
}

fn has(weights: &BTreeMap<String, i32>, weight: i32) -> bool {
    weights.values().any(|w| *w == weight)
}

async fn replicas(stand: &Stand, revision: &str) -> Result<i32> {
    let deployments: Api<Deployment> = Api::namespaced(stand.client.clone(), stand.namespace());
    let found = deployments.get(revision).await?;
    Ok(found.spec.and_then(|spec| spec.replicas).unwrap_or(1))
}

/// The revisions that answer requests with this header.
async fn arms(stand: &Stand, beta: &str) -> Result<BTreeSet<String>> {
    let config = stand.traffic_config()?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_secs(10)).build()?;
    let mut arms = BTreeSet::new();
    for i in 0..REQUESTS {
        let prompt = &config.prompts[i % config.prompts.len()];
        let body = json!({"model": "default", "prompt": prompt, "max_tokens": 4, "temperature": 0});
        let url = format!("http://{}/v1/completions", config.address);
        let request = client.post(url).header("host", &config.host).header("x-beta", beta);
        let answer = request.json(&body).send().await?;
        ensure!(answer.status() == 200, "request {i}: {}", answer.status());
        let arm = answer.headers().get(REVISION_HEADER).and_then(|v| v.to_str().ok()).context("no revision")?;
        arms.insert(arm.to_owned());
    }
    Ok(arms)
}

/// The derived rule is the user's own but for its name, one more header, and its backend.
async fn copied(stand: &Stand) -> Result<()> {
    let route = http_routes(stand.client.clone(), stand.namespace()).get(CHAT).await?;
    let rules = route.data["spec"]["rules"].as_array().context("no rules")?;
    let named = |name: &str| rules.iter().find(|rule| rule["name"] == name).cloned().context("a rule is missing");
    let (ours, mut copy) = (named("completions")?, named("bitnet-candidate")?);
    for (at, matched) in copy["matches"].as_array_mut().into_iter().flatten().enumerate() {
        let headers = matched.as_object_mut().and_then(|m| m.remove("headers")).unwrap_or_default();
        ensure!(headers == json!([{"type": "Exact", "name": "x-beta", "value": "yes"}]), "match {at}: {headers}");
    }
    for own in ["name", "backendRefs"] {
        copy[own] = ours[own].clone();
    }
    ensure!(copy == ours, "not a copy: {copy} of {ours}");
    Ok(())
}
