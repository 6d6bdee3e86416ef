//! From a model directory to a [`Model`].

use super::head::Head;
use super::linear::Linear;
use super::weights::{Shards, Tensor, Tensors};
use super::{Layer, LayerPrecision, LinearKind, LoadError, LoadOptions, Model, ModelConfig, ScaleRule, TensorFault};
use crate::kernels::{CodeWidth, Codes, Dense, Elements, Ternary};
use half::{bf16, f16};
use std::path::Path;
use std::sync::Arc;

/// Lower bound of mean |w| when weights are made ternary, as in the reference implementation.
const SMALLEST_MEAN: f32 = 1e-5;

impl Model {
    /// Reads a model directory. Weights are copied into the kernels' layout: plain weights in their stored precision,
    /// ternary ones in 2 bits each, whatever their stored form. With [`LoadOptions::weights_cache`] that is done once, and
    /// weights are mapped from the file that is made then.
    ///
    /// # Errors
    /// [`LoadError`] names the file, the field or tensor, the rule that it breaks, and what to do about it.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        let mut config = ModelConfig::load(dir)?;
        if let Some(context) = options.context {
            if context == 0 || context > config.context {
                return Err(LoadError::Config {
                    path: dir.join("config.json"),
                    field: "max_position_embeddings".to_owned(),
                    problem: format!("is {} but a context of {context} was asked for", config.context),
                    remedy: format!("ask for 1 to {} positions", config.context),
                });
            }
            config.context = context;
        }
        let repack = |config| match super::gguf::find(dir)? {
            Some(path) => super::gguf::load(&path, config, options),
            None => Self::repack(dir, config, options),
        };
        let mut model = match &options.weights_cache {
            Some(cache) => super::repacked::load(cache, config, options, repack)?,
            None => repack(config)?,
        };
        options.shared.share(&mut model);
        Ok(model)
    }

    /// From safetensors files to the kernels' layout.
    fn repack(dir: &Path, config: ModelConfig, options: &LoadOptions) -> Result<Self, LoadError> {
        let shards = Shards::open(dir)?;
        let mut source = Source { config: &config, tensors: shards.tensors()? };
        let shape = [config.vocab_size, config.hidden_size];
        let embedding = source.tensors.take(EMBEDDING)?;
        let embedding_bytes = embedding.bytes();
        let embedding = dense(&embedding, EMBEDDING, shape[0], shape[1])?;
        let head = match source.tensors.take_if_present(HEAD) {
            Some(tensor) if config.tied => {
                if tensor.bytes() != embedding_bytes {
                    return Err(tensor.refuse(HEAD, TensorFault::TiedButDifferent));
                }
                None
            }
            Some(tensor) => Some(dense(&tensor, HEAD, shape[0], shape[1])?),
            None if config.tied => None,
            None => return Err(source.tensors.missing(HEAD)),
        };
        let head = Head::new(head, &embedding, options.head);
        let norm = source.norm("model.norm", config.hidden_size)?;
        // Not `with_capacity`: the number of layers is only believed as far as tensors are found.
        let mut layers = Vec::new();
        for index in 0..config.layers {
            layers.push(source.layer(index)?);
        }
        source.tensors.finish()?;
        Self::new(config, options, embedding, layers, norm, head)
    }
}

