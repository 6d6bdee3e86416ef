//! The running attempt: its ticks, its comparisons, its evidence.

use super::{
    Attempt, ProbeJob, ab_test, blue_green, canary,
    draft::{Draft, note, shortened},
    tick_due,
    verdict::scrambled,
    view::{Standing, View},
};
use crate::{
    Span, Time,
    evidence::{Assessment, Evidence, Gate, Probes, Tick, codec::Fnv},
    model::{Revision, Rollout, Strategy},
    observation::{Comparable, ProbeOutcome, Sample},
    report::{Phase, Reason},
};

/// Ticks with ready pods after which a tripped attempt goes on.
const READY_TICKS: u32 = 2;
/// No tick has more prompts: what claims to is garbage.
const MOST_PROMPTS: u32 = 256;

/// The gate of the k-th test: alpha / 2^k, so that all tests of an attempt together keep twice the budget. An A/B test
/// watches for defects that begin late as long as it lasts.
pub(super) fn effective(rollout: &Rollout, reconfigurations: u32) -> Gate {
    let (gate, share) = (&rollout.gate, 0.5f64.powi(reconfigurations.min(60) as i32));
    let longer = match &rollout.strategy {
        Strategy::AbTest(test) => test.duration(),
        Strategy::Canary(_) | Strategy::BlueGreen(_) => Span(0),
    };
    Gate {
        alpha_rollback: gate.alpha_rollback * share,
        alpha_promote: gate.alpha_promote * share,
        deadline: Span(gate.deadline.0.saturating_add(longer.0)),
        ..gate.clone()
    }
}

/// Begins, drops or continues the attempt, takes the tick that is due, and leaves its assessment in the plan.
pub(super) fn keep(d: &mut Draft<'_>) {
    if d.standing() != Some(Standing::Trial) {
        if !matches!(d.standing(), Some(Standing::Next)) {
            d.state().paused = false;
        }
        d.state().attempt = None;
        return;
    }
    let (model, number) = (d.view.model().clone(), d.view.ledger().map_or(0, |l| l.attempt));
    let baseline = d.view.baseline.clone();
    let same = |a: &Attempt| a.candidate == model && a.number == number && a.against == baseline;
    if !d.plan.state.attempt.as_ref().is_some_and(same) {
        let begins = d.view.staffed() || d.trial_weight() > 0;
        let last_tick = Time(d.now().0.saturating_sub(d.view.rollout.gate.interval.0.max(0)));
        d.state().attempt = begins.then(|| Attempt::begin(model, number, baseline, last_tick));
        if begins {
            d.wake(Span(0));
        }
    }
    take_tick(d);
    let confirmed = d.confirmed().then_some(d.plan.state.confirmed_at).flatten();
    let rollout = d.view.rollout;
    let Some(attempt) = d.plan.state.attempt.as_mut() else { return };
    attempt.step_since = confirmed;
    let gate = effective(rollout, attempt.reconfigurations);
    if d.plan.assessment.is_none()
        && let Some(evidence) = &attempt.evidence
    {
        d.plan.assessment = Some(asked(&d.view, evidence, &gate, evidence.summary(&gate)));
    }
    d.plan.users = ab_test::summary(d, &gate);
}

impl Attempt {
    /// An attempt without a tick.
    pub(super) fn begin(candidate: Revision, number: u32, against: Revision, last_tick: Time) -> Self {
        Self {
            candidate,
            number,
            against,
            tick: 0,
            last_tick,
            excused: 0,
            step_since: None,
            step_ticks: 0,
            last_requests: 0,
            unwatched: Span(0),
            step_released: false,
            trips: 0,
            ready_ticks: 0,
            tripped: false,
            job: None,
            last_pod: String::new(),
            probe_set: None,
            other_probe_set: None,
            probe_set_missing: false,
            comparable: false,
            mismatch: None,
            reconfigurations: 0,
            evidence: None,
            users: None,
        }
    }

    /// Ticks that the gate's deadline counts.
    pub(super) fn counted(&self) -> u32 {
        self.tick.saturating_sub(self.excused)
    }

    /// A new test: the evidence starts again, the next budget is half, the deadline starts anew. What was rejected
    /// before stays rejected.
    fn reconfigure(&mut self, rollout: &Rollout) {
        self.reconfigurations = self.reconfigurations.saturating_add(1);
        self.excused = self.tick;
        let gate = effective(rollout, self.reconfigurations);
        if let Some(evidence) = &mut self.evidence {
            evidence.renew(&gate);
        }
    }
}

