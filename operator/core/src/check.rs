//! Lints for plans: what no plan may ever ask for.
//!
//! [`check`] reads a plan beside the observation that it was made from and names every rule that it breaks. It shares no
//! code with the planner on purpose: tests run it on every plan, and the operator before it applies one.

use crate::{
    Span,
    evidence::{Finding, OnInconclusive, SignalKind},
    model::{Capacity, Revision, Rollout, Strategy},
    observation::{Detour, DetourState, Ledger, Observation, Route, RouteState, Workload},
    plan::{DecisionRecord, Plan, RouteWrite, Shrink, Verdict},
};
use std::{collections::BTreeMap, fmt};

/// A rule that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name of the rule: `T` traffic, `C` capacity, `D` decision, `X` deletion, `L` liveness.
    pub rule: &'static str,
    /// What is wrong, with names and numbers.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.message)
    }
}

/// Every rule that the plan breaks; empty for a plan that may be carried out.
pub fn check(rollout: &Rollout, observation: &Observation, plan: &Plan) -> Vec<Violation> {
    let mut lint = Lint { rollout, obs: observation, plan, found: Vec::new() };
    lint.traffic();
    lint.capacity();
    lint.decision();
    lint.deletion();
    lint.liveness();
    lint.found
}

/// A write that sets weights.
struct Written<'a> {
    backends: &'a [(Revision, u32)],
    ledger: &'a Ledger,
    decision: Option<&'a DecisionRecord>,
}

impl Written<'_> {
    fn weight(&self, revision: &Revision) -> u32 {
        self.backends.iter().find(|(r, _)| r == revision).map_or(0, |(_, w)| *w)
    }
}

struct Lint<'a> {
    rollout: &'a Rollout,
    obs: &'a Observation,
    plan: &'a Plan,
    found: Vec<Violation>,
}

impl<'a> Lint<'a> {
    fn say(&mut self, rule: &'static str, message: impl Into<String>) {
        self.found.push(Violation { rule, message: message.into() });
    }

    fn demand(&mut self, holds: bool, rule: &'static str, message: impl FnOnce() -> String) {
        if !holds {
            self.say(rule, message());
        }
    }

