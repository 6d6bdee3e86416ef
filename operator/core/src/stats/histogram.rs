//! Latency histograms: sparse exact counts, margins as bucket shifts, quantile edges, and a bounded window of cells.

use crate::evidence::Histogram;
use statrs::distribution::{Binomial, DiscreteCDF};

/// Index of the first bucket.
pub const FIRST: i16 = -126;
/// Index of the bucket above all edges.
pub const OVERFLOW: i16 = 54;

impl Histogram {
    /// Observations.
    pub fn total(&self) -> u64 {
        self.0.values().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        for (&bucket, &n) in &other.0 {
            if n > 0 {
                let cell = self.0.entry(bucket.clamp(FIRST, OVERFLOW)).or_default();
                *cell = cell.saturating_add(n);
            }
        }
    }

    /// The smallest bucket up to which at least the share `p` of the observations lies; `None` without observations.
    pub fn quantile_bucket(&self, p: f64) -> Option<i16> {
        let target = p * self.total() as f64;
        let mut sum = 0.0;
        for (&bucket, &n) in &self.0 {
            sum += n as f64;
            if n > 0 && sum >= target {
                return Some(bucket);
            }
        }
        self.0.keys().next_back().copied()
    }

    /// Upper edge of [`Histogram::quantile_bucket`] in seconds, infinite above the last edge.
    pub fn quantile(&self, p: f64) -> Option<f64> {
        self.quantile_bucket(p).map(upper_edge)
    }

    /// An interval in seconds that holds the `p`-quantile (0 < p < 1) with probability 1 − `alpha` at least: order
    /// statistics, whose ranks are binomial whatever the distribution (David and Nagaraja, Order Statistics, 7.1), widened
    /// to the edges of their buckets. It takes observations as independent and is for one look; decisions rest on
    /// e-values. The upper end is infinite where so few observations bound nothing; `None` without observations.
    pub fn quantile_interval(&self, p: f64, alpha: f64) -> Option<(f64, f64)> {
        let n = self.total();
        if n == 0 {
            return None;
        }
        let ranks = Binomial::new(p, n).ok()?;
        let (low, high) = (ranks.inverse_cdf(alpha / 2.0), ranks.inverse_cdf(1.0 - alpha / 2.0) + 1);
        let lower = self.at_rank(low).filter(|bucket| *bucket > FIRST).map_or(0.0, |bucket| upper_edge(bucket - 1));
        let upper = if high > n { f64::INFINITY } else { self.at_rank(high).map_or(f64::INFINITY, upper_edge) };
        Some((lower, upper))
    }

    /// Bucket of the observation of this rank, from 1.
    fn at_rank(&self, rank: u64) -> Option<i16> {
        let mut sum = 0u64;
        if rank == 0 {
            return None;
        }
        self.0.iter().find_map(|(&bucket, &count)| {
            sum = sum.saturating_add(count);
            (sum >= rank).then_some(bucket)
        })
    }

    /// Observations above a bucket.
    pub fn above(&self, bucket: i16) -> u64 {
        self.0.range(bucket.saturating_add(1)..).fold(0, |sum, (_, &n)| sum.saturating_add(n))
    }
}

/// Upper edge of a bucket in seconds: 1.2^(i/2).
pub fn upper_edge(bucket: i16) -> f64 {
    if bucket >= OVERFLOW { f64::INFINITY } else { 1.2f64.powf(f64::from(bucket) / 2.0) }
}

/// A margin as numbers of buckets, rounded against the claim where it is no whole number of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// For the claim "slower than the margin": rounded up.
    pub worse: i16,
    /// For the claim "not slower than the margin": rounded down.
    pub not_worse: i16,
}

impl Shift {
    /// The shift of a ratio ≥ 1.
    pub fn of(ratio: f64) -> Self {
        let buckets = (2.0 * ratio.max(1.0).ln() / 1.2f64.ln()).min(f64::from(OVERFLOW - FIRST));
        // A ratio that is a whole number of buckets must not be rounded by the last bit of its logarithm.
        let whole = buckets.round();
        if (buckets - whole).abs() < 1e-9 {
            return Self { worse: whole as i16, not_worse: whole as i16 };
        }
        Self { worse: buckets.ceil() as i16, not_worse: buckets.floor() as i16 }
    }
}

/// Number of cells of a [`Window`].
pub const CELLS: usize = 32;

/// Cell of a window in which history's 99th percentile lies.
const P99_CELL: i16 = 27;

/// Counts over a window's cells.
pub type Cells = [u64; CELLS];

/// A monotone map of all buckets to few cells, fixed from history before it is used: everything below the window falls
/// into its first cell, everything above into its last. A map that both arms go through keeps equal arms equal, and a
/// bounded number of cells keeps an open block's state short. The window reaches from 1.2^13.5 ≈ 12 times below
/// history's 99th percentile to twice above it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    first: i16,
    p95: Tail,
    p99: Tail,
}

