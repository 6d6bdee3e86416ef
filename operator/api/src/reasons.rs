//! Reasons of conditions and events. What a running rollout waits for is core's [`Reason`]; what was refused before
//! that is a [`RefusalReason`](crate::validate::RefusalReason); the few that belong to neither are here.

pub use bitnet_core::report::Reason;

/// `Accepted=True`: the spec and everything it names were understood.
pub const ACCEPTED: &str = "Accepted";
/// A condition about evidence, without any.
pub const NO_EVIDENCE: &str = "NoEvidence";
/// `QualityHealthy=True`: nothing speaks against the candidate so far.
pub const WITHIN_MARGINS: &str = "WithinMargins";
/// `RolledBack=False`: no model of this spec was rolled back.
pub const NOT_ROLLED_BACK: &str = "NotRolledBack";
