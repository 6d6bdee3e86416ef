//! Mann-Whitney and the verdict that Kayenta draws from it: a mode for comparison with canary analysis as it is known.
//! Not sequential: its error rate is that of a single look.

use statrs::distribution::{ContinuousCDF, Normal};

/// How two samples differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MannWhitney {
    /// Pairs in which the experiment's value is larger, ties as halves.
    pub u: f64,
    /// Two-sided p-value, normal approximation with continuity and tie corrections.
    pub p: f64,
    /// Hodges-Lehmann estimate of the shift (experiment − control).
    pub shift: f64,
    /// Confidence interval of the shift.
    pub interval: (f64, f64),
}

/// Compares an experiment with a control at a confidence level below 1; `None` where a sample is empty, a value is no
/// finite number, or all values are equal.
pub fn mann_whitney(control: &[f64], experiment: &[f64], confidence: f64) -> Option<MannWhitney> {
    if control.is_empty() || experiment.is_empty() || control.iter().chain(experiment).any(|x| !x.is_finite()) {
        return None;
    }
    let mut differences: Vec<f64> = experiment.iter().flat_map(|x| control.iter().map(move |y| x - y)).collect();
    differences.sort_unstable_by(f64::total_cmp);
    let pairs = differences.len();
    let half = pairs as f64 / 2.0;
    let upto = |d: f64| differences.partition_point(|&x| x <= d);
    let (at_most, below) = (upto(0.0), differences.partition_point(|&x| x < 0.0));
    let u = (pairs - at_most) as f64 + (at_most - below) as f64 / 2.0;

    let normal = Normal::standard();
    let pooled = ties(control.iter().chain(experiment).copied().collect());
    let deviation = spread(control.len(), experiment.len(), pooled)?;
    let z = ((u - half).abs() - 0.5) / deviation;
    let p = (2.0 * normal.sf(z)).min(1.0);

    // The interval's ends are where the shifted samples are just rejected: between differences only ties inside a
    // sample are left.
    let own = ties(control.to_vec()) + ties(experiment.to_vec());
    let shifted = spread(control.len(), experiment.len(), own)?;
    let quantile = normal.inverse_cdf(f64::midpoint(1.0, confidence.clamp(0.0, 1.0 - 1e-12)));
    // Pairs beyond the end of the interval on one side.
    let beyond = (half - 0.5 - quantile * shifted).max(0.0).floor() as usize;
    let interval = (differences[beyond.min(pairs - 1)], differences[pairs - 1 - beyond.min(pairs - 1)]);
    let shift = f64::midpoint(differences[(pairs - 1) / 2], differences[pairs / 2]);
    Some(MannWhitney { u, p, shift, interval })
}

/// Σ(t³ − t) over groups of t equal values.
fn ties(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let groups = values.chunk_by(|a, b| a == b);
    groups.map(|group| (group.len() as f64).powi(3) - group.len() as f64).sum()
}

/// Standard deviation of U; `None` where all values are equal.
fn spread(control: usize, experiment: usize, ties: f64) -> Option<f64> {
    let (m, n) = (control as f64, experiment as f64);
    let all = m + n;
    let variance = m * n / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)));
    (variance > 0.0).then(|| variance.sqrt())
}

/// Kayenta's answer about one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classification {
    /// No difference worth mentioning.
    Pass,
    /// Significantly higher than the control.
    High,
    /// Significantly lower.
    Low,
}

/// Kayenta's rule as its judge has it: the 98 % interval of the shift must clear a quarter of the estimated shift, and the
/// ratio of the means must reach `allowed_increase` (1: any). That is why it alarms far less often than its level says, and
/// why it has no margin of its own. Samples without two different values pass.
pub fn kayenta(control: &[f64], experiment: &[f64], allowed_increase: f64) -> Classification {
    let Some(found) = mann_whitney(control, experiment, CONFIDENCE) else { return Classification::Pass };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let ratio = mean(experiment) / mean(control);
    let tolerated = TOLERANCE * found.shift.abs();
    let (high, low) = (ratio >= allowed_increase, ratio <= 1.0 / allowed_increase);
    if found.interval.0 > tolerated && high {
        Classification::High
    } else if found.interval.1 < -tolerated && low {
        Classification::Low
    } else {
        Classification::Pass
    }
}

/// Level of Kayenta's interval.
const CONFIDENCE: f64 = 0.98;

/// Share of the estimated shift that the interval must clear.
const TOLERANCE: f64 = 0.25;
