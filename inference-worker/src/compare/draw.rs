//! What a comparison draws, from its seed alone: the same tick asked of another pod draws the same prompts, positions
//! and orders, whatever the first pod's peers answered.

use crate::engine::random::Random;
use bitnet_api::worker::CompareRequest;
use sha2::{Digest, Sha256};

/// One prompt to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Index into the probe set.
    pub prompt: usize,
    /// Seed of its positions: their number is known only when the continuation is.
    pub positions: u64,
}

/// One latency pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairOrder {
    /// Index into the probe set.
    pub prompt: usize,
    /// The candidate generates first.
    pub candidate_first: bool,
}

/// All draws of one comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    /// Prompts to compare, with replacement.
    pub probes: Vec<Probe>,
    /// Latency pairs.
    pub pairs: Vec<PairOrder>,
}

/// `hash(uid, attempt, tick)`: the first eight bytes of SHA-256 over `uid NUL attempt NUL tick`, numbers in decimal.
pub fn seed(uid: &str, attempt: u32, tick: u32) -> u64 {
    let digest = Sha256::digest(format!("{uid}\0{attempt}\0{tick}"));
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// The draws of `request` from a set of `size` prompts, `size` at least 1.
pub fn draws(request: &CompareRequest, size: usize) -> Draws {
    let mut random = Random::from_seed(seed(&request.uid, request.attempt, request.tick));
    let probes = (0..request.probes).map(|_| Probe { prompt: random.below(size), positions: random.bits() }).collect();
    let pairs = (0..request.pairs)
        .map(|_| PairOrder { prompt: random.below(size), candidate_first: random.below(2) == 0 })
        .collect();
    Draws { probes, pairs }
}

/// At most `count` of the positions `0..rows`, without replacement, in random order: each is equally likely to be the
/// first, which is the tail test's.
pub fn positions(seed: u64, rows: usize, count: usize) -> Vec<usize> {
    let mut random = Random::from_seed(seed);
    let mut all: Vec<usize> = (0..rows).collect();
    let count = count.min(rows);
    for i in 0..count {
        let j = i + random.below(rows - i);
        all.swap(i, j);
    }
    all.truncate(count);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tick: u32) -> CompareRequest {
        CompareRequest {
            key: "k".into(),
            uid: "u".into(),
            attempt: 1,
            tick,
            baseline: "b".into(),
            stable: "s".into(),
            probes: 16,
            max_tokens: 8,
            positions: 4,
            pairs: 16,
            pair_tokens: 4,
        }
    }

    #[test]
    fn the_seed_fixes_the_draws_and_each_of_its_parts_changes_them() {
        assert_eq!(draws(&request(1), 100), draws(&request(1), 100));
        assert_ne!(draws(&request(1), 100).probes, draws(&request(2), 100).probes);
        let seeds =
            [seed("a", 1, 1), seed("b", 1, 1), seed("a", 2, 1), seed("a", 1, 2), seed("a", 11, 1), seed("a", 1, 11)];
        let mut unique = seeds.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), seeds.len());
        // sha256("a\0" "1\0" "1"), first eight bytes.
        assert_eq!(seed("a", 1, 1), 0xdf11_90f7_f39a_de60_u64, "the hash is part of the protocol between versions");
    }

    #[test]
    fn prompts_and_orders_are_uniform() {
        let mut prompts = [0u32; 4];
        let mut first = 0;
        for tick in 0..1000 {
            let draws = draws(&request(tick), 4);
            draws.probes.iter().for_each(|probe| prompts[probe.prompt] += 1);
            first += draws.pairs.iter().filter(|pair| pair.candidate_first).count();
        }
        // 16 000 draws: sd 55 per prompt, 63 for the order.
        assert!(prompts.iter().all(|n| (3700..4300).contains(n)), "{prompts:?}");
        assert!((7700..8300).contains(&first), "{first}");
    }

    #[test]
    fn positions_are_distinct_uniform_and_no_more_than_there_are() {
        let mut first = [0u32; 5];
        for seed in 0..5000 {
            let drawn = positions(seed, 5, 3);
            let mut sorted = drawn.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!((drawn.len(), sorted.len()), (3, 3));
            first[drawn[0]] += 1;
        }
        // sd 28.
        assert!(first.iter().all(|n| (860..1140).contains(n)), "{first:?}");
        assert_eq!(positions(1, 2, 64).len(), 2);
        assert!(positions(1, 0, 4).is_empty());
    }
}
