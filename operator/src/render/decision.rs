//! Verdicts: the compact record in the route's annotation, and the RolloutDecision object made from it.

use super::{Kind, Write, create, delete, labels, status::signal_status};
use bitnet_api::v1alpha1::{RolloutDecision, RolloutDecisionSpec, SignalStatus};
use bitnet_core::{
    Time,
    model::{LatchKey, Rollout},
    observation::StoredDecision,
    plan::{DecisionRecord, Verdict},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

/// Largest annotation.
const LIMIT: usize = 2048;
/// Records that are kept per rollout.
const KEPT: usize = 20;

/// The `decision` annotation: a verdict with its evidence, at most 2 KB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Compact {
    /// Name of the RolloutDecision.
    pub id: String,
    /// Name of the verdict.
    pub verdict: String,
    /// Latch key of the attempt that it ended.
    pub key: String,
    /// When, in milliseconds since the epoch.
    pub at: i64,
    /// Step at which it was decided.
    pub step: u32,
    /// Weight of the candidate.
    pub weight: u32,
    /// Tick in which it was decided.
    pub tick: u32,
    /// The rule that fired.
    pub reason: String,
    /// The same in words.
    pub message: String,
    /// Who asked.
    pub by: String,
    /// Stable at that time.
    pub stable: String,
    /// The baseline.
    pub baseline: String,
    /// Hash of the gate's parameters.
    pub parameters: String,
    /// Hash of the probe set.
    pub probe_set: String,
    /// ln of the combined evidence against the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Live requests of the candidate.
    #[serde(default)]
    pub exposed: u64,
    /// The signals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<SignalStatus>,
}

impl Compact {
    /// The record of a verdict.
    pub fn of(record: &DecisionRecord) -> Self {
        let assessment = record.assessment.as_ref();
        Self {
            id: record.id.clone(),
            verdict: record.verdict.name().into(),
            key: record.key.to_string(),
            at: record.at.0,
            step: record.step,
            weight: record.weight,
            tick: record.tick,
            reason: record.note.reason.name(),
            message: record.note.message.clone(),
            by: record.by.clone(),
            stable: record.stable.0.clone(),
            baseline: record.baseline.0.clone(),
            parameters: record.parameters.clone(),
            probe_set: record.probe_set.clone(),
            evidence: assessment.map(|assessment| super::status::decimal(assessment.ln_rollback, 2)),
            exposed: assessment.map_or(0, |assessment| assessment.exposed_requests),
            signals: assessment.iter().flat_map(|assessment| assessment.signals.iter().map(signal_status)).collect(),
        }
    }

    /// The annotation's text. What people can do without goes first where it would be too long.
    pub fn text(&self) -> String {
        let mut record = self.clone();
        let shorten: [fn(&mut Self); 5] = [
            |_| {},
            |record| record.signals.iter_mut().for_each(|signal| signal.detail = None),
            |record| record.message = record.message.chars().take(300).collect(),
            |record| record.by = record.by.chars().take(64).collect(),
            |record| record.signals.clear(),
        ];
        let mut text = String::new();
        for shorten in shorten {
            shorten(&mut record);
            // Plain structs with text keys always serialise.
            text = serde_json::to_string(&record).unwrap_or_default();
            if text.len() <= LIMIT {
                break;
            }
        }
        text
    }

    /// Reads an annotation; `None` if it is not one.
    pub fn stored(text: &str) -> Option<StoredDecision> {
        let record: Self = serde_json::from_str(text).ok()?;
        let verdict = match record.verdict.as_str() {
            "Promoted" => Verdict::Promoted,
            "RolledBack" => Verdict::RolledBack,
            "Inconclusive" => Verdict::Inconclusive,
            "Reported" => Verdict::Reported,
            _ => return None,
        };
        let key = LatchKey::parse(&record.key)?;
        Some(StoredDecision { id: record.id, verdict, key, at: Time(record.at), text: text.to_owned() })
    }

    /// The object of this record.
    fn object(&self, rollout: &Rollout, owner: &OwnerReference) -> Option<RolloutDecision> {
        let key = LatchKey::parse(&self.key)?;
        let optional = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let mut object = RolloutDecision::new(
            &self.id,
            RolloutDecisionSpec {
                rollout: rollout.name.clone(),
                uid: rollout.uid.clone(),
                candidate: key.revision.0,
                stable: self.stable.clone(),
                baseline: self.baseline.clone(),
                attempt: key.attempt as i32,
                step: self.step as i32,
                weight: self.weight as i32,
                ticks: self.tick as i32,
                exposed_requests: self.exposed as i64,
                verdict: self.verdict.clone(),
                reason: self.reason.clone(),
                message: self.message.clone(),
                by: self.by.clone(),
                signals: self.signals.clone(),
                evidence: self.evidence.clone(),
                gate: optional(&self.parameters),
                probe_set: optional(&self.probe_set),
                started_at: None,
                decided_at: rfc3339(Time(self.at)),
            },
        );
        object.metadata = ObjectMeta {
            name: Some(self.id.clone()),
            namespace: Some(rollout.namespace.clone()),
            labels: Some(labels::of_rollout(&rollout.name)),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        };
        Some(object)
    }
}

/// Creates the object of a stored verdict and deletes the oldest beyond [`KEPT`]. `found` are the existing ones.
pub(super) fn writes(
    rollout: &Rollout,
    found: &[ObjectMeta],
    stored: &StoredDecision,
    owner: &OwnerReference,
) -> Vec<Write> {
    let record = serde_json::from_str::<Compact>(&stored.text).ok();
    let Some(object) = record.and_then(|record| record.object(rollout, owner)) else { return Vec::new() };
    let mut oldest: Vec<_> = found.iter().filter(|meta| meta.name.as_deref() != Some(stored.id.as_str())).collect();
    oldest.sort_by(|a, b| (&a.creation_timestamp, &a.name).cmp(&(&b.creation_timestamp, &b.name)));
    let surplus = (oldest.len() + 1).saturating_sub(KEPT);
    let mut writes = vec![create(Kind::RolloutDecision, &stored.id, &object)];
    writes.extend(oldest.into_iter().take(surplus).map(|meta| delete(Kind::RolloutDecision, meta)));
    writes
}

/// A moment as in the API; out of range it is the epoch.
pub(crate) fn rfc3339(at: Time) -> String {
    Timestamp::from_millisecond(at.0).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
