//! A plain checkpoint as a BitNet one, without data: which layers become ternary, in which packed form.
//!
//! Tensors go from the mapped input to the output one after the other and row by row, so that a checkpoint of any size
//! needs little memory of its own. What the conversion costs is for a comparison to say ([`super::probing`]).

mod gguf;
mod matrix;
mod tensors;

use super::error::WorkshopError;
use super::export::write_json;
use super::inspect::first_number;
use super::shards::write_model_files;
use super::staging::Staging;
use super::weights::Rounding;
use crate::kernels::{ActivationBits, Codes, KvBits};
use crate::model::{
    Activation, LayerPrecision, LinearKind, ModelConfig, SHARED_INPUTS, ScaleRule, Shards, StoredTensor,
};
use matrix::{Coded, IntegerWidth, Integers, Matrix};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tensors::Content;

/// What to convert, and into what.
#[derive(Clone, Debug)]
pub struct Order {
    /// Directory of the model. A packed one is stored in another form as it is: without phase and rules.
    pub model: PathBuf,
    /// Directory to make.
    pub out: PathBuf,
    /// Which layers; without a phase, all linear layers, and the model's class stays as it is.
    pub phase: Option<Phase>,
    /// Precision by pattern, after the phase; the last one that fits a layer counts.
    pub rules: Vec<PrecisionRule>,
    /// Form of the output.
    pub storage: Storage,
}

/// Form in which a model is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// config.json and safetensors files.
    Safetensors {
        /// How scales are stored.
        scale: ScaleRule,
        /// Most bytes of tensors in one file.
        shard: u64,
    },
    /// One GGUF file, ternary layers as I2_S in the layout of x86 builds.
    Gguf,
}

/// How far a model has come on its way to BitNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The feed-forward part is ternary.
    FeedForward,
    /// And what attention reads: q, k, v.
    Attention,
    /// And all of attention, in the BitNet class: norms before the output and the down projection (SubLN). Where the
    /// class has none they come in with weight 1, which changes the function: such a model is to be distilled.
    SubNorms,
    /// And 4-bit activations into attention and feed-forward part, and keys and values of 3 bits: [`Rounding::PHASE_4`].
    FourBits,
}

/// `PATTERN=PRECISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecisionRule {
    /// Fits a layer's full name (`model.layers.3.mlp.down_proj`) if it is a run of its parts (`mlp`, `layers.3`,
    /// `self_attn.q_proj`).
    pub pattern: String,
    /// What fits gets it.
    pub precision: LayerPrecision,
}

impl std::str::FromStr for PrecisionRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = LayerPrecision::ALL.map(LayerPrecision::name).join(", ");
        let usage = || format!("write PATTERN=PRECISION, for example mlp=binary; precisions are {names}");
        let (pattern, name) = text.split_once('=').ok_or_else(usage)?;
        let precision = LayerPrecision::ALL.into_iter().find(|p| p.name() == name).ok_or_else(usage)?;
        if pattern.is_empty() {
            return Err(usage());
        }
        Ok(Self { pattern: pattern.to_owned(), precision })
    }
}

