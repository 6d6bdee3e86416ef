//! The operator of BitNet Rollouts: every effect of the control plane.
//!
//! One data path, six steps, and a file for each:
//! `validate` (in `bitnet-api`) → [`observe`] → `plan` (in `bitnet-core`) → [`render`] → [`apply`] → [`status`].
//! IO happens in `observe`, `apply` and `status` only; [`reconcile`] drives them and [`controller`] says when.

#![forbid(unsafe_code)]

pub mod admin;
pub mod apply;
pub mod backoff;
pub mod client;
pub mod config;
pub mod controller;
pub mod counters;
pub mod dashboard;
pub mod detach;
pub mod events;
#[cfg(test)]
mod fake;
pub mod guards;
pub mod lease;
pub mod metrics;
pub mod notifications;
pub mod observe;
pub mod preflight;
pub mod reconcile;
pub mod render;
pub mod status;
pub mod traces;
pub mod worker;
