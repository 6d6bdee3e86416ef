//! From a GGUF file to a [`Model`].

use super::reader::{Gguf, I2_S_BLOCK, Kind, Tensor};
use crate::kernels::{Dense, Elements, Ternary};
use crate::model::head::Head;
use crate::model::linear::Linear;
use crate::model::{Layer, LoadError, LoadOptions, Model, ModelConfig, ScaleRule, TensorFault};
use half::{bf16, f16};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Reads the model of a GGUF file; `config` is its configuration, with the context in force.
pub(in crate::model) fn load(path: &Path, config: ModelConfig, options: &LoadOptions) -> Result<Model, LoadError> {
    let file = super::open(path)?;
    let source = Source { file: &file, config: &config, used: RefCell::default() };
    let embedding = Arc::new(source.dense("token_embd.weight", config.vocab_size, config.hidden_size)?);
    let head =
        (!config.tied).then(|| source.dense("output.weight", config.vocab_size, config.hidden_size)).transpose()?;
    let head = Head::new(head.map(Arc::new), &embedding, options.head);
    let norm = source.norm("output_norm.weight", config.hidden_size)?;
    // Not `with_capacity`: the number of layers is only believed as far as tensors are found.
    let mut layers = Vec::new();
    for index in 0..config.layers {
        layers.push(source.layer(index)?);
    }
    source.finish()?;
    Model::new(config, options, embedding, layers, norm, head)
}

struct Source<'a> {
    file: &'a Gguf,
    config: &'a ModelConfig,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Source<'a> {
    fn refuse(&self, name: &str, fault: TensorFault) -> LoadError {
        LoadError::Tensor { path: self.file.path().to_path_buf(), tensor: name.to_owned(), fault }
    }

    fn take(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor<'a>, LoadError> {
        self.used.borrow_mut().insert(name.to_owned());
        self.file.tensor(name, rows, columns)?.ok_or_else(|| self.refuse(name, TensorFault::Missing))
    }

    /// Refuses tensors that nothing used: a model that ignores weights gives wrong answers without a sign.
    fn finish(&self) -> Result<(), LoadError> {
        let used = self.used.borrow();
        let unused = self.file.names().find(|name| !used.contains(*name));
        unused.map_or(Ok(()), |name| Err(self.refuse(name, TensorFault::Unexpected)))
    }

    fn layer(&self, index: usize) -> Result<Layer, LoadError> {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let sub_norm = |part: &str, width| config.sub_norms.then(|| self.norm(&name(part), width)).transpose();
        let same = |row: usize| row;
        let turned = |row: usize| self.turned(row);
        Ok(Layer {
            input_norm: self.norm(&name("attn_norm"), hidden)?,
            query: self.linear(&name("attn_q"), wide, hidden, &turned)?,
            key: self.linear(&name("attn_k"), narrow, hidden, &turned)?,
            value: self.linear(&name("attn_v"), narrow, hidden, &same)?,
            attention_sub_norm: sub_norm("attn_sub_norm", wide)?,
            output: self.linear(&name("attn_output"), hidden, wide, &same)?,
            post_attention_norm: self.norm(&name("ffn_norm"), hidden)?,
            gate: self.linear(&name("ffn_gate"), inner, hidden, &same)?,
            up: self.linear(&name("ffn_up"), inner, hidden, &same)?,
            ffn_sub_norm: sub_norm("ffn_sub_norm", inner)?,
            down: self.linear(&name("ffn_down"), hidden, inner, &same)?,
        })
    }

    /// Where a row of q or k is in the file. The architecture `llama` has rows that are rotated together beside each
    /// other; here row `i` of a head turns with row `i + half`.
    fn turned(&self, row: usize) -> usize {
        if self.config.sub_norms {
            return row;
        }
        let width = self.config.head_dim;
        let (head, within) = (row / width, row % width);
        head * width + within % (width / 2) * 2 + within / (width / 2)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.take(name, 1, width)?;
        match self.elements(name, tensor, &|row| row)? {
            Elements::F32(v) => Ok(v),
            Elements::F16(v) => Ok(v.into_iter().map(f16::to_f32).collect()),
            Elements::Bf16(v) => Ok(v.into_iter().map(bf16::to_f32).collect()),
        }
    }

    fn dense(&self, name: &str, rows: usize, columns: usize) -> Result<Dense, LoadError> {
        let tensor = self.take(name, rows, columns)?;
        Ok(Dense::new(rows, columns, &self.elements(name, tensor, &|row| row)?))
    }

    fn linear(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
        place: &dyn Fn(usize) -> usize,
    ) -> Result<Linear, LoadError> {
        let tensor = self.take(name, rows, columns)?;
        if tensor.kind != Kind::I2S {
            return Ok(Linear::Dense(Arc::new(Dense::new(rows, columns, &self.elements(name, tensor, place)?))));
        }
        let width = columns / 4;
        let weights = Ternary::from_codes(
            rows,
            columns,
            |row, codes| {
                let bytes = &tensor.bytes[place(row) * width..][..width];
                unpack(bytes, codes);
                Ok(())
            },
            |row, column| self.refuse(name, TensorFault::Code { row, column }),
        )?;
        Ok(Linear::Ternary { weights: Arc::new(weights), scale: tensor.scale, rule: ScaleRule::Multiply })
    }

    fn elements(&self, name: &str, tensor: Tensor<'_>, place: &dyn Fn(usize) -> usize) -> Result<Elements, LoadError> {
        let Tensor { kind, rows, columns, bytes, .. } = tensor;
        let size = if kind == Kind::F32 { 4 } else { 2 };
        let ordered = (0..rows).flat_map(|row| bytes[place(row) * columns * size..][..columns * size].iter().copied());
        let ordered: Vec<u8> = ordered.collect();
        let (pairs, quads) = (ordered.as_chunks::<2>().0, ordered.as_chunks::<4>().0);
        match kind {
            Kind::F32 => Ok(Elements::F32(quads.iter().map(|b| f32::from_le_bytes(*b)).collect())),
            Kind::F16 => Ok(Elements::F16(pairs.iter().map(|b| f16::from_le_bytes(*b)).collect())),
            Kind::Bf16 => Ok(Elements::Bf16(pairs.iter().map(|b| bf16::from_le_bytes(*b)).collect())),
            Kind::I2S => Err(self.refuse(
                name,
                TensorFault::Dtype {
                    expected: "F32, F16 or BF16",
                    found: "I2_S".to_owned(),
                    remedy: "only linear layers are ternary; convert the checkpoint again",
                },
            )),
        }
    }
}

/// Codes of one row: each block of 32 bytes holds 128 columns, byte `p` the columns `p`, `32 + p`, `64 + p` and `96 + p`
/// from its highest two bits to its lowest.
fn unpack(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(I2_S_BLOCK / 4).zip(codes.chunks_exact_mut(I2_S_BLOCK)) {
        for (plane, codes) in codes.chunks_exact_mut(I2_S_BLOCK / 4).enumerate() {
            codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = (byte >> (6 - 2 * plane)) & 3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_lie_in_four_planes_highest_bits_first() {
        let mut bytes = [0_u8; 64];
        bytes[5] = 0b10_01_00_10;
        bytes[32] = 0b01_10_01_00;
        let mut codes = [9; 256];
        unpack(&bytes, &mut codes);
        assert_eq!([codes[5], codes[37], codes[69], codes[101]], [2, 1, 0, 2]);
        assert_eq!([codes[128], codes[160], codes[192], codes[224]], [1, 2, 1, 0]);
        assert_eq!(codes.iter().filter(|code| **code > 0).count(), 6);
    }
}
