//! What a model directory holds: tensors with their precision, sizes, memory, and whether two directories are a pair.

use super::WorkshopError;
use crate::model::{
    Activation, Held, LayerPrecision, LinearKind, ModelConfig, ScaleRule, Shards, StoredTensor, Text, digest,
    each_tensor,
};
use half::{bf16, f16};
use safetensors::Dtype;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Everything that is known of a model directory without running it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The directory as it was named.
    pub path: String,
    /// Content digest: what `persistentVolumeClaim.digest` of a rollout names.
    pub digest: String,
    /// Shape and arithmetic.
    pub model: Shape,
    /// Tokenizer and template; absent where there is no tokenizer.json (such a model runs but is not served).
    pub text: Option<TextFacts>,
    /// Weights in all, scales not counted.
    pub weights: u64,
    /// Bytes of all tensors as stored.
    pub bytes: u64,
    /// Tensors, weights and bytes by precision.
    pub precisions: BTreeMap<&'static str, Total>,
    /// What serving needs.
    pub memory: Memory,
    /// Every tensor, by name; a scale is listed with the matrix that it belongs to.
    pub tensors: Vec<TensorFact>,
}

/// Shape and arithmetic of a model, from config.json.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// `bitnet` (norms inside attention and feed-forward part) or `llama`.
    pub class: &'static str,
    /// How the decoder's linear layers are stored: `plain`, `packed, scale multiplies`, `packed, scale divides`, or
    /// `ternary when loaded`.
    pub linear: &'static str,
    /// Bits of the activations that q, k, v and gate, up read, where these are quantised.
    pub activation_bits: usize,
    /// Most bits of cached keys and values; 32: as many as a server likes.
    pub kv_bits: usize,
    /// Gate function.
    pub activation: &'static str,
    /// Token ids.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub ffn: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// The embedding is the head.
    pub tied: bool,
    /// Ids that end a text.
    pub eos: Vec<u32>,
}

/// What two arms of a rollout must have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TextFacts {
    /// SHA-256 of tokenizer.json.
    pub tokenizer: String,
    /// SHA-256 of the chat template; of nothing, where there is none.
    pub chat_template: String,
    /// Whether there is a chat template.
    pub has_template: bool,
}

/// Sum over tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// How many.
    pub tensors: u64,
    /// Weights in them.
    pub weights: u64,
    /// Bytes as stored, with scales.
    pub bytes: u64,
}

/// Memory that serving needs, in bytes. Numbers alone: padding, scales of quantised caches and the program (some
/// 20 MB) come on top.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Weights as the worker holds them: ternary ones in 2 bits, others as stored.
    pub weights: u64,
    /// Keys and values by bits per number, up to those that the model was made for.
    pub kv: Vec<KvMemory>,
}

/// Keys and values at one precision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KvMemory {
    /// Bits per number.
    pub bits: u32,
    /// Bytes per token of one sequence.
    pub bytes_per_token: f64,
    /// Bytes of one sequence that fills the context.
    pub full_context: u64,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TensorFact {
    /// Full name.
    pub name: String,
    /// File that holds it.
    pub file: String,
    /// `ternary`, `binary` (1-bit codes, or 2-bit codes without a zero), `int4`, `int8`, `fp16`, `bf16`, `fp32`, or the
    /// stored type's name.
    pub precision: &'static str,
    /// Shape of the matrix, not of its packed form.
    pub shape: Vec<usize>,
    /// Number of weights.
    pub weights: u64,
    /// Bytes as stored, with its scale.
    pub bytes: u64,
    /// Scale of a packed matrix, as stored; none where each row has a factor of its own.
    pub scale: Option<f32>,
    /// Share of weights that are exactly 0.
    pub zeros: f64,
    /// Weights that are NaN or infinite, or 2-bit codes that mean nothing.
    pub broken: u64,
}

