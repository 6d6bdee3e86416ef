//! Ticks of running attempts as this process saw them: points of charts, and latencies and errors of both arms.

use super::{
    Change,
    comparisons::{Floors, Margins, Ring, Summary},
    forecast::{Forecast, forecast},
    spending::{Bill, Spending},
};
use crate::{
    config::Config,
    observe::{Compared, World},
};
use bitnet_core::{
    Time,
    evidence::{Assessment, LiveArm},
    model::Rollout,
    observation::{Live, RouteState},
    plan::{Plan, State},
};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use tokio::sync::broadcast;

/// Points kept of a rollout: the latest half of them whole, the older ones thinned.
const POINTS: usize = 240;
/// Rollouts whose points are kept: those with the latest ticks.
const ROLLOUTS: usize = 64;

/// One tick.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Point {
    /// When it was taken, in milliseconds since the epoch.
    pub at: i64,
    /// Attempt that it belongs to.
    pub attempt: u32,
    /// Its number in the attempt.
    pub tick: u32,
    /// The candidate's weight in the route, in percent.
    pub weight: u32,
    /// ln of the combined e-value against the candidate, and the bound that rolls back.
    pub against: f64,
    /// ln of the e-value that rolls back: ln(1/alpha), rising by ln 2 with each reconfiguration.
    pub rollback_at: f64,
    /// ln of the e-value that each signal needs for a promotion.
    pub promote_at: f64,
    /// The signals.
    pub signals: Vec<SignalPoint>,
    /// Requests that ended in the interval of this tick; `None`: a worker did not answer.
    pub live: Option<LivePoint>,
}

/// A signal at one tick.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SignalPoint {
    /// Its name.
    pub name: &'static str,
    /// Samples so far.
    pub samples: u64,
    /// Point estimate in its unit.
    pub estimate: Option<f64>,
    /// ln of the e-value against the candidate.
    pub against: f64,
    /// ln of the e-value for it.
    pub support: f64,
    /// Samples that a decision is expected to need in all, where that can be said.
    pub required: Option<u64>,
}

/// Requests of both arms in one tick.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LivePoint {
    /// Length of the interval in seconds.
    pub seconds: f64,
    /// Requests of the candidate that ended.
    pub candidate: u64,
    /// Requests of stable that ended.
    pub stable: u64,
    /// Errors of the candidate among them.
    pub candidate_errors: u64,
    /// Errors of stable among them.
    pub stable_errors: u64,
}

/// What an arm did since this process began to watch the attempt.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArmTotal {
    /// Requests that ended.
    pub requests: u64,
    /// Errors among them.
    pub errors: u64,
    /// Time to first token, p50 and p95.
    pub ttft: Option<[Quantile; 2]>,
    /// Time per output token, p50 and p95.
    pub tpot: Option<[Quantile; 2]>,
    /// Tokens generated for live requests.
    pub tokens: u64,
    /// Joules of the hosts per 1,000 tokens; `None`: they show none.
    pub energy_per_1k_tokens: Option<f64>,
    /// Price of the engines' working time per 1,000 tokens; `None`: the pool has no price.
    pub cost_per_1k_tokens: Option<f64>,
}

/// A quantile in seconds: the upper edge of its bucket, and an interval of 95 % (distribution-free, for one look).
/// Above the last edge it is infinite, in JSON `null`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Quantile {
    /// Estimate.
    pub at: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Points and totals of a rollout's attempt.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Watched {
    /// The points, oldest first.
    pub points: Vec<Point>,
    /// The candidate's requests.
    pub candidate: ArmTotal,
    /// Stable's requests in the same ticks.
    pub stable: ArmTotal,
    /// The last comparisons one by one.
    pub comparisons: Option<Summary>,
    /// When the evidence is expected to be complete.
    pub forecast: Option<Forecast>,
    /// When the first of these ticks was taken, in milliseconds since the epoch.
    pub since: i64,
}

#[derive(Default)]
struct Series {
    attempt: u32,
    candidate_revision: String,
    since: i64,
    last: i64,
    points: Vec<Point>,
    candidate: LiveArm,
    stable: LiveArm,
    spent: [Spending; 2],
    comparisons: Ring,
    margins: Option<Margins>,
    baseline: String,
}

type Key = (String, String);

/// Points of the rollouts that run. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Ticks {
    series: Arc<Mutex<BTreeMap<Key, Series>>>,
    floors: Arc<Mutex<Floors>>,
    told: Arc<OnceLock<broadcast::Sender<Change>>>,
    since: i64,
}

