//! A/B test: once quality is proven at weight 0, a fixed share of the users meets the candidate for a fixed time, each
//! user always the same arm. What users say is tested two-sided; whether they arrived as assigned is tested too. The
//! gate's signals, the tripwire and the verbs work as in a canary.

use super::{
    Attempt, Standing,
    canary::{self, Block, say_step},
    detours,
    draft::{Draft, note},
    verdict::{self, BY_GATE, Fall},
    view::View,
};
use crate::{
    Span,
    evidence::{
        Assessment, Evidence, Finding, Gate, Tick,
        ab::{Ab, AbAssessment, AbMetric, AbSettings, AbTick, AbVerdict},
    },
    model::{AbTest, OnEnd, Strategy},
    observation::Sample,
    report::{Phase, Reason},
};

/// 1 − confidence of a sample-ratio mismatch.
const ALPHA_RATIO: f64 = 0.001;
/// Share of the traffic at which both arms carry the same load.
const EQUAL_LOAD: u32 = 50;
/// Users at which the interval of a mean is narrowest.
const PLANNED: u64 = 10_000;

/// The rollout's A/B test, if it has one.
pub(super) fn of<'a>(view: &View<'a>) -> Option<&'a AbTest> {
    match &view.rollout.strategy {
        Strategy::AbTest(test) => Some(test),
        Strategy::Canary(_) | Strategy::BlueGreen(_) => None,
    }
}

/// The test of the users.
pub(crate) fn settings(test: &AbTest, gate: &Gate) -> AbSettings {
    AbSettings {
        metric: test.metric.unwrap_or(AbMetric::Conversion),
        alpha: gate.alpha_promote,
        alpha_ratio: ALPHA_RATIO,
        planned: PLANNED,
    }
}

/// What a promotion asks. Live latency is decided only at equal load: where the candidate's share is smaller, the pairs
/// decide it alone, as before a switch; errors are asked in any case.
pub(crate) fn asked(test: &AbTest, evidence: &Evidence, gate: &Gate, assessment: Assessment) -> Assessment {
    if test.weight() >= EQUAL_LOAD {
        return assessment;
    }
    let live = |line: &&String| line.starts_with("errors") || line.starts_with("no live request");
    let missing: Vec<String> = assessment.missing.iter().filter(live).cloned().collect();
    let mut asked = evidence.for_switch(gate, assessment);
    if asked.finding == Finding::Promote && !missing.is_empty() {
        asked.finding = Finding::Continue;
    }
    asked.missing.extend(missing);
    asked
}

/// Takes a tick's users: only those of a whole interval at the test's split.
pub(super) fn take_users(d: &Draft<'_>, attempt: &mut Attempt, gate: &Gate, tick: &Tick, sample: &Sample) {
    let Some(test) = of(&d.view) else {
        attempt.users = None;
        return;
    };
    let settings = settings(test, gate);
    let users = attempt.users.get_or_insert_with(|| Ab::new(&settings));
    let (Some(live), true) = (&sample.live, tick.weight == Some(test.weight())) else { return };
    users.step(
        &settings,
        &AbTick {
            number: u64::from(attempt.tick),
            share: f64::from(test.weight()) / 100.0,
            assigned: live.users.assigned,
            outcomes: live.users.outcomes,
            last: over(d, test),
        },
    );
}

/// Where the test stands.
pub(super) fn summary(d: &Draft<'_>, gate: &Gate) -> Option<AbAssessment> {
    let users = d.plan.state.attempt.as_ref()?.users.as_ref()?;
    Some(users.summary(&settings(of(&d.view)?, gate)))
}

/// The split has been in force for the test's duration.
fn over(d: &Draft<'_>, test: &AbTest) -> bool {
    d.trial_weight() == test.weight() && d.watched_for().is_some_and(|on| on >= test.duration())
}

/// The split is in force or comes back by itself: the gate's deadline counts the time before it.
pub(super) fn needs_no_deadline(d: &Draft<'_>) -> bool {
    of(&d.view).is_some() && d.trial_weight() > 0
}