/// Reads a model directory; every byte of it once for the digest and once for the facts.
///
/// # Errors
/// [`WorkshopError::Load`] if the configuration, a weight file or the tokenizer is not what the formats say.
pub fn inspect(dir: &Path) -> Result<Inspection, WorkshopError> {
    let load = || WorkshopError::load(dir);
    let config = ModelConfig::load(dir).map_err(load())?;
    let (facts, text) = if let Some(facts) = gguf_facts(dir)? {
        // A GGUF file may carry the tokenizer, or one that it has no name for lies beside it.
        (facts, text_facts(dir).ok())
    } else {
        let text = if dir.join("tokenizer.json").exists() { Some(text_facts(dir)?) } else { None };
        (safetensors_facts(dir, &config)?, text)
    };
    let mut precisions: BTreeMap<&'static str, Total> = BTreeMap::new();
    for fact in &facts {
        let total = precisions.entry(fact.precision).or_default();
        *total = Total {
            tensors: total.tensors + 1,
            weights: total.weights + fact.weights,
            bytes: total.bytes + fact.bytes,
        };
    }
    Ok(Inspection {
        path: dir.display().to_string(),
        digest: digest(dir).map_err(load())?,
        text,
        weights: facts.iter().map(|f| f.weights).sum(),
        bytes: facts.iter().map(|f| f.bytes).sum(),
        precisions,
        memory: memory(&config, &facts),
        model: shape(&config),
        tensors: facts,
    })
}

fn safetensors_facts(dir: &Path, config: &ModelConfig) -> Result<Vec<TensorFact>, WorkshopError> {
    let load = || WorkshopError::load(dir);
    let shards = Shards::open(dir).map_err(load())?;
    let tensors = shards.tensors().map_err(load())?;
    let scales: BTreeMap<&str, (Option<f32>, u64)> = tensors
        .iter()
        .filter_map(|(name, tensor)| {
            let module = name.strip_suffix(".weight_scale")?;
            // Factors per row are many numbers, not one.
            let whole = tensor.stored().1.iter().product::<usize>() == 1;
            Some((module, (whole.then(|| first_number(tensor)).flatten(), tensor.bytes().len() as u64)))
        })
        .collect();
    let all = tensors.iter().filter(|(name, _)| !name.ends_with(".weight_scale")).map(|(name, tensor)| {
        let scale = name.strip_suffix(".weight").and_then(|module| scales.get(module));
        fact(config, name, tensor, scale.copied())
    });
    Ok(all.collect())
}

/// Tensors of a GGUF file; `None` where the directory holds none.
fn gguf_facts(dir: &Path) -> Result<Option<Vec<TensorFact>>, WorkshopError> {
    let mut facts = Vec::new();
    let file = each_tensor(dir, |tensor| {
        let (rows, columns) = tensor.shape;
        let weights = (rows * columns) as u64;
        let (precision, zeros, broken, bytes, scale) = match tensor.elements {
            Held::Floats(dtype, bytes) => {
                let (precision, zeros, broken) = numbers(dtype, bytes);
                (precision, zeros, broken, bytes.len() as u64, None)
            }
            Held::Codes(bytes, scale) => {
                let mut counts = [0u64; 4];
                bytes.iter().flat_map(|byte| [0, 2, 4, 6].map(|bit| byte >> bit & 3)).for_each(|code| {
                    counts[usize::from(code)] += 1;
                });
                let precision = if counts[1] == 0 { "binary" } else { "ternary" };
                (precision, counts[1], counts[3], bytes.len() as u64 + 4, Some(scale))
            }
        };
        facts.push(TensorFact {
            name: tensor.name.to_owned(),
            file: String::new(),
            precision,
            shape: if rows == 1 { vec![columns] } else { vec![rows, columns] },
            weights,
            bytes,
            scale,
            zeros: zeros as f64 / weights.max(1) as f64,
            broken,
        });
    })
    .map_err(WorkshopError::load(dir))?;
    Ok(file.map(|file| {
        for fact in &mut facts {
            fact.file.clone_from(&file);
        }
        facts
    }))
}

fn text_facts(dir: &Path) -> Result<TextFacts, WorkshopError> {
    let text = Text::load(dir).map_err(WorkshopError::load(dir))?;
    Ok(TextFacts {
        tokenizer: text.tokenizer_hash().to_owned(),
        chat_template: text.template_hash().to_owned(),
        has_template: text.has_template(),
    })
}

fn shape(config: &ModelConfig) -> Shape {
    Shape {
        class: if config.sub_norms { "bitnet" } else { "llama" },
        linear: match config.linear {
            LinearKind::Dense => "plain",
            LinearKind::Packed(ScaleRule::Multiply) => "packed, scale multiplies",
            LinearKind::Packed(ScaleRule::Divide) => "packed, scale divides",
            LinearKind::Online => "ternary when loaded",
        },
        activation_bits: config.input_bits.bits(),
        kv_bits: config.kv_bits.bits(),
        activation: match config.activation {
            Activation::Relu2 => "relu2",
            Activation::Silu => "silu",
        },
        vocabulary: config.vocab_size,
        width: config.hidden_size,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        ffn: config.intermediate_size,
        context: config.context,
        rope_theta: config.rope_theta,
        tied: config.tied,
        eos: config.eos.clone(),
    }
}

