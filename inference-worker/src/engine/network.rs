//! What the engine needs of a model. A trait, so that the engine's own tests can make one that is slow or breaks.

use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// Calls `part` once for each number below `count`, on the threads that have nothing to do between two passes, and
    /// returns when all calls have returned.
    fn spread(&self, count: usize, part: &(dyn Fn(usize) + Sync)) {
        on_threads(count, part);
    }
}

/// More threads would take longer to start than they have work.
const THREADS: usize = 8;

/// As [`Network::spread`], on threads that live as long as the call: for models whose work is elsewhere.
pub(crate) fn on_threads(count: usize, part: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            part(at);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(count);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without this thread the others do its work.
            let _ = std::thread::Builder::new().name("sampling".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
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

    fn spread(&self, count: usize, part: &(dyn Fn(usize) + Sync)) {
        self.cpu().pool().run(count, part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_done_once() {
        for count in [0, 1, 2, 100] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            on_threads(count, &|at| {
                done[at].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
        }
    }
}
