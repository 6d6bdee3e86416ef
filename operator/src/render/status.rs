//! `status` of the custom resource: what the plan's report, the route and the evidence say, in the words of the API.

mod kstatus;
mod users;

use super::{Compact, decision::rfc3339};
use crate::observe::{RouteView, Shadowed, World};
use bitnet_api::{
    conditions as kind, reasons,
    v1alpha1::{
        DecisionStatus, HistoryEntry, ModelRolloutStatus, RevisionStatus, ShadowStatus, SignalStatus, StepStatus,
        VerbStatus,
    },
    validate::Refusal,
};
use bitnet_core::{
    Time,
    evidence::{Assessment, Finding, Signal, SignalKind, SignalState},
    model::{Revision, Rollout, Source},
    observation::{Ledger, Pod, RouteState, VerbRequest},
    plan::{Plan, State},
    report::{Phase, Reason},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time as KubeTime},
    jiff::Timestamp,
};

/// Verdicts and answers that status keeps.
const RING: usize = 10;
/// Longest message of a condition or of the whole.
const MESSAGE: usize = 2048;

/// What a status is made of.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The rollout.
    pub rollout: &'a Rollout,
    /// Status as it was read.
    pub old: &'a ModelRolloutStatus,
    /// The state as it was read.
    pub stored: &'a State,
    /// The world as it was read.
    pub world: &'a World,
    /// What was planned.
    pub plan: &'a Plan,
    /// The route as the API server answered the last write, or as it was read.
    pub route: &'a RouteView,
    /// Its state.
    pub state: &'a RouteState,
    /// What `apply` could not do, in words.
    pub failures: &'a [String],
    /// Now.
    pub now: Time,
}

/// The status after a plan was carried out.
pub fn render(facts: &Facts<'_>) -> ModelRolloutStatus {
    let Facts { rollout, old, plan, .. } = *facts;
    let ledger = ledger(facts.state);
    let attempt = plan.state.attempt.as_ref();
    let mut status = old.clone();
    status.observed_generation = Some(rollout.generation);
    status.phase = plan.report.phase.name().into();
    status.message = shortened(&message(facts));
    status.baseline = Some(revision_status(facts, &rollout.baseline.revision));
    status.stable = ledger.map(|ledger| revision_status(facts, &ledger.stable));
    let candidate = attempt.map(|attempt| &attempt.candidate).or_else(|| ledger.and_then(|l| l.candidate.as_ref()));
    status.candidate = candidate.map(|candidate| revision_status(facts, candidate));
    status.weights = facts.route.weights();
    status.step = ledger.filter(|l| l.candidate.is_some()).map(|ledger| step(facts, ledger));
    let number = attempt.map(|attempt| attempt.number).or(ledger.map(|ledger| ledger.attempt));
    let number = number.map(|number| number as i32).filter(|number| *number > 0);
    if number != old.attempt
        || status.candidate.as_ref().map(|c| &c.revision) != old.candidate.as_ref().map(|c| &c.revision)
    {
        // Numbers of another attempt would be read as this one's.
        (status.signals, status.missing, status.verdict) = (Vec::new(), Vec::new(), None);
        (status.exposed_requests, status.tick, status.probe_set) = (None, None, None);
        status.shadow = None;
    }
    status.attempt = number;
    status.gate = Some(rollout.gate.parameters_hash());
    if let Some(attempt) = attempt {
        status.tick = Some(attempt.tick as i32);
        status.probe_set.clone_from(&attempt.probe_set);
    }
    if rollout.gate.shadow == 0 {
        status.shadow = None;
    } else if let Some(found) = &facts.world.shadow {
        status.shadow = Some(shadow_status(rollout.gate.shadow, found));
    }
    if let Some(assessment) = &plan.assessment {
        assessed(&mut status, assessment);
    }
    if let Some(guard) = plan.guard.as_ref().filter(|_| plan.checkpoint) {
        status.signals = guard.signals.iter().map(signal_status).collect();
    }
    if let Some(users) = &plan.users {
        status.signals.retain(|signal| !users::NAMES.contains(&signal.name.as_str()));
        status.signals.extend(users::signals(users));
    }
    decided(&mut status, ledger, attempt.is_none());
    answered(&mut status, plan, &facts.world.observation.verbs, facts.now);
    status.evidence =
        Some(plan.to_store(facts.stored).encode(&rollout.gate.parameters_hash())).filter(|text| !text.is_empty());
    status.conditions = conditions(facts, &status);
    status
}

