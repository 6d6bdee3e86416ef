use std::fmt;

/// Why a rollout is not accepted: the reason of `Accepted=False`. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalReason {
    /// A field breaks a rule.
    InvalidSpec,
    /// A field asks for what has not landed.
    NotLanded,
    /// The QualityGate does not exist.
    GateMissing,
    /// A field of the QualityGate breaks a rule.
    InvalidGate,
    /// No pool of that name was declared by the admin.
    PoolMissing,
    /// The stored object cannot be read at all.
    Malformed,
}

impl RefusalReason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::InvalidSpec, Self::NotLanded, Self::GateMissing, Self::InvalidGate, Self::PoolMissing, Self::Malformed];

    /// The reason as in conditions and events: UpperCamelCase.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidSpec => "InvalidSpec",
            Self::NotLanded => "NotLanded",
            Self::GateMissing => "GateMissing",
            Self::InvalidGate => "InvalidGate",
            Self::PoolMissing => "PoolMissing",
            Self::Malformed => "Malformed",
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rollout that is not accepted: which field, which rule, and what to do. Nothing moves until it is corrected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}; {remedy}")]
pub struct Refusal {
    /// Reason of `Accepted=False`.
    pub reason: RefusalReason,
    /// Path of the field, `spec.baseline.source.image`; of a gate's field, `QualityGate chat: spec.interval`.
    pub field: String,
    /// The rule that it breaks.
    pub rule: String,
    /// What would make it right.
    pub remedy: String,
}

impl Refusal {
    /// A refusal in full.
    pub fn new(
        reason: RefusalReason,
        field: impl Into<String>,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { reason, field: field.into(), rule: rule.into(), remedy: remedy.into() }
    }

    /// A field that breaks a rule.
    pub(super) fn invalid(field: impl Into<String>, rule: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(RefusalReason::InvalidSpec, field, rule, remedy)
    }
}
