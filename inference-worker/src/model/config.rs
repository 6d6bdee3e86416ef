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

use super::LoadError;
use crate::kernels::{ActivationBits, KvBits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// No dimension of a real model is larger; a larger one is a damaged file.
const LARGEST: usize = crate::kernels::MOST_COLUMNS;

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
    let bytes = fs::read(path).map_err(|source| LoadError::Read {
        path: PathBuf::from(path),
        remedy: "a model directory holds config.json, *.safetensors and tokenizer.json as on the Hugging Face hub",
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { path: PathBuf::from(path), what, source })
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<Ids>,
    quantization_config: Option<RawQuantization>,
}

#[derive(Deserialize)]
struct RawGeneration {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn list(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

#[derive(Deserialize)]
struct RawQuantization {
    quant_method: Option<String>,
    linear_class: Option<String>,
    quantization_mode: Option<String>,
    offline_quantization: Option<bool>,
    use_rms_norm: Option<bool>,
    modules_to_not_convert: Option<Vec<String>>,
    precisions: Option<BTreeMap<String, LayerPrecision>>,
    activation_bits: Option<u32>,
    kv_bits: Option<u32>,
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    BitNet,
    Llama,
}

/// Builds refusals of one file.
struct Refusal<'a> {
    path: &'a Path,
}

impl Refusal<'_> {
    fn of(&self, field: &str, problem: impl Into<String>, remedy: impl Into<String>) -> LoadError {
        LoadError::Config {
            path: self.path.to_path_buf(),
            field: field.to_owned(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn size(&self, field: &str, value: Option<usize>) -> Result<usize, LoadError> {
        match value {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(n),
            Some(n) => {
                Err(self.of(field, format!("must be from 1 to {LARGEST} but is {n}"), "restore the original file"))
            }
            None => Err(self.of(field, "is missing", "restore the original file")),
        }
    }

    fn positive(&self, field: &str, value: f32) -> Result<f32, LoadError> {
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(self.of(field, format!("must be a finite number above 0 but is {value}"), "restore the original file"))
    }

    fn ids(&self, field: &str, mut ids: Vec<u32>, vocab_size: usize) -> Result<Vec<u32>, LoadError> {
        ids.sort_unstable();
        ids.dedup();
        match ids.iter().find(|id| **id as usize >= vocab_size) {
            None => Ok(ids),
            Some(id) => Err(self.of(
                field,
                format!("must be below vocab_size {vocab_size} but names id {id}"),
                "use the files of one model",
            )),
        }
    }
}

impl RawConfig {
    fn check(self, refuse: &Refusal<'_>) -> Result<ModelConfig, LoadError> {
        let family = self.family(refuse)?;
        let vocab_size = refuse.size("vocab_size", self.vocab_size)?;
        let hidden_size = refuse.size("hidden_size", self.hidden_size)?;
        let layers = refuse.size("num_hidden_layers", self.num_hidden_layers)?;
        let heads = refuse.size("num_attention_heads", self.num_attention_heads)?;
        let kv_heads = match (family, self.num_key_value_heads) {
            (Family::Llama, None) => heads,
            (_, given) => refuse.size("num_key_value_heads", given)?,
        };
        if heads % kv_heads != 0 {
            return Err(refuse.of(
                "num_key_value_heads",
                format!("must divide num_attention_heads {heads} but is {kv_heads}"),
                "restore the original file",
            ));
        }
        if self.head_dim.is_none() && hidden_size % heads != 0 {
            return Err(refuse.of(
                "hidden_size",
                format!("must be a multiple of num_attention_heads {heads} where head_dim is not given"),
                "restore the original file",
            ));
        }
        let head_dim = refuse.size("head_dim", Some(self.head_dim.unwrap_or(hidden_size / heads)))?;
        if head_dim % 2 != 0 {
            return Err(refuse.of(
                "head_dim",
                format!("must be even for rotary embedding but is {head_dim}"),
                "restore the original file",
            ));
        }
        let rms_default = if family == Family::BitNet { 1e-5 } else { 1e-6 };
        Ok(ModelConfig {
            vocab_size,
            hidden_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: refuse.size("intermediate_size", self.intermediate_size)?,
            rope_theta: self.rope(family, refuse)?,
            rms_eps: refuse.positive("rms_norm_eps", self.rms_norm_eps.unwrap_or(rms_default))?,
            context: refuse.size("max_position_embeddings", self.max_position_embeddings)?,
            activation: self.activation(family, refuse)?,
            sub_norms: family == Family::BitNet,
            tied: self.tie_word_embeddings.unwrap_or(false),
            linear: self.linear(family, refuse)?,
            precisions: self.precisions(layers, refuse)?,
            input_bits: self.input_bits(refuse)?,
            kv_bits: self.kv_bits(refuse)?,
            bos: refuse.ids("bos_token_id", self.bos_token_id.into_iter().collect(), vocab_size)?.first().copied(),
            eos: refuse.ids("eos_token_id", self.eos_token_id.map(Ids::list).unwrap_or_default(), vocab_size)?,
        })
    }

    fn family(&self, refuse: &Refusal<'_>) -> Result<Family, LoadError> {
        let family = match self.model_type.as_deref() {
            Some("bitnet") => Family::BitNet,
            Some("llama") => Family::Llama,
            found => {
                return Err(refuse.of(
                    "model_type",
                    format!(
                        "must be one of the supported architectures bitnet, llama but is {}",
                        found.unwrap_or("missing")
                    ),
                    "serve a BitNetForCausalLM or LlamaForCausalLM checkpoint",
                ));
            }
        };
        for (field, value) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if value == Some(true) {
                return Err(refuse.of(
                    field,
                    "must be false: biases are not supported",
                    "serve a checkpoint without biases",
                ));
            }
        }
        Ok(family)
    }

    fn activation(&self, family: Family, refuse: &Refusal<'_>) -> Result<Activation, LoadError> {
        match (self.hidden_act.as_deref(), family) {
            (Some("relu2"), _) | (None, Family::BitNet) => Ok(Activation::Relu2),
            (Some("silu"), _) | (None, Family::Llama) => Ok(Activation::Silu),
            (Some(other), _) => Err(refuse.of(
                "hidden_act",
                format!("must be relu2 or silu but is {other}"),
                "serve a checkpoint with one of these",
            )),
        }
    }

    fn rope(&self, family: Family, refuse: &Refusal<'_>) -> Result<f32, LoadError> {
        for (field, rope) in [("rope_parameters", &self.rope_parameters), ("rope_scaling", &self.rope_scaling)] {
            let Some(rope) = rope else { continue };
            if let Some(kind) = rope.rope_type.as_deref().filter(|kind| *kind != "default") {
                return Err(refuse.of(
                    &format!("{field}.rope_type"),
                    format!("must be default but is {kind}: scaled rotary embedding is not supported"),
                    "serve a checkpoint without rope scaling",
                ));
            }
            if rope.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
                return Err(refuse.of(
                    &format!("{field}.partial_rotary_factor"),
                    "must be 1: partial rotary embedding is not supported",
                    "serve a checkpoint that rotates whole heads",
                ));
            }
        }
        let default = if family == Family::BitNet { 500_000.0 } else { 10_000.0 };
        let given = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).or(self.rope_theta);
        refuse.positive("rope_theta", given.unwrap_or(default))
    }

    /// Forms of single layers, from `precisions` and `modules_to_not_convert`.
    fn precisions(&self, layers: usize, refuse: &Refusal<'_>) -> Result<BTreeMap<String, LayerPrecision>, LoadError> {
        const KEPT: &str = "quantization_config.modules_to_not_convert";
        const FIELD: &str = "quantization_config.precisions";
        let Some(quantization) = &self.quantization_config else { return Ok(BTreeMap::new()) };
        let mut found = BTreeMap::new();
        for (name, precision) in quantization.precisions.iter().flatten() {
            if !is_linear(name, layers) {
                let problem = format!("may name linear layers in full (model.layers.0.mlp.down_proj) but names {name}");
                return Err(refuse.of(FIELD, problem, "list each layer by its full name"));
            }
            let packed = quantization.quant_method.as_deref() == Some("bitnet")
                && quantization.quantization_mode.as_deref() != Some("online");
            if !packed && *precision != LayerPrecision::Full {
                let problem = format!("gives {name} a packed form, but this model is not packed");
                return Err(refuse.of(FIELD, problem, "set quant_method bitnet and quantization_mode offline"));
            }
            found.insert(name.clone(), *precision);
        }
        let names = quantization.modules_to_not_convert.iter().flatten();
        for name in names.map(|name| name.trim_end_matches(".weight")) {
            if matches!(name, "lm_head" | "model.embed_tokens") {
                continue;
            }
            if !is_linear(name, layers) {
                let problem = format!(
                    "may name lm_head and linear layers in full (model.layers.0.mlp.down_proj) but names {name}"
                );
                return Err(refuse.of(KEPT, problem, "list each layer by its full name"));
            }
            found.insert(name.to_owned(), LayerPrecision::Full);
        }
        for (name, precision) in &found {
            let Some((layer, module)) = name.split_at_checked("model.layers.".len()).and_then(|n| n.1.split_once('.'))
            else {
                continue;
            };
            let group = SHARED_INPUTS.iter().find(|group| group.contains(&module)).into_iter().copied().flatten();
            let plain = |name: &String| found.get(name) == Some(&LayerPrecision::Full);
            let mut other = group.map(|other| format!("model.layers.{layer}.{other}"));
            if *precision == LayerPrecision::Full
                && let Some(other) = other.find(|other| !plain(other))
            {
                let problem = format!("names {name} but not {other}, which shares its quantised input");
                return Err(refuse.of(KEPT, problem, "list both or neither"));
            }
        }
        Ok(found)
    }

    fn input_bits(&self, refuse: &Refusal<'_>) -> Result<ActivationBits, LoadError> {
        match self.quantization_config.as_ref().and_then(|quantization| quantization.activation_bits) {
            None | Some(8) => Ok(ActivationBits::Eight),
            Some(4) => Ok(ActivationBits::Four),
            Some(other) => Err(refuse.of(
                "quantization_config.activation_bits",
                format!("must be 4 or 8 but is {other}"),
                "restore the original file",
            )),
        }
    }

    fn kv_bits(&self, refuse: &Refusal<'_>) -> Result<KvBits, LoadError> {
        let Some(bits) = self.quantization_config.as_ref().and_then(|quantization| quantization.kv_bits) else {
            return Ok(KvBits::ThirtyTwo);
        };
        bits.to_string().parse().map_err(|_| {
            refuse.of(
                "quantization_config.kv_bits",
                format!("must be 16, 8, 4 or 3 but is {bits}"),
                "restore the original file",
            )
        })
    }

    fn linear(&self, family: Family, refuse: &Refusal<'_>) -> Result<LinearKind, LoadError> {
        let Some(quantization) = &self.quantization_config else { return Ok(LinearKind::Dense) };
        let field = |name: &str| format!("quantization_config.{name}");
        match quantization.quant_method.as_deref() {
            Some("none") => return Ok(LinearKind::Dense),
            Some("bitnet") => {}
            found => {
                return Err(refuse.of(
                    &field("quant_method"),
                    format!("must be bitnet or none but is {}", found.unwrap_or("missing")),
                    "serve a BitNet checkpoint or one without quantisation",
                ));
            }
        }
        if quantization.use_rms_norm == Some(true) {
            return Err(refuse.of(
                &field("use_rms_norm"),
                "must be false: norms inside linear layers are not supported",
                "serve a checkpoint that was trained without them",
            ));
        }
        let class = quantization.linear_class.as_deref();
        let mode = quantization.quantization_mode.as_deref();
        match (class, mode, quantization.offline_quantization) {
            (Some("autobitlinear"), Some("online"), _) => Ok(LinearKind::Online),
            (Some("autobitlinear"), None | Some("offline"), _) => Ok(LinearKind::Packed(ScaleRule::Multiply)),
            (None, None | Some("offline"), Some(true)) if family == Family::BitNet => {
                Ok(LinearKind::Packed(ScaleRule::Multiply))
            }
            (None | Some("bitlinear"), None | Some("offline"), _) => Ok(LinearKind::Packed(ScaleRule::Divide)),
            (None | Some("bitlinear" | "autobitlinear"), Some(other), _) => Err(refuse.of(
                &field("quantization_mode"),
                format!("must be offline, or online with linear_class autobitlinear, but is {other}"),
                "restore the original file",
            )),
            (Some(other), _, _) => Err(refuse.of(
                &field("linear_class"),
                format!("must be bitlinear or autobitlinear but is {other}"),
                "restore the original file",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base(model_type: &str) -> Value {
        json!({
            "model_type": model_type, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
            "max_position_embeddings": 128, "eos_token_id": 3, "bos_token_id": 1
        })
    }

    fn load(value: &Value) -> Result<ModelConfig, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
        ModelConfig::load(dir.path())
    }

    fn with(model_type: &str, changes: &Value) -> Value {
        let mut value = base(model_type);
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        value
    }

    #[test]
    fn every_generation_of_quantisation_config_is_read_as_the_table_says() {
        use LinearKind::{Dense, Online, Packed};
        use ScaleRule::{Divide, Multiply};
        let cases = [
            ("bitnet", json!(null), Dense),
            ("bitnet", json!({"quant_method": "none"}), Dense),
            ("bitnet", json!({"quant_method": "bitnet", "offline_quantization": true}), Packed(Multiply)),
            ("llama", json!({"quant_method": "bitnet", "offline_quantization": true}), Packed(Divide)),
            (
                "bitnet",
                json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}),
                Packed(Multiply),
            ),
            (
                "bitnet",
                json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}),
                Online,
            ),
            ("llama", json!({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}), Packed(Divide)),
            ("llama", json!({"quant_method": "bitnet", "linear_class": "bitlinear"}), Packed(Divide)),
            ("llama", json!(null), Dense),
        ];
        for (model_type, quantization, expected) in cases {
            let config = load(&with(model_type, &json!({"quantization_config": quantization}))).unwrap();
            assert_eq!(config.linear, expected, "{model_type} {quantization}");
        }
    }

    #[test]
    fn defaults_differ_by_family() {
        let bitnet = load(&base("bitnet")).unwrap();
        assert_eq!((bitnet.rope_theta, bitnet.rms_eps, bitnet.activation), (500_000.0, 1e-5, Activation::Relu2));
        assert!(bitnet.sub_norms && !bitnet.tied);
        let llama = load(&base("llama")).unwrap();
        assert_eq!((llama.rope_theta, llama.rms_eps, llama.activation), (10_000.0, 1e-6, Activation::Silu));
        assert!(!llama.sub_norms);
        assert_eq!((llama.head_dim, llama.eos, llama.bos), (8, vec![3], Some(1)));
    }

    #[test]
    fn both_spellings_of_the_rope_base_are_read() {
        assert_eq!(load(&with("llama", &json!({"rope_theta": 5e5}))).unwrap().rope_theta, 5e5);
        let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}});
        assert_eq!(load(&with("llama", &new)).unwrap().rope_theta, 7e5);
    }

    #[test]
    fn a_refusal_names_the_field() {
        let cases = [
            (json!({"model_type": "gpt2"}), "model_type"),
            (json!({"model_type": null}), "model_type"),
            (json!({"hidden_size": 0}), "hidden_size"),
            (json!({"hidden_size": 1_u64 << 60}), "hidden_size"),
            (json!({"hidden_size": 33}), "hidden_size"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            (json!({"num_key_value_heads": null, "model_type": "bitnet"}), "num_key_value_heads"),
            (json!({"head_dim": 7}), "head_dim"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"rms_norm_eps": 0.0}), "rms_norm_eps"),
            (json!({"rope_theta": -1.0}), "rope_theta"),
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_scaling.rope_type"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"eos_token_id": [1, 64]}), "eos_token_id"),
            (json!({"max_position_embeddings": null}), "max_position_embeddings"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config.quant_method"),
            (json!({"quantization_config": {}}), "quantization_config.quant_method"),
            (
                json!({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": true}}),
                "quantization_config.use_rms_norm",
            ),
            (
                json!({"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}}),
                "quantization_config.linear_class",
            ),
            (
                json!({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}),
                "quantization_config.quantization_mode",
            ),
            (
                json!({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.0"]}}),
                "quantization_config.modules_to_not_convert",
            ),
            (
                json!({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.2.mlp.down_proj"]}}),
                "quantization_config.modules_to_not_convert",
            ),
            (
                json!({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.0.mlp.up_proj"]}}),
                "quantization_config.modules_to_not_convert",
            ),
        ];
        for (changes, expected) in cases {
            match load(&with("llama", &changes)) {
                Err(LoadError::Config { field, .. }) => assert_eq!(field, expected, "{changes}"),
                other => panic!("{changes}: {other:?}"),
            }
        }
        assert!(matches!(load(&with("llama", &json!({"hidden_size": "wide"}))), Err(LoadError::Json { .. })));
    }

    #[test]
    fn layers_that_stay_plain_are_listed_in_full() {
        let plain = ["lm_head", "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj.weight"];
        let quantization = json!({"quant_method": "bitnet", "modules_to_not_convert": plain});
        let config = load(&with("llama", &json!({"quantization_config": quantization}))).unwrap();
        assert!(config.precisions.values().all(|precision| *precision == LayerPrecision::Full));
        let names: Vec<&str> = config.precisions.keys().map(String::as_str).collect();
        assert_eq!(names, ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]);
    }

    #[test]
    fn layers_have_precisions_of_their_own_and_activations_bits() {
        let quantization = json!({
            "quant_method": "bitnet", "activation_bits": 4, "kv_bits": 3,
            "precisions": {"model.layers.0.mlp.up_proj": "binary", "model.layers.1.self_attn.o_proj": "int8"}
        });
        let config = load(&with("bitnet", &json!({"quantization_config": quantization}))).unwrap();
        assert_eq!((config.input_bits, config.kv_bits), (ActivationBits::Four, KvBits::Three));
        assert_eq!(config.precisions["model.layers.0.mlp.up_proj"], LayerPrecision::Binary);
        assert_eq!(config.precisions["model.layers.1.self_attn.o_proj"], LayerPrecision::Int8);
        let plain = load(&base("bitnet")).unwrap();
        assert_eq!((plain.input_bits, plain.kv_bits), (ActivationBits::Eight, KvBits::ThirtyTwo));
        let refused = [
            json!({"quant_method": "bitnet", "activation_bits": 5}),
            json!({"quant_method": "bitnet", "kv_bits": 2}),
            json!({"quant_method": "none", "kv_bits": 32}),
            json!({"quant_method": "bitnet", "precisions": {"model.layers.2.mlp.up_proj": "int4"}}),
            json!({"quant_method": "bitnet", "precisions": {"model.layers.0.mlp.up_proj": "full"}}),
            json!({"quant_method": "none", "precisions": {"model.layers.0.mlp.up_proj": "int4"}}),
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
                   "precisions": {"model.layers.0.mlp.up_proj": "binary"}}),
        ];
        for quantization in refused {
            let result = load(&with("bitnet", &json!({"quantization_config": quantization})));
            assert!(matches!(result, Err(LoadError::Config { .. })), "{quantization}");
        }
        let unknown = json!({"quant_method": "bitnet", "precisions": {"model.layers.0.mlp.up_proj": "int2"}});
        let result = load(&with("bitnet", &json!({"quantization_config": unknown})));
        assert!(matches!(result, Err(LoadError::Json { .. })), "{result:?}");
    }

    #[test]
    fn generation_config_wins_for_eos() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), base("bitnet").to_string()).unwrap();
        fs::write(dir.path().join("generation_config.json"), json!({"eos_token_id": [9, 5]}).to_string()).unwrap();
        assert_eq!(ModelConfig::load(dir.path()).unwrap().eos, [5, 9]);
    }
}
