//! Values that no world would produce.

use super::{
    Rng,
    spec::{ab_test, blue_green, by_evidence, canary, guard, revision, rollout, serving},
};
use bitnet_core::{
    Span, Time,
    evidence::{
        Evidence, LiveArm, OnInconclusive, Probes, PromptSample,
        ab::{Ab, AbSettings},
        guard::{Guard, GuardSettings},
    },
    model::{Canary, Capacity, LatchKey, Pace, Revision, Rollout, RouteTarget, Strategy},
    observation::{
        Backend, Comparable, Detour, DetourState, Detours, Ledger, Live, Observation, Pod, Preview, ProbeOutcome,
        Route, RouteState, Sample, StoredDecision, Users, Verb, VerbRequest, Workload,
    },
    plan::{Attempt, ProbeJob, Seen, State, Verdict, Watch},
    stats::asymptotic::Moments,
};

pub(crate) const NAMES: [&str; 5] = ["fp", "fp2", "good", "bad", "slow"];

pub(crate) const VERBS: [Verb; 7] =
    [Verb::Promote, Verb::PromoteFull, Verb::Pause, Verb::Resume, Verb::Abort, Verb::Rollback, Verb::Retry];

/// Draws values that no world would produce.
pub(crate) struct Garbage(pub(crate) Rng);

impl Garbage {
    fn chance(&mut self, percent: u64) -> bool {
        self.0.below(100) < percent
    }

    fn revision(&mut self) -> Revision {
        match self.0.below(8) {
            0 => Revision("somebody-elses".into()),
            1 => Revision(String::new()),
            n => revision(NAMES[(n as usize) % NAMES.len()]),
        }
    }

    fn time(&mut self) -> Time {
        let near = 1_000_000_000_000 + self.0.below(2_000_000) as i64 - 1_000_000;
        match self.0.below(12) {
            0 => Time(0),
            1 => Time(i64::MAX),
            2 => Time(i64::MIN),
            _ => Time(near),
        }
    }

    fn number(&mut self) -> u32 {
        match self.0.below(12) {
            0 => u32::MAX,
            1 => 0,
            n => n as u32,
        }
    }

