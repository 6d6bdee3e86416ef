//! Kernels in plain Rust: the reference for every other path.

#![expect(clippy::inline_always, reason = "other paths compile these functions again with their own features")]

use super::memory::{BLOCK_BYTES, Block};
use super::ternary::{COLUMNS, PANEL};
use super::{DenseRows, Tokens};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub(super) const SMALLEST_MAXIMUM: f32 = 1e-5;
const LANES: usize = 8;

/// A stored float.
pub(super) trait Stored: Copy + Send + Sync {
    /// Writes values as f32.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Stored for f32 {
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for f16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Stored for bf16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

pub(super) fn dense<E: Stored>(DenseRows { elements, stride, x, .. }: DenseRows<'_, E>, out: &mut [f32]) {
    let mut line = vec![0.0; stride];
    let rows = elements.len() / stride;
    for (row, stored) in elements.chunks_exact(stride).enumerate() {
        E::widen(stored, &mut line);
        for (token, x) in x.chunks_exact(stride).enumerate() {
            out[token * rows + row] = dot(&line, x);
        }
    }
}

/// Sums of code × value of one panel for all tokens.
pub(super) fn panel(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    for (values, out) in tokens.values.chunks_exact(tokens.stride).zip(out) {
        let mut lanes = [0_i32; BLOCK_BYTES];
        for (Block(bytes), values) in panel.iter().zip(values.as_chunks::<COLUMNS>().0) {
            let values = values.map(i16::from);
            for (lanes, bytes) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(bytes.as_chunks::<4>().0) {
                for k in 0..4 {
                    let code = |j: u32| i16::from((bytes[k] >> (2 * j)) & 3);
                    // At most 4 · 3 · 128: no sum of 16 bits wraps. Sums of 32 bits do not below `MOST_COLUMNS`; the
                    // word only keeps the overflow check from making the loop scalar.
                    let low = (code(0) * values[k]).wrapping_add(code(1) * values[4 + k]);
                    let high = (code(2) * values[8 + k]).wrapping_add(code(3) * values[12 + k]);
                    lanes[k] = lanes[k].wrapping_add(i32::from(low.wrapping_add(high)));
                }
            }
        }
        for (out, lanes) in out.iter_mut().zip(lanes.as_chunks::<4>().0) {
            *out = lanes.iter().sum();
        }
    }
}

/// Sums of code × value of one panel of `BITS` bits per code for all tokens.
pub(super) fn codes<const BITS: usize>(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    let columns = 32 / BITS;
    let mask = ((1_u16 << BITS) - 1) as u8;
    for (values, out) in tokens.values.chunks_exact(tokens.stride).zip(out) {
        *out = [0; PANEL];
        for (Block(bytes), values) in panel.iter().zip(values.chunks_exact(columns)) {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                for (field, values) in values.as_chunks::<4>().0.iter().enumerate() {
                    for (byte, value) in bytes.iter().zip(values) {
                        let product = i32::from((byte >> (BITS * field)) & mask) * i32::from(*value);
                        // Sums do not wrap below `Codes::MOST_COLUMNS`; as above.
                        *out = out.wrapping_add(product);
                    }
                }
            }
        }
    }
}

/// Four-bit activations: `s = √7 / (mean |x| + 1e-5)`, `q = clamp(round half to even(x · s), -8, 7)`. Returns the scale
/// and the sum. The mean's sum has one order on every path.
pub(super) fn quantise_four(row: &[f32], width: usize, out: &mut [i8]) -> (f32, i32) {
    let mut lanes = [0.0_f32; 16];
    let (blocks, rest) = row.as_chunks::<16>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(sum, x)| *sum += x.abs());
    }
    rest.iter().zip(&mut lanes).for_each(|(x, sum)| *sum += x.abs());
    let mean = lanes.iter().sum::<f32>() / width as f32;
    if !mean.is_finite() {
        out.fill(0);
        return (f32::NAN, 0);
    }
    let scale = 7.0_f32.sqrt() / (mean + SMALLEST_MAXIMUM);
    let mut sum = 0;
    for (to, from) in out.iter_mut().zip(row) {
        let value = (from * scale).round_ties_even().clamp(-8.0, 7.0) as i8;
        *to = value;
        sum += i32::from(value);
    }
    (scale, sum)
}

/// What products see of a row in four bits, in f32; NaN throughout if a number is not finite.
pub(crate) fn seen_in_four(row: &[f32], out: &mut [f32]) {
    let mut codes = vec![0; row.len()];
    let (scale, _) = quantise_four(row, row.len(), &mut codes);
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = f32::from(code) / scale);
}

/// `out = (product - sum) / divisor · factor`, the result of one token and one panel.
#[inline(always)]
pub(super) fn finish(products: &[i32; PANEL], sum: i32, divisor: f32, factor: f32, out: &mut [f32; PANEL]) {
    for (out, product) in out.iter_mut().zip(products) {
        *out = product.wrapping_sub(sum) as f32 / divisor * factor;
    }
}

/// Quantises one row; returns its scale and the sum of its values.
pub(super) fn quantise(row: &[f32], out: &mut [i8]) -> (f32, i32) {
    let scale = scale_of(row.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
    if scale.is_nan() {
        out.fill(0);
        return (scale, 0);
    }
    let mut sum = 0;
    for (to, from) in out.iter_mut().zip(row) {
        let value = (from * scale).round_ties_even().clamp(-128.0, 127.0) as i8;
        *to = value;
        sum += i32::from(value);
    }
    (scale, sum)
}

/// The scale of a row whose largest magnitude has these bits. Bits of magnitudes order as the magnitudes do, with
/// infinity and then NaN above all numbers.
pub(super) fn scale_of(largest: u32) -> f32 {
    let largest = f32::from_bits(largest);
    if largest.is_finite() { 127.0 / largest.max(SMALLEST_MAXIMUM) } else { f32::NAN }
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
