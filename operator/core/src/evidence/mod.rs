//! The judge: sequential evidence of one attempt, fed once per tick.
//!
//! [`Gate`] is the resolved gate, [`Tick`] what one tick saw, [`Evidence`] the state (< 4 KB encoded), [`Assessment`]
//! what follows. The rules are those of the statistics page in `docs/`; the engines are in [`crate::stats`]. Beside the
//! judge of a rollout there are the [`guard`] of a promoted model and the judge of an A/B test ([`ab`]).

pub mod ab;
mod assess;
mod claim;
pub mod codec;
pub mod combine;
mod default;
mod errors;
pub mod guard;
mod history;
mod judge;
mod live;
mod load;
mod paired;
mod parameters;
mod quality;
mod rules;
mod traffic;

pub use judge::Evidence;

use crate::{Span, Time};
use std::collections::BTreeMap;

/// A resolved QualityGate: every default applied, every decimal parsed and checked.
///
/// [`Gate::default`] is the one that names nothing but its probe set.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// Name of the QualityGate, or the rollout's own name for an inline gate.
    pub name: String,
    /// The probes.
    pub probes: ProbeSettings,
    /// Prompts that must have been compared at weight 0 before the first live request.
    pub preflight: u32,
    /// Length of a tick.
    pub interval: Span,
    /// Live latency of a pod younger than this is left out.
    pub warmup: Span,
    /// Mean centred cosine must be at least this.
    pub min_mean: f64,
    /// At most `tail_share` of the prompts may lie under `tail_min`.
    pub tail_min: f64,
    /// `0.05` for a 5th percentile.
    pub tail_share: f64,
    /// Latency may be at most this multiple of stable's, > 1.
    pub max_ratio: f64,
    /// Percentiles that promotion asks of live latency (`p50` = body, `p95`, `p99`); rollback always watches all.
    pub percentiles: Percentiles,
    /// Errors may exceed stable's by at most this share.
    pub max_excess: f64,
    /// 1 - confidence of a rollback (`.01`).
    pub alpha_rollback: f64,
    /// 1 - confidence of a promotion (`.05`).
    pub alpha_promote: f64,
    /// Prompts that a promotion needs.
    pub min_samples: u32,
    /// Time of ticks that could gather evidence, before the attempt is inconclusive.
    pub deadline: Span,
    /// What an inconclusive attempt does.
    pub on_inconclusive: OnInconclusive,
    /// What an attempt without live requests does.
    pub on_no_traffic: OnNoTraffic,
    /// The tripwire.
    pub tripwire: Tripwire,
    /// Share of the candidate's live prompts that is compared for display, in percent, 0 to 10. No evidence: they are not
    /// drawn at random.
    pub shadow: u32,
}

impl Gate {
    /// The deadline in ticks: the horizon of the restart mixture.
    pub fn horizon(&self) -> u32 {
        (self.deadline.0 / self.interval.0.max(1)).clamp(1, i64::from(u32::MAX)) as u32
    }
}

/// What is asked of the workers at each tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSettings {
    /// ConfigMap and key of the probe set (mounted into the workers; never read by the operator).
    pub config_map: String,
    /// Key in it.
    pub key: String,
    /// Most prompts per tick.
    pub per_tick: u32,
    /// Tokens of the baseline's continuation.
    pub max_tokens: u32,
    /// Positions per prompt.
    pub positions: u32,
    /// Latency pairs per tick.
    pub pairs: u32,
    /// Forced tokens of each generation of a pair.
    pub pair_tokens: u32,
}

/// Which live latency percentiles a promotion needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentiles {
    /// p50: the body of the distribution.
    pub body: bool,
    /// p95.
    pub p95: bool,
    /// p99 (expensive: tens of thousands of requests per arm).
    pub p99: bool,
}

