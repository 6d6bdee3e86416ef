//! Products of 16-bit whole numbers, two at a time in each lane of a register of floats.
//!
//! Twice as many of them are made at once as products of floats, on a CPU with such instructions, and their sums are
//! exact: the callers keep every sum within 32 bits.

#![expect(clippy::inline_always, reason = "compiled into callers that have the features of the register")]

use super::simd::{SHIFT, Vector};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _CMP_LT_OQ, _mm256_add_epi32, _mm256_blend_epi16, _mm256_blendv_ps,
    _mm256_castps_si256, _mm256_cmp_ps, _mm256_cvtepi32_ps, _mm256_div_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_storeu_si256, _mm512_castps_si512,
    _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_dpwssd_epi32, _mm512_loadu_si512,
    _mm512_mask_blend_epi16, _mm512_mask_blend_ps, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi32,
    _mm512_storeu_si512,
};

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{
    float32x4_t, int32x4_t, vaddq_s32, vandq_u32, vbslq_f32, vcltq_f32, vcvtq_f32_s32, vdivq_f32, vdupq_n_f32,
    vdupq_n_s32, vdupq_n_u32, vget_low_s16, vld1q_s32, vmull_high_s16, vmull_s16, vorrq_u32, vpaddq_s32,
    vreinterpretq_s16_s32, vreinterpretq_s32_f32, vreinterpretq_s32_u32, vreinterpretq_u32_s32, vshlq_n_u32, vst1q_s32,
};

/// Floats of a register beside as many pairs of whole numbers.
///
/// # Safety
/// As [`Vector`].
pub(super) trait Pairs: Vector {
    /// A whole number of 32 bits, or two of 16, per lane.
    type Ints: Copy;

    /// All lanes 0.
    unsafe fn zero() -> Self::Ints;
    /// A pair per lane, from memory, any alignment.
    unsafe fn load_pairs(from: *const [u8; 4]) -> Self::Ints;
    /// To memory, any alignment.
    unsafe fn store_pairs(pairs: Self::Ints, to: *mut [u8; 4]);
    /// `sum + first · one + second · other` in each lane, where `[one, other]` are those at `pair`.
    unsafe fn add_products(sum: Self::Ints, pairs: Self::Ints, pair: *const [u8; 4]) -> Self::Ints;
    /// Sums as floats.
    unsafe fn from_ints(ints: Self::Ints) -> Self;
    /// Pairs of the nearest whole numbers.
    unsafe fn round_to_pairs(first: Self, second: Self) -> Self::Ints;
    /// `self` where `a < b`, else the other one.
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self;
    /// `1 / self`.
    unsafe fn reciprocal(self) -> Self;
}

impl Pairs for [f32; 8] {
    type Ints = [i32; 8];

    #[inline(always)]
    unsafe fn zero() -> Self::Ints {
        [0; 8]
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Self::Ints>().read_unaligned() }.map(i32::from_le)
    }

    #[inline(always)]
    unsafe fn store_pairs(pairs: Self::Ints, to: *mut [u8; 4]) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self::Ints>().write_unaligned(pairs.map(i32::to_le)) }
    }

    #[inline(always)]
    unsafe fn add_products(sum: Self::Ints, pairs: Self::Ints, pair: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise.
        let pair = i32::from_le(unsafe { pair.cast::<i32>().read_unaligned() });
        std::array::from_fn(|i| {
            let low = i32::from(pairs[i] as i16) * i32::from(pair as i16);
            let high = (pairs[i] >> 16) * (pair >> 16);
            sum[i].wrapping_add(low).wrapping_add(high)
        })
    }

    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        ints.map(|x| x as f32)
    }

    #[inline(always)]
    unsafe fn round_to_pairs(first: Self, second: Self) -> Self::Ints {
        std::array::from_fn(|i| {
            let (low, high) = ((first[i] + SHIFT).to_bits(), (second[i] + SHIFT).to_bits());
            (low & 0xffff | high << 16).cast_signed()
        })
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        std::array::from_fn(|i| if a[i] < b[i] { self[i] } else { other[i] })
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        self.map(f32::recip)
    }
}

