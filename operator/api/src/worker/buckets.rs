//! Exact integer latency buckets with edges 1.2^(i/2) seconds, so that a margin of 1.2 is a shift by two buckets.

use serde::{Deserialize, Serialize};

/// Index of the first edge: 1.2^(-63) s ≈ 10 µs.
pub const FIRST_BUCKET: i16 = -126;
/// Index of the last finite edge: 1.2^(26.5) s ≈ 125 s.
pub const LAST_BUCKET: i16 = 53;
/// Observations above the last finite edge (also time-outs, which count as errors too).
pub const OVERFLOW_BUCKET: i16 = LAST_BUCKET + 1;

/// Upper edge of bucket `i` in seconds; infinite for [`OVERFLOW_BUCKET`].
pub fn upper_edge(i: i16) -> f64 {
    if i >= OVERFLOW_BUCKET { f64::INFINITY } else { 1.2f64.powf(f64::from(i) / 2.0) }
}

/// The bucket of `seconds`: the smallest `i` in `FIRST_BUCKET..=OVERFLOW_BUCKET` whose upper edge is at least `seconds`.
/// NaN and negative values have no bucket.
pub fn bucket_of(seconds: f64) -> Option<i16> {
    if seconds.is_nan() || seconds < 0.0 {
        return None;
    }
    if seconds <= upper_edge(FIRST_BUCKET) {
        return Some(FIRST_BUCKET);
    }
    if seconds > upper_edge(LAST_BUCKET) {
        return Some(OVERFLOW_BUCKET);
    }
    let mut i = (2.0 * seconds.ln() / 1.2f64.ln()).ceil() as i16;
    // The logarithm may be off by one ulp at an edge; the edges decide.
    while i > FIRST_BUCKET && upper_edge(i - 1) >= seconds {
        i -= 1;
    }
    while upper_edge(i) < seconds {
        i += 1;
    }
    Some(i)
}

/// Sparse cumulative counts per bucket: `(index, count)` pairs in rising order of index, counts > 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buckets(pub Vec<(i16, u64)>);

impl Buckets {
    /// Adds one observation of `seconds`; a value without a bucket is dropped and reported as `false`.
    pub fn observe(&mut self, seconds: f64) -> bool {
        let Some(i) = bucket_of(seconds) else { return false };
        match self.0.binary_search_by_key(&i, |b| b.0) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (i, 1)),
        }
        true
    }

    /// Number of observations.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|b| b.1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_belongs_to_its_own_bucket() {
        for i in FIRST_BUCKET..=LAST_BUCKET {
            assert_eq!(bucket_of(upper_edge(i)), Some(i), "edge {i}");
            assert_eq!(bucket_of(upper_edge(i) * 1.000_001), Some(i + 1), "above edge {i}");
        }
        assert_eq!(bucket_of(f64::INFINITY), Some(OVERFLOW_BUCKET));
        assert_eq!(bucket_of(0.0), Some(FIRST_BUCKET));
        assert_eq!(bucket_of(f64::NAN), None);
        assert_eq!(bucket_of(-1.0), None);
    }

    #[test]
    fn a_margin_of_one_point_two_is_two_buckets() {
        for i in FIRST_BUCKET..LAST_BUCKET - 2 {
            let mid = (upper_edge(i) * upper_edge(i + 1)).sqrt();
            assert_eq!(bucket_of(mid * 1.2), Some(i + 3));
        }
    }
}
