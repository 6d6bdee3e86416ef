//! Distillation of a student from any teacher that the worker serves, on any text, with checkpoints.
//!
//! The teacher runs through the forward pass that serves it. The student is a model of the BitNet class in the training
//! graph; it is exported by [`super::convert`], so what is published is packed as every converted model is.

mod checkpoint;
mod data;
mod journal;
mod schedule;
mod trainer;

pub use data::{DataSource, Text};
pub use schedule::{LearningRate, Stage, Stages};
pub use trainer::{Settings, Summary, Validation, distill_student};
