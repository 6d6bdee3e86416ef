//! Kernels for x86-64 with AVX2, FMA and F16C.
//!
//! Every function of this module may be called only on a CPU that has these features.

#![expect(
    clippy::inline_always,
    reason = "an intrinsic is a call unless it is inlined into a function that has its features"
)]

use super::memory::Block;
use super::ternary::PANEL;
use super::{Attention, DenseRows, Tokens, portable};
use half::{bf16, f16};
use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _mm_add_epi32, _mm_add_ps, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_max_epu32,
    _mm_packs_epi16, _mm_packs_epi32, _mm_prefetch, _mm_shuffle_epi32, _mm_storeu_ps, _mm_storeu_si64,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_castps_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epu32, _mm256_mul_ps, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32,
    _mm256_srai_epi32, _mm256_srli_epi16, _mm256_storeu_si256,
};

/// Floats per register.
const LANES: usize = 8;
/// How many blocks ahead of its use a panel is asked for: what one core reads in about 200 ns.
const AHEAD: usize = 32;

/// A stored float that eight of which become a register of f32.
pub(super) trait Element: portable::Stored {
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

/// Rows whose products one call makes at most.
pub(super) const DENSE_ROWS: usize = 32;
/// Tokens of a tile of many.
const MANY: usize = 6;
/// Columns that a tile of many works on before it turns to other rows: their activations stay in the first-level cache.
const STRETCH: usize = 512;

/// `out[token × rows + row]` for all tokens and rows. Each pair has one accumulator of eight lanes that runs over the
/// columns in order, so its result does not depend on what else is computed.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dense<E: Element>(DenseRows { elements, stride, x, .. }: DenseRows<'_, E>, out: &mut [f32]) {
    assert!(stride > 0 && stride.is_multiple_of(LANES));
    let (rows, tokens) = (elements.len() / stride, x.len() / stride);
    assert!(rows <= DENSE_ROWS && elements.len() == rows * stride && x.len() == tokens * stride);
    assert!(out.len() == rows * tokens);
    let mut done = 0;
    while done < tokens {
        let height = (tokens - done).min(MANY);
        let x = &x[done * stride..(done + height) * stride];
        let out = &mut out[done * rows..(done + height) * rows];
        match height {
            1 => few::<E, 1>(elements, x, stride, out),
            2 => few::<E, 2>(elements, x, stride, out),
            3 => few::<E, 3>(elements, x, stride, out),
            4 => few::<E, 4>(elements, x, stride, out),
            5 => few::<E, 5>(elements, x, stride, out),
            _ => many(elements, x, stride, out),
        }
        done += height;
    }
}

/// A few tokens: rows are read once, so as many at a time as there are registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn few<E: Element, const T: usize>(elements: &[E], x: &[f32], stride: usize, out: &mut [f32]) {
    let rows = elements.len() / stride;
    let mut row = 0;
    while row < rows {
        let rest = &elements[row * stride..];
        row += match (rows - row, T) {
            (8.., 1) => whole::<E, 8, T>(rest, x, stride, row, rows, out),
            (4.., 1 | 2) => whole::<E, 4, T>(rest, x, stride, row, rows, out),
            (2.., 1..=4 | MANY) => whole::<E, 2, T>(rest, x, stride, row, rows, out),
            _ => whole::<E, 1, T>(rest, x, stride, row, rows, out),
        };
    }
}

/// `R` rows times `T` tokens over all columns; returns `R`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn whole<E: Element, const R: usize, const T: usize>(
    elements: &[E],
    x: &[f32],
    stride: usize,
    row: usize,
    rows: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [[_mm256_setzero_ps(); T]; R];
    // SAFETY: the caller has checked that both hold so many rows of `stride`, a multiple of 8.
    unsafe { add_products(&mut sums, elements, x, stride, 0..stride) };
    let mut products = [0.0; 12];
    for (four, sums) in products.as_chunks_mut::<4>().0.iter_mut().zip(sums.as_flattened().chunks(4)) {
        *four = add_lanes(sums);
    }
    for (index, product) in products[..R * T].iter().enumerate() {
        out[index % T * rows + row + index / T] = *product;
    }
    R
}

