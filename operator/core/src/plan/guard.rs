//! The guard: a promoted model is compared with the warm fp16 baseline for as long as it serves. What it remembers lives in
//! the operator's memory and is stored only where it would be missed, so that a quiet rollout writes nothing.

use super::{
    ProbeJob, Standing, State,
    draft::{Draft, note},
    verdict::{self, Fall},
    view::View,
};
use crate::{
    Span, Time,
    evidence::{
        Probes, SignalKind,
        codec::Fnv,
        guard::{Guard, GuardAssessment},
    },
    model::{GuardRule, Revision, Rollout},
    observation::ProbeOutcome,
    report::{Phase, Reason},
};

/// `by` of a rollback that the guard asked for.
const BY_GUARD: &str = "guard";
/// Stored at most this often while it leans towards an alarm.
const CHECKPOINT: Span = Span::seconds(600);
/// Share of the way to an alarm from which a restart may not forget it.
const WORTH_KEEPING: f64 = 0.25;

/// What the guard of one promoted revision remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    /// The revision that it watches.
    pub revision: Revision,
    /// The fp16 baseline that it compares with.
    pub against: Revision,
    /// Ticks that were taken.
    pub tick: u32,
    /// When the last one was taken, or one interval before the first is due.
    pub last_tick: Time,
    /// The comparison that is out.
    pub job: Option<ProbeJob>,
    /// The pod that was asked last.
    pub last_pod: String,
    /// The probe set that was pinned; another one begins a new watch.
    pub probe_set: Option<String>,
    /// When this was last worth storing, and was.
    pub stored_at: Option<Time>,
    /// The evidence.
    pub guard: Guard,
}

/// Does the next `plan` want what the workers say about the guard's comparison?
pub fn guard_due(rollout: &Rollout, state: &State, now: Time) -> bool {
    let (Some(rule), Some(watch)) = (&rollout.guard, &state.guard) else { return false };
    state.attempt.is_none() && watch.job.is_some() && now - watch.last_tick >= rule.interval
}

/// The promoted BitNet model that serves now; fp16 itself needs no guard.
fn watched<'a>(view: &View<'a>) -> Option<&'a Revision> {
    let model = view.model();
    let serves = view.standing() == Some(Standing::Settled) && view.weight(model) == 100 && view.serves(model);
    (serves && *model != view.baseline && !view.rollout.deleting).then_some(model)
}

/// Begins, drops or continues the watch, and takes the tick that is due.
pub(super) fn keep(d: &mut Draft<'_>) {
    let rollout = d.view.rollout;
    let (Some(rule), Some(model)) = (&rollout.guard, watched(&d.view)) else {
        d.state().guard = None;
        return;
    };
    let (now, baseline) = (d.now(), d.view.baseline.clone());
    let known = d.plan.state.guard.take().filter(|w| w.revision == *model && w.against == baseline);
    let mut watch = known.unwrap_or_else(|| Watch {
        revision: model.clone(),
        against: baseline,
        tick: 0,
        last_tick: Time(now.0.saturating_sub(rule.interval.0)),
        job: None,
        last_pod: String::new(),
        probe_set: None,
        stored_at: None,
        guard: Guard::new(&rule.settings),
    });
    if now - watch.last_tick >= rule.interval {
        take_tick(d, rule, &mut watch);
    }
    let assessment = watch.guard.summary(&rule.settings);
    checkpoint(d, &mut watch, &assessment);
    d.wake_at(watch.last_tick + rule.interval);
    d.plan.guard = Some(assessment);
    d.state().guard = Some(watch);
}

fn take_tick(d: &mut Draft<'_>, rule: &GuardRule, watch: &mut Watch) {
    let outcome = d.view.obs.sample.as_ref().map_or(ProbeOutcome::Running, |sample| sample.probes.clone());
    watch.tick = watch.tick.saturating_add(1);
    watch.last_tick = d.now();
    match (watch.job.clone(), outcome) {
        (None, _) => ask(d, watch),
        (Some(_), ProbeOutcome::Running) => {}
        // The same comparison of another pod: it draws the same prompts.
        (Some(job), ProbeOutcome::Lost(_) | ProbeOutcome::None) => {
            watch.job = next_pod(&d.view, watch).map(|pod| ProbeJob { pod, ..job });
            post(d, watch);
        }
        (Some(_), ProbeOutcome::Done(probes)) => {
            watch.job = None;
            if counts(watch, rule, &probes) {
                watch.guard.step(&rule.settings, u64::from(watch.tick), Some(&probes));
            }
            ask(d, watch);
        }
    }
}

