use serde::{Deserialize, Serialize};

/// What a worker serves. The operator compares `tokenizer`, `chat_template`, `vocabulary` and `eos` of both arms and
/// wants the candidate's `context` to be at least the baseline's; `precision` must be what the spec says of the arm, and is
/// never compared with the other arm's, nor are `kernel` and `device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The revision this pod was started for (`--revision`), empty outside a rollout.
    pub revision: String,
    /// SHA-256 (hex) of `tokenizer.json`.
    pub tokenizer: String,
    /// SHA-256 (hex) of the chat template, of the empty string where the model has none.
    pub chat_template: String,
    /// Rows of the output head.
    pub vocabulary: u32,
    /// Longest sequence (prompt and answer) in tokens.
    pub context: u32,
    /// Token ids that end an answer, rising.
    pub eos: Vec<u32>,
    /// Model digest: SHA-256 (hex) over the sorted lines `path NUL size NUL sha256(file) LF` of the model directory.
    pub model_digest: String,
    /// `ternary`, `binary`, `fp16`, `bf16` or `fp32`, as the linear layers are; `mixed` where they differ.
    pub precision: String,
    /// Name of the kernel set in use.
    pub kernel: String,
    /// `cpu`, or the accelerator's name.
    pub device: String,
    /// Version of the worker.
    pub worker_version: String,
    /// Random id of this process: changes with every start.
    pub process: String,
}
