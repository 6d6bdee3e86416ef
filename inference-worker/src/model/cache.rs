//! Keys and values of one sequence.

use super::ModelConfig;

/// Keys and values of one sequence, for all layers, in f32.
///
/// Positions count from 0 per cache: a step appends its tokens after those that are there.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
    /// `[layer][key, value][kv head][capacity][head_dim]`; pages are touched only as positions fill.
    data: Vec<f32>,
}

impl KvCache {
    pub(crate) fn new(config: &ModelConfig, capacity: usize) -> Self {
        let capacity = capacity.min(config.context);
        let size = config.layers * 2 * config.kv_heads * capacity * config.head_dim;
        Self {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            capacity,
            len: 0,
            data: vec![0.0; size],
        }
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
    /// If the other one is of another shape, or either has no such tokens or no room for them.
    pub fn copy_from(&mut self, other: &Self, len: usize) {
        let shape = |cache: &Self| (cache.layers, cache.kv_heads, cache.head_dim);
        assert!(shape(self) == shape(other) && len <= other.len && len <= self.capacity);
        let size = len * self.head_dim;
        let (from, to) = (other.capacity * self.head_dim, self.capacity * self.head_dim);
        for plane in 0..self.layers * 2 * self.kv_heads {
            self.data[plane * to..][..size].copy_from_slice(&other.data[plane * from..][..size]);
        }
        self.len = len;
    }

    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        (self.layers, self.kv_heads, self.head_dim) == (config.layers, config.kv_heads, config.head_dim)
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        debug_assert!(self.len + tokens <= self.capacity);
        self.len += tokens;
    }

    /// Stores one key and one value row (`kv_heads × head_dim`) at `position`.
    pub(crate) fn write(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        for head in 0..self.kv_heads {
            let from = head * self.head_dim..(head + 1) * self.head_dim;
            let at = self.plane(layer, 0, head) + position * self.head_dim;
            self.data[at..at + self.head_dim].copy_from_slice(&key[from.clone()]);
            let at = self.plane(layer, 1, head) + position * self.head_dim;
            self.data[at..at + self.head_dim].copy_from_slice(&value[from]);
        }
    }

    /// Keys and values of the first `count` positions of one head, `head_dim` apart.
    pub(crate) fn read(&self, layer: usize, head: usize, count: usize) -> (&[f32], &[f32]) {
        let (keys, values) = (self.plane(layer, 0, head), self.plane(layer, 1, head));
        let size = count * self.head_dim;
        (&self.data[keys..keys + size], &self.data[values..values + size])
    }

    fn plane(&self, layer: usize, which: usize, head: usize) -> usize {
        ((layer * 2 + which) * self.kv_heads + head) * self.capacity * self.head_dim
    }
}
