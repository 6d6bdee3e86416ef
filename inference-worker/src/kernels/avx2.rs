//! Kernels for x86-64 with AVX2, FMA and F16C.
//!
//! Every function of this module may be called only on a CPU that has these features.

#![expect(
    clippy::inline_always,
    reason = "an intrinsic is a call unless it is inlined into a function that has its features"
)]

use super::buffers::{BLOCK, BLOCK_BYTES};
use super::{Attention, Dense, Elements, Quantized, Rows, Ternary, portable};
use half::{bf16, f16};
use std::arch::x86_64::{
    __m256, __m256i, _mm_add_epi32, _mm_add_ps, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_max_epu32, _mm_packs_epi16,
    _mm_packs_epi32, _mm_shuffle_epi32, _mm_storeu_ps, _mm_storeu_si64, _mm_storeu_si128, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_extractf128_ps,
    _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_hadd_epi32, _mm256_hadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epu32, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srli_epi16,
};

/// Floats per register.
const LANES: usize = 8;
/// Rows that are worked on together: eight sums in flight hide the latency of the multiply-add, and eight rows, read
/// once from memory, stay in the first-level cache for all tokens.
const TALL: usize = 8;
/// The same for packed ternary rows.
const TALL_TERNARY: usize = 4;

/// A stored float that eight of which become a register of f32.
trait Element: Copy {
    /// # Safety
    /// Eight elements are readable at `from`, and the CPU has the features of this module.
    unsafe fn load(from: *const Self) -> __m256;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> __m256 {
        // SAFETY: the caller's promise; f16 is a transparent u16.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> __m256 {
        // SAFETY: the caller's promise; bf16 is a transparent u16 that holds the upper half of an f32.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dense(weights: &Dense, x: &Rows, out: &mut Rows) {
    let (elements, stride) = weights.padded();
    match elements {
        Elements::F32(v) => dense_of(v, stride, x, out),
        Elements::F16(v) => dense_of(v, stride, x, out),
        Elements::Bf16(v) => dense_of(v, stride, x, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dense_of<E: Element>(elements: &[E], stride: usize, x: &Rows, out: &mut Rows) {
    let (input, x_stride) = x.padded();
    assert!(stride == x_stride && stride.is_multiple_of(LANES));
    let (rows, tokens) = (out.width(), x.count());
    assert!(elements.len() == rows * stride && input.len() == tokens * stride);
    let mut row = 0;
    while row < rows {
        let height = if rows - row >= TALL { TALL } else { 1 };
        let weights = &elements[row * stride..(row + height) * stride];
        let (fours, rest) = input.split_at(tokens / 4 * 4 * stride);
        for (i, x) in fours.chunks_exact(4 * stride).enumerate() {
            for (r, pair) in weights.chunks(2 * stride).enumerate() {
                match height {
                    TALL => tile::<E, 2, 4>(pair, x, stride, row + 2 * r, 4 * i, out),
                    _ => tile::<E, 1, 4>(pair, x, stride, row, 4 * i, out),
                }
            }
        }
        for (i, x) in rest.chunks_exact(stride).enumerate() {
            match height {
                TALL => tile::<E, TALL, 1>(weights, x, stride, row, tokens / 4 * 4 + i, out),
                _ => tile::<E, 1, 1>(weights, x, stride, row, tokens / 4 * 4 + i, out),
            }
        }
        row += height;
    }
}

/// `R` rows times `T` tokens. Each pair has one accumulator, so its result does not depend on `R` and `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<E: Element, const R: usize, const T: usize>(
    weights: &[E],
    x: &[f32],
    stride: usize,
    row: usize,
    token: usize,
    out: &mut Rows,
) {
    assert!(weights.len() == R * stride && x.len() == T * stride);
    const { assert!(R * T <= 8) };
    // SAFETY: both slices hold so many rows of `stride`.
    let weights: [*const E; R] = std::array::from_fn(|r| unsafe { weights.as_ptr().add(r * stride) });
    // SAFETY: as above.
    let x: [*const f32; T] = std::array::from_fn(|t| unsafe { x.as_ptr().add(t * stride) });
    let mut sums = [[_mm256_setzero_ps(); T]; R];
    for at in (0..stride).step_by(LANES) {
        let mut values = [_mm256_setzero_ps(); T];
        for (value, x) in values.iter_mut().zip(x) {
            // SAFETY: `at + 8 <= stride`, a multiple of 8, and a row has `stride` floats.
            *value = unsafe { _mm256_loadu_ps(x.add(at)) };
        }
        for (sums, weights) in sums.iter_mut().zip(weights) {
            // SAFETY: as above; the features are this function's own.
            let weight = unsafe { E::load(weights.add(at)) };
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = _mm256_fmadd_ps(weight, value, *sum);
            }
        }
    }
    let mut products = [0.0; 8];
    for (four, sums) in products.chunks_exact_mut(4).zip(sums.as_flattened().chunks(4)) {
        four.copy_from_slice(&add_lanes(sums));
    }
    for (t, product) in products[..R * T].iter().enumerate() {
        out.row_mut(token + t % T)[row + t / T] = *product;
    }
}

/// Sums of the lanes of up to four registers. Each is `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`, whatever the others.
#[inline]
#[target_feature(enable = "avx2")]
fn add_lanes(v: &[__m256]) -> [f32; 4] {
    let at = |i: usize| v.get(i).copied().unwrap_or(v[0]);
    let eight = _mm256_hadd_ps(_mm256_hadd_ps(at(0), at(1)), _mm256_hadd_ps(at(2), at(3)));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let mut out = [0.0; 4];
    // SAFETY: four floats fit.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), four) };
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn ternary(weights: &Ternary, x: &Quantized, out: &mut [i32]) {
    let (packed, row_bytes) = weights.packed();
    let (values, stride, sums) = x.padded();
    let (rows, tokens) = (weights.rows(), x.count());
    assert!(row_bytes * 4 == stride && packed.len() == rows * row_bytes && values.len() == tokens * stride);
    assert!(out.len() == rows * tokens && sums.len() == tokens);
    let mut row = 0;
    while row < rows {
        let height = if rows - row >= TALL_TERNARY { TALL_TERNARY } else { 1 };
        let packed = &packed[row * row_bytes..(row + height) * row_bytes];
        let mut store = |row: usize, token: usize, product: i32| out[token * rows + row] = product - sums[token];
        let (fours, rest) = values.split_at(tokens / 4 * 4 * stride);
        for (i, values) in fours.chunks_exact(4 * stride).enumerate() {
            for (r, packed) in packed.chunks_exact(row_bytes).enumerate() {
                let products = ternary_tile::<1, 4>(packed, values, stride);
                products.into_iter().enumerate().for_each(|(t, product)| store(row + r, 4 * i + t, product));
            }
        }
        for (i, values) in rest.chunks_exact(stride).enumerate() {
            let token = tokens / 4 * 4 + i;
            if height == TALL_TERNARY {
                let products = ternary_tile::<TALL_TERNARY, 1>(packed, values, stride);
                products.into_iter().enumerate().for_each(|(r, product)| store(row + r, token, product));
            } else {
                store(row, token, ternary_tile::<1, 1>(packed, values, stride)[0]);
            }
        }
        row += height;
    }
}

/// Sums of code × value for `R` rows and `T` tokens.
///
/// Within a block four products of pairs are added in 16 bits: at most 4 · 2 · 2 · 128 = 2048. They are widened to
/// 32 bits after each block, so nothing wraps below 8 million columns.
#[inline]
#[target_feature(enable = "avx2")]
fn ternary_tile<const R: usize, const T: usize>(packed: &[u8], values: &[i8], stride: usize) -> [i32; 4] {
    const { assert!(R * T == 4 || R * T == 1) };
    let row_bytes = stride / 4;
    assert!(packed.len() == R * row_bytes && values.len() == T * stride);
    // SAFETY: both slices hold so many rows.
    let packed: [*const u8; R] = std::array::from_fn(|r| unsafe { packed.as_ptr().add(r * row_bytes) });
    // SAFETY: as above.
    let values: [*const i8; T] = std::array::from_fn(|t| unsafe { values.as_ptr().add(t * stride) });
    let mask = _mm256_set1_epi8(3);
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); T]; R];
    for block in 0..stride / BLOCK {
        for (sums, packed) in sums.iter_mut().zip(packed) {
            // SAFETY: a packed row has 32 bytes per block.
            let bytes = unsafe { load(packed.add(block * BLOCK_BYTES)) };
            let codes = [
                _mm256_and_si256(bytes, mask),
                _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask),
                _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), mask),
            ];
            for (sum, values) in sums.iter_mut().zip(values) {
                let mut pairs = _mm256_setzero_si256();
                for (plane, codes) in codes.iter().enumerate() {
                    // SAFETY: a row of values has 128 bytes per block, 32 for each plane.
                    let values = unsafe { load(values.add(block * BLOCK + plane * BLOCK_BYTES).cast()) };
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(*codes, values));
                }
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    add_four(sums.as_flattened())
}

