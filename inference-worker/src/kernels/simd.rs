//! Registers of floats, so that a loop is written once for all of them.
//!
//! A function that is generic over [`Vector`] is compiled for a register by a caller that has its features; everything
//! between them is inlined, because an intrinsic is a call unless it is inlined into a function that has its features.

#![expect(clippy::inline_always, reason = "see above")]

use half::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps, _mm_shuffle_ps,
    _mm256_add_epi32, _mm256_add_ps, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_max_ps, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm512_add_epi32,
    _mm512_add_ps, _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps, _mm512_set1_ps,
    _mm512_slli_epi32, _mm512_storeu_ps,
};

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vaddq_s32, vaddvq_f32, vbslq_f32, vcgtq_f32, vcltq_f32, vdupq_n_f32, vfmaq_f32, vld1_u16,
    vld1q_f32, vreinterpretq_f32_s32, vreinterpretq_f32_u32, vreinterpretq_s32_f32, vshll_n_u16, vshlq_n_s32,
    vst1q_f32,
};

/// Some floats that are worked on together.
///
/// # Safety
/// Every function may be called only on a CPU that has the features of the register, and pointers must be readable or
/// writable for [`Vector::LANES`] elements.
pub(super) trait Vector: Copy {
    /// Floats in a register.
    const LANES: usize;
    /// Accumulators that fit beside the operands of a product.
    const WIDE: bool;

    /// All lanes alike.
    unsafe fn splat(x: f32) -> Self;
    /// From memory, any alignment.
    unsafe fn load(from: *const f32) -> Self;
    /// From half precision.
    unsafe fn load_f16(from: *const f16) -> Self;
    /// From brain floats.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// To memory, any alignment.
    unsafe fn store(self, to: *mut f32);
    /// `self · by + plus`, rounded once where the CPU does that.
    unsafe fn fma(self, by: Self, plus: Self) -> Self;
    /// Lane by lane.
    unsafe fn add(self, other: Self) -> Self;
    /// The larger one, lane by lane; where `self` is NaN, the other one.
    unsafe fn max(self, other: Self) -> Self;
    /// NaN stays.
    unsafe fn at_least(self, least: f32) -> Self;
    /// `self · 2^n`, where `shifted` is `n` plus [`SHIFT`]; the result must be a normal number.
    unsafe fn times_power_of_two(self, shifted: Self) -> Self;
    /// Sum of the lanes, in one order.
    unsafe fn sum(self) -> f32;
}

/// A float of this size has a last place of 1: adding it rounds to a whole number, which then is in the lowest bits.
pub(super) const SHIFT: f32 = 12_582_912.0;

/// `e^x` for `x` up to 80, below -87 the exponential of that; off by 3 units in the last place at most. After `expf` of
/// the Cephes library (Moshier): `x = n ln 2 + r`, and a polynomial of `r`.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn exp<V: Vector>(x: V) -> V {
    const POLYNOMIAL: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // SAFETY: the caller's promise.
    unsafe {
        let x = x.at_least(-87.0);
        let shifted = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(SHIFT));
        let whole = shifted.add(V::splat(-SHIFT));
        // ln 2 in two parts, of which the first has few digits.
        let r = whole.fma(V::splat(-0.693_359_4), x);
        let r = whole.fma(V::splat(2.121_944_4e-4), r);
        let mut value = V::splat(1.987_569_1e-4);
        for factor in POLYNOMIAL {
            value = value.fma(r, V::splat(factor));
        }
        let square = r.fma(r, V::splat(0.0));
        value.fma(square, r).add(V::splat(1.0)).times_power_of_two(shifted)
    }
}

/// A stored float that becomes a register.
pub(super) trait Element: Copy + Send + Sync {
    /// # Safety
    /// As [`Vector`].
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
}

impl Vector for [f32; 8] {
    const LANES: usize = 8;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[f16; 8]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[bf16; 8]>().read_unaligned() }.map(bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // Two roundings: without the instruction, one would be a call for each lane.
        std::array::from_fn(|i| self[i] * by[i] + plus[i])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }

    #[inline(always)]
    unsafe fn at_least(self, least: f32) -> Self {
        self.map(|x| if x < least { least } else { x })
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        std::array::from_fn(|i| f32::from_bits(self[i].to_bits().wrapping_add(shifted[i].to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

// Each function's promise is that of the trait: pointers are good for 8 elements. Every AArch64 CPU has the features.
#[cfg(target_arch = "aarch64")]
impl Vector for [float32x4_t; 2] {
    const LANES: usize = 8;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vdupq_n_f32(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::load(from.cast::<[f16; 8]>().read_unaligned().map(f16::to_f32).as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise; bf16 is a transparent u16 that holds the upper half of an f32.
        unsafe {
            let half = |at: usize| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(at).cast())));
            [half(0), half(4)]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            vst1q_f32(to, self[0]);
            vst1q_f32(to.add(4), self[1]);
        }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vfmaq_f32(plus[0], self[0], by[0]), vfmaq_f32(plus[1], self[1], by[1])] }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vaddq_f32(self[0], other[0]), vaddq_f32(self[1], other[1])] }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise. A comparison with NaN is false.
        unsafe {
            let half = |at: usize| vbslq_f32(vcgtq_f32(self[at], other[at]), self[at], other[at]);
            [half(0), half(1)]
        }
    }

    #[inline(always)]
    unsafe fn at_least(self, least: f32) -> Self {
        // SAFETY: the caller's promise; likewise.
        unsafe {
            let least = vdupq_n_f32(least);
            let half = |at: usize| vbslq_f32(vcltq_f32(self[at], least), least, self[at]);
            [half(0), half(1)]
        }
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let half = |at: usize| {
                let power = vshlq_n_s32::<23>(vreinterpretq_s32_f32(shifted[at]));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self[at]), power))
            };
            [half(0), half(1)]
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { vaddvq_f32(vaddq_f32(self[0], self[1])) }
    }
}

