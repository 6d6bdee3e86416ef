use super::Record;
use statrs::distribution::{Binomial, DiscreteCDF};
use std::{collections::BTreeMap, fmt};

/// What one arm answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ArmAccount {
    /// Requests.
    pub requests: usize,
    /// Of these, failed.
    pub failed: usize,
    /// Latency percentiles of the good answers in milliseconds.
    pub p50: f64,
    /// The same.
    pub p99: f64,
}

/// The client's account of a stretch of traffic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Per revision that answered; `-` for requests without a head.
    pub arms: BTreeMap<String, ArmAccount>,
    /// All requests.
    pub requests: usize,
    /// All failures.
    pub failed: usize,
    /// The failures in words with counts.
    pub failures: BTreeMap<String, usize>,
}

impl Account {
    /// Sums up records.
    pub fn of(records: &[Record]) -> Self {
        let mut account = Self { requests: records.len(), ..Self::default() };
        let mut latencies: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for record in records {
            let name = record.arm.clone().unwrap_or_else(|| "-".into());
            let arm = account.arms.entry(name.clone()).or_default();
            arm.requests += 1;
            if record.failed() {
                arm.failed += 1;
                account.failed += 1;
                let what = if record.status == 0 || record.status == 200 {
                    format!("{:?}", record.outcome)
                } else {
                    format!("status {}", record.status)
                };
                *account.failures.entry(what).or_default() += 1;
            } else {
                latencies.entry(name).or_default().push(record.latency);
            }
        }
        for (name, mut values) in latencies {
            values.sort_by(f64::total_cmp);
            if let Some(arm) = account.arms.get_mut(&name) {
                arm.p50 = percentile(&values, 0.5);
                arm.p99 = percentile(&values, 0.99);
            }
        }
        account
    }

    /// Requests that `revision` answered.
    pub fn answered_by(&self, revision: &str) -> usize {
        self.arms.get(revision).map_or(0, |a| a.requests)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28} {:>9} {:>7} {:>9} {:>9}", "arm", "requests", "failed", "p50 ms", "p99 ms")?;
        for (name, arm) in &self.arms {
            writeln!(f, "{name:<28} {:>9} {:>7} {:>9.1} {:>9.1}", arm.requests, arm.failed, arm.p50, arm.p99)?;
        }
        write!(f, "{:<28} {:>9} {:>7}", "all", self.requests, self.failed)?;
        for (what, count) in &self.failures {
            write!(f, "\n  {count} x {what}")?;
        }
        Ok(())
    }
}

/// The `q`-quantile of rising values (nearest rank), 0 for none.
pub fn percentile(sorted: &[f64], q: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted[rank.min(sorted.len()) - 1]
}

/// Smallest k with `P(X > k) ≤ alpha` for X ~ Binomial(n, p): the most that chance explains.
///
/// # Errors
/// When `p` is no probability.
pub fn binomial_upper(n: u64, p: f64, alpha: f64) -> anyhow::Result<u64> {
    let distribution = Binomial::new(p, n)?;
    Ok(distribution.inverse_cdf(1.0 - alpha))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Outcome;

    fn record(arm: Option<&str>, latency: f64, outcome: Outcome) -> Record {
        let status = if arm.is_some() { 200 } else { 0 };
        Record { at: 0, arm: arm.map(Into::into), status, latency, stream: false, outcome }
    }

    #[test]
    fn the_account_counts_by_arm_and_keeps_failures_out_of_latency() {
        let mut records: Vec<Record> = (1..=100).map(|i| record(Some("a"), f64::from(i), Outcome::Ok)).collect();
        records.push(record(Some("b"), 9000.0, Outcome::Truncated("cut".into())));
        records.push(record(None, 1.0, Outcome::Connect("refused".into())));
        let account = Account::of(&records);
        assert_eq!((account.requests, account.failed), (102, 2));
        assert_eq!(account.arms["a"].p50, 50.0);
        assert_eq!(account.arms["a"].p99, 99.0);
        assert_eq!(account.arms["b"], ArmAccount { requests: 1, failed: 1, p50: 0.0, p99: 0.0 });
        assert_eq!(account.answered_by("-"), 1);
    }

    #[test]
    fn the_binomial_bound_is_the_exact_quantile() {
        // P(X > 8) = .00998, P(X > 9) = .00259, P(X > 10) = .00056 for Binomial(20, .2).
        assert_eq!(binomial_upper(20, 0.2, 0.001).unwrap(), 10);
        assert_eq!(binomial_upper(20, 0.2, 0.003).unwrap(), 9);
        assert_eq!(binomial_upper(1000, 0.0, 0.001).unwrap(), 0);
    }
}
