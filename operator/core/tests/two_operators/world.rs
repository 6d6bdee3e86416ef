//! What is stored, what is on its way, and what the workers say.

use crate::spec::{self, rollout, serving};
use bitnet_core::{
    Span, Time,
    evidence::{Gate, GenerationSample, LiveArm, Probes, PromptSample},
    model::{Rollout, Strategy},
    observation::{Comparable, Live, ProbeOutcome, Sample},
    plan::{State, Verdict},
};
use std::sync::Arc;

pub(crate) const BEGAN: Time = Time(1_000_000_000_000);
pub(crate) const INTERVAL: Span = Span::seconds(10);

/// A rollout whose evidence needs few ticks: one for quality, two blocks for latency and errors.
pub(crate) fn tiny(steps: &str) -> Rollout {
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
pub(crate) struct Stored {
    pub(crate) version: u32,
    pub(crate) weights: Vec<(String, u32)>,
    pub(crate) ledger: Option<Written>,
}

/// A ledger in a form that can be hashed. `decision` is the verdict on the attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Written {
    pub(crate) stable: String,
    pub(crate) candidate: Option<String>,
    pub(crate) attempt: u32,
    pub(crate) step: u32,
    pub(crate) epoch: u64,
    pub(crate) latched: Option<u32>,
    pub(crate) decision: Option<(String, Outcome, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Outcome {
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Effect {
    Grow(u32),
    Route { version: u32, weights: Vec<(String, u32)>, ledger: Written, verdict: Option<Outcome> },
    Record(String),
    Shrink,
    Status { version: u32, after: Arc<str> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) route: Stored,
    pub(crate) status: Arc<str>,
    /// Version of the object that holds the status.
    pub(crate) status_version: u32,
    /// Replicas of the candidate's Deployment.
    pub(crate) candidate: Option<u32>,
    pub(crate) records: Vec<String>,
    /// The model answers badly from here on.
    pub(crate) bad: bool,
    /// What is left of the plan that each operator carries out, the lesser first.
    pub(crate) rests: [Arc<[Effect]>; 2],
    /// Sent and not arrived, in order.
    pub(crate) parked: Vec<Effect>,
    /// Verdict on the attempt, as its write arrived.
    pub(crate) verdict: Option<Outcome>,
    /// The rule that was broken.
    pub(crate) broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// The model turns bad.
    Turn,
    /// Read everything and plan.
    Reconcile(usize),
    /// The next request arrives, and its answer.
    Send(usize),
    /// The next request is on its way; the caller gives up on it.
    Park(usize),
    /// A parked request arrives.
    Arrive(usize),
    /// The process dies where it is, or ends its reconcile.
    Crash(usize),
}

/// What the workers say one interval later.
pub(crate) fn sample(state: &State, now: Time, weight: u32, good: bool) -> Sample {
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
pub(crate) fn after(state: &State) -> Time {
    let attempt = state.attempt.as_ref();
    let times = [state.waiting_since, state.confirmed_at, attempt.map(|a| a.last_tick)];
    times.into_iter().flatten().max().unwrap_or(BEGAN) + INTERVAL
}
