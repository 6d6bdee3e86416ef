//! Custom resources of BitNet Rollouts, their validation, and what travels between operator and workers.
//!
//! Three features keep the edges thin: `worker` (wire types, serde only, and the format of metrics), `gate` (`QualityGateSpec` as plain serde and
//! `validate::resolve_gate`, for offline evaluation) and `crd` (the custom resources with their schemas and CEL rules, and `validate`).

#[cfg(feature = "worker")]
pub mod exposition;
#[cfg(feature = "gate")]
pub mod units;
#[cfg(feature = "gate")]
pub mod v1alpha1;
#[cfg(feature = "worker")]
pub mod worker;

#[cfg(feature = "crd")]
pub mod conditions;
#[cfg(feature = "crd")]
pub mod crds;
#[cfg(feature = "crd")]
pub mod keys;
#[cfg(feature = "crd")]
pub mod reasons;
#[cfg(feature = "crd")]
pub mod reference;
#[cfg(feature = "gate")]
pub mod validate;
