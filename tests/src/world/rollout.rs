use anyhow::{Context, Result, bail};
use bitnet_api::v1alpha1::{ModelRollout, ModelRolloutStatus};
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The rollouts of one namespace.
#[derive(Clone)]
pub struct Rollouts {
    api: Api<ModelRollout>,
}

impl Rollouts {
    /// Rollouts of `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace) }
    }

    /// One rollout.
    pub async fn get(&self, name: &str) -> Result<ModelRollout> {
        self.api.get(name).await.with_context(|| format!("getting ModelRollout {name}"))
    }

    /// Its status, empty where it has none.
    pub async fn status(&self, name: &str) -> Result<ModelRolloutStatus> {
        Ok(self.get(name).await?.status.unwrap_or_default())
    }

    /// Merges into its spec, as an edit by a person.
    pub async fn edit(&self, name: &str, spec: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api.patch(name, &PatchParams::default(), &patch).await.with_context(|| format!("editing {name}"))?;
        Ok(())
    }

    /// Asks for a verb, as `kubectl bitnet` does.
    pub async fn verb(&self, name: &str, verb: &str, by: &str) -> Result<String> {
        let status = self.status(name).await?;
        let revision = status.candidate.or(status.stable).context("no revision yet")?.revision;
        let id = Timestamp::now().as_nanosecond().to_string();
        let request = json!({"id": id, "revision": revision, "attempt": status.attempt.unwrap_or(0), "by": by});
        let patch = json!({"metadata": {"annotations": {format!("rollouts.bitnet.dev/{verb}"): request.to_string()}}});
        self.api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(id)
    }

    /// Waits until `wanted` holds of the status of the current generation; `what` names it in the error.
    pub async fn wait(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&ModelRolloutStatus) -> bool,
    ) -> Result<ModelRolloutStatus> {
        let begin = Instant::now();
        loop {
            let rollout = self.get(name).await?;
            let status = rollout.status.unwrap_or_default();
            if status.observed_generation == rollout.metadata.generation && wanted(&status) {
                return Ok(status);
            }
            if begin.elapsed() > limit {
                bail!(
                    "{name} did not come to {what} within {} s: phase {:?}, {} ({})",
                    limit.as_secs(),
                    status.phase,
                    status.message,
                    weights_text(&status)
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits for a phase of the current generation.
    pub async fn phase(&self, name: &str, phase: &str, limit: Duration) -> Result<ModelRolloutStatus> {
        self.wait(name, phase, limit, |status| status.phase == phase).await
    }
}

/// `a 95, b 5`.
pub fn weights_text(status: &ModelRolloutStatus) -> String {
    status.weights.iter().map(|(name, weight)| format!("{name} {weight}")).collect::<Vec<_>>().join(", ")
}
