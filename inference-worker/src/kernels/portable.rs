//! Kernels in plain Rust: the reference for every other path.

#![expect(clippy::inline_always, reason = "other paths compile these functions again with their own features")]

use super::buffers::{BLOCK, BLOCK_BYTES};
use super::{Attention, Dense, Elements, Quantized, Rows, Ternary};
use half::slice::HalfFloatSliceExt;

pub(super) const SMALLEST_MAXIMUM: f32 = 1e-5;
const LANES: usize = 8;

pub(super) fn dense(weights: &Dense, x: &Rows, out: &mut Rows) {
    fn product<E>(elements: &[E], stride: usize, x: &Rows, out: &mut Rows, widen: impl Fn(&[E], &mut [f32])) {
        let mut line = vec![0.0; stride];
        let (input, _) = x.padded();
        for (row, stored) in elements.chunks_exact(stride).enumerate() {
            widen(stored, &mut line);
            for (token, x) in input.chunks_exact(stride).enumerate() {
                out.row_mut(token)[row] = dot(&line, x);
            }
        }
    }
    match weights.padded() {
        (Elements::F32(v), stride) => product(v, stride, x, out, |from, to| to.copy_from_slice(from)),
        (Elements::F16(v), stride) => product(v, stride, x, out, <[_]>::convert_to_f32_slice),
        (Elements::Bf16(v), stride) => product(v, stride, x, out, <[_]>::convert_to_f32_slice),
    }
}

pub(super) fn ternary(weights: &Ternary, x: &Quantized, out: &mut [i32]) {
    let (packed, row_bytes) = weights.packed();
    let (values, stride, sums) = x.padded();
    let mut codes = vec![0_i16; stride];
    for (row, packed) in packed.chunks_exact(row_bytes).enumerate() {
        for (bytes, codes) in packed.as_chunks::<BLOCK_BYTES>().0.iter().zip(codes.as_chunks_mut::<BLOCK>().0) {
            for (p, byte) in bytes.iter().enumerate() {
                let byte = i16::from(*byte);
                codes[p] = byte & 3;
                codes[p + BLOCK_BYTES] = (byte >> 2) & 3;
                codes[p + 2 * BLOCK_BYTES] = (byte >> 4) & 3;
                codes[p + 3 * BLOCK_BYTES] = byte >> 6;
            }
        }
        for (token, values) in values.chunks_exact(stride).enumerate() {
            // Products of 16-bit numbers, added in 32 bits: every vector unit has one instruction for that. Nothing
            // wraps below 8 million columns; the word only keeps the overflow check from making the loop scalar.
            let products = codes.iter().zip(values).map(|(code, value)| i32::from(*code) * i32::from(*value));
            out[token * weights.rows() + row] = products.fold(0, i32::wrapping_add) - sums[token];
        }
    }
}

pub(super) fn quantise(x: &Rows, out: &mut Quantized) {
    for token in 0..x.count() {
        let row = x.row(token);
        let scale = scale_of(row.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
        if scale.is_nan() {
            out.set(token, scale, 0);
            continue;
        }
        let mut sum = 0;
        for (to, from) in out.padded_row_mut(token).iter_mut().zip(row) {
            let value = (from * scale).round_ties_even().clamp(-128.0, 127.0) as i8;
            *to = value;
            sum += i32::from(value);
        }
        out.set(token, scale, sum);
    }
}

/// The scale of a row whose largest magnitude has these bits. Bits of magnitudes order as the magnitudes do, with
/// infinity and then NaN above all numbers.
pub(super) fn scale_of(largest: u32) -> f32 {
    let largest = f32::from_bits(largest);
    if largest.is_finite() { 127.0 / largest.max(SMALLEST_MAXIMUM) } else { f32::NAN }
}

/// Compiled again with wider vectors by the other paths; without fused multiply-add the result is the same.
#[inline(always)]
pub(super) fn attend(input: &Attention<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    let width = out.len();
    scores.clear();
    scores.extend(input.keys.chunks_exact(width).map(|key| dot(input.query, key) * input.scale));
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
        total += *score;
    }
    out.fill(0.0);
    for (score, value) in scores.iter().zip(input.values.chunks_exact(width)) {
        let share = score / total;
        out.iter_mut().zip(value).for_each(|(out, value)| *out += share * value);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7])) + rest
}