/// Bits of a cached number that the formats of this project know.
const KV_BITS: [u32; 4] = [16, 8, 4, 3];

fn memory(config: &ModelConfig, facts: &[TensorFact]) -> Memory {
    let is_linear = |fact: &TensorFact| fact.name.contains("_proj.");
    let held = |fact: &TensorFact| match fact.precision {
        "ternary" | "binary" => fact.weights.div_ceil(4).min(fact.bytes),
        _ if config.linear == LinearKind::Online && is_linear(fact) => fact.weights.div_ceil(4),
        _ => fact.bytes,
    };
    let numbers = (config.layers * 2 * config.kv_heads * config.head_dim) as u64;
    let served = KV_BITS.into_iter().filter(|bits| *bits as usize <= config.kv_bits.bits());
    let kv = served.map(|bits| KvMemory {
        bits,
        bytes_per_token: numbers as f64 * f64::from(bits) / 8.0,
        full_context: (numbers * config.context as u64 * u64::from(bits)).div_ceil(8),
    });
    // A head that repeats a tied embedding is read and dropped.
    let weights = facts.iter().filter(|f| !(config.tied && f.name == "lm_head.weight")).map(held).sum();
    Memory { weights, kv: kv.collect() }
}

/// The first number of a tensor of floats.
pub(super) fn first_number(tensor: &StoredTensor<'_>) -> Option<f32> {
    let bytes = tensor.bytes();
    match tensor.stored().0 {
        Dtype::F32 => Some(f32::from_le_bytes(*bytes.first_chunk()?)),
        Dtype::F16 => Some(f16::from_le_bytes(*bytes.first_chunk()?).to_f32()),
        Dtype::BF16 => Some(bf16::from_le_bytes(*bytes.first_chunk()?).to_f32()),
        _ => None,
    }
}

fn fact(config: &ModelConfig, name: &str, tensor: &StoredTensor<'_>, scale: Option<(Option<f32>, u64)>) -> TensorFact {
    let (dtype, stored) = tensor.stored();
    let bytes = tensor.bytes();
    let file = tensor.file().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let layer = name.strip_suffix(".weight").and_then(|module| config.precisions.get(module));
    let (precision, shape, zeros, broken) = match (dtype, stored, rows_of(config, name)) {
        (Dtype::U8, [packed, columns], Some(rows))
            if layer == Some(&LayerPrecision::Binary) && rows.div_ceil(8) == *packed =>
        {
            ("binary", vec![rows, *columns], 0, 0)
        }
        (Dtype::U8, [packed, columns], Some(rows))
            if layer == Some(&LayerPrecision::Int4) && rows.div_ceil(2) == *packed =>
        {
            // With an odd number of rows, the upper half of the last one is nobody's.
            let upper = &bytes[..(rows / 2 * columns).min(bytes.len())];
            let zeros = bytes.iter().filter(|b| **b & 15 == 8).count() + upper.iter().filter(|b| **b >> 4 == 8).count();
            ("int4", vec![rows, *columns], zeros as u64, 0)
        }
        (Dtype::I8, ..) => ("int8", stored.to_vec(), bytes.iter().map(|b| u64::from(*b == 0)).sum(), 0),
        (Dtype::U8, [packed, columns], Some(rows)) if rows.div_ceil(4) == *packed => {
            let counts = codes(bytes, rows, *columns);
            let precision = if counts[1] == 0 { "binary" } else { "ternary" };
            (precision, vec![rows, *columns], counts[1], counts[3])
        }
        _ => {
            let (precision, zeros, broken) = numbers(dtype, bytes);
            (precision, stored.to_vec(), zeros, broken)
        }
    };
    let weights = shape.iter().map(|n| *n as u64).product::<u64>();
    TensorFact {
        name: name.to_owned(),
        file,
        precision,
        weights,
        bytes: bytes.len() as u64 + scale.map_or(0, |s| s.1),
        scale: scale.and_then(|s| s.0),
        zeros: zeros as f64 / weights.max(1) as f64,
        broken,
        shape,
    }
}