/// A comparison with fp16, in which the latency pairs are against fp16 too.
fn ask(d: &mut Draft<'_>, watch: &mut Watch) {
    let Some(pod) = next_pod(&d.view, watch) else { return };
    let uid = &d.view.rollout.uid;
    let hash = Fnv::default().bytes(b"guard").bytes(uid.as_bytes()).bytes(watch.revision.0.as_bytes());
    let attempt = d.view.ledger().map_or(0, |l| l.attempt);
    let name = verdict::scrambled(hash.bytes(&watch.last_tick.0.to_le_bytes()).finish());
    watch.job = Some(ProbeJob {
        // A watch that begins anew counts from 0 again: the time makes its keys new, and with them the prompts drawn.
        key: format!("{name:016x}-guard-{}", watch.tick),
        tick: watch.tick,
        pod,
        candidate: watch.revision.clone(),
        baseline: watch.against.clone(),
        stable: watch.against.clone(),
        attempt,
    });
    post(d, watch);
}

fn post(d: &mut Draft<'_>, watch: &mut Watch) {
    if let Some(job) = &watch.job {
        watch.last_pod.clone_from(&job.pod);
    }
    d.plan.probe.clone_from(&watch.job);
}

fn next_pod(view: &View<'_>, watch: &Watch) -> Option<String> {
    let pods = view.ready_pods(&watch.revision);
    pods.iter().find(|p| p.name > watch.last_pod).or(pods.first()).map(|p| p.name.clone())
}

/// Results count that come from the pinned probe set with at least half of their prompts; another set begins a new watch.
fn counts(watch: &mut Watch, rule: &GuardRule, probes: &Probes) -> bool {
    if probes.probe_set.is_empty() || probes.probe_set.len() > 128 {
        return false;
    }
    if watch.probe_set.as_ref() != Some(&probes.probe_set) {
        if watch.probe_set.is_some() {
            watch.guard = Guard::new(&rule.settings);
        }
        watch.probe_set = Some(probes.probe_set.clone());
    }
    probes.prompts.len() as u64 * 2 >= u64::from(probes.drawn)
}

/// A restart of the operator loses what was not stored: that is nothing where nothing leans towards an alarm.
fn checkpoint(d: &mut Draft<'_>, watch: &mut Watch, assessment: &GuardAssessment) {
    let leans = assessment.alarm.is_some() || assessment.ln_m >= WORTH_KEEPING * assessment.bound;
    let now = d.now();
    let recently = watch.stored_at.is_some_and(|at| at <= now && now - at < CHECKPOINT);
    if leans && !recently {
        watch.stored_at = Some(now);
        d.plan.checkpoint = true;
    }
    if !leans && watch.stored_at.is_some() {
        watch.stored_at = None;
        d.plan.checkpoint = true;
    }
}

/// Rule: the guard alarmed, so all traffic goes to fp16 in one write.
pub(super) fn fire(d: &mut Draft<'_>) -> bool {
    let Some((signal, ln_m)) = d.plan.guard.as_ref().and_then(|g| g.alarm) else { return false };
    if watched(&d.view).is_none() || d.by_hand {
        return false;
    }
    let model = format!("Deployment {}", d.view.model());
    let (reason, what) = match signal {
        SignalKind::Cosine => (Reason::QualityFailed, "its mean similarity to fp16 fell under the margin"),
        SignalKind::CosineTail => (Reason::QualityFailed, "too many of its answers are far from fp16 now"),
        SignalKind::Latency | SignalKind::Errors => {
            (Reason::LatencyFailed, "it became slower than the margin against fp16 allows")
        }
    };
    let bound = d.plan.guard.as_ref().map_or(0.0, |g| g.bound);
    let seen = d.plan.guard.iter().flat_map(|g| &g.signals).find(|s| s.kind == signal);
    let estimate = seen.and_then(|s| s.estimate).map_or_else(String::new, |e| format!(", estimate {e:.4}"));
    let words = format!("the guard: {what} (signal {}{estimate}, ln M {ln_m:.1} of {bound:.1})", signal.name());
    if !d.view.fits(&d.view.baseline) {
        let text = format!("{words}, but fp16 has no ready pod to take its traffic");
        d.say(Phase::Degraded, note(Reason::NoBackend, model, text));
        return true;
    }
    verdict::roll_back(d, &Fall { reason, words, by: BY_GUARD.into(), to_fp16: true });
    d.state().guard = None;
    d.plan.probe = None;
    d.plan.checkpoint = true;
    true
}

/// What a settled rollout says of its guard.
pub(super) fn words(d: &Draft<'_>) -> String {
    let Some(rule) = d.view.rollout.guard.as_ref().filter(|_| d.plan.guard.is_some()) else { return String::new() };
    let days = rule.settings.run_length * rule.interval.as_seconds() / 86_400.0;
    format!(
        "; guarded: compared with fp16 every {} s, one false alarm in {days:.0} days at most on average",
        rule.interval.as_seconds()
    )
}
