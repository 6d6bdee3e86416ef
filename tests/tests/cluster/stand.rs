//! A namespace with everything that a rollout needs.

use crate::Suite;
use anyhow::{Context, Result};
use e2e::{
    cluster::Cluster,
    traffic::{Config, Traffic, first_answer},
    world::{Manifests, Rollouts, RouteHistory, apply, demo_gate},
};
use kube::{Api, Client, api::DeleteParams};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// The namespace of the Gateway that all tests share.
const EDGE: &str = "edge";

/// The name of every test's rollout, route and gate.
pub(crate) const CHAT: &str = "chat";

/// Sets the shared Gateway up.
pub(crate) async fn edge(cluster: &Cluster) -> Result<()> {
    let client = cluster.client().await?;
    let manifests = Manifests::new(EDGE);
    let mut namespace = manifests.namespace();
    namespace["metadata"]["labels"] = json!({});
    apply(&client, EDGE, &namespace.to_string()).await?;
    apply(&client, EDGE, &manifests.gateway().to_string()).await?;
    cluster.gateway_address(EDGE, "gw").map(drop)
}

/// One test's namespace.
pub(crate) struct Stand {
    pub(crate) suite: Arc<Suite>,
    pub(crate) client: Client,
    pub(crate) manifests: Manifests,
    pub(crate) rollouts: Rollouts,
}

impl Stand {
    /// A fresh namespace under Pod Security "restricted", empty.
    pub(crate) async fn empty(suite: Arc<Suite>, name: &str) -> Result<Self> {
        let client = suite.cluster.client().await?;
        let manifests = Manifests::new(name);
        apply(&client, name, &manifests.namespace().to_string()).await?;
        let rollouts = Rollouts::new(client.clone(), name);
        Ok(Self { suite, client, manifests, rollouts })
    }

    /// The same with a route, the probes, and the demo's gate, all named `chat` (probes `chat-probes`).
    pub(crate) async fn new(suite: Arc<Suite>, name: &str) -> Result<Self> {
        let stand = Self::empty(suite, name).await?;
        stand.apply(&stand.manifests.route(CHAT, EDGE)).await?;
        stand.apply(&stand.manifests.probes("chat-probes", &stand.suite.models.probes)?).await?;
        stand.apply(&stand.manifests.gate(CHAT, &demo_gate())).await?;
        Ok(stand)
    }

    /// The namespace's name.
    pub(crate) fn namespace(&self) -> &str {
        &self.manifests.namespace
    }

    /// Applies one object.
    pub(crate) async fn apply(&self, object: &Value) -> Result<()> {
        apply(&self.client, self.namespace(), &object.to_string()).await
    }

    /// The user's route.
    pub(crate) fn route(&self) -> Value {
        self.manifests.route(CHAT, EDGE)
    }

    /// A rollout whose model is `image`, the fp16 model its baseline, with the demo's steps.
    pub(crate) fn spec(&self, image: &str) -> Value {
        json!({
            "baseline": {"source": {"image": self.suite.images.fp16.pinned()}},
            "model": {"source": {"image": image}},
            "route": {"httpRoute": CHAT, "rule": "completions"},
            "gate": {"name": CHAT},
            "strategy": {"canary": {"steps": [
                {"weight": 5, "duration": "20s"}, {"weight": 10, "duration": "20s"},
                {"weight": 20, "duration": "20s"}, {"weight": 50, "duration": "20s"},
            ]}},
            "scaleDownDelay": "15s",
        })
    }

    /// Creates the rollout `chat` and waits until the fp16 model serves.
    pub(crate) async fn serve_baseline(&self) -> Result<()> {
        let spec = self.spec(&self.suite.images.fp16.pinned());
        self.serve(&spec).await
    }

    /// Creates the rollout `chat` from a spec and waits for Serving.
    pub(crate) async fn serve(&self, spec: &Value) -> Result<()> {
        self.apply(&self.manifests.rollout(CHAT, spec)).await?;
        self.rollouts.phase(CHAT, "Serving", Duration::from_secs(120)).await.map(drop)
    }

    /// Every stored version of the route from now on.
    pub(crate) fn history(&self) -> RouteHistory {
        RouteHistory::watch(self.client.clone(), self.namespace(), CHAT)
    }

    /// What traffic needs; nothing is sent yet.
    pub(crate) fn traffic_config(&self) -> Result<Config> {
        let address = self.suite.cluster.gateway_address(EDGE, "gw")?;
        Ok(Config::new(address, &self.manifests.host, self.suite.models.live_prompts()?))
    }

    /// Starts traffic once the route answers.
    pub(crate) async fn traffic(&self, rate: f64) -> Result<Traffic> {
        let mut config = self.traffic_config()?;
        config.rate = rate;
        first_answer(&config, Duration::from_secs(60)).await?;
        Ok(Traffic::start(config))
    }

    /// Starts traffic of requests with a header.
    pub(crate) fn traffic_with(&self, rate: f64, (name, value): (&str, &str)) -> Result<Traffic> {
        let header = Some((name.to_owned(), value.to_owned()));
        Ok(Traffic::start(Config { rate, header, ..self.traffic_config()? }))
    }

    /// Takes the rollout down, then the namespace, and waits for both: the next test has the machine for itself.
    pub(crate) async fn away(self) -> Result<()> {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        namespaces.delete(self.namespace(), &DeleteParams::default()).await.context("deleting the namespace")?;
        eventually("the namespace is gone", Duration::from_secs(90), async || {
            Ok(namespaces.get_opt(self.namespace()).await?.is_none())
        })
        .await
    }
}

/// Waits until `holds`.
pub(crate) async fn eventually(
    what: &str,
    limit: Duration,
    mut holds: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let begin = std::time::Instant::now();
    while !holds().await? {
        if begin.elapsed() > limit {
            anyhow::bail!("not within {} s: {what}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}