/// A quantile of history: the last cell below its edge, and the share of history above it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    /// Cells above this one are over the edge.
    pub cell: u8,
    /// Share of history over the edge, at least 1e-4, at most ½.
    pub p0: f64,
}

impl Tail {
    /// Observations over the edge, and all.
    pub fn over(self, cells: &Cells) -> (u64, u64) {
        let over = cells.iter().skip(usize::from(self.cell) + 1).sum();
        (over, cells.iter().sum())
    }
}

impl Window {
    /// The window that fits a history; `None` without observations.
    pub fn of(history: &Histogram) -> Option<Self> {
        let first = history.quantile_bucket(0.99)? - P99_CELL;
        let total = history.total() as f64;
        let tail = |p: f64| {
            let cell = history.quantile_bucket(p).map_or(0, |bucket| (bucket - first).clamp(0, P99_CELL));
            let over = history.above(first + cell) as f64 / total;
            Tail { cell: cell as u8, p0: over.clamp(1e-4, 0.5) }
        };
        Some(Self { first, p95: tail(0.95), p99: tail(0.99) })
    }

    /// The 95th percentile.
    pub fn p95(&self) -> Tail {
        self.p95
    }

    /// The 99th percentile.
    pub fn p99(&self) -> Tail {
        self.p99
    }

    /// Bucket of the first cell.
    pub fn first(&self) -> i16 {
        self.first
    }

    /// From the stored form; `None` where a cell or share is out of range.
    pub fn from_parts(first: i16, p95: Tail, p99: Tail) -> Option<Self> {
        let fine = |t: Tail| i16::from(t.cell) <= P99_CELL && (1e-4..=0.5).contains(&t.p0);
        let in_range = (FIRST - P99_CELL..=OVERFLOW).contains(&first);
        (fine(p95) && fine(p99) && in_range).then_some(Self { first, p95, p99 })
    }

    /// Adds stable's counts.
    pub fn add(&self, cells: &mut Cells, histogram: &Histogram) {
        for (&bucket, &n) in &histogram.0 {
            self.count(cells, bucket.clamp(FIRST, OVERFLOW), n);
        }
    }

    /// Adds the candidate's counts for the claim "worse": shifted down by the margin. An observation above the last
    /// edge is only known to lie above it, so it is shifted as well.
    pub fn add_worse(&self, cells: &mut Cells, histogram: &Histogram, shift: Shift) {
        for (&bucket, &n) in &histogram.0 {
            self.count(cells, bucket.clamp(FIRST, OVERFLOW) - shift.worse, n);
        }
    }

    /// Adds the candidate's counts for the claim "not worse": shifted down by the margin, except observations above the
    /// last edge, which stay the slowest, and none below the first bucket.
    pub fn add_not_worse(&self, cells: &mut Cells, histogram: &Histogram, shift: Shift) {
        for (&bucket, &n) in &histogram.0 {
            let bucket = bucket.clamp(FIRST, OVERFLOW);
            let shifted = if bucket == OVERFLOW { bucket } else { (bucket - shift.not_worse).max(FIRST) };
            self.count(cells, shifted, n);
        }
    }

    fn count(&self, cells: &mut Cells, bucket: i16, n: u64) {
        let cell = (bucket - self.first).clamp(0, CELLS as i16 - 1);
        let cell = &mut cells[cell as usize];
        *cell = cell.saturating_add(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks 40 and 61 hold the median of 100 observations with 95 % (a table of every textbook).
    #[test]
    fn the_interval_of_a_quantile_is_that_of_its_ranks() {
        let apart = Histogram((0..100).map(|i| (i - 100, 1)).collect());
        let rank = |r: i16| r - 101;
        let (low, high) = apart.quantile_interval(0.5, 0.05).unwrap();
        assert_eq!((low, high), (upper_edge(rank(40) - 1), upper_edge(rank(61))));
        let bucket = apart.quantile(0.5).unwrap();
        assert!(low < bucket && bucket < high);
    }

    #[test]
    fn few_observations_bound_nothing_above() {
        let few = Histogram([(0, 10)].into());
        assert_eq!(few.quantile_interval(0.95, 0.05), Some((upper_edge(-1), f64::INFINITY)));
        assert_eq!(few.quantile_interval(0.5, 0.05), Some((upper_edge(-1), 1.0)));
        assert_eq!(Histogram::default().quantile_interval(0.5, 0.05), None);
        let fastest = Histogram([(FIRST, 1000)].into());
        assert_eq!(fastest.quantile_interval(0.5, 0.05).unwrap().0, 0.0, "the first bucket reaches down to nothing");
    }
}