impl PrecisionRule {
    fn fits(&self, module: &str) -> bool {
        format!(".{module}.").contains(&format!(".{}.", self.pattern))
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Linear layers by precision.
    pub layers: BTreeMap<&'static str, usize>,
    /// Weight files.
    pub files: usize,
    /// Norms that the class asks for and the input did not have.
    pub new_norms: usize,
    /// Bytes of tensors before and after.
    pub bytes: (u64, u64),
}

/// Converts a checkpoint.
///
/// # Errors
/// [`WorkshopError::Refused`] names what cannot be: a packed model with a phase or rules, a rule that fits nothing, layers
/// that share an input with precisions that cannot, weights that are no numbers, a form that cannot hold the model, an
/// `out` that exists. Nothing is left at `out`.
pub fn convert(order: &Order) -> Result<Converted, WorkshopError> {
    let load = || WorkshopError::load(&order.model);
    let mut config = ModelConfig::load(&order.model).map_err(load())?;
    if matches!(config.linear, LinearKind::Packed(_)) && (order.phase.is_some() || !order.rules.is_empty()) {
        return Err(WorkshopError::Refused(format!(
            "{} is packed already: convert the plain checkpoint that it came from, or leave --phase and --precision out to store it in another form",
            order.model.display()
        )));
    }
    let rounding = rounding(order.phase, &config);
    if rounding != Rounding::default() && order.storage == Storage::Gguf {
        return Err(WorkshopError::Refused(format!(
            "--format gguf: what is made of {} has activations of {} bits and keys and values of {}, which GGUF has no fields for: use --format safetensors",
            order.model.display(),
            rounding.activation_bits.bits(),
            rounding.kv_bits
        )));
    }
    if order.out.exists() {
        return Err(WorkshopError::Refused(format!("{} exists: choose another --out", order.out.display())));
    }
    let plan = plan(order, &config)?;
    let integers = |precision: &LayerPrecision| matches!(precision, LayerPrecision::Int8 | LayerPrecision::Int4);
    if order.storage == Storage::Gguf
        && let Some((module, precision)) = plan.iter().find(|(_, precision)| integers(precision))
    {
        return Err(WorkshopError::Refused(format!(
            "--format gguf: {module} is to be {}, but the file holds I2_S (ternary, binary) and floats: choose one of these, or --format safetensors",
            precision.name()
        )));
    }
    let shards = Shards::open(&order.model).map_err(load())?;
    let tensors = shards.tensors().map_err(load())?;
    let mut layers: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut contents = Vec::new();
    let mut before = 0;
    let scales: BTreeMap<&str, Option<f32>> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_suffix(".weight_scale")?, first_number(tensor))))
        .collect();
    for (name, tensor) in tensors.iter() {
        before += tensor.bytes().len() as u64;
        // Made anew with their matrices, but for those of integers that are stored already.
        if let Some(precision) = name.strip_suffix(".weight_scale").and_then(|module| plan.get(module))
            && !integers(precision)
        {
            continue;
        }
        let Some((module, precision)) = name.strip_suffix(".weight").and_then(|module| plan.get_key_value(module))
        else {
            contents.push((name.to_owned(), stored(tensor)));
            continue;
        };
        let scale = scales.get(module.as_str()).copied().flatten();
        *layers.entry(precision.name()).or_default() += 1;
        contents.push((name.to_owned(), content(&config, name, tensor, *precision, scale)?));
    }
    let mut new_norms = 0;
    if order.phase >= Some(Phase::SubNorms) && !config.sub_norms {
        let norms = tensors::sub_norms(&config);
        new_norms = norms.len();
        contents.extend(norms.into_iter().map(|(name, width)| (name, Content::Ones(width))));
        config.sub_norms = true;
    }

    let staging = Staging::new(&order.out)?;
    copy_other_files(&order.model, staging.path())?;
    let (files, after) = match order.storage {
        Storage::Safetensors { scale, shard } => {
            write_config(order, &config, &plan, scale, staging.path())?;
            let planned: Vec<_> =
                contents.into_iter().flat_map(|(name, content)| content.planned(&name, scale)).collect();
            let after = planned.iter().map(|p| p.bytes).sum();
            (write_model_files(staging.path(), planned, shard)?, after)
        }
        Storage::Gguf => {
            // The file says what it would say.
            let generation = staging.path().join("generation_config.json");
            if generation.exists() {
                fs::remove_file(&generation).map_err(WorkshopError::file("remove", &generation))?;
            }
            (1, gguf::write(staging.path(), &order.model, &config, contents)?)
        }
    };
    staging.publish()?;
    Ok(Converted { layers, files, new_norms, bytes: (before, after) })
}

fn stored<'a>(tensor: &StoredTensor<'a>) -> Content<'a> {
    let (dtype, shape) = tensor.stored();
    Content::Stored { dtype, shape: shape.to_vec(), bytes: tensor.bytes() }
}

