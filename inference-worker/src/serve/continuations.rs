//! Greedy continuations that were asked for before: probes repeat, and their continuations do not change.

use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Continuations kept; the oldest goes first. At 512 tokens each that is 8 MiB at most.
const KEPT: usize = 4096;

type Key = [u8; 32];

/// Continuations by prompt and length.
#[derive(Default)]
pub(crate) struct Continuations(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    tokens: HashMap<Key, Vec<u32>>,
    order: VecDeque<Key>,
}

impl Continuations {
    pub(crate) fn get(&self, prompt: &[u32], length: u32) -> Option<Vec<u32>> {
        self.lock().tokens.get(&key(prompt, length)).cloned()
    }

    pub(crate) fn put(&self, prompt: &[u32], length: u32, tokens: Vec<u32>) {
        let key = key(prompt, length);
        let mut kept = self.lock();
        if kept.tokens.insert(key, tokens).is_none() {
            kept.order.push_back(key);
        }
        if kept.order.len() > KEPT
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.tokens.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(prompt: &[u32], length: u32) -> Key {
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    for id in prompt {
        hash.update(id.to_le_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_and_length_name_a_continuation_and_the_oldest_goes_first() {
        let kept = Continuations::default();
        kept.put(&[1, 2], 4, vec![9]);
        assert_eq!(kept.get(&[1, 2], 4), Some(vec![9]));
        assert_eq!(kept.get(&[1, 2], 5), None);
        assert_eq!(kept.get(&[1], 4), None);
        for i in 0..KEPT as u32 {
            kept.put(&[i + 100], 4, vec![i]);
        }
        assert_eq!(kept.get(&[1, 2], 4), None);
        assert_eq!(kept.get(&[100], 4), Some(vec![0]));
        assert_eq!(kept.lock().tokens.len(), KEPT);
    }
}
