//! The workshop: text, training, distillation, damage, probes.
//!
//! [`distill()`] makes a model pair from nothing: generated text ([`text`]), a tokenizer and held-out prompts
//! ([`corpus`]), an fp16 teacher and its ternary student ([`train`]), exported ([`export`]) and measured through the
//! forward pass that serves them ([`probing`]). [`damage()`] makes candidates with real faults from a healthy one.
//!
//! Equal recipes give equal files on one kind of CPU: every random number comes from the seed, and every sum has one
//! order, whatever the number of threads.

pub mod convert;
pub mod corpus;
pub mod damage;
pub mod distill;
mod error;
pub mod evaluate;
pub mod export;
pub mod federated;
mod files;
pub mod gate;
pub mod inspect;
pub mod memory;
pub mod network;
pub mod ops;
pub mod package;
pub mod probing;
pub mod progress;
pub mod recipe;
pub mod report;
mod shards;
pub mod staging;
pub mod student;
pub mod svg;
pub mod ternary;
pub mod text;
pub mod train;
pub mod weights;

pub use damage::{Damage, Fault, damage};
pub use distill::{Demands, Manifest, distill};
pub use error::WorkshopError;

/// How a call that makes something ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T> {
    /// It was made.
    Made(T),
    /// The same from the same inputs was there already, whole, and is kept.
    Present(T),
}

impl<T> Outcome<T> {
    /// What is known of it, either way.
    pub fn into_inner(self) -> T {
        match self {
            Self::Made(it) | Self::Present(it) => it,
        }
    }
}
