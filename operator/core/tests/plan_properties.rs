//! Properties of every plan: in random worlds, with crashes between any two effects, and on garbage.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use bitnet_core::{
    Span, Time,
    check::check,
    evidence::{Evidence, LiveArm, Probes, PromptSample},
    model::{Canary, DeletionPolicy, LatchKey, Revision, Rollout, RouteTarget, Strategy},
    observation::{
        Backend, Comparable, Ledger, Live, Observation, Pod, ProbeOutcome, Route, RouteState, Sample, StoredDecision,
        Verb, VerbRequest, Workload,
    },
    plan::{Attempt, Plan, ProbeJob, Seen, State, Verdict, plan},
    report::Phase,
};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use world::{
    Behaviour, Rng, World,
    spec::{revision, rollout, serving, steps},
};

const NAMES: [&str; 5] = ["fp", "fp2", "good", "bad", "slow"];
const VERBS: [Verb; 7] =
    [Verb::Promote, Verb::PromoteFull, Verb::Pause, Verb::Resume, Verb::Abort, Verb::Rollback, Verb::Retry];

/// Something that happens to a rollout.
#[derive(Clone, Debug)]
enum Happening {
    Run(u16),
    Model(usize),
    Baseline(usize),
    Replicas(u32),
    Steps(bool),
    Paused(bool),
    Verb(usize, bool),
    Kill(usize),
    Down(usize, bool),
    Hand(usize, u32),
    Crash(usize),
    Wipe,
    Restart,
    Gateway(bool),
    RouteGone,
    Unreadable(bool),
    Delete,
}

fn happening() -> impl Strategy_<Value = Happening> {
    prop_oneof![
        8 => (1u16..40).prop_map(Happening::Run),
        3 => (0usize..5).prop_map(Happening::Model),
        1 => (0usize..2).prop_map(Happening::Baseline),
        1 => (1u32..5).prop_map(Happening::Replicas),
        1 => any::<bool>().prop_map(Happening::Steps),
        1 => any::<bool>().prop_map(Happening::Paused),
        3 => (0usize..7, any::<bool>()).prop_map(|(v, stale)| Happening::Verb(v, stale)),
        2 => (0usize..5).prop_map(Happening::Kill),
        2 => (0usize..5, any::<bool>()).prop_map(|(r, down)| Happening::Down(r, down)),
        1 => (0usize..5, 0u32..101).prop_map(|(r, w)| Happening::Hand(r, w)),
        3 => (0usize..6).prop_map(Happening::Crash),
        1 => Just(Happening::Wipe),
        1 => Just(Happening::Restart),
        1 => any::<bool>().prop_map(Happening::Gateway),
        1 => Just(Happening::RouteGone),
        1 => any::<bool>().prop_map(Happening::Unreadable),
        1 => Just(Happening::Delete),
    ]
}

use proptest::strategy::Strategy as Strategy_;

fn start(own: bool, seed: u64) -> World {
    let mut spec = rollout();
    if own {
        spec.route = RouteTarget::Own { gateway: "gw".into(), hostnames: Vec::new() };
    }
    let mut world = World::new(spec, seed);
    let behaviours = [
        ("bad", Behaviour { cosine: 0.3, ..Behaviour::default() }),
        ("slow", Behaviour { ttft: 0.06, tpot: 0.012, ..Behaviour::default() }),
    ];
    for (name, behaviour) in behaviours {
        world.behaviours.insert(revision(name), behaviour);
    }
    world
}

/// Looks until `until`, as the operator does.
fn run(world: &mut World, until: Time) -> Plan {
    loop {
        let plan = world.reconcile();
        if world.gone || world.now >= until {
            return plan;
        }
        world.advance(plan.requeue_after, until);
    }
}

