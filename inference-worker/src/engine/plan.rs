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
    /// Tokens of them.
    pub kept_tokens: usize,
    /// Rows of a pass: prompt tokens and one of each sequence, and logits.
    pub passes: usize,
    /// Requests that are being read.
    pub requests: usize,
    /// Precision of keys and values.
    pub kv_bits: KvBits,
    /// Sequences that may run at once.
    pub sequences: usize,
}

/// Memory that is too small for one sequence: at the lowest precision within a budget, as asked without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} {budget} bytes but {} are needed ({plan}): {} bytes are missing; {}, or lower --context or --prefix-cache",
    if *.machine { "this machine or container has" } else { "--memory-budget is" },
    .plan.total(),
    .plan.total() - .budget,
    if *.machine { "give a --memory-budget, so that keys and values get fewer bits" } else { "raise the budget" }
)]
pub struct BudgetTooSmall {
    /// The budget.
    pub budget: usize,
    /// Nobody gave one: it is all memory that there is.
    pub machine: bool,
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
        let plan = Self::choose(model.config(), weights, program, model.kv_bits(), options, budget)?;
        match (budget, memory()) {
            (None, Some(memory)) => plan.within(memory),
            _ => Ok(plan),
        }
    }

    fn choose(
        config: &ModelConfig,
        weights: usize,
        program: usize,
        wanted: KvBits,
        options: &Options,
        budget: Option<usize>,
    ) -> Result<Self, BudgetTooSmall> {
        let with = |kv_bits: KvBits, sequences: usize, kept_tokens: usize| Self {
            program,
            weights,
            kv_per_sequence: KvCache::bytes_of(config, kv_bits, config.context),
            kept: KvCache::bytes_of(config, kv_bits, kept_tokens),
            kept_tokens,
            passes: pass_bytes(config, options.prefill_chunk, sequences),
            requests: options.request_bytes,
            kv_bits,
            sequences,
        };
        // Where nobody said how much is kept: a context, or what the sequences leave of the budget.
        let at = |kv_bits: KvBits, sequences: usize| {
            let plan = |kept_tokens| with(kv_bits, sequences, kept_tokens);
            match (options.prefix_tokens, budget) {
                (Some(asked), _) => plan(asked),
                (None, None) => plan(config.context),
                (None, Some(budget)) => {
                    let token = KvCache::bytes_of(config, kv_bits, config.context).div_ceil(config.context.max(1));
                    let left = budget.saturating_sub(plan(0).total());
                    let kept = (left / token.max(1)).min(config.context);
                    // A block of positions is stored as a whole.
                    (0..=kept).rev().map(plan).find(|plan| plan.total() <= budget).unwrap_or_else(|| plan(0))
                }
            }
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
        fewer.ok_or_else(|| BudgetTooSmall { budget, machine: false, plan: at(smallest, 1) })
    }

    /// This plan, if one sequence that fills the context fits in so many bytes: the system ends a process that has less.
    fn within(self, memory: usize) -> Result<Self, BudgetTooSmall> {
        // What may fail alone is left out.
        let one = Self { sequences: 1, kept: 0, kept_tokens: 0, requests: 0, ..self };
        if one.total() > memory {
            return Err(BudgetTooSmall { budget: memory, machine: true, plan: one });
        }
        Ok(self)
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
        let Self { program, weights, kv_per_sequence, kept, passes, requests, kv_bits, sequences, .. } = self;
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

/// Bytes of memory that this process may have: of the machine, or of its container (cgroup v2) where that is less.
fn memory() -> Option<usize> {
    let machine = kibibytes("/proc/meminfo", "MemTotal:")?;
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|text| text.trim().parse::<usize>().ok());
    Some(container.map_or(machine, |container| container.min(machine)))
}

/// Bytes of this process in memory, where the system says so.
fn resident() -> Option<usize> {
    kibibytes("/proc/self/status", "VmRSS:")
}

/// A line `key    123 kB` of a file of the kernel's, in bytes.
fn kibibytes(path: &str, key: &str) -> Option<usize> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Precision, Shape};

    fn plan(budget: Option<usize>) -> Result<MemoryPlan, BudgetTooSmall> {
        plan_of(Some(256), budget)
    }

    fn plan_of(prefix_tokens: Option<usize>, budget: Option<usize>) -> Result<MemoryPlan, BudgetTooSmall> {
        let shape = Shape::find("demo").unwrap();
        let model = Model::random(shape, Precision::Ternary, 1, &LoadOptions::default()).unwrap();
        let options = Options { max_batch: 8, prefix_tokens, ..Options::default() };
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

    #[test]
    fn without_a_budget_one_sequence_must_fit_in_the_memory_that_there_is() {
        let plan = plan(None).unwrap();
        let one = plan.program + plan.weights + plan.kv_per_sequence + plan.passes;
        assert_eq!(plan.within(one), Ok(plan), "all eight of them need not");
        let text = plan.within(one - 5).unwrap_err().to_string();
        assert!(text.contains("5 bytes are missing; give a --memory-budget"), "{text}");
        assert!(memory().is_some_and(|memory| memory > resident().unwrap()));
    }

    #[test]
    fn a_context_is_kept_or_what_the_sequences_leave() {
        let all = plan_of(None, None).unwrap();
        assert_eq!((all.kept_tokens, all.kept), (128, all.kv_per_sequence));
        let nothing = all.total() - all.kept;
        // Positions are stored in blocks.
        let block = plan_of(Some(1), None).unwrap().kept;
        for budget in (nothing..=all.total()).step_by(997) {
            let plan = plan_of(None, Some(budget)).unwrap();
            assert_eq!((plan.kv_bits, plan.sequences), (all.kv_bits, all.sequences), "what is kept goes first");
            assert!(plan.total() <= budget && budget - plan.total() < block, "{plan}");
        }
        assert!(plan_of(None, Some(nothing - 1)).unwrap().kv_bits < all.kv_bits);
    }
}
