use serde::{Deserialize, Serialize};

/// Prompts in a published sum at least: numbers about fewer could say something about one of them.
pub const SHADOW_BLOCK: u64 = 20;

/// Allows a candidate pod to compare a share of its live prompts with the baseline, for a while. It has to be renewed: a
/// worker that hears nothing stops by itself, so a consent that was taken back ends within `seconds`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShadowRequest {
    /// UID of the rollout.
    pub uid: String,
    /// Attempt of the rollout: another one begins new sums.
    pub attempt: u32,
    /// Service name of the fp16 baseline revision.
    pub baseline: String,
    /// Share of live prompts in percent, 0..=10, chosen by the hash of the request's id; 0 ends it at once.
    pub percent: u32,
    /// Tokens of the baseline's greedy continuation, 1..=512.
    pub max_tokens: u32,
    /// Positions to draw per prompt, 1..=64.
    pub positions: u32,
    /// Prompts whose cosine at one random position is below this are counted, between 0 and 1.
    pub tail_min: f64,
    /// How long this holds, 1..=3600.
    pub seconds: u32,
}

/// What the shadowed prompts of one process gave since its attempt began: sums over whole blocks of [`SHADOW_BLOCK`]
/// prompts, so that the difference of two answers is about that many as well. Cosines are of mean-centred logits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShadowResult {
    /// Prompts in the sums, a multiple of [`SHADOW_BLOCK`].
    pub samples: u64,
    /// Sum of the cosines averaged over a prompt's positions.
    pub cosine: f64,
    /// Prompts whose cosine at one random position was below `tailMin`.
    pub below: u64,
    /// Sum of KL(baseline ‖ candidate) in nats.
    pub kl: f64,
    /// Sum of the shares of positions with the same most likely token.
    pub top1: f64,
    /// Chosen prompts that were not compared since the process started, a closed set of short reasons with counts.
    pub dropped: Vec<(String, u64)>,
}
