//! fp16 comes first: taking the route over with it, and replacing it after an edit.

use super::{
    RouteWrite, Verdict, detours,
    draft::{Draft, SOON, Waiting, note, since},
    verdict::decision_id,
    view::Standing,
};
use crate::{
    Span,
    model::{LatchKey, Revision, RouteTarget},
    observation::{Ledger, RouteState},
    report::{Phase, Reason},
};

/// No ledger of ours is in the route yet (or any more): the baseline's pods, then the one write that takes the route
/// over with the baseline at 100 %.
pub(super) fn adopt(d: &mut Draft<'_>) {
    let rollout = d.view.rollout;
    let route = super::route::route_name(d);
    let route_object = format!("HTTPRoute {route}");
    if let (RouteTarget::Own { .. }, Some(found)) = (&rollout.route, d.view.route())
        && !found.owned
    {
        let text = "exists and was not created by this rollout: name it under route.httpRoute, or rename the rollout";
        d.say(Phase::Degraded, note(Reason::RouteInUse, route_object, text));
        return;
    }
    super::capacity::grow(d);
    if rollout.paused {
        let text = "spec.paused: the route stays as it is; set it to false to go on";
        d.say(Phase::Paused, note(Reason::Paused, route_object, text));
        return;
    }
    if !d.view.full(&rollout.baseline) {
        let now = d.now();
        let began = *d.state().waiting_since.get_or_insert(now);
        let baseline = &rollout.baseline.revision;
        let text = format!("fp16 comes first: {} (of {} wanted)", d.view.problems(baseline), rollout.baseline.replicas);
        let reason = if now - began >= rollout.progress_deadline {
            Reason::ProgressDeadlineExceeded
        } else {
            d.wake_at(began + rollout.progress_deadline);
            Reason::BaselineNotReady
        };
        let phase = if reason == Reason::BaselineNotReady { Phase::Pending } else { Phase::Degraded };
        d.waiting = Some(Waiting { reason, object: format!("Deployment {baseline}"), message: text.clone() });
        d.say(phase, since(note(reason, format!("Deployment {baseline}"), text), Some(began)));
        d.wake(Span::seconds(5));
        return;
    }
    write(d, &route_object);
}

fn write(d: &mut Draft<'_>, route_object: &str) {
    let ledger = first_ledger(d);
    let stable = &ledger.stable;
    let home = if d.view.serves(stable) { stable.clone() } else { d.view.baseline.clone() };
    let zeros: Vec<Revision> = ledger.candidate.iter().chain([stable]).cloned().collect();
    let backends = d.compose(&[(home.clone(), 100)], &zeros);
    let missing = matches!(d.view.obs.route, RouteState::Missing);
    if missing && d.view.obs.namespace_terminating {
        return;
    }
    d.remember(&ledger, &backends);
    d.plan.shift = Some(if missing {
        RouteWrite::Create { backends, ledger }
    } else {
        // Backends that are ours already (somebody removed the annotations) are no originals to go back to.
        let listed = d.view.route().map(|r| r.backends.as_slice()).unwrap_or_default();
        let ours = !listed.is_empty() && listed.iter().all(|b| d.view.workload(&Revision(b.name.clone())).is_some());
        let detours = detours::of_write(&d.view, &ledger, &backends);
        RouteWrite::Set { backends, ledger, detours, adopt: !ours, decision: None }
    });
    let text = format!("taken over, {home} at 100 %");
    d.event(false, Reason::Adopted, route_object, text.clone());
    d.say(Phase::Progressing, note(Reason::Adopted, route_object, text));
    d.wake(SOON);
}

/// The ledger of the first write: the pointers that status remembers where the route was lost, else the baseline's. A
/// verdict that was recorded for the spec's model stays a verdict.
fn first_ledger(d: &Draft<'_>) -> Ledger {
    let rollout = d.view.rollout;
    let foreign = d.view.route().and_then(|r| r.ledger.as_ref()).map_or(0, |l| l.epoch);
    let baseline = rollout.baseline.revision.clone();
    let mut ledger = Ledger {
        uid: rollout.uid.clone(),
        stable: baseline.clone(),
        candidate: None,
        attempt: 0,
        step: 0,
        epoch: foreign.saturating_add(1),
        rollback_of: None,
        decision: None,
    };
    match &d.plan.state.seen {
        Some(seen) => {
            let fallen = seen.rollback_of.as_ref().is_some_and(|(r, _)| *r == seen.stable);
            let stable = if d.view.serves(&seen.stable) && !fallen { seen.stable.clone() } else { baseline };
            ledger.candidate.clone_from(&seen.candidate);
            ledger.attempt = seen.attempt;
            ledger.epoch = foreign.max(seen.epoch).saturating_add(1);
            let latch = seen.rollback_of.as_ref().filter(|(r, _)| *r != rollout.baseline.revision);
            ledger.rollback_of = latch.map(|(r, n)| rollout.latch_key(r, *n));
            // With the route its verdicts are lost. A latch is remembered; what was on trial, undecided, or promoted and is
            // not there any more, is a new attempt.
            let latched = seen.rollback_of.as_ref().is_some_and(|(r, _)| ledger.candidate.as_ref() == Some(r));
            if !latched && ledger.candidate.as_ref() != Some(&stable) {
                ledger.candidate = None;
            }
            ledger.stable = stable;
        }
        None => {
            if let Some((key, rolled_back)) = recorded(d) {
                ledger.attempt = key.attempt;
                if rolled_back {
                    ledger.candidate = Some(key.revision.clone());
                    ledger.rollback_of = Some(key);
                }
            }
        }
    }
    ledger
}

