use super::{End, Run, Step, World, run};
use crate::{Span, evidence::Gate};
use statrs::distribution::{Beta, ContinuousCDF};
use std::{collections::BTreeMap, ops::Range};

/// What many runs of one world come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Runs.
    pub runs: u64,
    /// Share that was promoted.
    pub promoted: f64,
    /// Share that was rolled back, tripped wires included.
    pub rolled_back: f64,
    /// Upper end of the 95 % interval of `rolled_back` (Clopper and Pearson, one-sided).
    pub rolled_back_at_most: f64,
    /// Share that the deadline ended.
    pub inconclusive: f64,
    /// Time to the end: median and 90 % quantile.
    pub time: (Span, Span),
    /// Live requests that the candidate served: median and 90 % quantile.
    pub exposed: (u64, u64),
    /// Greatest weight of any run.
    pub weight: u32,
    /// Longest state in bytes.
    pub state: usize,
    /// What inconclusive runs waited for first, with their number, most frequent first.
    pub waited_for: Vec<(String, u64)>,
}

impl Forecast {
    /// Sums up finished runs (at least one).
    pub fn of(gate: &Gate, runs: &[Run]) -> Self {
        let all = runs.len().max(1) as f64;
        let share = |f: fn(&End) -> bool| runs.iter().filter(|r| f(&r.end)).count() as f64 / all;
        let back = |end: &End| matches!(end, End::RolledBack(_) | End::Tripped);
        let mut ticks: Vec<u64> = runs.iter().map(|r| u64::from(r.ticks)).collect();
        let mut exposed: Vec<u64> = runs.iter().map(|r| r.exposed).collect();
        let time = |ticks: u64| Span(i64::try_from(ticks).unwrap_or(i64::MAX).saturating_mul(gate.interval.0));
        let (median, late) = quantiles(&mut ticks);
        let mut waits: BTreeMap<String, u64> = BTreeMap::new();
        for run in runs {
            if let End::Inconclusive(missing) = &run.end {
                let first = missing.first().map_or("", |m| m.split(':').next().unwrap_or(m));
                *waits.entry(first.to_owned()).or_default() += 1;
            }
        }
        let mut waited_for: Vec<_> = waits.into_iter().collect();
        waited_for.sort_by_key(|w| std::cmp::Reverse(w.1));
        Self {
            runs: runs.len() as u64,
            promoted: share(|e| *e == End::Promoted),
            rolled_back: share(back),
            rolled_back_at_most: at_most(runs.iter().filter(|r| back(&r.end)).count(), runs.len()),
            inconclusive: share(|e| matches!(e, End::Inconclusive(_))),
            time: (time(median), time(late)),
            exposed: quantiles(&mut exposed),
            weight: runs.iter().map(|r| r.weight).max().unwrap_or(0),
            state: runs.iter().map(|r| r.state).max().unwrap_or(0),
            waited_for,
        }
    }
}

/// Runs a world once for each seed and sums up.
pub fn forecast(gate: &Gate, steps: &[Step], world: &World, seeds: Range<u64>) -> Forecast {
    let runs: Vec<Run> = seeds.map(|seed| run(gate, steps, world, seed)).collect();
    Forecast::of(gate, &runs)
}

/// Median and 90 % quantile; sorts.
fn quantiles(values: &mut [u64]) -> (u64, u64) {
    values.sort_unstable();
    let at = |p: f64| {
        let i = ((values.len() as f64 * p) as usize).min(values.len().saturating_sub(1));
        values.get(i).copied().unwrap_or(0)
    };
    (at(0.5), at(0.9))
}

/// Upper end of a share seen `k` times of `n`.
fn at_most(k: usize, n: usize) -> f64 {
    if k >= n {
        return 1.0;
    }
    Beta::new(k as f64 + 1.0, (n - k) as f64).map_or(1.0, |beta| beta.inverse_cdf(0.95))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_of_many_is_not_never() {
        assert!((at_most(0, 100) - 0.0295).abs() < 1e-4, "the rule of three: {}", at_most(0, 100));
        assert_eq!(at_most(5, 5), 1.0);
        assert!(at_most(5, 100) > 0.1 && at_most(5, 100) < 0.11);
        assert_eq!(quantiles(&mut []), (0, 0));
        assert_eq!(quantiles(&mut [9, 1, 5]), (5, 9));
    }
}
