//! The route as a fact: was our last write accepted, did somebody else change the weights, is the traffic where it
//! belongs.

use super::{
    Seen,
    detours::{self, Order},
    draft::{Draft, SOON, note, since},
    view::{DRAIN, Standing},
};
use crate::{
    Span,
    model::Revision,
    report::{Phase, Reason},
};
use std::collections::BTreeMap;

/// Weights changed by hand are put back at most this often per minute: then we report and fight no more.
const REVERTS: usize = 3;
const MINUTE: Span = Span::seconds(60);

/// Takes note of an acceptance and of weights that are not ours.
pub(super) fn look(d: &mut Draft<'_>) {
    let (Some(route), Some(ledger)) = (d.view.route(), d.view.ledger()) else { return };
    let now = d.now();
    let known = d.plan.state.seen.as_ref().is_some_and(|s| s.epoch == ledger.epoch);
    if known {
        let ours = d.plan.state.seen.as_ref().map(|s| named(&s.weights)).unwrap_or_default();
        d.by_hand = ours != d.view.weights();
    } else if well_formed(d) {
        let weights = d.view.backends();
        d.state().seen = Some(Seen::of(ledger, weights));
    } else {
        d.by_hand = true;
    }
    if route.accepted && d.plan.state.confirmed_epoch != ledger.epoch {
        let state = d.state();
        state.confirmed_epoch = ledger.epoch;
        state.confirmed_at = Some(now);
    }
    // A clock that runs ahead of ours (a restored backup, a jump) must not end a window early or never.
    if d.plan.state.confirmed_at.is_some_and(|t| t > now) {
        d.state().confirmed_at = Some(now);
    }
    d.state().reverts.retain(|t| *t <= now && now - *t < MINUTE);
}

fn named(weights: &[(Revision, u32)]) -> BTreeMap<&str, u64> {
    let mut by_name = BTreeMap::new();
    for (revision, weight) in weights {
        *by_name.entry(revision.as_str()).or_insert(0) += u64::from(*weight);
    }
    by_name
}

/// Could these weights be a write of ours that we do not remember (a crash after it, a wiped status)?
fn well_formed(d: &Draft<'_>) -> bool {
    let weights = d.view.weights();
    let (Some(ledger), trial) = (d.view.ledger(), d.standing() == Some(Standing::Trial)) else { return false };
    let fits = |(name, weight): (&&str, &u64)| {
        let revision = Revision((*name).to_owned());
        let home = revision == ledger.stable || revision == d.view.baseline;
        let step = d.view.steps().iter().any(|s| u64::from(s.weight) == *weight);
        *weight == 0 || home || (trial && revision == *d.view.model() && step)
    };
    weights.len() <= 8 && weights.values().sum::<u64>() == 100 && weights.iter().all(fits)
}

/// The candidate's weight that is in order now: what it has, unless its trial gives it none.
fn candidate_weight(d: &Draft<'_>) -> u32 {
    let Some(ledger) = d.view.ledger() else { return 0 };
    let attempt = d.plan.state.attempt.as_ref();
    let halted = attempt.is_some_and(|a| a.tripped || a.mismatch.is_some());
    if d.standing() != Some(Standing::Trial) || halted {
        return 0;
    }
    // What serves all traffic does not need stable beside it.
    let alone = d.switched() && d.view.serves(d.view.model());
    if d.view.anchor().as_ref() != Some(&ledger.stable) && !alone {
        return 0;
    }
    let seen = d.plan.state.seen.as_ref().filter(|s| s.epoch == ledger.epoch);
    let now = on_trial(d, d.view.weight(d.view.model()));
    if !d.by_hand {
        return now;
    }
    let Some(had) = seen.and_then(|s| s.weights.iter().find(|(r, _)| r == d.view.model())).map(|(_, w)| *w) else {
        return 0;
    };
    if had <= now {
        return if d.view.serves(d.view.model()) { had } else { 0 };
    }
    // What was taken away by hand comes back as a step of the list that the pods can carry, or not at all.
    let step = on_trial(d, d.view.steps().iter().map(|s| s.weight).filter(|w| *w <= had).max().unwrap_or(0));
    let comes = ledger.step > 0 && d.view.carries(&d.view.rollout.model, step) && !d.view.barred(d.view.model());
    if comes { step } else { 0 }
}

