//! The way up: from weight 0 through the steps to the promotion, and the deadlines that end it.

use super::{
    detours,
    draft::{Draft, Waiting, note, since},
    route,
    verdict::{self, BY_DEADLINE, BY_GATE, Fall},
    view::{Standing, View},
};
use crate::{
    Span,
    evidence::{Finding, OnInconclusive, OnNoTraffic, SignalKind},
    model::{CanaryStep, Pace, Revision, Strategy},
    report::{Phase, Reason},
};

/// Shortest block of the rollback tests (docs/verdict.md): with less, a raise would rest on nothing.
const BLOCK: Span = Span::seconds(10);

/// What keeps the candidate at its weight.
pub(super) enum Block {
    /// Said elsewhere, or nothing to say.
    Quiet,
    /// Phase, reason, words.
    Because(Phase, Reason, String),
}

/// Rule: everything was proven at the last step.
pub(super) fn promote(d: &mut Draft<'_>) -> bool {
    let steps = d.view.steps();
    let at_last = d.trial_weight() > 0 && d.view.step_at(d.trial_weight()) >= steps.len();
    let proven = d.plan.assessment.as_ref().is_some_and(|a| a.finding == Finding::Promote);
    if !(at_last && proven) || blocked(d).is_some() {
        return false;
    }
    if !d.view.full(&d.view.rollout.model) || d.view.barred(d.view.model()) {
        return false;
    }
    verdict::promote(d, BY_GATE, "every signal is proven to keep its margin: 100 %, the new stable");
    true
}

/// Rule: the gate's deadline, and the one for cluster objects.
pub(super) fn deadlines(d: &mut Draft<'_>) -> bool {
    gate_deadline(d) || progress_deadline(d)
}

fn gate_deadline(d: &mut Draft<'_>) -> bool {
    let gate = &d.view.rollout.gate;
    let horizon = gate.horizon().max(1);
    let due = d.plan.state.attempt.as_ref().is_some_and(|a| a.mismatch.is_none() && a.counted() >= horizon);
    if !due || d.paused() {
        return false;
    }
    let missing = d.plan.assessment.as_ref().map(|a| a.missing.join("; ")).filter(|m| !m.is_empty());
    let words = format!("undecided at the gate's deadline{}", missing.map_or(String::new(), |m| format!(" ({m})")));
    match gate.on_inconclusive {
        OnInconclusive::PromoteIfCompatible => match incompatible(d) {
            None => {
                let why = "every interval lies within its margin: 100 %, the new stable, without a stated error rate";
                verdict::promote(d, BY_DEADLINE, &format!("{words}, and {why}"));
            }
            Some(why) => verdict::hold(d, &format!("{words}, and {why}")),
        },
        OnInconclusive::Hold => verdict::hold(d, &words),
        OnInconclusive::Rollback => {
            let by = BY_DEADLINE.into();
            verdict::roll_back(d, &Fall { reason: Reason::Inconclusive, words, by, to_fp16: false });
        }
        OnInconclusive::Extend => {
            if let Some(attempt) = &mut d.state().attempt {
                attempt.excused = attempt.excused.saturating_add(horizon);
            }
            let object = format!("QualityGate {}", gate.name);
            d.event(false, Reason::Extended, object, format!("{words}: goes on for another deadline"));
            return false;
        }
    }
    true
}

