//! What must be there before a rollout can be watched: programs, models, images, and the installed operator.
//!
//! Every stage is done once and found again: an interrupted run goes on where it stopped.

mod binaries;
pub mod browser;
mod install;
mod models;

pub use binaries::Binaries;
pub use install::{Images, Install, OPERATOR_NAMESPACE};
pub use models::Models;

use std::path::PathBuf;

/// The root of this checkout.
pub fn checkout() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.clone(), PathBuf::from)
}
