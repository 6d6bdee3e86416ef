//! Kernels for x86-64 with AVX-512 F, BW, DQ, VL and VNNI: 64 integer products and their sums in one instruction.
//!
//! Every function of this module may be called only on a CPU that has these features.

use super::memory::Block;
use super::simd::Element;
use super::ternary::PANEL;
use super::{DenseRows, Tokens, floats};
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32,
    _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srai_epi32,
    _mm512_srli_epi16, _mm512_storeu_si512,
};

/// How far ahead of its use a panel is asked for.
const AHEAD: usize = 32;
/// Most blocks for which the sums of the highest field, 64 times too large, fit in 32 bits: 64 · 2 · 128 · 4 each.
const MOST_UNSHIFTED: usize = (1 << 31) / (64 * 2 * 128 * 4) - 1;

/// As [`floats::dense`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn dense<E: Element>(work: DenseRows<'_, E>, out: &mut [f32]) {
    // SAFETY: this function has the features of the register.
    unsafe { floats::dense::<__m512, E>(work, out) }
}

/// Sums of code × value of one panel for all tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn panel(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    let Tokens { values, stride, .. } = *tokens;
    assert!(stride >= panel.len() * 16 && values.len() == out.len() * stride);
    let mut done = 0;
    while done < out.len() {
        let left = out.len() - done;
        let values = &values[done * stride..];
        let out = &mut out[done..];
        done += match left {
            12.. => tile::<12>(panel, values, stride, out),
            8.. => tile::<8>(panel, values, stride, out),
            4.. => tile::<4>(panel, values, stride, out),
            2.. => tile::<2>(panel, values, stride, out),
            _ if panel.len() <= MOST_UNSHIFTED => single(panel, values, out),
            _ => tile::<1>(panel, values, stride, out),
        };
    }
}

/// One token. The codes stay where they are in their bytes, so that no shift is needed: the sums of the fields are 1,
/// 4, 16 and 64 times too large and are divided, without a remainder, at the end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn single(panel: &[Block], values: &[i8], out: &mut [[i32; PANEL]]) -> usize {
    assert!(values.len() >= panel.len() * 16 && !out.is_empty());
    let masks = [3, 12, 48, -64].map(|mask| _mm512_set1_epi8(mask));
    let mut sums = [[_mm512_setzero_si512(); 4]; 2];
    for (block, values) in panel.iter().zip(values.as_chunks().0) {
        let ahead = (&raw const *block).wrapping_add(AHEAD).cast::<i8>();
        // A prefetch reads nothing, so its address may lie behind the panel.
        _mm_prefetch::<_MM_HINT_T0>(ahead);
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
        let values = four(values);
        for (half, sums) in sums.iter_mut().enumerate() {
            let codes = load(block, half);
            for ((sum, mask), value) in sums.iter_mut().zip(masks).zip(values) {
                *sum = _mm512_dpbusd_epi32(*sum, _mm512_and_si512(codes, mask), _mm512_set1_epi32(value));
            }
        }
    }
    for (half, [a, b, c, d]) in sums.into_iter().enumerate() {
        let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
        let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
        store(&mut out[0], half, _mm512_add_epi32(low, high));
    }
    1
}

/// `T` tokens; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const T: usize>(panel: &[Block], values: &[i8], stride: usize, out: &mut [[i32; PANEL]]) -> usize {
    const { assert!(T <= 12) };
    assert!(stride >= panel.len() * 16 && values.len() >= T * stride && out.len() >= T);
    let mask = _mm512_set1_epi8(3);
    // Pointers first: indices would be checked for overflow in the loop.
    // SAFETY: `values` holds `T` rows of `stride`, and that is at least 16 for each block.
    let rows: [*const i8; T] = std::array::from_fn(|token| unsafe { values.as_ptr().add(token * stride) });
    let mut sums = [[_mm512_setzero_si512(); 2]; T];
    for (index, block) in panel.iter().enumerate() {
        let mut codes = [load(block, 0), load(block, 1)];
        // SAFETY: likewise, and the block is one of the panel.
        let rows: [*const i8; T] = rows.map(|row| unsafe { row.add(16 * index) });
        for j in 0..4 {
            let (low, high) = (_mm512_and_si512(codes[0], mask), _mm512_and_si512(codes[1], mask));
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: 16 values are readable from `row` on.
                let value = unsafe { row.add(4 * j).cast::<i32>().read_unaligned() };
                let value = _mm512_set1_epi32(value);
                sums[0] = _mm512_dpbusd_epi32(sums[0], low, value);
                sums[1] = _mm512_dpbusd_epi32(sums[1], high, value);
            }
            codes = [_mm512_srli_epi16::<2>(codes[0]), _mm512_srli_epi16::<2>(codes[1])];
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        store(out, 0, sums[0]);
        store(out, 1, sums[1]);
    }
    T
}