/// The status of a rollout that validation refused: what was, with `Accepted=False`. Nothing else is claimed.
pub fn refused(old: &ModelRolloutStatus, generation: i64, refusal: &Refusal, now: Time) -> ModelRolloutStatus {
    let mut status = old.clone();
    status.observed_generation = Some(generation);
    if status.phase.is_empty() {
        status.phase = Phase::Pending.name().into();
    }
    status.message = shortened(&refusal.to_string());
    let mut set = ConditionSet { old: &old.conditions, generation, now, new: Vec::new() };
    set.put(kind::ACCEPTED, "False", refusal.reason.name(), &refusal.to_string());
    set.put(kind::READY, "False", refusal.reason.name(), &refusal.to_string());
    set.put(kind::PROGRESSING, "False", refusal.reason.name(), &refusal.to_string());
    kstatus::refused(&mut set, refusal);
    set.keep_others();
    status.conditions = set.new;
    status
}

/// The status after a write was denied: the plan did not happen, so its state is not stored.
pub fn denied(old: &ModelRolloutStatus, generation: i64, failure: &str, now: Time) -> ModelRolloutStatus {
    let mut status = old.clone();
    status.observed_generation = Some(generation);
    status.message = shortened(failure);
    let mut set = ConditionSet { old: &old.conditions, generation, now, new: Vec::new() };
    set.put(kind::TRAFFIC_MANAGED, "False", reasons::WRITE_DENIED, failure);
    set.keep_others();
    status.conditions = set.new;
    status
}

fn ledger(state: &RouteState) -> Option<&Ledger> {
    match state {
        RouteState::Found(route) => route.ledger.as_ref(),
        _ => None,
    }
}

fn message(facts: &Facts<'_>) -> String {
    let headline = &facts.plan.report.headline;
    let mut text = match headline.object.as_str() {
        "" => headline.message.clone(),
        object => format!("{object}: {}", headline.message),
    };
    for failure in facts.failures {
        text.push_str("; ");
        text.push_str(failure);
    }
    text
}

fn revision_status(facts: &Facts<'_>, revision: &Revision) -> RevisionStatus {
    let Facts { rollout, old, world, .. } = *facts;
    let workload = world.observation.workloads.get(revision);
    let known = [&rollout.baseline, &rollout.model].into_iter().find(|serving| serving.revision == *revision);
    let before = [&old.stable, &old.candidate, &old.baseline].into_iter().flatten().find(|r| r.revision == revision.0);
    RevisionStatus {
        revision: revision.0.clone(),
        image: known
            .map(|serving| source(&serving.source))
            .or_else(|| before.map(|revision| revision.image.clone()))
            .or_else(|| world.model_image(revision))
            .unwrap_or_default(),
        replicas: workload.and_then(|workload| workload.replicas).unwrap_or(0) as i32,
        ready: workload.map_or(0, bitnet_core::observation::Workload::ready) as i32,
    }
}

fn source(source: &Source) -> String {
    match source {
        Source::Image(image) => image.clone(),
        Source::Claim { claim, path, digest } => format!("{claim}/{path}@sha256:{digest}"),
    }
}

fn step(facts: &Facts<'_>, ledger: &Ledger) -> StepStatus {
    let of = facts.rollout.strategy.steps().len() as u32;
    let index = ledger.step.min(of);
    let candidate = ledger.candidate.as_ref();
    let weight = candidate.and_then(|revision| facts.route.weights().get(&revision.0).copied()).unwrap_or(0);
    let attempt = facts.plan.state.attempt.as_ref();
    StepStatus {
        index: index as i32,
        of: of as i32,
        position: if ledger.step > of { "done".into() } else { format!("{index}/{of}") },
        weight,
        since: attempt.and_then(|attempt| attempt.step_since).map(rfc3339),
    }
}

fn assessed(status: &mut ModelRolloutStatus, assessment: &Assessment) {
    status.verdict = Some(
        match assessment.finding {
            Finding::RollBack { .. } => "RollBack",
            Finding::Tripwire { .. } => "Hold",
            Finding::Promote => "Promote",
            Finding::Inconclusive => "Inconclusive",
            Finding::Continue => "Continue",
        }
        .into(),
    );
    status.signals = assessment.signals.iter().map(signal_status).collect();
    status.missing = assessment.missing.iter().take(16).map(|line| line.chars().take(256).collect()).collect();
    status.exposed_requests = Some(assessment.exposed_requests as i64);
}

