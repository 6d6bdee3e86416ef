//! Every lint fires on the plan that it is about, and only then.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use bitnet_core::{
    Span, Time,
    check::check,
    evidence::OnInconclusive,
    model::{Capacity, Revision, Rollout},
    observation::{Backend, Detour, Detours, Ledger, Observation, Pod, Route, RouteState, StoredDecision, Workload},
    plan::{DecisionRecord, Grow, Plan, ProbeJob, RouteWrite, Shrink, State, Verdict, plan},
    report::{Note, Reason},
};
use world::spec::{blue_green, canary, revision, rollout, serving};

const NOW: Time = Time(1_000_000_000_000);

/// A rollout at its second step, everything ready.
struct Scene {
    rollout: Rollout,
    observation: Observation,
    plan: Plan,
}

fn workload(baseline: bool) -> Workload {
    let pod = |i| Pod { name: format!("p{i}"), ready_since: Some(Time(0)), problem: None };
    Workload {
        replicas: Some(3),
        service: true,
        pods: (0..3).map(pod).collect(),
        ready_endpoints: 3,
        autoscaled: false,
        baseline,
    }
}

fn backend(name: &str, weight: u32) -> Backend {
    Backend { name: revision(name).0, weight }
}

fn scene() -> Scene {
    let mut spec = rollout();
    spec.model = serving("good", "ternary", 3);
    let ledger = Ledger {
        uid: spec.uid.clone(),
        stable: revision("fp"),
        candidate: Some(revision("good")),
        attempt: 1,
        step: 2,
        epoch: 4,
        rollback_of: None,
        decision: None,
    };
    let route = Route {
        accepted: true,
        backends: vec![backend("fp", 90), backend("good", 10)],
        ledger: Some(ledger),
        ..Route::default()
    };
    let observation = Observation {
        route: RouteState::Found(route),
        workloads: [(revision("fp"), workload(true)), (revision("good"), workload(false))].into(),
        finalizer: true,
        baseline_service: true,
        ..Observation::default()
    };
    let plan = plan(&spec, &State::default(), &observation, NOW);
    assert_eq!(check(&spec, &observation, &plan), Vec::new());
    Scene { rollout: spec, observation, plan }
}

impl Scene {
    fn route(&mut self) -> &mut Route {
        match &mut self.observation.route {
            RouteState::Found(route) => route,
            other => panic!("{other:?}"),
        }
    }

    fn ledger(&mut self) -> &mut Ledger {
        self.route().ledger.as_mut().unwrap()
    }

    fn write(&mut self, weights: &[(&str, u32)], edit: impl FnOnce(&mut Ledger)) {
        let mut ledger = self.ledger().clone();
        ledger.epoch += 1;
        edit(&mut ledger);
        let backends = weights.iter().map(|(n, w)| (revision(n), *w)).collect();
        self.plan.shift =
            Some(RouteWrite::Set { backends, ledger, detours: Detours::default(), adopt: false, decision: None });
    }

    fn decide(&mut self, verdict: Verdict, by: &str) {
        let key = self.rollout.latch_key(&revision("good"), 1);
        let record = DecisionRecord {
            id: "chat-d".into(),
            verdict,
            key,
            step: 2,
            weight: 10,
            note: Note { reason: Reason::Promoted, object: String::new(), message: String::new(), since: None },
            by: by.into(),
            stable: revision("fp"),
            baseline: revision("fp"),
            at: NOW,
            tick: 9,
            assessment: None,
            parameters: String::new(),
            probe_set: String::new(),
        };
        if let Some(RouteWrite::Set { decision, .. }) = &mut self.plan.shift {
            *decision = Some(Box::new(record));
        }
    }

    #[track_caller]
    fn breaks(&self, rule: &str) {
        let found = check(&self.rollout, &self.observation, &self.plan);
        assert!(found.iter().any(|v| v.rule == rule), "{rule} is not among {found:?}");
    }

    #[track_caller]
    fn holds(&self) {
        assert_eq!(check(&self.rollout, &self.observation, &self.plan), Vec::new());
    }

