//! What a forecast says, for programs; [`super::words`] says it for people.

use crate::files::Subject;
use bitnet_core::{
    Span,
    simulate::{Forecast, Run, Spread, World, interval},
};
use serde::Serialize;

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Prediction {
    pub(super) subject: String,
    pub(super) strategy: String,
    pub(super) gate: String,
    pub(super) requests_per_second: f64,
    pub(super) seed: u64,
    /// An A/B test that only reports: "promoted" means that the gate's proofs were complete at its end.
    pub(super) reports_only: bool,
    /// What happens at the deadline to what could not be decided.
    pub(super) at_deadline: &'static str,
    /// What the confidence of the gate promises, whatever the simulation found.
    pub(super) promised_false_rollback: f64,
    pub(super) promised_false_promotion: f64,
    pub(super) good: Outlook,
    pub(super) defects: Vec<Outlook>,
    /// What the users of an A/B test bring.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) users: Vec<UsersOutlook>,
    /// What the guard does after a promotion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guard: Option<GuardOutlook>,
    pub(super) remarks: Vec<String>,
}

/// What becomes of an A/B test for its users.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsersOutlook {
    pub(super) users: String,
    pub(super) runs: u64,
    pub(super) candidate_better: Chance,
    pub(super) candidate_worse: Chance,
    pub(super) no_difference_proven: Chance,
    pub(super) sample_ratio_mismatch: Chance,
    /// Seconds from the start of the split to the first proof, where there was one.
    pub(super) seconds_until_proven: Option<Quantiles>,
}

/// What the guard of a promoted model promises and does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GuardOutlook {
    /// Seconds between two comparisons.
    pub(super) interval_seconds: f64,
    /// Days to a false alarm of a model that lies exactly on its margins, on average, at least.
    pub(super) days_to_false_alarm: f64,
    /// Ticks that were simulated of a good model, and the runs in which it was called.
    pub(super) healthy_ticks: u32,
    pub(super) healthy_called: Chance,
    pub(super) defects: Vec<GuardDefect>,
}

/// A defect that begins after [`super::GUARD_GOOD`] good ticks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GuardDefect {
    pub(super) defect: String,
    pub(super) called: Chance,
    /// Seconds from its beginning.
    pub(super) seconds_until_called: Option<Quantiles>,
}

/// What becomes of one candidate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outlook {
    pub(super) candidate: String,
    pub(super) runs: u64,
    pub(super) promoted: Chance,
    pub(super) rolled_back: Chance,
    pub(super) inconclusive: Chance,
    /// Seconds from the first comparison (of a defect that begins later: from its beginning) to the end.
    pub(super) seconds_until_promoted: Option<Quantiles>,
    pub(super) seconds_until_rolled_back: Option<Quantiles>,
    /// Live requests that the candidate answered.
    pub(super) live_requests: Quantiles,
    /// Most frequent reasons of rollbacks, and what undecided runs waited for.
    pub(super) rolled_back_for: Vec<Count>,
    pub(super) waited_for: Vec<Count>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Count {
    pub(super) what: String,
    pub(super) runs: u64,
}

/// Share of the runs, and the 95 % interval of the chance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Chance {
    pub(super) share: f64,
    pub(super) at_least: f64,
    pub(super) at_most: f64,
}

/// 10 %, 50 % and 90 % quantile.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Quantiles {
    pub(super) p10: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
}

impl Quantiles {
    pub(super) fn of<T: Copy>(spread: Spread<T>, number: impl Fn(T) -> f64) -> Self {
        Self { p10: number(spread.low), p50: number(spread.median), p90: number(spread.high) }
    }
}

impl Chance {
    pub(super) fn of(count: u64, runs: u64) -> Self {
        let (at_least, at_most) = interval(count, runs);
        Self { share: count as f64 / runs as f64, at_least, at_most }
    }
}

impl Outlook {
    pub(super) fn of(candidate: String, subject: &Subject, world: &World, runs: &[Run]) -> Self {
        let since = i64::from(world.onset).saturating_mul(subject.gate.interval.0);
        let seconds = |span: Span| Span((span.0 - since).max(0)).as_seconds();
        let Some(f) = Forecast::of(&subject.gate, runs) else { unreachable!("at least one run is asked for") };
        let chance = |count: u64| Chance::of(count, f.runs);
        let counts = |all: &[(String, u64)]| {
            all.iter().take(3).map(|(what, runs)| Count { what: what.clone(), runs: *runs }).collect()
        };
        Self {
            candidate,
            runs: f.runs,
            promoted: chance(f.promoted),
            rolled_back: chance(f.rolled_back),
            inconclusive: chance(f.inconclusive),
            seconds_until_promoted: f.until_promoted.map(|s| Quantiles::of(s, Span::as_seconds)),
            seconds_until_rolled_back: f.until_rolled_back.map(|s| Quantiles::of(s, seconds)),
            live_requests: Quantiles::of(f.exposed, |n| n as f64),
            rolled_back_for: counts(&f.rolled_back_for),
            waited_for: counts(&f.waited_for),
        }
    }
}
