//! What people ask for, acted on once per id.

use super::{
    draft::{Draft, note, shortened},
    verdict,
    view::Standing,
};
use crate::{
    Span,
    evidence::codec::Fnv,
    model::Revision,
    observation::{Verb, VerbRequest},
    report::{Phase, Reason},
};

impl Verb {
    /// The verb as in annotations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::PromoteFull => "promote-full",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
            Self::Retry => "retry",
        }
    }

    /// Safety first: what takes traffic away goes before what gives it.
    fn rank(self) -> u8 {
        match self {
            Self::Rollback => 0,
            Self::Abort => 1,
            Self::Pause => 2,
            Self::Retry => 3,
            Self::PromoteFull => 4,
            Self::Promote => 5,
            Self::Resume => 6,
        }
    }
}

impl VerbRequest {
    /// What the state remembers of an id.
    pub(super) fn mark(&self) -> String {
        let hash = Fnv::default().bytes(self.verb.name().as_bytes()).bytes(b"\0").bytes(self.id.as_bytes()).finish();
        format!("{hash:016x}")
    }
}

/// Answers what needs no write, and keeps the first that does for the rules.
pub(super) fn read(d: &mut Draft<'_>) {
    let mut requests: Vec<&VerbRequest> = d.view.obs.verbs.iter().collect();
    requests.sort_by_key(|r| (r.verb.rank(), r.id.clone()));
    for request in requests {
        if d.plan.state.verbs.contains(&request.mark()) {
            d.answer(request, "done already");
        } else if let Some(void) = void(d, request) {
            d.answer(request, void);
        } else if let Some(outcome) = at_once(d, request) {
            d.answer(request, outcome);
        } else if d.asked.is_none() {
            d.asked = Some(request.clone());
        }
    }
}

/// Void unless the person saw what the route says: revision and attempt of the candidate, or of the one that is coming
/// up and not in the route yet (then also under the number of the attempt before it).
fn void(d: &Draft<'_>, request: &VerbRequest) -> Option<String> {
    let Some(ledger) = d.view.ledger() else {
        return Some("void: the route is not ours yet, nothing can be moved; edit the spec instead".into());
    };
    let candidate =
        ledger.candidate.as_ref().is_some_and(|c| c.0 == request.revision) && request.attempt == ledger.attempt;
    let key = d.view.key();
    let coming = matches!(d.standing(), Some(Standing::Next | Standing::Settled))
        && key.revision.0 == request.revision
        && (request.attempt == key.attempt || request.attempt == ledger.attempt);
    if candidate || coming {
        return None;
    }
    let at = ledger.candidate.as_ref().map_or("no candidate".to_owned(), Revision::to_string);
    let asked = shortened(&request.revision, 64);
    Some(format!(
        "void: asked about {asked} attempt {}, the route is at {at} attempt {}",
        request.attempt, ledger.attempt
    ))
}

/// Acts on a verb that needs no write of the route, or says why it does nothing. `None`: a rule must write.
fn at_once(d: &mut Draft<'_>, request: &VerbRequest) -> Option<String> {
    let standing = d.standing()?;
    let ends = |what: &str| Some(format!("void: {what}"));
    match (request.verb, standing) {
        (Verb::Rollback, Standing::Settled) if d.view.ledger()?.stable == d.view.baseline => {
            ends("fp16 is what serves")
        }
        (Verb::Rollback, Standing::Latched) if d.view.ledger()?.stable == d.view.baseline => {
            ends("it was rolled back already, fp16 serves")
        }
        (Verb::Abort, Standing::Settled) => ends("nothing is on trial; `rollback` goes to fp16"),
        (Verb::Abort, Standing::Latched) => ends("it was rolled back already"),
        (Verb::Abort, Standing::Held) => ends("it is at weight 0 already; a new model or `retry` goes on"),
        (Verb::Rollback | Verb::Abort, _) | (Verb::Retry, Standing::Trial | Standing::Latched | Standing::Held) => None,
        (Verb::Retry, Standing::Settled) => ends("it serves already"),
        (Verb::Retry, Standing::Next) => ends("its first attempt has not begun"),
        (Verb::Resume, _) => {
            d.state().paused = false;
            Some(if d.view.rollout.paused {
                "the verb's pause is over, spec.paused still holds it: set it to false".into()
            } else {
                "goes on".into()
            })
        }
        (_, Standing::Settled) => ends("nothing is on trial"),
        (_, Standing::Latched) => ends("it was rolled back: a new model or `retry` goes on"),
        (Verb::Promote | Verb::PromoteFull, Standing::Held) if d.view.reported() => refuse_promotion(d),
        (_, Standing::Held) => ends("it was found inconclusive: a new model or `retry` goes on"),
        (Verb::Pause, Standing::Trial | Standing::Next) => {
            d.state().paused = true;
            Some("stops at the current weight; rollback, abort and the tripwire stay armed".into())
        }
        (Verb::Promote, Standing::Next) => ends("it has not begun"),
        (Verb::Promote, Standing::Trial) => Some(release(d)),
        (Verb::PromoteFull, Standing::Next) => ends("its pods are not ready yet"),
        (Verb::PromoteFull, Standing::Trial) => refuse_promotion(d),
    }
}

