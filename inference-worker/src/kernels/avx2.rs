//! Kernels for x86-64 with AVX2, FMA and F16C.
//!
//! Every function of this module may be called only on a CPU that has these features.

use super::memory::Block;
use super::simd::Element;
use super::ternary::PANEL;
use super::{DenseRows, Tokens, floats, portable};
use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _mm_add_epi32, _mm_cvtsi128_si32, _mm_max_epu32, _mm_packs_epi16, _mm_packs_epi32,
    _mm_prefetch, _mm_shuffle_epi32, _mm_storeu_si64, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_castps_si256, _mm256_castsi256_si128, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_cvtps_epi32,
    _mm256_extracti128_si256, _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_max_epu32, _mm256_mul_ps, _mm256_permute4x64_epi64, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_srai_epi32, _mm256_srli_epi16,
    _mm256_storeu_si256,
};

/// Floats per register.
const LANES: usize = 8;
/// How many blocks ahead of its use a panel is asked for: what one core reads in about 200 ns.
const AHEAD: usize = 32;

/// As [`floats::dense`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dense<E: Element>(work: DenseRows<'_, E>, out: &mut [f32]) {
    // SAFETY: this function has the features of the register.
    unsafe { floats::dense::<__m256, E>(work, out) }
}

/// Sums of code × value of one panel for all tokens.
#[target_feature(enable = "avx2")]
pub(super) fn panel(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    let Tokens { values, stride, .. } = *tokens;
    assert!(stride >= panel.len() * 16 && values.len() == out.len() * stride);
    let mut done = 0;
    while done < out.len() {
        let left = out.len() - done;
        let values = &values[done * stride..];
        let out = &mut out[done..];
        done += match left {
            4.. => tile::<4>(panel, values, stride, out),
            3 => tile::<3>(panel, values, stride, out),
            2 => tile::<2>(panel, values, stride, out),
            _ => single(panel, values, out),
        };
    }
}

/// One token.
///
/// Two of the four fields are used where they are, and so are the other two after one shift by four bits; the sums of
/// the upper ones are four times too large and are divided, without a remainder, at the end. In 16 bits a sum holds 8
/// blocks: two products of pairs in each, at most 2 · 8 · 127 · 2 · 8 = 32512, at least -32768.
#[inline]
#[target_feature(enable = "avx2")]
fn single(panel: &[Block], values: &[i8], out: &mut [[i32; PANEL]]) -> usize {
    const BLOCKS: usize = 8;
    assert!(values.len() >= panel.len() * 16 && !out.is_empty());
    let zero = _mm256_setzero_si256();
    let ones = _mm256_set1_epi16(1);
    let (low, high) = (_mm256_set1_epi8(3), _mm256_set1_epi8(12));
    let mut totals = [[zero; 4]; 2];
    for (panel, values) in panel.chunks(BLOCKS).zip(values.as_chunks::<16>().0.chunks(BLOCKS)) {
        let mut sums = [[zero; 4]; 2];
        for (block, values) in panel.iter().zip(values) {
            let ahead = (&raw const *block).wrapping_add(AHEAD).cast::<i8>();
            // A prefetch reads nothing, so its address may lie behind the panel.
            _mm_prefetch::<_MM_HINT_T0>(ahead);
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
            let value: [__m256i; 4] = std::array::from_fn(|j| {
                let four: &[i8; 4] = &values.as_chunks().0[j];
                _mm256_set1_epi32(i32::from_ne_bytes(four.map(i8::cast_unsigned)))
            });
            for quarter in 0..4 {
                let codes = load(block, quarter);
                let shifted = _mm256_srli_epi16::<4>(codes);
                let product = |codes, mask, value| _mm256_maddubs_epi16(_mm256_and_si256(codes, mask), value);
                let [lows, highs] = &mut sums;
                lows[quarter] = _mm256_add_epi16(lows[quarter], product(codes, low, value[0]));
                highs[quarter] = _mm256_add_epi16(highs[quarter], product(codes, high, value[1]));
                lows[quarter] = _mm256_add_epi16(lows[quarter], product(shifted, low, value[2]));
                highs[quarter] = _mm256_add_epi16(highs[quarter], product(shifted, high, value[3]));
            }
        }
        for (totals, sums) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
            *totals = _mm256_add_epi32(*totals, _mm256_madd_epi16(*sums, ones));
        }
    }
    let [lows, highs] = totals;
    for (quarter, (low, high)) in lows.into_iter().zip(highs).enumerate() {
        store(&mut out[0], quarter, _mm256_add_epi32(low, _mm256_srai_epi32::<2>(high)));
    }
    1
}

