//! Confidence sequences: intervals that hold at all times at once. For display; decisions are taken on e-values.

use statrs::function::gamma::ln_gamma;

/// Two-sided empirical-Bernstein sequence for the mean of values in [0, 1] (predictable mixture), in eight numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MeanSequence {
    n: f64,
    sum: f64,
    sum_of_squares: f64,
    squares: f64,
    bets: f64,
    bets_x: f64,
    below: f64,
    above: f64,
}

impl MeanSequence {
    /// Takes a value; it is clipped to [0, 1], NaN is 0. `alpha` is 1 − level, the same at every call.
    pub fn add(&mut self, x: f64, alpha: f64) {
        let x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) };
        let ln = (2.0 / alpha).ln();
        let before = self.n;
        let n = before + 1.0;
        let variance = (0.25 + self.squares) / n;
        let bet = (2.0 * ln / (variance * n * n.ln_1p())).sqrt().min(0.5);
        let psi = -(-bet).ln_1p() - bet;
        let (mean, mirrored) = if before > 0.0 { (self.sum / before, 1.0 - self.sum / before) } else { (0.0, 0.0) };
        self.bets += bet;
        self.bets_x += bet * x;
        self.below += (x - mean).powi(2) * psi;
        self.above += (1.0 - x - mirrored).powi(2) * psi;
        self.n = n;
        self.sum += x;
        self.sum_of_squares += x * x;
        self.squares += (x - (0.5 + self.sum) / (n + 1.0)).powi(2);
    }

    /// Values so far.
    pub fn count(&self) -> u64 {
        self.n as u64
    }

    /// Their mean.
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0.0).then(|| self.sum / self.n)
    }

    /// Their variance; `None` for fewer than two values.
    pub fn variance(&self) -> Option<f64> {
        (self.n > 1.0).then(|| ((self.sum_of_squares - self.sum * self.sum / self.n) / (self.n - 1.0)).max(0.0))
    }

    /// The interval; [0, 1] without values.
    pub fn interval(&self, alpha: f64) -> (f64, f64) {
        if self.n == 0.0 {
            return (0.0, 1.0);
        }
        let ln = (2.0 / alpha).ln();
        let lower = (self.bets_x - ln - self.below) / self.bets;
        let upper = 1.0 - (self.bets - self.bets_x - ln - self.above) / self.bets;
        (lower.clamp(0.0, 1.0), upper.clamp(0.0, 1.0))
    }

    /// Stored form.
    pub fn to_parts(&self) -> [f64; 8] {
        [self.n, self.sum, self.sum_of_squares, self.squares, self.bets, self.bets_x, self.below, self.above]
    }

    /// From the stored form.
    pub fn from_parts([n, sum, sum_of_squares, squares, bets, bets_x, below, above]: [f64; 8]) -> Self {
        Self { n, sum, sum_of_squares, squares, bets, bets_x, below, above }
    }
}

/// Number of observations at which [`share_interval`] is narrowest.
const SHARE_PLANNED: f64 = 500.0;

/// Two-sided confidence sequence for the probability of an event seen `successes` times in `n`: the p against which a
/// beta-binomial mixture has no e-value of 1/α. The error is below a millionth of p, 1 − p or 1/n.
pub fn share_interval(successes: u64, n: u64, alpha: f64) -> (f64, f64) {
    let successes = successes.min(n);
    if n == 0 {
        return (0.0, 1.0);
    }
    // Concentration of the mixing distribution, optimal for `SHARE_PLANNED` observations at level .95.
    let ln = (1.0f64 / 0.05).ln();
    let concentration = (SHARE_PLANNED / (2.0 * ln + (1.0 + 2.0 * ln).ln()) - 1.0).max(1e-3);
    let (s, f) = (successes as f64, (n - successes) as f64);
    // ln B(a + s, b + f) − ln B(a, b): the sums a + b are the same for every p.
    let constant = ln_gamma(concentration) - ln_gamma(concentration + s + f) + alpha.ln();
    let excess = |p: f64| {
        let (a, b) = (p * concentration, (1.0 - p) * concentration);
        let likelihood = if s > 0.0 { s * p.ln() } else { 0.0 } + f * (-p).ln_1p();
        ln_rising(a, s) + ln_rising(b, f) + constant - likelihood
    };
    let estimate = s / (s + f);
    let variance = (estimate * (1.0 - estimate) + 1.0 / (s + f)) / (s + f);
    let at_estimate = excess(estimate.clamp(TINY, 1.0 - TINY));
    let end = |direction: f64| {
        let quick = if successes == 0 || successes == n {
            nearly_straight(&excess, estimate, direction * 3.0 * variance.sqrt(), at_estimate)
        } else {
            nearly_parabolic(&excess, estimate, direction, variance, at_estimate)
        };
        quick.or_else(|| crossing(&excess, outside(&excess, estimate, direction * 3.0 * variance.sqrt()), estimate))
    };
    let lower = if successes == 0 { 0.0 } else { end(-1.0).unwrap_or(0.0) };
    let upper = if successes == n { 1.0 } else { end(1.0).unwrap_or(1.0) };
    (lower, upper)
}

