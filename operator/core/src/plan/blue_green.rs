//! Blue-green: everything is proven at weight 0, behind a preview host if there is one; then all traffic moves in one
//! write. Stable stays whole beside the candidate for `scale_down_delay`: quality, paired latency and the tripwire go on,
//! and the way back is one write. After that the candidate is promoted.

use super::{
    Attempt, PreviewWrite,
    canary::{self, Block, say_step},
    draft::{Draft, note, since},
    verdict::{self, BY_GATE},
    view::Standing,
};
use crate::{
    Span,
    evidence::Finding,
    observation::Preview,
    report::{Phase, Reason},
};

/// Everything that the switch asks was proven.
fn proven(d: &Draft<'_>) -> bool {
    d.plan.assessment.as_ref().is_some_and(|a| a.finding == Finding::Promote)
}

/// The switch waits for the verb `promote`: the spec wants it, or the wire was tripped before.
fn needs_a_person(d: &Draft<'_>, attempt: &Attempt) -> bool {
    let by_hand = d.view.blue_green().is_some_and(|b| !b.auto_promote);
    (by_hand || attempt.trips > 0) && !attempt.step_released
}

/// Time that a proven candidate spends waiting for a person, or under watch after its switch, is no time without a
/// verdict.
pub(super) fn needs_no_deadline(d: &Draft<'_>, attempt: &Attempt) -> bool {
    d.view.blue_green().is_some()
        && proven(d)
        && (d.switched() || d.trial_weight() == 0 && needs_a_person(d, attempt) && !attempt.tripped)
}

/// The verb `promote` in a trial.
pub(super) fn release(d: &mut Draft<'_>, auto_promote: bool) -> String {
    if d.switched() {
        return "void: it serves all traffic already, and is promoted after scaleDownDelay".into();
    }
    let Some(attempt) = d.plan.state.attempt.as_mut() else {
        return "void: its pods are not ready yet".into();
    };
    if auto_promote && attempt.trips == 0 {
        return "void: the switch comes by itself once everything is proven; `promote-full` switches at once".into();
    }
    attempt.step_released = true;
    "the switch comes once everything is proven".into()
}

/// Rule: the time beside the old revision is over and nothing spoke against the candidate.
pub(super) fn promote(d: &mut Draft<'_>) -> bool {
    if !d.switched() || !proven(d) || canary::halted(d).is_some() || !d.view.full(&d.view.rollout.model) {
        return false;
    }
    let delay = d.view.rollout.scale_down_delay;
    let on = d.watched_for().unwrap_or(Span(0));
    if on < delay {
        d.wake(Span(delay.0 - on.0));
        return false;
    }
    verdict::promote(d, BY_GATE, "nothing spoke against it for scaleDownDelay after the switch: the new stable");
    true
}

/// Rule: the switch, or what it waits for.
pub(super) fn advance(d: &mut Draft<'_>) -> bool {
    if let Some(block) = canary::halted(d) {
        if let Block::Because(phase, reason, text) = block {
            say_step(d, phase, reason, &text);
        }
        return false;
    }
    if d.switched() {
        watched(d);
        return false;
    }
    if !proven(d) {
        let missing = d.plan.assessment.as_ref().map(|a| a.missing.join("; ")).unwrap_or_default();
        say_step(d, Phase::Progressing, Reason::Preview, &format!("the switch waits for: {missing}"));
        return false;
    }
    if d.plan.state.attempt.as_ref().is_none_or(|a| needs_a_person(d, a)) {
        say_step(d, Phase::Paused, Reason::StepPaused, "everything is proven: the switch waits for the verb `promote`");
        return false;
    }
    let (Some(anchor), true) = (d.view.anchor(), d.view.full(&d.view.rollout.model)) else { return false };
    if d.view.barred(d.view.model()) {
        return false;
    }
    let model = d.view.model().clone();
    if let Some(attempt) = &mut d.state().attempt {
        attempt.step_released = false;
    }
    d.shift(&[(model.clone(), 100)], std::slice::from_ref(&anchor), None, |l| l.step = 1);
    let text = format!("everything is proven: all of the traffic; {anchor} stays whole for scaleDownDelay");
    d.event(false, Reason::Switched, format!("Deployment {model}"), text.clone());
    d.say(Phase::Progressing, note(Reason::Switched, format!("Deployment {model}"), text));
    true
}

/// After the switch.
fn watched(d: &mut Draft<'_>) {
    let stable = d.view.ledger().map(|l| l.stable.to_string()).unwrap_or_default();
    let text = if proven(d) {
        format!("serves all traffic; {stable} stays whole beside it for scaleDownDelay, then it is promoted")
    } else {
        let missing = d.plan.assessment.as_ref().map(|a| a.missing.join("; ")).unwrap_or_default();
        format!("serves all traffic, {stable} stays whole beside it; the promotion waits for: {missing}")
    };
    let model = format!("Deployment {}", d.view.model());
    let began = d.plan.state.attempt.as_ref().and_then(|a| a.step_since);
    d.say(Phase::Progressing, since(note(Reason::Switched, model, text), began));
}

/// The preview route: there while a candidate is on trial at weight 0, deleted afterwards.
pub(super) fn preview(d: &mut Draft<'_>) {
    let model = d.view.model().clone();
    let host = d.view.blue_green().and_then(|b| b.preview_host.clone());
    let behind = d.standing() == Some(Standing::Trial) && d.trial_weight() == 0 && d.view.serves(&model);
    let wanted = host.filter(|_| behind && d.plan.shift.is_none());
    let name = format!("HTTPRoute {}", preview_name(&d.view.rollout.name));
    d.plan.preview = match (&d.view.obs.preview, wanted) {
        (Preview::Missing, Some(host)) if !d.view.obs.namespace_terminating => {
            d.event(false, Reason::Preview, name, format!("{host} leads to {model}"));
            Some(PreviewWrite::Create { host, revision: model })
        }
        (Preview::Ours { hosts, backends }, Some(host)) => {
            (*hosts != [host] || *backends != [model.0]).then_some(PreviewWrite::Delete)
        }
        (Preview::Ours { .. }, None) => Some(PreviewWrite::Delete),
        (Preview::Foreign, Some(host)) => {
            let text = format!("belongs to somebody else: delete it, or there is no preview under {host}");
            d.aside(note(Reason::PreviewTaken, name, text));
            None
        }
        (Preview::Missing, _) | (Preview::Foreign, None) => None,
    };
}

/// Name of the preview route of a rollout.
pub fn preview_name(rollout: &str) -> String {
    format!("{rollout}-preview")
}