impl Model {
    /// A model whose weights are in memory.
    pub(super) fn new(
        config: ModelConfig,
        options: &LoadOptions,
        embedding: Arc<Dense>,
        layers: Vec<Layer>,
        norm: Vec<f32>,
        head: Head,
    ) -> Result<Self, LoadError> {
        let (cpu, kv_bits) = (options.cpu()?, options.kv_bits.min(config.kv_bits));
        Ok(Self { config, cpu, kv_bits, embedding, layers, norm, head, reference: None, weights_file: None })
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn dense(tensor: &Tensor<'_>, name: &str, rows: usize, columns: usize) -> Result<Arc<Dense>, LoadError> {
    Ok(Arc::new(Dense::new(rows, columns, &tensor.floats(name, &[rows, columns])?)))
}

fn codes(
    tensor: &Tensor<'_>,
    name: &str,
    width: CodeWidth,
    rows: usize,
    columns: usize,
    mut fill: impl FnMut(usize, &mut [u8]) -> f32,
) -> Result<Linear, LoadError> {
    if columns > Codes::MOST_COLUMNS {
        return Err(tensor.refuse(name, TensorFault::Columns { most: Codes::MOST_COLUMNS, found: columns }));
    }
    let codes = Codes::from_codes(width, rows, columns, |row, codes| Ok(fill(row, codes)));
    codes.map(|codes| Linear::Codes(Arc::new(codes)))
}

struct Source<'a> {
    config: &'a ModelConfig,
    tensors: Tensors<'a>,
}

impl Source<'_> {
    fn layer(&mut self, index: usize) -> Result<Layer, LoadError> {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        Ok(Layer {
            input_norm: self.norm(&name("input_layernorm"), hidden)?,
            query: self.linear(&name("self_attn.q_proj"), wide, hidden)?,
            key: self.linear(&name("self_attn.k_proj"), narrow, hidden)?,
            value: self.linear(&name("self_attn.v_proj"), narrow, hidden)?,
            attention_sub_norm: self.sub_norm(&name("self_attn.attn_sub_norm"), wide)?,
            output: self.linear(&name("self_attn.o_proj"), hidden, wide)?,
            post_attention_norm: self.norm(&name("post_attention_layernorm"), hidden)?,
            gate: self.linear(&name("mlp.gate_proj"), inner, hidden)?,
            up: self.linear(&name("mlp.up_proj"), inner, hidden)?,
            ffn_sub_norm: self.sub_norm(&name("mlp.ffn_sub_norm"), inner)?,
            down: self.linear(&name("mlp.down_proj"), hidden, inner)?,
        })
    }

    fn norm(&mut self, module: &str, width: usize) -> Result<Vec<f32>, LoadError> {
        let name = format!("{module}.weight");
        self.tensors.take(&name)?.vector(&name, width)
    }

    fn sub_norm(&mut self, module: &str, width: usize) -> Result<Option<Vec<f32>>, LoadError> {
        if self.config.sub_norms { self.norm(module, width).map(Some) } else { Ok(None) }
    }

    fn linear(&mut self, module: &str, rows: usize, columns: usize) -> Result<Linear, LoadError> {
        let kind = match (self.config.precisions.get(module), self.config.linear) {
            (Some(LayerPrecision::Full), _) => LinearKind::Dense,
            (Some(LayerPrecision::Binary), LinearKind::Packed(rule)) => {
                return self.binary(module, rows, columns, rule);
            }
            (Some(LayerPrecision::Int4), _) => return self.integers(module, rows, columns, CodeWidth::Int4),
            (Some(LayerPrecision::Int8), _) => return self.integers(module, rows, columns, CodeWidth::Int8),
            (_, kind) => kind,
        };
        match kind {
            LinearKind::Dense => {
                let name = format!("{module}.weight");
                let tensor = self.tensors.take(&name)?;
                Ok(Linear::Dense(dense(&tensor, &name, rows, columns)?))
            }
            LinearKind::Packed(rule) => self.packed(module, rows, columns, rule),
            LinearKind::Online => self.online(module, rows, columns),
        }
    }

    /// Eight planes of `ceil(rows / 8)` rows in the bits of a byte, lowest first; 0 is -1.
    fn binary(&mut self, module: &str, rows: usize, columns: usize, rule: ScaleRule) -> Result<Linear, LoadError> {
        let name = format!("{module}.weight");
        let tensor = self.tensors.take(&name)?;
        let plane = rows.div_ceil(8);
        let bytes = tensor.packed(&name, &[plane, columns])?;
        let scale = self.scale(module)?;
        let factor = match rule {
            ScaleRule::Multiply => scale,
            ScaleRule::Divide => scale.recip(),
        };
        codes(&tensor, &name, CodeWidth::Binary, rows, columns, |row, codes| {
            let (bit, row) = (row / plane, row % plane);
            codes.iter_mut().zip(&bytes[row * columns..]).for_each(|(code, byte)| *code = (byte >> bit) & 1);
            factor
        })
    }

