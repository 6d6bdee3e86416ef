//! All interleavings of two operators that run the real `plan` on one rollout: the lease expires while its holder still
//! believes in it, writes are sent and arrive at any later time, answers are lost, processes die between any two effects.
//!
//! The world is small where it does not matter (pods are ready at once, the gateway accepts at once, a tick's comparison is
//! good or bad) and exact where it does: every route and status write carries the precondition that the operator gives it.
//! Time follows from the stored state: a reconcile comes one interval after the latest time that the state knows, so that
//! histories which left the same objects behind are one state. Controls show that the search would find a mistake.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "other test files use the rest")]
#[path = "world/spec.rs"]
mod spec;

use bitnet_core::{
    Span, Time,
    check::check,
    evidence::{Gate, GenerationSample, LiveArm, Probes, PromptSample},
    model::{Revision, Rollout, Strategy},
    observation::{
        Backend, Comparable, Ledger, Live, Observation, Pod, ProbeOutcome, Route, RouteState, Sample, StoredDecision,
        Workload,
    },
    plan::{Plan, RouteWrite, Shrink, State, Verdict, plan, tick_due},
};
use spec::{rollout, serving};
use stateright::{Checker, Model, Property};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

const BEGAN: Time = Time(1_000_000_000_000);
const INTERVAL: Span = Span::seconds(10);

/// A rollout whose evidence needs few ticks: one for quality, two blocks for latency and errors.
fn tiny(steps: &str) -> Rollout {
    let mut rollout = rollout();
    rollout.gate = Gate {
        preflight: 8,
        interval: INTERVAL,
        warmup: Span(0),
        min_mean: 0.5,
        tail_share: 0.5,
        max_excess: 0.5,
        alpha_rollback: 0.5,
        alpha_promote: 0.5,
        min_samples: 8,
        ..rollout.gate
    };
    rollout.strategy = Strategy::Canary(bitnet_core::model::Canary {
        steps: spec::steps(steps),
        pace: bitnet_core::model::Pace::Time,
    });
    rollout.baseline = serving("fp", "fp16", 1);
    rollout.model = serving("b", "ternary", 1);
    rollout.scale_down_delay = Span(0);
    rollout
}

/// The stored route: what etcd holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Stored {
    version: u32,
    weights: Vec<(String, u32)>,
    ledger: Option<Written>,
}

/// A ledger in a form that can be hashed. `decision` is the verdict on the attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Written {
    stable: String,
    candidate: Option<String>,
    attempt: u32,
    step: u32,
    epoch: u64,
    latched: Option<u32>,
    decision: Option<(String, Outcome, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Outcome {
    Promoted,
    RolledBack,
    Inconclusive,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Promoted => Self::Promoted,
            Verdict::RolledBack => Self::RolledBack,
            // `Reported` ends A/B tests only; the model holds canaries.
            Verdict::Inconclusive | Verdict::Reported => Self::Inconclusive,
        }
    }
}

/// One request of an operator, with what it presupposes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Effect {
    Grow(u32),
    Route { version: u32, weights: Vec<(String, u32)>, ledger: Written, verdict: Option<Outcome> },
    Record(String),
    Shrink,
    Status { before: Arc<str>, after: Arc<str> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    /// It believes that it holds the lease.
    leads: bool,
    /// What is left of the plan that it carries out.
    rest: Vec<Effect>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    route: Stored,
    status: Arc<str>,
    /// Replicas of the candidate's Deployment.
    candidate: Option<u32>,
    records: Vec<String>,
    /// Who holds the lease.
    holder: Option<usize>,
    operators: [Process; 2],
    /// Sent and not arrived.
    parked: Vec<Effect>,
    expiries: u8,
    crashes: u8,
    parks: u8,
    /// Verdict on the attempt, as its write arrived.
    verdict: Option<Outcome>,
    /// Operators whose route writes arrived.
    writers: [bool; 2],
    refused: bool,
    /// The rule that was broken.
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Acquire(usize),
    /// The lease runs out; its holder does not know yet.
    Expire,
    /// An operator sees that the lease is not its own: nothing more is sent.
    Notice(usize),
    /// Read everything and plan; a comparison that has come back is good or bad.
    Reconcile(usize, bool),
    /// The next request arrives, and its answer.
    Send(usize),
    /// The next request arrives, its answer does not: the reconcile ends.
    SendAndLose(usize),
    /// The next request is on its way; the caller gives up on it.
    Park(usize),
    /// A parked request arrives.
    Arrive(usize),
    /// The process dies where it is.
    Crash(usize),
}