fn release(d: &mut Draft<'_>) -> String {
    if let Some(blue_green) = d.view.blue_green() {
        return super::blue_green::release(d, blue_green.auto_promote);
    }
    let step = d.view.step_at(d.trial_weight());
    let pauses = step.checked_sub(1).and_then(|i| d.view.steps().get(i)).is_some_and(|s| s.pause);
    let Some(attempt) = d.plan.state.attempt.as_mut().filter(|_| pauses) else {
        return "void: the current step has no pause to end; `promote-full` goes to 100 % at once".into();
    };
    attempt.step_released = true;
    "the pause of this step is over; time and evidence still count".into()
}

/// Why `promote-full` cannot be done now; `None`: it can.
fn refuse_promotion(d: &Draft<'_>) -> Option<String> {
    let model = &d.view.rollout.model;
    if let Some(why) = d.plan.state.attempt.as_ref().and_then(|a| a.mismatch.as_ref()) {
        return Some(format!("refused: the models cannot be compared ({why}), so they cannot replace each other"));
    }
    // Pods that its step has not asked for yet come with the verb.
    let coming = d.view.staged() && d.standing() == Some(Standing::Trial) && d.view.posted() < d.view.wanted(model);
    if (!d.view.full(model) && !coming) || d.view.barred(&model.revision) {
        let problems = d.view.problems(&model.revision);
        return Some(format!("refused: 100 % needs {} ready pods, {problems}; ask again then", d.view.wanted(model)));
    }
    None
}

/// Rule: `rollback` and `abort`, in any phase.
pub(super) fn stop(d: &mut Draft<'_>) -> bool {
    let Some(request) = d.asked.clone().filter(|r| matches!(r.verb, Verb::Rollback | Verb::Abort)) else {
        return false;
    };
    let by = shortened(&request.by, 64);
    let to_fp16 = request.verb == Verb::Rollback && d.view.fits(&d.view.baseline);
    let target = if to_fp16 { Some(d.view.baseline.clone()) } else { d.view.home(100) };
    // Nothing was proven about the revision that serves: without fp16 there is nowhere to go back to.
    let stuck =
        target.is_none() || (request.verb == Verb::Rollback && !to_fp16 && d.standing() != Some(Standing::Trial));
    if stuck {
        let baseline = d.view.baseline.clone();
        let text = format!("`{}` by {by} waits for a ready pod: {}", request.verb.name(), d.view.problems(&baseline));
        d.say(Phase::Degraded, note(Reason::NoBackend, format!("Deployment {baseline}"), text));
        return true;
    }
    let (reason, words) = match (request.verb, to_fp16) {
        (Verb::Abort, _) => (Reason::Aborted, format!("aborted by {by}")),
        (_, true) => (Reason::RolledBackByHand, format!("rolled back to fp16 by {by}")),
        _ => (Reason::RolledBackByHand, format!("rolled back by {by}; fp16 has no ready pod, so to stable")),
    };
    verdict::roll_back(d, &verdict::Fall { reason, words, by, to_fp16 });
    let target = target.map(|r| r.to_string()).unwrap_or_default();
    d.answer(&request, format!("all traffic to {target}; a new model or `retry` goes on"));
    true
}

/// Rule: `retry`: a new attempt. The write that lifts the latch raises no weight.
pub(super) fn retry(d: &mut Draft<'_>) -> bool {
    let Some(request) = d.asked.clone().filter(|r| r.verb == Verb::Retry) else { return false };
    let Some(anchor) = d.view.home(100) else { return false };
    let model = d.view.model().clone();
    let attempt = d.view.ledger().map_or(1, |l| l.attempt.saturating_add(1));
    d.state().attempt = None;
    d.state().paused = false;
    d.shift(&[(anchor, 100)], std::slice::from_ref(&model), None, |l| {
        l.attempt = attempt;
        l.step = 0;
        l.rollback_of = None;
    });
    d.answer(&request, format!("attempt {attempt} begins with fresh evidence"));
    let text = format!("attempt {attempt} begins, asked for by {}", shortened(&request.by, 64));
    d.say(Phase::Progressing, note(Reason::Preflight, format!("Deployment {model}"), text));
    true
}

/// Rule: `promote-full`: to 100 % without the missing evidence, recorded with who asked; and `promote` after the report of
/// an A/B test.
pub(super) fn promote_full(d: &mut Draft<'_>) -> bool {
    let asked = |r: &VerbRequest| matches!(r.verb, Verb::PromoteFull | Verb::Promote);
    let Some(request) = d.asked.clone().filter(asked) else { return false };
    let model = &d.view.rollout.model;
    if !d.view.full(model) {
        let (wanted, problems) = (d.view.wanted(model), d.view.problems(&model.revision));
        d.recruits = Some(wanted);
        let by = shortened(&request.by, 64);
        let text = format!("`{}` by {by} waits for {wanted} ready pods: {problems}", request.verb.name());
        d.aside(note(Reason::CandidateNotReady, format!("Deployment {}", model.revision), text));
        d.wake(Span::seconds(5));
        return false;
    }
    let (words, answer) = if d.view.reported() {
        ("promoted after the report of its A/B test", "100 % now; the report is in the decision's record")
    } else {
        (
            "promoted at once, without the missing evidence",
            "100 % now; the missing evidence is in the decision's record",
        )
    };
    verdict::promote(d, &shortened(&request.by, 64), words);
    d.answer(&request, answer);
    true
}
