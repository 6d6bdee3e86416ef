//! All interleavings of two operators that run the real `plan` on one rollout.
//!
//! There is no lease in this world: at any moment either operator reads and plans, sends its next request, gives up on one
//! that then arrives at any later time, or dies. Every history with a lease, however often it expires while its holder still
//! believes in it, however often a process dies or an answer is lost, is one of these: a lost answer is a request that
//! arrived before its sender died. So nothing here is counted but the requests that are on their way at once.
//!
//! The world is small where it does not matter (pods are ready at once, the gateway accepts at once, the model is good until
//! it turns bad) and exact where it does: every route and status write carries the precondition that the operator gives it.
//! Time follows from the stored state: a reconcile comes one interval after the latest time that the state knows, so that
//! histories which left the same objects behind are one state. A request that can never be accepted any more is forgotten
//! with all that its plan has after it, and operators have no names: neither changes what can happen. Controls show that the
//! search would find a mistake.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "other test files use the rest")]
#[path = "../world/spec.rs"]
mod spec;
mod world;

use bitnet_core::{
    Time,
    check::check,
    model::{Revision, Rollout},
    observation::{Backend, Ledger, Observation, Pod, Route, RouteState, StoredDecision, Workload},
    plan::{Plan, RouteWrite, Shrink, State, Verdict, plan, tick_due},
};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use world::{Action, BEGAN, Effect, Outcome, Stored, World, Written, after, sample, tiny};

/// What is planned from an observation: the effects in their order.
type Planned = BTreeMap<(Arc<str>, u32, Stored, Option<u32>, usize, bool), Arc<[Effect]>>;

struct Operators {
    rollout: Rollout,
    /// Requests on their way at once.
    parked: usize,
    guard: Guard,
    planned: Mutex<Planned>,
}

/// What stands between an operator's mistake and the stored objects; taken away one by one in the controls.
#[derive(Clone, Copy)]
struct Guard {
    /// Writes carry the version that was read.
    preconditions: bool,
    /// The planner puts verdict and weights into one write of the route.
    one_write: bool,
}

const AS_BUILT: Guard = Guard { preconditions: true, one_write: true };

impl Operators {
    fn new(steps: &str, parked: usize, guard: Guard) -> Self {
        Self { rollout: tiny(steps), parked, guard, planned: Mutex::new(BTreeMap::new()) }
    }

    fn observation(&self, world: &World, state: &State, now: Time) -> Observation {
        let uid = self.rollout.uid.clone();
        let ledger = world.route.ledger.as_ref().map(|l| {
            let key = |attempt| self.rollout.latch_key(&self.rollout.model.revision, attempt);
            let decision = l.decision.as_ref().map(|(id, verdict, attempt)| StoredDecision {
                id: id.clone(),
                verdict: match verdict {
                    Outcome::Promoted => Verdict::Promoted,
                    Outcome::RolledBack => Verdict::RolledBack,
                    Outcome::Inconclusive => Verdict::Inconclusive,
                },
                key: key(*attempt),
                at: BEGAN,
                text: String::new(),
            });
            Ledger {
                uid: uid.clone(),
                stable: Revision(l.stable.clone()),
                candidate: l.candidate.clone().map(Revision),
                attempt: l.attempt,
                step: l.step,
                epoch: l.epoch,
                rollback_of: l.latched.map(key),
                decision,
            }
        });
        let backends = world.route.weights.iter().map(|(name, weight)| Backend { name: name.clone(), weight: *weight });
        let route = Route {
            uid: "route".into(),
            resource_version: world.route.version.to_string(),
            accepted: true,
            backends: backends.collect(),
            ledger,
            originals_ready: Some(true),
            ..Route::default()
        };
        let deployment = |name: &str, replicas: u32, baseline| Workload {
            replicas: Some(replicas),
            service: true,
            pods: (0..replicas)
                .map(|i| Pod {
                    name: format!("{name}-{i}"),
                    ready_since: Some(Time(BEGAN.0 - 3_600_000)),
                    problem: None,
                })
                .collect(),
            ready_endpoints: replicas,
            autoscaled: false,
            baseline,
        };
        let fp16 = &self.rollout.baseline.revision;
        let model = &self.rollout.model.revision;
        let mut workloads = BTreeMap::from([(fp16.clone(), deployment("fp", 1, true))]);
        if let Some(replicas) = world.candidate {
            workloads.insert(model.clone(), deployment("b", replicas, false));
        }
        let weight = world.route.weights.iter().find(|(name, _)| *name == model.0).map_or(0, |(_, w)| *w);
        Observation {
            route: RouteState::Found(route),
            workloads,
            sample: tick_due(&self.rollout, state, now).then(|| sample(state, now, weight, !world.bad)),
            decisions: world.records.clone(),
            finalizer: true,
            baseline_service: true,
            ..Observation::default()
        }
    }