/// The last attempt of the spec's model that a RolloutDecision is about, and whether it was rolled back.
fn recorded(d: &Draft<'_>) -> Option<(LatchKey, bool)> {
    let rollout = d.view.rollout;
    let decisions = &d.view.obs.decisions;
    if decisions.is_empty() || rollout.model.revision == rollout.baseline.revision {
        return None;
    }
    let is = |key: &LatchKey, verdict| decisions.contains(&decision_id(&rollout.name, key, verdict));
    (1..=64).rev().map(|n| rollout.latch_key(d.view.model(), n)).find_map(|key| {
        let fell = is(&key, Verdict::RolledBack);
        let ended = fell || is(&key, Verdict::Inconclusive) || is(&key, Verdict::Promoted);
        ended.then_some((key, fell))
    })
}

/// An edit of the baseline waits: a trial runs against the old one.
pub(super) fn edit_waits(d: &Draft<'_>) -> bool {
    let on_trial = d.standing() == Some(Standing::Trial);
    let mismatch = d.plan.state.attempt.as_ref().is_some_and(|a| a.mismatch.is_some());
    on_trial && !mismatch && d.view.baseline != d.view.rollout.baseline.revision
}

/// A revision that was rolled back as a candidate is now the spec's baseline: it is the reference by decree. The latch is
/// lifted by a write of its own that moves no traffic.
fn lift(d: &mut Draft<'_>, new: &Revision) -> bool {
    let Some(weights) = super::route::as_it_is(d) else { return false };
    d.shift(&weights, &[], None, |l| {
        l.attempt = l.attempt.saturating_add(1);
        l.rollback_of = None;
        l.candidate = None;
        l.step = 0;
    });
    let text = "it was rolled back and is now the baseline: its latch is lifted";
    d.event(false, Reason::Serving, format!("Deployment {new}"), text);
    d.say(Phase::Progressing, note(Reason::Serving, format!("Deployment {new}"), text));
    true
}

/// Rule: an edited baseline takes the old one's traffic once all of its pods are ready.
pub(super) fn replace(d: &mut Draft<'_>) -> bool {
    let new = d.view.rollout.baseline.revision.clone();
    if edit_waits(d) {
        let text = format!("its place stays with {} until the rollout ends", d.view.baseline);
        d.aside(note(Reason::BaselineEditWaits, format!("Deployment {new}"), text));
        return false;
    }
    if d.view.ledger().and_then(|l| l.rollback_of.as_ref()).is_some_and(|k| k.revision == new) {
        return lift(d, &new);
    }
    if d.view.baseline != new {
        let text = format!("replaces {}: {}", d.view.baseline, d.view.problems(&new));
        d.say(Phase::Progressing, note(Reason::BaselineNotReady, format!("Deployment {new}"), text));
        d.wake(Span::seconds(5));
        return false;
    }
    let Some(old) = d.view.ledger().map(|l| l.stable.clone()) else { return false };
    let was_baseline = d.view.workload(&old).is_some_and(|w| w.baseline);
    if old == new
        || old == *d.view.model()
        || !was_baseline
        || d.paused()
        || !super::route::at_home(d)
        || !d.view.full(&d.view.rollout.baseline)
    {
        return false;
    }
    let candidate: Vec<Revision> = d.view.ledger().and_then(|l| l.candidate.clone()).into_iter().collect();
    d.shift(&[(new.clone(), 100)], &[vec![old.clone()], candidate].concat(), None, |l| l.stable = new.clone());
    let text = format!("replaces {old} with all of its traffic");
    d.event(false, Reason::Serving, format!("Deployment {new}"), text.clone());
    d.say(Phase::Progressing, note(Reason::Serving, format!("Deployment {new}"), text));
    true
}
