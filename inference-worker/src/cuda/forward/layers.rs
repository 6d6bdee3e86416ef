//! The kernels of a pass: embedding, layers, head. Each method puts launches on the stream and waits for none.

use super::CudaModel;
use super::buffers::Buffers;
use crate::cuda::cache::KvPrecision;
use crate::cuda::error::CudaError;
use crate::cuda::gpu::{Gpu, NORM_THREADS, Tile};
use crate::cuda::params::{Address, Attention, CacheShape, Embed, Kind, Norm, Product, StoreKv, Use};
use crate::cuda::weights::{Layer, Packed};
use crate::model::Activation;
use cudarc::driver::CudaSlice;

/// Warps of a wide product, each with a group of rows.
const WIDE_WARPS: usize = 8;
/// Tokens of a block of a wide product.
const WIDE_TOKENS: usize = 64;

impl CudaModel {
    /// From token ids to the residual stream after the last layer.
    pub(super) fn layers(&self, buffers: &Buffers, tokens: usize, splits: usize) -> Result<(), CudaError> {
        let (gpu, config, embedding) = (&self.gpu, &self.config, &self.weights.embedding);
        let params = Embed {
            table: embedding.weights(gpu),
            seats: gpu.address(&buffers.seats),
            hidden: gpu.address(&buffers.hidden),
            width: config.hidden_size as i32,
            chunks: embedding.chunks as i32,
            kind: embedding.kind,
        };
        gpu.launch(&gpu.kernels.embed, [tokens as u32, 1, 1], 256, &params)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attention(index, layer, buffers, tokens, splits)?;
            self.feed_forward(layer, buffers, tokens)?;
        }
        Ok(())
    }

    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        buffers: &Buffers,
        tokens: usize,
        splits: usize,
    ) -> Result<(), CudaError> {
        let (gpu, config) = (&self.gpu, &self.config);
        let shape = self.cache_shape(index);
        let wide = config.heads * config.head_dim;
        self.norm(
            buffers,
            gpu.address(&buffers.hidden),
            config.hidden_size,
            Some(&layer.input_norm),
            &layer.qkv,
            tokens,
        )?;
        let kv = buffers.kv.as_ref().map_or(0, |kv| gpu.address(kv));
        let query = gpu.address(&buffers.query);
        self.product(buffers, &layer.qkv, tokens, Use::Qkv, query, wide, kv, shape)?;
        if kv != 0 {
            let params = StoreKv { kv, seats: gpu.address(&buffers.seats), shape };
            gpu.launch(&gpu.kernels.store_kv, [tokens as u32, config.kv_heads as u32, 2], 32, &params)?;
        }
        let int8 = self.kv == KvPrecision::Int8;
        let (kernel, together) = gpu.kernels.attend(int8, config.head_dim, self.group());
        let params = Attention {
            query,
            seats: gpu.address(&buffers.seats),
            out: gpu.address(&buffers.attended),
            parts: gpu.address(&buffers.parts),
            shape,
            heads: config.heads as i32,
            splits: splits as i32,
            scale: (config.head_dim as f32).sqrt().recip() * std::f32::consts::LOG2_E,
        };
        gpu.launch(kernel, [tokens as u32, (config.heads / together) as u32, splits as u32], 128, &params)?;
        let params = Norm {
            x: gpu.address(&buffers.attended),
            parts: gpu.address(&buffers.parts),
            weight: layer.attention_sub_norm.as_ref().map_or(0, |norm| gpu.address(norm)),
            seats: gpu.address(&buffers.seats),
            splits: splits as i32,
            head_dim: config.head_dim as i32,
            ..self.norm_params(buffers, wide, &layer.output)
        };
        gpu.launch(gpu.kernels.norm_attention(wide), [tokens as u32, 1, 1], NORM_THREADS, &params)?;
        let hidden = gpu.address(&buffers.hidden);
        self.product(buffers, &layer.output, tokens, Use::Add, hidden, config.hidden_size, 0, shape)
    }

    fn feed_forward(&self, layer: &Layer, buffers: &Buffers, tokens: usize) -> Result<(), CudaError> {
        let (gpu, config) = (&self.gpu, &self.config);
        let (hidden, gated) = (gpu.address(&buffers.hidden), gpu.address(&buffers.gated));
        let (width, inner, shape) = (config.hidden_size, config.intermediate_size, self.cache_shape(0));
        self.norm(buffers, hidden, width, Some(&layer.post_attention_norm), &layer.gate_up, tokens)?;
        self.product(buffers, &layer.gate_up, tokens, Use::Gate, gated, inner, 0, shape)?;
        self.norm(buffers, gated, inner, layer.ffn_sub_norm.as_ref(), &layer.down, tokens)?;
        self.product(buffers, &layer.down, tokens, Use::Add, hidden, width, 0, shape)
    }

    /// Logits of the rows that the first `count` seats name, into the head's buffer.
    pub(super) fn logits(&self, buffers: &Buffers, count: usize) -> Result<(), CudaError> {
        let (gpu, head, width) = (&self.gpu, self.weights.head(), self.config.hidden_size);
        let params = Norm {
            x: gpu.address(&buffers.hidden),
            weight: gpu.address(&self.weights.norm),
            seats: gpu.address(&buffers.seats),
            ..self.norm_params(buffers, width, head)
        };
        gpu.launch(gpu.kernels.norm_rows(width), [count as u32, 1, 1], NORM_THREADS, &params)?;
        let logits = gpu.address(&self.head.logits);
        self.product(buffers, head, count, Use::Write, logits, self.config.vocab_size, 0, self.cache_shape(0))
    }

    fn cache_shape(&self, layer: usize) -> CacheShape {
        CacheShape {
            layer: layer as u32,
            layers: self.config.layers as u32,
            kv_heads: self.config.kv_heads as u32,
            head_dim: self.config.head_dim as u32,
            bytes: self.kv.bytes() as u32,
        }
    }

    /// `norm(x)`, ready to be multiplied with `next`.
    fn norm(
        &self,
        buffers: &Buffers,
        x: Address,
        width: usize,
        weight: Option<&CudaSlice<u8>>,
        next: &Packed,
        tokens: usize,
    ) -> Result<(), CudaError> {
        let gpu = &self.gpu;
        let weight = weight.map_or(0, |weight| gpu.address(weight));
        let params = Norm { x, weight, ..self.norm_params(buffers, width, next) };
        gpu.launch(gpu.kernels.norm_rows(width), [tokens as u32, 1, 1], NORM_THREADS, &params)
    }

    fn norm_params(&self, buffers: &Buffers, width: usize, next: &Packed) -> Norm {
        Norm {
            x: 0,
            parts: 0,
            weight: 0,
            seats: 0,
            out: self.gpu.address(&buffers.input),
            scales: self.gpu.address(&buffers.scales),
            sums: self.gpu.address(&buffers.sums),
            eps: self.config.rms_eps,
            width: width as i32,
            stride: next.input_stride() as i32,
            kind: next.kind,
            splits: 1,
            head_dim: 1,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a product is made of")]
    fn product(
        &self,
        buffers: &Buffers,
        matrix: &Packed,
        tokens: usize,
        purpose: Use,
        out: Address,
        width: usize,
        kv: Address,
        shape: CacheShape,
    ) -> Result<(), CudaError> {
        let gpu = &self.gpu;
        let params = Product {
            weights: matrix.weights(gpu),
            rule: matrix.rule(gpu),
            x: gpu.address(&buffers.input),
            scales: gpu.address(&buffers.scales),
            sums: gpu.address(&buffers.sums),
            out,
            groups: matrix.groups as i32,
            chunks: matrix.chunks as i32,
            tokens: tokens as i32,
            purpose,
            width: width as i32,
            silu: i32::from(self.config.activation == Activation::Silu),
            heads: self.config.heads as i32,
            seats: gpu.address(&buffers.seats),
            angles: gpu.address(&self.weights.angles),
            kv,
            shape,
        };
        multiply(gpu, matrix.kind, &params)
    }
}

/// Starts the product for its number of tokens.
pub(in crate::cuda) fn multiply(gpu: &Gpu, kind: Kind, params: &Product) -> Result<(), CudaError> {
    let (groups, chunks, tokens) = (params.groups as usize, params.chunks as usize, params.tokens as usize);
    let (kernel, tile) = gpu.kernels.product(kind, tokens, groups);
    match tile {
        Tile::Narrow { groups: per_block, warps } => {
            // As few turns as the warps allow, and then no more warps than these turns need.
            let warps = chunks.div_ceil(chunks.div_ceil(warps));
            gpu.launch(kernel, [groups.div_ceil(per_block) as u32, 1, 1], warps as u32 * 32, params)
        }
        Tile::Wide => {
            let grid = [groups.div_ceil(WIDE_WARPS) as u32, tokens.div_ceil(WIDE_TOKENS) as u32, 1];
            gpu.launch(kernel, grid, WIDE_WARPS as u32 * 32, params)
        }
    }
}
