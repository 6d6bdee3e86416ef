//! Rollouts as JSON for the page. It says what the status says: no number is made here.

use super::ticks::Ticks;
use crate::reconcile::Guarded;
use bitnet_api::v1alpha1::{ModelRollout, RolloutDecision};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

/// One line of the list. A malformed object has a line, too: it is the one that needs somebody.
pub(super) fn row(object: &Guarded) -> Value {
    let meta = object.meta();
    let base = |phase: &str, message: &str| {
        json!({
            "namespace": meta.namespace, "name": meta.name, "phase": phase, "message": message,
            "created": meta.creation_timestamp,
        })
    };
    let object = match &object.0 {
        Ok(object) => object,
        Err(invalid) => return base("Malformed", &invalid.error),
    };
    let status = object.status.clone().unwrap_or_default();
    let mut row = base(&status.phase, &status.message);
    let signals: Value = status.signals.iter().map(|signal| json!([signal.name, signal.estimate])).collect();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    row["step"] = json!(status.step.as_ref().map(|step| &step.position));
    row["weight"] = json!(status.step.as_ref().map(|step| step.weight));
    row["verdict"] = json!(status.verdict);
    row["signals"] = signals;
    row["reason"] = json!(ready.map(|condition| &condition.reason));
    row["current"] = json!(status.observed_generation == object.metadata.generation);
    row
}

/// The whole of a rollout but for the points of its charts.
pub(super) fn detail(object: &ModelRollout) -> Value {
    let mut status = object.status.clone().unwrap_or_default();
    // Opaque, and of no use in a browser.
    status.evidence = None;
    let spec = &object.spec;
    json!({
        "namespace": object.namespace(), "name": object.name_any(), "created": object.metadata.creation_timestamp,
        "generation": object.metadata.generation,
        "deleting": object.metadata.deletion_timestamp.is_some(),
        "spec": {
            "strategy": spec.strategy, "gate": spec.gate.as_ref().map(|gate| &gate.name), "paused": spec.paused,
            "route": spec.route,
        },
        "status": status,
    })
}

/// What this process watched of the running attempt, `null` if nothing.
pub(super) fn watched(object: &ModelRollout, ticks: &Ticks) -> Value {
    let attempt = object.status.as_ref().and_then(|status| status.attempt).unwrap_or(0);
    let attempt = u32::try_from(attempt).unwrap_or(0);
    let namespace = object.namespace().unwrap_or_default();
    json!(ticks.of(&namespace, &object.name_any(), attempt))
}

/// Both.
pub(super) fn whole(object: &ModelRollout, ticks: &Ticks) -> Value {
    let mut value = detail(object);
    value["watched"] = watched(object, ticks);
    value
}

/// Decisions, newest first.
pub(super) fn decisions(mut found: Vec<RolloutDecision>) -> Vec<Value> {
    found.sort_by(|a, b| (&b.spec.decided_at, b.name_any()).cmp(&(&a.spec.decided_at, a.name_any())));
    found.iter().map(|decision| json!({"id": decision.name_any(), "spec": decision.spec})).collect()
}
