//! Version `v1alpha1` of the group `rollouts.bitnet.dev`.

// The schema derivation copies each struct into a function, with its `pub`.
#![allow(unreachable_pub)]
// Printer columns repeat `type_ = "string"`.
#![allow(clippy::duplicated_attributes)]

mod quality_gate;

#[cfg(feature = "crd")]
mod ab_test;
#[cfg(feature = "crd")]
mod model_rollout;
#[cfg(feature = "crd")]
mod rollout_decision;
#[cfg(feature = "crd")]
mod rollout_status;
#[cfg(feature = "crd")]
mod route;
#[cfg(feature = "crd")]
mod schema;
#[cfg(feature = "crd")]
mod strategy;

pub use quality_gate::*;

#[cfg(feature = "crd")]
pub use {
    ab_test::*,
    model_rollout::*,
    rollout_decision::*,
    rollout_status::*,
    route::{LoadBalancing, RouteSpec},
    strategy::{BlueGreenSpec, CanarySpec, Pace, PauseSpec, StepSpec, StrategySpec},
};

/// API group of all custom resources.
pub const GROUP: &str = "rollouts.bitnet.dev";
/// Version of this module.
pub const VERSION: &str = "v1alpha1";