/// # Safety
/// 32 bytes are readable at `from`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// Sums of the lanes of up to four registers.
#[inline]
#[target_feature(enable = "avx2")]
fn add_four(v: &[__m256i]) -> [i32; 4] {
    let at = |i: usize| v.get(i).copied().unwrap_or(v[0]);
    let eight = _mm256_hadd_epi32(_mm256_hadd_epi32(at(0), at(1)), _mm256_hadd_epi32(at(2), at(3)));
    let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let mut out = [0; 4];
    // SAFETY: four integers fit.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), four) };
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_integers(v: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantise(x: &Rows, out: &mut Quantized) {
    let (input, stride) = x.padded();
    assert!(stride.is_multiple_of(LANES));
    for (token, row) in input.chunks_exact(stride.max(LANES)).enumerate() {
        let scale = portable::scale_of(largest_magnitude(row));
        if scale.is_nan() {
            out.set(token, scale, 0);
            continue;
        }
        let factor = _mm256_set1_ps(scale);
        let mut sums = _mm256_setzero_si256();
        let to = out.padded_row_mut(token);
        assert!(to.len() >= row.len());
        for at in (0..row.len()).step_by(LANES) {
            // SAFETY: at + 8 <= row.len(), a multiple of 8.
            let values = unsafe { _mm256_loadu_ps(row.as_ptr().add(at)) };
            // The conversion rounds half to even; the packing below saturates at -128 and 127.
            let values = _mm256_cvtps_epi32(_mm256_mul_ps(values, factor));
            sums = _mm256_add_epi32(sums, values);
            let words = _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
            // SAFETY: at + 8 <= row.len() <= to.len().
            unsafe { _mm_storeu_si64(to.as_mut_ptr().add(at).cast(), _mm_packs_epi16(words, words)) };
        }
        out.set(token, scale, add_integers(sums));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest_magnitude(row: &[f32]) -> u32 {
    let mask = _mm256_set1_epi32(0x7fff_ffff);
    let mut largest = _mm256_setzero_si256();
    for values in row.chunks_exact(LANES) {
        // SAFETY: the chunk holds eight floats.
        let bits = _mm256_castps_si256(unsafe { _mm256_loadu_ps(values.as_ptr()) });
        largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, mask));
    }
    let four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
    let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))).cast_unsigned()
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn attend(input: &Attention<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    portable::attend(input, scores, out);
}
