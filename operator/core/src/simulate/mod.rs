//! What a rollout will do before it does it: the judge of [`crate::evidence`] driven through seeded worlds without a
//! cluster, and lints for gates that cannot decide.
//!
//! The judge is the real one, the course of the weight a small copy of the planner's rules (dwell times, pace by evidence,
//! quality first, tripped wires, the switch), and everything else is assumed: prompts are drawn independently, latencies are a
//! log-normal body with a slow mode of 3 %, latency rises linearly with the load of an arm's pods. A forecast is as good as
//! the numbers that it is given.

mod forecast;
mod guard;
mod latency;
pub mod lint;
mod place;
mod random;
mod users;
mod world;

pub use forecast::{Forecast, Spread, forecast, interval};
pub use guard::watch;
pub use latency::Latencies;
pub use random::Random;
pub use users::{Outcome, Users, test_users};
pub use world::{World, ticks};

use crate::{
    Span,
    evidence::{Evidence, Gate, OnInconclusive, SignalKind, codec::Writer},
    model,
};
use place::Place;
use world::Running;

/// One step of a canary as the simulation knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Share of the traffic for the candidate, 1..=99.
    pub weight: u32,
    /// Least time at this weight; a pause that a person ends takes no time here.
    pub duration: Span,
}

impl From<&model::CanaryStep> for Step {
    fn from(step: &model::CanaryStep) -> Self {
        Self { weight: step.weight, duration: step.duration }
    }
}

/// How the candidate's weight rises.
#[derive(Clone, Debug, PartialEq)]
pub enum Course {
    /// A canary: weights one after the other. A pause that waits for a person takes no time here.
    Steps(Vec<Step>, model::Pace),
    /// Blue-green: everything is proven at weight 0, then all traffic moves at once (without waiting for a person).
    Switch {
        /// Time under watch after the switch, before the promotion.
        beside: Span,
    },
    /// The gate's part of an A/B test: quality at weight 0, then the split; it ends promoted where a promotion would be allowed.
    /// After two deadlines at the split nothing new comes, so longer tests are cut off there. What users say is a matter of
    /// [`test_users`].
    Test(model::AbTest),
}

impl Course {
    /// A canary paced by time.
    pub fn by_time(steps: &[Step]) -> Self {
        Self::Steps(steps.to_vec(), model::Pace::Time)
    }

    /// The course of a validated rollout.
    pub fn of(rollout: &model::Rollout) -> Self {
        match &rollout.strategy {
            model::Strategy::Canary(canary) => Self::Steps(canary.steps.iter().map(Step::from).collect(), canary.pace),
            model::Strategy::BlueGreen(_) => Self::Switch { beside: rollout.scale_down_delay },
            model::Strategy::AbTest(test) => Self::Test(test.clone()),
        }
    }

    /// Time to which the gate's deadline does not apply: beside the old revision after a switch, and at the split of a test.
    fn beyond_deadline(&self, gate: &Gate) -> Span {
        match self {
            Self::Steps(..) => Span(0),
            Self::Switch { beside } => *beside,
            Self::Test(test) => at_split(test, gate),
        }
    }
}

/// Time at the split of an A/B test that is simulated.
fn at_split(test: &model::AbTest, gate: &Gate) -> Span {
    test.duration().min(Span(gate.deadline.0.saturating_mul(2)))
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All traffic to the candidate.
    Promoted,
    /// Proven worse in this signal.
    RolledBack(SignalKind),
    /// The third tripped wire; of a switch the first one, after which it waits for a person.
    Tripped,
    /// The deadline: what promotion still waited for.
    Inconclusive(Vec<String>),
}

/// A finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How it ended.
    pub end: End,
    /// Ticks from the first comparison to the end.
    pub ticks: u32,
    /// Live requests that the candidate served.
    pub exposed: u64,
    /// Greatest weight that it had.
    pub weight: u32,
    /// Longest encoded state in bytes, of every eighth tick and the last.
    pub state: usize,
}

/// Runs one attempt to its end; without steps nothing happens, and the attempt is inconclusive.
pub fn run(gate: &Gate, course: &Course, world: &World, seed: u64) -> Run {
    let mut now = gate.clone();
    let mut running = Running::new(world, seed);
    let mut place = Place::new(course);
    let mut evidence = Evidence::new(&now);
    let (mut state, mut heaviest, mut exposed) = (0, 0, 0);
    // Each edit starts the deadline anew, and so does a gate that extends: neither may make a run without end.
    let deadlines = if world.edits > 0 || gate.on_inconclusive == OnInconclusive::Extend { 3 } else { 1 };
    let beyond = course.beyond_deadline(gate);
    // Each tripped wire begins it again.
    let rounds = if matches!(course, Course::Test(_)) { i64::from(place::TRIPS) } else { 1 };
    let watched = rounds * (beyond.0 / gate.interval.0.max(1) + 1 + i64::from(world.confirm));
    let watched = if beyond == Span(0) { 0 } else { u32::try_from(watched).unwrap_or(u32::MAX) };
    let limit = gate.horizon().saturating_mul(deadlines).saturating_add(watched).max(1);
    for number in 1..=limit {
        if world.edits > 0 && number > 1 && (number - 1) % world.edits == 0 {
            // Another margin for what is shown only changes the parameters' hash, and the budget halves.
            now.min_samples += 1;
            now.alpha_rollback /= 2.0;
            now.alpha_promote /= 2.0;
        }
        let tick = running.tick(&now, world, &place, number);
        heaviest = heaviest.max(place.weight());
        let assessment = evidence.step(&now, &tick);
        let assessment = place.asked(&now, &evidence, assessment);
        exposed = assessment.exposed_requests;
        place.pass();
        let end = place.decide(&now, &assessment, world.confirm);
        // States grow slowly: a look at some of them finds the longest but for a few bytes.
        if end.is_some() || number % 8 == 0 {
            let mut writer = Writer::new();
            evidence.encode_into(&mut writer);
            state = state.max(writer.len());
        }
        if let Some(end) = end {
            return Run { end, ticks: number, exposed, weight: heaviest, state };
        }
    }
    let missing = evidence.summary(&now).missing;
    Run { end: End::Inconclusive(missing), ticks: limit, exposed, weight: heaviest, state }
}
