//! From a pod's cumulative counters to what happened in an interval.

use crate::evidence::{Histogram, LiveArm};

/// One pod's cumulative counters as last scraped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCounters {
    /// Random id of the process: another one means the counters started again at zero.
    pub process: String,
    /// Requests that ended, errors among them, and latencies, since the process began.
    pub totals: LiveArm,
    /// Requests running at the scrape.
    pub in_flight: u64,
}

/// What happened on one pod between two scrapes.
///
/// - First sight of a pod (`previous` is `None`): nothing; it only sets the reference.
/// - The same process: the difference.
/// - Another process, or any counter that fell: everything since it began, and what ran at the last scrape counts as
///   errors: those requests died with the old process.
/// - A pod that vanished (`current` is `None`): nothing; keep its last counters.
pub fn delta(previous: Option<&PodCounters>, current: Option<&PodCounters>) -> LiveArm {
    let (Some(previous), Some(current)) = (previous, current) else { return LiveArm::default() };
    let same = previous.process == current.process;
    if let Some(difference) = same.then(|| difference(&previous.totals, &current.totals)).flatten() {
        return difference;
    }
    let mut since = current.totals.clone();
    since.requests = since.requests.saturating_add(previous.in_flight);
    since.errors = since.errors.saturating_add(previous.in_flight);
    since
}

/// Adds one pod's interval to its arm.
pub fn add(arm: &mut LiveArm, pod: &LiveArm) {
    arm.requests = arm.requests.saturating_add(pod.requests);
    arm.errors = arm.errors.saturating_add(pod.errors);
    arm.ttft.merge(&pod.ttft);
    arm.tpot.merge(&pod.tpot);
}

/// `None` if any counter fell.
fn difference(previous: &LiveArm, current: &LiveArm) -> Option<LiveArm> {
    Some(LiveArm {
        requests: current.requests.checked_sub(previous.requests)?,
        errors: current.errors.checked_sub(previous.errors)?,
        ttft: histogram_difference(&previous.ttft, &current.ttft)?,
        tpot: histogram_difference(&previous.tpot, &current.tpot)?,
    })
}

fn histogram_difference(previous: &Histogram, current: &Histogram) -> Option<Histogram> {
    let fell = |(bucket, &n): (&i16, &u64)| current.0.get(bucket).copied().unwrap_or(0) < n;
    if previous.0.iter().any(fell) {
        return None;
    }
    let rose = |(&bucket, &n): (&i16, &u64)| {
        let more = n - previous.0.get(&bucket).copied().unwrap_or(0);
        (more > 0).then_some((bucket, more))
    };
    Some(Histogram(current.0.iter().filter_map(rose).collect()))
}