/// Why a candidate without a verdict is not promoted at the deadline (`PromoteIfCompatible`); `None`: it has reached the
/// last step of a canary, everything holds that a promotion needs but the proofs, every signal's interval lies within its
/// margin with both ends, and the rollback evidence of all signals together leans to it.
fn incompatible(d: &Draft<'_>) -> Option<String> {
    let (weight, model) = (d.trial_weight(), &d.view.rollout.model);
    let canary = matches!(d.view.rollout.strategy, Strategy::Canary(_));
    if !canary || weight == 0 || d.view.step_at(weight) < d.view.steps().len() {
        return Some("it has not reached the last step of a canary".into());
    }
    let Some(assessment) = d.plan.assessment.as_ref().filter(|a| a.fresh && halted(d).is_none()) else {
        return Some("both arms have no live requests at this weight".into());
    };
    if !d.view.full(model) || d.view.barred(&model.revision) {
        return Some(format!("its pods cannot carry 100 % ({})", d.view.problems(&model.revision)));
    }
    let gate = &d.view.rollout.gate;
    for kind in SignalKind::ALL {
        let interval = assessment.signals.iter().find(|s| s.kind == kind).and_then(|s| s.interval);
        let Some((low, high)) = interval else { return Some(format!("nothing is known about {}", kind.name())) };
        let (end, margin, within) = match kind {
            SignalKind::Cosine => (low, gate.min_mean, low >= gate.min_mean),
            SignalKind::CosineTail => (high, gate.tail_share, high <= gate.tail_share),
            SignalKind::Latency => (high, gate.max_ratio, high <= gate.max_ratio),
            SignalKind::Errors => (high, gate.max_excess, high <= gate.max_excess),
        };
        if !within {
            return Some(format!("{} may be {end:.4}, beyond its margin of {margin}", kind.name()));
        }
    }
    (assessment.ln_rollback >= 0.0).then(|| "the evidence leans against it".into())
}

fn progress_deadline(d: &mut Draft<'_>) -> bool {
    let (Some(waiting), Some(began)) = (d.waiting.clone(), d.plan.state.waiting_since) else { return false };
    let limit = d.view.rollout.progress_deadline;
    d.wake_at(began + limit);
    let mine = matches!(d.standing(), Some(Standing::Trial))
        || (d.standing() == Some(Standing::Next) && waiting.reason == Reason::CandidateNotReady);
    if !mine || d.now() - began < limit {
        return false;
    }
    let words = format!("waited longer than progressDeadline for {}: {}", waiting.object, waiting.message);
    let by = BY_DEADLINE.into();
    verdict::roll_back(d, &Fall { reason: Reason::ProgressDeadlineExceeded, words, by, to_fp16: false });
    true
}

/// Rule: the next step.
pub(super) fn advance(d: &mut Draft<'_>) -> bool {
    if let Some(block) = blocked(d) {
        if let Block::Because(phase, reason, text) = block {
            say_step(d, phase, reason, &text);
        }
        return false;
    }
    let steps = d.view.steps();
    let weight = d.trial_weight();
    let index = if weight == 0 { 0 } else { d.view.step_at(weight) };
    let Some(next) = steps.get(index) else {
        match d.plan.assessment.as_ref().map(|a| a.missing.join("; ")).filter(|missing| !missing.is_empty()) {
            Some(missing) => {
                say_step(d, Phase::Progressing, Reason::Step, &format!("promotion waits for: {missing}"));
            }
            None => recruit(d, index, "the promotion"),
        }
        return false;
    };
    if d.view.barred(d.view.model()) {
        return false;
    }
    if !d.view.ready_for(index) {
        recruit(d, index, &format!("{} %", next.weight));
        return false;
    }
    if let Some(text) = detours::no_room(&d.view).filter(|_| !next.matches.is_empty()) {
        let name = route::route_name(d);
        d.say(Phase::Holding, note(Reason::RuleMissing, format!("HTTPRoute {name}"), text));
        return false;
    }
    let Some(anchor) = d.view.anchor() else { return false };
    let model = d.view.model().clone();
    if let Some(attempt) = &mut d.state().attempt {
        attempt.step_released = false;
    }
    let rest = 100 - next.weight.min(99);
    d.shift(&[(anchor, rest), (model.clone(), 100 - rest)], &[], None, |l| l.step = index as u32 + 1);
    let text = format!("{} % of the traffic (step {} of {})", 100 - rest, index + 1, steps.len());
    d.event(false, Reason::Step, format!("Deployment {model}"), text.clone());
    d.say(Phase::Progressing, note(Reason::Step, format!("Deployment {model}"), text));
    true
}

