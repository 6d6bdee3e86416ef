//! What sequences need of a GPU's memory, once the weights are there.

use super::Options;
use std::fmt;

/// The driver gives memory in pieces of this size.
const PIECE: usize = 2 << 20;

/// Device memory of a server, in bytes, when every sequence that may run fills the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// What was free with the weights and the buffers of the largest pass in place.
    pub free: usize,
    /// Keys and values of one sequence that fills the context.
    pub kv_per_sequence: usize,
    /// Keys and values that are kept for later requests.
    pub kept: usize,
    /// Tokens of them.
    pub kept_tokens: usize,
    /// Sequences that may run at once.
    pub sequences: usize,
}

/// Device memory that is too small for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "one sequence does not fit in the memory of the GPU beside the weights ({plan}): {} bytes are missing; lower --context or --prefix-cache, serve with --gpu-kv int8, or use a GPU with more memory",
    .plan.needed() - .plan.free
)]
pub struct DeviceTooSmall {
    /// The smallest plan.
    pub plan: DevicePlan,
}

impl DevicePlan {
    /// All sequences of the options where they fit, else as many as do.
    ///
    /// # Errors
    /// [`DeviceTooSmall`] if not even one fits.
    pub fn choose(
        free: usize,
        kv_per_position: usize,
        context: usize,
        options: &Options,
    ) -> Result<Self, DeviceTooSmall> {
        let pieces = |positions: usize| {
            let bytes = kv_per_position.saturating_mul(positions);
            bytes.div_ceil(PIECE).saturating_mul(PIECE)
        };
        let kv_per_sequence = pieces(context);
        let asked = pieces(options.prefix_tokens.unwrap_or(0));
        let fitting = free.saturating_sub(asked) / kv_per_sequence.max(1);
        let sequences = options.max_batch.max(1).min(fitting.max(1));
        // Where nobody said how much is kept: what the sequences leave, up to a context.
        let kept_tokens = options.prefix_tokens.unwrap_or_else(|| {
            let left = free.saturating_sub(kv_per_sequence.saturating_mul(sequences)) / PIECE * PIECE;
            (left / kv_per_position.max(1)).min(context)
        });
        let plan = Self { free, kv_per_sequence, kept: pieces(kept_tokens), kept_tokens, sequences };
        if plan.needed() > free { Err(DeviceTooSmall { plan }) } else { Ok(plan) }
    }

    /// Bytes that the sequences and what is kept of them take at most.
    pub fn needed(&self) -> usize {
        self.kv_per_sequence.saturating_mul(self.sequences).saturating_add(self.kept)
    }
}

impl fmt::Display for DevicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { free, kv_per_sequence, kept, sequences, .. } = self;
        write!(f, "{free} free, {sequences} sequences of {kv_per_sequence}, kept prefixes {kept}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSITION: usize = 76_800;

    fn plan(free: usize) -> Result<DevicePlan, DeviceTooSmall> {
        let options = Options { max_batch: 8, prefix_tokens: Some(2048), ..Options::default() };
        DevicePlan::choose(free, POSITION, 4096, &options)
    }

    #[test]
    fn all_sequences_then_fewer_then_what_is_missing() {
        let (whole, kept) = (150 * PIECE, 75 * PIECE);
        let roomy = plan(100 << 30).unwrap();
        assert_eq!((roomy.sequences, roomy.kv_per_sequence, roomy.kept), (8, whole, kept));
        assert_eq!(plan(8 * whole + kept).unwrap().sequences, 8);
        assert_eq!(plan(8 * whole + kept - 1).unwrap().sequences, 7);
        assert_eq!(plan(whole + kept).unwrap().sequences, 1);
        for free in [whole + kept - 1, kept, 0] {
            let error = plan(free).unwrap_err().to_string();
            assert!(error.contains(&format!("{} bytes are missing", whole + kept - free)), "{error}");
            assert!(error.contains("--context") && error.contains("--gpu-kv int8"), "{error}");
        }
    }

    #[test]
    fn a_context_is_kept_or_what_the_sequences_leave() {
        let options = Options { max_batch: 8, ..Options::default() };
        let plan = |free| DevicePlan::choose(free, POSITION, 4096, &options).unwrap();
        let whole = 150 * PIECE;
        assert_eq!((plan(9 * whole).sequences, plan(9 * whole).kept_tokens), (8, 4096));
        for free in [9 * whole - 1, 8 * whole + PIECE, 8 * whole, 3 * whole + 7 * PIECE, whole] {
            let plan = plan(free);
            assert_eq!(plan.sequences, free / whole);
            assert!(plan.kept_tokens < 4096 && plan.needed() <= free && free - plan.needed() < 2 * PIECE, "{plan}");
        }
    }

    #[test]
    fn sizes_beyond_all_memory_are_refused_and_nothing_wraps() {
        let options = Options { max_batch: usize::MAX, prefix_tokens: Some(usize::MAX), ..Options::default() };
        assert!(DevicePlan::choose(usize::MAX - 1, usize::MAX, usize::MAX, &options).is_err());
    }
}
