//! Pods: what must exist before traffic comes, and what may go after it has left.

use super::{
    Grow, Shrink, canary,
    draft::Draft,
    route,
    view::{DRAIN, Standing},
};
use crate::{
    Span,
    model::{Revision, Serving, Strategy},
};

/// What must exist: fp16 always, the spec's model while it serves or is on trial.
pub(super) fn grow(d: &mut Draft<'_>) {
    if d.view.obs.namespace_terminating {
        return;
    }
    let rollout = d.view.rollout;
    if baseline_may_come(d) {
        need(d, &rollout.baseline, rollout.baseline.replicas, true);
    }
    if rollout.model.revision == rollout.baseline.revision {
        return;
    }
    let comes = match d.standing() {
        Some(Standing::Settled | Standing::Trial) => true,
        Some(Standing::Next) => canary::may_come(d),
        Some(Standing::Latched | Standing::Held) | None => false,
    };
    // A verdict in this very plan may have ended it.
    let latched = d.plan.state.seen.as_ref().and_then(|s| s.rollback_of.as_ref());
    if comes && latched.is_none_or(|(r, _)| *r != rollout.model.revision) {
        let replicas = d.view.posted().max(d.recruits.unwrap_or(0));
        need(d, &rollout.model, replicas, false);
    }
}

/// Stable's pods that made room come back when its share rises again: all of them without a candidate.
pub(super) fn regrow(d: &mut Draft<'_>) {
    let Some(stable) = d.view.swapped().cloned().filter(|_| !d.view.obs.namespace_terminating) else { return };
    let replicas = d.view.need(100 - d.trial_weight().min(100));
    let has = d.view.workload(&stable).and_then(|w| w.replicas).unwrap_or(0);
    if has < replicas {
        d.plan.regrow = Some((stable, replicas));
    }
}

/// Stable's pods that its share does not need any more make room for the candidate's. As many are ready as it needs, now
/// and afterwards (those that are not ready go first).
fn made_room(d: &Draft<'_>) -> Option<Shrink> {
    let stable = d.view.swapped()?;
    let weight = d.trial_weight();
    if d.standing() != Some(Standing::Trial)
        || !matches!(d.view.rollout.strategy, Strategy::Canary(_))
        || !route::at_home(d)
    {
        return None;
    }
    if weight == 0 {
        // Back at 0 (a tripped wire): what later steps brought gives stable's pods their places back.
        let (model, posted) = (d.view.model(), d.view.posted());
        let w = d.view.workload(model).filter(|w| !w.autoscaled)?;
        let waits = d.view.endpoints(stable) < d.view.need(100);
        return (waits && w.replicas? > posted).then(|| Shrink::To(model.clone(), posted));
    }
    let needed = d.view.need(100 - weight.min(100));
    let w = d.view.workload(stable)?;
    (w.replicas? > needed && w.ready_endpoints >= needed).then(|| Shrink::To(stable.clone(), needed))
}

/// fp16 comes first and stays; another one waits for the end of a running trial.
fn baseline_may_come(d: &Draft<'_>) -> bool {
    d.view.baseline == d.view.rollout.baseline.revision || !super::baseline::edit_waits(d)
}

fn need(d: &mut Draft<'_>, serving: &Serving, replicas: u32, baseline: bool) {
    let replicas = replicas.max(1);
    let workload = d.view.workload(&serving.revision);
    let number = match workload {
        Some(w) if w.autoscaled && w.replicas.is_some() => None,
        Some(w) => w.replicas.is_none_or(|have| have < replicas).then_some(replicas),
        None => Some(replicas),
    };
    let whole =
        workload.is_some_and(|w| w.replicas.is_some() && w.service) && (!baseline || d.view.obs.baseline_service);
    if number.is_some() || !whole {
        d.plan.grow.push(Grow { serving: serving.clone(), replicas: number, baseline });
    }
}

/// What may go: not before the traffic has left it, the gateway has said so, and a drain has passed.
pub(super) fn shrink(d: &mut Draft<'_>) {
    let (Some(ledger), Some(route)) = (d.view.ledger(), d.view.route()) else { return };
    if d.plan.shift.is_some() || d.by_hand {
        return;
    }
    // Held, the candidate's pods stay, but where stable's made room for them.
    let yields = d.standing() == Some(Standing::Held) && d.view.swapped().is_some();
    let rolled_back = (yields || d.standing() == Some(Standing::Latched))
        .then_some(d.view.model())
        .or(ledger
            .candidate
            .as_ref()
            .filter(|c| **c != ledger.stable && ledger.rollback_of.as_ref().is_some_and(|k| k.revision == **c)))
        .filter(|r| **r != d.view.baseline && **r != d.view.rollout.baseline.revision);
    let mut shrinks = Vec::new();
    for revision in d.view.leftovers().into_iter().chain(rolled_back) {
        let Some(w) = d.view.workload(revision) else { continue };
        let listed = route.backends.iter().any(|b| b.name == revision.0);
        let up = w.replicas.unwrap_or(0) > 0 && !w.autoscaled;
        // The revision before a promotion stays whole until its ref is removed.
        let kept = d.view.just_promoted() && listed && d.standing() == Some(Standing::Settled);
        if route.weight(revision) > 0 || kept {
            continue;
        }
        if !listed && Some(revision) != rolled_back {
            shrinks.push(Shrink::Delete(revision.clone()));
        } else if up {
            shrinks.push(Shrink::ToZero(revision.clone()));
        }
    }
    shrinks.extend(lowered(d));
    shrinks.extend(made_room(d));
    if shrinks.is_empty() {
        return;
    }
    match d.confirmed_for() {
        Some(on) if on >= DRAIN => d.plan.shrink = shrinks,
        Some(on) => d.wake(Span(DRAIN.0 - on.0)),
        None => {}
    }
}

/// The spec asks for fewer replicas of what serves. fp16 is never lowered.
fn lowered(d: &Draft<'_>) -> Option<Shrink> {
    let model = &d.view.rollout.model;
    let w = d.view.workload(&model.revision)?;
    let wanted = model.replicas.max(1);
    let more = !w.autoscaled && w.replicas.is_some_and(|have| have > wanted);
    let serves = d.standing() == Some(Standing::Settled) && d.view.serves(&model.revision);
    let fp16 = w.baseline || model.revision == d.view.baseline;
    (more && serves && !fp16).then(|| Shrink::To(model.revision.clone(), wanted))
}

/// Nothing of the rolled-back candidate runs any more.
pub(super) fn down(d: &Draft<'_>, revision: &Revision) -> bool {
    d.view.workload(revision).is_none_or(|w| w.autoscaled || w.replicas.unwrap_or(0) == 0)
}