/// Rule: users are proven to do worse, or the time is over.
pub(super) fn promote(d: &mut Draft<'_>) -> bool {
    let Some(test) = of(&d.view) else { return false };
    if d.standing() != Some(Standing::Trial) || d.trial_weight() == 0 || canary::halted(d).is_some() {
        return false;
    }
    let users = d.plan.users;
    let verdict = users.map_or(AbVerdict::Undecided, |u| u.verdict);
    let told = users.map(|u| told(test, &u)).unwrap_or_default();
    if verdict == AbVerdict::CandidateWorse && test.metric.is_some() {
        let words = format!("users do worse with it{told}");
        return match test.on_end {
            OnEnd::Report => verdict::report(d, &words),
            OnEnd::Promote => {
                let by = BY_GATE.into();
                verdict::roll_back(d, &Fall { reason: Reason::UsersDoWorse, words, by, to_fp16: false });
                true
            }
        };
    }
    if !over(d, test) {
        return false;
    }
    let proven = d.plan.assessment.as_ref().is_some_and(|a| a.finding == Finding::Promote);
    let (better, found) = match (verdict, test.metric) {
        (AbVerdict::SampleRatioMismatch, _) => (false, "users did not arrive as assigned: no comparison counts"),
        (_, None) => (true, "the time of the test is over"),
        (AbVerdict::CandidateBetter, Some(_)) => (true, "users do better with it"),
        _ => (false, "no difference between the arms is proven"),
    };
    if test.on_end == OnEnd::Report || !better {
        return verdict::report(d, &format!("{found}{told}"));
    }
    if !proven {
        let missing = d.plan.assessment.as_ref().map(|a| a.missing.join("; ")).unwrap_or_default();
        return verdict::report(d, &format!("{found}{told}, but the gate's proofs are not complete ({missing})"));
    }
    if !d.view.full(&d.view.rollout.model) || d.view.barred(d.view.model()) {
        return false;
    }
    verdict::promote(d, BY_GATE, &format!("{found}{told}: 100 %, the new stable"));
    true
}

/// The result in numbers.
fn told(test: &AbTest, users: &AbAssessment) -> String {
    let (c, b) = users.users;
    if test.metric.is_none() || c + b == 0 {
        return String::new();
    }
    let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.4}"));
    let (candidate, stable) = users.arms;
    let interval = users.interval.map_or(String::new(), |(low, high)| format!(", difference in [{low:.4}, {high:.4}]"));
    format!(" ({} of {c} users against {} of {b}{interval})", number(candidate), number(stable))
}

/// Rule: the split, or what it waits for.
pub(super) fn advance(d: &mut Draft<'_>) -> bool {
    let Some(test) = of(&d.view) else { return false };
    if let Some(block) = canary::halted(d) {
        if let Block::Because(phase, reason, text) = block {
            say_step(d, phase, reason, &text);
        }
        return false;
    }
    let (weight, split) = (d.trial_weight(), test.weight());
    if weight == split {
        waits(d, test);
        return false;
    }
    if d.plan.assessment.as_ref().is_none_or(|a| !a.quality_proven) {
        say_step(d, Phase::Progressing, Reason::Preflight, "quality must be proven before a user meets it");
        return false;
    }
    if let Some(text) = detours::no_room(&d.view) {
        let name = super::route::route_name(d);
        d.say(Phase::Holding, note(Reason::RuleMissing, format!("HTTPRoute {name}"), text));
        return false;
    }
    let (Some(anchor), model) = (d.view.anchor(), d.view.model().clone()) else { return false };
    if !d.view.carries(&d.view.rollout.model, split) || d.view.barred(&model) {
        return false;
    }
    d.shift(&[(anchor, 100 - split), (model.clone(), split)], &[], None, |l| l.step = 1);
    let text = format!("{split} % of the users, each for as long as the test lasts");
    d.event(false, Reason::Step, format!("Deployment {model}"), text.clone());
    d.say(Phase::Progressing, note(Reason::Step, format!("Deployment {model}"), text));
    true
}

fn waits(d: &mut Draft<'_>, test: &AbTest) {
    let left = test.duration().0 - d.watched_for().unwrap_or(Span(0)).0;
    d.wake(Span(left.max(1)));
    let users = d.plan.users;
    let numbers = users.map(|u| told(test, &u)).unwrap_or_default();
    if users.is_some_and(|u| u.verdict == AbVerdict::SampleRatioMismatch) {
        let (c, b) = users.map(|u| u.assigned).unwrap_or_default();
        let text = format!(
            "{c} users came to it and {b} to stable, that is not {} %: some are lost on the way; nothing is promoted",
            test.weight()
        );
        say_step(d, Phase::Holding, Reason::SampleRatioMismatch, &text);
        return;
    }
    say_step(d, Phase::Progressing, Reason::Step, &format!("the test goes on{numbers}"));
}
