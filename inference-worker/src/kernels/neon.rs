//! Kernels for AArch64 with the dot-product instructions: 16 products and their sums in one.
//!
//! Every function of this module may be called only on a CPU that has them.

use super::memory::Block;
use super::simd::Element;
use super::ternary::PANEL;
use super::{DenseRows, Tokens, floats};
use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vaddq_s32, vandq_u8, vdupq_n_s8, vdupq_n_s32, vdupq_n_u8, veorq_u8,
    vld1q_u8, vreinterpretq_s8_s32, vshlq_u8, vst1q_s32,
};
use std::arch::asm;

/// Registers of a block, 4 rows each.
const PARTS: usize = 8;

/// As [`floats::dense`].
#[target_feature(enable = "neon")]
pub(super) fn dense<E: Element>(work: DenseRows<'_, E>, out: &mut [f32]) {
    // SAFETY: this function has the features of the register.
    unsafe { floats::dense::<[float32x4_t; 2], E>(work, out) }
}

/// Sums of code × value of one panel of `BITS` bits per code for all tokens; 2 bits are ternary.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn codes<const BITS: usize>(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    let Tokens { values, stride } = *tokens;
    assert!(stride >= panel.len() * 32 / BITS && values.len() == out.len() * stride);
    let mut done = 0;
    while done < out.len() {
        let (values, out) = (&values[done * stride..], &mut out[done..]);
        done += if out.len() > 1 {
            tile::<BITS, 2>(panel, values, stride, out)
        } else {
            tile::<BITS, 1>(panel, values, stride, out)
        };
    }
}

/// `T` tokens; returns `T`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn tile<const BITS: usize, const T: usize>(
    panel: &[Block],
    values: &[i8],
    stride: usize,
    out: &mut [[i32; PANEL]],
) -> usize {
    const { assert!(T <= 2 && (BITS == 1 || BITS == 2 || BITS == 4 || BITS == 8)) };
    let columns = 32 / BITS;
    assert!(stride >= panel.len() * columns && values.len() >= T * stride && out.len() >= T);
    let mask = vdupq_n_u8(((1_u16 << BITS) - 1) as u8);
    let mut sums = [[vdupq_n_s32(0); PARTS]; T];
    for (index, block) in panel.iter().enumerate() {
        for field in 0..8 / BITS {
            let shift = vdupq_n_s8(-((BITS * field) as i8));
            let mut value = [vdupq_n_s8(0); T];
            for (token, value) in value.iter_mut().enumerate() {
                let four: &[i8; 4] = &values[token * stride + columns * index..].as_chunks().0[field];
                *value = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(four.map(i8::cast_unsigned))));
            }
            for part in 0..PARTS {
                let mut codes = load(block, part);
                if BITS == 8 {
                    // Both operands of the instruction are signed: code - 128, which is added again below.
                    codes = veorq_u8(codes, vdupq_n_u8(0x80));
                } else {
                    codes = vandq_u8(vshlq_u8(codes, shift), mask);
                }
                for (sums, value) in sums.iter_mut().zip(value) {
                    sums[part] = dot(sums[part], codes, value);
                }
            }
        }
    }
    for (token, (sums, out)) in sums.into_iter().zip(out).enumerate() {
        let total: i32 = if BITS == 8 {
            values[token * stride..][..panel.len() * columns].iter().map(|value| i32::from(*value)).sum()
        } else {
            0
        };
        for (sum, out) in sums.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: four integers fit.
            unsafe { vst1q_s32(out.as_mut_ptr(), vaddq_s32(sum, vdupq_n_s32(128 * total))) };
        }
    }
    T
}

/// Adds the products of four signed bytes to each of four sums. (The standard library has no stable name for it.)
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sum: int32x4_t, codes: uint8x16_t, values: int8x16_t) -> int32x4_t {
    // SAFETY: this function has the feature of the instruction, which touches these registers alone.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) codes, in(vreg) values,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// An eighth of a block: 4 rows.
#[inline]
#[target_feature(enable = "neon")]
fn load(block: &Block, part: usize) -> uint8x16_t {
    let part: &[u8; 16] = &block.0.as_chunks().0[part];
    // SAFETY: 16 bytes are readable.
    unsafe { vld1q_u8(part.as_ptr()) }
}

/// Multiply-adds per call of [`peak`].
pub(super) const PEAK_WORK: usize = 16 * 16 * 4096;

/// The dot-product instruction at full speed, for comparison.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn peak() -> i32 {
    let mut sums = [vdupq_n_s32(0); 16];
    let values = std::hint::black_box(vdupq_n_s8(1));
    for _ in 0..PEAK_WORK / (16 * 16) {
        // Hidden from the compiler, which could compute the sums without the rounds.
        let codes = std::hint::black_box(vdupq_n_u8(1));
        for sum in &mut sums {
            *sum = dot(*sum, codes, values);
        }
    }
    let total = sums.into_iter().reduce(|a, b| vaddq_s32(a, b)).unwrap_or(vdupq_n_s32(0));
    let mut out = [0; 4];
    // SAFETY: four integers fit.
    unsafe { vst1q_s32(out.as_mut_ptr(), total) };
    out[0]
}
