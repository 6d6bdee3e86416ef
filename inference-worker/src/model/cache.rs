//! Keys and values of one sequence.

use super::ModelConfig;
use crate::kernels::{Append, KvBits, KvFormat, Sequence};

/// Keys and values of one sequence, for all layers.
///
/// Positions count from 0 per cache: a step appends its tokens after those that are there.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: usize,
    kv_heads: usize,
    format: KvFormat,
    capacity: usize,
    len: usize,
    /// `[layer][kv head][block]`; pages are touched only as positions fill.
    data: Vec<u8>,
}

impl KvCache {
    pub(crate) fn new(config: &ModelConfig, bits: KvBits, capacity: usize) -> Self {
        let capacity = capacity.min(config.context);
        let (layers, kv_heads) = (config.layers, config.kv_heads);
        let format = KvFormat { bits, head_dim: config.head_dim };
        let size = Self::bytes_of(config, bits, capacity);
        Self { layers, kv_heads, format, capacity, len: 0, data: vec![0; size] }
    }

    /// Bytes of the keys and values of one sequence of at most `capacity` tokens.
    pub fn bytes_of(config: &ModelConfig, bits: KvBits, capacity: usize) -> usize {
        let format = KvFormat { bits, head_dim: config.head_dim };
        config.layers * config.kv_heads * KvFormat::blocks(capacity) * format.block_bytes()
    }

    /// Bytes that this cache takes once it is full.
    pub fn bytes(&self) -> usize {
        self.data.len()
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

    /// Takes over the first `len` tokens of a cache of the same model.
    ///
    /// # Panics
    /// If the other one is of another shape or precision, or either has no such tokens or no room for them.
    pub fn copy_from(&mut self, other: &Self, len: usize) {
        let shape = |cache: &Self| (cache.layers, cache.kv_heads, cache.format);
        assert!(shape(self) == shape(other) && len <= other.len && len <= self.capacity);
        let size = KvFormat::blocks(len) * self.format.block_bytes();
        let (from, to) = (other.head_bytes(), self.head_bytes());
        for head in 0..self.layers * self.kv_heads {
            self.data[head * to..][..size].copy_from_slice(&other.data[head * from..][..size]);
        }
        self.len = len;
    }

    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        let found = (self.layers, self.kv_heads, self.format.head_dim);
        found == (config.layers, config.kv_heads, config.head_dim)
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        debug_assert!(self.len + tokens <= self.capacity);
        self.len += tokens;
    }

    /// One layer, for `rows` of keys and values that follow the stored tokens.
    pub(crate) fn layer_mut(&mut self, layer: usize, rows: (usize, usize)) -> Append<'_> {
        let head_bytes = self.head_bytes();
        let bytes = self.kv_heads * head_bytes;
        let heads = &mut self.data[layer * bytes..(layer + 1) * bytes];
        Append { format: self.format, heads, head_bytes, rows, position: self.len }
    }

    /// One layer, for `rows` of queries after the stored tokens, of which the first one sees itself as well.
    pub(crate) fn layer(&self, layer: usize, rows: (usize, usize)) -> Sequence<'_> {
        let head_bytes = self.head_bytes();
        let bytes = self.kv_heads * head_bytes;
        let heads = &self.data[layer * bytes..(layer + 1) * bytes];
        Sequence { format: self.format, heads, head_bytes, rows, visible: self.len + 1 }
    }

    fn head_bytes(&self) -> usize {
        KvFormat::blocks(self.capacity) * self.format.block_bytes()
    }
}
