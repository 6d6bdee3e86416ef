//! Pure core of BitNet Rollouts.
//!
//! The data path of one reconcile is `validate → observe → plan → render → apply → status`. This crate holds what has
//! no effects: the validated [`model`], the [`observation`], the [`plan`] with its [`report`], the [`check`] that lints
//! every plan, and the sequential statistics ([`stats`], [`evidence`]) that decide, and what they will
//! come to ([`simulate`]).
//!
//! **Architecture invariant:** no IO, no clock, no randomness of its own, no hash maps: the same inputs give the same
//! plan. Time enters as [`Time`]; draws are seeded by their caller.

pub mod check;
pub mod evidence;
pub mod model;
pub mod observation;
pub mod plan;
pub mod report;
pub mod simulate;
pub mod stats;
mod time;

pub use time::{Span, Time};
