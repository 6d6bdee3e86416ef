use super::random::Random;
use crate::{
    evidence::Histogram,
    stats::histogram::{FIRST, OVERFLOW, upper_edge},
};
use statrs::function::erf::erfc;
use std::collections::BTreeMap;

/// Share, median (relative to the body's) and spread in logarithms of the two parts of a latency: a body and a slow mode.
const PARTS: [(f64, f64, f64); 2] = [(0.97, 1.0, 0.5), (0.03, 4.0, 0.6)];

/// Buckets of a histogram.
const BUCKETS: usize = (OVERFLOW - FIRST + 1) as usize;

/// Entries of a guide table.
const GUIDE: usize = 256;

/// Up to so many latencies are drawn one by one; of more, the buckets are halved.
const ONE_BY_ONE: u64 = 2_000;

/// Distribution of one latency over the buckets.
#[derive(Clone, Debug)]
struct Shape {
    /// Share of the latencies up to each bucket's upper edge.
    upto: [f64; BUCKETS],
    /// The bucket at which the search for a share of i / `GUIDE` and more begins.
    guide: [u8; GUIDE],
}

impl Shape {
    fn of(median: f64) -> Self {
        let upto: [f64; BUCKETS] = std::array::from_fn(|i| {
            let edge = upper_edge(FIRST + i as i16);
            let part = |(share, factor, spread): (f64, f64, f64)| {
                let z = (edge / (factor * median)).ln() / spread;
                share * 0.5 * erfc(-z / std::f64::consts::SQRT_2)
            };
            if edge.is_infinite() { 1.0 } else { PARTS.into_iter().map(part).sum() }
        });
        let first = |share: f64| upto[..BUCKETS - 1].partition_point(|&x| x <= share) as u8;
        Self { upto, guide: std::array::from_fn(|i| first(i as f64 / GUIDE as f64)) }
    }

    /// The bucket of a share of the latencies, below 1.
    fn bucket(&self, share: f64) -> usize {
        let mut bucket = usize::from(self.guide[((share * GUIDE as f64) as usize).min(GUIDE - 1)]);
        while bucket + 1 < BUCKETS && self.upto[bucket] <= share {
            bucket += 1;
        }
        bucket
    }
}

/// Draws histograms of many requests at once: latencies are a log-normal body with a slow mode of 3 %. It remembers the
/// distributions that it has used.
#[derive(Clone, Debug)]
pub struct Latencies {
    known: BTreeMap<u64, Shape>,
    counts: [u64; BUCKETS],
}

impl Default for Latencies {
    fn default() -> Self {
        Self { known: BTreeMap::new(), counts: [0; BUCKETS] }
    }
}

impl Latencies {
    /// Adds `n` latencies with this median (of the body, in seconds, > 0) to the histogram that [`Latencies::take`] gives.
    pub fn add(&mut self, random: &mut Random, n: u64, median: f64) {
        if n == 0 {
            return;
        }
        // Few different loads occur in a run; drifting ones must not be kept for ever.
        if self.known.len() >= 512 {
            self.known.clear();
        }
        let shape = self.known.entry(median.to_bits()).or_insert_with(|| Shape::of(median));
        if n <= ONE_BY_ONE {
            for _ in 0..n {
                self.counts[shape.bucket(random.uniform())] += 1;
            }
        } else {
            split(random, &mut self.counts, n, shape, (0, BUCKETS), (0.0, 1.0));
        }
    }

    /// What was added since the last call.
    pub fn take(&mut self) -> Histogram {
        let used = self.counts.iter_mut().enumerate().filter(|(_, n)| **n > 0);
        Histogram(used.map(|(i, n)| (FIRST + i as i16, std::mem::take(n))).collect())
    }
}

/// Draws `n` latencies of which it is known that they lie in buckets `first..end` with cumulative shares `low..high`: one
/// by one where they are few, otherwise a half of the buckets at a time.
fn split(
    random: &mut Random,
    counts: &mut [u64; BUCKETS],
    n: u64,
    shape: &Shape,
    (first, end): (usize, usize),
    (low, high): (f64, f64),
) {
    if n == 0 {
        return;
    }
    if end - first == 1 {
        counts[first] += n;
    } else if n <= 64 {
        for _ in 0..n {
            let share = low + (high - low) * random.uniform();
            counts[shape.bucket(share).clamp(first, end - 1)] += 1;
        }
    } else {
        // Near the middle of the probability, not of the buckets: most of them are empty.
        let middle = f64::midpoint(low, high);
        let cut = (first + 1 + shape.upto[first..end - 1].partition_point(|&x| x < middle)).min(end - 1);
        let at = shape.upto[cut - 1].clamp(low, high);
        let below = random.binomial(n, if high > low { (at - low) / (high - low) } else { 0.0 });
        split(random, counts, below, shape, (first, cut), (low, at));
        split(random, counts, n - below, shape, (cut, end), (at, high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few at a time and many at a time give the same distribution: shares up to each decile within 5 standard errors.
    #[test]
    fn both_ways_of_drawing_agree_with_the_distribution() {
        let (mut random, mut latencies) = (Random::new(1), Latencies::default());
        let shape = Shape::of(0.2);
        for at_once in [10, 20_000] {
            let n = 40_000;
            for _ in 0..n / at_once {
                latencies.add(&mut random, at_once, 0.2);
            }
            let found = latencies.take();
            assert_eq!((found.total(), latencies.take().total()), (n, 0));
            let mut sum = 0;
            for (bucket, count) in &found.0 {
                sum += count;
                let expected = shape.upto[(bucket - FIRST) as usize];
                let error = (expected * (1.0 - expected) / n as f64).sqrt();
                assert!((sum as f64 / n as f64 - expected).abs() < 5.0 * error + 1e-4, "bucket {bucket}: {sum}");
            }
        }
    }
}
