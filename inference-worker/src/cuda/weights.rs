//! Weights in device memory, in the order of the tensor cores.

use super::CudaError;
use super::gpu::{Gpu, WIDEST_HEADS, WIDEST_ROW};
use super::params::{Address, Kind, Order, Repack};
use crate::kernels::{ActivationBits, Floats, KvBits};
use crate::model::{LayerParts, Matrix, Model, ModelConfig};
use cudarc::driver::CudaSlice;

/// Rows of a group.
pub(super) const GROUP: usize = 16;
/// Bytes of input of a chunk: 128 int8 or 64 floats.
pub(super) const CHUNK_BYTES: usize = 128;

/// One or several matrices with the same input, packed.
pub(super) struct Packed {
    pub(super) kind: Kind,
    pub(super) groups: usize,
    pub(super) chunks: usize,
    weights: CudaSlice<u8>,
    /// Ternary: divisor and factor of the rows g and g + 8 of each group.
    rule: Option<CudaSlice<u8>>,
}

/// Weights of one decoder layer.
pub(super) struct Layer {
    pub(super) input_norm: CudaSlice<u8>,
    pub(super) qkv: Packed,
    pub(super) attention_sub_norm: Option<CudaSlice<u8>>,
    pub(super) output: Packed,
    pub(super) post_attention_norm: CudaSlice<u8>,
    pub(super) gate_up: Packed,
    pub(super) ffn_sub_norm: Option<CudaSlice<u8>>,
    pub(super) down: Packed,
}

/// All weights of a model.
pub(super) struct Weights {
    pub(super) embedding: Packed,
    /// `None`: the embedding is the head.
    head: Option<Packed>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: CudaSlice<u8>,
    /// Cosine and sine of every position, `head_dim / 2` pairs each.
    pub(super) angles: CudaSlice<u8>,
}

impl Weights {
    /// Copies a model's weights, each matrix in the host's layout first, and reorders them there.
    pub(super) fn new(gpu: &Gpu, model: &Model) -> Result<Self, CudaError> {
        check(model.config())?;
        if model.is_screened() {
            return Err(CudaError::Model { rule: "the head must be exact (--head exact)".to_owned() });
        }
        let config = model.config();
        let needed = model.bytes_per_pass() + model.embedding().bytes();
        let free = gpu.free_bytes()?;
        if needed > free {
            return Err(CudaError::Memory { needed, free });
        }
        let weights = Self {
            embedding: plain(gpu, Matrix::Dense(model.embedding()))?,
            head: model.own_head().map(|head| plain(gpu, Matrix::Dense(head))).transpose()?,
            layers: model.layer_parts().map(|layer| Layer::new(gpu, config, &layer)).collect::<Result<_, _>>()?,
            norm: gpu.copy(model.last_norm())?,
            angles: gpu.copy(&model.angle_table())?,
        };
        gpu.wait()?;
        Ok(weights)
    }