    fn with(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }
}

fn latch(scene: &mut Scene) {
    let key = scene.rollout.latch_key(&revision("good"), 1);
    scene.ledger().rollback_of = Some(key);
    scene.route().backends = vec![backend("fp", 100), backend("good", 0)];
}

#[test]
fn weights_are_explicit_sum_to_100_and_go_to_what_is_ready() {
    scene().with(|s| s.write(&[("fp", 100), ("good", 0)], |l| l.step = 0)).holds();
    scene().with(|s| s.write(&[("fp", 89), ("good", 10)], |_| {})).breaks("T1");
    scene().with(|s| s.write(&[("fp", 90), ("fp", 10)], |_| {})).breaks("T1");
    scene().with(|s| s.write(&[], |_| {})).breaks("T1");
    scene().with(|s| s.write(&[("fp", 90), ("nobody", 10)], |_| {})).breaks("T1");
    scene().with(|s| s.write(&[("fp", 90), ("nobody", 10)], |_| {})).breaks("T2");
    scene().with(|s| s.write(&[("fp", 90), ("good", 10)], |l| l.epoch = 4)).breaks("F2");
    scene().with(|s| s.write(&[("fp", 90), ("good", 10)], |l| l.uid = "another".into())).breaks("T1");
}

#[test]
fn a_candidate_without_pods_keeps_no_traffic() {
    let lost = |s: &mut Scene| s.observation.workloads.get_mut(&revision("good")).unwrap().ready_endpoints = 0;
    scene().with(lost).breaks("T3");
    scene().with(|s| lost(s)).with(|s| s.write(&[("fp", 100), ("good", 0)], |_| {})).holds();
    // Where nobody can serve nothing is written.
    let nobody = |s: &mut Scene| s.observation.workloads.values_mut().for_each(|w| w.ready_endpoints = 0);
    scene().with(nobody).holds();
}

#[test]
fn raises_take_one_step_with_pods_and_evidence() {
    scene().with(|s| s.write(&[("fp", 50), ("good", 50)], |_| {})).breaks("T4");
    scene().with(|s| s.write(&[("fp", 85), ("good", 15)], |_| {})).breaks("T4");
    scene().with(|s| s.write(&[("good", 100), ("fp", 0)], |_| {})).breaks("T4");
    scene().with(|s| s.write(&[("fp", 80), ("good", 20)], |_| {})).breaks("D2");
    let mut few = scene();
    few.route().backends = vec![backend("fp", 80), backend("good", 20)];
    few.observation.workloads.get_mut(&revision("good")).unwrap().ready_endpoints = 1;
    few.write(&[("fp", 50), ("good", 50)], |_| {});
    few.breaks("C3");
}

#[test]
fn promotions_need_evidence_or_somebody_who_asks() {
    let promote = |s: &mut Scene| {
        s.write(&[("good", 100), ("fp", 0)], |l| {
            l.stable = revision("good");
            l.step = 5;
        });
    };
    scene().with(promote).with(|s| s.decide(Verdict::Promoted, "gate")).breaks("D2");
    scene().with(promote).with(|s| s.decide(Verdict::Promoted, "ada")).holds();
    scene().with(|s| s.write(&[("good", 100)], |_| {})).with(|s| s.decide(Verdict::Promoted, "ada")).breaks("D6");
}

#[test]
fn a_latch_holds() {
    scene().with(latch).with(|s| s.write(&[("fp", 95), ("good", 5)], |_| {})).breaks("D1");
    scene().with(latch).with(|s| s.write(&[("fp", 95), ("good", 5)], |l| l.rollback_of = None)).breaks("D1");
    let lift = |weights: &'static [(&'static str, u32)]| {
        move |s: &mut Scene| {
            s.write(weights, |l| {
                l.rollback_of = None;
                l.attempt = 2;
            });
        }
    };
    scene().with(latch).with(lift(&[("fp", 95), ("good", 5)])).breaks("D1");
    scene().with(latch).with(lift(&[("fp", 100), ("good", 0)])).holds();
    scene().with(|s| s.write(&[("fp", 100)], |l| l.attempt = 0)).breaks("D1");
}