// Each function's promise is that of the trait: the CPU has AVX2, FMA and F16C, and pointers are good for 8 elements.
#[cfg(target_arch = "x86_64")]
impl Vector for __m256 {
    const LANES: usize = 8;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise; f16 is a transparent u16.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise; bf16 is a transparent u16 that holds the upper half of an f32.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(self, by, plus) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise. The second operand is the result where one is NaN.
        unsafe { _mm256_max_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn at_least(self, least: f32) -> Self {
        // SAFETY: the caller's promise; likewise.
        unsafe { _mm256_max_ps(_mm256_set1_ps(least), self) }
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self), power))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

// Each function's promise is that of the trait: the CPU has AVX-512 F and DQ, AVX2, and pointers are good for 16
// elements.
#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = 16;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise; f16 is a transparent u16.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise; bf16 is a transparent u16 that holds the upper half of an f32.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(self, by, plus) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise. The second operand is the result where one is NaN.
        unsafe { _mm512_max_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn at_least(self, least: f32) -> Self {
        // SAFETY: the caller's promise; likewise.
        unsafe { _mm512_max_ps(_mm512_set1_ps(least), self) }
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), power))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_ps(_mm512_castps512_ps256(self), _mm512_extractf32x8_ps::<1>(self)).sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_arch = "x86_64")]
    use crate::kernels::Kernels;

    /// Every path's exponentials of eight and sixteen numbers.
    fn exponentials(x: [f32; 16]) -> Vec<[f32; 16]> {
        let mut all = Vec::new();
        let mut out = [0.0; 16];
        for half in 0..2 {
            // SAFETY: an array needs no features; eight numbers are there.
            unsafe { exp(<[f32; 8]>::load(x[8 * half..].as_ptr())).store(out[8 * half..].as_mut_ptr()) };
        }
        all.push(out);
        #[cfg(target_arch = "aarch64")]
        for half in 0..2 {
            // SAFETY: every AArch64 CPU has the features; eight numbers are there.
            unsafe { exp(<[float32x4_t; 2]>::load(x[8 * half..].as_ptr())).store(out[8 * half..].as_mut_ptr()) };
            all.push(out);
        }
        #[cfg(target_arch = "x86_64")]
        for kernels in Kernels::all() {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn narrow(x: &[f32; 16], out: &mut [f32; 16]) {
                for half in 0..2 {
                    // SAFETY: this function has the features; eight numbers are there.
                    unsafe { exp(__m256::load(x[8 * half..].as_ptr())).store(out[8 * half..].as_mut_ptr()) };
                }
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn wide(x: &[f32; 16], out: &mut [f32; 16]) {
                // SAFETY: this function has the features; sixteen numbers are there.
                unsafe { exp(__m512::load(x.as_ptr())).store(out.as_mut_ptr()) };
            }
            match kernels.name() {
                "portable" => continue,
                // SAFETY: these kernels exist only where the CPU has the features.
                "avx512-vnni" => unsafe { wide(&x, &mut out) },
                // SAFETY: likewise.
                _ => unsafe { narrow(&x, &mut out) },
            }
            all.push(out);
        }
        all
    }

    #[test]
    fn exponentials_are_those_of_the_standard_library_on_every_path() {
        let numbers: Vec<f32> =
            (0..200_000).map(|i| 80.0 - i as f32 * 8.35e-4).chain([0.0, -0.0, 1.0, -1e-30]).collect();
        for x in numbers.as_chunks::<16>().0 {
            for found in exponentials(*x) {
                for (x, found) in x.iter().zip(found) {
                    let expected = f64::from(x.max(-87.0)).exp();
                    assert!(
                        (f64::from(found) - expected).abs() <= 3.0 * 1.2e-7 * expected,
                        "e^{x} = {expected}: {found}"
                    );
                }
            }
        }
        let mut x = [f32::NEG_INFINITY; 16];
        x[3] = f32::NAN;
        for found in exponentials(x) {
            assert!(found[3].is_nan() && found[0] < 2e-38 && found[0] >= 0.0);
        }
    }
}
