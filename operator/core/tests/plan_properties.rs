//! Properties of every plan: in random worlds, with crashes between any two effects, and on garbage.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use bitnet_core::{
    Span, Time,
    check::check,
    model::{Capacity, DeletionPolicy, RouteTarget},
    observation::{Verb, VerbRequest},
    plan::{Plan, State, plan},
    report::{Phase, Reason},
};
use proptest::{prelude::*, strategy::Strategy as Draw, test_runner::FileFailurePersistence};
use world::{
    Behaviour, Rng, World,
    garbage::{Garbage, NAMES, VERBS},
    spec::{ab_test, blue_green, by_evidence, canary, guard, revision, rollout, serving},
};

/// Something that happens to a rollout.
#[derive(Clone, Debug)]
enum Happening {
    Run(u16),
    Model(usize),
    Baseline(usize),
    Replicas(u32),
    Strategy(usize),
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

/// Strategies that a rollout is given, also in the middle of another.
const STRATEGIES: usize = 9;

fn strategy(n: usize) -> bitnet_core::model::Strategy {
    match n {
        0 => canary("1:5,5:10,20:10,50:10"),
        1 => canary("10:10,50:10"),
        2 => by_evidence("5:20,20:20,50:20"),
        3 => blue_green(true, Some("preview.example")),
        4 => ab_test("10:40", &["promote"]),
        5 => ab_test("50:30", &["header", "match"]),
        6 => canary("5:10:pods=1,30:10:pods=2:match,50:10"),
        7 => canary("10:10:pods=1:pause,50:10:pods=2"),
        _ => blue_green(false, None),
    }
}

fn happening() -> impl Draw<Value = Happening> {
    prop_oneof![
        8 => (1u16..40).prop_map(Happening::Run),
        3 => (0usize..5).prop_map(Happening::Model),
        1 => (0usize..2).prop_map(Happening::Baseline),
        1 => (1u32..5).prop_map(Happening::Replicas),
        2 => (0usize..STRATEGIES).prop_map(Happening::Strategy),
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

fn start(own: bool, seed: u64) -> World {
    let mut spec = rollout();
    if own {
        spec.route = RouteTarget::Own { gateway: "gw".into(), hostnames: Vec::new() };
    }
    spec.capacity = if seed.is_multiple_of(3) { Capacity::Swap } else { Capacity::Surge };
    spec.guard = seed.is_multiple_of(2).then(|| guard(10)).flatten();
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
    let (began, mut looks) = (world.now, 0.0);
    loop {
        let plan = world.reconcile();
        looks += 1.0;
        assert!(looks < 100.0 + 5.0 * (world.now - began).as_seconds(), "looks in a loop: {:#?}", plan.report);
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
        Happening::Strategy(n) => world.rollout.strategy = strategy(*n),
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
        Happening::Kill(i) => world.kill(&revision(NAMES[*i]), usize::MAX),
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

fn promote(world: &mut World, i: u32) {
    let ledger = world.route.as_ref().and_then(|r| r.ledger.clone()).expect("a ledger");
    world.verbs.push(VerbRequest {
        verb: Verb::Promote,
        id: format!("go-{i}"),
        revision: ledger.candidate.unwrap_or_default().0,
        attempt: ledger.attempt,
        by: "ada".into(),
    });
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
        first in 0usize..STRATEGIES,
        seed in any::<u64>(),
    ) {
        let mut world = start(own, seed);
        world.rollout.strategy = strategy(first);
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
        let mut last = run(&mut world, until);
        // A switch that waits for a person is no end: somebody says `promote`, after each trip again.
        for i in 0..3 {
            if last.report.headline.reason != Reason::StepPaused {
                break;
            }
            promote(&mut world, i);
            let until = world.now + Span::seconds(700);
            last = run(&mut world, until);
        }
        if world.rollout.deleting {
            prop_assert!(world.gone, "the finalizer stays: {:#?}", last.report);
            return Ok(());
        }
        let ends = [Phase::Serving, Phase::RolledBack, Phase::Holding];
        prop_assert!(ends.contains(&last.report.phase), "no end: {:#?}", last.report);
        let (writes, patches) = (world.writes, world.patches);
        let until = world.now + Span::seconds(1200);
        let quiet = run(&mut world, until);
        let wake = if world.rollout.guard.is_some() { Span(0) } else { Span::seconds(5) };
        prop_assert!(quiet.requeue_after >= wake, "{:#?}", quiet.report);
        prop_assert_eq!((world.writes, world.patches), (writes, patches), "not quiet: {:#?}", last.report);
        // Traffic is on something that serves, and it is what the pointers say.
        let ledger = world.route.as_ref().and_then(|r| r.ledger.clone()).expect("a ledger");
        prop_assert_eq!(world.weight(&ledger.stable), 100);
        prop_assert!(world.ready(&ledger.stable) > 0);
        prop_assert!(world.ready(&world.rollout.baseline.revision) > 0, "fp16 is warm");
        if world.rollout.capacity == Capacity::Swap && ledger.stable != world.rollout.baseline.revision {
            prop_assert!(world.deployments[&ledger.stable].replicas >= world.rollout.model.replicas, "its pods are back");
        }
        if last.report.phase == Phase::Serving {
            prop_assert_eq!(&ledger.stable, &world.rollout.model.revision);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/plan_properties.seeds"))), ..ProptestConfig::default() })]

    /// A rollout with an operator that crashes again and again, after each effect in turn: the same end as without.
    #[test]
    fn crashes_do_not_change_the_end(model in 2usize..5, how in 0usize..STRATEGIES - 1, every in 2usize..7, seed in any::<u64>()) {
        let end = |crashing: bool| {
            let mut world = start(false, seed);
            world.rollout.model = serving(NAMES[model], "ternary", 3);
            world.rollout.strategy = strategy(how);
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
