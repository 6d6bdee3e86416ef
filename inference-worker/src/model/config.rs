//! config.json and generation_config.json: what the model is, or why it is refused.
//!
//! The meaning of the weights is decided from the configuration alone, never from their values:
//!
//! | `model_type` | `quantization_config` | linear layers |
//! |---|---|---|
//! | any | absent, null, or `quant_method: none` | plain: weights as stored, activations not quantised |
//! | any | `bitnet`, `linear_class: autobitlinear`, `quantization_mode: offline` | packed, output **times** `weight_scale` |
//! | any | `bitnet`, `linear_class: autobitlinear`, `quantization_mode: online` | stored in full, made ternary when loaded |
//! | any | `bitnet`, `linear_class: bitlinear` | packed, output **divided** by `weight_scale` |
//! | bitnet | `bitnet`, `offline_quantization: true`, no `linear_class` (first generation) | as autobitlinear, offline |
//! | llama | `bitnet`, no `linear_class` | as bitlinear |
//!
//! In a packed model `quantization_config.precisions` may give linear layers another form by their full names
//! (`model.layers.0.mlp.down_proj`); layers that share an input are all quantised or all plain:
//!
//! | | `X.weight` | `X.weight_scale` |
//! |---|---|---|
//! | `full` | floats, as a layer in `modules_to_not_convert` | none |
//! | `ternary` | U8 `[ceil(rows / 4), columns]`: plane `i` of the rows in the bits `2 i`, code = weight + 1 | one number, by class |
//! | `binary` | U8 `[ceil(rows / 8), columns]`: plane `i` of the rows in bit `i`, code 0 = -1, 1 = 1 | one number, by class |
//! | `int4` | U8 `[ceil(rows / 2), columns]`: plane `i` of the rows in the bits `4 i`, code = weight + 8 | a factor per row |
//! | `int8` | I8 `[rows, columns]` | a factor per row |
//!
//! `quantization_config.activation_bits: 4` (default 8) quantises what q, k, v and gate, up read to 4 bits; the output and
//! down projections read 8. `quantization_config.kv_bits: 16, 8, 4 or 3` is what the model's keys and values were made
//! for: its caches have no more bits, whatever a server asks for. These keys are of this project.
//!
//! `quant_method: none` is a marker of this project for a BitNet-class model in full precision (the fp16 teacher that
//! `distill` writes); transformers reads the same model when the key is left out.

mod raw;
mod rope;

use super::{LoadError, files};
use crate::kernels::{ActivationBits, KvBits};
use raw::{RawConfig, RawGeneration, Refusal};
pub use rope::RopeScaling;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Shape and arithmetic of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Number of token ids; rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads per layer.
    pub heads: usize,
    /// Key and value heads per layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width between the up and down projections.
    pub intermediate_size: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// How its frequencies are lowered.
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square in every RMS norm.
    pub rms_eps: f32,
    /// Most positions of one sequence.
    pub context: usize,
    /// Ids that end a generation, in rising order; generation_config.json wins over config.json.
    pub eos: Vec<u32>,
    /// Id that starts a sequence.
    pub bos: Option<u32>,
    /// Gate function of the feed-forward part.
    pub activation: Activation,
    /// Whether `attn_sub_norm` and `ffn_sub_norm` are there (the BitNet class).
    pub sub_norms: bool,
    /// Whether the embedding is the head, too.
    pub tied: bool,
    /// How the linear layers of the decoder are stored and computed.
    pub linear: LinearKind,
    /// Linear layers, by full name (`model.layers.0.mlp.down_proj`), that are stored otherwise than `linear` says. Of
    /// layers that share their input (q, k, v; gate, up) all or none are [`LayerPrecision::Full`].
    pub precisions: BTreeMap<String, LayerPrecision>,
    /// Bits of the activations that q, k, v and gate, up read, where these layers quantise them.
    pub input_bits: ActivationBits,
    /// Most bits of cached keys and values: those that the model was made for.
    pub kv_bits: KvBits,
}

/// How one linear layer is stored, served, and seen in training. Of all but `Full`, activations are quantised, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerPrecision {
    /// Floats; activations are not quantised.
    Full,
    /// From -128 to 127, with a factor per row; made here: from -127 to 127, the largest |w| of a row over 127.
    Int8,
    /// From -8 to 7, with a factor per row; made here: from -7 to 7, the largest |w| of a row over 7.
    Int4,
    /// -1, 0 and 1, times the mean of |w|.
    Ternary,
    /// -1 and 1, times the mean of |w|.
    Binary,
}

impl LayerPrecision {
    /// All of them, most bits first.
    pub const ALL: [Self; 5] = [Self::Full, Self::Int8, Self::Int4, Self::Ternary, Self::Binary];

    /// Name in config.json, on the command line and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Ternary => "ternary",
            Self::Binary => "binary",
        }
    }
}

/// Gate function of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)²`
    Relu2,
    /// `x · sigmoid(x)`
    Silu,
}

/// How the linear layers of the decoder are stored and computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearKind {
    /// Floating-point weights and activations.
    Dense,
    /// 2-bit weights with a stored scale, int8 activations.
    Packed(ScaleRule),
    /// Floating-point weights that become ternary when loaded (scale: mean of |w|), int8 activations.
    Online,
}

/// What `weight_scale` does to a product of ternary weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleRule {
    /// `autobitlinear` stores mean |w|: multiply.
    Multiply,
    /// `bitlinear` stores 1 / mean |w|: divide.
    Divide,
}

impl ModelConfig {
    /// Reads config.json and, where there is one, generation_config.json; or the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`LoadError::Read`], [`LoadError::Json`], and [`LoadError::Config`] with the offending field.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        if let Some(path) = super::gguf::find(dir)? {
            return super::gguf::config(&path);
        }
        let path = dir.join("config.json");
        let raw: RawConfig = read_json(&path, "model configuration (config.json)")?;
        let mut config = raw.check(&Refusal { path: &path })?;
        let path = dir.join("generation_config.json");
        if path.exists() {
            let generation: RawGeneration = read_json(&path, "generation configuration")?;
            if let Some(eos) = generation.eos_token_id {
                config.eos = Refusal { path: &path }.ids("eos_token_id", eos.list(), config.vocab_size)?;
            }
        }
        Ok(config)
    }
}

/// Reads one JSON file of a model directory.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path, what: &'static str) -> Result<T, LoadError> {
    let bytes = files::read(path, files::JSON_BYTES).map_err(|source| LoadError::Read {
        path: PathBuf::from(path),
        remedy: "a model directory holds config.json, *.safetensors and tokenizer.json as on the Hugging Face hub",
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { path: PathBuf::from(path), what, source })
}

/// Linear layers of a decoder layer by the input that they read: it is quantised once for all of a group.
pub(crate) const SHARED_INPUTS: [&[&str]; 4] = [
    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    &["self_attn.o_proj"],
    &["mlp.gate_proj", "mlp.up_proj"],
    &["mlp.down_proj"],
];

/// Whether this is the full name of a linear layer of the decoder.
fn is_linear(name: &str, layers: usize) -> bool {
    let parts = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(layer, module)| {
        layer.parse().is_ok_and(|layer: usize| layer < layers)
            && SHARED_INPUTS.iter().any(|group| group.contains(&module))
    })
}

#[cfg(test)]
mod tests;
