//! The forward pass on an NVIDIA GPU (`--features cuda`).
//!
//! [`CudaModel`] is a loaded [`Model`](crate::model::Model) in device memory. All kernels are ours (kernels/*.cu, built by
//! build.rs into one fatbin), so a GPU node needs the driver and nothing else; the driver is opened at run time, so the
//! same program starts without one. Weights are the left operand of the tensor cores, ternary ones in 2 bits until they
//! are in registers; a decoding pass is one CUDA graph per number of sequences.
//!
//! Ternary products are exact and equal those of the CPU bit for bit ([`CudaModel::self_test`]). Inputs of plain layers are
//! rounded to the type of their weights, so logits agree within that rounding. All `unsafe` code of the backend is in
//! gpu.rs, cache.rs and one line of forward.rs.

mod cache;
mod error;
mod forward;
mod gpu;
mod params;
mod self_test;
mod weights;

pub use cache::{Cache, KvPrecision};
pub use error::CudaError;
pub use forward::CudaModel;
pub use self_test::Check;