    fn reconcile(&self, world: &World) -> Arc<[Effect]> {
        let (status, version, route) = (world.status.clone(), world.status_version, world.route.clone());
        let inputs = (status, version, route, world.candidate, world.records.len(), world.bad);
        if let Some(known) = self.planned.lock().unwrap().get(&inputs) {
            return known.clone();
        }
        let state = State::decode(&world.status).unwrap_or_default();
        let now = after(&state);
        let observation = self.observation(world, &state, now);
        let made = plan(&self.rollout, &state, &observation, now);
        let violations = check(&self.rollout, &observation, &made);
        assert!(violations.is_empty(), "{violations:?}\n{made:#?}\n{observation:#?}");
        let effects: Arc<[Effect]> = self.effects(world, made).into();
        self.planned.lock().unwrap().insert(inputs, effects.clone());
        effects
    }

    /// The plan as requests, in the order of its fields.
    fn effects(&self, world: &World, plan: Plan) -> Vec<Effect> {
        let model = &self.rollout.model.revision;
        let mut effects = Vec::new();
        let grown = plan.grow.iter().filter(|g| g.serving.revision == *model);
        effects.extend(grown.filter_map(|g| g.replicas).map(Effect::Grow));
        if let Some(RouteWrite::Set { backends, ledger, decision, .. }) = &plan.shift {
            let verdict = decision.as_ref().map(|d| Outcome::from(d.verdict));
            let mut decided = world.route.ledger.as_ref().and_then(|l| l.decision.clone());
            if let Some(d) = decision {
                decided = Some((d.id.clone(), d.verdict.into(), d.key.attempt));
            }
            let mut latched = ledger.rollback_of.as_ref().map(|k| k.attempt);
            if !self.guard.one_write {
                // A planner that keeps its verdict elsewhere: the route has the weights alone.
                (latched, decided) = (None, None);
            }
            effects.push(Effect::Route {
                version: world.route.version,
                weights: backends.iter().map(|(r, w)| (r.0.clone(), *w)).collect(),
                ledger: Written {
                    stable: ledger.stable.0.clone(),
                    candidate: ledger.candidate.clone().map(|r| r.0),
                    attempt: ledger.attempt,
                    step: ledger.step,
                    epoch: ledger.epoch,
                    latched,
                    decision: decided,
                },
                verdict,
            });
        }
        effects.extend(plan.record.map(|r| Effect::Record(r.id)));
        let gone = |s: &Shrink| matches!(s, Shrink::ToZero(r) | Shrink::Delete(r) if r == model);
        effects.extend(plan.shrink.iter().any(gone).then_some(Effect::Shrink));
        let after = plan.state.encode(&self.rollout.gate.parameters_hash());
        if *after != *world.status {
            effects.push(Effect::Status { version: world.status_version, after: after.into() });
        }
        effects
    }

    fn arrive(&self, world: &mut World, effect: Effect) {
        match effect {
            Effect::Grow(n) => world.candidate = Some(n),
            Effect::Shrink => {
                let model = &self.rollout.model.revision.0;
                let served = world.route.weights.iter().any(|(name, weight)| name == model && *weight > 0);
                if served {
                    world.broken = Some("C5: a revision with traffic is scaled down");
                }
                world.candidate = world.candidate.map(|_| 0);
            }
            Effect::Record(id) => {
                if !world.records.contains(&id) {
                    world.records.push(id);
                }
            }
            Effect::Status { after, .. } => {
                world.status = after;
                world.status_version += 1;
            }
            Effect::Route { weights, ledger, verdict, .. } => {
                self.stored(world, &weights, &ledger, verdict);
                world.route = Stored { version: world.route.version + 1, weights, ledger: Some(ledger) };
            }
        }
    }

