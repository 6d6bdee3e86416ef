//! What the engine needs of a model. A trait, so that the engine's own tests can make one that is slow or breaks.

/// A model that reads tokens and gives logits; owned by the engine's thread.
pub trait Network: Send + 'static {
    /// Keys and values of one sequence.
    type Cache: Send;

    /// Length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// An empty cache for at most `capacity` tokens.
    fn new_cache(&self, capacity: usize) -> Self::Cache;

    /// A cache for at most `capacity` tokens that begins with the first `len` tokens of another one; `len` is at most
    /// what that one holds.
    fn fork(&self, cache: &Self::Cache, len: usize, capacity: usize) -> Self::Cache;

    /// Bytes of weights that one pass reads; 0 where that is not known.
    fn bytes_per_pass(&self) -> usize;

    /// One forward pass over all turns at once. After an error the caches are as they were.
    fn forward(&self, turns: &mut [Turn<'_, Self::Cache>]) -> Result<(), String>;
}

/// What one sequence does in a forward pass.
pub struct Turn<'a, C> {
    /// The tokens before these.
    pub cache: &'a mut C,
    /// Tokens to append, at least one.
    pub tokens: &'a [u32],
    /// Indices into `tokens` whose logits are wanted, rising.
    pub want: &'a [u32],
    /// Receives `[want.len(), vocabulary]`, row major.
    pub logits: Vec<f32>,
}

impl Network for crate::model::Model {
    type Cache = crate::model::KvCache;

    fn vocabulary(&self) -> usize {
        self.config().vocab_size
    }

    fn new_cache(&self, capacity: usize) -> Self::Cache {
        crate::model::Model::new_cache(self, capacity)
    }

    fn fork(&self, cache: &Self::Cache, len: usize, capacity: usize) -> Self::Cache {
        let mut fork = crate::model::Model::new_cache(self, capacity);
        fork.copy_from(cache, len);
        fork
    }

    fn bytes_per_pass(&self) -> usize {
        crate::model::Model::bytes_per_pass(self)
    }

    fn forward(&self, turns: &mut [Turn<'_, Self::Cache>]) -> Result<(), String> {
        use crate::model::{Step, Want};
        let mut steps: Vec<Step<'_>> =
            turns.iter_mut().map(|turn| Step::new(turn.cache, turn.tokens, Want::Positions(turn.want))).collect();
        crate::model::Model::forward(self, &mut steps).map_err(|error| error.to_string())?;
        let logits: Vec<Vec<f32>> = steps.into_iter().map(|step| step.logits).collect();
        for (turn, logits) in turns.iter_mut().zip(logits) {
            turn.logits = logits;
        }
        Ok(())
    }
}
