//! `spec.route.loadBalancing`: a policy of Envoy Gateway that Envoy follows.

use crate::{
    Suite,
    stand::{CHAT, Stand, eventually},
};
use anyhow::{Context, Result, ensure};
use e2e::cluster::pids;
use kube::{
    Api,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};
use std::{fs, process::Command, sync::Arc, time::Duration};

pub(crate) async fn envoy_does_what_the_route_asks(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "balancing").await?;
    let kind = GroupVersionKind::gvk("gateway.envoyproxy.io", "v1alpha1", "BackendTrafficPolicy");
    let policies: Api<DynamicObject> =
        Api::namespaced_with(stand.client.clone(), stand.namespace(), &ApiResource::from_gvk(&kind));
    stand.serve_baseline().await?;
    // Envoy Gateway's own choice, which tells that the question is answered at all.
    eventually("the default: least requests", Duration::from_secs(60), async || {
        Ok(least_request(&stand)? == Some(true))
    })
    .await?;
    ensure!(policies.get_opt(CHAT).await?.is_none(), "nobody asked for a policy");

    ask(&stand, json!("RoundRobin")).await?;
    eventually("an accepted policy", Duration::from_secs(60), async || {
        Ok(policies.get_opt(CHAT).await?.is_some_and(|policy| accepted(&policy.data)))
    })
    .await?;
    eventually("round robin", Duration::from_secs(60), async || Ok(least_request(&stand)? == Some(false))).await?;
    ask(&stand, json!("LeastRequest")).await?;
    eventually("least requests", Duration::from_secs(60), async || Ok(least_request(&stand)? == Some(true))).await?;
    let policy = policies.get(CHAT).await?;
    ensure!(accepted(&policy.data), "the policy is not accepted: {}", policy.data["status"]);
    ask(&stand, Value::Null).await?;
    eventually("no policy", Duration::from_secs(60), async || Ok(policies.get_opt(CHAT).await?.is_none())).await?;
    stand.away().await
}

async fn ask(stand: &Stand, how: Value) -> Result<()> {
    stand.rollouts.edit(CHAT, &json!({"route": {"loadBalancing": how}})).await
}

/// Every ancestor that answered accepted the policy, and one did.
fn accepted(policy: &Value) -> bool {
    let ancestors = policy["status"]["ancestors"].as_array();
    ancestors.is_some_and(|ancestors| {
        !ancestors.is_empty()
            && ancestors.iter().all(|ancestor| {
                let conditions = ancestor["conditions"].as_array();
                conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Accepted" && c["status"] == "True"))
            })
    })
}

/// Whether Envoy's clusters of our route choose the pod with the fewest requests; `None`: it has none of them yet, or
/// they differ.
fn least_request(stand: &Stand) -> Result<Option<bool>> {
    let ours = format!("httproute/{}/{CHAT}/", stand.namespace());
    let mut found = Vec::new();
    for dump in envoys().filter_map(clusters) {
        for config in dump["configs"].as_array().context("a dump without configs")? {
            let cluster = &config["cluster"];
            if cluster["name"].as_str().is_some_and(|name| name.starts_with(&ours)) {
                found.push(cluster.to_string().to_lowercase().contains("least_request"));
            }
        }
    }
    let first = found.first().copied();
    Ok(first.filter(|first| found.iter().all(|one| one == first)))
}

/// Processes of Envoy on this machine.
fn envoys() -> impl Iterator<Item = u32> {
    pids().filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "envoy"))
}

/// What Envoy says of its clusters. Its administration listens on its pod's own loopback only.
fn clusters(pid: u32) -> Option<Value> {
    const ASK: &str = "import urllib.request as u; \
        o = u.build_opener(u.ProxyHandler({})); \
        print(o.open('http://127.0.0.1:19000/config_dump?resource=dynamic_active_clusters', timeout=10).read().decode())";
    let pid = pid.to_string();
    let said = Command::new("nsenter").args(["-t", &pid, "-n", "python3", "-c", ASK]).output().ok()?;
    serde_json::from_slice(&said.stdout).ok()
}