/// A weight of the candidate as the strategy allows it on trial: after an edit of the strategy the one that was reached may be too much.
fn on_trial(d: &Draft<'_>, weight: u32) -> u32 {
    match (d.view.blue_green(), weight) {
        (Some(_), 100) => 100,
        (Some(_), _) => 0,
        (None, 0..=99) => weight,
        (None, _) => d.view.steps().last().map_or(0, |s| s.weight.min(99)),
    }
}

/// The weights that are in order now; `None`: nobody can serve.
fn in_order(d: &Draft<'_>) -> Option<Vec<(Revision, u32)>> {
    let weight = candidate_weight(d);
    if weight == 100 {
        return Some(vec![(d.view.model().clone(), 100)]);
    }
    let anchor = d.view.home(100 - weight)?;
    let mut weights = vec![(anchor, 100 - weight)];
    if weight > 0 {
        weights.push((d.view.model().clone(), weight));
    }
    Some(weights)
}

/// The weights of a write that moves no traffic, where it is where it belongs.
pub(super) fn as_it_is(d: &Draft<'_>) -> Option<Vec<(Revision, u32)>> {
    in_order(d).filter(|_| at_home(d))
}

/// Traffic is where it belongs.
pub(super) fn at_home(d: &Draft<'_>) -> bool {
    let there = in_order(d).is_some_and(|weights| positive(d) == named(&weights)) && !d.by_hand;
    there && detours::order(&d.view) == Order::Kept
}

fn positive<'a>(d: &Draft<'a>) -> BTreeMap<&'a str, u64> {
    d.view.weights().into_iter().filter(|(_, w)| *w > 0).collect()
}

/// Rule: traffic that is not where it belongs goes there. Ends the rules where it writes, and where nobody can serve.
pub(super) fn bring_home(d: &mut Draft<'_>) -> bool {
    let Some(ledger) = d.view.ledger() else { return false };
    let name = route_name(d);
    let Some(weights) = in_order(d) else {
        let text = "neither stable nor fp16 has a ready endpoint: the route stays as it is until one has";
        d.say(Phase::Degraded, note(Reason::NoBackend, format!("HTTPRoute {name}"), text));
        d.wake(SOON);
        return true;
    };
    if weights.iter().all(|(r, w)| *w < 100 || r != d.view.model()) || d.standing() == Some(Standing::Settled) {
        lost_stable(d, &ledger.stable);
    }
    let there = positive(d) == named(&weights) && !d.by_hand;
    let order = detours::order(&d.view);
    if there && order == Order::Kept {
        return false;
    }
    // A rule wakes once the gateway knows its backends.
    let wakes = there && order == Order::Asleep;
    if wakes && d.confirmed_for().is_none_or(|on| on < SOON) {
        d.wake(SOON);
        return false;
    }
    let stray = stray(d);
    // A rule that the API server stores in another form than it was written must not be written for ever.
    if !wakes && (there || d.by_hand && stray.is_none()) && !may_revert(d, &name, there) {
        return false;
    }
    let zeros: Vec<Revision> = ledger.candidate.iter().cloned().collect();
    let step = weights.iter().find(|(r, _)| r == d.view.model()).map_or(0, |(_, w)| d.view.step_at(*w));
    let trial = d.standing() == Some(Standing::Trial);
    let withdrawn = stray.clone().filter(|_| !d.by_hand);
    d.shift(&weights, &zeros, None, |l| {
        if trial {
            l.step = step as u32;
        }
        if withdrawn.is_some() && l.candidate == withdrawn {
            l.candidate = None;
            l.step = 0;
        }
    });
    if let Some(revision) = withdrawn {
        let text = "the spec no longer asks for it: its traffic goes back without a verdict";
        d.event(false, Reason::Withdrawn, format!("Deployment {revision}"), text);
        d.say(Phase::RollingBack, note(Reason::Withdrawn, format!("Deployment {revision}"), text));
    }
    true
}

/// A revision that carries traffic though the spec asks for another one and no verdict was made.
fn stray(d: &Draft<'_>) -> Option<Revision> {
    let candidate = d.view.ledger()?.candidate.clone()?;
    let gone = matches!(d.standing(), Some(Standing::Settled | Standing::Next))
        && candidate != *d.view.model()
        && candidate != d.view.ledger()?.stable
        && candidate != d.view.baseline;
    (gone && d.view.weight(&candidate) > 0).then_some(candidate)
}