/// Six tokens: the activations are more than the cache holds, so columns are taken in stretches. Between them the
/// accumulators lie in memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn many<E: Element>(elements: &[E], x: &[f32], stride: usize, out: &mut [f32]) {
    let rows = elements.len() / stride;
    if stride <= STRETCH {
        few::<E, MANY>(elements, x, stride, out);
        return;
    }
    let mut sums = [[_mm256_setzero_ps(); MANY]; DENSE_ROWS];
    for start in (0..stride).step_by(STRETCH) {
        let columns = start..(start + STRETCH).min(stride);
        let (pairs, rest) = sums[..rows].as_chunks_mut::<2>();
        for (pair, elements) in pairs.iter_mut().zip(elements.chunks_exact(2 * stride)) {
            // SAFETY: two rows and six tokens of `stride`, a multiple of 8; the stretch ends inside it.
            unsafe { add_products(pair, elements, x, stride, columns.clone()) };
        }
        if let [last] = rest {
            let elements = &elements[(rows - 1) * stride..];
            // SAFETY: as above, one row.
            unsafe { add_products(std::array::from_mut(last), elements, x, stride, columns) };
        }
    }
    for (row, sums) in sums[..rows].iter().enumerate() {
        for (token, sum) in sums.iter().enumerate() {
            out[token * rows + row] = add_lanes(std::slice::from_ref(sum))[0];
        }
    }
}

/// Adds the products of some columns.
///
/// # Safety
/// `elements` holds at least `R` rows of `stride` and `x` at least `T`; `columns` lies inside `stride` and both its ends
/// are multiples of 8.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<E: Element, const R: usize, const T: usize>(
    sums: &mut [[__m256; T]; R],
    elements: &[E],
    x: &[f32],
    stride: usize,
    columns: std::ops::Range<usize>,
) {
    debug_assert!(elements.len() >= R * stride && x.len() >= T * stride && columns.end <= stride);
    // Pointers first: indices would be checked for overflow in the loop.
    // SAFETY: by the caller's promise so many rows are there.
    let rows: [*const E; R] = std::array::from_fn(|r| unsafe { elements.as_ptr().add(r * stride) });
    // SAFETY: likewise.
    let x: [*const f32; T] = std::array::from_fn(|t| unsafe { x.as_ptr().add(t * stride) });
    let mut local = *sums;
    for at in columns.step_by(LANES) {
        // The smaller side is held in registers, the other one is read one by one: all must fit beside the sums.
        if R > T {
            let mut values = [_mm256_setzero_ps(); T];
            for (value, x) in values.iter_mut().zip(x) {
                // SAFETY: by the caller's promise 8 floats of each row are readable here.
                *value = unsafe { _mm256_loadu_ps(x.add(at)) };
            }
            for (sums, row) in local.iter_mut().zip(rows) {
                // SAFETY: likewise, 8 elements.
                let weight = unsafe { E::load(row.add(at)) };
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = _mm256_fmadd_ps(weight, value, *sum);
                }
            }
        } else {
            let mut weights = [_mm256_setzero_ps(); R];
            for (weight, row) in weights.iter_mut().zip(rows) {
                // SAFETY: by the caller's promise 8 elements of each row are readable here.
                *weight = unsafe { E::load(row.add(at)) };
            }
            for (t, x) in x.iter().enumerate() {
                // SAFETY: likewise, 8 floats.
                let value = unsafe { _mm256_loadu_ps(x.add(at)) };
                for (sums, weight) in local.iter_mut().zip(weights) {
                    sums[t] = _mm256_fmadd_ps(weight, value, sums[t]);
                }
            }
        }
    }
    *sums = local;
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

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn attend(input: &Attention<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    portable::attend(input, scores, out);
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
