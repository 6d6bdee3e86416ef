//! Keys and values of one sequence in device memory.

use super::gpu::Gpu;
use super::params::Address;
use crate::model::ModelConfig;
use cudarc::driver::{CudaSlice, sys};

/// How keys and values are stored on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvPrecision {
    /// Half precision.
    #[default]
    F16,
    /// int8 with one factor per row of a head: half the memory.
    Int8,
}

impl KvPrecision {
    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// Keys and values of one sequence, in device memory that is taken whole when the cache is made.
pub struct Cache {
    /// What the driver said, where it gave no memory: the first pass with this cache fails with it.
    data: Result<CudaSlice<u8>, String>,
    planes: usize,
    row_bytes: usize,
    factors: bool,
    capacity: usize,
    len: usize,
}

impl Cache {
    pub(super) fn new(gpu: &Gpu, config: &ModelConfig, kv: KvPrecision, capacity: usize) -> Self {
        let capacity = capacity.clamp(1, config.context);
        let planes = config.layers * 2 * config.kv_heads;
        let row_bytes = config.head_dim * kv.bytes();
        let factors = kv == KvPrecision::Int8;
        let bytes = planes * capacity * (row_bytes + if factors { size_of::<f32>() } else { 0 });
        let data = gpu.zeros(bytes).map_err(|error| {
            format!("no device memory for the {bytes} bytes of a sequence of {capacity} positions ({error}); lower --max-batch or --context")
        });
        Self { data, planes, row_bytes, factors, capacity, len: 0 }
    }

    /// Tokens whose keys and values are stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens after the first `len`; does nothing if there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    pub(super) fn address(&self, gpu: &Gpu) -> Result<Address, String> {
        self.data.as_ref().map(|data| gpu.address(data)).map_err(Clone::clone)
    }

    /// Takes over the first `len` tokens of another cache of the same model.
    ///
    /// # Panics
    /// If the other one is of another shape, or either has no such tokens or no room for them.
    pub(super) fn copy_from(&mut self, gpu: &Gpu, other: &Self, len: usize) {
        assert!(self.planes == other.planes && self.row_bytes == other.row_bytes);
        assert!(len <= other.len && len <= self.capacity);
        if let (Ok(from), Ok(to)) = (other.address(gpu), self.address(gpu)) {
            let copied = self.copy_rows(gpu, from, to, other.capacity, self.row_bytes, len).and_then(|()| {
                let behind = |cache: &Self| (cache.planes * cache.capacity * cache.row_bytes) as u64;
                let (from, to) = (from + behind(other), to + behind(self));
                if self.factors { self.copy_rows(gpu, from, to, other.capacity, size_of::<f32>(), len) } else { Ok(()) }
            });
            if let Err(error) = copied {
                self.data = Err(error);
            }
        } else if let Err(error) = &other.data {
            self.data = Err(error.clone());
        }
        self.len = len;
    }

    /// The first `len` rows of every plane.
    fn copy_rows(
        &self,
        gpu: &Gpu,
        from: Address,
        to: Address,
        capacity: usize,
        bytes: usize,
        len: usize,
    ) -> Result<(), String> {
        if len == 0 {
            return Ok(());
        }
        gpu.break_chain();
        gpu.context.bind_to_thread().map_err(|error| error.to_string())?;
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: from,
            srcArray: std::ptr::null_mut(),
            srcPitch: capacity * bytes,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: to,
            dstArray: std::ptr::null_mut(),
            dstPitch: self.capacity * bytes,
            WidthInBytes: len * bytes,
            Height: self.planes,
        };
        // SAFETY: both are live buffers of `planes` planes of their capacity × `bytes`, and `len` is at most either capacity.
        unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, gpu.stream.cu_stream()) }
            .result()
            .map_err(|error| format!("keys and values could not be copied on the GPU: {error}"))
    }
}
