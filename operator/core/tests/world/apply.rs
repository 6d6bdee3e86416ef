//! Carries plans out, as the operator does, and refuses what the admission policies refuse.

use super::{Deployment, Job, World};
use bitnet_core::{
    Span,
    model::Revision,
    observation::{Backend, Detours, Ledger, Preview, Route, StoredDecision},
    plan::{DRAIN, Plan, PreviewWrite, RouteWrite, Shrink},
};

impl World {
    /// Carries the plan out in the order of its fields; what a crash leaves out is left out.
    pub(super) fn apply(&mut self, plan: &Plan, text: String) {
        let mut left = self.crash_after.take().unwrap_or(usize::MAX);
        let mut go = || {
            let go = left > 0;
            left = left.saturating_sub(1);
            go
        };
        if !go() {
            return;
        }
        if plan.finalizer != self.finalizer {
            self.finalizer = plan.finalizer;
        }
        if self.rollout.deleting && !self.finalizer {
            self.gone = true;
            self.deployments.retain(|_, d| d.orphaned);
            if matches!(self.preview, Preview::Ours { .. }) {
                self.preview = Preview::Missing;
            }
            if self.route.as_ref().is_some_and(|r| r.owned && r.ledger.is_some()) {
                self.route = None;
            }
            return;
        }
        for grow in &plan.grow {
            if !go() {
                return;
            }
            let d = self.deployments.entry(grow.serving.revision.clone()).or_insert_with(|| Deployment {
                replicas: grow.serving.replicas,
                service: true,
                baseline: grow.baseline,
                autoscaled: false,
                orphaned: false,
                pods: Vec::new(),
                born: 0,
            });
            d.service = true;
            self.baseline_service |= grow.baseline;
            d.replicas = grow.replicas.unwrap_or(d.replicas);
        }
        if let Some((revision, replicas)) = &plan.regrow {
            if !go() {
                return;
            }
            let d = self.deployments.get_mut(revision).expect("a Deployment to grow back");
            d.replicas = *replicas;
        }
        if let Some(write) = &plan.shift {
            if !go() {
                return;
            }
            self.write(write);
        }
        if let Some(preview) = &plan.preview {
            if !go() {
                return;
            }
            self.preview = match preview {
                PreviewWrite::Create { host, revision } => {
                    assert_eq!(self.preview, Preview::Missing, "the preview is created over another");
                    Preview::Ours { hosts: vec![host.clone()], backends: vec![revision.0.clone()] }
                }
                PreviewWrite::Delete => {
                    assert!(matches!(self.preview, Preview::Ours { .. }), "somebody else's preview is deleted");
                    Preview::Missing
                }
            };
        }
        if let Some(record) = &plan.record {
            if !go() {
                return;
            }
            self.decisions.push(record.id.clone());
        }
        for shrink in &plan.shrink {
            if !go() {
                return;
            }
            match shrink {
                Shrink::ToZero(r) => {
                    self.drained(r);
                    self.scale(r, 0);
                }
                Shrink::To(r, n) => self.scale(r, *n),
                Shrink::Delete(r) => {
                    self.drained(r);
                    self.deployments.remove(r);
                }
                Shrink::Orphan(r) => {
                    if let Some(d) = self.deployments.get_mut(r) {
                        d.orphaned = true;
                    }
                }
            }
        }
        if let Some(probe) = &plan.probe {
            if !go() {
                return;
            }
            self.job = Some(Job { job: probe.clone(), done_at: self.now + Span(900) });
        }
        if !go() {
            return;
        }
        self.watch.clone_from(&plan.state.guard);
        if self.status.as_ref() != Some(&text) || self.report.as_ref() != Some(&plan.report) {
            self.status = Some(text);
            self.report = Some(plan.report.clone());
            self.patches += 1;
        }
        self.verbs.retain(|v| !plan.answered.iter().any(|a| a.id == v.id && a.verb == v.verb));
    }

    /// Nothing goes whose last request may still be on its way.
    fn drained(&self, revision: &Revision) {
        assert_eq!(self.weight(revision), 0, "{revision} goes with traffic");
        if let Some(idle) = self.idle_since.get(revision) {
            assert!(idle.is_some_and(|t| self.now - t >= DRAIN), "{revision} goes before it is drained");
        }
    }

    fn scale(&mut self, revision: &Revision, replicas: u32) {
        if let Some(d) = self.deployments.get_mut(revision) {
            d.replicas = replicas;
            // Those that are not ready go first.
            d.pods.sort_by_key(|p| p.pending || p.down);
            d.pods.truncate(replicas as usize);
        }
    }

    fn write(&mut self, write: &RouteWrite) {
        self.writes += 1;
        let now = self.now;
        self.written_at.retain(|t| now - *t < Span::seconds(10));
        self.written_at.push(now);
        assert!(self.written_at.len() <= 12, "the route is written in a loop");
        match write {
            RouteWrite::Create { backends, ledger } => {
                assert!(self.route.is_none(), "created twice");
                self.route = Some(Route { uid: "own".into(), owned: true, spare_rules: 15, ..Route::default() });
                self.set(backends, &Detours::default(), ledger.clone());
            }
            RouteWrite::Set { backends, ledger, detours, adopt, decision } => {
                let mut ledger = ledger.clone();
                if let Some(d) = decision {
                    if matches!(d.by.as_str(), "gate" | "deadline") {
                        let before = self.verdicts.insert(d.key.to_string(), d.verdict);
                        assert_eq!(before, None, "a second verdict on {}", d.key);
                    }
                    ledger.decision = Some(StoredDecision {
                        id: d.id.clone(),
                        verdict: d.verdict,
                        key: d.key.clone(),
                        at: d.at,
                        text: format!("{:?}", d.note.reason),
                    });
                }
                if *adopt && let Some(route) = &self.route {
                    self.originals.clone_from(&route.backends);
                }
                self.set(backends, detours, ledger);
            }
            RouteWrite::Restore => {
                let originals = std::mem::take(&mut self.originals);
                let route = self.route.as_mut().expect("a route to restore");
                route.backends = originals;
                route.detours = Detours::default();
                route.ledger = None;
            }
            RouteWrite::Release => {
                let route = self.route.as_mut().expect("a route to release");
                route.detours = Detours::default();
                route.ledger = None;
                route.owned = false;
            }
            RouteWrite::Delete => self.route = None,
        }
        if let Some(route) = &mut self.route {
            route.accepted = false;
            self.accepts_at = self.acceptance.map(|a| now + a);
        }
    }

    /// A write of weights, as the admission policies see it.
    fn set(&mut self, backends: &[(Revision, u32)], detours: &Detours, ledger: Ledger) {
        let route = self.route.as_mut().expect("a route");
        if let Some(old) = &route.ledger {
            assert!(ledger.epoch > old.epoch, "policy: epoch");
            if let Some(key) = &old.rollback_of {
                let new = backends.iter().find(|(r, _)| *r == key.revision).map_or(0, |(_, w)| *w);
                assert!(new <= route.weight(&key.revision), "policy: latch");
            }
        }
        assert_eq!(backends.iter().map(|(_, w)| w).sum::<u32>(), 100, "policy: sum");
        route.backends = backends.iter().map(|(r, w)| Backend { name: r.0.clone(), weight: *w }).collect();
        route.detours = detours.clone();
        route.ledger = Some(ledger);
        for (revision, weight) in backends {
            let most = self.most.entry(revision.clone()).or_insert(0);
            *most = (*most).max(*weight);
        }
    }
}
