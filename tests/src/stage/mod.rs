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
    let here = package();
    here.parent().map_or_else(|| here.clone(), PathBuf::from)
}

/// The folder of this package. Cargo says it to what it runs; builds are shared by checkouts, so that the one that a
/// program was built from may be gone by then.
pub fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}
