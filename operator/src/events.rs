//! Events on the custom resource. They are for people: one that cannot be written is logged and never retried.

use crate::render::{event, labels::MANAGED_BY};
use bitnet_core::plan::Event;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event as KubeEvent, EventType, Recorder, Reporter},
};

/// Writes events.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Writes as `identity` (the pod's name).
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: MANAGED_BY.into(), instance: Some(identity.into()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Writes the events of a plan.
    pub async fn publish(&self, about: &ObjectReference, events: &[Event]) {
        for planned in events {
            self.one(about, &event::render(planned)).await;
        }
    }

    /// Writes a warning that no plan made: a refusal, or a denied write.
    pub async fn warn(&self, about: &ObjectReference, reason: &str, note: &str) {
        let event = KubeEvent {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(note.chars().take(event::LIMIT).collect()),
            action: "Reconcile".into(),
            secondary: None,
        };
        self.one(about, &event).await;
    }

    async fn one(&self, about: &ObjectReference, event: &KubeEvent) {
        if let Err(error) = self.recorder.publish(event, about).await {
            tracing::info!(error = &error as &dyn std::error::Error, "an event was not written");
        }
    }
}