/// Takes over what the ledger decided; once per decision into the history.
fn decided(status: &mut ModelRolloutStatus, ledger: Option<&Ledger>, over: bool) {
    let Some(stored) = ledger.and_then(|ledger| ledger.decision.as_ref()) else { return };
    let record = serde_json::from_str::<Compact>(&stored.text).ok();
    let reason = record.as_ref().map(|record| record.reason.clone()).unwrap_or_default();
    let (verdict, at) = (stored.verdict.name().to_owned(), rfc3339(stored.at));
    if over {
        status.verdict = Some(verdict.clone());
        if let Some(record) = record.filter(|_| status.attempt == Some(stored.key.attempt as i32)) {
            // The tick that decided is not in the state any more.
            status.tick = Some(record.tick as i32);
        }
    }
    let entry = HistoryEntry { revision: stored.key.revision.0.clone(), verdict: verdict.clone(), at: at.clone() };
    if !status.history.contains(&entry) {
        status.history.insert(0, entry);
        status.history.truncate(RING);
    }
    status.decision = Some(DecisionStatus { id: stored.id.clone(), verdict, reason, at });
}

fn answered(status: &mut ModelRolloutStatus, plan: &Plan, requests: &[VerbRequest], now: Time) {
    for answer in &plan.answered {
        if status.verbs.iter().any(|known| known.id == answer.id && known.verb == super::verb_name(answer.verb)) {
            continue;
        }
        let by = requests.iter().find(|request| request.id == answer.id).map(|request| request.by.clone());
        status.verbs.insert(
            0,
            VerbStatus {
                verb: super::verb_name(answer.verb).into(),
                id: answer.id.chars().take(128).collect(),
                by: by.unwrap_or_default().chars().take(253).collect(),
                at: rfc3339(now),
                answer: answer.outcome.chars().take(1024).collect(),
            },
        );
    }
    status.verbs.truncate(RING);
}

fn conditions(facts: &Facts<'_>, status: &ModelRolloutStatus) -> Vec<Condition> {
    let Facts { rollout, old, plan, world, .. } = *facts;
    let (report, headline) = (&plan.report, &plan.report.headline);
    let reason = headline.reason.name();
    let ledger = ledger(facts.state);
    let mut set = ConditionSet {
        old: &old.conditions,
        generation: rollout.generation,
        now: facts.now,
        new: Vec::with_capacity(kind::ALL.len()),
    };
    if let RouteState::InUse(holder) = facts.state {
        let text =
            format!("ModelRollout {holder} holds the route: give this rollout a route of its own, or delete {holder}");
        set.put(kind::ACCEPTED, "False", &Reason::RouteInUse.name(), &text);
    } else if let RouteState::Unsupported(why) = facts.state {
        set.put(kind::ACCEPTED, "False", &Reason::GatewayUnsupported.name(), why);
    } else {
        set.put(kind::ACCEPTED, "True", reasons::ACCEPTED, "the spec and everything it names were understood");
    }
    let ready = matches!(report.phase, Phase::Serving | Phase::Promoting);
    set.put(kind::READY, truth(ready), &reason, &status.message);
    set.put(kind::PROGRESSING, truth(progressing(facts)), &reason, &status.message);

    let baseline = world.observation.workloads.get(&rollout.baseline.revision);
    let up = baseline.map_or(0, bitnet_core::observation::Workload::ready);
    let (word, text) = if up > 0 {
        (Reason::Serving.name(), "the fp16 baseline has ready pods".to_owned())
    } else {
        (Reason::BaselineNotReady.name(), problems(baseline.map(|workload| workload.pods.as_slice())))
    };
    set.put(kind::BASELINE_SERVING, truth(up > 0), &word, &text);

    traffic(&mut set, facts, ledger);
    let alarm = plan.guard.as_ref().and_then(|guard| guard.alarm);
    match (&plan.assessment, alarm) {
        (Some(assessment), _) => quality(&mut set, assessment),
        (None, Some((signal, ln_m))) => {
            let text = format!("the guard: {} is beyond its margin (ln M {})", signal.name(), decimal(ln_m, 1));
            set.put(kind::QUALITY_HEALTHY, "False", &failed(signal).name(), &text);
        }
        (None, None) if status.signals.is_empty() => {
            set.put(kind::QUALITY_HEALTHY, "Unknown", reasons::NO_EVIDENCE, "no attempt has brought evidence");
        }
        (None, None) => {}
    }
    let rolled_back = ledger.and_then(|ledger| ledger.rollback_of.as_ref()).filter(|key| {
        key.uid == rollout.uid
            && key.revision == rollout.model.revision
            && ledger.is_some_and(|l| l.attempt == key.attempt)
    });
    match rolled_back {
        Some(key) => {
            let text = format!(
                "attempt {} of {} was rolled back: give another model, or ask for `retry`",
                key.attempt, key.revision
            );
            let why = status.decision.as_ref().map(|decision| decision.reason.clone()).filter(|why| !why.is_empty());
            set.put(kind::ROLLED_BACK, "True", &why.unwrap_or_else(|| Reason::RolledBack.name()), &text);
        }
        None => {
            set.put(kind::ROLLED_BACK, "False", reasons::NOT_ROLLED_BACK, "the model of this spec was not rolled back");
        }
    }
    kstatus::put(&mut set, report, ready, &status.message);
    set.keep_others();
    set.new
}

