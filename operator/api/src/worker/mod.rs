//! Wire types of the worker's internal port (`/internal/v1/…`): JSON, numbers only, bounded.
//!
//! Shared by the worker (which serves them) and by the operator (which reads them), so that neither can drift.
//! Nothing here carries text of a prompt or of an answer.

mod buckets;
mod compare;
mod counters;
mod identity;
mod peer;
mod shadow;

pub use buckets::{Buckets, FIRST_BUCKET, LAST_BUCKET, OVERFLOW_BUCKET, bucket_of, upper_edge};
pub use compare::{Busy, CompareRequest, CompareResult, Generation, Pair, ProbeSet, PromptComparison};
pub use counters::{Counters, ErrorCounts, Feedback, USER_GROUPS, Users};
pub use identity::Identity;
pub use peer::{GenerateRequest, GenerateResult, ScoreRequest};
pub use shadow::{SHADOW_BLOCK, ShadowRequest, ShadowResult};

/// `GET`: who is this worker and what does it serve ([`Identity`]).
pub const IDENTITY_PATH: &str = "/internal/v1/identity";
/// `GET`: exact cumulative counters of this process ([`Counters`]).
pub const COUNTERS_PATH: &str = "/internal/v1/counters";
/// `POST`: start a comparison ([`CompareRequest`] → 202). `GET {path}/{key}`: 200 [`CompareResult`], 202 while it runs, 404 unknown.
pub const COMPARE_PATH: &str = "/internal/v1/compare";
/// `POST` ([`ScoreRequest`]): little-endian f16 logits `[positions, vocabulary]`, `application/octet-stream`.
pub const SCORE_PATH: &str = "/internal/v1/score";
/// `POST` ([`GenerateRequest`] → [`GenerateResult`]): a greedy continuation with engine-clock times.
pub const GENERATE_PATH: &str = "/internal/v1/generate";

/// `POST` ([`ShadowRequest`] → [`ShadowResult`]): compare a share of the live prompts for a while; what was found so far.
pub const SHADOW_PATH: &str = "/internal/v1/shadow";

/// `POST` on the public port: what a user thinks of an answer, `{"id": "<id of the answer>", "value": 0 to 1}`.
pub const FEEDBACK_PATH: &str = "/v1/feedback";

/// Added by the gateway to the requests of an A/B test: `1;<rollout uid>;<stable>;<candidate>;<weight>;<attempt>;cookie|header;<its
/// name>;<seconds>`. The uid is known to the cluster only: without it the header means nothing.
pub const SPLIT_HEADER: &str = "x-bitnet-split";

/// Port of the OpenAI API, `/livez`, `/readyz` and `/metrics`.
pub const PUBLIC_PORT: u16 = 8080;
/// Port of the internal API (operator and peers).
pub const INTERNAL_PORT: u16 = 9090;

/// Public answers carry the serving revision in this header; clients and tests tell the arms apart by it.
pub const REVISION_HEADER: &str = "x-bitnet-revision";