/// Rows of a linear layer: a packed matrix stores only a quarter of their number, rounded up.
pub(super) fn rows_of(config: &ModelConfig, name: &str) -> Option<usize> {
    let module = name.strip_suffix(".weight")?.rsplit('.').next()?;
    match module {
        "q_proj" => Some(config.heads * config.head_dim),
        "k_proj" | "v_proj" => Some(config.kv_heads * config.head_dim),
        "o_proj" | "down_proj" => Some(config.hidden_size),
        "gate_proj" | "up_proj" => Some(config.intermediate_size),
        _ => None,
    }
}

/// How often each 2-bit code occurs among the rows that exist.
fn codes(bytes: &[u8], rows: usize, columns: usize) -> [u64; 4] {
    let plane = rows.div_ceil(4);
    let mut counts = [0u64; 4];
    for (index, row) in bytes.chunks_exact(columns.max(1)).enumerate() {
        for field in 0..4 {
            if index + field * plane < rows {
                for byte in row {
                    counts[usize::from(byte >> (2 * field) & 3)] += 1;
                }
            }
        }
    }
    counts
}

/// Name of a type, and how many of its values are 0 and not finite.
fn numbers(dtype: Dtype, bytes: &[u8]) -> (&'static str, u64, u64) {
    let count = |values: &mut dyn Iterator<Item = f32>| {
        values.fold((0, 0), |(zeros, broken), x| (zeros + u64::from(x == 0.0), broken + u64::from(!x.is_finite())))
    };
    let (pairs, quads) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
    let (name, (zeros, broken)) = match dtype {
        Dtype::F16 => ("fp16", count(&mut pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()))),
        Dtype::BF16 => ("bf16", count(&mut pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()))),
        Dtype::F32 => ("fp32", count(&mut quads.iter().map(|b| f32::from_le_bytes(*b)))),
        Dtype::U8 => ("bytes", (0, 0)),
        _ => ("other", (0, 0)),
    };
    (name, zeros, broken)
}

/// One rule of a pair and how two models meet it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Name on the worker's internal port.
    pub field: &'static str,
    /// Of the first model.
    pub baseline: String,
    /// Of the second one.
    pub candidate: String,
    /// It is met.
    pub met: bool,
    /// What would make it so.
    pub remedy: &'static str,
}

/// The rules by which the operator compares two arms before the first live request: tokenizer, template, vocabulary and
/// end of text must be equal, and the candidate's context at least the baseline's.
pub fn pair_rules(baseline: &Inspection, candidate: &Inspection) -> Vec<Rule> {
    let equal = |field, of: &dyn Fn(&Inspection) -> String, remedy| {
        let (baseline, candidate) = (of(baseline), of(candidate));
        Rule { field, met: baseline == candidate, baseline, candidate, remedy }
    };
    let text = |of: fn(&TextFacts) -> &String| {
        move |i: &Inspection| i.text.as_ref().map_or_else(|| "none: no tokenizer.json".to_owned(), |t| of(t).clone())
    };
    let (a, b) = (baseline.model.context, candidate.model.context);
    vec![
        equal("tokenizer", &text(|t| &t.tokenizer), "use the baseline's tokenizer.json, byte for byte"),
        equal("chatTemplate", &text(|t| &t.chat_template), "use the baseline's chat template, byte for byte"),
        equal("vocabulary", &|i| i.model.vocabulary.to_string(), "train the candidate with the baseline's vocabulary"),
        equal("eos", &|i| format!("{:?}", i.model.eos), "set eos_token_id in both generation_config.json alike"),
        Rule {
            field: "context",
            baseline: a.to_string(),
            candidate: b.to_string(),
            met: b >= a,
            remedy: "the candidate must take the baseline's longest sequence: serve the baseline with a shorter context",
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_rows_that_do_not_exist_are_not_counted() {
        // Five rows of one column: two bytes, planes of two rows; rows 0, 2, 4 and 1, 3.
        let weights = [-1i8, 0, 1, 1, 0];
        let packed = super::super::ternary::pack(&weights, 1);
        assert_eq!(codes(&packed, 5, 1), [1, 2, 2, 0]);
        assert_eq!(codes(&[0b1111_1111, 0b0000_0011], 5, 1), [1, 0, 0, 4]);
    }

    #[test]
    fn numbers_that_are_none_are_counted() {
        let bytes: Vec<u8> = [0.0f32, 1.0, f32::NAN, -0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(numbers(Dtype::F32, &bytes), ("fp32", 2, 1));
        let bytes: Vec<u8> = [f16::INFINITY, f16::ZERO].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(numbers(Dtype::F16, &bytes), ("fp16", 1, 1));
    }
}
