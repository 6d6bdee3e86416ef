//! config.json as it is written, and every rule that it must keep.

use super::rope::RopeScaling;
use super::{Activation, LayerPrecision, LinearKind, ModelConfig, SHARED_INPUTS, ScaleRule, is_linear};
use crate::kernels::{ActivationBits, KvBits, MOST_COLUMNS};
use crate::model::LoadError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// No dimension of a real model is larger; a larger one is a damaged file.
const LARGEST: usize = MOST_COLUMNS;

#[derive(Deserialize)]
pub(super) struct RawConfig {
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
pub(super) struct RawGeneration {
    pub(super) eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    pub(super) fn list(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct RawRope {
    #[serde(alias = "type")]
    pub(super) rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    pub(super) factor: Option<f32>,
    pub(super) low_freq_factor: Option<f32>,
    pub(super) high_freq_factor: Option<f32>,
    pub(super) original_max_position_embeddings: Option<f32>,
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    BitNet,
    Llama,
}

/// Builds refusals of one file.
pub(super) struct Refusal<'a> {
    pub(super) path: &'a Path,
}

impl Refusal<'_> {
    pub(super) fn of(&self, field: &str, problem: impl Into<String>, remedy: impl Into<String>) -> LoadError {
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

    pub(super) fn positive(&self, field: &str, value: f32) -> Result<f32, LoadError> {
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(self.of(field, format!("must be a finite number above 0 but is {value}"), "restore the original file"))
    }

    pub(super) fn ids(&self, field: &str, mut ids: Vec<u32>, vocab_size: usize) -> Result<Vec<u32>, LoadError> {
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
    pub(super) fn check(self, refuse: &Refusal<'_>) -> Result<ModelConfig, LoadError> {
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
        let (rope_theta, rope_scaling) = self.rope(family, refuse)?;
        let rms_default = if family == Family::BitNet { 1e-5 } else { 1e-6 };
        Ok(ModelConfig {
            vocab_size,
            hidden_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: refuse.size("intermediate_size", self.intermediate_size)?,
            rope_theta,
            rope_scaling,
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

    /// Base and stretching of the rotary embedding.
    fn rope(&self, family: Family, refuse: &Refusal<'_>) -> Result<(f32, Option<RopeScaling>), LoadError> {
        let mut scaling = None;
        for (field, rope) in [("rope_parameters", &self.rope_parameters), ("rope_scaling", &self.rope_scaling)] {
            let Some(rope) = rope else { continue };
            scaling = scaling.or(RopeScaling::read(rope, field, refuse)?);
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
        Ok((refuse.positive("rope_theta", given.unwrap_or(default))?, scaling))
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
