//! Vector kernels, chosen at run time, and the threads that share their work.
//!
//! Integer results (ternary products, quantised activations) are the same on every path, bit for bit, and equal exact
//! integer arithmetic for every input. Floating-point products may differ between paths in the last digits, but on one
//! path the result of a row and a token never depends on how many other tokens are in the batch, nor on the number of
//! threads: each pair has one accumulator that runs over the columns in order.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod cpu;
mod dense;
mod memory;
mod pool;
mod portable;
pub mod product;
mod rows;
mod self_test;
mod speed;
mod ternary;

pub use cpu::{Cpu, DenseProduct, TernaryProduct};
pub use dense::{Dense, Elements};
pub(crate) use memory::{Block, Blocks};
pub use pool::Pool;
pub use rows::{Quantized, Rows};
pub use self_test::KernelFault;
pub(crate) use ternary::blocks;
pub use ternary::{MOST_COLUMNS, Ternary};

use ternary::PANEL;

/// Instruction set of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    set: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    /// Made by [`Kernels::all`] only, after the CPU said that it has AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Made by [`Kernels::all`] only, after the CPU said that it has AVX-VNNI and what `Avx2` needs.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// Made by [`Kernels::all`] only, after the CPU said that it has AVX-512 F, BW, VNNI and what `Avx2` needs.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// Most tokens that a kernel takes at once.
const TOKENS: usize = 12;

/// Some quantised tokens: `values` holds rows of `stride`, padded with zeros.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    values: &'a [i8],
    stride: usize,
}

/// Some rows of a matrix and all tokens: both are rows of `stride`, padded with zeros.
#[derive(Clone, Copy)]
struct DenseRows<'a, E> {
    elements: &'a [E],
    stride: usize,
    x: &'a [f32],
}

/// One query against the cached positions of its head.
pub struct Attention<'a> {
    /// The query, `head_dim` long.
    pub query: &'a [f32],
    /// Keys, one row of `head_dim` per position.
    pub keys: &'a [f32],
    /// Values, laid out as the keys.
    pub values: &'a [f32],
    /// Factor on the scores.
    pub scale: f32,
}

impl Kernels {
    /// All kernels that this CPU runs, the fastest first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Self { set: Set::Avx512Vnni });
            }
            if is_x86_feature_detected!("avxvnni") {
                all.push(Self { set: Set::AvxVnni });
            }
            all.push(Self { set: Set::Avx2 });
        }
        all.push(Self::portable());
        all
    }

    /// The fastest kernels that this CPU runs.
    pub fn detect() -> Self {
        Self::all()[0]
    }

    /// The kernels that every CPU runs.
    pub fn portable() -> Self {
        Self { set: Set::Portable }
    }

    /// `avx512-vnni`, `avx-vnni`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.set {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => "avx512-vnni",
        }
    }

    /// `out[token][row]`: sums of weight × value of one panel, as exact integers; `sums` are those of the tokens.
    fn panel(self, weights: &Ternary, panel: usize, tokens: Tokens<'_>, out: &mut [[i32; PANEL]]) {
        let panel = weights.panel(panel);
        match self.set {
            Set::Portable => portable::panel(panel, &tokens, out),
            // SAFETY: `Set::Avx2` exists only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::panel(panel, &tokens, out) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => unsafe { avx_vnni::panel(panel, &tokens, out) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => unsafe { avx512::panel(panel, &tokens, out) },
        }
    }

    /// `out = (product - sum) / divisor · factor`.
    fn finish(self, products: &[i32; PANEL], sum: i32, divisor: f32, factor: f32, out: &mut [f32; PANEL]) {
        match self.set {
            Set::Portable => portable::finish(products, sum, divisor, factor, out),
            // SAFETY: these sets exist only where the CPU has AVX2 (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::AvxVnni | Set::Avx512Vnni => unsafe {
                avx2::finish(products, sum, divisor, factor, out);
            },
        }
    }

    /// Most rows that [`Kernels::dense`] takes at once.
    const DENSE_ROWS: usize = 32;

    /// `out[token × rows + row]` of some rows of a matrix.
    fn dense(self, weights: &Dense, rows: std::ops::Range<usize>, x: &Rows, out: &mut [f32]) {
        match weights.padded() {
            (Elements::F32(v), stride) => self.dense_of(v, stride, rows, x, out),
            (Elements::F16(v), stride) => self.dense_of(v, stride, rows, x, out),
            (Elements::Bf16(v), stride) => self.dense_of(v, stride, rows, x, out),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn dense_of<E: avx2::Element>(
        self,
        elements: &[E],
        stride: usize,
        rows: std::ops::Range<usize>,
        x: &Rows,
        out: &mut [f32],
    ) {
        let elements = &elements[rows.start * stride..rows.end * stride];
        let work = DenseRows { elements, stride, x: x.padded().0 };
        match self.set {
            Set::Portable => portable::dense(work, out),
            // SAFETY: these sets exist only where the CPU has the features of that module (see `Set`).
            Set::Avx2 | Set::AvxVnni | Set::Avx512Vnni => unsafe { avx2::dense(work, out) },
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn dense_of<E: portable::Stored>(
        self,
        elements: &[E],
        stride: usize,
        rows: std::ops::Range<usize>,
        x: &Rows,
        out: &mut [f32],
    ) {
        let elements = &elements[rows.start * stride..rows.end * stride];
        portable::dense(DenseRows { elements, stride, x: x.padded().0 }, out);
    }

    /// Quantises one padded row; returns its scale and the sum of its values.
    fn quantise(self, row: &[f32], out: &mut [i8]) -> (f32, i32) {
        match self.set {
            Set::Portable => portable::quantise(row, out),
            // SAFETY: these sets exist only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::AvxVnni | Set::Avx512Vnni => unsafe { avx2::quantise(row, out) },
        }
    }

    /// `out = softmax(query · keysᵀ · scale) · values`; `scores` is scratch.
    ///
    /// # Panics
    /// If the shapes do not fit or there is no position.
    pub fn attend(self, input: &Attention<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
        let width = input.query.len();
        assert!(width == out.len() && !input.keys.is_empty() && input.keys.len() == input.values.len());
        assert!(input.keys.len().is_multiple_of(width));
        match self.set {
            Set::Portable => portable::attend(input, scores, out),
            // SAFETY: these sets exist only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::AvxVnni | Set::Avx512Vnni => unsafe { avx2::attend(input, scores, out) },
        }
    }
}

#[cfg(test)]
mod tests;