/// What is planned from an observation: the effects in their order.
type Planned = BTreeMap<(Arc<str>, Stored, Option<u32>, usize, bool), Vec<Effect>>;

struct Leaders {
    rollout: Rollout,
    most: Bounds,
    guard: Guard,
    planned: Mutex<Planned>,
}

/// How often what may happen.
#[derive(Clone, Copy)]
struct Bounds {
    expiries: u8,
    crashes: u8,
    parks: u8,
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

impl Leaders {
    fn new(steps: &str, most: Bounds, guard: Guard) -> Self {
        Self { rollout: tiny(steps), most, guard, planned: Mutex::new(BTreeMap::new()) }
    }

    fn observation(&self, world: &World, state: &State, now: Time, good: bool) -> Observation {
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
            sample: tick_due(&self.rollout, state, now).then(|| sample(state, now, weight, good)),
            decisions: world.records.clone(),
            finalizer: true,
            baseline_service: true,
            ..Observation::default()
        }
    }

    fn reconcile(&self, world: &World, good: bool) -> Vec<Effect> {
        let inputs = (world.status.clone(), world.route.clone(), world.candidate, world.records.len(), good);
        if let Some(known) = self.planned.lock().unwrap().get(&inputs) {
            return known.clone();
        }
        let state = State::decode(&world.status).unwrap_or_default();
        let now = after(&state);
        let observation = self.observation(world, &state, now, good);
        let made = plan(&self.rollout, &state, &observation, now);
        let violations = check(&self.rollout, &observation, &made);
        assert!(violations.is_empty(), "{violations:?}\n{made:#?}\n{observation:#?}");
        let effects = self.effects(world, made);
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
            effects.push(Effect::Status { before: world.status.clone(), after: after.into() });
        }
        effects
    }

    fn arrive(&self, world: &mut World, effect: Effect, by: Option<usize>) {
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
            Effect::Status { before, after } => {
                if !self.guard.preconditions || world.status == before {
                    world.status = after;
                }
            }
            Effect::Route { version, weights, ledger, verdict } => {
                if self.guard.preconditions && version != world.route.version {
                    world.refused = true;
                    return;
                }
                self.stored(world, &weights, &ledger, verdict);
                world.route = Stored { version: world.route.version + 1, weights, ledger: Some(ledger) };
                if let Some(by) = by {
                    world.writers[by] = true;
                }
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

/// What the workers say one interval later.
fn sample(state: &State, now: Time, weight: u32, good: bool) -> Sample {
    let arm = |requests| LiveArm { requests, ..LiveArm::default() };
    let cosine = if good { 0.99 } else { 0.05 };
    let prompt = PromptSample { cosine, cosine_at: cosine, mse: 0.0, kl: 0.0, top1: 1.0 };
    let generation = GenerationSample { ok: true, ttft: 0.1, tpot: 0.01, alone: true };
    let probes = Probes {
        probe_set: "set".into(),
        probe_set_size: 100,
        drawn: 8,
        prompts: vec![prompt; 8],
        pairs: vec![(generation, generation); 2],
        ..Probes::default()
    };
    let out = state.attempt.as_ref().is_some_and(|a| a.job.is_some());
    let requests = |weight: u32| arm(u64::from(weight) * 10);
    Sample {
        at: now,
        live: Some(Live {
            candidate: requests(weight),
            stable: requests(100 - weight),
            seconds: INTERVAL.as_seconds(),
            users: bitnet_core::observation::Users::default(),
        }),
        // Long enough ago that live latency is not asked for.
        stable_total: Some((arm(1500), 1e6)),
        probes: if out { ProbeOutcome::Done(probes) } else { ProbeOutcome::None },
        comparable: Comparable::Yes,
    }
}

/// One interval after the latest time that the state knows.
fn after(state: &State) -> Time {
    let attempt = state.attempt.as_ref();
    let times = [state.waiting_since, state.confirmed_at, attempt.map(|a| a.last_tick)];
    times.into_iter().flatten().max().unwrap_or(BEGAN) + INTERVAL
}

impl Model for Leaders {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            route: Stored { version: 1, weights: vec![("old-service".into(), 1)], ledger: None },
            status: "".into(),
            candidate: None,
            records: Vec::new(),
            holder: Some(0),
            operators: [Process { leads: true, rest: Vec::new() }, Process::default()],
            parked: Vec::new(),
            expiries: 0,
            crashes: 0,
            parks: 0,
            verdict: None,
            writers: [false; 2],
            refused: false,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        if world.holder.is_some_and(|h| world.operators[h].leads) && world.expiries < self.most.expiries {
            actions.push(Action::Expire);
        }
        for (i, operator) in world.operators.iter().enumerate() {
            if world.holder.is_none() && !operator.leads {
                actions.push(Action::Acquire(i));
            }
            if !operator.leads {
                continue;
            }
            if world.holder != Some(i) {
                actions.push(Action::Notice(i));
            }
            if operator.rest.is_empty() {
                let state = State::decode(&world.status).unwrap_or_default();
                actions.push(Action::Reconcile(i, true));
                if state.attempt.is_some_and(|a| a.job.is_some()) {
                    actions.push(Action::Reconcile(i, false));
                }
                continue;
            }
            actions.push(Action::Send(i));
            if world.parks < self.most.parks && matches!(operator.rest[0], Effect::Route { .. } | Effect::Status { .. })
            {
                actions.push(Action::SendAndLose(i));
                actions.push(Action::Park(i));
            }
            if world.crashes < self.most.crashes {
                actions.push(Action::Crash(i));
            }
        }
        actions.extend((0..world.parked.len()).map(Action::Arrive));
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Acquire(i) => {
                world.holder = Some(i);
                world.operators[i] = Process { leads: true, rest: Vec::new() };
            }
            Action::Expire => {
                world.holder = None;
                world.expiries += 1;
            }
            Action::Notice(i) => world.operators[i] = Process::default(),
            Action::Reconcile(i, good) => {
                world.operators[i].rest = self.reconcile(last, good);
                if world.operators[i].rest.is_empty() {
                    return None;
                }
            }
            Action::Send(i) | Action::SendAndLose(i) => {
                let effect = world.operators[i].rest.remove(0);
                let conflict = self.guard.preconditions && conflicts(&world, &effect);
                self.arrive(&mut world, effect, Some(i));
                if conflict || matches!(action, Action::SendAndLose(_)) {
                    world.operators[i].rest.clear();
                }
                if matches!(action, Action::SendAndLose(_)) {
                    world.parks += 1;
                }
            }
            Action::Park(i) => {
                let effect = world.operators[i].rest.remove(0);
                world.operators[i].rest.clear();
                world.parked.push(effect);
                world.parks += 1;
            }
            Action::Arrive(n) => {
                let effect = world.parked.remove(n);
                self.arrive(&mut world, effect, None);
            }
            Action::Crash(i) => {
                world.operators[i] = Process::default();
                world.crashes += 1;
                if world.holder == Some(i) {
                    world.holder = None;
                }
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken", |_, world: &World| world.broken.is_none()),
            Property::sometimes("promoted", |_, world: &World| settled(world, Outcome::Promoted)),
            Property::sometimes("rolled back", |_, world: &World| settled(world, Outcome::RolledBack)),
            Property::sometimes("rolled back with traffic on it", |_, world: &World| {
                world.verdict == Some(Outcome::RolledBack) && world.route.ledger.as_ref().is_some_and(|l| l.epoch > 3)
            }),
            Property::sometimes("taken over in the middle", |_, world: &World| {
                world.writers == [true; 2] && settled(world, Outcome::Promoted)
            }),
            Property::sometimes("two operators believe to lead", |_, world: &World| {
                world.operators.iter().all(|o| o.leads && !o.rest.is_empty())
            }),
            Property::sometimes("a late write is refused", |_, world: &World| world.refused),
        ]
    }
}

/// The API server refuses it, and the operator sees that.
fn conflicts(world: &World, effect: &Effect) -> bool {
    match effect {
        Effect::Route { version, .. } => *version != world.route.version,
        Effect::Status { before, .. } => *before != world.status,
        Effect::Grow(_) | Effect::Record(_) | Effect::Shrink => false,
    }
}

/// The verdict was made, written down in an object, and remembered.
fn settled(world: &World, verdict: Outcome) -> bool {
    world.verdict == Some(verdict) && !world.records.is_empty() && world.operators.iter().all(|o| o.rest.is_empty())
}

const SOMETIMES: [&str; 6] = [
    "promoted",
    "rolled back",
    "rolled back with traffic on it",
    "taken over in the middle",
    "two operators believe to lead",
    "a late write is refused",
];

/// Every history within the bounds, and none breaks a rule.
#[test]
#[ignore = "long, and gigabytes of states: cargo test --release -p bitnet-core --test two_operators -- --ignored"]
fn no_interleaving_of_two_operators_breaks_a_rule() {
    let most = Bounds { expiries: 2, crashes: 2, parks: 2 };
    let checked = Leaders::new("10:0,20:0,30:0,50:0", most, AS_BUILT).checker().threads(1).spawn_bfs().join();
    println!(
        "{} states, {} transitions, {} steps deep, {} plans",
        checked.unique_state_count(),
        checked.state_count(),
        checked.max_depth(),
        checked.model().planned.lock().unwrap().len()
    );
    assert!(checked.is_done(), "the search went to its end");
    checked.assert_no_discovery("no rule is broken");
    for name in SOMETIMES {
        checked.assert_any_discovery(name);
    }
    assert!(checked.unique_state_count() > 300_000, "{} states", checked.unique_state_count());
}

/// The search sees mistakes: without preconditions a late write comes through, and a verdict that is not in the write of the
/// weights is forgotten by whoever comes next.
#[test]
#[ignore = "long, and gigabytes of states: cargo test --release -p bitnet-core --test two_operators -- --ignored"]
fn the_search_finds_what_each_guard_is_for() {
    let most = Bounds { expiries: 1, crashes: 1, parks: 1 };
    let controls = [
        ("preconditions", Guard { preconditions: false, ..AS_BUILT }),
        ("verdict and weights in one write", Guard { one_write: false, ..AS_BUILT }),
    ];
    for (name, guard) in controls {
        let checked = Leaders::new("10:0,50:0", most, guard).checker().threads(1).spawn_bfs().join();
        let path = checked.discovery("no rule is broken");
        let path =
            path.unwrap_or_else(|| panic!("without {name} nothing was found in {} states", checked.state_count()));
        let last = path.last_state().clone();
        println!("without {name}: {:?} after {} steps", last.broken, path.into_actions().len());
        assert!(last.broken.is_some());
    }
    let whole = Leaders::new("10:0,50:0", most, AS_BUILT).checker().threads(1).spawn_bfs().join();
    whole.assert_no_discovery("no rule is broken");
}