/// Sums of code × value of one panel of `BITS` bits per code for all tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn codes<const BITS: u32>(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    let Tokens { values, stride, .. } = *tokens;
    let columns = 32 / BITS as usize;
    assert!(stride >= panel.len() * columns && values.len() == out.len() * stride);
    let mut done = 0;
    while done < out.len() {
        let (values, out) = (&values[done * stride..], &mut out[done..]);
        done += match out.len() {
            12.. => codes_tile::<BITS, 12>(panel, values, stride, out),
            8.. => codes_tile::<BITS, 8>(panel, values, stride, out),
            4.. => codes_tile::<BITS, 4>(panel, values, stride, out),
            2.. => codes_tile::<BITS, 2>(panel, values, stride, out),
            _ => codes_tile::<BITS, 1>(panel, values, stride, out),
        };
    }
}

/// `T` tokens; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn codes_tile<const BITS: u32, const T: usize>(
    panel: &[Block],
    values: &[i8],
    stride: usize,
    out: &mut [[i32; PANEL]],
) -> usize {
    const { assert!(T <= 12 && (BITS == 1 || BITS == 4 || BITS == 8)) };
    let columns = 32 / BITS as usize;
    assert!(stride >= panel.len() * columns && values.len() >= T * stride && out.len() >= T);
    let mask = _mm512_set1_epi8(((1_u16 << BITS) - 1) as i8);
    // SAFETY: `values` holds `T` rows of `stride`, and that is at least `columns` for each block.
    let rows: [*const i8; T] = std::array::from_fn(|token| unsafe { values.as_ptr().add(token * stride) });
    let mut sums = [[_mm512_setzero_si512(); 2]; T];
    for (index, block) in panel.iter().enumerate() {
        let ahead = (&raw const *block).wrapping_add(AHEAD).cast::<i8>();
        // A prefetch reads nothing, so its address may lie behind the panel.
        _mm_prefetch::<_MM_HINT_T0>(ahead);
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
        let mut codes = [load(block, 0), load(block, 1)];
        for field in 0..8 / BITS as usize {
            let (low, high) = (_mm512_and_si512(codes[0], mask), _mm512_and_si512(codes[1], mask));
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: the block is one of the panel, so its values are readable.
                let value = unsafe { row.add(columns * index + 4 * field).cast::<i32>().read_unaligned() };
                let value = _mm512_set1_epi32(value);
                sums[0] = _mm512_dpbusd_epi32(sums[0], low, value);
                sums[1] = _mm512_dpbusd_epi32(sums[1], high, value);
            }
            codes = [_mm512_srli_epi16::<BITS>(codes[0]), _mm512_srli_epi16::<BITS>(codes[1])];
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        store(out, 0, sums[0]);
        store(out, 1, sums[1]);
    }
    T
}

/// Sixteen activations, four in a word.
#[inline]
fn four(values: &[i8; 16]) -> [i32; 4] {
    std::array::from_fn(|j| i32::from_le_bytes(std::array::from_fn(|k| values[4 * j + k].cast_unsigned())))
}

/// Half a block: 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(block: &Block, half: usize) -> __m512i {
    let half: &[u8; 64] = &block.0.as_chunks().0[half];
    // SAFETY: 64 bytes are readable.
    unsafe { _mm512_loadu_si512(half.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(out: &mut [i32; PANEL], half: usize, sums: __m512i) {
    let half: &mut [i32; 16] = &mut out.as_chunks_mut().0[half];
    // SAFETY: 16 integers fit.
    unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast(), sums) };
}

/// Multiply-adds per call of [`peak`].
pub(super) const PEAK_WORK: usize = 24 * 64 * 4096;

/// The dot-product instruction at full speed, for comparison.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn peak() -> i32 {
    let mut sums = [_mm512_setzero_si512(); 24];
    let one = _mm512_set1_epi8(1);
    let values = std::hint::black_box(_mm512_set1_epi8(1));
    for _ in 0..PEAK_WORK / (24 * 64) {
        // Hidden from the compiler, which could compute the sums without the rounds.
        let codes = std::hint::black_box(one);
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, codes, values);
        }
    }
    let mut out = [0; PANEL];
    let total = sums.into_iter().reduce(|a, b| _mm512_add_epi32(a, b)).unwrap_or(one);
    store(&mut out, 0, total);
    out[0]
}
