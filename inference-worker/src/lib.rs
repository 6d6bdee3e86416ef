//! `inference-worker`: a BitNet and fp16 inference server that compares itself with its baseline, and the workshop
//! that makes model pairs.
//!
//! The path of a request: [`serve`] (HTTP) → [`engine`] (batches, cache, clock) → [`model`] (forward pass, loader) →
//! [`kernels`]; [`device`] puts the forward pass on a GPU where there is one. [`compare`] asks peers over the internal port; [`workshop`] trains and damages models.

pub mod compare;
mod contained;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod engine;
pub mod kernels;
pub mod model;
pub mod random;
pub mod serve;
pub mod workshop;