/// ln Γ(a + n) − ln Γ(a) for a whole n ≥ 0: a product of n factors, where that is quicker.
fn ln_rising(a: f64, n: f64) -> f64 {
    const FACTORS: f64 = 16.0;
    if n > FACTORS {
        return ln_gamma(a + n) - ln_gamma(a);
    }
    let mut product = 1.0;
    let mut factor = 0.0;
    while factor < n {
        product *= a + factor;
        factor += 1.0;
    }
    product.ln()
}

/// The last step of a secant was so small that what is left is nothing: about its product with the step before it.
fn arrived(p: f64, next: f64) -> bool {
    (next - p).abs() < 1e-5 * next.min(1.0 - next) && (TINY..=1.0 - TINY).contains(&next)
}

/// The crossing where no event was seen, or nothing else, if a few steps find it: the estimate is an end of [0, 1], and
/// from there the excess grows nearly as a straight line, whose secants need four steps.
fn nearly_straight(excess: &impl Fn(f64) -> f64, estimate: f64, distance: f64, at_estimate: f64) -> Option<f64> {
    let (mut before, mut at_before) = (estimate, at_estimate);
    let mut p = estimate + distance;
    for _ in 0..8 {
        if !(TINY..=1.0 - TINY).contains(&p) {
            return None;
        }
        let at_p = excess(p);
        let next = p - at_p * (p - before) / (at_p - at_before);
        if arrived(p, next) {
            return Some(next);
        }
        (before, at_before, p) = (p, at_p, next);
    }
    None
}

/// The crossing on one side of the estimate, if a few steps find it. Away from the estimate the excess grows nearly as a
/// parabola, so that its root over the estimate is nearly a straight line: secants on that need four steps where bisecting
/// needs ten, and this runs in every tick of every rollout.
fn nearly_parabolic(
    excess: &impl Fn(f64) -> f64,
    estimate: f64,
    direction: f64,
    variance: f64,
    at_estimate: f64,
) -> Option<f64> {
    let target = (-at_estimate).sqrt();
    let (mut before, mut at_before) = (estimate, 0.0);
    let mut p = estimate + direction * target * (2.0 * variance).sqrt();
    for _ in 0..8 {
        if !(TINY..=1.0 - TINY).contains(&p) || (p - estimate) * direction <= 0.0 {
            return None;
        }
        let at_p = excess(p);
        let height = (at_p - at_estimate).max(0.0).sqrt();
        let next = p + (target - height) * (p - before) / (height - at_before);
        if arrived(p, next) {
            return Some(next);
        }
        (before, at_before, p) = (p, height, next);
    }
    None
}

/// A point that is rejected on one side of the estimate, or the end of [0, 1].
fn outside(excess: &impl Fn(f64) -> f64, estimate: f64, mut distance: f64) -> f64 {
    loop {
        let p = estimate + distance;
        if p <= TINY || p >= 1.0 - TINY {
            return p.clamp(TINY, 1.0 - TINY);
        }
        if excess(p) > 0.0 {
            return p;
        }
        distance *= 2.0;
    }
}

const TINY: f64 = 1e-12;