/// Policy at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInconclusive {
    /// Candidate at weight 0, objects kept, not latched.
    Hold,
    /// As after a rollback verdict.
    Rollback,
    /// Go on for another deadline (the guarantees are those of the first).
    Extend,
    /// Promote at the last step where every signal's interval lies within its margin and the rollback evidence leans to
    /// the candidate, else as `Hold`. Such a promotion has no error rate.
    PromoteIfCompatible,
}

/// Policy without live requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNoTraffic {
    /// The pairs' generations stand in for requests.
    Probe,
    /// Hold.
    Hold,
}

/// The tripwire: not a verdict, a reflex.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tripwire {
    /// Share of errors that trips.
    pub error_rate: f64,
    /// Candidate requests in the window that it needs.
    pub min_requests: u32,
}

/// Latency counts: sparse `bucket index → count`, indices and edges as `bitnet_api::worker::Buckets`
/// (edge i = 1.2^(i/2) s, -126..=53, 54 = above).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(pub BTreeMap<i16, u64>);

/// Counts of one arm over an interval (or since the start of its pods).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveArm {
    /// Requests that ended, well or in an error.
    pub requests: u64,
    /// Of these, errors (with the requests in flight at a crash).
    pub errors: u64,
    /// Time to first token.
    pub ttft: Histogram,
    /// Time per output token.
    pub tpot: Histogram,
}

/// One prompt's comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PromptSample {
    /// Mean-centred cosine averaged over the drawn positions.
    pub cosine: f64,
    /// The same at one random position.
    pub cosine_at: f64,
    /// Mean squared difference of the logits (shown).
    pub mse: f64,
    /// KL(baseline ‖ candidate) (shown).
    pub kl: f64,
    /// Top-1 agreement (shown).
    pub top1: f64,
}

/// One generation of a latency pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerationSample {
    /// It produced all tokens.
    pub ok: bool,
    /// Seconds to the first token.
    pub ttft: f64,
    /// Seconds per token after the first.
    pub tpot: f64,
    /// The engine did nothing else meanwhile.
    pub alone: bool,
}

/// What a finished probe job brought, already checked: finite numbers, the pinned probe set, bounded length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes {
    /// Hash of the probe set; empty: the worker has none (`ProbeSetMissing`).
    pub probe_set: String,
    /// Prompts in the probe set.
    pub probe_set_size: u32,
    /// Prompts drawn.
    pub drawn: u32,
    /// Prompts that were compared.
    pub prompts: Vec<PromptSample>,
    /// Pairs `(candidate, stable)`.
    pub pairs: Vec<(GenerationSample, GenerationSample)>,
    /// Share of the time that the candidate's engine worked.
    pub busy_candidate: f64,
    /// The same of stable's, where known.
    pub busy_stable: Option<f64>,
    /// Why prompts were void, with counts.
    pub peer_errors: Vec<(String, u32)>,
}

/// What one tick saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tick {
    /// Number of the tick in the attempt, from 1; the next tick of a state is always `state.tick + 1`.
    pub number: u32,
    /// When it ended.
    pub at: Time,
    /// The candidate's weight in force during the whole interval, `None` if it changed in it or is not confirmed yet:
    /// then live counts are left out.
    pub weight: Option<u32>,
    /// Some requests came to the candidate for what they are and not by lot, so the arms serve different requests: live
    /// counts serve the tripwire alone.
    pub chosen: bool,
    /// Counts the weight changes of the attempt: a new value drops open blocks and the tripwire's window.
    pub weight_change: u32,
    /// This is the last step below 100 (live latency PR counts only there).
    pub last_step: bool,
    /// Earliest time from now to the start of the last step (dwell times of the steps before it), for the forecast of
    /// live requests.
    pub until_last_step: Span,
    /// Weight of the candidate at the last step.
    pub last_weight: u32,
    /// Dwell time of the current step (of the first one before it): an arm without a live request for so long is
    /// without traffic.
    pub step_duration: Span,
    /// Ready pods of the candidate.
    pub ready_candidate: u32,
    /// Ready pods of stable.
    pub ready_stable: u32,
    /// Live counts of both arms over the interval; `None`: a scrape failed.
    pub live: Option<(LiveArm, LiveArm, f64)>,
    /// All candidate pods are older than the gate's warm-up (else live latency is left out).
    pub warm: bool,
    /// Cumulative counts of stable's live pods and the age of the oldest in seconds, for the history.
    pub stable_total: Option<(LiveArm, f64)>,
    /// A probe job that finished in this tick.
    pub probes: Option<Probes>,
    /// Seed for the thinning draws: hash(uid, attempt, tick).
    pub seed: u64,
}