// Each function's promise is that of the trait. Every AArch64 CPU has the features.
#[cfg(target_arch = "aarch64")]
impl Pairs for [float32x4_t; 2] {
    type Ints = [int32x4_t; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { [vdupq_n_s32(0); 2] }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise; this load needs no alignment.
        unsafe { [vld1q_s32(from.cast()), vld1q_s32(from.add(4).cast())] }
    }

    #[inline(always)]
    unsafe fn store_pairs(pairs: Self::Ints, to: *mut [u8; 4]) {
        // SAFETY: the caller's promise; this store needs no alignment.
        unsafe {
            vst1q_s32(to.cast(), pairs[0]);
            vst1q_s32(to.add(4).cast(), pairs[1]);
        }
    }

    #[inline(always)]
    unsafe fn add_products(sum: Self::Ints, pairs: Self::Ints, pair: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let pair = vreinterpretq_s16_s32(vdupq_n_s32(pair.cast::<i32>().read_unaligned()));
            let half = |at: usize| {
                let pairs = vreinterpretq_s16_s32(pairs[at]);
                let low = vmull_s16(vget_low_s16(pairs), vget_low_s16(pair));
                vaddq_s32(sum[at], vpaddq_s32(low, vmull_high_s16(pairs, pair)))
            };
            [half(0), half(1)]
        }
    }

    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vcvtq_f32_s32(ints[0]), vcvtq_f32_s32(ints[1])] }
    }

    #[inline(always)]
    unsafe fn round_to_pairs(first: Self, second: Self) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let (first, second) = (first.add(Self::splat(SHIFT)), second.add(Self::splat(SHIFT)));
            let bits = |x: float32x4_t| vreinterpretq_u32_s32(vreinterpretq_s32_f32(x));
            let half = |at: usize| {
                let low = vandq_u32(bits(first[at]), vdupq_n_u32(0xffff));
                vreinterpretq_s32_u32(vorrq_u32(low, vshlq_n_u32::<16>(bits(second[at]))))
            };
            [half(0), half(1)]
        }
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let half = |at: usize| vbslq_f32(vcltq_f32(a[at], b[at]), self[at], other[at]);
            [half(0), half(1)]
        }
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vdivq_f32(vdupq_n_f32(1.0), self[0]), vdivq_f32(vdupq_n_f32(1.0), self[1])] }
    }
}

// Each function's promise is that of the trait: the CPU has AVX2.
#[cfg(target_arch = "x86_64")]
impl Pairs for __m256 {
    type Ints = __m256i;

    #[inline(always)]
    unsafe fn zero() -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_pairs(pairs: Self::Ints, to: *mut [u8; 4]) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), pairs) }
    }

    #[inline(always)]
    unsafe fn add_products(sum: Self::Ints, pairs: Self::Ints, pair: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let pair = _mm256_set1_epi32(pair.cast::<i32>().read_unaligned());
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, pair))
        }
    }

    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    unsafe fn round_to_pairs(first: Self, second: Self) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let first = _mm256_castps_si256(first.add(Self::splat(SHIFT)));
            let second = _mm256_castps_si256(second.add(Self::splat(SHIFT)));
            _mm256_blend_epi16::<0b1010_1010>(first, _mm256_slli_epi32::<16>(second))
        }
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_blendv_ps(other, self, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_div_ps(Self::splat(1.0), self) }
    }
}

// Each function's promise is that of the trait: the CPU has AVX-512 F, BW and VNNI.
#[cfg(target_arch = "x86_64")]
impl Pairs for __m512 {
    type Ints = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_pairs(pairs: Self::Ints, to: *mut [u8; 4]) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), pairs) }
    }

    #[inline(always)]
    unsafe fn add_products(sum: Self::Ints, pairs: Self::Ints, pair: *const [u8; 4]) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(pair.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    unsafe fn round_to_pairs(first: Self, second: Self) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let first = _mm512_castps_si512(first.add(Self::splat(SHIFT)));
            let second = _mm512_castps_si512(second.add(Self::splat(SHIFT)));
            _mm512_mask_blend_epi16(0xaaaa_aaaa, first, _mm512_slli_epi32::<16>(second))
        }
    }

    #[inline(always)]
    unsafe fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), other, self) }
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_div_ps(Self::splat(1.0), self) }
    }
}
