//! Blue-green: nobody meets a model before it is proven, then everybody does at once, and there is a way back.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use e2e::{
    demo::{Act, Checks, Outcome, play},
    traffic::{Account, Connections, Request},
    world::RouteVersion,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

const PREVIEW: &str = "preview.blue-green.example";

pub(crate) async fn nobody_meets_a_damaged_model_and_both_ways_cost_nothing(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "blue-green").await?;
    let history = stand.history();
    let mut spec = stand.spec(&suite.images.fp16.pinned());
    spec["strategy"] = json!({"blueGreen": {"previewHost": PREVIEW}});
    stand.serve(&spec).await?;
    let traffic = stand.traffic(20.0).await?;
    let mut checks = Checks::default();
    let (bitnet, order, rope) = (suite.images.bitnet.pinned(), suite.images.order.pinned(), suite.images.rope.pinned());

    // Damaged ones: proven worse without a single live request.
    for (title, image) in [("gross", &order), ("tail", &rope)] {
        let act = Act { title, image, outcome: Outcome::RolledBackUnseen { ticks: 60 } };
        play(&stand.client, stand.namespace(), CHAT, &act, &traffic, &history, &mut checks).await?;
    }

    // Healthy: a preview first, then 0 to 100 in one write, then the promotion.
    let mark = history.mark().saturating_sub(1);
    let act = Act { title: "healthy", image: &bitnet, outcome: Outcome::Promoted };
    let (played, preview) = tokio::join!(
        play(&stand.client, stand.namespace(), CHAT, &act, &traffic, &history, &mut checks),
        preview_answers(&stand)
    );
    let promoted = played?.stable.context("no stable")?.revision;
    let previewed = preview?;
    checks.check(previewed == promoted, &format!("{PREVIEW} led to {previewed}"));
    let jumps = weights(&history.versions()[mark..], &promoted);
    checks.check(jumps.iter().all(|w| [0, 100].contains(w)), &format!("its stored weights were {jumps:?}"));
    checks.check(preview_route(&stand).await?.is_none(), "the preview is gone after the switch");

    // The way back: the same model with another setting is switched to, and a person changes their mind.
    let before = traffic.mark();
    stand.rollouts.edit(CHAT, &json!({"model": {"serving": {"maxBatch": 16}}, "scaleDownDelay": "10m"})).await?;
    let switched = stand
        .rollouts
        .wait(CHAT, "the switch", Duration::from_secs(420), |s| {
            let candidate = s.candidate.as_ref().map(|c| c.revision.clone()).unwrap_or_default();
            candidate != promoted && s.weights.get(&candidate) == Some(&100)
        })
        .await?;
    let candidate = switched.candidate.context("no candidate")?.revision;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let versions = history.mark();
    stand.rollouts.verb(CHAT, "abort", "e2e").await?;
    stand
        .rollouts
        .wait(CHAT, "the way back", Duration::from_secs(30), |s| s.weights.get(&promoted) == Some(&100))
        .await?;
    let back = &history.versions()[versions..];
    let first = back.iter().find(|v| v.weights.get(&candidate).copied().unwrap_or(0) < 100).context("no way back")?;
    checks.check(
        first.weights.get(&candidate) == Some(&0) && first.weights.get(&promoted) == Some(&100),
        &format!("one write back: {:?}", first.weights),
    );
    stand.rollouts.phase(CHAT, "RolledBack", Duration::from_secs(60)).await?;
    let there = Account::of(&traffic.since(before));
    checks.check(
        there.answered_by(&candidate) > 0,
        &format!("{} live requests in between", there.answered_by(&candidate)),
    );

    let account = Account::of(&traffic.stop().await);
    println!("{account}");
    checks.check(account.failed == 0, &format!("{} requests in all, {} failed", account.requests, account.failed));
    history.audit()?;
    checks.finish()?;
    stand.away().await
}

fn weights(route: &[RouteVersion], revision: &str) -> Vec<i64> {
    route.iter().filter_map(|v| v.weights.get(revision)).copied().collect()
}

async fn preview_route(stand: &Stand) -> Result<Option<DynamicObject>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"));
    let api: Api<DynamicObject> = Api::namespaced_with(stand.client.clone(), stand.namespace(), &resource);
    Ok(api.get_opt(&format!("{CHAT}-preview")).await?)
}

/// The revision that answers under the preview's host name while the candidate has no live request.
async fn preview_answers(stand: &Stand) -> Result<String> {
    let config = stand.traffic_config()?;
    let connections = Connections::new(config.address);
    let request = Request {
        host: PREVIEW.into(),
        header: None,
        prompt: config.prompts.first().cloned().unwrap_or_default(),
        max_tokens: 4,
        stream: false,
        timeout: Duration::from_secs(5),
    };
    for _ in 0..600 {
        let record = connections.send(&request).await;
        if let (false, Some(arm)) = (record.failed(), record.arm) {
            return Ok(arm);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let route = preview_route(stand).await?;
    ensure!(route.is_some(), "no preview route within 120 s");
    anyhow::bail!("{PREVIEW} gave no answer within 120 s")
}