fn happen(world: &mut World, what: &Happening, id: usize) {
    match what {
        Happening::Run(seconds) => {
            let until = world.now + Span::seconds(i64::from(*seconds));
            run(world, until);
        }
        Happening::Model(i) => {
            let replicas = world.rollout.model.replicas;
            world.rollout.model = serving(NAMES[*i], "ternary", replicas);
        }
        Happening::Baseline(i) => world.rollout.baseline = serving(NAMES[*i], "fp16", 3),
        Happening::Replicas(n) => world.rollout.model.replicas = *n,
        Happening::Steps(long) => {
            let list = if *long { "1:5,5:10,20:10,50:10" } else { "10:10,50:10" };
            world.rollout.strategy = Strategy::Canary(Canary { steps: steps(list) });
        }
        Happening::Paused(on) => world.rollout.paused = *on,
        Happening::Verb(v, stale) => {
            let ledger = world.route.as_ref().and_then(|r| r.ledger.as_ref());
            let seen = ledger.and_then(|l| l.candidate.clone()).unwrap_or(world.rollout.model.revision.clone());
            let attempt = ledger.map_or(0, |l| l.attempt).saturating_sub(u32::from(*stale));
            world.verbs.push(VerbRequest {
                verb: VERBS[*v],
                id: format!("{id}"),
                revision: seen.0,
                attempt,
                by: "ada".into(),
            });
        }
        Happening::Kill(i) => world.kill(&revision(NAMES[*i])),
        Happening::Down(i, down) => world.take(&revision(NAMES[*i]), *down),
        Happening::Hand(i, w) => {
            let w = *w;
            let weights = [(revision("fp"), 100 - w), (revision(NAMES[*i]), w)];
            world.by_hand(&weights);
        }
        Happening::Crash(effects) => world.crash_after = Some(*effects),
        Happening::Wipe => world.status = None,
        Happening::Restart => world.restart(),
        Happening::Gateway(goes) => world.gateway(*goes),
        Happening::RouteGone => world.lose_route(),
        Happening::Unreadable(on) => world.unreadable = *on,
        Happening::Delete => world.rollout.deleting = true,
    }
    if !world.gone {
        world.reconcile();
    }
}