    fn float(&mut self) -> f64 {
        match self.0.below(10) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => -1.0,
            3 => 1e300,
            _ => self.0.unit(),
        }
    }

    fn maybe<T>(&mut self, percent: u64, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.chance(percent) { Some(make(self)) } else { None }
    }

    pub(crate) fn rollout(&mut self) -> Rollout {
        let mut spec = rollout();
        spec.baseline = serving(NAMES[self.0.below(2) as usize], "fp16", 1 + self.0.below(3) as u32);
        spec.model = serving(NAMES[self.0.below(5) as usize], "ternary", self.0.below(4) as u32);
        spec.deleting = self.chance(15);
        spec.paused = self.chance(15);
        if self.chance(40) {
            spec.route = RouteTarget::Own { gateway: "gw".into(), hostnames: Vec::new() };
        }
        match self.0.below(20) {
            0 => spec.strategy = Strategy::Canary(Canary { steps: Vec::new(), pace: Pace::Time }),
            1..4 => spec.strategy = by_evidence("5:20,50:20"),
            4..8 => spec.strategy = blue_green(true, Some("preview.example")),
            8..10 => spec.strategy = blue_green(false, None),
            10..12 => spec.strategy = ab_test("10:60", &["promote"]),
            12 => spec.strategy = ab_test("50:60", &["header", "match"]),
            13..16 => spec.strategy = canary("5:20:pods=1:match,10:20:pods=2,50:20:pods=9"),
            _ => {}
        }
        if self.chance(40) {
            spec.guard = guard(60 * self.0.below(3) as i64);
        }
        if self.chance(30) {
            spec.capacity = Capacity::Swap;
        }
        if self.chance(20) {
            spec.gate.on_inconclusive = OnInconclusive::PromoteIfCompatible;
        }
        if self.chance(10) {
            spec.gate.interval = Span(0);
            spec.gate.deadline = Span(0);
        }
        spec
    }

    fn key(&mut self) -> LatchKey {
        let mut key = rollout().latch_key(&self.revision(), self.0.below(4) as u32);
        if self.chance(10) {
            key.uid = "another".into();
        }
        key
    }

    fn ledger(&mut self) -> Ledger {
        let verdict = [Verdict::Promoted, Verdict::RolledBack, Verdict::Inconclusive, Verdict::Reported]
            [self.0.below(4) as usize];
        Ledger {
            uid: if self.chance(90) { rollout().uid } else { "another".into() },
            stable: self.revision(),
            candidate: self.maybe(80, Self::revision),
            attempt: self.number().min(1_000_000),
            step: self.number(),
            epoch: if self.chance(3) { u64::MAX - 1 } else { self.0.below(9) },
            rollback_of: self.maybe(30, Self::key),
            decision: self.maybe(30, |g| StoredDecision {
                id: "chat-d".into(),
                verdict,
                key: g.key(),
                at: g.time(),
                text: "?".into(),
            }),
        }
    }

    fn route(&mut self) -> RouteState {
        match self.0.below(14) {
            0 => return RouteState::Unknown,
            1 => return RouteState::Missing,
            2 => return RouteState::RuleMissing("no".into()),
            3 => return RouteState::InUse("older".into()),
            4 => return RouteState::GatewayMissing("gw".into()),
            _ => {}
        }
        let weights = [0, 5, 10, 20, 50, 95, 100, 1, u32::MAX];
        let backends = (0..self.0.below(5))
            .map(|_| Backend { name: self.revision().0, weight: weights[self.0.below(9) as usize] })
            .collect();
        RouteState::Found(Route {
            uid: "r".into(),
            resource_version: "1".into(),
            accepted: self.chance(70),
            acceptance_message: "?".into(),
            backends,
            ledger: self.maybe(85, Self::ledger),
            detours: Detours {
                mark: self.maybe(20, |_| "1;?;".into()),
                rules: (0..self.0.below(6).saturating_sub(3))
                    .map(|_| Detour {
                        name: ["split", "candidate", "stable", "?"][self.0.below(4) as usize].into(),
                        state: [DetourState::Awake, DetourState::Dormant, DetourState::Altered]
                            [self.0.below(3) as usize],
                        to: self.maybe(50, Self::revision),
                        ..Detour::default()
                    })
                    .collect(),
            },
            spare_rules: self.0.below(4) as u32,
            owned: self.chance(50),
            originals_ready: self.maybe(50, |g| g.chance(50)),
        })
    }

    fn workload(&mut self) -> Workload {
        let pods = (0..self.0.below(4))
            .map(|i| Pod {
                name: format!("p{i}"),
                ready_since: self.maybe(60, Self::time),
                problem: self.maybe(20, |_| "x".repeat(500)),
            })
            .collect();
        Workload {
            replicas: self.maybe(85, Self::number),
            service: self.chance(85),
            pods,
            ready_endpoints: self.0.below(4) as u32,
            autoscaled: self.chance(10),
            baseline: self.chance(30),
        }
    }

    fn sample(&mut self) -> Sample {
        let arm = |g: &mut Self| LiveArm {
            requests: g.0.next() >> g.0.below(64),
            errors: g.0.next() >> 40,
            ..LiveArm::default()
        };
        Sample {
            at: self.time(),
            live: self.maybe(70, |g| Live {
                candidate: arm(g),
                stable: arm(g),
                seconds: g.float(),
                users: Users {
                    assigned: (g.0.next() >> g.0.below(64), g.0.next() >> g.0.below(64)),
                    outcomes: (g.moments(), g.moments()),
                },
            }),
            stable_total: self.maybe(50, |g| (arm(g), g.float())),
            probes: match self.0.below(4) {
                0 => ProbeOutcome::None,
                1 => ProbeOutcome::Running,
                2 => ProbeOutcome::Lost("gone".into()),
                _ => ProbeOutcome::Done(Probes {
                    probe_set: ["", "abc", "def"][self.0.below(3) as usize].into(),
                    drawn: self.number(),
                    prompts: (0..self.0.below(9))
                        .map(|_| PromptSample {
                            cosine: self.float(),
                            cosine_at: self.float(),
                            mse: self.float(),
                            kl: self.float(),
                            top1: self.float(),
                        })
                        .collect(),
                    ..Probes::default()
                }),
            },
            comparable: match self.0.below(4) {
                0 => Comparable::Unknown,
                1 => Comparable::No { field: "f".repeat(99), baseline: "b\n".repeat(99), candidate: "ü".repeat(99) },
                _ => Comparable::Yes,
            },
        }
    }

    fn moments(&mut self) -> Moments {
        Moments { n: self.0.next() >> self.0.below(64), sum: self.float(), squares: self.float() }
    }

    pub(crate) fn observation(&mut self) -> Observation {
        Observation {
            route: self.route(),
            workloads: (0..self.0.below(6)).map(|_| (self.revision(), self.workload())).collect(),
            baseline_service: self.chance(80),
            verbs: (0..self.0.below(4))
                .map(|_| VerbRequest {
                    verb: VERBS[self.0.below(7) as usize],
                    id: "i".repeat(self.0.below(300) as usize),
                    revision: self.revision().0,
                    attempt: self.number(),
                    by: "\u{7}é".repeat(self.0.below(300) as usize),
                })
                .collect(),
            sample: self.maybe(50, Self::sample),
            namespace_terminating: self.chance(5),
            decisions: if self.chance(50) { vec!["chat-d".into()] } else { Vec::new() },
            finalizer: self.chance(80),
            preview: match self.0.below(4) {
                0 => Preview::Foreign,
                1 => Preview::Ours { hosts: vec!["preview.example".into()], backends: vec![self.revision().0] },
                _ => Preview::Missing,
            },
        }
    }

    pub(crate) fn state(&mut self, spec: &Rollout) -> State {
        State {
            attempt: self.maybe(60, |g| g.attempt(spec)),
            waiting_since: self.maybe(40, Self::time),
            confirmed_at: self.maybe(70, Self::time),
            confirmed_epoch: self.0.below(9),
            paused: self.chance(10),
            verbs: (0..self.0.below(8)).map(|n| format!("{n:016x}")).collect(),
            seen: self.maybe(60, |g| Seen {
                epoch: g.0.below(9),
                stable: g.revision(),
                candidate: g.maybe(70, Self::revision),
                attempt: g.number(),
                rollback_of: g.maybe(30, |g| (g.revision(), g.number())),
                weights: (0..g.0.below(4)).map(|_| (g.revision(), g.number())).collect(),
            }),
            reverts: (0..self.0.below(4)).map(|_| self.time()).collect(),
            guard: self.maybe(40, |g| Watch {
                revision: if g.chance(80) { spec.model.revision.clone() } else { g.revision() },
                against: if g.chance(80) { spec.baseline.revision.clone() } else { g.revision() },
                tick: g.number(),
                last_tick: g.time(),
                job: None,
                last_pod: "p0".into(),
                probe_set: g.maybe(50, |_| "abc".into()),
                stored_at: g.maybe(30, Self::time),
                guard: Guard::new(&GuardSettings::of(&spec.gate)),
            }),
            released_at: self.maybe(20, Self::time),
        }
    }

    fn attempt(&mut self, spec: &Rollout) -> Attempt {
        Attempt {
            candidate: if self.chance(80) { spec.model.revision.clone() } else { self.revision() },
            number: self.number(),
            against: if self.chance(80) { spec.baseline.revision.clone() } else { self.revision() },
            tick: self.number(),
            last_tick: self.time(),
            excused: self.number(),
            step_since: self.maybe(50, Self::time),
            step_ticks: self.number(),
            last_requests: self.number(),
            unwatched: Span(self.time().0),
            step_released: self.chance(30),
            trips: self.number(),
            ready_ticks: self.number(),
            tripped: self.chance(20),
            job: self.maybe(40, |g| ProbeJob {
                key: "k".into(),
                tick: g.number(),
                pod: "p1".into(),
                candidate: spec.model.revision.clone(),
                baseline: g.revision(),
                stable: g.revision(),
                attempt: g.number(),
            }),
            last_pod: "p0".into(),
            probe_set: self.maybe(60, |_| "abc".into()),
            other_probe_set: self.maybe(20, |_| "def".into()),
            probe_set_missing: self.chance(10),
            comparable: self.chance(70),
            mismatch: self.maybe(10, |_| "vocabulary".into()),
            reconfigurations: self.number(),
            evidence: self.maybe(60, |_| Box::new(Evidence::new(&spec.gate))),
            users: self.maybe(30, |_| Ab::new(&AbSettings::conversion())),
        }
    }
}