/// Something moves, or will without a person: false where an object must be corrected first.
fn progressing(facts: &Facts<'_>) -> bool {
    let report = &facts.plan.report;
    let moving = matches!(report.phase, Phase::Pending | Phase::Progressing | Phase::Promoting | Phase::RollingBack);
    let broken = match report.headline.reason {
        Reason::RouteMissing
        | Reason::RuleMissing
        | Reason::GatewayMissing
        | Reason::GatewayUnsupported
        | Reason::RouteInUse
        | Reason::NoBackend
        | Reason::NotComparable
        | Reason::ProbeSetMissing => true,
        Reason::BaselineNotReady | Reason::CandidateNotReady => {
            let workloads = facts.world.observation.workloads.values();
            workloads.flat_map(|workload| &workload.pods).any(|pod| pod.problem.is_some())
        }
        _ => false,
    };
    moving && !broken && facts.failures.is_empty()
}

fn problems(pods: Option<&[Pod]>) -> String {
    let Some(pods) = pods.filter(|pods| !pods.is_empty()) else { return "it has no pods yet".into() };
    let known = pods.iter().find_map(|pod| pod.problem.as_ref().map(|problem| format!("pod {}: {problem}", pod.name)));
    known.unwrap_or_else(|| "its pods are starting".into())
}

fn traffic(set: &mut ConditionSet<'_>, facts: &Facts<'_>, ledger: Option<&Ledger>) {
    let name = facts.rollout.route.route_name(&facts.rollout.name);
    match facts.state {
        RouteState::Unknown => {
            set.put(kind::TRAFFIC_MANAGED, "Unknown", reasons::ROUTE_UNKNOWN, "the route could not be read");
        }
        RouteState::Missing => {
            let text = format!("HTTPRoute {name} does not exist");
            set.put(kind::TRAFFIC_MANAGED, "False", &Reason::RouteMissing.name(), &text);
        }
        RouteState::RuleMissing(why) => set.put(kind::TRAFFIC_MANAGED, "False", &Reason::RuleMissing.name(), why),
        RouteState::GatewayMissing(gateway) => {
            let text = format!("Gateway {gateway} does not exist");
            set.put(kind::TRAFFIC_MANAGED, "False", &Reason::GatewayMissing.name(), &text);
        }
        RouteState::Unsupported(why) => {
            set.put(kind::TRAFFIC_MANAGED, "False", &Reason::GatewayUnsupported.name(), why);
        }
        RouteState::InUse(holder) => {
            let text = format!("ModelRollout {holder} holds HTTPRoute {name}");
            set.put(kind::TRAFFIC_MANAGED, "False", &Reason::RouteInUse.name(), &text);
        }
        RouteState::Found(_) if ledger.is_none() => {
            let text = format!("HTTPRoute {name} is taken over once the baseline is ready");
            set.put(kind::TRAFFIC_MANAGED, "False", &facts.plan.report.headline.reason.name(), &text);
        }
        RouteState::Found(route) => {
            let report = &facts.plan.report;
            let mut notes = std::iter::once(&report.headline).chain(&report.notes);
            // A gateway needs a moment after each write: only the plan says when that was too long.
            match notes.find(|note| note.reason == Reason::RouteNotAccepted) {
                Some(note) if !route.accepted && set.was(kind::TRAFFIC_MANAGED) != Some("True") => {
                    set.put(kind::TRAFFIC_MANAGED, "False", &note.reason.name(), &note.message);
                }
                _ => {
                    let text = format!("HTTPRoute {name} carries the weights of this rollout");
                    if let Some(why) = &facts.world.balancing.problem {
                        let text = format!("{text}, but {why}");
                        set.put(kind::TRAFFIC_MANAGED, "False", &Reason::GatewayUnsupported.name(), &text);
                    } else {
                        set.put(kind::TRAFFIC_MANAGED, "True", &Reason::Serving.name(), &text);
                    }
                }
            }
        }
    }
}

