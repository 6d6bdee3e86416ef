//! A plain checkpoint as a BitNet one, without data: which layers become ternary, in which packed form.
//!
//! Tensors go from the mapped input to the output one after the other and row by row, so that a checkpoint of any size
//! needs little memory of its own. What the conversion costs is for a comparison to say ([`super::probing`]).

use super::error::WorkshopError;
use super::export::write_json;
use super::inspect::rows_of;
use super::shards::{Planned, write_model_files};
use super::staging::Staging;
use crate::model::{LinearKind, ModelConfig, SHARED_INPUTS, ScaleRule, Shards, StoredTensor};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What to convert, and into what.
#[derive(Clone, Debug)]
pub struct Order {
    /// Directory of the plain model.
    pub model: PathBuf,
    /// Directory to make.
    pub out: PathBuf,
    /// Which layers; without a phase, all linear layers, and the model's class stays as it is.
    pub phase: Option<Phase>,
    /// Precision by pattern, after the phase; the last one that fits a layer counts.
    pub rules: Vec<PrecisionRule>,
    /// How scales are stored.
    pub scale: ScaleRule,
    /// Most bytes of tensors in one file.
    pub shard: u64,
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
/// [`WorkshopError::Refused`] names what cannot be: a model that is packed already, a rule that fits nothing, layers that
/// share an input with precisions that cannot, weights that are no numbers, an `out` that exists. Nothing is left at `out`.
pub fn convert(order: &Order) -> Result<Converted, WorkshopError> {
    let load = || WorkshopError::load(&order.model);
    let config = ModelConfig::load(&order.model).map_err(load())?;
    if matches!(config.linear, LinearKind::Packed(_)) {
        return Err(WorkshopError::Refused(format!(
            "{} is packed already: convert the plain checkpoint that it came from",
            order.model.display()
        )));
    }
    if order.out.exists() {
        return Err(WorkshopError::Refused(format!("{} exists: choose another --out", order.out.display())));
    }
    let plan = plan(order, &config)?;
    let shards = Shards::open(&order.model).map_err(load())?;
    let tensors = shards.tensors().map_err(load())?;
    let mut planned = Vec::new();
    let mut before = 0;
    for (name, tensor) in tensors.iter() {
        before += tensor.bytes().len() as u64;
        let precision = name.strip_suffix(".weight").and_then(|module| plan.get(module));
        match precision {
            None | Some(WeightPrecision::Full) => planned.push(copied(name, tensor)),
            Some(precision) => {
                let matrix = Matrix::of(&config, name, tensor)?;
                if precision.packed() {
                    planned.extend(packed(name, matrix, *precision, order.scale)?);
                } else {
                    planned.push(rounded(name, tensor, matrix, *precision)?);
                }
            }
        }
    }
    let new_norms = if order.phase == Some(Phase::SubNorms) && !config.sub_norms { sub_norms(&config) } else { vec![] };
    let count = new_norms.len();
    planned.extend(new_norms);

    let staging = Staging::new(&order.out)?;
    copy_other_files(&order.model, staging.path())?;
    write_config(order, &config, &plan, staging.path())?;
    let after = planned.iter().map(|p| p.bytes).sum();
    let files = write_model_files(staging.path(), planned, order.shard)?;
    staging.publish()?;
    let mut layers: BTreeMap<&'static str, usize> = BTreeMap::new();
    for precision in plan.values() {
        *layers.entry(precision.name()).or_default() += 1;
    }
    Ok(Converted { layers, files, new_norms: count, bytes: (before, after) })
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
            let mut precision = if by_phase(module) { WeightPrecision::Ternary } else { WeightPrecision::Full };
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

fn copied<'a>(name: &str, tensor: &'a StoredTensor<'_>) -> Planned<'a> {
    let (dtype, shape) = tensor.stored();
    let bytes = tensor.bytes();
    Planned {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        bytes: bytes.len() as u64,
        write: Box::new(move |out| out.write_all(bytes)),
    }
}

/// A matrix of floats in a mapped file.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    fn of(config: &ModelConfig, name: &str, tensor: &StoredTensor<'a>) -> Result<Self, WorkshopError> {
        let (dtype, shape) = tensor.stored();
        match (dtype, shape) {
            (Dtype::F32 | Dtype::F16 | Dtype::BF16, [rows, columns])
                if rows_of(config, name) == Some(*rows) && *columns > 0 =>
            {
                Ok(Self { bytes: tensor.bytes(), dtype, rows: *rows, columns: *columns })
            }
            _ => Err(WorkshopError::Refused(format!(
                "{name} must be a matrix of F32, F16 or BF16 with {} rows but is {dtype:?} {shape:?}: convert a checkpoint whose weights and config.json belong together",
                rows_of(config, name).unwrap_or(0)
            ))),
        }
    }

    /// One row as f32.
    fn read(&self, row: usize, out: &mut Vec<f32>) {
        let size = self.dtype.bitsize() / 8;
        let bytes = &self.bytes[row * self.columns * size..(row + 1) * self.columns * size];
        out.clear();
        match self.dtype {
            Dtype::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::F16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            _ => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        }
    }