    pub(super) fn head(&self) -> &Packed {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl Layer {
    fn new(gpu: &Gpu, config: &ModelConfig, layer: &LayerParts<'_>) -> Result<Self, CudaError> {
        let norm = |weight: Option<&[f32]>| weight.map(|weight| gpu.copy(weight)).transpose();
        let rotary = |matrix| Piece { matrix, order: Order::Rotary, head_dim: config.head_dim };
        let piece = |matrix, order| Piece { matrix, order, head_dim: config.head_dim };
        Ok(Self {
            input_norm: gpu.copy(layer.input_norm)?,
            qkv: pack(gpu, &[rotary(layer.query), rotary(layer.key), piece(layer.value, Order::Plain)])?,
            attention_sub_norm: norm(layer.attention_sub_norm)?,
            output: plain(gpu, layer.output)?,
            post_attention_norm: gpu.copy(layer.post_attention_norm)?,
            gate_up: pack(gpu, &[piece(layer.gate, Order::Lower), piece(layer.up, Order::Upper)])?,
            ffn_sub_norm: norm(layer.ffn_sub_norm)?,
            down: plain(gpu, layer.down)?,
        })
    }
}

impl Packed {
    pub(super) fn weights(&self, gpu: &Gpu) -> Address {
        gpu.address(&self.weights)
    }

    pub(super) fn rule(&self, gpu: &Gpu) -> Address {
        self.rule.as_ref().map_or(0, |rule| gpu.address(rule))
    }

    /// Bytes of a row of input.
    pub(super) fn input_bytes(&self) -> usize {
        self.chunks * CHUNK_BYTES
    }

    /// Numbers in a row of input, with its padding.
    pub(super) fn input_stride(&self) -> usize {
        self.input_bytes() / if self.kind == Kind::Ternary { 1 } else { 2 }
    }
}

/// What the kernels ask of a model's shape.
fn check(config: &ModelConfig) -> Result<(), CudaError> {
    let ModelConfig { hidden_size, heads, head_dim, intermediate_size, .. } = *config;
    let refuse = |rule: String| Err(CudaError::Model { rule });
    if config.input_bits != ActivationBits::Eight {
        return refuse("activations of ternary layers must have 8 bits".to_owned());
    }
    if config.kv_bits < KvBits::Sixteen {
        return refuse(format!("keys and values must be made for at least 16 bits, they are for {}", config.kv_bits));
    }
    if !head_dim.is_multiple_of(16) || head_dim > 256 {
        return refuse(format!("head_dim must be a multiple of 16 and at most 256, it is {head_dim}"));
    }
    if !hidden_size.is_multiple_of(GROUP) {
        return refuse(format!("hidden_size must be a multiple of {GROUP}, it is {hidden_size}"));
    }
    if !intermediate_size.is_multiple_of(GROUP / 2) {
        return refuse(format!("intermediate_size must be a multiple of {}, it is {intermediate_size}", GROUP / 2));
    }
    if hidden_size.max(intermediate_size) > WIDEST_ROW || heads * head_dim > WIDEST_HEADS {
        return refuse(format!(
            "hidden_size and intermediate_size must be at most {WIDEST_ROW}, all heads together at most {WIDEST_HEADS}; they are {hidden_size}, {intermediate_size} and {}",
            heads * head_dim
        ));
    }
    Ok(())
}

/// One matrix of a packed one.
struct Piece<'a> {
    matrix: Matrix<'a>,
    order: Order,
    head_dim: usize,
}

/// A matrix of its own.
pub(super) fn plain(gpu: &Gpu, matrix: Matrix<'_>) -> Result<Packed, CudaError> {
    pack(gpu, &[Piece { matrix, order: Order::Plain, head_dim: GROUP }])
}

/// Packs matrices with the same input one behind the other, or into each other's gaps.
fn pack(gpu: &Gpu, pieces: &[Piece<'_>]) -> Result<Packed, CudaError> {
    let kind = kind(pieces[0].matrix)?;
    let columns = shape(pieces[0].matrix).1;
    let (chunk_columns, chunk_units) = if kind == Kind::Ternary { (128, 32) } else { (64, 128) };
    let chunks = columns.div_ceil(chunk_columns);
    let groups_of = |piece: &Piece<'_>| {
        let rows = shape(piece.matrix).0;
        if matches!(piece.order, Order::Lower | Order::Upper) { rows.div_ceil(GROUP / 2) } else { rows.div_ceil(GROUP) }
    };
    let first_of: Vec<usize> = pieces
        .iter()
        .scan(0, |end, piece| {
            let first = *end;
            if piece.order != Order::Lower {
                *end += groups_of(piece);
            }
            Some(first)
        })
        .collect();
    let groups = pieces.iter().zip(&first_of).map(|(piece, first)| first + groups_of(piece)).max().unwrap_or(0);
    let group_bytes = chunks * chunk_units * 16;
    let weights = gpu.zeros(groups * group_bytes)?;
    let mut rule = vec![[0.0_f32; 2]; groups * 2];
    for (piece, first) in pieces.iter().zip(first_of) {
        if self::kind(piece.matrix)? != kind {
            return Err(CudaError::Model {
                rule: "layers with the same input (q, k, v; gate, up) must be stored alike".to_owned(),
            });
        }
        let (rows, _) = shape(piece.matrix);
        let count = groups_of(piece);
        let (from, kernel, stride, panel) = match piece.matrix {
            Matrix::Dense(dense) => {
                let (elements, stride) = dense.padded();
                let from = match elements {
                    Floats::F16(v) => gpu.copy(v)?,
                    Floats::Bf16(v) => gpu.copy(v)?,
                    Floats::F32(_) => return Err(single()),
                };
                (from, &gpu.kernels.repack_dense, stride, 1)
            }
            Matrix::Ternary { weights, divisor, factor } => {
                for (i, rule) in rule[first * 2..(first + count) * 2].iter_mut().enumerate() {
                    let upper = i % 2 == 1;
                    if (piece.order == Order::Lower && upper) || (piece.order == Order::Upper && !upper) {
                        continue;
                    }
                    *rule = [divisor, factor];
                }
                let (blocks, panel) = weights.packed();
                (gpu.copy(blocks)?, &gpu.kernels.repack_ternary, 0, panel)
            }
            Matrix::Codes(_) => return Err(codes()),
        };
        let params = Repack {
            from: gpu.address(&from),
            to: gpu.address(&weights) + (first * group_bytes) as Address,
            rows: rows as i32,
            columns: columns as i32,
            groups: count as i32,
            chunks: chunks as i32,
            order: piece.order,
            head_dim: piece.head_dim as i32,
            stride: stride as i32,
            panel: panel as i32,
        };
        gpu.break_chain();
        gpu.launch(kernel, [2048, 1, 1], 256, &params)?;
        // `from` is given back in the order of the stream: after the kernel.
    }
    let rule = (kind == Kind::Ternary).then(|| gpu.copy(&rule)).transpose()?;
    Ok(Packed { kind, groups, chunks, weights, rule })
}

fn shape(matrix: Matrix<'_>) -> (usize, usize) {
    match matrix {
        Matrix::Dense(dense) => (dense.rows(), dense.columns()),
        Matrix::Ternary { weights, .. } => (weights.rows(), weights.columns()),
        Matrix::Codes(codes) => (codes.rows(), codes.columns()),
    }
}

fn kind(matrix: Matrix<'_>) -> Result<Kind, CudaError> {
    match matrix {
        Matrix::Ternary { .. } => Ok(Kind::Ternary),
        Matrix::Codes(_) => Err(codes()),
        Matrix::Dense(dense) => match dense.padded().0 {
            Floats::F16(_) => Ok(Kind::F16),
            Floats::Bf16(_) => Ok(Kind::Bf16),
            Floats::F32(_) => Err(single()),
        },
    }
}

fn codes() -> CudaError {
    CudaError::Model { rule: "layers must be ternary, fp16 or bf16, some are binary or have 4 or 8 bits".to_owned() }
}

fn single() -> CudaError {
    CudaError::Model { rule: "plain weights must be stored in fp16 or bf16, some are in fp32".to_owned() }
}