fn quality(set: &mut ConditionSet<'_>, assessment: &Assessment) {
    match &assessment.finding {
        Finding::RollBack { signal, ln_e } => {
            let text = format!("{} is proven worse than its margin (ln E {})", signal.name(), decimal(*ln_e, 1));
            set.put(kind::QUALITY_HEALTHY, "False", &failed(*signal).name(), &text);
        }
        Finding::Tripwire { reason } => set.put(kind::QUALITY_HEALTHY, "False", &Reason::Tripwire.name(), reason),
        _ if assessment.prompts == 0 && assessment.exposed_requests == 0 => {
            set.put(kind::QUALITY_HEALTHY, "Unknown", reasons::NO_EVIDENCE, "no sample yet");
        }
        _ => set.put(kind::QUALITY_HEALTHY, "True", reasons::WITHIN_MARGINS, "nothing speaks against the candidate"),
    }
}

fn failed(signal: SignalKind) -> Reason {
    match signal {
        SignalKind::Cosine | SignalKind::CosineTail => Reason::QualityFailed,
        SignalKind::Latency => Reason::LatencyFailed,
        SignalKind::Errors => Reason::ErrorsFailed,
    }
}

/// Live prompts in the words of the API.
fn shadow_status(percent: u32, found: &Shadowed) -> ShadowStatus {
    let mean = |sum: f64| (found.samples > 0).then(|| decimal(sum / found.samples as f64, 4));
    ShadowStatus {
        percent: percent as i32,
        consent: found.consent,
        samples: found.samples as i64,
        dropped: found.dropped as i64,
        cosine: mean(found.cosine),
        tail: mean(found.below as f64),
        agreement: mean(found.top1),
    }
}

/// A signal in the words of the API.
pub(super) fn signal_status(signal: &Signal) -> SignalStatus {
    let places = match signal.kind {
        SignalKind::Cosine | SignalKind::CosineTail | SignalKind::Errors => 4,
        SignalKind::Latency => 3,
    };
    SignalStatus {
        name: signal.kind.name().into(),
        verdict: match signal.state {
            SignalState::NoData => "Waiting",
            SignalState::Continue => "Continue",
            SignalState::Proven => "Proven",
            SignalState::Failed => "Failed",
        }
        .into(),
        samples: signal.samples as i64,
        required: signal.required.map(|required| required as i64),
        estimate: signal.estimate.map(|estimate| decimal(estimate, places)),
        interval: signal
            .interval
            .iter()
            .flat_map(|(low, high)| [decimal(*low, places), decimal(*high, places)])
            .collect(),
        evidence: Some(decimal(signal.ln_rollback, 2)),
        evidence_for: Some(decimal(signal.ln_promote, 2)),
        detail: Some(signal.detail.chars().take(256).collect::<String>()).filter(|detail| !detail.is_empty()),
    }
}

/// A number with so many decimals, never `-0`.
pub(super) fn decimal(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| b == b'0' || b == b'.') => rest.to_owned(),
        _ => text,
    }
}

fn truth(holds: bool) -> &'static str {
    if holds { "True" } else { "False" }
}

fn shortened(text: &str) -> String {
    text.chars().take(MESSAGE).collect()
}

/// Builds conditions whose `lastTransitionTime` moves only when their status flips.
struct ConditionSet<'a> {
    old: &'a [Condition],
    generation: i64,
    now: Time,
    new: Vec<Condition>,
}

impl ConditionSet<'_> {
    fn was(&self, type_: &str) -> Option<&str> {
        self.old.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.as_str())
    }

    fn put(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let before = self.old.iter().find(|condition| condition.type_ == type_);
        let since = match before {
            Some(before) if before.status == status => before.last_transition_time.clone(),
            _ => KubeTime(Timestamp::from_second(self.now.0.div_euclid(1000)).unwrap_or_default()),
        };
        self.new.push(Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message: shortened(message),
            observed_generation: Some(self.generation),
            last_transition_time: since,
        });
    }

    /// Conditions that were not put stay as they were, in the order of [`kind::ALL`].
    fn keep_others(&mut self) {
        for old in self.old {
            if !self.new.iter().any(|new| new.type_ == old.type_) {
                self.new.push(old.clone());
            }
        }
        let rank = |type_: &str| kind::ALL.iter().position(|known| *known == type_).unwrap_or(kind::ALL.len());
        self.new.sort_by_key(|condition| rank(&condition.type_));
    }
}

#[cfg(test)]
mod gitops;
#[cfg(test)]
mod tests;
