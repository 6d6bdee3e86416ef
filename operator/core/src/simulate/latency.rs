use super::random::Random;
use crate::{
    evidence::Histogram,
    stats::histogram::{FIRST, OVERFLOW, upper_edge},
};
use statrs::function::erf::erfc;

/// Share, median (relative to the body's) and spread in logarithms of the two parts of a latency: a body and a slow mode.
const PARTS: [(f64, f64, f64); 2] = [(0.97, 1.0, 0.5), (0.03, 4.0, 0.6)];

/// Buckets of a histogram.
const BUCKETS: usize = (OVERFLOW - FIRST + 1) as usize;

/// Distribution of one latency over the buckets.
#[derive(Clone, Debug)]
struct Shape {
    median: f64,
    /// Share of the latencies up to each bucket's upper edge.
    upto: [f64; BUCKETS],
}

impl Shape {
    fn of(median: f64) -> Self {
        let upto = std::array::from_fn(|i| {
            let edge = upper_edge(FIRST + i as i16);
            let part = |(share, factor, spread): (f64, f64, f64)| {
                let z = (edge / (factor * median)).ln() / spread;
                share * 0.5 * erfc(-z / std::f64::consts::SQRT_2)
            };
            if edge.is_infinite() { 1.0 } else { PARTS.into_iter().map(part).sum() }
        });
        Self { median, upto }
    }
}

/// Draws histograms of many requests at once; remembers the distributions that it has used.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    known: Vec<Shape>,
}

impl Latencies {
    /// Adds `n` latencies with this median (of the body, in seconds).
    pub(super) fn add(&mut self, random: &mut Random, to: &mut Histogram, n: u64, median: f64) {
        if n == 0 {
            return;
        }
        let at = self.known.iter().position(|shape| shape.median == median).unwrap_or_else(|| {
            // Few different loads occur in a run; drifting ones must not be kept for ever.
            if self.known.len() >= 64 {
                self.known.clear();
            }
            self.known.push(Shape::of(median));
            self.known.len() - 1
        });
        let upto = &self.known[at].upto;
        split(random, to, n, upto, (0, BUCKETS), (0.0, 1.0));
    }
}

/// Draws `n` latencies of which it is known that they lie in buckets `first..end` with cumulative shares `low..high`: one
/// by one where they are few, otherwise a half of the buckets at a time.
fn split(
    random: &mut Random,
    to: &mut Histogram,
    n: u64,
    upto: &[f64; BUCKETS],
    (first, end): (usize, usize),
    (low, high): (f64, f64),
) {
    if n == 0 {
        return;
    }
    let mut count = |bucket: usize, n: u64| *to.0.entry(FIRST + bucket as i16).or_default() += n;
    if end - first == 1 {
        count(first, n);
    } else if n <= 16 {
        for _ in 0..n {
            let u = low + (high - low) * random.uniform();
            count(upto[first..end - 1].partition_point(|&x| x <= u) + first, 1);
        }
    } else {
        // Near the middle of the probability, not of the buckets: most of them are empty.
        let middle = f64::midpoint(low, high);
        let cut = (first + 1 + upto[first..end - 1].partition_point(|&x| x < middle)).min(end - 1);
        let at = upto[cut - 1].clamp(low, high);
        let below = random.binomial(n, if high > low { (at - low) / (high - low) } else { 0.0 });
        split(random, to, below, upto, (first, cut), (low, at));
        split(random, to, n - below, upto, (cut, end), (at, high));
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
            let mut found = Histogram::default();
            let n = 40_000;
            for _ in 0..n / at_once {
                latencies.add(&mut random, &mut found, at_once, 0.2);
            }
            assert_eq!(found.total(), n);
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
