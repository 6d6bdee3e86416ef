//! What a server needs of memory: weights, keys and values, and the passes, within a budget.

use super::Options;
use crate::model::{KvBits, KvCache, Model, ModelConfig};
use std::fmt;

/// Memory of a server, in bytes, when every sequence that may run fills the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Program, tokenizer and buffers: what was resident when the plan was made, without the weights.
    pub program: usize,
    /// Weights, and what screens the head.
    pub weights: usize,
    /// Keys and values of one sequence that fills the context.
    pub kv_per_sequence: usize,
    /// Keys and values that are kept for later requests.
    pub kept: usize,
    /// Rows of a pass: prompt tokens and one of each sequence, and logits.
    pub passes: usize,
    /// Requests that are being read.
    pub requests: usize,
    /// Precision of keys and values.
    pub kv_bits: KvBits,
    /// Sequences that may run at once.
    pub sequences: usize,
}

/// A budget that is too small for one sequence at the lowest precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--memory-budget is {budget} bytes but {} are needed ({plan}): {} bytes are missing; raise the budget, or lower --context or --prefix-cache",
    .plan.total(),
    .plan.total() - .budget
)]
pub struct BudgetTooSmall {
    /// The budget.
    pub budget: usize,
    /// The smallest plan.
    pub plan: MemoryPlan,
}

impl MemoryPlan {
    /// The plan of a model that is loaded: its own precision of keys and values and all sequences of the options where
    /// they fit the budget, else the next lower precision; at the lowest one, fewer sequences.
    ///
    /// # Errors
    /// [`BudgetTooSmall`] if one sequence does not fit at the lowest precision.
    pub fn of(model: &Model, options: &Options, budget: Option<usize>) -> Result<Self, BudgetTooSmall> {
        let weights = model.weight_bytes();
        let program = resident().map_or(0, |resident| resident.saturating_sub(weights));
        Self::choose(model.config(), weights, program, model.kv_bits(), options, budget)
    }

    fn choose(
        config: &ModelConfig,
        weights: usize,
        program: usize,
        wanted: KvBits,
        options: &Options,
        budget: Option<usize>,
    ) -> Result<Self, BudgetTooSmall> {
        let at = |kv_bits: KvBits, sequences: usize| Self {
            program,
            weights,
            kv_per_sequence: KvCache::bytes_of(config, kv_bits, config.context),
            kept: KvCache::bytes_of(config, kv_bits, options.prefix_tokens),
            passes: pass_bytes(config, options.prefill_chunk, sequences),
            requests: options.request_bytes,
            kv_bits,
            sequences,
        };
        let most = options.max_batch.max(1);
        let Some(budget) = budget else { return Ok(at(wanted, most)) };
        let lower = KvBits::SERVED.into_iter().filter(|bits| *bits < wanted);
        let mut smallest = wanted;
        for bits in std::iter::once(wanted).chain(lower) {
            let plan = at(bits, most);
            if plan.total() <= budget {
                return Ok(plan);
            }
            smallest = bits;
        }
        let fewer = (1..most).rev().map(|sequences| at(smallest, sequences)).find(|plan| plan.total() <= budget);
        fewer.ok_or_else(|| BudgetTooSmall { budget, plan: at(smallest, 1) })
    }

    /// What the total is made of, by name.
    pub fn parts(&self) -> [(&'static str, usize); 6] {
        [
            ("program", self.program),
            ("weights", self.weights),
            ("sequences", self.kv_per_sequence.saturating_mul(self.sequences)),
            ("prefixes", self.kept),
            ("passes", self.passes),
            ("requests", self.requests),
        ]
    }

    /// Bytes in all.
    pub fn total(&self) -> usize {
        self.parts().into_iter().fold(0, |total, (_, bytes)| total.saturating_add(bytes))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, weights, kv_per_sequence, kept, passes, requests, kv_bits, sequences } = self;
        write!(
            f,
            "program {program}, weights {weights}, {sequences} sequences of {kv_per_sequence} at {kv_bits} bits, \
             kept prefixes {kept}, passes {passes}, requests {requests}"
        )
    }
}

/// Rows of the largest pass: floats of each layer's intermediate results, their quantised form, and logits (in the
/// kernels' rows, and in the sequence's).
fn pass_bytes(config: &ModelConfig, chunk: usize, sequences: usize) -> usize {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let floats = 3 * hidden + 2 * wide + 2 * narrow + 3 * inner + config.head_dim;
    let row = 4 * floats + hidden + wide + inner;
    (chunk + sequences) * row + sequences * 2 * 4 * config.vocab_size
}

/// Bytes of this process in memory, where the system says so.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Precision, Shape};

    fn plan(budget: Option<usize>) -> Result<MemoryPlan, BudgetTooSmall> {
        let shape = Shape::find("demo").unwrap();
        let model = Model::random(shape, Precision::Ternary, 1, &LoadOptions::default()).unwrap();
        let options = Options { max_batch: 8, prefix_tokens: 256, ..Options::default() };
        MemoryPlan::choose(model.config(), model.weight_bytes(), 1000, KvBits::Sixteen, &options, budget)
    }

    #[test]
    fn without_a_budget_all_is_as_asked_for() {
        let plan = plan(None).unwrap();
        assert_eq!((plan.kv_bits, plan.sequences), (KvBits::Sixteen, 8));
        // 4 layers, keys and values, 1 head of 64, 2 bytes and a step of 4, 128 positions.
        assert_eq!(plan.kv_per_sequence, 4 * 2 * (64 * 2 + 4) * 128);
        assert_eq!(plan.kept, plan.kv_per_sequence * 2);
        // Embedding of 1024 by 128 in half precision, and 2 bits per weight.
        assert!(plan.weights > 1024 * 128 * 2 + 4 * (2 * 128 * 384 + 384 * 128) / 4);
    }

    #[test]
    fn a_budget_lowers_the_precision_then_the_batch_and_then_says_what_is_missing() {
        let all = plan(None).unwrap();
        let mut before = all;
        for budget in (0..=all.total()).rev().step_by(4096) {
            match plan(Some(budget)) {
                Ok(plan) => {
                    assert!(plan.total() <= budget);
                    assert!(plan.kv_bits <= before.kv_bits && plan.sequences <= before.sequences);
                    assert!(plan.sequences == 8 || plan.kv_bits == KvBits::Three, "bits go first");
                    before = plan;
                }
                Err(error) => {
                    assert_eq!((before.sequences, error.plan.sequences), (1, 1));
                    let text = error.to_string();
                    assert!(text.contains(&format!("{} bytes are missing", error.plan.total() - budget)), "{text}");
                    return;
                }
            }
        }
        panic!("no budget was too small");
    }
}
