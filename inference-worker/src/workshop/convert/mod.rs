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
use crate::kernels::ActivationBits;
use crate::model::{
    Activation, LayerPrecision, LinearKind, ModelConfig, SHARED_INPUTS, ScaleRule, Shards, StoredTensor,
};
use matrix::{Coded, Matrix};
use serde_json::{Value, json};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The feed-forward part is ternary.
    FeedForward,
    /// And what attention reads: q, k, v.
    Attention,
    /// And all of attention, in the BitNet class: norms before the output and the down projection (SubLN). Where the
    /// class has none they come in with weight 1, which changes the function: such a model is to be distilled.
    SubNorms,
}

/// Precision of the weights of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightPrecision {
    /// As in the input.
    Full,
    /// Rounded to 255 values per row, stored in the input's type: shows the cost, saves no bytes, is served in float.
    Int8,
    /// Rounded to 15 values per row, likewise.
    Int4,
    /// -1, 0, 1 times the mean of |w|, packed in 2 bits; activations are served in int8.
    Ternary,
    /// -1, 1 times the mean of |w|, packed in the same 2 bits.
    Binary,
}

impl WeightPrecision {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Full, Self::Int8, Self::Int4, Self::Ternary, Self::Binary];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Ternary => "ternary",
            Self::Binary => "binary",
        }
    }

    /// Stored as 2-bit codes.
    fn packed(self) -> bool {
        matches!(self, Self::Ternary | Self::Binary)
    }
}

/// `PATTERN=PRECISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecisionRule {
    /// Fits a layer's full name (`model.layers.3.mlp.down_proj`) if it is a run of its parts (`mlp`, `layers.3`,
    /// `self_attn.q_proj`).
    pub pattern: String,
    /// What fits gets it.
    pub precision: WeightPrecision,
}

impl std::str::FromStr for PrecisionRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = WeightPrecision::ALL.map(WeightPrecision::name).join(", ");
        let usage = || format!("write PATTERN=PRECISION, for example mlp=binary; precisions are {names}");
        let (pattern, name) = text.split_once('=').ok_or_else(usage)?;
        let precision = WeightPrecision::ALL.into_iter().find(|p| p.name() == name).ok_or_else(usage)?;
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
    if let Some((name, _)) = config
        .precisions
        .iter()
        .find(|(_, precision)| !matches!(precision, LayerPrecision::Full | LayerPrecision::Ternary))
    {
        return Err(WorkshopError::Refused(format!(
            "{} stores {name} in another packed form than ternary, which is not read here: convert the plain checkpoint that it came from",
            order.model.display()
        )));
    }
    if matches!(config.linear, LinearKind::Packed(_)) && (order.phase.is_some() || !order.rules.is_empty()) {
        return Err(WorkshopError::Refused(format!(
            "{} is packed already: convert the plain checkpoint that it came from, or leave --phase and --precision out to store it in another form",
            order.model.display()
        )));
    }
    let narrow = config.input_bits != ActivationBits::default();
    if narrow && order.storage == Storage::Gguf {
        return Err(WorkshopError::Refused(format!(
            "--format gguf: {} quantises activations to 4 bits, which GGUF has no field for: use --format safetensors",
            order.model.display()
        )));
    }
    if order.out.exists() {
        return Err(WorkshopError::Refused(format!("{} exists: choose another --out", order.out.display())));
    }
    let plan = plan(order, &config)?;
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
        if let Some(module) = name.strip_suffix(".weight_scale")
            && plan.contains_key(module)
        {
            continue;
        }
        let Some((module, precision)) = name.strip_suffix(".weight").and_then(|module| plan.get_key_value(module))
        else {
            contents.push((name.to_owned(), stored(tensor)));
            continue;
        };
        let scale = scales.get(module.as_str()).copied().flatten();
        let content = content(&config, name, tensor, *precision, scale)?;
        *layers.entry(name_of(&content)).or_default() += 1;
        contents.push((name.to_owned(), content));
    }
    let mut new_norms = 0;
    if order.phase == Some(Phase::SubNorms) && !config.sub_norms {
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
    precision: WeightPrecision,
    scale: Option<f32>,
) -> Result<Content<'a>, WorkshopError> {
    let floats = || Matrix::of(config, name, tensor);
    Ok(match (precision, config.linear) {
        (WeightPrecision::Full, _) => stored(tensor),
        (WeightPrecision::Int8 | WeightPrecision::Int4, _) => {
            let matrix = floats()?;
            matrix.mean(name)?;
            Content::Rounded(matrix, precision)
        }
        (_, LinearKind::Packed(rule)) => Content::Coded(Coded::packed(config, name, tensor, scale, rule)?),
        (precision, _) => Content::Coded(Coded::floats(floats()?, precision == WeightPrecision::Binary, name)?),
    })
}