/// The next weight may come, but for the pods that it needs: they come first.
fn recruit(d: &mut Draft<'_>, index: usize, what: &str) {
    let pods = d.view.pods_at(index);
    d.recruits = Some(pods);
    let problems = d.view.problems(d.view.model());
    let text = format!("{what} waits for {pods} ready pods: {problems}");
    say_step(d, Phase::Progressing, Reason::CandidateNotReady, &text);
}

/// What every raise, switch and promotion waits for, whatever the strategy; `None`: nothing of it.
pub(super) fn halted(d: &Draft<'_>) -> Option<Block> {
    let because = |phase, reason, text: &str| Some(Block::Because(phase, reason, text.to_owned()));
    if d.view.rollout.paused {
        return because(Phase::Paused, Reason::Paused, "spec.paused: set it to false to go on");
    }
    if d.plan.state.paused {
        return because(Phase::Paused, Reason::Paused, "the verb `pause`: `resume` goes on");
    }
    let Some(attempt) = &d.plan.state.attempt else { return Some(Block::Quiet) };
    if attempt.tripped || attempt.mismatch.is_some() || attempt.probe_set_missing || !attempt.comparable {
        return Some(Block::Quiet);
    }
    if d.by_hand || !route::at_home(d) {
        return Some(Block::Quiet);
    }
    // Beside fp16 in stable's place there is nothing to compare with: it waits until stable is back.
    let stable = d.view.ledger().map(|l| &l.stable);
    if !d.switched() && d.view.anchor().as_ref() != stable {
        return Some(Block::Quiet);
    }
    // No evidence is no success.
    let Some(assessment) = &d.plan.assessment else { return Some(Block::Quiet) };
    if !assessment.preflight_done {
        let text = format!(
            "preflight: {} of {} prompts were compared before the first live request",
            assessment.prompts, d.view.rollout.gate.preflight
        );
        return because(Phase::Progressing, Reason::Preflight, &text);
    }
    if d.watched_for().is_none() {
        return because(Phase::Progressing, Reason::Step, "the gateway takes the weights over");
    }
    None
}

/// What the next raise (or the promotion) waits for, most important first; `None`: it may come.
fn blocked(d: &mut Draft<'_>) -> Option<Block> {
    let because = |phase, reason, text: &str| Some(Block::Because(phase, reason, text.to_owned()));
    if let Some(halt) = halted(d) {
        return Some(halt);
    }
    let weight = d.trial_weight();
    if weight == 0 {
        let why = leaning(d, 0)?;
        return because(Phase::Progressing, Reason::Step, &why);
    }
    let step = current_step(d, weight);
    let least = least_time(&d.view, &step);
    let on = d.watched_for().unwrap_or(Span(0));
    if on < least {
        d.wake(Span(least.0 - on.0));
        return because(Phase::Progressing, Reason::Step, "the time of this step is not over");
    }
    let (Some(attempt), Some(assessment)) = (&d.plan.state.attempt, d.plan.assessment.clone()) else {
        return Some(Block::Quiet);
    };
    if step.pause && !attempt.step_released {
        return because(Phase::Paused, Reason::StepPaused, "this step waits for the verb `promote`");
    }
    if !assessment.quality_proven {
        return because(Phase::Progressing, Reason::Step, "quality must be proven before more traffic comes");
    }
    let policy = d.view.rollout.gate.on_no_traffic;
    if assessment.no_traffic && policy == OnNoTraffic::Hold {
        return because(Phase::Holding, Reason::NoTraffic, "no live requests, and the gate asks to hold then");
    }
    if !assessment.fresh && !assessment.no_traffic {
        return because(Phase::Progressing, Reason::Step, "no live requests of both arms at this weight yet");
    }
    if let Some(why) = leaning(d, weight) {
        return because(Phase::Progressing, Reason::Step, &why);
    }
    None
}

fn pace(view: &View<'_>) -> Pace {
    match &view.rollout.strategy {
        Strategy::Canary(canary) => canary.pace,
        Strategy::BlueGreen(_) | Strategy::AbTest(_) => Pace::Time,
    }
}

/// Ticks of a whole rollback block.
fn block_ticks(view: &View<'_>) -> u32 {
    let interval = view.rollout.gate.interval.0.max(1);
    u32::try_from((BLOCK.0 + interval - 1) / interval).unwrap_or(u32::MAX).max(1)
}