impl Default for Ticks {
    fn default() -> Self {
        let since = Timestamp::now().as_millisecond();
        Self { series: Arc::default(), floors: Arc::default(), told: Arc::default(), since }
    }
}

impl Ticks {
    pub(super) fn tell(&self, changes: broadcast::Sender<Change>) {
        // A second dashboard of one process would only repeat what the first one is told.
        let _ = self.told.set(changes);
    }

    /// When this process began, in milliseconds since the epoch: there are no older points.
    pub(super) fn since(&self) -> i64 {
        self.since
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the tick that `plan` took, if it took one; `before` is the state that it was planned from.
    pub fn record(&self, config: &Config, rollout: &Rollout, before: &State, world: &World, plan: &Plan, now: Time) {
        self.take(config, rollout, before, world, plan, now);
        self.compare(rollout, before, world, now);
    }

    /// Keeps comparisons, those of the guard after a promotion included.
    fn compare(&self, rollout: &Rollout, before: &State, world: &World, now: Time) {
        if world.compared.is_empty() {
            return;
        }
        let promoted = match &world.observation.route {
            RouteState::Found(route) => route.ledger.as_ref().and_then(|l| Some((l.attempt, l.candidate.as_ref()?))),
            _ => None,
        };
        let running = before.attempt.as_ref().map(|attempt| (attempt.number, &attempt.candidate));
        let Some((attempt, candidate)) = running.or(promoted) else { return };
        let gate = &rollout.gate;
        let margins = Margins { mean: gate.min_mean, tail: gate.tail_min, tail_share: gate.tail_share };
        let key = (rollout.namespace.clone(), rollout.name.clone());
        let of = (attempt, candidate.0.as_str(), rollout.baseline.revision.0.as_str());
        if rollout.model.source == rollout.baseline.source && *candidate == rollout.model.revision {
            let mut floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
            floors.add(&rollout.namespace, of.2, now.0, &world.compared);
        }
        self.keep_comparisons(key, of, margins, now.0, &world.compared);
    }

    /// `of`: attempt, revisions of the candidate and of the baseline.
    pub(super) fn keep_comparisons(
        &self,
        key: Key,
        of: (u32, &str, &str),
        margins: Margins,
        at: i64,
        compared: &[Compared],
    ) {
        {
            let mut all = self.lock();
            let series = all.entry(key.clone()).or_default();
            series.begin(of.0, of.1, at);
            series.comparisons.add(at, compared);
            (series.margins, series.baseline) = (Some(margins), of.2.to_owned());
            bound(&mut all);
        }
        self.tell_browsers(key);
    }

    fn take(&self, config: &Config, rollout: &Rollout, before: &State, world: &World, plan: &Plan, now: Time) {
        let seen = &world.observation;
        let (Some(sample), Some(assessment)) = (&seen.sample, &plan.assessment) else { return };
        // The tick that decides ends the attempt in the very plan that it is taken in.
        let (attempt, tick) = match (&plan.state.attempt, &before.attempt) {
            (Some(attempt), _) => (attempt, attempt.tick),
            (None, Some(attempt)) => (attempt, attempt.tick + 1),
            (None, None) => return,
        };
        let weight = match &seen.route {
            RouteState::Found(route) => route.weight(&attempt.candidate),
            _ => 0,
        };
        let halved = f64::from(attempt.reconfigurations) * std::f64::consts::LN_2;
        let point = Point {
            at: now.0,
            attempt: attempt.number,
            tick,
            weight,
            against: assessment.ln_rollback,
            rollback_at: halved - rollout.gate.alpha_rollback.ln(),
            promote_at: halved - rollout.gate.alpha_promote.ln(),
            signals: signals(assessment),
            live: sample.live.as_ref().map(live),
        };
        let stable = match &seen.route {
            RouteState::Found(route) => route.ledger.as_ref().map(|ledger| &ledger.stable),
            _ => None,
        };
        let stable = stable.unwrap_or(&rollout.baseline.revision);
        let used = world.pending.as_ref().and_then(|pending| pending.used()).copied();
        let prices = [&attempt.candidate, stable].map(|revision| world.price(config, revision));
        let bill = used.map(|used| Bill { used, prices });
        let key = (rollout.namespace.clone(), rollout.name.clone());
        self.keep(key, &attempt.candidate.0, point, sample.live.as_ref(), bill.as_ref());
    }

    pub(super) fn keep(&self, key: Key, revision: &str, point: Point, live: Option<&Live>, bill: Option<&Bill>) {
        {
            let mut all = self.lock();
            let series = all.entry(key.clone()).or_default();
            series.begin(point.attempt, revision, point.at);
            if series.points.last().is_some_and(|last| last.tick >= point.tick) {
                return;
            }
            if let Some(live) = live {
                add(&mut series.candidate, &live.candidate);
                add(&mut series.stable, &live.stable);
            }
            if let Some(Bill { used, prices }) = bill {
                for (i, spending) in series.spent.iter_mut().enumerate() {
                    spending.add(&used[i], prices[i]);
                }
            }
            series.points.push(point);
            thin(&mut series.points);
            bound(&mut all);
        }
        self.tell_browsers(key);
    }

    fn tell_browsers(&self, key: Key) {
        if let Some(told) = self.told.get() {
            // Without a browser nobody listens, which is no error.
            let _ = told.send(Change::Tick(key.0, key.1));
        }
    }

    /// Drops a rollout's points.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// What is kept of a rollout's attempt; `None`: this process took no tick of it.
    pub(super) fn of(&self, namespace: &str, name: &str, attempt: u32) -> Option<Watched> {
        let all = self.lock();
        let series = all.get(&(namespace.to_owned(), name.to_owned())).filter(|series| series.attempt == attempt)?;
        let floor = self.floors.lock().unwrap_or_else(PoisonError::into_inner).of(namespace, &series.baseline);
        Some(Watched {
            comparisons: series.margins.and_then(|margins| series.comparisons.summary(margins, floor)),
            forecast: forecast(&series.points),
            points: series.points.clone(),
            candidate: total(&series.candidate, &series.spent[0]),
            stable: total(&series.stable, &series.spent[1]),
            since: series.since,
        })
    }
}

impl Series {
    /// Another attempt, or another candidate, begins empty.
    fn begin(&mut self, attempt: u32, candidate: &str, at: i64) {
        if self.attempt != attempt || self.candidate_revision != candidate {
            *self = Self { attempt, candidate_revision: candidate.to_owned(), since: at, ..Self::default() };
        }
        self.last = at;
    }
}

/// Lets the rollout go that was heard of longest ago, where there are too many.
fn bound(all: &mut BTreeMap<Key, Series>) {
    if all.len() > ROLLOUTS
        && let Some(oldest) = all.iter().min_by_key(|(_, series)| series.last).map(|(key, _)| key.clone())
    {
        all.remove(&oldest);
    }
}

/// Takes one point out of the older half where there are too many: the one whose neighbours are closest, so that what is
/// left is spread evenly over the whole attempt.
fn thin(points: &mut Vec<Point>) {
    if points.len() <= POINTS {
        return;
    }
    let distance = |index: usize| points[index + 1].tick - points[index - 1].tick;
    if let Some(index) = (1..POINTS / 2).min_by_key(|index| distance(*index)) {
        points.remove(index);
    }
}

fn signals(assessment: &Assessment) -> Vec<SignalPoint> {
    let signals = assessment.signals.iter().map(|signal| SignalPoint {
        name: signal.kind.name(),
        samples: signal.samples,
        estimate: signal.estimate,
        against: signal.ln_rollback,
        support: signal.ln_promote,
        required: signal.required,
    });
    signals.collect()
}

fn live(live: &Live) -> LivePoint {
    LivePoint {
        seconds: live.seconds,
        candidate: live.candidate.requests,
        stable: live.stable.requests,
        candidate_errors: live.candidate.errors,
        stable_errors: live.stable.errors,
    }
}

fn add(sum: &mut LiveArm, part: &LiveArm) {
    sum.requests = sum.requests.saturating_add(part.requests);
    sum.errors = sum.errors.saturating_add(part.errors);
    sum.ttft.merge(&part.ttft);
    sum.tpot.merge(&part.tpot);
}

fn total(arm: &LiveArm, spent: &Spending) -> ArmTotal {
    let quantile = |histogram: &bitnet_core::evidence::Histogram, p| {
        let (low, high) = histogram.quantile_interval(p, 0.05)?;
        Some(Quantile { at: histogram.quantile(p)?, low, high })
    };
    let quantiles = |histogram: &bitnet_core::evidence::Histogram| {
        // Without an observation there is no quantile, and zero would be a lie.
        Some([quantile(histogram, 0.5)?, quantile(histogram, 0.95)?])
    };
    ArmTotal {
        requests: arm.requests,
        errors: arm.errors,
        ttft: quantiles(&arm.ttft),
        tpot: quantiles(&arm.tpot),
        tokens: spent.tokens(),
        energy_per_1k_tokens: spent.energy_per_1k_tokens(),
        cost_per_1k_tokens: spent.cost_per_1k_tokens(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_core::evidence::Histogram;

    fn point(attempt: u32, tick: u32) -> Point {
        Point {
            at: i64::from(tick) * 1000,
            attempt,
            tick,
            weight: 5,
            against: -0.5,
            rollback_at: 4.6,
            promote_at: 3.0,
            signals: Vec::new(),
            live: None,
        }
    }

    fn key(name: &str) -> Key {
        ("ns".into(), name.into())
    }

    #[test]
    fn a_long_attempt_keeps_its_beginning_thinly_and_its_end_whole() {
        let ticks = Ticks::default();
        for tick in 1..=10_000 {
            ticks.keep(key("chat"), "chat-b", point(1, tick), None, None);
        }
        let watched = ticks.of("ns", "chat", 1).unwrap();
        assert!(watched.points.len() <= POINTS, "{}", watched.points.len());
        let numbers: Vec<_> = watched.points.iter().map(|point| point.tick).collect();
        assert_eq!((numbers.len(), numbers[0]), (POINTS, 1));
        assert_eq!(numbers[POINTS - 100..], (9_901..=10_000).collect::<Vec<_>>(), "the last ticks are whole");
        // 119 points over 9,880 ticks: 83 apart on average, none more than four times that.
        let widest = numbers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(widest <= 332, "the beginning has gaps of {widest}");
        assert_eq!(watched.since, 1000);
    }

    #[test]
    fn a_tick_counts_once_and_another_attempt_begins_empty() {
        let ticks = Ticks::default();
        let arm =
            |requests| LiveArm { requests, errors: 1, ttft: Histogram([(0, requests)].into()), ..LiveArm::default() };
        let live = Live {
            candidate: arm(10),
            stable: arm(90),
            seconds: 10.0,
            users: bitnet_core::observation::Users::default(),
        };
        let used = |tokens| crate::counters::Usage { tokens, busy_seconds: 36.0, joules: Some(8.0) };
        let bill = Bill { used: [used(100), used(1000)], prices: [Some(1.0), None] };
        for _ in 0..3 {
            ticks.keep(key("chat"), "chat-b", point(1, 1), Some(&live), Some(&bill));
        }
        let watched = ticks.of("ns", "chat", 1).unwrap();
        assert_eq!((watched.candidate.requests, watched.stable.requests), (10, 90));
        assert_eq!((watched.candidate.tokens, watched.stable.tokens), (100, 1000));
        assert_eq!(
            (watched.candidate.energy_per_1k_tokens, watched.stable.energy_per_1k_tokens),
            (Some(80.0), Some(8.0))
        );
        assert_eq!((watched.candidate.cost_per_1k_tokens, watched.stable.cost_per_1k_tokens), (Some(0.1), None));
        let [p50, p95] = watched.candidate.ttft.unwrap();
        assert_eq!((p50.at, p95.at), (1.0, 1.0), "the upper edge of bucket 0 is one second");
        assert!(p50.low < 1.0 && p50.high == 1.0 && p95.high == f64::INFINITY, "ten requests bound no 95th percentile");
        assert_eq!(watched.candidate.tpot, None, "nothing was measured: no number");
        ticks.keep(key("chat"), "chat-b", point(2, 1), None, None);
        assert_eq!(ticks.of("ns", "chat", 1), None, "another attempt's points are not this one's");
        let anew = ticks.of("ns", "chat", 2).unwrap().candidate;
        assert_eq!((anew.requests, anew.tokens, anew.cost_per_1k_tokens), (0, 0, None));
    }

    #[test]
    fn memory_is_bounded_by_the_rollouts_that_ticked_last() {
        let ticks = Ticks::default();
        for number in 0..200 {
            ticks.keep(key(&format!("r{number}")), "b", point(1, number + 1), None, None);
        }
        assert_eq!(ticks.lock().len(), ROLLOUTS);
        assert!(ticks.of("ns", "r199", 1).is_some() && ticks.of("ns", "r0", 1).is_none());
        ticks.forget("ns", "r199");
        assert!(ticks.of("ns", "r199", 1).is_none());
    }
}
