//! A row of logits as weights: exponentials in f32, summed in blocks that a compiler makes vectors of.
//!
//! Only multiplications and additions are used, in a fixed order, so that a seed draws the same tokens on every machine
//! and on every number of threads.

use std::cmp::Ordering;

/// Logits whose largest one and whose sum of weights are known: few enough to look through one by one, enough for the
/// blocks of a vocabulary of 128 000 to be looked through as well.
const BLOCK: usize = 256;
/// Numbers of a block that are summed side by side.
const LANES: usize = 8;

/// A row and the largest logit of each of its blocks.
pub(super) struct Row<'a> {
    logits: &'a [f32],
    peaks: Vec<f32>,
    best: f32,
    finite: bool,
}

/// A token with its logit, or with its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) value: f32,
    pub(super) token: u32,
}

/// How a logit becomes a weight: 1 for the largest.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    pub(super) best: f32,
    pub(super) temperature: f32,
    /// Smaller weights are none.
    pub(super) floor: f32,
}

impl Entry {
    /// The larger value first, then the lower token.
    pub(super) fn falling(self, other: Self) -> Ordering {
        other.value.total_cmp(&self.value).then(self.token.cmp(&other.token))
    }
}

impl Weight {
    pub(super) fn of(self, logit: f32) -> f32 {
        // Divided, not multiplied by the inverse: that is infinite for the smallest temperatures.
        let weight = exp((logit - self.best) / self.temperature);
        if weight < self.floor { 0.0 } else { weight }
    }

    fn sum(self, block: &[f32]) -> f64 {
        let mut lanes = [0.0_f32; LANES];
        let chunks = block.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().map(|&x| self.of(x)).sum();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += self.of(x);
            }
        }
        lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(rest)
    }
}

impl<'a> Row<'a> {
    pub(super) fn new(logits: &'a [f32]) -> Self {
        let mut finite = true;
        let mut peaks = Vec::with_capacity(logits.len().div_ceil(BLOCK));
        for block in logits.chunks(BLOCK) {
            let (peak, whole) = peak(block);
            peaks.push(peak);
            finite &= whole;
        }
        let best = peaks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Self { logits, peaks, best, finite }
    }

    /// Logits that are NaN or infinite.
    pub(super) fn broken(&self) -> u64 {
        if self.finite { 0 } else { self.logits.iter().filter(|x| !x.is_finite()).count() as u64 }
    }

    /// The largest logit.
    pub(super) fn best(&self) -> f32 {
        self.best
    }

    /// The first token that has it.
    pub(super) fn first(&self) -> u32 {
        let block = self.peaks.iter().position(|peak| *peak == self.best).unwrap_or(0);
        let begin = block * BLOCK;
        let inside = self.logits[begin..].iter().position(|x| *x == self.best).unwrap_or(0);
        (begin + inside) as u32
    }

    /// Sums of the weights of each block.
    pub(super) fn masses(&self, weight: Weight) -> Vec<f64> {
        self.logits.chunks(BLOCK).map(|block| weight.sum(block)).collect()
    }

    /// The first token at which the running sum of the weights exceeds `target`, which is below the sum of `masses`.
    pub(super) fn at(&self, weight: Weight, masses: &[f64], target: f64) -> u32 {
        let mut sum = 0.0;
        let mut chosen = None;
        for (block, mass) in masses.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
            chosen = Some((block, sum));
            if sum + mass > target {
                break;
            }
            sum += mass;
        }
        let Some((block, before)) = chosen else { return self.first() };
        let begin = block * BLOCK;
        let inside = self.logits[begin..].iter().take(BLOCK).zip(begin as u32..);
        pick(inside.map(|(&x, token)| Entry { value: weight.of(x), token }), target - before)
    }

    /// The tokens whose weight is at least `least`, with their weights.
    pub(super) fn heavier(&self, weight: Weight, least: f32) -> Vec<Entry> {
        let mut found = Vec::new();
        for ((block, &peak), begin) in self.logits.chunks(BLOCK).zip(&self.peaks).zip((0_u32..).step_by(BLOCK)) {
            if weight.of(peak) < least {
                continue;
            }
            // All of a block first: that is done with vectors.
            let mut weights = [0.0; BLOCK];
            for (slot, &x) in weights.iter_mut().zip(block) {
                *slot = weight.of(x);
            }
            // Each one is written and stays if it is heavy enough: a branch would be guessed wrong too often.
            let (mut heavy, mut count) = ([Entry { value: 0.0, token: 0 }; BLOCK], 0);
            for ((&value, token), _) in weights.iter().zip(begin..).zip(block) {
                heavy[count] = Entry { value, token };
                count += usize::from(value >= least && value > 0.0);
            }
            found.extend_from_slice(&heavy[..count]);
        }
        found
    }

    /// The tokens with the `count` largest logits, in no order.
    pub(super) fn largest(&self, count: usize) -> Vec<Entry> {
        if count == 0 {
            return Vec::new();
        }
        let mut least = f32::NEG_INFINITY;
        if count <= self.peaks.len() {
            // So many blocks have a logit that is not smaller.
            let mut peaks = self.peaks.clone();
            least = *peaks.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
        }
        let mut found = Vec::new();
        for ((block, &peak), begin) in self.logits.chunks(BLOCK).zip(&self.peaks).zip((0_u32..).step_by(BLOCK)) {
            if peak >= least {
                let entries = block.iter().zip(begin..).map(|(&value, token)| Entry { value, token });
                found.extend(entries.filter(|entry| entry.value >= least));
            }
        }
        if found.len() > count {
            found.select_nth_unstable_by(count - 1, |a, b| a.falling(*b));
            found.truncate(count);
        }
        found
    }
}