fn take_tick(d: &mut Draft<'_>) {
    let (rollout, now) = (d.view.rollout, d.now());
    let interval = Span(rollout.gate.interval.0.max(1));
    if !tick_due(rollout, &d.plan.state, now) {
        return;
    }
    let Some(running) = &mut d.plan.state.attempt else { return };
    let late = now - running.last_tick;
    let missed = Sample { probes: ProbeOutcome::Running, ..Sample::default() };
    let sample = match &d.view.obs.sample {
        Some(sample) => sample,
        // Asked for and not there: it comes with the next look, or the tick passes without data.
        None if late.0 < interval.0.saturating_mul(2) => {
            d.wake(Span(200));
            return;
        }
        None => &missed,
    };
    // Moved, not cloned: what stays while the tick is taken is the clock that `watched_for` reads.
    let none = Attempt::begin(Revision::default(), running.number, Revision::default(), running.last_tick);
    let mut attempt = std::mem::replace(running, Attempt { unwatched: running.unwatched, ..none });
    compare_identities(d, &mut attempt, sample);
    if attempt.mismatch.is_some() {
        attempt.job = None;
        d.state().attempt = Some(attempt);
        return;
    }
    let tests = attempt.reconfigurations;
    let current = effective(rollout, tests);
    if attempt.evidence.as_ref().is_some_and(|e| !e.is_of(&current)) {
        attempt.reconfigure(rollout);
    }
    let probes = take_probes(d, &mut attempt, sample);
    if attempt.reconfigurations != tests {
        tell_restart(d, &attempt);
    }
    attempt.tick = attempt.tick.saturating_add(1);
    // One tick however late it is; a tick that is only a little late does not move the ones after it.
    if late.0 >= interval.0.saturating_mul(2) && d.confirmed() {
        attempt.unwatched = Span(attempt.unwatched.0.saturating_add(late.0 - interval.0));
    }
    attempt.last_tick = if late.0 < interval.0.saturating_mul(2) { attempt.last_tick + interval } else { now };
    let tick = tick(d, &attempt, sample, probes);
    let gate = effective(rollout, attempt.reconfigurations);
    let evidence = attempt.evidence.get_or_insert_with(|| Box::new(Evidence::new(&gate)));
    let assessment = evidence.step(&gate, &tick);
    d.plan.assessment = Some(asked(&d.view, evidence, &gate, assessment));
    d.ticked = true;
    ab_test::take_users(d, &mut attempt, &gate, &tick, sample);
    if let Some((candidate, _, _)) = &tick.live {
        attempt.last_requests = u32::try_from(candidate.requests).unwrap_or(u32::MAX);
        if tick.weight.is_some_and(|w| w > 0) {
            attempt.step_ticks = attempt.step_ticks.saturating_add(1);
        }
    }
    excuse(d, &mut attempt);
    attempt.ready_ticks = if tick.ready_candidate > 0 { attempt.ready_ticks.saturating_add(1) } else { 0 };
    if attempt.tripped && attempt.ready_ticks >= READY_TICKS {
        attempt.tripped = false;
        attempt.ready_ticks = 0;
    }
    ask(d, &mut attempt);
    d.state().attempt = Some(attempt);
}

/// What the strategy asks of a promotion: a switch at weight 0 has no live requests to ask anything of.
fn asked(view: &View<'_>, evidence: &Evidence, gate: &Gate, assessment: Assessment) -> Assessment {
    match &view.rollout.strategy {
        Strategy::Canary(_) => assessment,
        Strategy::BlueGreen(_) => evidence.for_switch(gate, assessment),
        Strategy::AbTest(test) => ab_test::asked(test, evidence, gate, assessment),
    }
}

/// Pauses do not use up the gate's deadline, nor does the watch after a switch.
fn excuse(d: &Draft<'_>, attempt: &mut Attempt) {
    let step = d.view.step_at(d.trial_weight());
    let at_pause = step
        .checked_sub(1)
        .and_then(|i| d.view.steps().get(i))
        .is_some_and(|s| s.pause && !attempt.step_released && d.watched_for().is_some_and(|on| on >= s.duration));
    if d.paused() || at_pause || blue_green::needs_no_deadline(d, attempt) || ab_test::needs_no_deadline(d) {
        attempt.excused = attempt.excused.saturating_add(1);
    }
}