    /// 4 bits: two planes of `ceil(rows / 2)` rows in a byte, lower bits first, code = weight + 8. 8 bits: a signed byte.
    fn integers(&mut self, module: &str, rows: usize, columns: usize, width: CodeWidth) -> Result<Linear, LoadError> {
        let name = format!("{module}.weight");
        let tensor = self.tensors.take(&name)?;
        let plane = if width == CodeWidth::Int4 { rows.div_ceil(2) } else { rows };
        let bytes = match width {
            CodeWidth::Int4 => tensor.packed(&name, &[plane, columns])?,
            _ => tensor.signed(&name, &[rows, columns])?,
        };
        let scales = format!("{module}.weight_scale");
        let tensor_of_scales = self.tensors.take(&scales)?;
        let factors = tensor_of_scales.vector(&scales, rows)?;
        if let Some(bad) = factors.iter().find(|factor| !factor.is_finite() || **factor < 0.0) {
            return Err(tensor_of_scales.refuse(&scales, TensorFault::Scale(*bad)));
        }
        codes(&tensor, &name, width, rows, columns, |row, codes| {
            let (part, at) = (row / plane, row % plane);
            let line = codes.iter_mut().zip(&bytes[at * columns..]);
            match width {
                CodeWidth::Int4 => line.for_each(|(code, byte)| *code = (byte >> (4 * part)) & 15),
                // From two's complement to weight + 128.
                _ => line.for_each(|(code, byte)| *code = byte ^ 0x80),
            }
            factors[row]
        })
    }

    /// The scale of a whole matrix.
    fn scale(&mut self, module: &str) -> Result<f32, LoadError> {
        let name = format!("{module}.weight_scale");
        let tensor = self.tensors.take(&name)?;
        let scale = tensor.vector(&name, 1)?[0];
        if !(scale.is_finite() && scale > 0.0) {
            return Err(tensor.refuse(&name, TensorFault::Scale(scale)));
        }
        Ok(scale)
    }

    /// Four planes of `ceil(rows / 4)` rows in the four 2-bit fields of a byte, lowest bits first; code = weight + 1.
    fn packed(&mut self, module: &str, rows: usize, columns: usize, rule: ScaleRule) -> Result<Linear, LoadError> {
        let name = format!("{module}.weight");
        let tensor = self.tensors.take(&name)?;
        let plane = rows.div_ceil(4);
        let bytes = tensor.packed(&name, &[plane, columns])?;
        let weights = Ternary::from_codes(
            rows,
            columns,
            |row, codes| {
                let (plane_index, plane_row) = (row / plane, row % plane);
                let bytes = &bytes[plane_row * columns..(plane_row + 1) * columns];
                codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = (byte >> (2 * plane_index)) & 3);
                Ok(())
            },
            |row, column| tensor.refuse(&name, TensorFault::Code { row, column }),
        )?;
        let scale = self.scale(module)?;
        Ok(Linear::Ternary { weights: Arc::new(weights), scale, rule })
    }

    /// `w = clamp(round half to even(w · s), -1, 1)` with `s = 1 / mean |w|`; products are divided by `s`.
    fn online(&mut self, module: &str, rows: usize, columns: usize) -> Result<Linear, LoadError> {
        let name = format!("{module}.weight");
        let tensor = self.tensors.take(&name)?;
        let floats = match tensor.floats(&name, &[rows, columns])? {
            Elements::F32(v) => v,
            Elements::F16(v) => v.into_iter().map(f16::to_f32).collect(),
            Elements::Bf16(v) => v.into_iter().map(bf16::to_f32).collect(),
        };
        let mean = floats.iter().map(|w| f64::from(w.abs())).sum::<f64>() / floats.len() as f64;
        // A comparison, not `max`, which would hide NaN.
        let mean = if (mean as f32) < SMALLEST_MEAN { SMALLEST_MEAN } else { mean as f32 };
        let scale = mean.recip();
        if !(scale.is_finite() && scale > 0.0) {
            return Err(tensor.refuse(&name, TensorFault::Scale(scale)));
        }
        let weights = Ternary::from_codes(
            rows,
            columns,
            |row, codes| {
                let from = &floats[row * columns..(row + 1) * columns];
                for (code, weight) in codes.iter_mut().zip(from) {
                    *code = ((weight * scale).round_ties_even().clamp(-1.0, 1.0) + 1.0) as u8;
                }
                Ok(())
            },
            |row, column| tensor.refuse(&name, TensorFault::Code { row, column }),
        )?;
        Ok(Linear::Ternary { weights: Arc::new(weights), scale, rule: ScaleRule::Divide })
    }
}
