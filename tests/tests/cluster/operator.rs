//! The operator's manners: what it makes it takes away, it is quiet when nothing changes, and people's words win.

use crate::{
    Suite,
    stand::{CHAT, Stand, eventually},
};
use anyhow::{Context, Result, ensure};
use e2e::{
    cluster::pids,
    stage::OPERATOR_NAMESPACE,
    traffic::{Account, Traffic, first_answer},
    world::{http_routes, model_rollouts},
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use std::{fs, path::Path, sync::Arc, time::Duration};

async fn nothing_of_ours(stand: &Stand, rollout: &str) -> Result<bool> {
    let list = ListParams::default().labels(&format!("rollouts.bitnet.dev/rollout={rollout}"));
    let deployments: Api<Deployment> = Api::namespaced(stand.client.clone(), stand.namespace());
    let services: Api<k8s_openapi::api::core::v1::Service> = Api::namespaced(stand.client.clone(), stand.namespace());
    Ok(deployments.list(&list).await?.items.is_empty() && services.list(&list).await?.items.is_empty())
}

pub(crate) async fn an_own_route_comes_and_goes_with_the_rollout(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "own-route").await?;
    stand.apply(&stand.manifests.gateway()).await?;
    let mut spec = stand.spec(&stand.suite.images.fp16.pinned());
    spec["route"] = json!({"gateway": "gw", "hostnames": ["own.example"]});
    let name = "own";
    stand.apply(&stand.manifests.rollout(name, &spec)).await?;
    stand.rollouts.phase(name, "Serving", Duration::from_secs(120)).await?;
    let mut config = stand.traffic_config()?;
    config.address = stand.suite.cluster.gateway_address(stand.namespace(), "gw")?;
    config.host = "own.example".into();
    first_answer(&config, Duration::from_secs(60)).await?;
    model_rollouts(stand.client.clone(), stand.namespace()).delete(name, &DeleteParams::default()).await?;
    let api = http_routes(stand.client.clone(), stand.namespace());
    eventually("the own route is gone", Duration::from_secs(60), async || Ok(api.get_opt(name).await?.is_none()))
        .await?;
    eventually("its workloads are gone", Duration::from_secs(60), async || nothing_of_ours(&stand, name).await).await?;
    stand.away().await
}

/// A field of another rule, the user's annotation, filters and time-outs live through adoption and deletion.
pub(crate) async fn deletion_gives_the_route_back(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "give-back").await?;
    let mut mine = stand.route();
    mine["spec"]["rules"][1]["sessionPersistence"] = json!({"sessionName": "mine", "type": "Cookie"});
    stand.apply(&mine).await?;
    let api = http_routes(stand.client.clone(), stand.namespace());
    let before = api.get(CHAT).await?;
    stand.serve_baseline().await?;
    let during = api.get(CHAT).await?;
    ensure!(during.data["spec"]["rules"][1] == before.data["spec"]["rules"][1], "another rule changed");
    ensure!(
        during.data["spec"]["rules"][0]["timeouts"] == before.data["spec"]["rules"][0]["timeouts"],
        "timeouts changed"
    );
    let backends = during.data["spec"]["rules"][0]["backendRefs"].as_array().context("no backends")?;
    ensure!(backends.iter().all(|b| b["weight"].is_i64()), "a weight is not explicit: {backends:?}");
    let served = backends[0]["name"].as_str().context("no name")?.to_owned();

    let traffic = stand.traffic(10.0).await?;
    model_rollouts(stand.client.clone(), stand.namespace()).delete(CHAT, &DeleteParams::default()).await?;
    eventually("the rollout is gone", Duration::from_secs(60), async || {
        Ok(model_rollouts(stand.client.clone(), stand.namespace()).get_opt(CHAT).await?.is_none())
    })
    .await?;
    let after = api.get(CHAT).await?;
    let ours =
        after.metadata.annotations.unwrap_or_default().into_keys().filter(|k| k.starts_with("rollouts.bitnet.dev/"));
    let left: Vec<String> = ours.collect();
    ensure!(left.is_empty(), "annotations of ours are left: {left:?}");
    ensure!(after.data["spec"]["rules"][1] == before.data["spec"]["rules"][1], "another rule changed");
    // The original backends were none: the route stays on what served, orphaned, and no request fails.
    ensure!(
        after.data["spec"]["rules"][0]["backendRefs"][0]["name"] == served.as_str(),
        "traffic was left without a backend"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let account = Account::of(&traffic.stop().await);
    ensure!(account.failed == 0, "deletion cost requests: {account}");
    stand.away().await
}