    /// The rules about what is stored, looked at from outside.
    fn stored(&self, world: &mut World, weights: &[(String, u32)], ledger: &Written, verdict: Option<Outcome>) {
        let model = &self.rollout.model.revision.0;
        let of = |weights: &[(String, u32)]| weights.iter().find(|(name, _)| name == model).map_or(0, |(_, w)| *w);
        let (old, new) = (of(&world.route.weights), of(weights));
        let steps: Vec<u32> = self.rollout.strategy.steps().iter().map(|s| s.weight).collect();
        let next = steps.iter().copied().chain([100]).find(|w| *w > old);
        let mut broken = |rule| world.broken = world.broken.or(Some(rule));
        if weights.iter().map(|(_, w)| w).sum::<u32>() != 100 {
            broken("T1: weights sum to 100");
        }
        if new > old && Some(new) != next {
            broken("T4: no step is skipped upward");
        }
        if new > 0 && world.candidate.unwrap_or(0) == 0 {
            broken("T2: weight for a revision without pods");
        }
        if world.route.ledger.as_ref().is_some_and(|l| ledger.epoch <= l.epoch) {
            broken("F2: the epoch falls");
        }
        match (world.verdict, verdict) {
            (Some(_), Some(_)) => broken("D3: a second verdict on one attempt"),
            (Some(Outcome::RolledBack), None) if new > old => broken("D1: weight rises after the rollback"),
            (Some(Outcome::Promoted), None) if new < 100 => broken("D3: a promoted model loses its traffic"),
            _ => {}
        }
        if verdict.is_some() {
            world.verdict = verdict;
        }
        if new == 100 && world.verdict != Some(Outcome::Promoted) {
            broken("D2: all traffic without a verdict");
        }
    }
}

impl Operators {
    /// The API server will refuse it, now and at any later time: versions only rise.
    fn refused(&self, world: &World, effect: &Effect) -> bool {
        self.guard.preconditions
            && match effect {
                Effect::Route { version, .. } => *version != world.route.version,
                Effect::Status { version, .. } => *version != world.status_version,
                Effect::Grow(_) | Effect::Record(_) | Effect::Shrink => false,
            }
    }

    /// The one form of all worlds that differ in requests to be refused and in the operators' order.
    fn normal(&self, mut world: World) -> World {
        for i in 0..2 {
            // A refused request ends the reconcile.
            let kept = world.rests[i].iter().take_while(|e| !self.refused(&world, e)).count();
            if kept < world.rests[i].len() {
                world.rests[i] = world.rests[i][..kept].into();
            }
        }
        world.rests.sort();
        let parked = std::mem::take(&mut world.parked);
        world.parked = parked.into_iter().filter(|e| !self.refused(&world, e)).collect();
        world.parked.sort();
        world
    }
}