/// The point between `outside` (rejected) and `inside` (not rejected) at which `excess` changes its sign, by the
/// Illinois variant of false position; `None` where nothing is rejected.
fn crossing(excess: &impl Fn(f64) -> f64, outside: f64, inside: f64) -> Option<f64> {
    let inside = inside.clamp(TINY, 1.0 - TINY);
    let (mut a, mut b) = (outside, inside);
    let (mut at_a, mut at_b) = (excess(a), excess(b));
    if at_a <= 0.0 || at_b >= 0.0 {
        return None;
    }
    // An end that stays twice in a row has its value halved: that is what makes false position superlinear.
    let (mut last, mut previous) = (0.0, f64::NAN);
    for _ in 0..100 {
        let c = (a * at_b - b * at_a) / (at_b - at_a);
        let at_c = excess(c);
        // No sign change needs finer steps than those at which the e-value itself stands still.
        if at_c.abs() < 1e-9 || (c - previous).abs() < 1e-12 {
            return Some(c);
        }
        previous = c;
        if at_c > 0.0 {
            (a, at_a) = (c, at_c);
            if last > 0.0 {
                at_b /= 2.0;
            }
        } else {
            (b, at_b) = (c, at_c);
            if last < 0.0 {
                at_a /= 2.0;
            }
        }
        last = at_c;
    }
    Some(f64::midpoint(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_counts_have_an_interval_around_their_share() {
        for n in [1, 2, 10, 1_000, 10_000_000, 1 << 50] {
            for part in [0.0, 1e-6, 0.3, 0.5, 0.999, 1.0] {
                let successes = (n as f64 * part) as u64;
                let (low, high) = share_interval(successes, n, 0.05);
                let share = successes as f64 / n as f64;
                assert!(0.0 <= low && low <= share && share <= high && high <= 1.0, "{successes} of {n}: {low} {high}");
            }
        }
        assert_eq!(share_interval(0, 0, 0.05), (0.0, 1.0));
        // The ends are where the e-value is 1/α, whichever way they were found: from both sides nothing nearer is rejected.
        for (successes, n) in [(1, 3), (3, 1_000), (40, 400), (999, 1_000), (12_345, 1_000_000)] {
            let (low, high) = share_interval(successes, n, 0.05);
            let wider = share_interval(successes, n, 0.049_999);
            // With one event of a kind no probability of it is too small: that end is the end of the range.
            assert!(if successes > 1 { wider.0 < low } else { low == 0.0 }, "{successes} of {n}: {low}");
            assert!(if n - successes > 1 { high < wider.1 } else { high == 1.0 }, "{successes} of {n}: {high}");
            assert!(wider.1 - high < 1e-4 && low - wider.0 < 1e-4, "{successes} of {n}");
        }
        assert_eq!(share_interval(7, 3, 0.05), share_interval(3, 3, 0.05));
    }

    #[test]
    fn a_product_is_the_difference_of_two_ln_gammas() {
        for a in [1e-6, 0.3, 5.0, 70.0] {
            for n in 1..=16 {
                let n = f64::from(n);
                let both = ln_gamma(a + n) - ln_gamma(a);
                assert!((ln_rising(a, n) - both).abs() < 1e-9 * both.abs().max(1.0), "{a} {n}");
            }
        }
        assert_eq!(ln_rising(0.5, 0.0), 0.0);
    }

    #[test]
    fn quick_ways_end_where_the_sure_one_does() {
        let mut counts = vec![(0, 1), (0, 40), (0, 1_000), (0, 1 << 40), (30, 30), (1, 5_000), (7, 90), (500, 1_000)];
        for n in [3, 17, 100, 2_000, 123_456] {
            counts.extend([1, 2, 5, n / 20, n / 3, n / 2, n - 2, n - 1].map(|s: u64| (s.min(n), n)));
        }
        for (successes, n) in counts {
            let (low, high) = share_interval(successes, n, 0.05);
            // The e-value is 1/α at each end that is not one of the range.
            let rejected = |p: f64| share_excess(successes, n, p) > 0.05f64.ln().abs();
            for (end, outward) in [(low, -1.0), (high, 1.0)] {
                if end > 0.0 && end < 1.0 {
                    // ln Γ itself is no better than this where it is large.
                    let near = if n > 1 << 20 { 1e-3 } else { 1e-6 };
                    let near = near * end.min(1.0 - end).max(1.0 / n as f64);
                    assert!(rejected(end + outward * near), "{successes} of {n}: {end}");
                    assert!(!rejected(end - outward * near), "{successes} of {n}: {end}");
                }
            }
        }
    }

    /// ln of the e-value against p, written out again.
    fn share_excess(successes: u64, n: u64, p: f64) -> f64 {
        let ln = 20.0f64.ln();
        let c = (SHARE_PLANNED / (2.0 * ln + (1.0 + 2.0 * ln).ln()) - 1.0).max(1e-3);
        let (s, f) = (successes as f64, (n - successes) as f64);
        let beta = |a: f64, b: f64| ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b);
        let likelihood = if s > 0.0 { s * p.ln() } else { 0.0 } + f * (-p).ln_1p();
        beta(p * c + s, (1.0 - p) * c + f) - beta(p * c, (1.0 - p) * c) - likelihood
    }

    #[test]
    fn more_data_narrow_a_mean() {
        let mut sequence = MeanSequence::default();
        assert_eq!((sequence.mean(), sequence.variance(), sequence.interval(0.05)), (None, None, (0.0, 1.0)));
        let mut widths = Vec::new();
        for i in 0..2_000 {
            sequence.add(if i % 2 == 0 { 0.9 } else { 1.0 }, 0.05);
            if [50, 500, 1_999].contains(&i) {
                let (low, high) = sequence.interval(0.05);
                assert!(low < 0.95 && high > 0.95);
                widths.push(high - low);
            }
        }
        assert!(widths[0] > widths[1] && widths[1] > widths[2] && widths[2] < 0.05, "{widths:?}");
        assert!((sequence.variance().unwrap() - 0.0025).abs() < 1e-5);
        assert_eq!(sequence.count(), 2_000);
        sequence.add(f64::NAN, 0.05);
        assert!(sequence.interval(0.05).0.is_finite());
    }
}