/// Which quantity a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignalKind {
    /// Mean centred cosine.
    Cosine,
    /// Share of prompts under the tail threshold.
    CosineTail,
    /// Latency: paired and live.
    Latency,
    /// Errors.
    Errors,
}

impl SignalKind {
    /// All of them, in the order of display.
    pub const ALL: [Self; 4] = [Self::Cosine, Self::CosineTail, Self::Latency, Self::Errors];

    /// Name in status, metrics and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::CosineTail => "cosine-tail",
            Self::Latency => "latency",
            Self::Errors => "errors",
        }
    }
}

/// Where a signal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalState {
    /// No data yet.
    NoData,
    /// Undecided.
    Continue,
    /// Its promotion bound was crossed (sticky).
    Proven,
    /// Proven worse than its margin.
    Failed,
}

/// A signal as people see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// Which one.
    pub kind: SignalKind,
    /// Where it stands.
    pub state: SignalState,
    /// Samples so far (prompts, pairs, requests).
    pub samples: u64,
    /// Samples that a decision is expected to need in all, where that can be said.
    pub required: Option<u64>,
    /// Point estimate in the signal's unit (cosine, share, ratio, excess share).
    pub estimate: Option<f64>,
    /// Confidence sequence (display only), level 95 %.
    pub interval: Option<(f64, f64)>,
    /// ln E of the rollback test.
    pub ln_rollback: f64,
    /// ln E of the promotion test (the smallest of its parts).
    pub ln_promote: f64,
    /// What is weakest or worst, in a few words (`paired ttft`, `live tpot p99`).
    pub detail: String,
}

/// What the evidence says, in the order in which it counts.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Proven worse: the signal with the largest weight of evidence.
    RollBack {
        /// The reason.
        signal: SignalKind,
        /// ln of the combined e-value.
        ln_e: f64,
    },
    /// The reflex: too many errors in the window, or preflight generations that fail.
    Tripwire {
        /// In words, with numbers.
        reason: String,
    },
    /// Every promotion bound was crossed and `min_samples` reached.
    Promote,
    /// The deadline passed.
    Inconclusive,
    /// Go on.
    Continue,
}

/// Assessment of one tick.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "five independent facts, each read on its own")]
pub struct Assessment {
    /// What follows from the evidence.
    pub finding: Finding,
    /// Signals in the order of [`SignalKind::ALL`].
    pub signals: Vec<Signal>,
    /// Prompts compared in the attempt.
    pub prompts: u32,
    /// The preflight is complete: the first weight may come.
    pub preflight_done: bool,
    /// Cosine mean and tail have crossed: weights above the initial one may come.
    pub quality_proven: bool,
    /// Live requests seen in both arms at the current weight (fresh data for an intermediate step).
    pub fresh: bool,
    /// An arm has had no live request for a whole step: the gate's `on_no_traffic` applies.
    pub no_traffic: bool,
    /// The history is not complete yet: live tests have not started.
    pub history_pending: bool,
    /// What promotion still waits for, one line each, most important first.
    pub missing: Vec<String>,
    /// ln of the combined rollback e-value.
    pub ln_rollback: f64,
    /// Most the live candidates' errors and latencies can have cost so far: live candidate requests of the attempt.
    pub exposed_requests: u64,
}
