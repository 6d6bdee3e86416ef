//! Distillation of a student from any teacher that the worker serves, on any text, with checkpoints.
//!
//! The teacher runs through the forward pass that serves it. The student is a model of the BitNet class in the training
//! graph; it is exported by [`super::convert`], so what is published is packed as every converted model is.

mod checkpoint;
mod data;
mod form;
mod held_out;
mod journal;
mod lesson;
mod schedule;
mod trainer;

pub use data::{DataSource, Text};
pub use form::{EXPORT, EXPORT_OF_FOUR_BITS, Form};
pub(super) use held_out::HeldOut;
pub use held_out::Validation;
pub(super) use lesson::Lesson;
pub use schedule::{LearningRate, Stage, Stages};
pub use trainer::{Settings, Summary, distill_student};
