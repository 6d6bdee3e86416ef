//! Constant bets on a bounded mean (E1).
//!
//! A bet with fraction f on the payoff z ≥ −1 multiplies wealth by 1 + f·z. Under the null `E[z] ≤ 0`, so wealth cannot
//! grow on average. A fixed grid of fractions, averaged, needs no tuning, and its product does not depend on the order
//! of the observations; it also holds for the *running average* of drifting means, which plug-in bets do not.

/// Number of bets in a grid.
pub const BETS: usize = 8;

/// Fractions of the wealth at stake. Never 1: wealth stays positive, its logarithm finite.
pub const FRACTIONS: [f64; BETS] = [0.02, 0.06, 0.15, 0.3, 0.5, 0.7, 0.85, 0.97];

/// Log increments of a grid's bets.
pub type Increments = [f64; BETS];

/// The increments of no observation.
pub const NOTHING: Increments = [0.0; BETS];

/// Increments of one observation with payoff `z`; below −1 (and NaN) count as −1, the worst for the claim.
pub fn bet(z: f64) -> Increments {
    // `max` drops a NaN in favour of its other operand.
    let z = z.max(-1.0);
    FRACTIONS.map(|f| (f * z).ln_1p())
}

/// Adds the increments of further observations.
pub fn accumulate(sum: &mut Increments, more: &Increments) {
    for (s, m) in sum.iter_mut().zip(more) {
        *s += m;
    }
}

/// Tests whether the mean of values in `[low, high]` lies under or over a threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundedMean {
    threshold: f64,
    low: f64,
    high: f64,
}

impl BoundedMean {
    /// Values lie in `[low, high]`, the null hypotheses meet at `threshold` strictly between them.
    ///
    /// # Panics
    /// If not `low < threshold < high`: such a test has no bets.
    pub fn new(threshold: f64, low: f64, high: f64) -> Self {
        assert!(low < threshold && threshold < high, "a bounded mean needs low < threshold < high");
        Self { threshold, low, high }
    }

    /// The value as the tests see it: clipped; NaN is the lowest.
    fn clip(&self, x: f64) -> f64 {
        x.max(self.low).min(self.high)
    }

    /// Increments of the claim "the mean is below the threshold".
    pub fn below(&self, x: f64) -> Increments {
        bet((self.threshold - self.clip(x)) / (self.high - self.threshold))
    }

    /// Increments of the claim "the mean is above the threshold".
    pub fn above(&self, x: f64) -> Increments {
        bet((self.clip(x) - self.threshold) / (self.threshold - self.low))
    }
}

/// Tests whether the share of ones in independent 0/1 observations lies over or under `p`: the bets of
/// [`BoundedMean`], written as likelihood ratios against alternatives θ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    one: Increments,
    zero: Increments,
}

impl Share {
    /// The claim "the share is above `p`", `0 < p < 1`.
    ///
    /// # Panics
    /// If `p` is not strictly between 0 and 1.
    pub fn above(p: f64) -> Self {
        // Of the way from p to 1, no alternative goes further than 98 %: θ = 1 would end all wealth at the first zero.
        let limit = p + 0.98 * (1.0 - p);
        Self::against(p, [1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 16.0].map(|factor| (p * factor).min(limit)))
    }

    /// The claim "the share is below `p`", `0 < p < 1`.
    ///
    /// # Panics
    /// If `p` is not strictly between 0 and 1.
    pub fn below(p: f64) -> Self {
        Self::against(p, [0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.02].map(|factor| p * factor))
    }

    fn against(p: f64, alternatives: [f64; BETS]) -> Self {
        assert!(0.0 < p && p < 1.0, "a share lies strictly between 0 and 1");
        Self {
            one: alternatives.map(|theta| (theta / p).ln()),
            zero: alternatives.map(|theta| (-theta).ln_1p() - (-p).ln_1p()),
        }
    }

    /// Increments of `ones` ones and `zeros` zeros.
    pub fn increments(&self, ones: u64, zeros: u64) -> Increments {
        let mut sum = NOTHING;
        for (k, s) in sum.iter_mut().enumerate() {
            *s = ones as f64 * self.one[k] + zeros as f64 * self.zero[k];
        }
        sum
    }
}
