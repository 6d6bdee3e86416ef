//! What a rollout will do before it does it: the judge of [`crate::evidence`] driven through seeded worlds without a
//! cluster, and lints for gates that cannot decide.
//!
//! The judge is the real one, the canary a small copy of the planner's rules for steps (dwell times, quality first,
//! tripped wires), and everything else is assumed: prompts are drawn independently, latencies are a log-normal body with a
//! slow mode of 3 %, latency rises linearly with an arm's share of the traffic. A forecast is as good as the numbers that
//! it is given.

mod canary;
mod forecast;
mod latency;
pub mod lint;
mod random;
mod world;

pub use forecast::{Forecast, forecast};
pub use random::Random;
pub use world::{World, ticks};

use crate::{
    Span,
    evidence::{Evidence, Gate, OnInconclusive, SignalKind, codec::Writer},
    model,
};
use canary::Canary;
use latency::Latencies;
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

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All traffic to the candidate.
    Promoted,
    /// Proven worse in this signal.
    RolledBack(SignalKind),
    /// The third tripped wire.
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
    /// Longest encoded state in bytes.
    pub state: usize,
}

/// Runs one attempt to its end; without steps nothing happens, and the attempt is inconclusive.
pub fn run(gate: &Gate, steps: &[Step], world: &World, seed: u64) -> Run {
    let mut now = gate.clone();
    let mut running = Running::new(world, seed);
    let mut canary = Canary::new(steps);
    let mut evidence = Evidence::new(&now);
    let (mut state, mut heaviest, mut exposed) = (0, 0, 0);
    // Each edit starts the deadline anew: edits without end would be a run without end.
    let limit = gate.horizon().saturating_mul(if world.edits > 0 { 3 } else { 1 });
    for number in 1..=limit.max(1) {
        if world.edits > 0 && number > 1 && (number - 1) % world.edits == 0 {
            // Another margin for what is shown only changes the parameters' hash, and the budget halves.
            now.min_samples += 1;
            now.alpha_rollback /= 2.0;
            now.alpha_promote /= 2.0;
        }
        let tick = running.tick(&now, world, &canary, number);
        heaviest = heaviest.max(canary.weight());
        let assessment = evidence.step(&now, &tick);
        exposed = assessment.exposed_requests;
        let mut writer = Writer::new();
        evidence.encode_into(&mut writer);
        state = state.max(writer.len());
        canary.pass();
        if let Some(end) = canary.decide(&now, &assessment, world.confirm) {
            if matches!(end, End::Inconclusive(_)) && gate.on_inconclusive == OnInconclusive::Extend && number < limit {
                continue;
            }
            return Run { end, ticks: number, exposed, weight: heaviest, state };
        }
    }
    let missing = evidence.summary(&now).missing;
    Run { end: End::Inconclusive(missing), ticks: limit, exposed, weight: heaviest, state }
}
