use crate::{
    Span, Time,
    model::{BlueGreen, CanaryStep, Capacity, LatchKey, Revision, Rollout, Serving, Strategy},
    observation::{Ledger, Observation, Pod, Route, RouteState, Workload},
    plan::{Seen, Verdict},
};
use std::collections::BTreeMap;

/// Time between the gateway's acceptance of a change and the first thing that may shrink: the data plane follows the
/// control plane by at most this, and requests that are under way end.
pub const DRAIN: Span = Span::seconds(5);

/// A revision that lost its pods gets its traffic back only after they have been ready for this long.
const SETTLED: Span = Span::seconds(10);

/// Where the spec's model stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is stable.
    Settled,
    /// It is the ledger's candidate and neither judged nor aborted.
    Trial,
    /// It is the ledger's candidate and was rolled back.
    Latched,
    /// It is the ledger's candidate and was found inconclusive, or its A/B test ended with a report.
    Held,
    /// It is not the ledger's candidate yet.
    Next,
}

/// The inputs of a plan with the questions that every rule asks of them.
#[derive(Clone)]
pub(super) struct View<'a> {
    pub(super) rollout: &'a Rollout,
    pub(super) obs: &'a Observation,
    pub(super) now: Time,
    /// The fp16 baseline that serves now: the spec's, or the one before an edit that has not been carried out.
    pub(super) baseline: Revision,
}

impl<'a> View<'a> {
    pub(super) fn new(rollout: &'a Rollout, obs: &'a Observation, now: Time) -> Self {
        let mut view = Self { rollout, obs, now, baseline: rollout.baseline.revision.clone() };
        if let Some(old) = view.replaced_baseline() {
            view.baseline = old;
        }
        view
    }

    /// The baseline that an edit of the spec has not replaced yet.
    fn replaced_baseline(&self) -> Option<Revision> {
        let spec = &self.rollout.baseline;
        let stable = self.ledger().map(|l| &l.stable);
        if self.full(spec) || stable == Some(&spec.revision) {
            return None;
        }
        let old = |(revision, w): (&'a Revision, &'a Workload)| {
            // What the spec asks for as the model stays for that reason, also if it was the baseline once.
            let other = *revision != spec.revision && revision != self.model();
            (w.baseline && w.replicas.is_some() && other).then_some(revision)
        };
        let mut olds: Vec<&Revision> = self.obs.workloads.iter().filter_map(old).collect();
        // One that may have the traffic first, then stable, then by name.
        olds.sort_by_key(|r| (!self.fits(r), stable != Some(*r), (*r).clone()));
        // An old one that cannot serve must not stand before a new one that can, though not all of its pods are there.
        olds.first().filter(|old| self.fits(old) || !self.fits(&spec.revision)).map(|old| (*old).clone())
    }

