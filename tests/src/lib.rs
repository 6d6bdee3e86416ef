//! What the demo and the end-to-end tests of BitNet Rollouts stand on.

pub mod cluster;
pub mod demo;
pub mod docs;
pub mod stage;
pub mod supply;
pub mod traffic;
pub mod world;
