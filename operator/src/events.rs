//! Events on the custom resource. They are for people: one that cannot be written is logged and never retried.
//!
//! Each one is an object of its own. A recorder that folds events of one reason into a series would show the words of
//! the first step only.

use crate::render::event;
use bitnet_core::plan::Event as Planned;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

/// Writes events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    identity: String,
}

impl Events {
    /// Writes as `identity` (the pod's name).
    pub fn new(client: Client, identity: &str) -> Self {
        Self { client, identity: identity.to_owned() }
    }

    /// Writes the events of a plan.
    pub async fn publish(&self, about: &ObjectReference, events: &[Planned]) {
        for (index, planned) in events.iter().enumerate() {
            let (reason, object) = (planned.note.reason.name(), &planned.note.object);
            tracing::info!(reason, object, "{}", planned.note.message);
            self.one(event::render(about, planned, &self.identity, Timestamp::now(), index)).await;
        }
    }

    /// Writes a warning that no plan made: a refusal, or a denied write.
    pub async fn warn(&self, about: &ObjectReference, reason: &str, note: &str) {
        tracing::warn!(reason, "{note}");
        self.one(event::warning(about, reason, note, &self.identity, Timestamp::now())).await;
    }

    async fn one(&self, event: Event) {
        let api =
            Api::<Event>::namespaced(self.client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::info!(error = &error as &dyn std::error::Error, "an event was not written");
        }
    }
}
