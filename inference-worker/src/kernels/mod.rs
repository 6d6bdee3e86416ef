//! Vector kernels, chosen at run time, and the threads that share their work.
//!
//! Integer results (ternary products, quantised activations) are the same on every path, bit for bit, and equal exact
//! integer arithmetic for every input. Floating-point products may differ between paths in the last digits, but on one
//! path the result of a row and a token never depends on how many other tokens are in the batch, nor on the number of
//! threads: each pair has one accumulator that runs over the columns in order.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod codes;
mod cpu;
mod dense;
mod floats;
mod kv;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pairs;
mod pool;
mod portable;
pub mod product;
mod rows;
mod self_test;
mod simd;
mod speed;
mod ternary;

pub use attention::Sequence;
pub use codes::{CodeWidth, Codes};
pub use cpu::{ActivationBits, CodesProduct, Cpu, DenseProduct, TernaryProduct};
pub use dense::{Dense, Elements};
pub(crate) use dense::{FloatStorage, Floats};
pub use kv::{Append, KvBits, KvFormat};
pub(crate) use memory::{Block, Blocks, Plain, Storage, bytes_of};
pub use pool::Pool;
pub(crate) use portable::seen_in_four;
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
    /// Made by [`Kernels::all`] only, after the CPU said that it has the dot-product instructions.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// Made by [`Kernels::all`] only, after the CPU said that it has AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Made by [`Kernels::all`] only, after the CPU said that it has AVX-VNNI and what `Avx2` needs.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// Made by [`Kernels::all`] only, after the CPU said that it has AVX-512 F, BW, DQ, VL, VNNI and what `Avx2` needs.
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

impl Kernels {
    /// All kernels that this CPU runs, the fastest first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Self { set: Set::Avx512Vnni });
            }
            if is_x86_feature_detected!("avxvnni") {
                all.push(Self { set: Set::AvxVnni });
            }
            all.push(Self { set: Set::Avx2 });
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            all.push(Self { set: Set::NeonDot });
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

    /// `avx512-vnni`, `avx-vnni`, `avx2`, `neon-dot` or `portable`.
    pub fn name(self) -> &'static str {
        match self.set {
            Set::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => "neon-dot",
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
            // SAFETY: `Set::NeonDot` exists only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => unsafe { neon::codes::<2>(panel, &tokens, out) },
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

    /// `out[token][row]`: sums of code × value of one panel, as exact integers.
    fn codes_panel(self, weights: &Codes, panel: usize, tokens: Tokens<'_>, out: &mut [[i32; PANEL]]) {
        let (width, panel) = (weights.width(), weights.panel(panel));
        match (self.set, width) {
            (Set::Portable, CodeWidth::Binary) => portable::codes::<1>(panel, &tokens, out),
            (Set::Portable, CodeWidth::Int4) => portable::codes::<4>(panel, &tokens, out),
            (Set::Portable, CodeWidth::Int8) => portable::codes::<8>(panel, &tokens, out),
            // SAFETY: this set exists only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "aarch64")]
            (Set::NeonDot, width) => unsafe {
                match width {
                    CodeWidth::Binary => neon::codes::<1>(panel, &tokens, out),
                    CodeWidth::Int4 => neon::codes::<4>(panel, &tokens, out),
                    CodeWidth::Int8 => neon::codes::<8>(panel, &tokens, out),
                }
            },
            // SAFETY: these sets exist only where the CPU has the features of their modules (see `Set`).
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, width) => unsafe {
                match width {
                    CodeWidth::Binary => avx2::codes::<1>(panel, &tokens, out),
                    CodeWidth::Int4 => avx2::codes::<4>(panel, &tokens, out),
                    CodeWidth::Int8 => avx2::codes::<8>(panel, &tokens, out),
                }
            },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            (Set::AvxVnni, width) => unsafe {
                match width {
                    CodeWidth::Binary => avx_vnni::codes::<1>(panel, &tokens, out),
                    CodeWidth::Int4 => avx_vnni::codes::<4>(panel, &tokens, out),
                    CodeWidth::Int8 => avx_vnni::codes::<8>(panel, &tokens, out),
                }
            },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512Vnni, width) => unsafe {
                match width {
                    CodeWidth::Binary => avx512::codes::<1>(panel, &tokens, out),
                    CodeWidth::Int4 => avx512::codes::<4>(panel, &tokens, out),
                    CodeWidth::Int8 => avx512::codes::<8>(panel, &tokens, out),
                }
            },
        }
    }

    /// `out = (product - sum) / divisor · factor`.
    fn finish(self, products: &[i32; PANEL], sum: i32, divisor: f32, factor: f32, out: &mut [f32; PANEL]) {
        match self.set {
            Set::Portable => portable::finish(products, sum, divisor, factor, out),
            // The compiler's own code for this loop uses every register that an AArch64 CPU is sure to have.
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => portable::finish(products, sum, divisor, factor, out),
            // SAFETY: these sets exist only where the CPU has AVX2 (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::AvxVnni | Set::Avx512Vnni => unsafe {
                avx2::finish(products, sum, divisor, factor, out);
            },
        }
    }

    /// Most rows that [`Kernels::dense`] takes at once.
    const DENSE_ROWS: usize = floats::ROWS;

    /// `out[token × rows + row]` of some rows of a matrix.
    fn dense(self, weights: &Dense, rows: std::ops::Range<usize>, x: &Rows, out: &mut [f32]) {
        match weights.padded() {
            (Floats::F32(v), stride) => self.dense_of(v, stride, rows, x, out),
            (Floats::F16(v), stride) => self.dense_of(v, stride, rows, x, out),
            (Floats::Bf16(v), stride) => self.dense_of(v, stride, rows, x, out),
        }
    }

    fn dense_of<E: simd::Element + portable::Stored>(
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
            // SAFETY: every AArch64 CPU has the features of that function.
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => unsafe { neon::dense(work, out) },
            // SAFETY: these sets exist only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::AvxVnni => unsafe { avx2::dense(work, out) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => unsafe { avx512::dense(work, out) },
        }
    }

    /// Quantises one padded row; returns its scale and the sum of its values.
    fn quantise(self, row: &[f32], out: &mut [i8]) -> (f32, i32) {
        match self.set {
            Set::Portable => portable::quantise(row, out),
            // As above.
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => portable::quantise(row, out),
            // SAFETY: these sets exist only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::AvxVnni | Set::Avx512Vnni => unsafe { avx2::quantise(row, out) },
        }
    }
}

#[cfg(test)]
mod tests;
