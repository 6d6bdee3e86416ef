//! The three writes that end an attempt. Each is one conditional write of the route: weights, pointers and decision
//! together.

use super::{
    DecisionRecord, Verdict,
    draft::{Draft, note},
    route,
    view::Standing,
};
use crate::{
    evidence::{Finding, SignalKind, codec::Fnv},
    model::{LatchKey, Revision},
    observation::StoredDecision,
    report::{Note, Phase, Reason},
};

/// `by` of verdicts that nobody asked for.
pub(super) const BY_GATE: &str = "gate";
/// `by` of verdicts that a deadline made.
pub(super) const BY_DEADLINE: &str = "deadline";

/// Name of the RolloutDecision object: the same verdict on the same attempt always has the same name, so creating it
/// twice is harmless. A DNS label, as rollout names have at most 52 characters.
pub fn decision_id(rollout: &str, key: &LatchKey, verdict: Verdict) -> String {
    let text = format!("{key}/{}", verdict.name());
    let mut hash = scrambled(Fnv::default().bytes(text.as_bytes()).finish());
    let mut digits = String::with_capacity(10);
    for _ in 0..10 {
        digits.push(char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(hash & 31) as usize]));
        hash >>= 5;
    }
    format!("{rollout}-{digits}")
}

/// Finalizer of SplitMix64: FNV's high bits move little with the last bytes.
pub(super) fn scrambled(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Why an attempt is rolled back.
pub(super) struct Fall {
    pub(super) reason: Reason,
    pub(super) words: String,
    pub(super) by: String,
    /// To fp16, which becomes stable, instead of the place where the traffic belongs.
    pub(super) to_fp16: bool,
}

/// All traffic off the spec's model, and its attempt latched. Without a ready revision to go to nothing is written.
pub(super) fn roll_back(d: &mut Draft<'_>, fall: &Fall) {
    let target = if fall.to_fp16 { Some(d.view.baseline.clone()) } else { d.view.home(100) };
    let model = d.view.model().clone();
    let object = format!("Deployment {model}");
    let Some(target) = target else {
        let text = format!("{}, but no other revision has a ready pod to take its traffic", fall.words);
        d.say(Phase::Degraded, note(Reason::NoBackend, object, text));
        return;
    };
    if model == d.view.baseline {
        // The spec asks for fp16 itself: it is the place to go back to, and nothing to latch.
        let stable = fall.to_fp16.then(|| d.view.baseline.clone());
        d.shift(&[(target.clone(), 100)], &[], None, |l| l.stable = stable.unwrap_or_else(|| l.stable.clone()));
        let reason = note(fall.reason, object, format!("{}: all traffic to {target}", fall.words));
        d.event(true, reason.reason, reason.object.clone(), reason.message.clone());
        d.say(Phase::RollingBack, reason);
        return;
    }
    let key = d.view.key();
    let words = format!("{}: all traffic to {target}", fall.words);
    let reason = note(fall.reason, object, words);
    // One verdict per attempt: what was rolled back already only loses its place.
    let decided = d.standing() == Some(Standing::Latched);
    let record = (!decided).then(|| record(d, Verdict::RolledBack, &key, reason.clone(), &fall.by));
    let baseline = fall.to_fp16.then(|| d.view.baseline.clone());
    d.state().attempt = None;
    d.state().paused = false;
    d.shift(&[(target, 100)], std::slice::from_ref(&model), record, |l| {
        l.candidate = Some(model.clone());
        l.attempt = key.attempt;
        l.step = 0;
        l.rollback_of = Some(key);
        if let Some(baseline) = baseline {
            l.stable = baseline;
        }
    });
    d.event(true, reason.reason, reason.object.clone(), reason.message.clone());
    d.say(Phase::RollingBack, reason);
}

/// The candidate is the new stable: weights and pointer in one write.
pub(super) fn promote(d: &mut Draft<'_>, by: &str, words: &str) {
    let model = d.view.model().clone();
    let Some(old) = d.view.ledger().map(|l| l.stable.clone()) else { return };
    let reason = note(Reason::Promoted, format!("Deployment {model}"), words);
    let record = record(d, Verdict::Promoted, &d.view.key(), reason.clone(), by);
    let steps = d.view.steps().len() as u32;
    // After a switch the old revision has had its time beside the new one: its ref goes with the promotion.
    let backends = if d.switched() {
        let fp16 = d.view.baseline.clone();
        let kept = d.view.workload(&fp16).is_some_and(|w| w.service) && fp16 != model;
        [(model.clone(), 100)].into_iter().chain(kept.then_some((fp16, 0))).collect()
    } else {
        d.compose(&[(model.clone(), 100)], &[old])
    };
    d.state().attempt = None;
    d.state().paused = false;
    d.shift_to(backends, Some(record), |l| {
        l.stable = model;
        l.step = steps.saturating_add(1);
    });
    d.event(false, Reason::Promoted, reason.object.clone(), reason.message.clone());
    d.say(Phase::Promoting, reason);
}

/// Undecided: the candidate to weight 0, its pods stay, no latch.
pub(super) fn hold(d: &mut Draft<'_>, words: &str) {
    let model = d.view.model().clone();
    let Some(anchor) = d.view.home(100) else { return };
    let text = format!("{words}: weight 0, its pods stay; a new model or `retry` goes on");
    let reason = note(Reason::Inconclusive, format!("Deployment {model}"), text);
    let record = record(d, Verdict::Inconclusive, &d.view.key(), reason.clone(), BY_DEADLINE);
    d.state().attempt = None;
    d.state().paused = false;
    d.shift(&[(anchor, 100)], &[model], Some(record), |l| l.step = 0);
    d.event(true, Reason::Inconclusive, reason.object.clone(), reason.message.clone());
    d.say(Phase::Holding, reason);
}

/// The A/B test ended: the candidate to weight 0, its pods stay, no latch, and a person decides.
pub(super) fn report(d: &mut Draft<'_>, words: &str) -> bool {
    let model = d.view.model().clone();
    let Some(anchor) = d.view.home(100) else { return false };
    let text = format!("{words}: weight 0, its pods stay; `promote` promotes it, a new model or `retry` goes on");
    let reason = note(Reason::Reported, format!("Deployment {model}"), text);
    let record = record(d, Verdict::Reported, &d.view.key(), reason.clone(), BY_GATE);
    d.state().attempt = None;
    d.state().paused = false;
    d.shift(&[(anchor, 100)], &[model], Some(record), |l| l.step = 0);
    d.event(false, Reason::Reported, reason.object.clone(), reason.message.clone());
    d.say(Phase::Holding, reason);
    true
}

fn record(d: &Draft<'_>, verdict: Verdict, key: &LatchKey, note: Note, by: &str) -> DecisionRecord {
    let ledger = d.view.ledger();
    let attempt = d.plan.state.attempt.as_ref();
    DecisionRecord {
        id: decision_id(&d.view.rollout.name, key, verdict),
        verdict,
        key: key.clone(),
        step: ledger.map_or(0, |l| l.step),
        weight: d.view.weight(&key.revision),
        note,
        by: by.to_owned(),
        stable: ledger.map_or_else(Revision::default, |l| l.stable.clone()),
        baseline: d.view.baseline.clone(),
        at: d.now(),
        tick: attempt.map_or(0, |a| a.tick),
        assessment: d.plan.assessment.clone(),
        parameters: d.view.rollout.gate.parameters_hash(),
        probe_set: attempt.and_then(|a| a.probe_set.clone()).unwrap_or_default(),
    }
}

/// Rule: evidence that the candidate is worse than its margin.
pub(super) fn proven_worse(d: &mut Draft<'_>) -> bool {
    if d.standing() != Some(Standing::Trial) {
        return false;
    }
    let Some(Finding::RollBack { signal, ln_e }) = d.plan.assessment.as_ref().map(|a| a.finding.clone()) else {
        return false;
    };
    let (reason, what) = match signal {
        SignalKind::Cosine => (Reason::QualityFailed, "its mean similarity to fp16 is proven to be under the margin"),
        SignalKind::CosineTail => (Reason::QualityFailed, "too many of its answers are proven to be far from fp16"),
        SignalKind::Latency => (Reason::LatencyFailed, "it is proven to be slower than the margin allows"),
        SignalKind::Errors => (Reason::ErrorsFailed, "it is proven to fail more often than the margin allows"),
    };
    let detail = d.plan.assessment.as_ref().and_then(|a| a.signals.iter().find(|s| s.kind == signal));
    let numbers = detail.map_or_else(String::new, |s| {
        let estimate = s.estimate.map_or_else(String::new, |e| format!(", estimate {e:.4}"));
        format!(" (signal {}{estimate}, {} samples, ln E {ln_e:.1})", signal.name(), s.samples)
    });
    let words = format!("{what}{numbers}");
    roll_back(d, &Fall { reason, words, by: BY_GATE.into(), to_fp16: false });
    true
}

/// Rule: the wire is tripped, by errors or by a candidate that lost all its pods under traffic. Weight 0 at once; the
/// third time is a rollback.
pub(super) fn trip(d: &mut Draft<'_>) -> bool {
    if d.standing() != Some(Standing::Trial) {
        return false;
    }
    // Where nobody can serve it is not the candidate that failed, and there is nowhere to go.
    let lost = d.trial_weight() > 0 && !d.view.serves(d.view.model()) && d.view.anchor().is_some();
    let tripwire = match d.plan.assessment.as_ref().map(|a| &a.finding) {
        Some(Finding::Tripwire { reason }) if d.ticked => Some(reason.clone()),
        _ => None,
    };
    let tripped = d.plan.state.attempt.as_ref().is_some_and(|a| a.tripped);
    if tripped || !(lost || tripwire.is_some()) {
        return false;
    }
    let model = d.view.model().clone();
    let (reason, words) = match tripwire {
        Some(words) => (Reason::Tripwire, words),
        None => (Reason::CandidateLost, format!("no pod is ready under traffic: {}", d.view.problems(&model))),
    };
    let Some(attempt) = d.plan.state.attempt.as_mut() else { return false };
    attempt.trips = attempt.trips.saturating_add(1);
    attempt.tripped = true;
    attempt.ready_ticks = 0;
    attempt.step_released = false;
    let trips = attempt.trips;
    if trips >= 3 {
        roll_back(
            d,
            &Fall { reason, words: format!("{words}, for the third time"), by: BY_GATE.into(), to_fp16: false },
        );
        return true;
    }
    let text = format!("{words}: weight 0 until its pods were ready for two ticks (time {trips} of 2, then rollback)");
    d.event(true, reason, format!("Deployment {model}"), text.clone());
    d.say(Phase::Holding, note(reason, format!("Deployment {model}"), text));
    // Takes the weight away: a tripped candidate is in order at 0 only.
    route::bring_home(d);
    true
}

/// The ledger's verdict whose RolloutDecision object is missing.
pub(super) fn unrecorded(d: &Draft<'_>) -> Option<StoredDecision> {
    let decision = d.view.ledger()?.decision.as_ref()?;
    let known = d.view.obs.decisions.contains(&decision.id) || d.view.obs.namespace_terminating;
    (!known).then(|| decision.clone())
}