/// Least time at a step: its duration, or one whole rollback block where the evidence sets the pace.
pub(super) fn least_time(view: &View<'_>, step: &CanaryStep) -> Span {
    match pace(view) {
        Pace::Time => step.duration,
        Pace::Evidence => Span(view.rollout.gate.interval.0.max(1).saturating_mul(i64::from(block_ticks(view)))),
    }
}

/// Pace by evidence: why the next weight does not come yet, if it does not. It comes when a whole rollback block of live
/// data of both arms at this weight is in (at weight 0: when the preflight is done), and the rollback evidence of each signal
/// is at most 1 (ln E ≤ 0): nothing leans against the candidate. The wealth against a candidate that is worse than its margin
/// grows in expectation, so it stays where it is, and its exposure is bounded by what this weight brings until the gate's
/// deadline takes it away.
fn leaning(d: &Draft<'_>, weight: u32) -> Option<String> {
    if pace(&d.view) != Pace::Evidence {
        return None;
    }
    let (attempt, assessment) = (d.plan.state.attempt.as_ref()?, d.plan.assessment.as_ref()?);
    let (ticks, wanted) = (attempt.step_ticks, block_ticks(&d.view));
    if weight > 0 && ticks < wanted && !assessment.no_traffic {
        return Some(format!("{ticks} of {wanted} ticks with live counts of both arms at this weight"));
    }
    let against = assessment.signals.iter().max_by(|a, b| a.ln_rollback.total_cmp(&b.ln_rollback))?;
    (against.ln_rollback > 0.0).then(|| {
        let (name, ln_e) = (against.kind.name(), against.ln_rollback);
        format!("the evidence of {name} leans against it (ln E {ln_e:.2}): the weight stays")
    })
}

/// Most live requests that the candidate can have answered when the gate's deadline takes its weight away, if traffic
/// stays as it was in the last tick.
pub(super) fn exposure_bound(d: &Draft<'_>) -> Option<(u64, u64)> {
    let (attempt, assessment) = (d.plan.state.attempt.as_ref()?, d.plan.assessment.as_ref()?);
    let left = d.view.rollout.gate.horizon().saturating_sub(attempt.counted());
    let so_far = assessment.exposed_requests;
    Some((so_far, so_far.saturating_add(u64::from(left).saturating_mul(u64::from(attempt.last_requests)))))
}

/// The step whose time counts at this weight: between two steps (after an edit of the list) the lower one, before the
/// first one the first.
fn current_step(d: &Draft<'_>, weight: u32) -> CanaryStep {
    let steps = d.view.steps();
    let step = steps.get(d.view.step_at(weight).saturating_sub(1)).cloned();
    step.unwrap_or_else(|| CanaryStep::plain(weight, Span(0)))
}

pub(super) fn say_step(d: &mut Draft<'_>, phase: Phase, reason: Reason, text: &str) {
    let weight = d.trial_weight();
    let (of, model) = (d.view.steps().len(), d.view.model().clone());
    let step = if weight == 0 { 0 } else { d.view.step_at(weight) };
    let exposed = match exposure_bound(d) {
        Some((so_far, most)) if weight > 0 && pace(&d.view) == Pace::Evidence => format!(
            "; it answered {so_far} live requests so far, and at this weight and traffic at most {most} until the gate's deadline"
        ),
        _ => String::new(),
    };
    let text = format!("step {step} of {of}, {weight} %: {text}{exposed}");
    let began = d.plan.state.attempt.as_ref().and_then(|a| a.step_since);
    d.say(phase, since(note(reason, format!("Deployment {model}"), text), began));
}