#[test]
fn an_attempt_has_one_verdict() {
    let fall = |s: &mut Scene| {
        let key = s.rollout.latch_key(&revision("good"), 1);
        s.write(&[("fp", 100), ("good", 0)], |l| l.rollback_of = Some(key));
    };
    let decided = |s: &mut Scene| {
        let key = s.rollout.latch_key(&revision("good"), 1);
        let verdict = Verdict::Inconclusive;
        s.ledger().decision = Some(StoredDecision { id: "chat-d".into(), verdict, key, at: NOW, text: String::new() });
    };
    scene().with(fall).with(|s| s.decide(Verdict::RolledBack, "gate")).holds();
    scene().with(decided).with(fall).with(|s| s.decide(Verdict::RolledBack, "gate")).breaks("D3");
    scene().with(decided).with(fall).with(|s| s.decide(Verdict::RolledBack, "ada")).holds();
    let unlatched = |s: &mut Scene| s.write(&[("fp", 100), ("good", 0)], |_| {});
    scene().with(unlatched).with(|s| s.decide(Verdict::RolledBack, "gate")).breaks("D3");
}

#[test]
fn nothing_grows_that_may_not() {
    let grow = |replicas: Option<u32>| {
        move |s: &mut Scene| {
            s.plan.grow = vec![Grow { serving: serving("good", "ternary", 3), replicas, baseline: false }];
        }
    };
    scene().with(grow(Some(4))).holds();
    scene().with(grow(Some(2))).breaks("C2");
    scene()
        .with(grow(Some(4)))
        .with(|s| s.observation.workloads.get_mut(&revision("good")).unwrap().autoscaled = true)
        .breaks("C6");
    scene().with(latch).with(grow(Some(4))).breaks("C5");
    scene().with(grow(Some(4))).with(|s| s.observation.namespace_terminating = true).breaks("X3");
    scene().with(grow(Some(4))).with(|s| s.rollout.deleting = true).breaks("X2");
}

#[test]
fn nothing_shrinks_that_serves() {
    let shrink = |what: fn(Revision) -> Shrink, name: &'static str| {
        move |s: &mut Scene| s.plan.shrink = vec![what(revision(name))]
    };
    scene().with(shrink(Shrink::ToZero, "good")).breaks("C1");
    scene().with(latch).with(shrink(Shrink::ToZero, "good")).holds();
    scene().with(latch).with(shrink(Shrink::Delete, "good")).breaks("T6");
    scene().with(latch).with(shrink(Shrink::ToZero, "fp")).breaks("C2");
    scene().with(latch).with(shrink(Shrink::ToZero, "good")).with(|s| s.route().accepted = false).breaks("C5");
    scene().with(latch).with(shrink(Shrink::ToZero, "good")).with(|s| s.route().ledger = None).breaks("C1");
    scene().with(latch).with(shrink(Shrink::Orphan, "good")).breaks("X1");
    scene().with(|s| s.plan.shrink = vec![Shrink::To(revision("fp"), 1)]).breaks("C2");
    scene().with(|s| s.plan.shrink = vec![Shrink::To(revision("good"), 0)]).breaks("C1");
}

#[test]
fn a_deletion_lets_go_in_order() {
    scene().with(|s| s.plan.finalizer = false).breaks("X1");
    scene().with(|s| s.rollout.deleting = true).with(|s| s.plan.finalizer = false).breaks("X1");
    scene().with(|s| s.plan.shift = Some(RouteWrite::Release)).breaks("X1");
    let restore = |s: &mut Scene| {
        s.rollout.deleting = true;
        s.plan.shift = Some(RouteWrite::Restore);
    };
    scene().with(restore).breaks("X2");
    scene().with(restore).with(|s| s.route().originals_ready = Some(true)).holds();
    scene()
        .with(|s| s.write(&[("fp", 90), ("good", 10)], |_| {}))
        .with(|s| s.observation.route = RouteState::Unknown)
        .breaks("T6");
}

