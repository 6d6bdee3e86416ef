//! Ternary products for x86-64 with AVX2 and AVX-VNNI: 32 products and their sums in one instruction.
//!
//! Every function of this module may be called only on a CPU that has these features.

use super::Tokens;
use super::memory::Block;
use super::ternary::PANEL;
use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi32, _mm256_and_si256, _mm256_dpbusd_avx_epi32,
    _mm256_extract_epi32, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_srli_epi16, _mm256_storeu_si256,
};

/// How far ahead of its use a panel is asked for.
const AHEAD: usize = 32;

/// Sums of code × value of one panel for all tokens.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn panel(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    let Tokens { values, stride, .. } = *tokens;
    assert!(stride >= panel.len() * 16 && values.len() == out.len() * stride);
    let mut done = 0;
    while done < out.len() {
        let left = out.len() - done;
        let values = &values[done * stride..];
        let out = &mut out[done..];
        done += match left {
            6.. => {
                tile::<6, 2, 0>(panel, values, stride, out);
                tile::<6, 2, 2>(panel, values, stride, out)
            }
            2.. => tile::<2, 4, 0>(panel, values, stride, out),
            _ => tile::<1, 4, 0>(panel, values, stride, out),
        };
    }
}

/// `T` tokens and the quarters (8 rows each) `FIRST` to `FIRST + Q` of the panel; returns `T`.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn tile<const T: usize, const Q: usize, const FIRST: usize>(
    panel: &[Block],
    values: &[i8],
    stride: usize,
    out: &mut [[i32; PANEL]],
) -> usize {
    const { assert!(T * Q <= 12 && FIRST + Q <= 4) };
    assert!(stride >= panel.len() * 16 && values.len() >= T * stride && out.len() >= T);
    let mask = _mm256_set1_epi8(3);
    // Pointers first: indices would be checked for overflow in the loop.
    // SAFETY: `values` holds `T` rows of `stride`, and that is at least 16 for each block.
    let rows: [*const i8; T] = std::array::from_fn(|token| unsafe { values.as_ptr().add(token * stride) });
    let mut sums = [[_mm256_setzero_si256(); Q]; T];
    for (index, block) in panel.iter().enumerate() {
        let ahead = (&raw const *block).wrapping_add(AHEAD).cast::<i8>();
        // A prefetch reads nothing, so its address may lie behind the panel.
        _mm_prefetch::<_MM_HINT_T0>(ahead);
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
        let mut codes: [__m256i; Q] = std::array::from_fn(|q| load(block, FIRST + q));
        // SAFETY: likewise, and the block is one of the panel.
        let rows: [*const i8; T] = rows.map(|row| unsafe { row.add(16 * index) });
        for j in 0..4 {
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: 16 values are readable from `row` on.
                let value = unsafe { row.add(4 * j).cast::<i32>().read_unaligned() };
                let value = _mm256_set1_epi32(value);
                for (sum, codes) in sums.iter_mut().zip(&codes) {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, _mm256_and_si256(*codes, mask), value);
                }
            }
            for codes in &mut codes {
                *codes = _mm256_srli_epi16::<2>(*codes);
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        for (q, sum) in sums.into_iter().enumerate() {
            let quarter: &mut [i32; 8] = &mut out.as_chunks_mut().0[FIRST + q];
            // SAFETY: eight integers fit.
            unsafe { _mm256_storeu_si256(quarter.as_mut_ptr().cast(), sum) };
        }
    }
    T
}

/// Sums of code × value of one panel of `BITS` bits per code for all tokens.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn codes<const BITS: i32>(panel: &[Block], tokens: &Tokens<'_>, out: &mut [[i32; PANEL]]) {
    const { assert!(BITS == 1 || BITS == 4 || BITS == 8) };
    let Tokens { values, stride, .. } = *tokens;
    let columns = 32 / BITS as usize;
    assert!(stride >= panel.len() * columns && values.len() == out.len() * stride);
    let mask = _mm256_set1_epi8(((1_u16 << BITS) - 1) as i8);
    for (values, out) in values.chunks_exact(stride).zip(out) {
        let mut sums = [_mm256_setzero_si256(); 4];
        for (block, values) in panel.iter().zip(values.chunks_exact(columns)) {
            let ahead = (&raw const *block).wrapping_add(AHEAD).cast::<i8>();
            _mm_prefetch::<_MM_HINT_T0>(ahead);
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
            let mut codes: [__m256i; 4] = std::array::from_fn(|quarter| load(block, quarter));
            for value in values.as_chunks::<4>().0 {
                let value = _mm256_set1_epi32(i32::from_le_bytes(value.map(i8::cast_unsigned)));
                for (sum, codes) in sums.iter_mut().zip(&mut codes) {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, _mm256_and_si256(*codes, mask), value);
                    *codes = _mm256_srli_epi16::<BITS>(*codes);
                }
            }
        }
        for (quarter, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            // SAFETY: eight integers fit.
            unsafe { _mm256_storeu_si256(quarter.as_mut_ptr().cast(), sum) };
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

/// Multiply-adds per call of [`peak`].
pub(super) const PEAK_WORK: usize = 12 * 32 * 4096;

/// The dot-product instruction at full speed, for comparison.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn peak() -> i32 {
    let mut sums = [_mm256_setzero_si256(); 12];
    let one = _mm256_set1_epi8(1);
    let values = std::hint::black_box(one);
    for _ in 0..PEAK_WORK / (12 * 32) {
        // Hidden from the compiler, which could compute the sums without the rounds.
        let codes = std::hint::black_box(one);
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, codes, values);
        }
    }
    let total = sums.into_iter().reduce(|a, b| _mm256_add_epi32(a, b)).unwrap_or(one);
    _mm256_extract_epi32::<0>(total)
}