/// The largest number of a block, and whether all of it are numbers.
fn peak(block: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // Nought times what is no number is none.
    let mut noughts = [0.0_f32; LANES];
    let chunks = block.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks.chain(std::iter::once(rest)) {
        for ((lane, nought), &x) in lanes.iter_mut().zip(&mut noughts).zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
            *nought += x * 0.0;
        }
    }
    (lanes.into_iter().fold(f32::NEG_INFINITY, f32::max), noughts.iter().all(|nought| *nought == 0.0))
}

/// The first token at which the running sum exceeds `target`; rounding at the very end falls to the last one.
pub(super) fn pick(entries: impl Iterator<Item = Entry>, target: f64) -> u32 {
    let mut sum = 0.0;
    let mut last = 0;
    for Entry { value, token } in entries.filter(|entry| entry.value > 0.0) {
        last = token;
        sum += f64::from(value);
        if sum > target {
            break;
        }
    }
    last
}

/// Keeps the fewest of the heaviest entries whose weights, above 0 and at most 1, reach `wanted` together.
pub(super) fn nucleus(entries: &mut Vec<Entry>, wanted: f64) {
    // Floats above 0 are ordered as their bits: the upper ones of them are bins, 128 for each power of two.
    let bin = |weight: f32| (weight.to_bits() >> 16) as usize;
    let top = bin(1.0);
    let Some(lowest) = entries.iter().map(|entry| bin(entry.value)).min() else { return };
    let mut masses = vec![0.0_f64; top.saturating_sub(lowest) + 1];
    let place = |entry: &Entry| top.saturating_sub(bin(entry.value));
    for entry in &*entries {
        masses[place(entry)] += f64::from(entry.value);
    }
    let mut reached = 0.0;
    let crossing = masses.iter().position(|mass| {
        let enough = reached + mass >= wanted;
        reached += if enough { 0.0 } else { *mass };
        enough
    });
    let Some(crossing) = crossing else { return };
    let mut edge: Vec<Entry> = entries.iter().filter(|entry| place(entry) == crossing).copied().collect();
    edge.sort_unstable_by(|a, b| a.falling(*b));
    entries.retain(|entry| place(entry) < crossing);
    for entry in edge {
        if reached >= wanted && !entries.is_empty() {
            break;
        }
        reached += f64::from(entry.value);
        entries.push(entry);
    }
}

/// e to the power of `x`, not above 0, to a few units of the last place (Cephes' polynomial); nought below -87.4.
#[inline]
fn exp(x: f32) -> f32 {
    /// The logarithm of 2 in two parts: a whole number times the first one is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    /// Adding it rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let rest = x - whole * HIGH - whole * LOW;
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        sum = sum * rest + coefficient;
    }
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    (sum * rest * rest + rest + 1.0) * f32::from_bits(power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn exponentials_are_near_those_of_f64_and_nought_far_below() {
        for i in 0..200_000 {
            let x = -87.0 * i as f32 / 200_000.0;
            let wanted = f64::from(x).exp();
            assert!((f64::from(exp(x)) - wanted).abs() <= 4e-7 * wanted, "{x}");
        }
        assert_eq!((exp(0.0), exp(-90.0), exp(f32::MIN), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0, 0.0));
    }

    fn row(len: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::from_seed(seed);
        (0..len).map(|_| (random.unit() * 12.0).floor() as f32 / 2.0).collect()
    }

    #[test]
    fn the_largest_are_those_of_a_sort_on_every_length_and_with_many_ties() {
        for (len, seed) in [(1, 1), (7, 2), (255, 3), (256, 4), (257, 5), (3000, 6)] {
            let logits = row(len, seed);
            let mut sorted: Vec<Entry> = logits.iter().zip(0..).map(|(&value, token)| Entry { value, token }).collect();
            sorted.sort_by(|a, b| a.falling(*b));
            let row = Row::new(&logits);
            assert_eq!((row.first(), row.best(), row.broken()), (sorted[0].token, sorted[0].value, 0));
            for count in [0, 1, 2, 5, 11, 12, 13, 100, 5000] {
                let mut found = row.largest(count);
                found.sort_by(|a, b| a.falling(*b));
                assert_eq!(found, sorted[..count.min(len)], "{count} of {len}");
            }
        }
    }

    #[test]
    fn the_nucleus_is_that_of_a_sort() {
        for (len, seed) in [(1, 1), (50, 2), (4000, 3)] {
            let logits = row(len, seed);
            let row = Row::new(&logits);
            let weight = Weight { best: row.best(), temperature: 1.0, floor: 0.0 };
            let all = row.heavier(weight, 0.0);
            let total: f64 = row.masses(weight).iter().sum();
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| a.falling(*b));
            // Shares that no sum of these weights is near to, so that the order of additions decides nothing.
            for share in [1e-6, 0.1003, 0.5007, 0.9001, 0.9902, 2.0] {
                let mut reached = 0.0;
                let enough = sorted.iter().position(|entry| {
                    reached += f64::from(entry.value);
                    reached >= share * total
                });
                let wanted = &sorted[..enough.map_or(len, |at| at + 1)];
                let mut found = all.clone();
                nucleus(&mut found, share * total);
                found.sort_by(|a, b| a.falling(*b));
                assert_eq!(found, wanted, "{share} of {len}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_counted_wherever_it_is() {
        for at in [0, 7, 255, 256, 299] {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut logits = vec![f32::MIN; 300];
                logits[at] = odd;
                assert_eq!(Row::new(&logits).broken(), 1, "{odd} at {at}");
            }
        }
        assert_eq!(Row::new(&[f32::MAX, f32::MIN, -0.0]).broken(), 0);
    }
}