/// 60 s without a change: the only writes of the operator are those of its lease; and its memory is small.
pub(crate) async fn a_quiet_cluster_sees_no_write(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "quiet").await?;
    stand.serve_baseline().await?;
    let traffic: Traffic = stand.traffic(5.0).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let since = Timestamp::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let account = Account::of(&traffic.stop().await);
    let user = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:");
    let writes: Vec<_> =
        stand.suite.cluster.audit_writes(since)?.into_iter().filter(|w| w.user.starts_with(&user)).collect();
    let leases = writes.iter().filter(|w| w.resource == "leases").count();
    let others: Vec<_> = writes.iter().filter(|w| w.resource != "leases").collect();
    println!("{leases} lease writes, {} others; {} requests meanwhile", others.len(), account.requests);
    ensure!(leases > 0, "no lease was renewed in a minute: the audit log does not see the operator");
    ensure!(others.is_empty(), "the operator wrote: {others:?}");
    let (pid, memory) = operator_process()?;
    println!("operator (pid {pid}): {:.1} MiB resident", memory as f64 / 1_048_576.0);
    ensure!(memory <= 64 << 20, "the operator holds {memory} bytes, at most 64 MiB are allowed");
    stand.away().await
}

/// The operator's process id on this machine and its resident memory in bytes.
pub(crate) fn operator_process() -> Result<(u32, u64)> {
    for pid in pids() {
        let path = Path::new("/proc").join(pid.to_string());
        let Ok(command) = fs::read(path.join("cmdline")) else { continue };
        if !command.starts_with(b"/usr/local/bin/operator\0run\0") {
            continue;
        }
        let status = fs::read_to_string(path.join("status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        return Ok((pid, kib * 1024));
    }
    anyhow::bail!("no operator process found")
}

/// Pause, abort, retry and rollback, each answered once, each in its phase.
pub(crate) async fn verbs_win_and_are_answered(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite, "verbs").await?;
    let history = stand.history();
    stand.serve_baseline().await?;
    let fp16 = stand.rollouts.status(CHAT).await?.stable.context("no stable")?.revision;
    let traffic = stand.traffic(20.0).await?;
    let bitnet = stand.suite.images.bitnet.pinned();
    stand.rollouts.edit(CHAT, &json!({"model": {"source": {"image": bitnet}}})).await?;
    let minute = Duration::from_secs(120);
    let status = stand
        .rollouts
        .wait(CHAT, "a first live weight", minute, |s| s.step.as_ref().is_some_and(|x| x.weight > 0))
        .await?;
    let candidate = status.candidate.context("no candidate")?.revision;

    answered(&stand, "pause").await?;
    stand.rollouts.phase(CHAT, "Paused", minute).await?;
    answered(&stand, "abort").await?;
    stand.rollouts.phase(CHAT, "RolledBack", minute).await?;
    let latched = history.versions().len();
    let decision = stand.rollouts.status(CHAT).await?.decision.context("no decision")?;
    ensure!(decision.reason == "Aborted", "{decision:?}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    ensure!(history.largest_weight(&candidate, latched) == 0, "it rose again after the abort");

    answered(&stand, "retry").await?;
    stand
        .rollouts
        .wait(CHAT, "a live weight in attempt 2", minute, |s| {
            s.attempt == Some(2) && s.step.as_ref().is_some_and(|x| x.weight > 0)
        })
        .await?;
    answered(&stand, "promote-full").await?;
    stand
        .rollouts
        .wait(CHAT, "serving the candidate", minute, |s| {
            s.phase == "Serving" && s.weights.get(&candidate) == Some(&100)
        })
        .await?;
    answered(&stand, "rollback").await?;
    stand.rollouts.wait(CHAT, "fp16 at 100 %", minute, |s| s.weights.get(&fp16) == Some(&100)).await?;
    let account = Account::of(&traffic.stop().await);
    ensure!(account.failed == 0, "steering cost requests: {account}");
    history.audit()?;
    stand.away().await
}

async fn answered(stand: &Stand, verb: &str) -> Result<()> {
    let id = stand.rollouts.verb(CHAT, verb, "tester").await?;
    let status = stand
        .rollouts
        .wait(CHAT, &format!("an answer to {verb}"), Duration::from_secs(20), |s| s.verbs.iter().any(|v| v.id == id))
        .await?;
    let answer = status.verbs.iter().find(|v| v.id == id).context("no answer")?;
    ensure!(answer.by == "tester" && !answer.answer.is_empty(), "{answer:?}");
    eventually("the request is taken away", Duration::from_secs(10), async || {
        let kept = model_rollouts(stand.client.clone(), stand.namespace()).get(CHAT).await?;
        Ok(!kept.annotations().contains_key(&format!("rollouts.bitnet.dev/{verb}")))
    })
    .await
}
