//! Custom resources of BitNet Rollouts, their validation, and what travels between operator and workers.
//!
//! Three features keep the edges thin: `worker` (wire types, serde only), `gate` (`QualityGate` as plain serde, for
//! offline evaluation) and `crd` (the custom resources with their schemas and CEL rules, and `validate`).

#[cfg(feature = "worker")]
pub mod worker;
