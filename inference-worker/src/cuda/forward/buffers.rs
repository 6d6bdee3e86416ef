use crate::cuda::cache::KvPrecision;
use crate::cuda::error::CudaError;
use crate::cuda::gpu::Gpu;
use crate::cuda::params::Seat;
use crate::cuda::weights::{Packed, Weights};
use crate::model::ModelConfig;
use cudarc::driver::CudaSlice;

/// Intermediate results of the tokens of a pass.
pub(super) struct Buffers {
    pub(super) tokens: usize,
    pub(super) seats: CudaSlice<u8>,
    pub(super) hidden: CudaSlice<u8>,
    pub(super) input: CudaSlice<u8>,
    pub(super) scales: CudaSlice<u8>,
    pub(super) sums: CudaSlice<u8>,
    pub(super) query: CudaSlice<u8>,
    pub(super) gated: CudaSlice<u8>,
    /// int8 caches only.
    pub(super) kv: Option<CudaSlice<u8>>,
    pub(super) attended: CudaSlice<u8>,
    pub(super) parts: CudaSlice<u8>,
}

impl Buffers {
    pub(super) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        weights: &Weights,
        kv: KvPrecision,
        tokens: usize,
        splits: usize,
    ) -> Result<Self, CudaError> {
        let float = size_of::<f32>();
        let wide = config.heads * config.head_dim;
        let layers = weights.layers.iter().flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        let input = layers.chain([weights.head()]).map(Packed::input_bytes).max().unwrap_or(0);
        let both = 2 * config.kv_heads * config.head_dim;
        Ok(Self {
            tokens,
            seats: gpu.zeros(tokens * size_of::<Seat>())?,
            hidden: gpu.zeros(tokens * config.hidden_size * float)?,
            input: gpu.zeros(tokens * input)?,
            scales: gpu.zeros(tokens * float)?,
            sums: gpu.zeros(tokens * float)?,
            query: gpu.zeros(tokens * wide * float)?,
            gated: gpu.zeros(tokens * config.intermediate_size * float)?,
            kv: (kv == KvPrecision::Int8).then(|| gpu.zeros(tokens * both * float)).transpose()?,
            attended: gpu.zeros(tokens * splits * wide * float)?,
            parts: gpu.zeros(tokens * splits * config.heads * 2 * float)?,
        })
    }
}