fn may_revert(d: &mut Draft<'_>, name: &str, rules: bool) -> bool {
    let object = format!("HTTPRoute {name}");
    let (reason, text) = if rules {
        (Reason::RulesChanged, "the rules derived from yours are not what your rule and the spec ask for")
    } else {
        let text = "somebody else changed the weights of our rule; change the spec or use a verb instead";
        (Reason::WeightsChanged, text)
    };
    let now = d.now();
    let done = d.plan.state.reverts.len();
    let revert = done < REVERTS;
    if revert {
        d.state().reverts.push(now);
        let last = if done + 1 == REVERTS { ", for the last time in this minute" } else { "" };
        d.event(!rules, reason, object.clone(), format!("{text}: they are put back{last}"));
    } else if let Some(first) = d.plan.state.reverts.first().copied() {
        d.wake_at(first + MINUTE);
    }
    let first = d.plan.state.reverts.first().copied();
    let changed = since(note(reason, object, text), first);
    if revert {
        d.aside(changed);
    } else {
        d.say(Phase::Degraded, changed);
    }
    revert
}

fn lost_stable(d: &mut Draft<'_>, stable: &Revision) {
    if d.view.anchor().as_ref() == Some(stable) {
        return;
    }
    let text = format!("it cannot serve ({}): its traffic is on fp16 until it has been back", d.view.problems(stable));
    let object = format!("Deployment {stable}");
    if d.view.weight(stable) > 0 {
        d.event(true, Reason::StableLost, object.clone(), text.clone());
    }
    d.say(Phase::Degraded, note(Reason::StableLost, object, text));
    d.wake(Span::seconds(5));
}

/// Rule: what nothing needs any more leaves the route: refs (that of the revision before a promotion after
/// `scaleDownDelay`), and derived rules that sleep. A candidate that was withdrawn before it was judged is forgotten: naming
/// it again is a new attempt.
pub(super) fn tidy(d: &mut Draft<'_>) -> bool {
    let (Some(ledger), Some(route), Some(weights)) = (d.view.ledger(), d.view.route(), in_order(d)) else {
        return false;
    };
    if !at_home(d) {
        return false;
    }
    let latched = |c: &Revision| ledger.rollback_of.as_ref().is_some_and(|k| k.revision == *c);
    let forget = d.standing() == Some(Standing::Settled)
        && ledger.candidate.as_ref().is_some_and(|c| *c != ledger.stable && !latched(c));
    let zeros: Vec<Revision> = ledger.candidate.iter().filter(|_| !forget).cloned().collect();
    let backends = d.compose(&weights, &zeros);
    let stays = |name: &str| backends.iter().any(|(r, _)| r.0 == name);
    let stale: Vec<&str> = route.backends.iter().map(|b| b.name.as_str()).filter(|n| !stays(n)).collect();
    let (refs, rules) = (!stale.is_empty() || forget, detours::leftovers(&d.view));
    if !refs && !rules {
        return false;
    }
    // A ref without a Service keeps the gateway from accepting the route: it does not wait for an acceptance.
    let dead = stale.iter().any(|n| !d.view.workload(&Revision((*n).to_owned())).is_some_and(|w| w.service));
    let kept = if d.view.just_promoted() { d.view.rollout.scale_down_delay.max(SOON) } else { SOON };
    let on = d.confirmed_for();
    if !dead {
        let (Some(on), false) = (on, matches!(d.standing(), Some(Standing::Next | Standing::Trial))) else {
            return false;
        };
        let wait = if rules { DRAIN } else { kept };
        if on < wait {
            d.wake(Span(wait.0 - on.0));
            return false;
        }
    }
    let name = format!("HTTPRoute {}", route_name(d));
    if refs && (dead || on.is_some_and(|on| on >= kept)) {
        d.shift(&weights, &zeros, None, |l| {
            if forget {
                l.candidate = None;
                l.step = 0;
            }
        });
        d.aside(note(Reason::Serving, name, "refs that nothing needs any more leave it"));
    } else {
        d.shift_to(d.view.backends(), None, |_| ());
        d.aside(note(Reason::Serving, name, "rules that nothing needs any more leave it"));
    }
    if rules
        && on.is_some_and(|on| on >= DRAIN)
        && let Some(write) = &mut d.plan.shift
    {
        detours::without_leftovers(&d.view, write);
    }
    true
}

/// Name of the HTTPRoute.
pub(super) fn route_name(d: &Draft<'_>) -> String {
    d.view.rollout.route.route_name(&d.view.rollout.name).to_owned()
}