    pub(super) fn route(&self) -> Option<&'a Route> {
        match &self.obs.route {
            RouteState::Found(route) => Some(route),
            _ => None,
        }
    }

    /// The ledger, if it is this rollout's.
    pub(super) fn ledger(&self) -> Option<&'a Ledger> {
        self.route()?.ledger.as_ref().filter(|l| l.uid == self.rollout.uid)
    }

    pub(super) fn model(&self) -> &'a Revision {
        &self.rollout.model.revision
    }

    /// The weights of a trial in their order.
    pub(super) fn steps(&self) -> &'a [CanaryStep] {
        self.rollout.strategy.steps()
    }

    pub(super) fn blue_green(&self) -> Option<&'a BlueGreen> {
        match &self.rollout.strategy {
            Strategy::BlueGreen(blue_green) => Some(blue_green),
            Strategy::Canary(_) | Strategy::AbTest(_) => None,
        }
    }

    pub(super) fn workload(&self, revision: &Revision) -> Option<&'a Workload> {
        self.obs.workloads.get(revision)
    }

    pub(super) fn endpoints(&self, revision: &Revision) -> u32 {
        self.workload(revision).map_or(0, |w| w.ready_endpoints)
    }

    pub(super) fn serves(&self, revision: &Revision) -> bool {
        self.endpoints(revision) > 0
    }

    /// Pods that `serving` should have: the spec's number, or the autoscaler's.
    pub(super) fn wanted(&self, serving: &Serving) -> u32 {
        let own = serving.replicas.max(1);
        match self.workload(&serving.revision) {
            Some(w) if w.autoscaled => w.replicas.unwrap_or(own).max(1),
            _ => own,
        }
    }

    /// The candidate has other numbers of pods at other steps: the list says so, or stable's pods make room for its.
    pub(super) fn staged(&self) -> bool {
        self.swaps() || self.steps().iter().any(|s| s.replicas.is_some())
    }

    fn swaps(&self) -> bool {
        self.rollout.capacity == Capacity::Swap && matches!(self.rollout.strategy, Strategy::Canary(_))
    }

    /// Pods that a share of the traffic needs.
    pub(super) fn need(&self, share: u32) -> u32 {
        let pods = (u64::from(self.rollout.model.replicas.max(1)) * u64::from(share.min(100))).div_ceil(100);
        u32::try_from(pods).unwrap_or(u32::MAX).max(1)
    }

    /// Stable, where its pods make room for the candidate's. Those of fp16 never do, nor those of an autoscaler.
    pub(super) fn swapped(&self) -> Option<&'a Revision> {
        let stable = &self.ledger()?.stable;
        let w = self.workload(stable)?;
        let fp16 = w.baseline || *stable == self.baseline || *stable == self.rollout.baseline.revision;
        let ours = w.replicas.is_some() && !w.autoscaled && !fp16 && stable != self.model();
        (self.rollout.capacity == Capacity::Swap && ours).then_some(stable)
    }

    /// Stable made room and has too few pods for this share.
    fn short(&self, share: u32) -> bool {
        let has = |r: &Revision| self.workload(r).and_then(|w| w.replicas).unwrap_or(0);
        self.swapped().is_some_and(|stable| has(stable) < self.need(share))
    }

    /// Where a share of the traffic belongs that is not the candidate's: the anchor, or fp16 while stable's pods, which made
    /// room, are too few for it.
    pub(super) fn home(&self, share: u32) -> Option<Revision> {
        let anchor = self.anchor()?;
        let yields = self.swapped() == Some(&anchor) && self.short(share) && self.fits(&self.baseline);
        Some(if yields { self.baseline.clone() } else { anchor })
    }

    /// Pods of the candidate at the step with this index; all of them after the last one.
    pub(super) fn pods_at(&self, index: usize) -> u32 {
        let all = self.rollout.model.replicas.max(1);
        match self.steps().get(index) {
            Some(CanaryStep { replicas: Some(pods), .. }) => (*pods).clamp(1, all),
            Some(step) if self.swaps() => self.need(step.weight),
            _ => all,
        }
    }

    /// Pods that the spec's model should have where it stands: on its way those of its step (before the first step, that
    /// one's), else all.
    pub(super) fn posted(&self) -> u32 {
        let model = &self.rollout.model;
        match (self.workload(&model.revision), self.standing()) {
            (Some(w), _) if w.autoscaled => self.wanted(model),
            (_, Some(Standing::Next | Standing::Trial)) => {
                self.pods_at(self.step_at(self.weight(self.model())).saturating_sub(1))
            }
            _ => self.wanted(model),
        }
    }

    /// The pods of its step are ready endpoints.
    pub(super) fn staffed(&self) -> bool {
        self.endpoints(self.model()) >= self.posted()
    }

    /// Pods enough for the step with this index: those that the steps name, else what its weight needs.
    pub(super) fn ready_for(&self, index: usize) -> bool {
        let model = &self.rollout.model;
        let autoscaled = self.workload(&model.revision).is_some_and(|w| w.autoscaled);
        let weight = self.steps().get(index).map_or(100, |s| s.weight);
        let named = autoscaled || !self.staged() || self.endpoints(&model.revision) >= self.pods_at(index);
        named && self.carries(model, weight)
    }

    /// All pods that the spec asks for are ready endpoints.
    pub(super) fn full(&self, serving: &Serving) -> bool {
        self.endpoints(&serving.revision) >= self.wanted(serving)
    }

    /// Enough of the candidate's endpoints are ready for this share of the traffic.
    pub(super) fn carries(&self, serving: &Serving, weight: u32) -> bool {
        let need = (u64::from(self.wanted(serving)) * u64::from(weight.min(100))).div_ceil(100).max(1);
        u64::from(self.endpoints(&serving.revision)) >= need
    }

    /// Back for long enough, with all of its pods.
    fn settled(&self, revision: &Revision) -> bool {
        self.workload(revision).is_some_and(|w| {
            w.ready_endpoints > 0
                && w.ready_endpoints >= w.replicas.unwrap_or(1)
                && w.pods.iter().all(|p| p.ready_since.is_some_and(|t| self.now - t >= SETTLED))
        })
    }

    pub(super) fn weight(&self, revision: &Revision) -> u32 {
        self.route().map_or(0, |r| r.weight(revision))
    }

    /// Observed backends as a write has them.
    pub(super) fn backends(&self) -> Vec<(Revision, u32)> {
        let listed = self.route().map(|r| r.backends.as_slice()).unwrap_or_default();
        listed.iter().map(|b| (Revision(b.name.clone()), b.weight)).collect()
    }

    /// Observed weights by backend name, zeros included.
    pub(super) fn weights(&self) -> BTreeMap<&'a str, u64> {
        let mut weights = BTreeMap::new();
        for backend in self.route().map(|r| r.backends.as_slice()).unwrap_or_default() {
            *weights.entry(backend.name.as_str()).or_insert(0) += u64::from(backend.weight);
        }
        weights
    }

    /// A write may not raise this revision's weight: it was rolled back, and the latch is not lifted yet.
    pub(super) fn barred(&self, revision: &Revision) -> bool {
        let latched = self.ledger().and_then(|l| l.rollback_of.as_ref()).is_some_and(|k| k.revision == *revision);
        latched && self.weight(revision) < 100
    }

    /// It can serve, and a write may give it traffic.
    pub(super) fn fits(&self, revision: &Revision) -> bool {
        self.serves(revision) && !self.barred(revision)
    }

    /// Where the traffic belongs that is not the candidate's: stable, or fp16 while stable has no ready endpoint (and
    /// until it has been back for a while). `None`: nobody can serve.
    pub(super) fn anchor(&self) -> Option<Revision> {
        let stable = &self.ledger()?.stable;
        let fits = |r: &Revision| self.fits(r);
        if fits(stable) && (self.weight(stable) > 0 || !fits(&self.baseline) || self.settled(stable)) {
            return Some(stable.clone());
        }
        fits(&self.baseline).then(|| self.baseline.clone())
    }

    pub(super) fn standing(&self) -> Option<Standing> {
        self.ledger().map(|ledger| self.standing_of(ledger))
    }

    /// Where the spec's model stands under this ledger.
    pub(super) fn standing_of(&self, ledger: &Ledger) -> Standing {
        if ledger.stable == *self.model() {
            return Standing::Settled;
        }
        // fp16 itself is never on trial: it has nothing to prove.
        if ledger.candidate.as_ref() != Some(self.model()) || *self.model() == self.rollout.baseline.revision {
            return Standing::Next;
        }
        // Most of the time nothing was judged, and this is asked often.
        if ledger.rollback_of.is_none() && ledger.decision.is_none() {
            return Standing::Trial;
        }
        let key = self.rollout.latch_key(self.model(), ledger.attempt);
        if ledger.rollback_of.as_ref() == Some(&key) {
            return Standing::Latched;
        }
        match &ledger.decision {
            Some(d) if d.key == key && d.verdict == Verdict::RolledBack => Standing::Latched,
            Some(d) if d.key == key && matches!(d.verdict, Verdict::Inconclusive | Verdict::Reported) => Standing::Held,
            _ => Standing::Trial,
        }
    }

    /// The A/B test of the spec's model ended with a report: a person decides.
    pub(super) fn reported(&self) -> bool {
        let verdict = self.ledger().and_then(|l| l.decision.as_ref()).map(|d| d.verdict);
        self.standing() == Some(Standing::Held) && verdict == Some(Verdict::Reported)
    }

    /// The latch key of the spec's model: its running attempt, or the one that would start now.
    pub(super) fn key(&self) -> LatchKey {
        let (candidate, attempt) = self.ledger().map_or((None, 0), |l| (l.candidate.as_ref(), l.attempt));
        let attempt = if candidate == Some(self.model()) { attempt } else { attempt.saturating_add(1) };
        self.rollout.latch_key(self.model(), attempt)
    }

    /// The promotion of stable is the last thing that happened: the revision before it is kept for a while.
    pub(super) fn just_promoted(&self) -> bool {
        self.ledger().is_some_and(|l| l.candidate.as_ref() == Some(&l.stable))
    }

    /// Ready pods by name.
    pub(super) fn ready_pods(&self, revision: &Revision) -> Vec<&'a Pod> {
        let pods = self.workload(revision).map(|w| w.pods.as_slice()).unwrap_or_default();
        let mut ready: Vec<&Pod> = pods.iter().filter(|p| p.ready_since.is_some()).collect();
        ready.sort_by(|a, b| a.name.cmp(&b.name));
        ready
    }

    /// What keeps a revision's pods from being ready, in words.
    pub(super) fn problems(&self, revision: &Revision) -> String {
        let Some(w) = self.workload(revision) else { return "it does not exist yet".into() };
        let problem = w.pods.iter().find_map(|p| p.problem.as_ref().map(|why| format!("; pod {}: {why}", p.name)));
        format!("{} of {} pods are ready{}", w.ready_endpoints, w.replicas.unwrap_or(0), problem.unwrap_or_default())
    }

    /// Workloads that nothing points at any more.
    pub(super) fn leftovers(&self) -> Vec<&'a Revision> {
        let Some(ledger) = self.ledger() else { return Vec::new() };
        let judged = matches!(self.standing(), Some(Standing::Trial | Standing::Latched | Standing::Held));
        // A rolled-back candidate keeps its (empty) Deployment and its Service until the next candidate's first write.
        let latched = |c: &Revision| ledger.rollback_of.as_ref().is_some_and(|k| k.revision == *c);
        self.obs
            .workloads
            .keys()
            .filter(|&r| {
                let pointer = *r == ledger.stable || *r == self.baseline || *r == self.rollout.baseline.revision;
                let candidate = ledger.candidate.as_ref() == Some(r) && (judged || latched(r));
                !pointer && !candidate && r != self.model()
            })
            .collect()
    }

    /// The steps whose weight is reached: 0 before the first, i at the i-th (also between the i-th and the next, after
    /// an edit of the list).
    pub(super) fn step_at(&self, weight: u32) -> usize {
        self.steps().iter().filter(|s| s.weight <= weight).count()
    }
}

impl Seen {
    /// What a write or an observed route leaves in memory.
    pub(super) fn of(ledger: &Ledger, weights: Vec<(Revision, u32)>) -> Self {
        Self {
            epoch: ledger.epoch,
            stable: ledger.stable.clone(),
            candidate: ledger.candidate.clone(),
            attempt: ledger.attempt,
            rollback_of: ledger.rollback_of.as_ref().map(|k| (k.revision.clone(), k.attempt)),
            weights,
        }
    }
}
