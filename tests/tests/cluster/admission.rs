//! What the API server itself refuses on a managed route, whoever asks.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, bail, ensure};
use e2e::{
    stage::{OPERATOR_NAMESPACE, checkout},
    world::http_routes,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{fs, sync::Arc};

const PREFIX: &str = "rollouts.bitnet.dev";

/// A client that the API server takes for the operator's ServiceAccount.
async fn as_operator(stand: &Stand) -> Result<Client> {
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(stand.client.clone(), OPERATOR_NAMESPACE);
    let list = accounts.list(&ListParams::default().labels("app.kubernetes.io/name=bitnet-rollouts-operator")).await?;
    let account = list.items.first().context("the chart's ServiceAccount was not found by its label")?.name_any();
    let kubeconfig = kube::config::Kubeconfig::read_from(stand.suite.cluster.kubeconfig())?;
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?;
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{OPERATOR_NAMESPACE}:{account}"));
    Ok(Client::try_from(config)?)
}

/// The patch is refused, and the answer contains `fragment`.
async fn denied(api: &Api<DynamicObject>, patch: &Value, fragment: &str) -> Result<()> {
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    match api.patch(CHAT, &params, &Patch::Merge(patch)).await {
        Ok(_) => bail!("not refused: {patch}"),
        Err(kube::Error::Api(status)) if status.message.contains(fragment) => Ok(()),
        Err(error) => bail!("refused for another reason than {fragment:?}: {error}"),
    }
}

async fn allowed(api: &Api<DynamicObject>, patch: &Value) -> Result<()> {
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    api.patch(CHAT, &params, &Patch::Merge(patch)).await.map(drop).with_context(|| format!("refused: {patch}"))
}

fn backends(list: &[(&str, Option<i64>)]) -> Value {
    let refs: Vec<Value> = list
        .iter()
        .map(|(name, weight)| {
            let mut backend = json!({"group": "", "kind": "Service", "name": name, "port": 8080});
            if let Some(weight) = weight {
                backend["weight"] = json!(weight);
            }
            backend
        })
        .collect();
    json!(refs)
}

/// The rules of the stored route with the backends of the managed rule replaced.
fn with_backends(route: &DynamicObject, list: &[(&str, Option<i64>)]) -> Value {
    let mut rules = route.data["spec"]["rules"].clone();
    rules[0]["backendRefs"] = backends(list);
    rules
}

fn annotations(epoch: u64, more: &[(&str, &str)]) -> Value {
    let mut value = json!({format!("{PREFIX}/epoch"): epoch.to_string()});
    for (key, text) in more {
        value[format!("{PREFIX}/{key}")] = json!(text);
    }
    value
}

/// A managed route as the operator would store it, without a rollout behind it: nothing answers the tests' writes.
async fn managed(stand: &Stand, operator: &Api<DynamicObject>) -> Result<DynamicObject> {
    let mut route = stand.route();
    route["metadata"]["annotations"] = annotations(
        7,
        &[
            ("rollout", "chat/0d5e"),
            ("rule", "completions"),
            ("stable", "chat-stable"),
            ("candidate", "chat-candidate"),
            ("attempt", "1"),
            ("step", "0"),
        ],
    );
    route["spec"]["rules"][0]["backendRefs"] = backends(&[("chat-stable", Some(100)), ("chat-candidate", Some(0))]);
    let object = serde_json::from_value(route)?;
    operator.create(&PostParams::default(), &object).await.context("creating a managed route as the operator")
}

/// (a): people change weights and our annotations only with a break-glass annotation; everything else is theirs.
pub(crate) async fn only_the_operator_changes_weights(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::empty(suite, "admission-a").await?;
    let route = managed(&stand, &http_routes(as_operator(&stand).await?, stand.namespace())).await?;
    let people = http_routes(stand.client.clone(), stand.namespace());

    let weights = json!({"rules": with_backends(&route, &[("chat-stable", Some(50)), ("chat-candidate", Some(50))])});
    denied(&people, &json!({"spec": weights}), "operator").await?;
    denied(&people, &json!({"metadata": {"annotations": annotations(8, &[])}}), "operator").await?;
    let taken = json!({"metadata": {"annotations": {format!("{PREFIX}/rollback-of"): "x/y/1"}}});
    denied(&people, &taken, "operator").await?;
    let away = json!({"metadata": {"annotations": {format!("{PREFIX}/rollout"): null}}});
    denied(&people, &away, "operator").await?;
    let glass = annotations(8, &[("break-glass", "incident 4711")]);
    allowed(&people, &json!({"metadata": {"annotations": glass}, "spec": weights})).await?;
    // The user's own parts of the route stay the user's.
    let mut rules = route.data["spec"]["rules"].clone();
    rules[1]["matches"][0]["path"]["value"] = json!("/coffee");
    allowed(&people, &json!({"metadata": {"annotations": {"team.example/owner": "search"}}, "spec": {"rules": rules}}))
        .await?;
    stand.away().await
}

/// (b)-(d) hold for the operator's own identity.
pub(crate) async fn epochs_sums_and_latches_bind_the_operator_too(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::empty(suite, "admission-b").await?;
    let operator = http_routes(as_operator(&stand).await?, stand.namespace());
    let route = managed(&stand, &operator).await?;
    let write = |epoch: u64, more: &[(&str, &str)], stable: Option<i64>, candidate: Option<i64>| {
        json!({
            "metadata": {"annotations": annotations(epoch, more)},
            "spec": {"rules": with_backends(&route, &[("chat-stable", stable), ("chat-candidate", candidate)])},
        })
    };
    denied(&operator, &write(7, &[], Some(95), Some(5)), "epoch").await?;
    denied(&operator, &json!({"metadata": {"annotations": annotations(6, &[])}}), "epoch").await?;
    allowed(&operator, &write(8, &[], Some(95), Some(5))).await?;
    denied(&operator, &write(8, &[], Some(95), Some(6)), "sum").await?;
    denied(&operator, &write(8, &[], Some(100), None), "explicit").await?;

    // A latched candidate may fall, never rise, until a write that raises the attempt and no weight.
    let latch = ("rollback-of", "0d5e/chat-candidate/1");
    let latched = write(8, &[latch], Some(100), Some(0));
    operator.patch(CHAT, &PatchParams::default(), &Patch::Merge(&latched)).await.context("storing a latched route")?;
    denied(&operator, &write(9, &[latch], Some(95), Some(5)), "rolled-back").await?;
    denied(&operator, &write(9, &[latch, ("attempt", "2")], Some(95), Some(5)), "rolled-back").await?;
    let retry = json!({"metadata": {"annotations": annotations(9, &[latch, ("attempt", "2")])}});
    allowed(&operator, &retry).await?;
    stand.away().await
}

/// The steps of `charts/tests/route-policy.yaml`, which a unit test runs through another implementation of CEL.
pub(crate) async fn every_step_of_the_route_policy(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::empty(suite, "admission-steps").await?;
    let operator = http_routes(as_operator(&stand).await?, stand.namespace());
    let people = http_routes(stand.client.clone(), stand.namespace());
    let path = checkout().join("charts/tests/route-policy.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut file: serde_yaml::Value = serde_yaml::from_str(&text)?;
    file.apply_merge()?;
    let file: Value = serde_json::to_value(file)?;
    let steps = file["steps"].as_array().context("the file has no steps")?;
    let mut current = String::new();
    for step in steps {
        let name = step["name"].as_str().context("a step without a name")?;
        let api = if step["by"] == "operator" { &operator } else { &people };
        let params = PatchParams::default();
        let answer = if let Some(object) = step.get("create") {
            let created = object["metadata"]["name"].as_str().context("an object without a name")?.to_owned();
            let mut object = object.clone();
            object["apiVersion"] = json!("gateway.networking.k8s.io/v1");
            object["kind"] = json!("HTTPRoute");
            let answer = api.create(&PostParams::default(), &serde_json::from_value(object)?).await;
            if answer.is_ok() {
                current = created;
            }
            answer
        } else if let Some(patch) = step.get("patch") {
            api.patch(&current, &params, &Patch::Merge(patch)).await
        } else {
            let status = step.get("status").with_context(|| format!("`{name}` writes nothing"))?;
            api.patch_status(&current, &params, &Patch::Merge(status)).await
        };
        let expect = step["expect"].as_str().with_context(|| format!("`{name}` expects nothing"))?;
        match answer {
            Ok(_) if expect == "allowed" => {}
            Ok(_) => bail!("`{name}` was stored, not refused with {expect:?}"),
            Err(kube::Error::Api(status)) if status.message.contains(expect) => {}
            Err(error) => bail!("`{name}` was to be {expect:?}: {error}"),
        }
    }
    ensure!(steps.len() >= 40, "only {} steps", steps.len());
    stand.away().await
}
