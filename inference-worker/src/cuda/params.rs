//! Arguments of the kernels, as kernels/*.cuh declare them: one struct per kernel, passed by value.

/// Address in device memory; 0 is null.
pub(super) type Address = u64;

/// How a matrix is stored, and so what its input must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    Ternary = 0,
    F16 = 1,
    Bf16 = 2,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Use {
    /// Written.
    Write = 0,
    /// Added to the residual stream.
    Add = 1,
    /// Rows g are gates, rows g + 8 what they let through.
    Gate = 2,
    /// Turned by the position; keys and values go to the caches.
    Qkv = 3,
}

/// Which row of a matrix goes where in the packed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Order {
    Plain = 0,
    Rotary = 1,
    Lower = 2,
    Upper = 3,
}

/// One token of a pass.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Seat {
    pub(super) cache: Address,
    pub(super) token: u32,
    pub(super) position: u32,
    pub(super) capacity: u32,
    /// Not of this token: the n-th seat names the n-th row whose logits are wanted.
    pub(super) row: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct CacheShape {
    pub(super) layer: u32,
    pub(super) layers: u32,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) bytes: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Repack {
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) rows: i32,
    pub(super) columns: i32,
    pub(super) groups: i32,
    pub(super) chunks: i32,
    pub(super) order: Order,
    pub(super) head_dim: i32,
    pub(super) stride: i32,
    pub(super) panel: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Embed {
    pub(super) table: Address,
    pub(super) seats: Address,
    pub(super) hidden: Address,
    pub(super) width: i32,
    pub(super) chunks: i32,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Norm {
    pub(super) x: Address,
    pub(super) parts: Address,
    pub(super) weight: Address,
    pub(super) seats: Address,
    pub(super) out: Address,
    pub(super) scales: Address,
    pub(super) sums: Address,
    pub(super) eps: f32,
    pub(super) width: i32,
    pub(super) stride: i32,
    pub(super) kind: Kind,
    pub(super) splits: i32,
    pub(super) head_dim: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Product {
    pub(super) weights: Address,
    pub(super) rule: Address,
    pub(super) x: Address,
    pub(super) scales: Address,
    pub(super) sums: Address,
    pub(super) out: Address,
    pub(super) groups: i32,
    pub(super) chunks: i32,
    pub(super) tokens: i32,
    pub(super) purpose: Use,
    pub(super) width: i32,
    pub(super) silu: i32,
    pub(super) heads: i32,
    pub(super) seats: Address,
    pub(super) angles: Address,
    pub(super) kv: Address,
    pub(super) shape: CacheShape,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Attention {
    pub(super) query: Address,
    pub(super) seats: Address,
    pub(super) out: Address,
    pub(super) parts: Address,
    pub(super) shape: CacheShape,
    pub(super) heads: i32,
    pub(super) splits: i32,
    pub(super) scale: f32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct StoreKv {
    pub(super) kv: Address,
    pub(super) seats: Address,
    pub(super) shape: CacheShape,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Read {
    pub(super) from: Address,
    pub(super) out: Address,
    pub(super) units: u64,
}