/// `T` tokens; returns `T`.
///
/// In 16 bits a sum holds 16 blocks: four products of pairs in each, at most 4 · 2 · 2 · 127 · 16 = 32512, at least
/// -32768.
#[inline]
#[target_feature(enable = "avx2")]
fn tile<const T: usize>(panel: &[Block], values: &[i8], stride: usize, out: &mut [[i32; PANEL]]) -> usize {
    const BLOCKS: usize = 16;
    const { assert!(T <= 4) };
    assert!(stride >= panel.len() * 16 && values.len() >= T * stride && out.len() >= T);
    let zero = _mm256_setzero_si256();
    let ones = _mm256_set1_epi16(1);
    let mask = _mm256_set1_epi8(3);
    // Pointers first: indices would be checked for overflow in the loop.
    // SAFETY: `values` holds `T` rows of `stride`.
    let rows: [*const i8; T] = std::array::from_fn(|token| unsafe { values.as_ptr().add(token * stride) });
    for half in 0..2 {
        let mut totals = [[zero; 2]; T];
        for (chunk, panel) in panel.chunks(BLOCKS).enumerate() {
            let mut sums = [[zero; 2]; T];
            for (index, block) in panel.iter().enumerate() {
                let at = 16 * (chunk * BLOCKS + index);
                // SAFETY: `values` holds `T` rows of `stride`, and `at` lies in the first `16 · panel.len()` of one.
                let rows: [*const i8; T] = rows.map(|row| unsafe { row.add(at) });
                let mut codes = [load(block, 2 * half), load(block, 2 * half + 1)];
                for j in 0..4 {
                    let [low, high] = codes.map(|codes| _mm256_and_si256(codes, mask));
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        // SAFETY: 16 values are readable from `row` on, as its panel has a block for them.
                        let value = unsafe { row.add(4 * j).cast::<i32>().read_unaligned() };
                        let value = _mm256_set1_epi32(value);
                        sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(low, value));
                        sums[1] = _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(high, value));
                    }
                    codes = codes.map(|codes| _mm256_srli_epi16::<2>(codes));
                }
            }
            for (totals, sums) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                *totals = _mm256_add_epi32(*totals, _mm256_madd_epi16(*sums, ones));
            }
        }
        for (totals, out) in totals.into_iter().zip(&mut *out) {
            store(out, 2 * half, totals[0]);
            store(out, 2 * half + 1, totals[1]);
        }
    }
    T
}