fn compare_identities(d: &mut Draft<'_>, attempt: &mut Attempt, sample: &Sample) {
    let (field, theirs, than) = match &sample.comparable {
        Comparable::Yes => {
            attempt.comparable = true;
            return;
        }
        Comparable::Unknown => return,
        Comparable::No { field, baseline, candidate } => {
            (field, candidate, format!("the baseline's is {}", shortened(baseline, 48)))
        }
        Comparable::Other { field, asked, found } => (field, found, format!("the spec says {}", shortened(asked, 48))),
    };
    let why = format!("{} is {}, {than}", shortened(field, 32), shortened(theirs, 48));
    let text = format!("cannot be compared with the baseline: {why}; it gets no traffic");
    d.event(true, Reason::NotComparable, format!("Deployment {}", attempt.candidate), text);
    attempt.comparable = false;
    attempt.mismatch = Some(why);
}

/// A gate with other parameters or another probe set is another test.
fn tell_restart(d: &mut Draft<'_>, attempt: &Attempt) {
    let text = format!(
        "the gate's parameters or the probe set changed: a new test begins, at 1/{} of the error budget",
        1u64 << attempt.reconfigurations.min(60)
    );
    let gate = format!("QualityGate {}", d.view.rollout.gate.name);
    d.event(false, Reason::Reconfigured, gate, text);
}

/// What the finished comparison brought, where it counts.
fn take_probes(d: &mut Draft<'_>, attempt: &mut Attempt, sample: &Sample) -> Option<Probes> {
    let job = attempt.job.clone()?;
    match &sample.probes {
        ProbeOutcome::Running => None,
        // The same key to the next pod: it draws the same prompts, and only one answer counts. An outcome of `None`
        // is the same: whoever asked is gone.
        ProbeOutcome::Lost(_) | ProbeOutcome::None => {
            attempt.job = next_pod(&d.view, &job.pod).map(|pod| ProbeJob { pod, ..job });
            attempt.last_pod = attempt.job.as_ref().map_or(attempt.last_pod.clone(), |j| j.pod.clone());
            d.plan.probe.clone_from(&attempt.job);
            None
        }
        ProbeOutcome::Done(probes) => {
            attempt.job = None;
            counted(attempt, d.view.rollout, probes).then(|| probes.clone())
        }
    }
}

/// Results count that come whole, from the pinned probe set, with at least half of their prompts.
fn counted(attempt: &mut Attempt, rollout: &Rollout, probes: &Probes) -> bool {
    // Without a set nothing was drawn; an answer that cannot be used has drawn and names none.
    attempt.probe_set_missing = probes.probe_set.is_empty() && probes.drawn == 0;
    if probes.probe_set.is_empty() || probes.probe_set.len() > 128 {
        return false;
    }
    match &attempt.probe_set {
        Some(pinned) if *pinned != probes.probe_set => {
            if attempt.other_probe_set.as_ref() != Some(&probes.probe_set) {
                attempt.other_probe_set = Some(probes.probe_set.clone());
                return false;
            }
            // The second in a row: the set was changed on purpose. From here on it is the one that counts.
            attempt.probe_set = attempt.other_probe_set.take();
            attempt.reconfigure(rollout);
        }
        Some(_) => attempt.other_probe_set = None,
        None => attempt.probe_set = Some(probes.probe_set.clone()),
    }
    let valid = probes.prompts.len() as u64;
    let finite = probes.prompts.iter().all(|p| p.cosine.is_finite() && p.cosine_at.is_finite());
    let whole = probes.drawn > 0 && probes.drawn <= MOST_PROMPTS && valid <= u64::from(probes.drawn);
    whole && finite && valid * 2 >= u64::from(probes.drawn)
}