    /// Mean of |w|, at least 1e-5, summed in the order of [`super::ternary::Ternary::of`].
    fn mean(&self, name: &str) -> Result<f32, WorkshopError> {
        let (mut sum, mut row) = (0f64, Vec::with_capacity(self.columns));
        for index in 0..self.rows {
            self.read(index, &mut row);
            sum = row.iter().fold(sum, |sum, w| sum + f64::from(w.abs()));
        }
        if !sum.is_finite() {
            return Err(WorkshopError::Refused(format!(
                "{name} has weights that are no finite numbers: convert a checkpoint that is whole"
            )));
        }
        Ok(((sum / (self.rows * self.columns) as f64) as f32).max(1e-5))
    }
}

/// Codes and scale of one matrix.
fn packed<'a>(
    name: &str,
    matrix: Matrix<'a>,
    precision: WeightPrecision,
    rule: ScaleRule,
) -> Result<[Planned<'a>; 2], WorkshopError> {
    let mean = matrix.mean(name)?;
    let plane = matrix.rows.div_ceil(4);
    let inverse = 1.0 / mean;
    let write = move |out: &mut dyn Write| -> io::Result<()> {
        let mut row = Vec::with_capacity(matrix.columns);
        let mut bytes = vec![0u8; matrix.columns];
        for index in 0..plane {
            bytes.fill(0);
            for field in 0..4 {
                if index + field * plane >= matrix.rows {
                    // A row that does not exist has weight 0.
                    for byte in &mut bytes {
                        *byte |= 1 << (2 * field);
                    }
                    continue;
                }
                matrix.read(index + field * plane, &mut row);
                for (byte, weight) in bytes.iter_mut().zip(&row) {
                    // Rounding half to even within -1..=1: exactly one half becomes 0.
                    let code = match precision {
                        WeightPrecision::Binary => 2 * u8::from(*weight >= 0.0),
                        _ => 1 + u8::from(weight * inverse > 0.5) - u8::from(weight * inverse < -0.5),
                    };
                    *byte |= code << (2 * field);
                }
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    };
    let stored = match rule {
        ScaleRule::Multiply => mean,
        ScaleRule::Divide => inverse,
    };
    let module = name.strip_suffix(".weight").unwrap_or(name);
    Ok([
        Planned {
            name: name.to_owned(),
            dtype: Dtype::U8,
            shape: vec![plane, matrix.columns],
            bytes: (plane * matrix.columns) as u64,
            write: Box::new(write),
        },
        Planned {
            name: format!("{module}.weight_scale"),
            dtype: Dtype::F32,
            shape: vec![1],
            bytes: 4,
            write: Box::new(move |out| out.write_all(&stored.to_le_bytes())),
        },
    ])
}

/// Weights on a grid per row, symmetric, in the input's own type.
fn rounded<'a>(
    name: &str,
    tensor: &StoredTensor<'_>,
    matrix: Matrix<'a>,
    precision: WeightPrecision,
) -> Result<Planned<'a>, WorkshopError> {
    matrix.mean(name)?;
    let most = if precision == WeightPrecision::Int8 { 127.0f32 } else { 7.0 };
    let write = move |out: &mut dyn Write| -> io::Result<()> {
        let (mut row, mut bytes) = (Vec::with_capacity(matrix.columns), Vec::new());
        for index in 0..matrix.rows {
            matrix.read(index, &mut row);
            let step = row.iter().fold(0f32, |top, w| top.max(w.abs())).max(1e-12) / most;
            bytes.clear();
            for weight in &row {
                let value = (weight / step).round_ties_even() * step;
                match matrix.dtype {
                    Dtype::F32 => bytes.extend(value.to_le_bytes()),
                    Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                    _ => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                }
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    };
    let (dtype, shape) = tensor.stored();
    Ok(Planned {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        bytes: matrix.bytes.len() as u64,
        write: Box::new(write),
    })
}

fn sub_norms(config: &ModelConfig) -> Vec<Planned<'static>> {
    let norm = |layer: usize, module: &str, width: usize| Planned {
        name: format!("model.layers.{layer}.{module}.weight"),
        dtype: Dtype::F32,
        shape: vec![width],
        bytes: 4 * width as u64,
        write: Box::new(move |out: &mut dyn Write| out.write_all(&1f32.to_le_bytes().repeat(width))),
    };
    let both = |layer| {
        let attention = norm(layer, "self_attn.attn_sub_norm", config.heads * config.head_dim);
        [attention, norm(layer, "mlp.ffn_sub_norm", config.intermediate_size)]
    };
    (0..config.layers).flat_map(both).collect()
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
    dir: &Path,
) -> Result<(), WorkshopError> {
    let path = order.model.join("config.json");
    let bytes = fs::read(&path).map_err(WorkshopError::file("read", &path))?;
    let mut value: Value = serde_json::from_slice(&bytes).map_err(WorkshopError::json(&path))?;
    if order.phase == Some(Phase::SubNorms) && !config.sub_norms {
        // What the old class left to its defaults is written out, because the new one has others.
        value["model_type"] = json!("bitnet");
        value["architectures"] = json!(["BitNetForCausalLM"]);
        value["hidden_act"] = json!(match config.activation {
            crate::model::Activation::Relu2 => "relu2",
            crate::model::Activation::Silu => "silu",
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
        let class = match order.scale {
            ScaleRule::Multiply => "autobitlinear",
            ScaleRule::Divide => "bitlinear",
        };
        let mut names = vec![json!("lm_head")];
        names.extend(kept.into_iter().map(|name| json!(name)));
        json!({
            "quant_method": "bitnet",
            "linear_class": class,
            "quantization_mode": "offline",
            "modules_to_not_convert": names,
        })
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
