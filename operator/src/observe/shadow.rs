//! Live prompts compared for display: who may be asked for it, and what was found.
//!
//! The permission is given anew at each tick and ends by itself, so that a label that is gone, a gate that asks for
//! nothing any more, and an operator that is away all end it.

use super::{Sources, World, sample};
use bitnet_api::{keys::namespace as keys, worker::ShadowRequest};
use bitnet_core::{
    model::{Revision, Rollout},
    plan::Attempt,
};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

/// Intervals that a permission outlives: a late tick does not end it.
const TICKS: i64 = 3;
/// Least and most seconds of a permission.
const SECONDS: (i64, i64) = (5, 3600);

/// What the candidate's pods have found, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shadowed {
    /// The namespace consents.
    pub consent: bool,
    /// Prompts compared.
    pub samples: u64,
    /// Sum of their cosines.
    pub cosine: f64,
    /// Of them, those under the tail threshold.
    pub below: u64,
    /// Sum of the shares of positions with the same most likely token.
    pub top1: f64,
    /// Prompts chosen and not compared.
    pub dropped: u64,
}

/// Gives the permission of a tick and takes what was found. `None`: the gate asks for nothing, or nothing is known.
pub(super) async fn take(from: Sources<'_>, rollout: &Rollout, attempt: &Attempt, world: &World) -> Option<Shadowed> {
    // Token ids of one tokenizer mean something else to another one.
    if rollout.gate.shadow == 0 || !attempt.comparable {
        return None;
    }
    if !consents(from.client, &rollout.namespace).await? {
        return Some(Shadowed::default());
    }
    let seconds = (rollout.gate.interval.0.saturating_mul(TICKS) / 1000).clamp(SECONDS.0, SECONDS.1);
    let request = ShadowRequest {
        uid: rollout.uid.clone(),
        attempt: attempt.number,
        baseline: attempt.against.0.clone(),
        percent: rollout.gate.shadow,
        max_tokens: rollout.gate.probes.max_tokens,
        positions: rollout.gate.probes.positions,
        tail_min: rollout.gate.tail_min,
        seconds: seconds as u32,
    };
    Some(ask(from, world, &attempt.candidate, &request).await)
}

/// Asks every ready pod of the candidate.
async fn ask(from: Sources<'_>, world: &World, candidate: &Revision, request: &ShadowRequest) -> Shadowed {
    let mut calls = Vec::new();
    for (_, ip) in sample::ready_pods(world, candidate) {
        calls.push(from.workers.shadow(ip, request));
    }
    let answers: Vec<_> = stream::iter(calls).buffer_unordered(sample::CONCURRENCY).collect().await;
    let mut all = Shadowed { consent: true, ..Shadowed::default() };
    for found in answers.into_iter().filter_map(|answer| sample::counted(from.metrics, "shadow", answer)) {
        all.samples += found.samples;
        all.cosine += found.cosine;
        all.below += found.below;
        all.top1 += found.top1;
        all.dropped += found.dropped.iter().map(|(_, count)| count).sum::<u64>();
    }
    all
}

/// The label of the namespace, as it is now. `None`: it cannot be read, and nothing is asked for.
async fn consents(client: &Client, namespace: &str) -> Option<bool> {
    match Api::<Namespace>::all(client.clone()).get_opt(namespace).await {
        Ok(found) => {
            let labels = found.and_then(|found| found.metadata.labels).unwrap_or_default();
            Some(labels.get(keys::SHADOW_CONSENT).is_some_and(|value| value == keys::GRANTED))
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the namespace's consent is not known");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Guard,
        counters::References,
        fake::{refusal, server},
        metrics::Metrics,
        worker::Workers,
    };
    use axum::{Json, Router, routing::post};
    use bitnet_api::worker::{SHADOW_PATH, ShadowResult};
    use bitnet_core::{
        Time,
        observation::{Pod, Workload},
    };
    use serde_json::json;
    use std::net::IpAddr;

    #[tokio::test]
    async fn only_the_label_with_its_one_value_is_a_consent() {
        let labelled = |labels: serde_json::Value| {
            server(&Guard::new(None), move |_| {
                let metadata = json!({"name": "tenant", "labels": labels});
                (200, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
            })
        };
        let cases = [
            (json!({}), false),
            (json!({"rollouts.bitnet.dev/shadow-consent": "no"}), false),
            (json!({"rollouts.bitnet.dev/shadow-consent": ""}), false),
            (json!({"rollouts.bitnet.dev/shadow-consent": "granted"}), true),
        ];
        for (labels, expected) in cases {
            let (client, log) = labelled(labels.clone());
            assert_eq!(consents(&client, "tenant").await, Some(expected), "{labels}");
            assert_eq!(log.lock().unwrap()[0].line(), "GET namespaces/tenant");
        }
        let (client, _) = server(&Guard::new(None), |_| refusal(403, "Forbidden", "no"));
        assert_eq!(consents(&client, "tenant").await, None, "not known is not asked for");
        let (client, _) = server(&Guard::new(None), |_| refusal(404, "NotFound", "no"));
        assert_eq!(consents(&client, "tenant").await, Some(false));
    }

    #[tokio::test]
    async fn sums_of_all_ready_pods_are_added_and_wrong_ones_left_out() {
        let answer = |Json(request): Json<ShadowRequest>| async move {
            // An answer that cannot be: 7 prompts are no block.
            let samples = if request.percent == 10 { 40 } else { 7 };
            let dropped = vec![("busy".to_owned(), 3), ("overloaded".to_owned(), 1)];
            Json(ShadowResult { samples, cosine: 4.0, below: 2, kl: 0.1, top1: 6.5, dropped })
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let workers = Workers::new(listener.local_addr().unwrap().port()).unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route(SHADOW_PATH, post(answer))).await });
        let (client, _) = server(&Guard::new(None), |_| refusal(404, "NotFound", "no"));
        let (references, metrics) = (References::default(), Metrics::default());
        let from =
            Sources { client: &client, workers: &workers, references: &references, metrics: &metrics, rivals: &[] };
        let candidate = Revision("chat-bbbbbbbbbb".into());
        let pod =
            |name: &str, ready: bool| Pod { name: name.into(), ready_since: ready.then_some(Time(1)), problem: None };
        let workload = Workload { pods: vec![pod("a", true), pod("b", true), pod("c", false)], ..Workload::default() };
        let mut world = World::default();
        world.observation.workloads.insert(candidate.clone(), workload);
        for name in ["a", "b", "c"] {
            world.pods.insert(name.into(), IpAddr::from([127, 0, 0, 1]));
        }
        let mut request = ShadowRequest {
            uid: "u".into(),
            attempt: 1,
            baseline: "chat-aaaaaaaaaa".into(),
            percent: 10,
            max_tokens: 8,
            positions: 4,
            tail_min: 0.9,
            seconds: 30,
        };
        let found = ask(from, &world, &candidate, &request).await;
        let expected = Shadowed { consent: true, samples: 80, cosine: 8.0, below: 4, top1: 13.0, dropped: 8 };
        assert_eq!(found, expected, "two pods are ready");
        request.percent = 5;
        let found = ask(from, &world, &candidate, &request).await;
        assert_eq!(found, Shadowed { consent: true, ..Shadowed::default() });
        assert!(metrics.encode().unwrap().contains("call=\"shadow\",outcome=\"unusable\""));
    }
}