#[test]
fn a_plan_looks_again_and_asks_those_who_are_there() {
    scene().with(|s| s.plan.requeue_after = Span(0)).breaks("L1");
    scene().with(|s| s.plan.requeue_after = Span::seconds(301)).breaks("L1");
    let job = ProbeJob {
        key: "k".into(),
        tick: 1,
        pod: "gone".into(),
        candidate: revision("good"),
        baseline: revision("fp"),
        stable: revision("fp"),
        attempt: 1,
    };
    scene().with(|s| s.plan.probe = Some(job)).breaks("L1");
    scene().with(|s| s.plan.state.verbs = vec![String::new(); 9]).breaks("L1");
}

#[test]
fn a_switch_is_one_write_from_nothing_to_everything_and_rests_on_evidence() {
    let again = |mut s: Scene, old: (u32, u32), new: (u32, u32)| {
        s.route().backends = vec![backend("fp", old.0), backend("good", old.1)];
        s.write(&[("fp", new.0), ("good", new.1)], |l| l.step = 1);
        s
    };
    let fresh = || {
        let mut s = scene();
        s.rollout.strategy = blue_green(true, None);
        s.ledger().step = 0;
        s
    };
    // A share of the traffic is no switch.
    again(fresh(), (100, 0), (50, 50)).breaks("T4");
    // The switch by rule needs the evidence of a promotion.
    again(fresh(), (100, 0), (0, 100)).breaks("D2");
    // A promotion by rule from weight 0 would skip the time beside the old revision; a person may ask for it.
    let promoted = |by: &str, old: u32| {
        let mut s = again(fresh(), (100 - old, old), (0, 100));
        s.write(&[("good", 100), ("fp", 0)], |l| l.stable = revision("good"));
        s.decide(Verdict::Promoted, by);
        s
    };
    promoted("gate", 0).breaks("D6");
    promoted("ada", 0).holds();
    promoted("gate", 100).holds();
}

#[test]
fn a_promotion_without_a_verdict_needs_a_gate_that_asks_for_it() {
    let mut s = scene();
    s.write(&[("good", 100), ("fp", 0)], |l| l.stable = revision("good"));
    s.decide(Verdict::Promoted, "deadline");
    s.breaks("D2");
    s.rollout.gate.on_inconclusive = OnInconclusive::PromoteIfCompatible;
    // Asked for, but from the second of four steps and with nothing known about any signal.
    s.breaks("D2");
}

#[test]
fn a_weight_has_the_pods_that_its_step_names_and_a_promotion_has_all() {
    let mut s = scene();
    s.rollout.strategy = canary("5:20:pods=1,10:20:pods=1,20:20:pods=3,50:20");
    s.observation.workloads.get_mut(&revision("good")).unwrap().ready_endpoints = 2;
    s.write(&[("fp", 80), ("good", 20)], |l| l.step = 3);
    s.breaks("C3");
    s.write(&[("good", 100), ("fp", 0)], |l| l.stable = revision("good"));
    s.decide(Verdict::Promoted, "gate");
    s.breaks("C3");
}

#[test]
fn a_rule_is_derived_only_where_a_step_has_a_match() {
    let mut s = scene();
    s.rollout.strategy = canary("5:20,10:20:match,20:20,50:20");
    s.write(&[("fp", 90), ("good", 10)], |_| {});
    let candidate = Detour { name: "candidate".into(), ..Detour::default() };
    s.route().detours.rules = vec![Detour::dormant("candidate")];
    let derive = |s: &mut Scene, to: &str| {
        let headers = s.rollout.strategy.steps()[1].matches.clone();
        if let Some(RouteWrite::Set { detours, .. }) = &mut s.plan.shift {
            detours.rules = vec![Detour { headers, to: Some(revision(to)), ..candidate.clone() }];
        }
    };
    derive(&mut s, "good");
    assert_eq!(check(&s.rollout, &s.observation, &s.plan), Vec::new());
    derive(&mut s, "fp");
    s.breaks("T5");
    derive(&mut s, "good");
    s.rollout.strategy = canary("5:20,10:20,20:20,50:20");
    s.breaks("T5");
}

