//! One file per verb: arguments and what they do.

pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod convert;
pub(crate) mod damage;
pub(crate) mod distill;
pub(crate) mod evaluate;
pub(crate) mod federated;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod package;
pub(crate) mod serve;

/// Number of CPUs at hand.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
