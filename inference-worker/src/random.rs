//! Randomness that can be replayed: the sampler's and the comparison's draws come from a seed alone.

use std::hash::{BuildHasher, Hasher, RandomState};

/// SplitMix64 (Steele, Lea, Flood 2014): eight bytes of state, passes BigCrush, the same numbers on every machine.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers depend on `seed` alone.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator that nobody can replay.
    pub fn from_entropy() -> Self {
        Self(entropy())
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`; 0 for a bound of 0. The bias of the multiplication is below `bound / 2^64`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }
}

/// 64 bits that differ from process to process and from call to call.
pub fn entropy() -> u64 {
    // Every RandomState has its own keys; the hash of nothing under them is as random as they are.
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_numbers() {
        // First outputs of SplitMix64 for seed 0, from the reference implementation.
        let mut random = Random::from_seed(0);
        assert_eq!(random.bits(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.bits(), 0x6e78_9e6a_a1b9_65f4);
        assert_ne!(Random::from_seed(1).bits(), Random::from_seed(2).bits());
        assert_ne!(entropy(), entropy());
    }

    #[test]
    fn draws_are_uniform_and_in_range() {
        let mut random = Random::from_seed(7);
        let mut counts = [0u32; 5];
        for _ in 0..50_000 {
            counts[random.below(5)] += 1;
            let u = random.unit();
            assert!((0.0..1.0).contains(&u));
        }
        // Each count is Binomial(50 000, 1/5): sd 89.
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
        assert_eq!(random.below(0), 0);
    }
}
