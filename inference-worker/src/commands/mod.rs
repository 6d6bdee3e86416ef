//! One file per verb: arguments and what they do.

pub(crate) mod bench;
#[cfg(feature = "cuda")]
mod bench_gpu;
pub(crate) mod calibrate;
pub(crate) mod convert;
pub(crate) mod damage;
pub(crate) mod distill;
pub(crate) mod evaluate;
pub(crate) mod federated;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod package;
pub(crate) mod selftest;
pub(crate) mod serve;

use inference_worker::model::HeadMode;

/// Number of CPUs at hand.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// How logits are computed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Head {
    /// In the checkpoint's precision.
    Exact,
    /// In 8 bits, and the 40 largest as exact: greedy and top-k choices do not change.
    Screened,
    /// In 8 bits.
    Int8,
}

impl Head {
    fn mode(self) -> HeadMode {
        match self {
            Self::Exact => HeadMode::Exact,
            Self::Screened => HeadMode::Screened,
            Self::Int8 => HeadMode::Int8,
        }
    }
}
