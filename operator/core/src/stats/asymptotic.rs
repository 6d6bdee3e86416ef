//! Means of values without known bounds (a business metric): sequences that hold at all times at once, for large samples
//! (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas). Only asymptotically valid, and it says so by asking for
//! [`LEAST`] units of each arm; the values are winsorised at bounds fixed beforehand.

/// Units of each arm before which nothing is concluded.
pub const LEAST: u64 = 1000;

/// Half-width of a two-sided 1 − `alpha` confidence sequence after `n` values with standard deviation `sd`; `rho` says
/// where it is narrowest ([`narrowest_at`]).
pub fn half_width(n: f64, sd: f64, rho: f64, alpha: f64) -> f64 {
    let scaled = n * rho * rho;
    sd * (2.0 * (scaled + 1.0) / (n * scaled) * ((scaled + 1.0).sqrt() / alpha).ln()).sqrt()
}

/// The `rho` at which [`half_width`] is narrowest after `planned` values.
pub fn narrowest_at(planned: f64, alpha: f64) -> f64 {
    let ln = -2.0 * alpha.ln();
    ((ln + ln.ln_1p()) / planned.max(1.0)).sqrt()
}

/// Number, sum and sum of squares of values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Units.
    pub n: u64,
    /// Sum of their values.
    pub sum: f64,
    /// Sum of the squares.
    pub squares: f64,
}

impl Moments {
    /// Adds one value, winsorised to `[low, high]`; NaN is `low`.
    pub fn add(&mut self, x: f64, (low, high): (f64, f64)) {
        let x = x.max(low).min(high);
        self.n = self.n.saturating_add(1);
        self.sum += x;
        self.squares += x * x;
    }

    /// Adds another part's units.
    pub fn merge(&mut self, other: &Self) {
        self.n = self.n.saturating_add(other.n);
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// The sums are those of `n` values in `[low, high]`, up to rounding.
    pub fn are_of(&self, (low, high): (f64, f64)) -> bool {
        let n = self.n as f64;
        let slack = 1e-9 * (1.0 + n * low.abs().max(high.abs()));
        let square = low.abs().max(high.abs()).powi(2);
        self.sum.is_finite()
            && self.squares.is_finite()
            && (n * low - slack..=n * high + slack).contains(&self.sum)
            && self.squares <= n * square * (1.0 + 1e-9) + 1e-9
            && self.sum * self.sum <= n * self.squares * (1.0 + 1e-9) + 1e-9
    }

    /// Their mean; `None` without units.
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }

    /// Their variance; `None` for fewer than two units.
    pub fn variance(&self) -> Option<f64> {
        let n = self.n as f64;
        (self.n > 1).then(|| ((self.squares - self.sum * self.sum / n) / (n - 1.0)).max(0.0))
    }
}

/// Difference of two means (candidate − stable) and its half-width; `None` with fewer than [`LEAST`] units in an arm. The
/// split of the arms must not change while they are filled.
pub fn difference(candidate: &Moments, stable: &Moments, rho: f64, alpha: f64) -> Option<(f64, f64)> {
    if candidate.n.min(stable.n) < LEAST {
        return None;
    }
    let (n_c, n_b) = (candidate.n as f64, stable.n as f64);
    let n = n_c + n_b;
    let variance = n * (candidate.variance()? / n_c + stable.variance()? / n_b);
    Some((candidate.mean()? - stable.mean()?, half_width(n, variance.sqrt(), rho, alpha)))
}

/// ln of the likelihood ratio of a normal mixture (mSPRT) for a difference with an estimated variance: the usual rival,
/// for comparison. `tau` is the standard deviation of the effects that are expected.
pub fn msprt_ln_e(difference: f64, variance: f64, tau: f64) -> f64 {
    let mixed = variance + tau * tau;
    0.5 * (variance / mixed).ln() + difference * difference * tau * tau / (2.0 * variance * mixed)
}