fn tick(d: &Draft<'_>, attempt: &Attempt, sample: &Sample, probes: Option<Probes>) -> Tick {
    let (view, gate) = (&d.view, &d.view.rollout.gate);
    let steps = view.steps();
    let weight = d.trial_weight();
    let index = view.step_at(weight);
    let at = if sample.at == Time::default() { view.now } else { sample.at.min(view.now) };
    let seconds = sample.live.as_ref().map_or(gate.interval.as_seconds(), |l| l.seconds);
    let began = Time(at.0.saturating_sub((seconds * 1000.0) as i64));
    let stable = view.ledger().map(|l| l.stable.clone()).unwrap_or_default();
    let in_force = !d.by_hand
        && d.confirmed()
        && d.plan.state.confirmed_at.is_some_and(|t| t <= began)
        && view.weight(&stable) == 100 - weight.min(100);
    let dwell = |i: usize| steps.get(i).map_or(Span(0), |s| canary::least_time(view, s));
    let here = index.saturating_sub(1);
    let elapsed = d.confirmed_for().unwrap_or(Span(0));
    let mut until_last = if index == 0 { 0 } else { (dwell(here).0 - elapsed.0).max(0) };
    for i in index..steps.len().saturating_sub(1) {
        until_last = until_last.saturating_add(dwell(i).0);
    }
    let pods = view.ready_pods(view.model());
    Tick {
        number: attempt.tick,
        at,
        weight: in_force.then_some(weight),
        chosen: matches!(view.rollout.strategy, Strategy::Canary(_))
            && index > 0
            && steps.get(here).is_some_and(|s| !s.matches.is_empty()),
        weight_change: view.ledger().map_or(0, |l| l.epoch) as u32,
        last_step: index >= steps.len() && weight > 0,
        until_last_step: Span(if index >= steps.len() { 0 } else { until_last }),
        last_weight: steps.last().map_or(0, |s| s.weight),
        step_duration: steps.get(here).map_or(Span(0), |s| s.duration),
        ready_candidate: pods.len() as u32,
        ready_stable: view.ready_pods(&stable).len() as u32,
        live: sample.live.as_ref().map(|l| (l.candidate.clone(), l.stable.clone(), l.seconds)),
        warm: pods.iter().all(|p| p.ready_since.is_some_and(|t| view.now - t >= gate.warmup)) && !pods.is_empty(),
        stable_total: sample.stable_total.clone(),
        probes,
        seed: seed(&view.rollout.uid, attempt.number, attempt.tick),
    }
}

fn seed(uid: &str, attempt: u32, tick: u32) -> u64 {
    let hash = Fnv::default().bytes(uid.as_bytes()).bytes(&attempt.to_le_bytes()).bytes(&tick.to_le_bytes());
    scrambled(hash.finish())
}

/// One comparison per tick, to one ready pod in turn; none while one is out.
fn ask(d: &mut Draft<'_>, attempt: &mut Attempt) {
    if attempt.job.is_some() || !attempt.comparable {
        return;
    }
    let Some(pod) = next_pod(&d.view, &attempt.last_pod) else { return };
    let uid = &d.view.rollout.uid;
    let name = Fnv::default().bytes(attempt.candidate.0.as_bytes()).finish() ^ seed(uid, attempt.number, attempt.tick);
    let job = ProbeJob {
        key: format!("{name:016x}-{}-{}", attempt.number, attempt.tick),
        tick: attempt.tick,
        pod: pod.clone(),
        candidate: attempt.candidate.clone(),
        baseline: d.view.baseline.clone(),
        stable: d.view.ledger().map(|l| l.stable.clone()).unwrap_or_default(),
        attempt: attempt.number,
    };
    attempt.last_pod = pod;
    attempt.job = Some(job.clone());
    d.plan.probe = Some(job);
}

/// The ready candidate pod after `last` by name, around the end.
fn next_pod(view: &View<'_>, last: &str) -> Option<String> {
    let pods = view.ready_pods(view.model());
    pods.iter().find(|p| p.name.as_str() > last).or(pods.first()).map(|p| p.name.clone())
}

/// What the attempt waits for where nothing else was said.
pub(super) fn describe(d: &mut Draft<'_>) {
    let model = format!("Deployment {}", d.view.model());
    let Some(attempt) = d.plan.state.attempt.clone() else { return };
    if let Some(why) = &attempt.mismatch {
        let text = format!("cannot be compared with the baseline ({why}): weight 0; a new model or `retry` goes on");
        d.say(Phase::Holding, note(Reason::NotComparable, model, text));
        return;
    }
    if attempt.tripped {
        let text =
            format!("weight 0 until its pods were ready for two ticks (trip {} of 2, then rollback)", attempt.trips);
        d.say(Phase::Holding, note(Reason::Tripwire, model.clone(), text));
    }
    if attempt.probe_set_missing {
        let probes = &d.view.rollout.gate.probes;
        let text = format!("its workers have no probe set: key {} is missing or has no prompt", probes.key);
        d.say(Phase::Holding, note(Reason::ProbeSetMissing, format!("ConfigMap {}", probes.config_map), text));
    }
    if !attempt.comparable && attempt.tick > 1 {
        let text = "the workers have not said yet what they serve; it is asked again at each tick";
        d.say(Phase::Progressing, note(Reason::IdentityUnknown, model, text));
    }
}
