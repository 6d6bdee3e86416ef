use super::{Course, End, Run, World, run};
use crate::{Span, evidence::Gate};
use statrs::distribution::{Beta, ContinuousCDF};
use std::{collections::BTreeMap, ops::Range};

/// Median of a quantity over runs, and the quantiles between which the middle 80 % of them lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread<T> {
    /// 10 % of the runs lie below.
    pub low: T,
    /// Half of them.
    pub median: T,
    /// 90 % of them.
    pub high: T,
}

impl<T: Copy + Ord> Spread<T> {
    /// Of these values; `None` without any.
    pub fn of(mut values: Vec<T>) -> Option<Self> {
        values.sort_unstable();
        let last = values.len().checked_sub(1)?;
        let at = |p: f64| values[((values.len() as f64 * p) as usize).min(last)];
        Some(Self { low: at(0.1), median: at(0.5), high: at(0.9) })
    }
}

/// What many runs of one world come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Runs.
    pub runs: u64,
    /// Runs that were promoted.
    pub promoted: u64,
    /// Runs that were rolled back, tripped wires included.
    pub rolled_back: u64,
    /// Runs that the deadline ended.
    pub inconclusive: u64,
    /// Time to the end of all runs.
    pub time: Spread<Span>,
    /// Time to the promotion of those that were promoted.
    pub until_promoted: Option<Spread<Span>>,
    /// Time to the rollback of those that were rolled back.
    pub until_rolled_back: Option<Spread<Span>>,
    /// Live requests that the candidate served.
    pub exposed: Spread<u64>,
    /// Greatest weight of any run.
    pub weight: u32,
    /// Longest state in bytes.
    pub state: usize,
    /// What inconclusive runs waited for first, with their number, most frequent first.
    pub waited_for: Vec<(String, u64)>,
    /// What rollbacks were for, with their number, most frequent first.
    pub rolled_back_for: Vec<(String, u64)>,
}

impl Forecast {
    /// Sums up finished runs; `None` without any.
    pub fn of(gate: &Gate, runs: &[Run]) -> Option<Self> {
        let back = |run: &&Run| matches!(run.end, End::RolledBack(_) | End::Tripped);
        let up = |run: &&Run| run.end == End::Promoted;
        let time = |run: &Run| Span(i64::from(run.ticks).saturating_mul(gate.interval.0.max(1)));
        let spread = |of: &dyn Fn(&&Run) -> bool| Spread::of(runs.iter().filter(|r| of(r)).map(time).collect());
        let waits = runs.iter().filter_map(|run| match &run.end {
            End::Inconclusive(missing) => Some(missing.first().map_or("", |m| m.split(':').next().unwrap_or(m))),
            _ => None,
        });
        let reasons = runs.iter().filter_map(|run| match run.end {
            End::RolledBack(signal) => Some(signal.name()),
            End::Tripped => Some("tripwire"),
            _ => None,
        });
        Some(Self {
            runs: runs.len() as u64,
            promoted: runs.iter().filter(up).count() as u64,
            rolled_back: runs.iter().filter(back).count() as u64,
            inconclusive: runs.iter().filter(|r| matches!(r.end, End::Inconclusive(_))).count() as u64,
            time: spread(&|_| true)?,
            until_promoted: spread(&up),
            until_rolled_back: spread(&back),
            exposed: Spread::of(runs.iter().map(|r| r.exposed).collect())?,
            weight: runs.iter().map(|r| r.weight).max().unwrap_or(0),
            state: runs.iter().map(|r| r.state).max().unwrap_or(0),
            waited_for: counted(waits),
            rolled_back_for: counted(reasons),
        })
    }

    /// Where the chance of an end lies that `count` of the runs had: a 95 % interval (Clopper and Pearson).
    pub fn chance(&self, count: u64) -> (f64, f64) {
        interval(count, self.runs)
    }
}

fn counted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    counts.sort_by_key(|c| std::cmp::Reverse(c.1));
    counts
}

/// Runs a world once for each seed and sums up; `None` without a seed.
pub fn forecast(gate: &Gate, course: &Course, world: &World, seeds: Range<u64>) -> Option<Forecast> {
    let runs: Vec<Run> = seeds.map(|seed| run(gate, course, world, seed)).collect();
    Forecast::of(gate, &runs)
}

/// The 95 % interval (Clopper and Pearson) of a share that was seen `k` times in `n`.
pub fn interval(k: u64, n: u64) -> (f64, f64) {
    let quantile = |a: u64, b: u64, p: f64| Beta::new(a as f64, b as f64).map(|beta| beta.inverse_cdf(p));
    let low = if k == 0 { Ok(0.0) } else { quantile(k, n.saturating_sub(k) + 1, 0.025) };
    let high = if k >= n { Ok(1.0) } else { quantile(k + 1, n - k, 0.975) };
    (low.unwrap_or(0.0), high.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against tables of the exact binomial interval.
    #[test]
    fn none_of_many_is_not_never() {
        let near = |(low, high): (f64, f64), l: f64, h: f64| (low - l).abs() < 1e-4 && (high - h).abs() < 1e-4;
        assert!(near(interval(0, 100), 0.0, 0.0362), "{:?}", interval(0, 100));
        assert!(near(interval(5, 100), 0.0164, 0.1128), "{:?}", interval(5, 100));
        assert!(near(interval(5, 5), 0.4782, 1.0), "{:?}", interval(5, 5));
        assert_eq!(interval(0, 0), (0.0, 1.0), "nothing was seen: nothing is known");
    }

    #[test]
    fn a_spread_is_of_what_there_is() {
        assert_eq!(Spread::<u64>::of(Vec::new()), None);
        assert_eq!(Spread::of(vec![9, 1, 5]), Some(Spread { low: 1, median: 5, high: 9 }));
        assert_eq!(Spread::of((0..100).collect()), Some(Spread { low: 10, median: 50, high: 90 }));
    }
}
