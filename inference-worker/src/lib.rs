//! `inference-worker`: a BitNet and fp16 inference server that compares itself with its baseline, and the workshop
//! that makes model pairs.
//!
//! The path of a request: [`serve`] (HTTP) → [`engine`] (batches, cache, clock) → [`model`] (forward pass, loader) →
//! [`kernels`]. [`compare`] asks peers over the internal port; [`workshop`] trains and damages models.

pub mod compare;
pub mod engine;
pub mod kernels;
pub mod model;
pub mod random;
pub mod serve;
pub mod workshop;
