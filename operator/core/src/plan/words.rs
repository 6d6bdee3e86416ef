//! What the report says where no rule had something more important.

use super::{
    attempt, canary, capacity,
    draft::{Draft, SOON, note, since},
    guard, route,
    view::Standing,
};
use crate::{
    Span,
    observation::RouteState,
    report::{Phase, Reason},
};

/// Every write is unaccepted for a moment: that is said only when it lasts.
const PATIENCE: Span = Span::seconds(5);

/// The route is not there or not ours to set: nothing moves, and it recovers by itself.
pub(super) fn no_route(d: &mut Draft<'_>) {
    let object = format!("HTTPRoute {}", route::route_name(d));
    let serving = d.plan.state.seen.is_some();
    let phase = if serving { Phase::Degraded } else { Phase::Pending };
    let found = match &d.view.obs.route {
        RouteState::Unknown => note(Reason::RouteMissing, object, "it could not be read; nothing moves until it can"),
        RouteState::Missing => note(Reason::RouteMissing, object, "it does not exist; nothing moves until it does"),
        RouteState::RuleMissing(why) => note(Reason::RuleMissing, object, why.clone()),
        RouteState::InUse(other) => {
            let text = format!("ModelRollout {other} holds it, one rollout per route: name another route");
            note(Reason::RouteInUse, object, text)
        }
        RouteState::GatewayMissing(gateway) => {
            note(Reason::GatewayMissing, format!("Gateway {gateway}"), "it does not exist; nothing moves until it does")
        }
        RouteState::Unsupported(why) => note(Reason::GatewayUnsupported, object, why.clone()),
        RouteState::Found(_) => return,
    };
    d.say(phase, found);
    d.wake(Span::seconds(5));
}

/// Notes and the headline of a rollout whose route is ours.
pub(super) fn finish(d: &mut Draft<'_>) {
    few_pods(d);
    if d.plan.shift.is_some() && d.said {
        // What the write did is said; what was before it no longer holds.
        return;
    }
    let brief = d.plan.state.waiting_since.is_some_and(|t| d.now() - t < PATIENCE);
    if d.waiting.as_ref().is_some_and(|w| w.reason == Reason::RouteNotAccepted) && brief {
        d.wake(SOON);
    } else if let Some(waiting) = d.waiting.clone() {
        let phase = match d.standing() {
            Some(Standing::Settled) if !d.view.just_promoted() => Phase::Serving,
            Some(Standing::Settled) => Phase::Promoting,
            Some(Standing::Latched) => Phase::RollingBack,
            Some(Standing::Held) => Phase::Holding,
            _ => Phase::Progressing,
        };
        let began = d.plan.state.waiting_since;
        d.say(phase, since(note(waiting.reason, waiting.object, waiting.message), began));
        d.wake(if waiting.reason == Reason::RouteNotAccepted { SOON } else { Span::seconds(5) });
    }
    let model = format!("Deployment {}", d.view.model());
    match d.standing() {
        Some(Standing::Settled) => settled(d, model),
        Some(Standing::Trial) => trial(d),
        Some(Standing::Latched) => {
            let attempt = d.view.ledger().map_or(0, |l| l.attempt);
            let down = capacity::down(d, d.view.model());
            let phase = if down { Phase::RolledBack } else { Phase::RollingBack };
            let text = format!("attempt {attempt} was rolled back: a new model or the verb `retry` goes on");
            d.say(phase, since(note(Reason::RolledBack, model, text), decided_at(d)));
        }
        Some(Standing::Held) if d.view.reported() => {
            let text = "its A/B test ended: weight 0; `promote` promotes it, a new model or the verb `retry` goes on";
            d.say(Phase::Holding, since(note(Reason::Reported, model, text), decided_at(d)));
        }
        Some(Standing::Held) => {
            let text = "undecided at the gate's deadline: weight 0; a new model or the verb `retry` goes on";
            d.say(Phase::Holding, since(note(Reason::Inconclusive, model, text), decided_at(d)));
        }
        Some(Standing::Next) => next(d, model),
        None => {}
    }
}

fn decided_at(d: &Draft<'_>) -> Option<crate::Time> {
    d.view.ledger()?.decision.as_ref().map(|decision| decision.at)
}

fn settled(d: &mut Draft<'_>, model: String) {
    let listed = |r: &&crate::model::Revision| d.view.weights().contains_key(r.as_str());
    let kept: Vec<String> = d.view.leftovers().into_iter().filter(listed).map(ToString::to_string).collect();
    if !kept.is_empty() && d.view.just_promoted() {
        let text = format!("promoted; {} is kept for scaleDownDelay", kept.join(", "));
        let began = d.plan.state.confirmed_at;
        d.say(Phase::Promoting, since(note(Reason::Promoted, model, text), began));
    } else {
        let text = format!("serves all traffic, as the spec asks{}", guard::words(d));
        d.otherwise(Phase::Serving, note(Reason::Serving, model, text));
    }
}

fn trial(d: &mut Draft<'_>) {
    attempt::describe(d);
    let model = format!("Deployment {}", d.view.model());
    let text = if d.plan.state.attempt.is_some() { "the next tick decides" } else { "its pods come up" };
    d.otherwise(Phase::Progressing, note(Reason::Step, model, text));
    if let Some(attempt) = &d.plan.state.attempt
        && attempt.mismatch.is_none()
    {
        let next = attempt.last_tick + d.view.rollout.gate.interval;
        d.wake_at(next);
    }
}

fn next(d: &mut Draft<'_>, model: String) {
    if d.paused() {
        let text = "spec.paused or the verb `pause`: the new model waits";
        d.say(Phase::Paused, note(Reason::Paused, model, text));
    } else if canary::may_come(d) {
        d.otherwise(Phase::Progressing, note(Reason::CandidateNotReady, model, "its pods come up"));
    } else {
        let before: Vec<String> = d.view.leftovers().iter().map(ToString::to_string).collect();
        let text = if before.is_empty() {
            "comes when the traffic is where it belongs and fp16 is ready".to_owned()
        } else {
            format!("comes when the pods of {} are gone", before.join(", "))
        };
        d.say(Phase::Progressing, note(Reason::CandidateNotReady, model, text));
        d.wake(Span::seconds(5));
    }
}

fn few_pods(d: &mut Draft<'_>) {
    let rollout = d.view.rollout;
    for serving in [&rollout.baseline, &rollout.model] {
        if d.view.wanted(serving) < 3 {
            let text = "fewer than 3 replicas: one bad node can decide, and one lost pod takes much of the capacity";
            d.aside(note(Reason::FewPods, format!("Deployment {}", serving.revision), text));
        }
    }
}