/// The spec is quiet, the faults have stopped, nobody presses anything.
fn heal(world: &mut World) {
    world.crash_after = None;
    world.verbs.clear();
    world.unreadable = false;
    world.rollout.paused = false;
    world.gateway(true);
    world.restore_route();
    for name in NAMES {
        world.take(&revision(name), false);
    }
    // A verb's pause is not a fault: somebody resumes.
    if let Some(ledger) = world.route.as_ref().and_then(|r| r.ledger.clone()) {
        let seen = ledger.candidate.clone().unwrap_or(world.rollout.model.revision.clone());
        world.verbs.push(VerbRequest {
            verb: Verb::Resume,
            id: "last".into(),
            revision: seen.0,
            attempt: ledger.attempt,
            by: "ada".into(),
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 200, failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/plan_properties.seeds"))), ..ProptestConfig::default() })]

    /// Whatever happens, in whatever order, with crashes between any two effects: no plan breaks a rule (the world
    /// checks each one, and the admission policies' rules on each write), and once it is quiet the rollout comes to an
    /// end and then writes nothing any more.
    #[test]
    fn any_history_comes_to_a_quiet_end(
        history in prop::collection::vec(happening(), 1..25),
        own in any::<bool>(),
        orphan in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut world = start(own, seed);
        if orphan {
            world.rollout.deletion_policy = DeletionPolicy::Orphan;
        }
        for (i, what) in history.iter().enumerate() {
            happen(&mut world, what, i);
        }
        if world.gone {
            prop_assert!(world.rollout.deleting);
            return Ok(());
        }
        heal(&mut world);
        let until = world.now + Span::seconds(1500);
        let last = run(&mut world, until);
        if world.rollout.deleting {
            prop_assert!(world.gone, "the finalizer stays: {:#?}", last.report);
            return Ok(());
        }
        let ends = [Phase::Serving, Phase::RolledBack, Phase::Holding];
        prop_assert!(ends.contains(&last.report.phase), "no end: {:#?}", last.report);
        let (writes, patches) = (world.writes, world.patches);
        let until = world.now + Span::seconds(1200);
        run(&mut world, until);
        prop_assert_eq!((world.writes, world.patches), (writes, patches), "not quiet: {:#?}", last.report);
        // Traffic is on something that serves, and it is what the pointers say.
        let ledger = world.route.as_ref().and_then(|r| r.ledger.clone()).expect("a ledger");
        prop_assert_eq!(world.weight(&ledger.stable), 100);
        prop_assert!(world.ready(&ledger.stable) > 0);
        prop_assert!(world.ready(&world.rollout.baseline.revision) > 0, "fp16 is warm");
        if last.report.phase == Phase::Serving {
            prop_assert_eq!(&ledger.stable, &world.rollout.model.revision);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/plan_properties.seeds"))), ..ProptestConfig::default() })]

    /// A rollout with an operator that crashes again and again, after each effect in turn: the same end as without.
    #[test]
    fn crashes_do_not_change_the_end(model in 2usize..5, every in 2usize..7, seed in any::<u64>()) {
        let end = |crashing: bool| {
            let mut world = start(false, seed);
            world.rollout.model = serving(NAMES[model], "ternary", 3);
            let until = world.now + Span::seconds(500);
            let mut n = 0usize;
            while world.now < until {
                n += 1;
                if crashing && n.is_multiple_of(every) {
                    world.crash_after = Some(n / every % 7);
                    world.restart();
                }
                let plan = world.reconcile();
                world.advance(plan.requeue_after.min(Span::seconds(30)), until);
            }
            let ledger = world.route.as_ref().and_then(|r| r.ledger.clone()).expect("a ledger");
            (ledger.stable, ledger.attempt, world.weight(&world.rollout.model.revision))
        };
        prop_assert_eq!(end(false), end(true));
    }
}

/// Draws values that no world would produce.
struct Garbage(Rng);

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

    fn rollout(&mut self) -> Rollout {
        let mut spec = rollout();
        spec.baseline = serving(NAMES[self.0.below(2) as usize], "fp16", 1 + self.0.below(3) as u32);
        spec.model = serving(NAMES[self.0.below(5) as usize], "ternary", self.0.below(4) as u32);
        spec.deleting = self.chance(15);
        spec.paused = self.chance(15);
        if self.chance(40) {
            spec.route = RouteTarget::Own { gateway: "gw".into(), hostnames: Vec::new() };
        }
        if self.chance(5) {
            spec.strategy = Strategy::Canary(Canary { steps: Vec::new() });
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
        let verdict = [Verdict::Promoted, Verdict::RolledBack, Verdict::Inconclusive][self.0.below(3) as usize];
        Ledger {
            uid: if self.chance(90) { rollout().uid } else { "another".into() },
            stable: self.revision(),
            candidate: self.maybe(80, Self::revision),
            attempt: self.number(),
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
            live: self.maybe(70, |g| Live { candidate: arm(g), stable: arm(g), seconds: g.float() }),
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

    fn observation(&mut self) -> Observation {
        Observation {
            route: self.route(),
            workloads: (0..self.0.below(6)).map(|_| (self.revision(), self.workload())).collect(),
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
        }
    }

    fn state(&mut self, spec: &Rollout) -> State {
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
            evidence: self.maybe(60, |_| Evidence::new(&spec.gate)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/plan_properties.seeds"))), ..ProptestConfig::default() })]

    /// Any input gives a plan, the same one each time, that breaks no rule; its state can be stored and read.
    #[test]
    fn garbage_gives_a_plan_that_may_be_carried_out(seed in any::<u64>()) {
        let mut garbage = Garbage(Rng(seed));
        let spec = garbage.rollout();
        let (state, observation) = (garbage.state(&spec), garbage.observation());
        let now = Time(1_000_000_000_000);
        let made = plan(&spec, &state, &observation, now);
        prop_assert_eq!(&made, &plan(&spec, &state, &observation, now));
        let found = check(&spec, &observation, &made);
        prop_assert!(found.is_empty(), "{:?}\n{:#?}\n{:#?}\n{:#?}", found, made, observation, state);
        let hash = spec.gate.parameters_hash();
        let text = made.state.encode(&hash);
        prop_assert!(text.len() <= 4096);
        prop_assert!(State::decode(&text).is_ok());
    }

    /// A stored state that was garbled is refused, never misread into a panic.
    #[test]
    fn a_garbled_state_is_refused(seed in any::<u64>(), cut in 0usize..200) {
        let mut garbage = Garbage(Rng(seed));
        let spec = garbage.rollout();
        let text = garbage.state(&spec).encode(&spec.gate.parameters_hash());
        let cut = cut.min(text.len());
        if cut > 0 {
            prop_assert!(State::decode(&text[..text.len() - cut]).is_err());
        }
        let longer = format!("{text}AAAA");
        prop_assert!(State::decode(&longer).is_err());
    }
}
