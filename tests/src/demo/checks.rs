use crate::{
    traffic::{Record, binomial_upper},
    world::RouteVersion,
};
use anyhow::{Result, bail};

/// What must have held; every failure is kept, so that one run tells all.
#[derive(Default)]
pub struct Checks {
    failures: Vec<String>,
    held: usize,
}

impl Checks {
    /// Notes whether `held`, prints it, and goes on.
    pub fn check(&mut self, held: bool, what: &str) {
        println!("  {} {what}", if held { "✓" } else { "✗" });
        if held {
            self.held += 1;
        } else {
            self.failures.push(what.to_owned());
        }
    }

    /// How many held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// An error if any did not hold.
    pub fn finish(self) -> Result<()> {
        if self.failures.is_empty() {
            return Ok(());
        }
        bail!(
            "{} of {} checks failed:\n  {}",
            self.failures.len(),
            self.failures.len() + self.held,
            self.failures.join("\n  ")
        )
    }
}

/// `(answered by revision, most that chance explains)`: while the route gave `revision` at most `share`, the number of
/// its answers stays under the `alpha` quantile of a binomial of all requests of that time.
///
/// The time runs from the first version that gave it weight to two seconds after the one that took it away: Envoy gets
/// the change a moment later, and a request belongs to the arm that it was sent to when it started.
pub fn exposure_bound(
    records: &[Record],
    versions: &[RouteVersion],
    revision: &str,
    share: f64,
    alpha: f64,
) -> Result<(u64, u64)> {
    let weight = |v: &RouteVersion| v.weights.get(revision).copied().unwrap_or(0);
    let Some(first) = versions.iter().find(|v| weight(v) > 0) else {
        let answered = records.iter().filter(|r| r.arm.as_deref() == Some(revision)).count() as u64;
        return Ok((answered, 0));
    };
    let last = versions.iter().skip_while(|v| weight(v) == 0).find(|v| weight(v) == 0);
    let begin = first.seen.as_millisecond();
    let end = last.map_or(i64::MAX, |v| v.seen.as_millisecond() + 2000);
    let all = records.iter().filter(|r| (begin..=end).contains(&r.at)).count() as u64;
    let answered = records.iter().filter(|r| r.arm.as_deref() == Some(revision)).count() as u64;
    Ok((answered, binomial_upper(all, share, alpha)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Outcome;
    use jiff::Timestamp;
    use std::collections::BTreeMap;

    fn record(at: i64, arm: &str) -> Record {
        Record { at, arm: Some(arm.into()), status: 200, latency: 1.0, stream: false, outcome: Outcome::Ok }
    }

    fn version(at: i64, weight: i64) -> RouteVersion {
        RouteVersion {
            seen: Timestamp::from_millisecond(at).unwrap(),
            resource_version: at.to_string(),
            weights: BTreeMap::from([("bad".into(), weight), ("good".into(), 100 - weight)]),
            derived: Vec::new(),
            awake: Vec::new(),
            ledger: BTreeMap::new(),
        }
    }

    #[test]
    fn the_bound_counts_the_time_in_which_a_revision_had_weight() {
        // One request per 100 ms for 60 s; weight from 10 s to 20 s, so until 22 s: 121 requests.
        let records: Vec<Record> =
            (0..600).map(|i| record(i * 100, if (100..110).contains(&i) { "bad" } else { "good" })).collect();
        let versions = [version(0, 0), version(10_000, 5), version(20_000, 0), version(30_000, 0)];
        let expected = binomial_upper(121, 0.05, 0.001).unwrap();
        assert_eq!(exposure_bound(&records, &versions, "bad", 0.05, 0.001).unwrap(), (10, expected));
        // Weight that was never taken away counts to the end.
        let all = binomial_upper(500, 0.05, 0.001).unwrap();
        assert_eq!(exposure_bound(&records, &versions[..2], "bad", 0.05, 0.001).unwrap(), (10, all));
    }

    #[test]
    fn a_revision_without_weight_may_answer_nothing() {
        let records = [record(0, "good"), record(1, "bad")];
        assert_eq!(exposure_bound(&records, &[version(0, 0)], "bad", 0.05, 0.001).unwrap(), (1, 0));
    }
}