/// A linear layer as the plan has it.
fn content<'a>(
    config: &ModelConfig,
    name: &str,
    tensor: &StoredTensor<'a>,
    precision: LayerPrecision,
    scale: Option<f32>,
) -> Result<Content<'a>, WorkshopError> {
    let floats = || {
        let matrix = Matrix::of(config, name, tensor)?;
        let most = Codes::MOST_COLUMNS;
        if matrix.columns > most && !matches!(precision, LayerPrecision::Full | LayerPrecision::Ternary) {
            return Err(WorkshopError::Refused(format!(
                "{name} has {} columns, but a layer that is {} may have {most}: choose full or ternary with --precision",
                matrix.columns,
                precision.name()
            )));
        }
        Ok(matrix)
    };
    let integers = |width| Ok(Content::Integers(Integers::of(floats()?, width, name)?));
    let binary = precision == LayerPrecision::Binary;
    match (precision, config.linear) {
        (LayerPrecision::Full, _) | (LayerPrecision::Int8 | LayerPrecision::Int4, LinearKind::Packed(_)) => {
            Ok(stored(tensor))
        }
        (LayerPrecision::Int8, _) => integers(IntegerWidth::Eight),
        (LayerPrecision::Int4, _) => integers(IntegerWidth::Four),
        (_, LinearKind::Packed(rule)) => Ok(Content::Coded(Coded::packed(config, name, tensor, binary, scale, rule)?)),
        _ => Ok(Content::Coded(Coded::floats(floats()?, binary, name)?)),
    }
}

/// Precision of every linear layer, by full name.
pub(super) fn plan(order: &Order, config: &ModelConfig) -> Result<BTreeMap<String, LayerPrecision>, WorkshopError> {
    let by_phase = |module: &str| match order.phase {
        Some(Phase::FeedForward) => module.starts_with("mlp."),
        Some(Phase::Attention) => module != "self_attn.o_proj",
        None | Some(Phase::SubNorms | Phase::FourBits) => true,
    };
    let mut plan = BTreeMap::new();
    let mut fitted = vec![false; order.rules.len()];
    for layer in 0..config.layers {
        for module in SHARED_INPUTS.iter().copied().flatten() {
            let name = format!("model.layers.{layer}.{module}");
            // What a model says of a layer stays so.
            let mut precision = match config.precisions.get(&name) {
                Some(own) => *own,
                None if by_phase(module) => LayerPrecision::Ternary,
                None => LayerPrecision::Full,
            };
            for (rule, fitted) in order.rules.iter().zip(&mut fitted).filter(|(rule, _)| rule.fits(&name)) {
                precision = rule.precision;
                *fitted = true;
            }
            plan.insert(name, precision);
        }
    }
    if let Some((rule, _)) = order.rules.iter().zip(fitted).find(|(_, fitted)| !fitted) {
        return Err(WorkshopError::Refused(format!(
            "--precision {}={} fits no linear layer of the decoder (such as model.layers.0.mlp.down_proj); embedding, head and norms always stay as they are: correct the pattern",
            rule.pattern,
            rule.precision.name()
        )));
    }
    for layer in 0..config.layers {
        for group in SHARED_INPUTS {
            let of = |module: &&str| plan[&format!("model.layers.{layer}.{module}")];
            let full = |module: &&str| of(module) == LayerPrecision::Full;
            if let Some(other) = group.iter().find(|module| full(module) != full(&group[0])) {
                return Err(WorkshopError::Refused(format!(
                    "layer {layer}: {} is to be {} and {other} {}, but they share one input, which is either quantised or, for full layers, not: make all or none of them full",
                    group[0],
                    of(&group[0]).name(),
                    of(other).name()
                )));
            }
        }
    }
    Ok(plan)
}

/// How activations, keys and values are rounded: by the phase, or as the model has it.
pub(super) fn rounding(phase: Option<Phase>, config: &ModelConfig) -> Rounding {
    match phase {
        Some(Phase::FourBits) => Rounding::PHASE_4,
        _ => Rounding { activation_bits: config.input_bits, kv_bits: config.kv_bits },
    }
}

/// Tokenizer, template, generation settings, licence: everything but weights and config.json.
pub(super) fn copy_other_files(from: &Path, to: &Path) -> Result<(), WorkshopError> {
    for entry in fs::read_dir(from).map_err(WorkshopError::file("read", from))? {
        let entry = entry.map_err(WorkshopError::file("read", from))?;
        let (path, name) = (entry.path(), entry.file_name());
        let weights =
            path.extension().is_some_and(|e| ["safetensors", "bin", "pth", "pt", "gguf"].iter().any(|w| e == *w));
        let text = name.to_string_lossy();
        if !path.is_file() || weights || text == "config.json" || text.ends_with(".index.json") || text.starts_with('.')
        {
            continue;
        }
        fs::copy(&path, to.join(&name)).map_err(WorkshopError::file("copy", &path))?;
    }
    Ok(())
}

