//! A tiny world for plans: deployments whose pods become ready, a gateway that accepts, workers that answer with given
//! values, clients. It carries plans out as the operator does and refuses what the admission policies refuse.

#![allow(dead_code, reason = "two test files share it and use different parts")]
#![allow(clippy::struct_excessive_bools, reason = "independent facts of a world")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod apply;
pub(crate) mod garbage;
pub(crate) mod spec;
mod workers;

pub(crate) use workers::{Behaviour, Rng};

use bitnet_core::{
    Span, Time,
    check::check,
    model::{Revision, Rollout, RouteTarget},
    observation::{
        Backend, Comparable, Live, Observation, Pod, Preview, ProbeOutcome, Route, RouteState, Sample, Users,
        VerbRequest, Workload,
    },
    plan::{Plan, ProbeJob, State, Verdict, Watch, guard_due, plan, tick_due},
    stats::asymptotic::Moments,
};
use std::collections::BTreeMap;

pub(crate) struct WorldPod {
    pub(crate) name: String,
    pub(crate) ready_at: Time,
    /// Taken down by a scenario: not ready until it is brought back.
    pub(crate) down: bool,
    /// No node has room for it.
    pub(crate) pending: bool,
}

pub(crate) struct Deployment {
    pub(crate) replicas: u32,
    pub(crate) service: bool,
    pub(crate) baseline: bool,
    pub(crate) autoscaled: bool,
    pub(crate) orphaned: bool,
    pub(crate) pods: Vec<WorldPod>,
    born: u32,
}

pub(crate) struct Job {
    pub(crate) job: ProbeJob,
    pub(crate) done_at: Time,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) rollout: Rollout,
    /// `status.evidence`.
    pub(crate) status: Option<String>,
    pub(crate) route: Option<Route>,
    pub(crate) originals: Vec<Backend>,
    pub(crate) originals_ready: bool,
    pub(crate) deployments: BTreeMap<Revision, Deployment>,
    /// Places for pods that are not fp16's.
    pub(crate) room: usize,
    /// The Service `chat-baseline`.
    pub(crate) baseline_service: bool,
    pub(crate) behaviours: BTreeMap<Revision, Behaviour>,
    pub(crate) verbs: Vec<VerbRequest>,
    pub(crate) decisions: Vec<String>,
    pub(crate) finalizer: bool,
    pub(crate) gone: bool,
    pub(crate) terminating: bool,
    pub(crate) unreadable: bool,
    pub(crate) gateway_missing: bool,
    /// The HTTPRoute of the preview's name.
    pub(crate) preview: Preview,
    /// Requests per second of all clients.
    pub(crate) traffic: f64,
    /// Users per second who come for the first time.
    pub(crate) newcomers: f64,
    /// Share of the candidate's users who are lost before they are counted.
    pub(crate) lost: f64,
    /// Time from a write to its acceptance; `None`: the gateway is stuck.
    pub(crate) acceptance: Option<Span>,
    accepts_at: Option<Time>,
    job: Option<Job>,
    /// When the counters were scraped last; in memory, lost at a restart.
    scraped: Option<Time>,
    /// What the operator's memory holds of the guard.
    watch: Option<Watch>,
    pub(crate) rng: Rng,
    /// Route writes of ours so far.
    pub(crate) writes: u32,
    /// Verdicts that nobody asked for, by latch key: at most one each.
    verdicts: BTreeMap<String, Verdict>,
    /// Since when the gateway has given a revision that had traffic none any more; `None`: it still does.
    idle_since: BTreeMap<Revision, Option<Time>>,
    /// Times of the last route writes.
    written_at: Vec<Time>,
    report: Option<bitnet_core::report::Report>,
    /// Patches of status so far.
    pub(crate) patches: u32,
    /// Most weight that each revision ever had.
    pub(crate) most: BTreeMap<Revision, u32>,
    /// Client requests that met a revision without a ready pod although another had one for more than 5 s.
    pub(crate) last_plan: Option<Plan>,
    /// Something that is watched changed in the last reconcile.
    changed: bool,
    /// How much of the next plan is carried out: `None` = all, then the status is written.
    pub(crate) crash_after: Option<usize>,
}

