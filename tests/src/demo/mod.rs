//! The demo: a healthy BitNet model is promoted, two damaged ones are rolled back, and a client counts what it saw.

mod act;
mod checks;
mod ground;
mod timeline;

pub use act::{Act, Outcome, play};
pub use checks::{Checks, exposure_bound};
pub use ground::{Ground, Own};
pub use timeline::Timeline;