fn write_config(
    order: &Order,
    config: &ModelConfig,
    plan: &BTreeMap<String, LayerPrecision>,
    scale: ScaleRule,
    dir: &Path,
) -> Result<(), WorkshopError> {
    let path = order.model.join("config.json");
    let bytes = fs::read(&path).map_err(WorkshopError::file("read", &path))?;
    let mut value: Value = serde_json::from_slice(&bytes).map_err(WorkshopError::json(&path))?;
    if order.phase >= Some(Phase::SubNorms) && value["model_type"] == "llama" {
        // What the old class left to its defaults is written out, because the new one has others.
        value["model_type"] = json!("bitnet");
        value["architectures"] = json!(["BitNetForCausalLM"]);
        value["hidden_act"] = json!(match config.activation {
            Activation::Relu2 => "relu2",
            Activation::Silu => "silu",
        });
        value["num_key_value_heads"] = json!(config.kv_heads);
        value["rms_norm_eps"] = json!(shortest(config.rms_eps));
        value["rope_theta"] = json!(shortest(config.rope_theta));
        value["tie_word_embeddings"] = json!(config.tied);
    }
    let rounding = rounding(order.phase, config);
    let kept: Vec<&String> = plan.iter().filter(|(_, p)| **p == LayerPrecision::Full).map(|(name, _)| name).collect();
    let other: Map<String, Value> = plan
        .iter()
        .filter(|(_, p)| !matches!(p, LayerPrecision::Full | LayerPrecision::Ternary))
        .map(|(name, p)| (name.clone(), json!(p.name())))
        .collect();
    value["quantization_config"] = if kept.len() == plan.len() {
        json!({"quant_method": "none"})
    } else {
        let class = match scale {
            ScaleRule::Multiply => "autobitlinear",
            ScaleRule::Divide => "bitlinear",
        };
        let mut names = vec![json!("lm_head")];
        names.extend(kept.into_iter().map(|name| json!(name)));
        let mut quantization = json!({
            "quant_method": "bitnet",
            "linear_class": class,
            "quantization_mode": "offline",
            "modules_to_not_convert": names,
        });
        if !other.is_empty() {
            quantization["precisions"] = Value::Object(other);
        }
        if rounding.activation_bits != ActivationBits::default() {
            quantization["activation_bits"] = json!(rounding.activation_bits.bits());
        }
        quantization
    };
    if rounding.kv_bits != KvBits::default() {
        value["quantization_config"]["kv_bits"] = json!(rounding.kv_bits.bits());
    }
    write_json(&dir.join("config.json"), &value)
}

/// The f64 whose decimal form is that of the f32.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_whole_parts_of_a_name() {
        let fits = |pattern: &str, module: &str| {
            PrecisionRule { pattern: pattern.into(), precision: LayerPrecision::Full }.fits(module)
        };
        let name = "model.layers.3.self_attn.q_proj";
        for good in ["self_attn", "q_proj", "layers.3", "self_attn.q_proj", name] {
            assert!(fits(good, name), "{good}");
        }
        for bad in ["layers.33", "attn", "proj", "3.mlp", "q_proj.weight"] {
            assert!(!fits(bad, name), "{bad}");
        }
        assert!(!fits("layers.1", "model.layers.11.mlp.up_proj"));
    }

    #[test]
    fn a_rule_is_pattern_and_precision() {
        let rule: PrecisionRule = "mlp=binary".parse().unwrap();
        assert_eq!((rule.pattern.as_str(), rule.precision), ("mlp", LayerPrecision::Binary));
        for bad in ["mlp", "=full", "mlp=int2", "mlp="] {
            assert!(bad.parse::<PrecisionRule>().unwrap_err().contains("full, int8, int4, ternary, binary"), "{bad}");
        }
    }
}