impl World {
    pub(crate) fn new(rollout: Rollout, seed: u64) -> Self {
        let route = Self::users_route(&rollout);
        Self {
            now: Time(1_000_000_000_000),
            rollout,
            status: None,
            route,
            originals: Vec::new(),
            originals_ready: true,
            deployments: BTreeMap::new(),
            room: usize::MAX,
            baseline_service: false,
            behaviours: BTreeMap::new(),
            verbs: Vec::new(),
            decisions: Vec::new(),
            finalizer: false,
            gone: false,
            terminating: false,
            unreadable: false,
            gateway_missing: false,
            preview: Preview::Missing,
            traffic: 20.0,
            newcomers: 10.0,
            lost: 0.0,
            acceptance: Some(Span(300)),
            accepts_at: None,
            job: None,
            scraped: None,
            watch: None,
            rng: Rng(seed),
            writes: 0,
            verdicts: BTreeMap::new(),
            idle_since: BTreeMap::new(),
            written_at: Vec::new(),
            report: None,
            patches: 0,
            most: BTreeMap::new(),
            last_plan: None,
            changed: false,
            crash_after: None,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.status.as_ref().and_then(|text| State::decode(text).ok()).unwrap_or_default()
    }

    pub(crate) fn behaviour(&self, revision: &Revision) -> Behaviour {
        self.behaviours.get(revision).cloned().unwrap_or_default()
    }

    pub(crate) fn ready(&self, revision: &Revision) -> u32 {
        self.deployments.get(revision).map_or(0, |d| d.pods.iter().filter(|p| self.is_ready(p)).count() as u32)
    }

    fn is_ready(&self, pod: &WorldPod) -> bool {
        !pod.down && !pod.pending && self.now >= pod.ready_at
    }

    pub(crate) fn weight(&self, revision: &Revision) -> u32 {
        self.route.as_ref().map_or(0, |r| r.weight(revision))
    }

    /// The operator's process ends and starts again: what was only in memory is gone.
    pub(crate) fn restart(&mut self) {
        self.scraped = None;
        self.watch = None;
    }

    /// Somebody sets weights by hand, without the operator's annotations.
    pub(crate) fn by_hand(&mut self, weights: &[(Revision, u32)]) {
        let at = self.now;
        if let Some(route) = &mut self.route {
            route.backends = weights.iter().map(|(r, w)| Backend { name: r.0.clone(), weight: *w }).collect();
            route.accepted = false;
        }
        self.accepts_at = self.acceptance.map(|a| at + a);
    }

    /// Pods of a revision stop being ready, or are ready again from now on.
    pub(crate) fn take(&mut self, revision: &Revision, down: bool) {
        let now = self.now;
        if let Some(deployment) = self.deployments.get_mut(revision) {
            for pod in deployment.pods.iter_mut().filter(|p| p.down != down) {
                pod.down = down;
                pod.ready_at = now;
            }
        }
    }

    /// Somebody deletes the route.
    pub(crate) fn lose_route(&mut self) {
        self.route = None;
    }

    /// Its owner makes a route that was deleted anew, as it was at first.
    pub(crate) fn restore_route(&mut self) {
        if self.route.is_none() && matches!(self.rollout.route, RouteTarget::Adopt { .. }) {
            self.route = Self::users_route(&self.rollout);
            self.originals.clear();
        }
    }

    fn users_route(rollout: &Rollout) -> Option<Route> {
        matches!(rollout.route, RouteTarget::Adopt { .. }).then(|| Route {
            uid: "route-uid".into(),
            resource_version: "1".into(),
            accepted: true,
            backends: vec![Backend { name: "old-service".into(), weight: 1 }],
            spare_rules: 14,
            ..Route::default()
        })
    }

    /// The gateway stops accepting, or goes on (also with what was written meanwhile).
    pub(crate) fn gateway(&mut self, goes: bool) {
        self.acceptance = goes.then_some(Span(300));
        self.accepts_at = goes.then_some(self.now + Span(300));
    }

    /// One reconcile. Returns the plan that was made.
    pub(crate) fn reconcile(&mut self) -> Plan {
        self.settle();
        let stored = self.state();
        let state = State { guard: self.watch.clone().or(stored.guard.clone()), ..stored.clone() };
        let observation = self.observe(&state);
        let plan = plan(&self.rollout, &state, &observation, self.now);
        let again = bitnet_core::plan::plan(&self.rollout, &state, &observation, self.now);
        assert_eq!(plan, again, "the same inputs give the same plan");
        let violations = check(&self.rollout, &observation, &plan);
        assert!(
            violations.is_empty(),
            "at {}: {violations:?}\nplan: {plan:#?}\nobservation: {observation:#?}\nstate: {state:#?}",
            self.now.0
        );
        let hash = self.rollout.gate.parameters_hash();
        let text = plan.state.encode(&hash);
        assert!(text.len() <= 4096, "the state has {} characters", text.len());
        assert_eq!(State::decode(&text).as_ref(), Ok(&plan.state), "the state comes back as it was");
        let text = plan.to_store(&stored).encode(&hash);
        self.changed = plan.shift.is_some() || !plan.grow.is_empty() || !plan.shrink.is_empty();
        self.apply(&plan, text);
        self.settle();
        self.last_plan = Some(plan.clone());
        plan
    }

    /// Time passes until the plan or the world asks for a look, at most to `until`.
    pub(crate) fn advance(&mut self, requeue_after: Span, until: Time) {
        let mut next = (self.now + requeue_after).min(until);
        if std::mem::take(&mut self.changed) {
            next = next.min(self.now + Span(100));
        }
        let events = self.deployments.values().flat_map(|d| d.pods.iter().map(|p| p.ready_at)).chain(self.accepts_at);
        for event in events {
            if event > self.now {
                next = next.min(event);
            }
        }
        self.now = next.max(self.now + Span(1)).min(until.max(self.now + Span(1)));
    }

    /// The gateway and the controllers do their part.
    fn settle(&mut self) {
        if let (Some(at), Some(route)) = (self.accepts_at, &mut self.route)
            && self.now >= at
        {
            route.accepted = true;
            self.accepts_at = None;
        }
        let now = self.now;
        if let Some(route) = self.route.as_ref().filter(|r| r.accepted && r.ledger.is_some()) {
            for revision in self.deployments.keys() {
                if route.weight(revision) > 0 {
                    self.idle_since.insert(revision.clone(), None);
                } else if let Some(since) = self.idle_since.get_mut(revision) {
                    since.get_or_insert(now);
                }
            }
        }
        for (revision, deployment) in &mut self.deployments {
            let after = self.behaviours.get(revision).map_or(Span::seconds(3), |b| b.ready_after);
            deployment.pods.truncate(deployment.replicas as usize);
            while deployment.pods.len() < deployment.replicas as usize {
                let name = format!("{revision}-{:03}", deployment.born);
                deployment.born += 1;
                deployment.pods.push(WorldPod { name, ready_at: now + after, down: false, pending: true });
            }
        }
        let placed = |d: &Deployment| d.pods.iter().filter(|p| !p.pending).count();
        let mut taken: usize = self.deployments.values().filter(|d| !d.baseline).map(placed).sum();
        for (revision, deployment) in &mut self.deployments {
            let after = self.behaviours.get(revision).map_or(Span::seconds(3), |b| b.ready_after);
            for pod in deployment.pods.iter_mut().filter(|p| p.pending) {
                if deployment.baseline || taken < self.room {
                    taken += usize::from(!deployment.baseline);
                    pod.pending = false;
                    pod.ready_at = now + after;
                }
            }
        }
    }

    /// So many pods of a revision die, at most all; others come in their place.
    pub(crate) fn kill(&mut self, revision: &Revision, pods: usize) {
        if let Some(d) = self.deployments.get_mut(revision) {
            d.pods.truncate(d.pods.len().saturating_sub(pods));
        }
    }

    fn observe(&mut self, state: &State) -> Observation {
        let workloads = self.deployments.iter().filter(|(_, d)| !d.orphaned).map(|(r, d)| {
            let pod = |p: &WorldPod| Pod {
                name: p.name.clone(),
                ready_since: self.is_ready(p).then_some(p.ready_at),
                problem: match (p.pending, p.down) {
                    (true, _) => {
                        Some("unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu".to_owned())
                    }
                    (false, down) => down.then(|| "taken down".to_owned()),
                },
            };
            let pods: Vec<Pod> = d.pods.iter().map(pod).collect();
            let workload = Workload {
                replicas: Some(d.replicas),
                service: d.service,
                ready_endpoints: pods.iter().filter(|p| p.ready_since.is_some()).count() as u32,
                pods,
                autoscaled: d.autoscaled,
                baseline: d.baseline,
            };
            (r.clone(), workload)
        });
        let workloads = workloads.collect();
        let route = match &self.route {
            _ if self.unreadable => RouteState::Unknown,
            _ if self.gateway_missing => RouteState::GatewayMissing("gw".into()),
            None => RouteState::Missing,
            Some(route) => {
                let kept = !self.originals.is_empty();
                RouteState::Found(Route { originals_ready: kept.then_some(self.originals_ready), ..route.clone() })
            }
        };
        let sample = if tick_due(&self.rollout, state, self.now) {
            Some(self.sample(state))
        } else if guard_due(&self.rollout, state, self.now) {
            let job = state.guard.as_ref().and_then(|watch| watch.job.clone());
            Some(Sample { at: self.now, probes: self.outcome(job.as_ref()), ..Sample::default() })
        } else {
            None
        };
        Observation {
            route,
            workloads,
            baseline_service: self.baseline_service,
            verbs: self.verbs.clone(),
            sample,
            namespace_terminating: self.terminating,
            decisions: self.decisions.clone(),
            finalizer: self.finalizer,
            preview: self.preview.clone(),
        }
    }

    fn sample(&mut self, state: &State) -> Sample {
        let attempt = state.attempt.as_ref().expect("a tick is due only in an attempt");
        let candidate = attempt.candidate.clone();
        let stable = self.route.as_ref().and_then(|r| r.ledger.as_ref()).map(|l| l.stable.clone()).unwrap_or_default();
        let since = self.scraped.replace(self.now);
        let live = since.filter(|_| self.ready(&candidate) > 0 && self.ready(&stable) > 0).map(|since| {
            let seconds = (self.now - since).as_seconds();
            let arm = |world: &mut Self, revision: &Revision| {
                let share = f64::from(world.weight(revision)) / 100.0;
                let behaviour = world.behaviour(revision);
                let requests = world.rng.round(world.traffic * seconds * share);
                behaviour.live(&mut world.rng, requests)
            };
            let live = (arm(self, &candidate), arm(self, &stable));
            let users = self.users(&candidate, &stable, seconds);
            Live { candidate: live.0, stable: live.1, seconds, users }
        });
        let stable_total = (self.ready(&stable) > 0).then(|| {
            let behaviour = self.behaviour(&stable);
            (behaviour.live(&mut self.rng, 1500), 100.0)
        });
        Sample {
            at: self.now,
            live,
            stable_total,
            probes: self.outcome(attempt.job.as_ref()),
            comparable: self.comparable(&candidate),
        }
    }

    /// Users are assigned and say something only where requests are marked.
    fn users(&mut self, candidate: &Revision, stable: &Revision, seconds: f64) -> Users {
        if self.route.as_ref().is_none_or(|r| r.detours.mark.is_none()) {
            return Users::default();
        }
        let lost = self.lost;
        let mut arm = |revision: &Revision, lost: f64| {
            let share = f64::from(self.weight(revision)) / 100.0;
            let assigned = self.rng.round(self.newcomers * seconds * share * (1.0 - lost));
            let rate = self.behaviour(revision).conversion;
            let mut moments = Moments::default();
            for _ in 0..assigned {
                moments.add(f64::from(u8::from(self.rng.unit() < rate)), (0.0, 1.0));
            }
            (assigned, moments)
        };
        let (c, b) = (arm(candidate, lost), arm(stable, 0.0));
        Users { assigned: (c.0, b.0), outcomes: (c.1, b.1) }
    }

    fn comparable(&self, candidate: &Revision) -> Comparable {
        if self.ready(candidate) == 0 || self.ready(&self.rollout.baseline.revision) == 0 {
            return Comparable::Unknown;
        }
        match self.behaviour(candidate).vocabulary {
            32_000 => Comparable::Yes,
            other => {
                Comparable::No { field: "vocabulary".into(), baseline: "32000".into(), candidate: other.to_string() }
            }
        }
    }

    fn outcome(&mut self, asked: Option<&ProbeJob>) -> ProbeOutcome {
        let Some(asked) = asked else { return ProbeOutcome::None };
        let alive = |name: &str| {
            self.deployments
                .get(&asked.candidate)
                .is_some_and(|d| d.pods.iter().any(|p| p.name == name && self.is_ready(p)))
        };
        match &self.job {
            Some(job) if job.job == *asked && alive(&asked.pod) => {
                if self.now < job.done_at {
                    return ProbeOutcome::Running;
                }
                self.job = None;
                let (candidate, stable) = (self.behaviour(&asked.candidate), self.behaviour(&asked.stable));
                let probes = &self.rollout.gate.probes;
                ProbeOutcome::Done(candidate.compare(&stable, &mut self.rng, probes))
            }
            _ => ProbeOutcome::Lost("the pod is gone".into()),
        }
    }
}