fn name_of(content: &Content<'_>) -> &'static str {
    match content {
        Content::Rounded(_, precision) => precision.name(),
        Content::Coded(matrix) if matrix.is_binary() => WeightPrecision::Binary.name(),
        Content::Coded(_) => WeightPrecision::Ternary.name(),
        Content::Stored { .. } | Content::Ones(_) => WeightPrecision::Full.name(),
    }
}

/// Precision of every linear layer, by full name.
pub(super) fn plan(order: &Order, config: &ModelConfig) -> Result<BTreeMap<String, WeightPrecision>, WorkshopError> {
    let by_phase = |module: &str| match order.phase {
        Some(Phase::FeedForward) => module.starts_with("mlp."),
        Some(Phase::Attention) => module != "self_attn.o_proj",
        None | Some(Phase::SubNorms) => true,
    };
    let mut plan = BTreeMap::new();
    let mut fitted = vec![false; order.rules.len()];
    for layer in 0..config.layers {
        for module in SHARED_INPUTS.iter().copied().flatten() {
            let name = format!("model.layers.{layer}.{module}");
            // Of a packed model, what is packed stays so.
            let ternary = by_phase(module) && config.precisions.get(&name) != Some(&LayerPrecision::Full);
            let mut precision = if ternary { WeightPrecision::Ternary } else { WeightPrecision::Full };
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
            if let Some(other) = group.iter().find(|module| of(module).packed() != of(&group[0]).packed()) {
                return Err(WorkshopError::Refused(format!(
                    "layer {layer}: {} is to be {} and {other} {}, but they share one input, which is either quantised (ternary, binary) or not: choose alike",
                    group[0],
                    of(&group[0]).name(),
                    of(other).name()
                )));
            }
        }
    }
    Ok(plan)
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
    plan: &BTreeMap<String, WeightPrecision>,
    scale: ScaleRule,
    dir: &Path,
) -> Result<(), WorkshopError> {
    let path = order.model.join("config.json");
    let bytes = fs::read(&path).map_err(WorkshopError::file("read", &path))?;
    let mut value: Value = serde_json::from_slice(&bytes).map_err(WorkshopError::json(&path))?;
    if order.phase == Some(Phase::SubNorms) && value["model_type"] == "llama" {
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
    let kept: Vec<&String> = plan.iter().filter(|(_, p)| !p.packed()).map(|(name, _)| name).collect();
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
        if config.input_bits != ActivationBits::default() {
            quantization["activation_bits"] = json!(4);
        }
        quantization
    };
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
            PrecisionRule { pattern: pattern.into(), precision: WeightPrecision::Full }.fits(module)
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
        assert_eq!((rule.pattern.as_str(), rule.precision), ("mlp", WeightPrecision::Binary));
        for bad in ["mlp", "=full", "mlp=int2", "mlp="] {
            assert!(bad.parse::<PrecisionRule>().unwrap_err().contains("full, int8, int4, ternary, binary"), "{bad}");
        }
    }
}