#[test]
fn a_rule_comes_and_goes_asleep() {
    let mut s = scene();
    s.rollout.strategy = canary("5:20,10:20:match,20:20,50:20");
    let headers = s.rollout.strategy.steps()[1].matches.clone();
    let awake = Detour { name: "candidate".into(), headers, to: Some(revision("good")), ..Detour::default() };
    s.write(&[("fp", 90), ("good", 10)], |_| {});
    let rules = |s: &mut Scene, there: &[Detour], written: &[Detour]| {
        s.route().detours.rules = there.to_vec();
        if let Some(RouteWrite::Set { detours, .. }) = &mut s.plan.shift {
            detours.rules = written.to_vec();
        }
    };
    let asleep = Detour::dormant("candidate");
    for (there, written) in [
        (vec![], vec![asleep.clone()]),
        (vec![asleep.clone()], vec![awake.clone()]),
        (vec![awake.clone()], vec![asleep.clone()]),
        (vec![asleep.clone()], vec![]),
    ] {
        rules(&mut s, &there, &written);
        assert_eq!(check(&s.rollout, &s.observation, &s.plan), Vec::new());
    }
    for (there, written) in [(vec![], vec![awake.clone()]), (vec![awake.clone()], vec![])] {
        rules(&mut s, &there, &written);
        s.breaks("T8");
    }
    rules(&mut s, &[awake], &[]);
    s.plan.shift = Some(RouteWrite::Release);
    s.breaks("T8");
}

/// A BitNet model is stable, its pods make room for the candidate at 10 %.
fn swapping() -> Scene {
    let mut s = scene();
    s.rollout.capacity = Capacity::Swap;
    s.route().backends = vec![backend("old", 90), backend("good", 10), backend("fp", 0)];
    s.ledger().stable = revision("old");
    let old = Workload { replicas: Some(4), ready_endpoints: 4, ..workload(false) };
    s.observation.workloads.insert(revision("old"), old);
    s.plan = plan(&s.rollout, &State::default(), &s.observation, NOW);
    s.plan.shift = None;
    s.plan.regrow = None;
    s.plan.shrink.clear();
    assert_eq!(check(&s.rollout, &s.observation, &s.plan), Vec::new());
    s
}

#[test]
fn stable_makes_room_only_as_far_as_its_share_allows() {
    let lower = |pods| vec![Shrink::To(revision("old"), pods)];
    let mut s = swapping();
    // 90 % of a model of three pods needs all three.
    s.plan.shrink = lower(3);
    assert_eq!(check(&s.rollout, &s.observation, &s.plan), Vec::new());
    s.plan.shrink = lower(2);
    s.breaks("C1");
    s.plan.shrink = lower(3);
    s.rollout.capacity = Capacity::Surge;
    s.breaks("C2");

    let mut unready = swapping();
    unready.observation.workloads.get_mut(&revision("old")).unwrap().ready_endpoints = 2;
    unready.plan.shrink = lower(3);
    unready.breaks("C1");

    let mut autoscaled = swapping();
    autoscaled.observation.workloads.get_mut(&revision("old")).unwrap().autoscaled = true;
    autoscaled.plan.shrink = lower(3);
    autoscaled.breaks("C6");

    let mut fp16 = swapping();
    fp16.plan.shrink = vec![Shrink::To(revision("fp"), 2)];
    fp16.breaks("C2");
}

#[test]
fn stable_gets_back_what_its_pods_carry_and_grows_back_upward() {
    let mut s = swapping();
    s.observation.workloads.get_mut(&revision("old")).unwrap().replicas = Some(2);
    s.write(&[("old", 100), ("good", 0), ("fp", 0)], |_| {});
    s.breaks("C4");
    s.write(&[("fp", 100), ("good", 0), ("old", 0)], |_| {});
    assert_eq!(check(&s.rollout, &s.observation, &s.plan), Vec::new());
    s.plan.regrow = Some((revision("old"), 1));
    s.breaks("C2");
    s.plan.regrow = Some((revision("fp"), 9));
    s.breaks("C2");
}
