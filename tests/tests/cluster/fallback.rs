//! Single requests that fp16 answers: a model whose every answer is NaN serves, and no client sees it.

use crate::{
    Suite,
    bad_input::edited,
    stand::{CHAT, Stand, eventually},
};
use anyhow::{Context, Result, ensure};
use bitnet_api::worker::REVISION_HEADER;
use k8s_openapi::api::core::v1::Service;
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use std::{fs, path::Path, sync::Arc, time::Duration};

/// In an answer of fp16: why it was asked.
const FALLBACK_HEADER: &str = "x-bitnet-fallback";

pub(crate) async fn a_request_that_the_model_fails_is_answered_by_fp16(suite: Arc<Suite>) -> Result<()> {
    let stand = Stand::new(suite.clone(), "fallback").await?;
    // The first comparison counts after a minute: time for a person to promote what no gate would.
    let mut gate = e2e::world::demo_gate();
    gate["interval"] = json!("60s");
    stand.apply(&stand.manifests.gate(CHAT, &gate)).await?;
    stand.serve_baseline().await?;
    let fp16 = stand.rollouts.status(CHAT).await?.stable.context("no stable")?.revision;
    let image = edited(&stand, "chat-bitnet-nan", &suite.models.bitnet, not_a_number)?;
    let model = json!({"model": {"source": {"image": image}, "serving": {"fallback": {"toBaseline": true}}}});
    stand.rollouts.edit(CHAT, &model).await?;
    stand
        .rollouts
        .wait(CHAT, "the candidate in the route", Duration::from_secs(120), |s| s.step.is_some() && s.weights.len() > 1)
        .await?;
    stand.rollouts.verb(CHAT, "promote-full", "e2e").await?;
    let end = stand
        .rollouts
        .wait(CHAT, "the promotion", Duration::from_secs(60), |s| {
            s.decision.as_ref().is_some_and(|d| d.verdict == "Promoted")
        })
        .await?;
    let broken = end.stable.context("no stable")?.revision;
    ensure!(end.weights.get(&broken) == Some(&100), "{:?}", end.weights);
    // The gateway takes the weights over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    all_by_fp16(&stand, &fp16).await?;

    // The Service by which workers find fp16 is kept.
    let services: Api<Service> = Api::namespaced(stand.client.clone(), stand.namespace());
    let name = format!("{CHAT}-baseline");
    let before = services.get(&name).await?.uid();
    services.delete(&name, &DeleteParams::default()).await?;
    eventually("another Service of fp16", Duration::from_secs(30), async || {
        Ok(services.get_opt(&name).await?.is_some_and(|found| found.uid() != before))
    })
    .await?;
    let address = services.get(&name).await?.spec.and_then(|spec| spec.cluster_ip);
    ensure!(address.as_deref() == Some("None"), "workers find the pods' addresses, not {address:?}");
    eventually("answers by it", Duration::from_secs(60), async || Ok(all_by_fp16(&stand, &fp16).await.is_ok())).await?;
    stand.away().await
}

/// The last norm of a model is no number, so no logit is.
fn not_a_number(dir: &Path) -> Result<()> {
    let path = dir.join("model.safetensors");
    let mut bytes = fs::read(&path)?;
    // A safetensors file: the length of the header (8 bytes, little-endian), the header (JSON), the data.
    let (length, rest) = bytes.split_first_chunk::<8>().context("no header")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let header: Value = serde_json::from_slice(rest.get(..length).context("a short header")?)?;
    let offset = |i: usize| -> Result<usize> {
        let at = header["model.norm.weight"]["data_offsets"][i].as_u64().context("no model.norm.weight")?;
        Ok(8 + length + usize::try_from(at)?)
    };
    let (begin, end) = (offset(0)?, offset(1)?);
    // All bits set is NaN in every float format.
    bytes.get_mut(begin..end).context("the tensor lies outside")?.fill(0xff);
    Ok(fs::write(path, bytes)?)
}

/// Whole answers and streams come from fp16, complete, and say why.
async fn all_by_fp16(stand: &Stand, fp16: &str) -> Result<()> {
    let config = stand.traffic_config()?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_secs(10)).build()?;
    for i in 0..20 {
        let stream = i % 2 == 1;
        let prompt = &config.prompts[i % config.prompts.len()];
        let body = json!({"model": "default", "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": stream});
        let url = format!("http://{}/v1/completions", config.address);
        let answer = client.post(url).header("host", &config.host).json(&body).send().await?;
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (status, by, why) = (answer.status(), header(REVISION_HEADER), header(FALLBACK_HEADER));
        let text = answer.text().await?;
        ensure!(status == 200, "request {i}: {status}: {text}");
        ensure!(by.as_deref() == Some(fp16), "request {i} was answered by {by:?}");
        ensure!(why.as_deref() == Some("non_finite"), "request {i}: {FALLBACK_HEADER} is {why:?}");
        let complete = if stream { text.contains("data: [DONE]") } else { text.contains("\"finish_reason\"") };
        ensure!(complete, "request {i} is cut: {text}");
    }
    Ok(())
}