impl Model for Operators {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            route: Stored { version: 1, weights: vec![("old-service".into(), 1)], ledger: None },
            status: "".into(),
            status_version: 0,
            candidate: None,
            records: Vec::new(),
            bad: false,
            rests: [[].into(), [].into()],
            parked: Vec::new(),
            verdict: None,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        if !world.bad {
            actions.push(Action::Turn);
        }
        for (i, rest) in world.rests.iter().enumerate() {
            if rest.is_empty() {
                actions.push(Action::Reconcile(i));
                continue;
            }
            actions.push(Action::Send(i));
            actions.push(Action::Crash(i));
            if world.parked.len() < self.parked {
                actions.push(Action::Park(i));
            }
        }
        actions.extend((0..world.parked.len()).map(Action::Arrive));
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Turn => world.bad = true,
            Action::Reconcile(i) => {
                world.rests[i] = self.reconcile(last);
                if world.rests[i].is_empty() {
                    return None;
                }
            }
            Action::Send(i) => {
                let rest = world.rests[i].clone();
                world.rests[i] = rest[1..].into();
                self.arrive(&mut world, rest[0].clone());
            }
            Action::Park(i) => {
                world.parked.push(world.rests[i][0].clone());
                world.rests[i] = [].into();
            }
            Action::Arrive(n) => {
                let effect = world.parked.remove(n);
                self.arrive(&mut world, effect);
            }
            Action::Crash(i) => world.rests[i] = [].into(),
        }
        Some(self.normal(world))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken", |_, world: &World| world.broken.is_none()),
            Property::sometimes("promoted", |_, world: &World| settled(world, Outcome::Promoted)),
            Property::sometimes("rolled back", |_, world: &World| settled(world, Outcome::RolledBack)),
            Property::sometimes("rolled back with traffic on it", |_, world: &World| {
                world.verdict == Some(Outcome::RolledBack) && world.route.ledger.as_ref().is_some_and(|l| l.epoch > 3)
            }),
            Property::sometimes("both write the route from the same reading", |_, world: &World| {
                world.rests.iter().all(|rest| rest.iter().any(|e| matches!(e, Effect::Route { .. })))
            }),
            Property::sometimes("one raises the weight while the other rolls back", |_, world: &World| {
                let rolls_back = |rest: &[Effect]| {
                    rest.iter().any(|e| matches!(e, Effect::Route { verdict: Some(Outcome::RolledBack), .. }))
                };
                let raises = |rest: &[Effect]| {
                    let of = |weights: &[(String, u32)]| weights.get(1).map_or(0, |(_, weight)| *weight);
                    let higher = |weights: &[(String, u32)]| of(weights) > of(&world.route.weights);
                    rest.iter().any(|e| matches!(e, Effect::Route { verdict: None, weights, .. } if higher(weights)))
                };
                let [one, other] = &world.rests;
                raises(one) && rolls_back(other) || raises(other) && rolls_back(one)
            }),
            Property::sometimes("a route write is on its way when another operator writes it", |_, world: &World| {
                let route = |e: &Effect| matches!(e, Effect::Route { .. });
                world.parked.iter().any(route) && world.rests.iter().any(|rest| rest.first().is_some_and(route))
            }),
        ]
    }
}

/// The verdict was made, written down in an object, and remembered.
fn settled(world: &World, verdict: Outcome) -> bool {
    world.verdict == Some(verdict) && !world.records.is_empty() && world.rests.iter().all(|rest| rest.is_empty())
}

/// Every history, and none breaks a rule.
#[test]
fn no_interleaving_of_two_operators_breaks_a_rule() {
    let checked = Operators::new("5:0,10:0,20:0,30:0,50:0,70:0", 2, AS_BUILT).checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} transitions, {} steps deep, {} plans",
        checked.unique_state_count(),
        checked.state_count(),
        checked.max_depth(),
        checked.model().planned.lock().unwrap().len()
    );
    assert!(checked.is_done(), "the search went to its end");
    checked.assert_no_discovery("no rule is broken");
    for property in checked.model().properties() {
        if property.expectation == Expectation::Sometimes {
            checked.assert_any_discovery(property.name);
        }
    }
    assert!(checked.unique_state_count() > 1_000, "{} states", checked.unique_state_count());
}

/// The search sees mistakes: without preconditions a late write comes through, and a verdict that is not in the write of the
/// weights is forgotten by whoever comes next.
#[test]
fn the_search_finds_what_each_guard_is_for() {
    let controls = [
        ("preconditions", Guard { preconditions: false, ..AS_BUILT }),
        ("verdict and weights in one write", Guard { one_write: false, ..AS_BUILT }),
    ];
    for (name, guard) in controls {
        let checker = Operators::new("10:0,50:0", 1, guard).checker();
        let checked = checker.finish_when(HasDiscoveries::AnyFailures).threads(1).spawn_bfs().join();
        let path = checked.discovery("no rule is broken");
        let path =
            path.unwrap_or_else(|| panic!("without {name} nothing was found in {} states", checked.state_count()));
        let last = path.last_state().clone();
        println!("without {name}: {:?} after {} steps", last.broken, path.into_actions().len());
        assert!(last.broken.is_some());
    }
}
