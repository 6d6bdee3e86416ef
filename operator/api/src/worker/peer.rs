use serde::{Deserialize, Serialize};

/// Teacher-forced scoring: run `tokens` through the model and answer the logits at `positions`
/// (row `p` = logits after reading `tokens[..=p]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScoreRequest {
    /// Token ids, at most the context.
    pub tokens: Vec<u32>,
    /// Positions into `tokens`, each `< tokens.len()`, at most 64.
    pub positions: Vec<u32>,
    /// Only while the engine has nothing else to do: refused or given up at once where it has.
    #[serde(default, skip_serializing_if = "is_false")]
    pub background: bool,
}

/// A greedy continuation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GenerateRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate, 1..=512.
    pub tokens: u32,
    /// Ignore end-of-text, so that exactly `tokens` are generated (latency pairs).
    #[serde(default)]
    pub forced: bool,
    /// The answer may come from the continuation cache (never for latency pairs).
    #[serde(default)]
    pub cached: bool,
    /// Only while the engine has nothing else to do: refused or given up at once where it has.
    #[serde(default, skip_serializing_if = "is_false")]
    pub background: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Tokens and engine-clock times of a continuation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerateResult {
    /// Generated token ids.
    pub tokens: Vec<u32>,
    /// Seconds to the first token.
    pub ttft: f64,
    /// Mean seconds per token after the first (0 for one token).
    pub tpot: f64,
    /// The engine processed no other request from its start to its end.
    pub alone: bool,
    /// Cumulative seconds in which this engine worked.
    pub busy_seconds: f64,
    /// Random id of the answering process.
    pub process: String,
    /// Non-finite logits met.
    pub non_finite: u64,
}
