//! How many samples a decision will need: rules of thumb for display, within about 30 % of simulation.

/// What must be collected: ln(1/α), and the usual overshoot at a crossing.
pub fn needed_evidence(alpha: f64) -> f64 {
    (1.0 / alpha).ln() + 1.5
}

/// Observations of a bounded mean that lies `gap` > 0 on the claim's side of its threshold; `scale` is the distance from
/// the threshold to the bound on the other side (what a single observation can cost).
pub fn bounded_mean(alpha: f64, gap: f64, variance: f64, scale: f64) -> Option<u64> {
    if !(gap > 0.0 && variance >= 0.0 && scale > 0.0) {
        return None;
    }
    count(needed_evidence(alpha) * (2.0 * (variance + gap * gap) / (gap * gap)).max(scale / gap))
}

/// Observations of a share θ tested against `p`.
pub fn share(alpha: f64, theta: f64, p: f64) -> Option<u64> {
    let divergence = divergence(theta, p);
    if divergence > 1e-12 { count(needed_evidence(alpha) / divergence) } else { None }
}

/// Blocks whose votes have mean `mean` > 0 on the claim's side. A block gives at most ln 2.
pub fn votes(alpha: f64, mean: f64, variance: f64) -> Option<u64> {
    if mean > 0.0 {
        let evidence = needed_evidence(alpha);
        count((2.0 * evidence * (variance + mean * mean) / (mean * mean)).max(evidence / std::f64::consts::LN_2))
    } else {
        None
    }
}

/// Requests per arm that separate an error excess from its margin, at these error rates.
pub fn error_excess(alpha: f64, candidate: f64, stable: f64, margin: f64) -> Option<u64> {
    let gap = margin - (candidate - stable);
    if gap == 0.0 {
        return None;
    }
    // Where no error was seen, a rate far below the margin keeps the formula finite.
    let rates = (candidate + stable).max(margin / 4.0);
    count(2.0 * needed_evidence(alpha) * rates / (gap * gap))
}

/// Units per arm, of equal arms, that separate two shares.
pub fn two_shares(alpha: f64, candidate: f64, stable: f64) -> Option<u64> {
    let middle = f64::midpoint(candidate, stable);
    let divergence = divergence(candidate, middle) + divergence(stable, middle);
    if divergence > 1e-12 { count(needed_evidence(alpha) / divergence) } else { None }
}

/// What an observation of a share `theta` says against `p`, in nats.
fn divergence(theta: f64, p: f64) -> f64 {
    let part = |x: f64, y: f64| if x == 0.0 { 0.0 } else { x * (x / y).ln() };
    part(theta, p) + part(1.0 - theta, 1.0 - p)
}

fn count(n: f64) -> Option<u64> {
    (n.is_finite() && n < 1e12).then(|| n.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within 30 % of what simulation found (the second number of each pair).
    #[test]
    fn forecasts_are_near_what_simulation_found() {
        let near = |found: Option<u64>, simulated: f64| {
            let found = found.expect("a gap has a forecast") as f64;
            assert!((found / simulated).ln().abs() < 1.35f64.ln(), "{found}, simulated {simulated}");
        };
        // Mean cosine under .95 by .005, .01, .02 (standard deviation .03), and over it by .005, .015 (.025).
        for (gap, simulated) in [(0.005, 410.0), (0.01, 100.0), (0.02, 30.0)] {
            near(bounded_mean(0.01, gap, 0.0009, 0.05), simulated);
        }
        for (gap, simulated) in [(0.005, 889.0), (0.015, 290.0)] {
            near(bounded_mean(0.05, gap, 0.000_625, 0.95), simulated);
        }
        // A tenth of the prompts in a tail that may hold a twentieth.
        near(share(0.01, 0.1, 0.05), 264.0);
        // Equal arms with .2 % errors, excess .002: requests per arm.
        near(error_excess(0.05, 0.002, 0.002, 0.002), 7_100.0);
        // Conversions of 5 against 6 and 7 %: users per arm.
        near(two_shares(0.05, 0.06, 0.05), 9_200.0);
        near(two_shares(0.05, 0.07, 0.05), 2_600.0);
    }

    #[test]
    fn without_a_gap_there_is_no_forecast() {
        assert_eq!(bounded_mean(0.05, 0.0, 0.01, 0.5), None);
        assert_eq!(bounded_mean(0.05, f64::NAN, 0.01, 0.5), None);
        assert_eq!(share(0.05, 0.05, 0.05), None);
        assert_eq!(votes(0.05, 0.0, 0.25), None);
        assert_eq!(two_shares(0.05, 0.3, 0.3), None);
        assert_eq!(error_excess(0.05, 0.022, 0.002, 0.02), None);
        assert_eq!(bounded_mean(0.05, 1e-9, 0.01, 0.5), None, "no number of samples that anyone will see");
    }
}
