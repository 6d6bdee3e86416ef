use super::{Checks, Timeline, exposure_bound};
use crate::{
    traffic::{Account, Traffic},
    world::{Rollouts, RouteHistory},
};
use anyhow::{Context, Result};
use bitnet_api::v1alpha1::{ModelRolloutStatus, RolloutDecision};
use kube::{Api, Client};
use serde_json::json;
use std::time::Duration;

/// What an act must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The candidate is promoted.
    Promoted,
    /// Rolled back before a single live request, within so many ticks.
    RolledBackUnseen {
        /// Most ticks of the attempt.
        ticks: i32,
    },
    /// Rolled back at the first step, within so many ticks.
    RolledBackEarly {
        /// Most ticks of the attempt.
        ticks: i32,
        /// Largest weight that it may have had.
        weight: i64,
    },
}

/// One candidate and what becomes of it.
pub struct Act<'a> {
    /// What a reader is told.
    pub title: &'a str,
    /// Pinned image of the candidate's model.
    pub image: &'a str,
    /// What must happen.
    pub outcome: Outcome,
}

/// Edits the rollout to the act's model, follows it to its end, and checks what was promised.
pub async fn play(
    client: &Client,
    namespace: &str,
    name: &str,
    act: &Act<'_>,
    traffic: &Traffic,
    history: &RouteHistory,
    checks: &mut Checks,
) -> Result<ModelRolloutStatus> {
    println!("\n{}", act.title);
    let rollouts = Rollouts::new(client.clone(), namespace);
    let before = rollouts.status(name).await?;
    let (mark, versions) = (traffic.mark(), history.mark().saturating_sub(1));
    rollouts.edit(name, &json!({"model": {"source": {"image": act.image}}})).await?;
    let mut timeline = Timeline::start().after(&before);
    let old = before.decision.map(|d| d.id).unwrap_or_default();
    let end = timeline
        .follow(&rollouts, name, Duration::from_secs(600), move |s| {
            let decided = s.decision.as_ref().is_some_and(|d| d.id != old);
            decided && matches!(s.phase.as_str(), "Serving" | "RolledBack" | "Holding" | "Degraded")
        })
        .await?;
    let decision = end.decision.clone().context("no decision in status")?;
    let record = Api::<RolloutDecision>::namespaced(client.clone(), namespace).get(&decision.id).await?.spec;
    println!("  {}  {} ({}): {}", timeline.clock(), record.verdict, record.reason, record.message);

    let requests = traffic.since(mark);
    let account = Account::of(&requests);
    let route = history.versions()[versions..].to_vec();
    let candidate = &record.candidate;
    let written = route.iter().find(|v| v.ledger.get("decision").is_some_and(|d| d.contains(&decision.id)));
    let decided = record.decided_at.parse::<jiff::Timestamp>()?;
    checks.check(account.failed == 0, &format!("{} client requests, {} failed", account.requests, account.failed));
    let delay = written.map_or(f64::INFINITY, |v| (v.seen.as_millisecond() - decided.as_millisecond()) as f64 / 1e3);
    checks.check(delay <= 2.0, &format!("from the proving tick to the stored write {delay:.2} s (at most 2 s)"));
    match act.outcome {
        Outcome::Promoted => {
            checks.check(record.verdict == "Promoted", &format!("promoted after {} ticks", record.ticks));
            let weight = route.last().and_then(|v| v.weights.get(candidate)).copied().unwrap_or(0);
            checks.check(weight == 100, &format!("the stored weight of {candidate} is {weight}"));
        }
        Outcome::RolledBackUnseen { ticks } => {
            let rolled = record.verdict == "RolledBack" && record.ticks <= ticks;
            checks.check(rolled, &format!("{} after {} ticks (at most {ticks})", record.verdict, record.ticks));
            let (answered, weight) = (account.answered_by(candidate), largest(&route, candidate));
            checks.check(
                answered == 0 && weight == 0,
                &format!("{answered} live requests, largest stored weight {weight}"),
            );
        }
        Outcome::RolledBackEarly { ticks, weight } => {
            let rolled = record.verdict == "RolledBack" && record.ticks <= ticks;
            checks.check(rolled, &format!("{} after {} ticks (at most {ticks})", record.verdict, record.ticks));
            let stored = largest(&route, candidate);
            checks.check(stored <= weight, &format!("largest stored weight {stored} (at most {weight})"));
            let (answered, bound) = exposure_bound(&requests, &route, candidate, weight as f64 / 100.0, 0.001)?;
            checks.check(answered <= bound, &format!("{answered} live requests (binomial bound {bound} at .001)"));
        }
    }
    Ok(end)
}

fn largest(route: &[crate::world::RouteVersion], revision: &str) -> i64 {
    route.iter().filter_map(|v| v.weights.get(revision)).copied().max().unwrap_or(0)
}
