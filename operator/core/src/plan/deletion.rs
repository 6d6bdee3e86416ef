//! The custom resource goes: the route goes back (or stays on a revision that is left serving), then the finalizer.

use super::{
    RouteWrite, Shrink,
    draft::{Draft, SOON, note, since},
    view::DRAIN,
};
use crate::{
    Span,
    model::{DeletionPolicy, Revision},
    observation::{Detour, Detours, Ledger, Route, RouteState},
    report::{Phase, Reason},
};

pub(super) fn run(d: &mut Draft<'_>) {
    d.state().attempt = None;
    let name = d.view.rollout.name.clone();
    let object = format!("ModelRollout {name}");
    if !d.view.obs.finalizer {
        d.plan.finalizer = false;
        d.say(Phase::RollingBack, note(Reason::Deleting, object, "nothing is left to do"));
        return;
    }
    if d.view.obs.namespace_terminating {
        d.plan.finalizer = false;
        d.say(Phase::RollingBack, note(Reason::Deleting, object, "the namespace goes, and everything with it"));
        return;
    }
    match &d.view.obs.route {
        RouteState::Unknown => {
            d.wake(SOON);
            d.say(Phase::RollingBack, note(Reason::Deleting, object, "the route cannot be read; it is tried again"));
        }
        RouteState::Found(route) if d.view.ledger().is_some() => let_go(d, route, &object),
        _ => finish(d, &object),
    }
}

/// The route holds our annotations.
fn let_go(d: &mut Draft<'_>, route: &Route, object: &str) {
    let policy = d.view.rollout.deletion_policy;
    if policy == DeletionPolicy::Delete && route.owned {
        d.plan.shift = Some(RouteWrite::Delete);
        released(d, object, "its own route is deleted");
        return;
    }
    if asleep(d, route, object) {
        return;
    }
    if policy == DeletionPolicy::Delete && route.originals_ready == Some(true) {
        d.plan.shift = Some(RouteWrite::Restore);
        released(d, object, "the route goes back to its original backends");
        return;
    }
    // The route stays on the revision that serves: it alone is listed, and it outlives us. Where none may take all of
    // the traffic the weights stay as they are.
    let on = d.view.home(100).or_else(|| heaviest(d));
    let Some(on) = on else {
        d.plan.shift = Some(RouteWrite::Release);
        released(d, object, "the route is let go as it is: no revision of ours is in it");
        return;
    };
    let alone = d.view.weights().len() == 1 && d.view.weight(&on) == 100;
    if !alone && d.view.home(100).as_ref() == Some(&on) {
        let weights = [(on.clone(), 100)];
        alone_at(d, weights.into());
        d.say(
            Phase::RollingBack,
            note(Reason::Deleting, object, format!("all traffic to {on}, which is left serving")),
        );
        return;
    }
    d.plan.shift = Some(RouteWrite::Release);
    d.plan.shrink.push(Shrink::Orphan(on.clone()));
    let why = match policy {
        DeletionPolicy::Orphan => "deletionPolicy is Orphan",
        DeletionPolicy::Delete => "the route's original backends have no ready endpoints",
    };
    let text = format!("left serving: {why}; its Deployment and Service are yours now");
    d.event(true, Reason::Orphaned, format!("Deployment {on}"), text);
    released(d, object, &format!("the route is let go, {on} goes on serving"));
}

/// All traffic to where it is left; derived rules go to sleep.
fn alone_at(d: &mut Draft<'_>, backends: Vec<(Revision, u32)>) {
    let Some(old) = d.view.ledger() else { return };
    let (epoch, rules) = (old.epoch.saturating_add(1), d.view.route().map(|r| r.detours.rules.clone()));
    let ledger = Ledger { epoch, step: 0, ..old.clone() };
    d.remember(&ledger, &backends);
    let rules = rules.unwrap_or_default().iter().map(|rule| Detour::dormant(&rule.name)).collect();
    let detours = Detours { mark: None, rules };
    d.plan.shift = Some(RouteWrite::Set { backends, ledger, detours, adopt: false, decision: None });
}

/// Derived rules are put to sleep before they are removed, for as long as a gateway may need to learn of it
/// ([`crate::observation::DetourState`]); true while that goes on. It does not wait for an acceptance: a deletion must end
/// without a gateway, too.
fn asleep(d: &mut Draft<'_>, route: &Route, object: &str) -> bool {
    let awake = route.detours.mark.is_some() || !route.detours.rules.iter().all(Detour::sleeps);
    match d.view.home(100) {
        Some(on) if awake => alone_at(d, vec![(on, 100)]),
        Some(_) if !route.detours.rules.is_empty() => {
            let now = d.now();
            let since = *d.state().waiting_since.get_or_insert(now);
            if now - since >= DRAIN {
                return false;
            }
            d.wake(Span(DRAIN.0 - (now - since).0));
        }
        // Where nobody can serve, or no rule is there, nothing is lost.
        _ => return false,
    }
    d.say(
        Phase::RollingBack,
        note(Reason::Deleting, object, "the rules derived from yours go when no request takes them"),
    );
    true
}

fn released(d: &mut Draft<'_>, object: &str, text: &str) {
    let now = d.now();
    d.state().released_at = Some(now);
    d.event(false, Reason::Deleting, object, text);
    d.say(Phase::RollingBack, note(Reason::Deleting, object, text));
    d.wake(SOON);
}

/// The backend of ours with the most traffic.
fn heaviest(d: &Draft<'_>) -> Option<Revision> {
    let ours = |name: &str| d.view.workload(&Revision(name.to_owned())).is_some();
    let weights = d.view.weights();
    let best = weights.iter().filter(|(name, w)| **w > 0 && ours(name)).max_by_key(|(_, w)| **w)?;
    Some(Revision((*best.0).to_owned()))
}

/// The route is not (or no longer) ours: pods go with their owner, after a drain where traffic may still be on its way.
fn finish(d: &mut Draft<'_>, object: &str) {
    let now = d.now();
    // A crash between letting go and orphaning: what the route still names is left serving.
    if d.plan.state.released_at.is_some() || d.plan.state.seen.is_some() {
        let weights = d.view.weights();
        for revision in d.view.obs.workloads.keys() {
            if weights.get(revision.as_str()).is_some_and(|w| *w > 0) {
                d.plan.shrink.push(Shrink::Orphan(revision.clone()));
            }
        }
    }
    let began = match d.plan.state.released_at {
        Some(at) => Some(at.min(now)),
        None => (d.plan.state.seen.is_some() && !d.view.obs.workloads.is_empty()).then_some(now),
    };
    d.state().released_at = began;
    if let Some(began) = began
        && now - began < DRAIN
    {
        d.wake(Span(DRAIN.0 - (now - began).0));
        let text = "requests that are under way end before the pods go";
        d.say(Phase::RollingBack, since(note(Reason::Deleting, object, text), Some(began)));
        return;
    }
    d.plan.finalizer = false;
    d.say(Phase::RollingBack, note(Reason::Deleting, object, "done: the finalizer goes"));
}
