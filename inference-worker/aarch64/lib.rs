//! The kernels of the worker, on AArch64.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "their callers are elsewhere")]

#[path = "../src/kernels/mod.rs"]
pub mod kernels;
#[path = "../src/random.rs"]
mod random;