    fn route(&self) -> Option<&'a Route> {
        match &self.obs.route {
            RouteState::Found(route) => Some(route),
            _ => None,
        }
    }

    /// The ledger that is stored, if it is this rollout's.
    fn stored(&self) -> Option<&'a Ledger> {
        self.route().and_then(|r| r.ledger.as_ref()).filter(|l| l.uid == self.rollout.uid)
    }

    fn written(&self) -> Option<Written<'a>> {
        match &self.plan.shift {
            Some(RouteWrite::Create { backends, ledger }) => Some(Written { backends, ledger, decision: None }),
            Some(RouteWrite::Set { backends, ledger, decision, .. }) => {
                Some(Written { backends, ledger, decision: decision.as_deref() })
            }
            _ => None,
        }
    }

    fn workload(&self, revision: &Revision) -> Option<&'a Workload> {
        self.obs.workloads.get(revision)
    }

    fn endpoints(&self, revision: &Revision) -> u32 {
        self.workload(revision).map_or(0, |w| w.ready_endpoints)
    }

    fn old_weight(&self, revision: &Revision) -> u32 {
        self.route().map_or(0, |r| r.weight(revision))
    }

    fn traffic(&mut self) {
        self.traffic_lost();
        let Some(Written { backends, ledger, decision }) = self.written() else { return };
        let sum: u64 = backends.iter().map(|(_, w)| u64::from(*w)).sum();
        self.demand(sum == 100, "T1", || format!("the weights sum to {sum}, not 100"));
        self.demand((1..=3).contains(&backends.len()), "T1", || format!("{} backends, not 1 to 3", backends.len()));
        let names: BTreeMap<&Revision, u32> = backends.iter().map(|(r, w)| (r, *w)).collect();
        self.demand(names.len() == backends.len(), "T1", || "a backend is listed twice".into());
        for (revision, weight) in backends {
            let known =
                self.workload(revision).is_some_and(|w| w.service) || (*weight > 0 && self.endpoints(revision) > 0);
            self.demand(known, "T1", || format!("{revision} has no Service"));
            let dead = *weight > 0 && self.endpoints(revision) == 0;
            self.demand(!dead, "T2", || format!("{revision} gets {weight} % and has no ready endpoint"));
        }
        let old_epoch = self.stored().map_or(0, |l| l.epoch);
        self.demand(ledger.epoch > old_epoch, "F2", || {
            format!("epoch {} does not rise from {old_epoch}", ledger.epoch)
        });
        self.demand(ledger.uid == self.rollout.uid, "T1", || "the ledger names another rollout".into());
        self.steps(&names, ledger, decision);
        self.detours(&names);
    }

    /// Rules beside ours lead only to what may have traffic, are awake in an A/B test and at a step with a match only, and
    /// come and go asleep.
    fn detours(&mut self, names: &BTreeMap<&Revision, u32>) {
        let Some(RouteWrite::Set { detours, .. }) = &self.plan.shift else { return };
        let testing = matches!(self.rollout.strategy, Strategy::AbTest(_));
        let positive = names.values().filter(|w| **w > 0).count();
        let model = &self.rollout.model.revision;
        let weight = names.get(model).copied().unwrap_or(0);
        let step = self.rollout.strategy.steps().iter().rfind(|s| s.weight <= weight);
        let awake = |rule: &&Detour| !rule.sleeps();
        let chosen = |rule: &Detour| {
            let to_model = rule.to.as_ref() == Some(model);
            !testing && to_model && step.is_some_and(|s| !s.matches.is_empty() && s.matches == rule.headers)
        };
        let unmarked = detours.mark.is_some() || detours.rules.iter().filter(awake).all(chosen);
        self.demand(unmarked, "T5", || "a rule is derived that neither an A/B test nor a step asks for".into());
        self.demand(detours.mark.is_none() || (testing && positive == 2), "T5", || {
            "requests are marked outside of an A/B test".into()
        });
        for rule in &detours.rules {
            let bare = awake(&rule) || rule.headers.is_empty() && rule.to.is_none();
            self.demand(bare && rule.state != DetourState::Altered, "T5", || {
                format!("rule {} is no rule of ours", rule.name)
            });
            let Some(to) = &rule.to else { continue };
            let fits = names.get(to).is_some_and(|w| *w > 0) && self.endpoints(to) > 0;
            self.demand(fits, "T2", || format!("rule {} leads to {to}, which has no traffic", rule.name));
        }
        let there = self.route().map(|r| r.detours.rules.as_slice()).unwrap_or_default();
        for rule in detours.rules.iter().filter(awake) {
            let known = there.iter().any(|old| old.name == rule.name);
            self.demand(known, "T8", || format!("rule {} is awake before the gateway knows it", rule.name));
        }
        for old in there.iter().filter(awake) {
            let stays = detours.rules.iter().any(|rule| rule.name == old.name);
            self.demand(stays, "T8", || format!("rule {} goes while requests take it", old.name));
        }
    }

    /// The candidate's weight: a value of the step list, never skipping a step upward, with enough pods.
    fn steps(&mut self, names: &BTreeMap<&Revision, u32>, ledger: &Ledger, decision: Option<&DecisionRecord>) {
        let promoted = decision.is_some_and(|d| d.verdict == Verdict::Promoted);
        let model = &self.rollout.model;
        let steps = self.rollout.strategy.steps();
        let blue_green = matches!(self.rollout.strategy, Strategy::BlueGreen(_));
        let new = names.get(&model.revision).copied().unwrap_or(0);
        let old = self.old_weight(&model.revision);
        let candidate = ledger.candidate.as_ref() == Some(&model.revision)
            && ledger.stable != model.revision
            && self.rollout.baseline.revision != model.revision;
        if candidate && new > old {
            let next = steps.iter().map(|s| s.weight).find(|w| *w > old);
            // A change by hand may be put back upward, to what the last write had.
            let reverts = !self.plan.state.reverts.is_empty() && steps.iter().any(|s| s.weight == new);
            let back = reverts && self.stored().is_some_and(|l| l.step > 0 && !self.latched(l));
            self.demand(next == Some(new) || back, "T4", || format!("{old} to {new} % is no step"));
            // What is put back was there before; a raise has the pods that its step names.
            let named = steps.iter().find(|s| s.weight == new && !back).and_then(|s| s.replicas).unwrap_or(0);
            let share = (u64::from(model.replicas.max(1)) * u64::from(new)).div_ceil(100);
            let need = share.max(u64::from(named.min(model.replicas.max(1))));
            let have = u64::from(self.endpoints(&model.revision));
            let autoscaled = self.workload(&model.revision).is_some_and(|w| w.autoscaled);
            self.demand(have >= need || autoscaled, "C3", || format!("{new} % needs {need} ready pods, has {have}"));
        }
        if promoted {
            self.demand(new == 100, "T4", || format!("promoted with {new} %"));
            let (have, need) = (self.endpoints(&model.revision), model.replicas.max(1));
            let autoscaled = self.workload(&model.revision).is_some_and(|w| w.autoscaled);
            self.demand(have >= need || autoscaled, "C3", || format!("promoted with {have} of {need} pods ready"));
            self.demand(ledger.stable == model.revision, "D6", || "promoted without becoming stable".into());
            let by_rule = decision.is_some_and(|d| d.by == "gate");
            let first = blue_green && by_rule && old < 100;
            self.demand(!first, "D6", || format!("promoted from {old} % without the time after the switch"));
        } else if candidate {
            self.demand(new < 100 || blue_green, "T4", || "100 % without a promotion".into());
        }
    }

    fn latched(&self, ledger: &Ledger) -> bool {
        ledger
            .candidate
            .as_ref()
            .is_some_and(|c| ledger.rollback_of.as_ref() == Some(&self.rollout.latch_key(c, ledger.attempt)))
    }

    /// T3: a candidate without a ready endpoint keeps no weight while another revision can serve.
    fn traffic_lost(&mut self) {
        let Some(ledger) = self.stored() else { return };
        let model = &self.rollout.model.revision;
        let on_trial = ledger.candidate.as_ref() == Some(model) && ledger.stable != *model;
        if self.rollout.deleting || !on_trial || self.old_weight(model) == 0 || self.endpoints(model) > 0 {
            return;
        }
        let fallen = ledger.rollback_of.as_ref().is_some_and(|k| k.revision == ledger.stable);
        let other = self.endpoints(&ledger.stable) > 0 && !fallen;
        let weight = self.written().map_or(self.old_weight(model), |w| w.weight(model));
        self.demand(!other || weight == 0 || !self.plan.state.reverts.is_empty(), "T3", || {
            format!("{model} has no ready endpoint and keeps {weight} %")
        });
    }

    fn capacity(&mut self) {
        for grow in &self.plan.grow {
            let revision = &grow.serving.revision;
            let have = self.workload(revision);
            let lower = grow.replicas.is_some_and(|n| have.and_then(|w| w.replicas).is_some_and(|h| h > n));
            self.demand(!lower, "C2", || format!("growing {revision} would lower its replicas"));
            let owned = grow.replicas.is_some() && have.is_some_and(|w| w.autoscaled && w.replicas.is_some());
            self.demand(!owned, "C6", || format!("{revision}'s replicas belong to an autoscaler"));
            let latched = self.stored().is_some_and(|l| {
                self.latched(l) && l.candidate.as_ref() == Some(revision) && l.stable != *revision && !grow.baseline
            });
            // The write that starts a new attempt lifts the latch before anything grows again.
            let lifted = self.written().is_some_and(|w| w.ledger.rollback_of.is_none());
            self.demand(!latched || lifted, "C5", || format!("{revision} was rolled back and grows"));
        }
        self.demand(self.plan.grow.is_empty() || !self.obs.namespace_terminating, "X3", || {
            "something grows in a terminating namespace".into()
        });
        for shrink in &self.plan.shrink {
            self.shrinks(shrink);
        }
        self.swap();
    }

    /// need(x): pods of the model for a share of the traffic.
    fn need(&self, share: u32) -> u32 {
        let pods = (u64::from(self.rollout.model.replicas.max(1)) * u64::from(share.min(100))).div_ceil(100);
        u32::try_from(pods).unwrap_or(u32::MAX).max(1)
    }

    /// Pods go and the revision serves on: because the spec asks for fewer, or stable makes room for the candidate.
    fn lowers(&mut self, revision: &Revision, pods: u32) {
        self.demand(pods > 0, "C1", || format!("{revision} is lowered to nothing"));
        let fp16 = *revision == self.rollout.baseline.revision || self.workload(revision).is_some_and(|w| w.baseline);
        self.demand(!fp16, "C2", || format!("fp16 {revision} is lowered"));
        let autoscaled = self.workload(revision).is_some_and(|w| w.autoscaled);
        self.demand(!autoscaled, "C6", || format!("{revision}'s replicas belong to an autoscaler"));
        let model = &self.rollout.model.revision;
        if revision == model || self.stored().is_none_or(|l| l.stable != *revision) {
            return;
        }
        let swap = self.rollout.capacity == Capacity::Swap && self.plan.shift.is_none();
        self.demand(swap, "C2", || format!("stable {revision} is lowered"));
        let accepted = self.route().is_some_and(|r| r.accepted);
        self.demand(accepted, "C1", || format!("{revision} is lowered before the gateway accepted the route"));
        let share = 100u32.saturating_sub(self.old_weight(model));
        let (need, ready) = (self.need(share), self.endpoints(revision));
        self.demand(pods >= need, "C1", || format!("{revision} has {share} %, needs {need} pods and gets {pods}"));
        self.demand(ready >= need, "C1", || format!("{revision} has {share} %, needs {need} ready pods, has {ready}"));
    }

    /// Pods of stable that made room come back, and it gets no more than they carry while fp16 can take it.
    fn swap(&mut self) {
        if let Some((revision, pods)) = &self.plan.regrow {
            let have = self.workload(revision).and_then(|w| w.replicas);
            self.demand(have.is_some_and(|have| have < *pods), "C2", || format!("{revision} is lowered to {pods}"));
            let stable = self.stored().is_some_and(|l| l.stable == *revision);
            self.demand(stable, "C2", || format!("{revision} grows back and is not stable"));
            let autoscaled = self.workload(revision).is_some_and(|w| w.autoscaled);
            self.demand(!autoscaled, "C6", || format!("{revision}'s replicas belong to an autoscaler"));
            let going = self.obs.namespace_terminating || self.rollout.deleting;
            self.demand(!going, "X2", || "something grows during a deletion".into());
        }
        let (Some(ledger), Some(written)) = (self.stored(), self.written()) else { return };
        let (stable, fp16) = (&ledger.stable, &self.rollout.baseline.revision);
        let Some(w) = self.workload(stable) else { return };
        let ours = !w.baseline && !w.autoscaled && stable != fp16 && *stable != self.rollout.model.revision;
        let barred = ledger.rollback_of.as_ref().is_some_and(|k| k.revision == *fp16);
        let fp16_serves = self.endpoints(fp16) >= self.rollout.baseline.replicas.max(1) && !barred;
        let (old, new) = (self.old_weight(stable), written.weight(stable));
        if self.rollout.capacity != Capacity::Swap || !ours || !fp16_serves || new <= old {
            return;
        }
        let (need, Some(have)) = (self.need(new), w.replicas) else { return };
        self.demand(have >= need, "C4", || format!("{stable} gets {new} %, needs {need} pods, has {have}"));
    }

    fn shrinks(&mut self, shrink: &Shrink) {
        let (revision, deletes) = match shrink {
            Shrink::ToZero(r) => (r, false),
            Shrink::Delete(r) => (r, true),
            Shrink::To(r, n) => {
                self.lowers(r, *n);
                return;
            }
            Shrink::Orphan(_) => {
                self.demand(self.rollout.deleting, "X1", || "a revision is orphaned without a deletion".into());
                return;
            }
        };
        let weight = self.old_weight(revision);
        self.demand(weight == 0, "C1", || format!("{revision} shrinks and has {weight} % of the traffic"));
        let gets = self.written().map_or(0, |w| w.weight(revision));
        self.demand(gets == 0, "C1", || format!("{revision} shrinks and gets {gets} %"));
        let listed = self.route().is_some_and(|r| r.backends.iter().any(|b| b.name == revision.0));
        self.demand(!deletes || !listed, "T6", || format!("{revision}'s Service is deleted and the route names it"));
        self.demand(*revision != self.rollout.baseline.revision, "C2", || format!("fp16 {revision} shrinks"));
        let ledger = self.stored();
        self.demand(ledger.is_some(), "C1", || format!("{revision} shrinks and the route is not ours"));
        self.demand(ledger.is_none_or(|l| l.stable != *revision), "C1", || format!("stable {revision} shrinks"));
        let accepted = self.route().is_some_and(|r| r.accepted);
        self.demand(accepted, "C5", || format!("{revision} shrinks before the gateway accepted the route"));
        let autoscaled = self.workload(revision).is_some_and(|w| w.autoscaled);
        self.demand(deletes || !autoscaled, "C6", || format!("{revision}'s replicas belong to an autoscaler"));
    }

    fn decision(&mut self) {
        let Some(Written { backends, ledger, decision }) = self.written() else { return };
        let written = Written { backends, ledger, decision };
        let weight = |r: &Revision| written.weight(r);
        if let Some(key) = self.stored().and_then(|l| l.rollback_of.as_ref()) {
            let (old, new) = (self.old_weight(&key.revision), weight(&key.revision));
            self.demand(new <= old, "D1", || format!("{key} was rolled back and goes from {old} to {new} %"));
        }
        if let Some(key) = &ledger.rollback_of {
            let new = weight(&key.revision);
            self.demand(new <= self.old_weight(&key.revision), "D1", || format!("{key} is latched and gets {new} %"));
        }
        if let Some(old) = self.stored() {
            let raised = ledger.attempt > old.attempt;
            self.demand(ledger.attempt >= old.attempt, "D1", || "the attempt falls".into());
            let lifted = old.rollback_of.is_some() && ledger.rollback_of.is_none();
            self.demand(!lifted || raised, "D1", || "the latch is lifted without a new attempt".into());
            let up =
                raised && backends.iter().any(|(r, w)| *w > self.old_weight(r) && Some(r) == ledger.candidate.as_ref());
            self.demand(!up, "D1", || "the write that raises the attempt raises the candidate's weight".into());
        }
        if let Some(record) = decision {
            self.terminal(record, ledger);
        }
        self.evidence(ledger, &weight);
        if let Some(record) = decision.filter(|d| d.verdict == Verdict::Promoted && d.by == "deadline") {
            self.undecided(record);
        }
    }

    /// A promotion at the deadline: only where the gate asks for it, and with nothing outside of a margin.
    fn undecided(&mut self, record: &DecisionRecord) {
        let gate = &self.rollout.gate;
        let wanted = gate.on_inconclusive == OnInconclusive::PromoteIfCompatible;
        self.demand(wanted, "D2", || "promoted without a verdict, and the gate does not ask for that".into());
        let last = self.rollout.strategy.steps().last().map_or(0, |s| s.weight);
        let old = self.old_weight(&record.key.revision);
        self.demand(old == last, "D2", || format!("promoted at the deadline from {old} %, before the last step"));
        let margins = [
            (SignalKind::Cosine, gate.min_mean, true),
            (SignalKind::CosineTail, gate.tail_share, false),
            (SignalKind::Latency, gate.max_ratio, false),
            (SignalKind::Errors, gate.max_excess, false),
        ];
        let assessment = self.plan.assessment.as_ref();
        for (kind, margin, least) in margins {
            let signal = assessment.and_then(|a| a.signals.iter().find(|s| s.kind == kind));
            let holds = signal.and_then(|s| s.interval).is_some_and(
                |(low, high)| {
                    if least { low >= margin } else { high <= margin }
                },
            );
            self.demand(holds, "D2", || format!("promoted at the deadline, and {} may be outside", kind.name()));
        }
        let leans = assessment.is_some_and(|a| a.ln_rollback < 0.0);
        self.demand(leans, "D2", || "promoted at the deadline against the evidence".into());
    }

    /// At most one verdict per attempt by rule; people may roll back what was promoted.
    fn terminal(&mut self, record: &DecisionRecord, ledger: &Ledger) {
        let before = self.stored().and_then(|l| l.decision.as_ref()).filter(|d| d.key == record.key);
        let by_rule = matches!(record.by.as_str(), "gate" | "deadline");
        self.demand(before.is_none() || !by_rule, "D3", || format!("a second verdict on {}", record.key));
        let falls = record.verdict == Verdict::RolledBack;
        self.demand(!falls || ledger.rollback_of.as_ref() == Some(&record.key), "D3", || {
            "a rollback that latches another attempt".into()
        });
    }

    /// No evidence is no success: raises by rule need what the gate asks.
    fn evidence(&mut self, ledger: &Ledger, weight: &dyn Fn(&Revision) -> u32) {
        let model = &self.rollout.model.revision;
        let (old, new) = (self.old_weight(model), weight(model));
        let by_hand = self.written().and_then(|w| w.decision).is_some_and(|d| d.by != "gate");
        let returns = self.stored().is_some_and(|l| l.stable == *model || l.step > ledger.step)
            || (ledger.stable == *model && ledger.step == 0)
            || *model == self.rollout.baseline.revision
            || !self.plan.state.reverts.is_empty();
        let ours = self.stored().is_some_and(|l| l.candidate.as_ref() == Some(model));
        if new <= old || by_hand || returns || !ours {
            return;
        }
        let Some(a) = &self.plan.assessment else {
            self.say("D2", format!("{old} to {new} % without an assessment"));
            return;
        };
        let paused = self.rollout.paused;
        self.demand(!paused, "D5", || format!("{old} to {new} % while paused"));
        self.demand(a.preflight_done, "D2", || format!("{old} to {new} % before the preflight is complete"));
        self.demand(old == 0 || a.quality_proven, "D2", || format!("{old} to {new} % before quality is proven"));
        self.demand(!matches!(a.finding, Finding::RollBack { .. }), "D2", || "raised against the evidence".into());
        self.demand(new < 100 || a.finding == Finding::Promote, "D2", || "promoted without the evidence".into());
    }

    fn deletion(&mut self) {
        let ours = self.stored().is_some();
        if !self.plan.finalizer {
            self.demand(self.rollout.deleting, "X1", || "the finalizer goes without a deletion".into());
            let open = ours && self.obs.finalizer && !self.obs.namespace_terminating;
            self.demand(!open, "X1", || "the finalizer goes and the route is still ours".into());
        }
        if self.rollout.deleting {
            self.demand(self.plan.grow.is_empty(), "X2", || "something grows during a deletion".into());
        }
        let leaves = matches!(self.plan.shift, Some(RouteWrite::Restore | RouteWrite::Release | RouteWrite::Delete));
        self.demand(!leaves || self.rollout.deleting, "X1", || "the route is let go without a deletion".into());
        if let (Some(ledger), true) =
            (self.stored(), matches!(self.plan.shift, Some(RouteWrite::Restore | RouteWrite::Release)))
        {
            let serves = ledger.rollback_of.is_none() && self.endpoints(&ledger.stable) > 0;
            let rules = self.route().map(|r| r.detours.rules.as_slice()).unwrap_or_default();
            let asleep = rules.iter().all(Detour::sleeps);
            self.demand(!serves || asleep, "T8", || "derived rules go while requests take them".into());
        }
        if self.plan.shift == Some(RouteWrite::Restore) {
            let ready = self.route().is_some_and(|r| r.originals_ready == Some(true));
            self.demand(ready, "X2", || "the original backends come back and are not ready".into());
        }
        let creates = matches!(self.plan.shift, Some(RouteWrite::Create { .. })) || self.plan.record.is_some();
        self.demand(!(creates && self.obs.namespace_terminating), "X3", || {
            "a create in a terminating namespace".into()
        });
        let blind = self.obs.route == RouteState::Unknown;
        let moves = self.plan.shift.is_some() || !self.plan.shrink.is_empty();
        self.demand(!(blind && moves), "T6", || "something moves and the route was not read".into());
    }

    fn liveness(&mut self) {
        let wait = self.plan.requeue_after;
        self.demand((Span(1)..=Span(300_000)).contains(&wait), "L1", || format!("requeue after {} ms", wait.0));
        if let Some(job) = &self.plan.probe {
            let pods = self.workload(&job.candidate).map(|w| w.pods.as_slice()).unwrap_or_default();
            let ready = pods.iter().any(|p| p.name == job.pod && p.ready_since.is_some());
            self.demand(ready, "L1", || format!("pod {} is asked and is not ready", job.pod));
            let kept = self.plan.state.attempt.as_ref().is_some_and(|a| a.job.as_ref() == Some(job))
                || self.plan.state.guard.as_ref().is_some_and(|w| w.job.as_ref() == Some(job));
            self.demand(kept, "L1", || "a comparison is asked for and not remembered".into());
        }
        let sane = self.plan.state.verbs.len() <= 8 && self.plan.state.reverts.len() <= 3;
        self.demand(sane, "L1", || "the state grows without bound".into());
    }
}