/// Sums of code × value of one panel of `BITS` bits per code for all tokens.
///
/// Products of up to 4 bits are added in pairs in 16 bits, at most 2 · 15 · 128; those of 8 bits are made of 16 bits, as
/// their pairs would not fit.
#[target_feature(enable = "avx2")]
pub(super) fn codes<const BITS: i32>(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    const { assert!(BITS == 1 || BITS == 4 || BITS == 8) };
    let Tokens { values, stride, .. } = *tokens;
    let columns = 32 / BITS as usize;
    assert!(stride >= panel.len() * columns && values.len() == out.len() * stride);
    let ones = _mm256_set1_epi16(1);
    let mask = _mm256_set1_epi8(((1_u16 << BITS) - 1) as i8);
    for (values, out) in values.chunks_exact(stride).zip(out) {
        let mut sums = [[_mm256_setzero_si256(); 2]; 4];
        for (block, values) in panel.iter().zip(values.chunks_exact(columns)) {
            for (quarter, [low, high]) in sums.iter_mut().enumerate() {
                let mut codes = load(block, quarter);
                for value in values.as_chunks::<4>().0 {
                    let value = _mm256_set1_epi32(i32::from_le_bytes(value.map(i8::cast_unsigned)));
                    if BITS == 8 {
                        // Two sums per row, of two columns each.
                        let value = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(value));
                        let (first, second) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
                        *low = _mm256_add_epi32(*low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(first), value));
                        *high = _mm256_add_epi32(*high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(second), value));
                    } else {
                        let pairs = _mm256_maddubs_epi16(_mm256_and_si256(codes, mask), value);
                        *low = _mm256_add_epi32(*low, _mm256_madd_epi16(pairs, ones));
                        codes = _mm256_srli_epi16::<BITS>(codes);
                    }
                }
            }
        }
        for (quarter, [low, high]) in sums.into_iter().enumerate() {
            let sums = if BITS == 8 {
                // Rows 0, 1, 4, 5 and 2, 3, 6, 7, put in order.
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high))
            } else {
                low
            };
            store(out, quarter, sums);
        }
    }
}

/// A quarter of a block: 8 rows.
#[inline]
#[target_feature(enable = "avx2")]
fn load(block: &Block, quarter: usize) -> __m256i {
    let quarter: &[u8; 32] = &block.0.as_chunks().0[quarter];
    // SAFETY: 32 bytes are readable.
    unsafe { _mm256_loadu_si256(quarter.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(out: &mut [i32; PANEL], quarter: usize, sums: __m256i) {
    let quarter: &mut [i32; 8] = &mut out.as_chunks_mut().0[quarter];
    // SAFETY: eight integers fit.
    unsafe { _mm256_storeu_si256(quarter.as_mut_ptr().cast(), sums) };
}

/// As [`portable::finish`], with wider vectors.
#[target_feature(enable = "avx2")]
pub(super) fn finish(products: &[i32; PANEL], sum: i32, divisor: f32, factor: f32, out: &mut [f32; PANEL]) {
    portable::finish(products, sum, divisor, factor, out);
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_integers(v: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}

/// As [`portable::quantise`]; both slices are padded to a multiple of 8 floats.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantise(row: &[f32], out: &mut [i8]) -> (f32, i32) {
    assert!(row.len().is_multiple_of(LANES) && out.len() >= row.len());
    let scale = portable::scale_of(largest_magnitude(row));
    if scale.is_nan() {
        out.fill(0);
        return (scale, 0);
    }
    let factor = _mm256_set1_ps(scale);
    let mut sums = _mm256_setzero_si256();
    for (row, out) in row.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        // SAFETY: eight floats are readable.
        let values = unsafe { _mm256_loadu_ps(row.as_ptr()) };
        // The conversion rounds half to even; the packing below saturates at -128 and 127.
        let values = _mm256_cvtps_epi32(_mm256_mul_ps(values, factor));
        sums = _mm256_add_epi32(sums, values);
        let words = _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
        // SAFETY: eight bytes fit.
        unsafe { _mm_storeu_si64(out.as_mut_ptr().cast(), _mm_packs_epi16(words, words)) };
    }
    (scale, add_integers(sums))
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

/// Multiply-adds per call of [`peak`].
pub(super) const PEAK_WORK: usize = 12 * 32 * 4096;

/// The instructions of a ternary product at full speed, for comparison.
#[target_feature(enable = "avx2")]
pub(super) fn peak() -> i32 {
    let mut sums = [_mm256_setzero_si256(); 12];
    let one = _mm256_set1_epi8(1);
    let values = std::hint::black_box(_mm256_set1_epi8(1));
    for _ in 0..PEAK_WORK / (12 * 32) {
        // Hidden from the compiler, which could compute the sums without the rounds.
        let codes = std::hint::black_box(one);
        for sum in &mut sums {
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes, values));
        }
    }
    add_integers(sums.into_iter().reduce(|a, b| _mm256_add_epi32(a, b)).unwrap_or(one))
}
