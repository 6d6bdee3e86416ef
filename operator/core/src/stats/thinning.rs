//! Exact random subsamples of counts (multivariate hypergeometric), reproducible from a seed.

use statrs::distribution::{Discrete, Hypergeometric};

/// A stream of pseudo-random numbers (SplitMix64): the same seed gives the same draws on every replay.
#[derive(Clone, Copy, Debug)]
pub struct Draws(u64);

impl Draws {
    /// The stream of a seed and a purpose, so that two uses of one seed do not share draws.
    pub fn new(seed: u64, purpose: u64) -> Self {
        Self(seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How many of `marked` among `population` are in a random subsample of `size` (each at most `population`).
pub fn hypergeometric(population: u64, marked: u64, size: u64, draws: &mut Draws) -> u64 {
    let (marked, size) = (marked.min(population), size.min(population));
    let low = (marked + size).saturating_sub(population);
    let high = marked.min(size);
    if low == high {
        return low;
    }
    let Ok(distribution) = Hypergeometric::new(population, marked, size) else { return low };
    let mode = ((marked + 1) as f64 * (size + 1) as f64 / (population + 2) as f64).floor() as u64;
    let mode = mode.clamp(low, high);
    let at_mode = distribution.pmf(mode);
    // Inversion outwards from the mode: about one standard deviation of steps, each by the ratio of neighbouring
    // probabilities.
    let ratio_up = |k: u64| {
        (marked - k) as f64 * (size - k) as f64 / ((k + 1) as f64 * (population + k + 1 - marked - size) as f64)
    };
    let mut rest = draws.uniform() - at_mode;
    let (mut down, mut p_down) = (mode, at_mode);
    let (mut up, mut p_up) = (mode, at_mode);
    while rest >= 0.0 && (down > low || up < high) {
        if up < high {
            p_up *= ratio_up(up);
            up += 1;
            rest -= p_up;
            if rest < 0.0 {
                return up;
            }
        }
        if down > low {
            down -= 1;
            p_down /= ratio_up(down);
            rest -= p_down;
            if rest < 0.0 {
                return down;
            }
        }
        if p_up.max(p_down) < 1e-300 {
            // Only rounding errors are left to be distributed.
            break;
        }
    }
    mode
}

/// So few are removed one by one: quicker than a draw per cell.
const ONE_BY_ONE: u64 = 256;

/// Thins counts to a random subsample of `size`; counts of at most `size` in all stay as they are.
pub fn thin(counts: &mut [u64], size: u64, draws: &mut Draws) {
    let mut population: u64 = counts.iter().sum();
    if population <= size {
        return;
    }
    let removed = population - size;
    if removed <= ONE_BY_ONE {
        for left in (size + 1..=population).rev() {
            let mut at = (draws.uniform() * left as f64) as u64;
            for count in counts.iter_mut() {
                if at < *count {
                    *count -= 1;
                    break;
                }
                at -= *count;
            }
        }
        return;
    }
    let mut missing = size;
    for count in counts {
        let taken = hypergeometric(population, *count, missing, draws);
        population -= *count;
        missing -= taken;
        *count = taken;
    }
}
