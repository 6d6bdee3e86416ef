//! Fused f32 operations with backward passes of their own, for candle's graph on the CPU.
//!
//! The stock operations either have no backward pass (fused norm, rope and softmax) or cost several passes over memory
//! each; these make training more than twice as fast. Every backward pass is checked against finite differences.
//!
//! Operands are contiguous rows: `[tokens, width]`. Sums run in a fixed order, so results repeat bit for bit.

mod attention;
mod feed_forward;
mod linear;
mod loss;
mod quantise;
mod rms_norm;
mod rows;
mod states;

pub use attention::{Attention, Rope, RopeTable};
pub use feed_forward::SquaredGate;
pub use linear::Linear;
pub use loss::{Loss, Objective};
pub use quantise::{QuantiseActivations, QuantiseCache};
pub use rms_norm::RmsNorm;
pub(super) use rows::read;
pub use states::StateLoss;

#[cfg(test)]
mod gradients;