/// Rule: a candidate that is ready and not in the route yet comes in at weight 0: its attempt begins.
pub(super) fn start(d: &mut Draft<'_>) -> bool {
    if d.standing() != Some(Standing::Next) || d.paused() || !may_come(d) {
        return false;
    }
    let model = d.view.model().clone();
    let (Some(anchor), Some(ledger)) = (d.view.anchor(), d.view.ledger()) else { return false };
    if model == d.view.baseline {
        return to_baseline(d, anchor);
    }
    if anchor != ledger.stable || !d.view.staffed() || !d.confirmed() {
        return false;
    }
    let number = ledger.attempt.saturating_add(1);
    d.shift(&[(anchor, 100)], std::slice::from_ref(&model), None, |l| {
        l.candidate = Some(model.clone());
        l.attempt = number;
        l.step = 0;
        l.rollback_of = None;
    });
    let text = format!("attempt {number}: in the route at weight 0, preflight begins");
    d.event(false, Reason::Preflight, format!("Deployment {model}"), text.clone());
    d.say(Phase::Progressing, note(Reason::Preflight, format!("Deployment {model}"), text));
    true
}

/// The spec asks for fp16 itself: it is the reference and enough for all traffic, there is nothing to prove.
fn to_baseline(d: &mut Draft<'_>, anchor: Revision) -> bool {
    let baseline = d.view.baseline.clone();
    if !d.view.full(&d.view.rollout.baseline)
        || d.view.barred(&baseline)
        || baseline != d.view.rollout.baseline.revision
    {
        return false;
    }
    d.shift(&[(baseline.clone(), 100)], &[anchor], None, |l| {
        l.stable = baseline.clone();
        l.candidate = None;
        l.step = 0;
    });
    let text = "the spec asks for fp16 itself: all traffic to it";
    d.event(false, Reason::Serving, format!("Deployment {baseline}"), text);
    d.say(Phase::Promoting, note(Reason::Serving, format!("Deployment {baseline}"), text));
    true
}

/// A new candidate's pods may come: traffic is at home, fp16 is up, and the pods of what was superseded are gone.
pub(super) fn may_come(d: &Draft<'_>) -> bool {
    let gone = |r: &&Revision| d.view.workload(r).is_some_and(|w| w.replicas.unwrap_or(0) == 0 || w.autoscaled);
    // Pods that made room come back before the next ones ask for it.
    let whole = d.view.swapped().is_none_or(|stable| d.view.weight(stable) == 100);
    d.standing() == Some(Standing::Next)
        && !d.paused()
        && whole
        && d.view.baseline == d.view.rollout.baseline.revision
        && d.view.serves(&d.view.baseline)
        && route::at_home(d)
        && d.view.leftovers().iter().all(gone)
}

/// What cluster objects the rollout waits for, from what was observed.
pub(super) fn waits(d: &Draft<'_>) -> Option<Waiting> {
    let object = |r: &Revision| format!("Deployment {r}");
    let model = d.view.model();
    let candidate = |wanted: u32| {
        Some(Waiting {
            reason: Reason::CandidateNotReady,
            object: object(model),
            message: format!("{} (of {} wanted)", d.view.problems(model), wanted),
        })
    };
    if let Some(route) = d.view.route()
        && d.view.ledger().is_some()
        && !route.accepted
    {
        return Some(Waiting {
            reason: Reason::RouteNotAccepted,
            object: format!("HTTPRoute {}", route::route_name(d)),
            message: match route.acceptance_message.as_str() {
                "" => "the gateway has not answered the last change".into(),
                why => format!("the gateway has not accepted the last change: {why}"),
            },
        });
    }
    match d.standing()? {
        Standing::Next if may_come(d) && *model != d.view.baseline && !d.view.staffed() => candidate(d.view.posted()),
        Standing::Trial => {
            let running = d.plan.state.attempt.as_ref();
            let stalled = running.is_none() || d.trial_weight() == 0 && running.is_some_and(|a| a.mismatch.is_none());
            // More pods than its step has are there for the next one.
            let asked = d.view.workload(model).filter(|w| !w.autoscaled).and_then(|w| w.replicas).unwrap_or(0);
            let more = d.view.staged() && asked > d.view.posted() && d.view.endpoints(model) < asked;
            if stalled && !d.view.staffed() {
                candidate(d.view.posted())
            } else if more {
                candidate(asked)
            } else {
                None
            }
        }
        _ => None,
    }
}
