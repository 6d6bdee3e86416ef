//! How numbers are rounded before they are cached, in loops that the compiler can make wide for every CPU.

use crate::kernels::simd::SHIFT;
use half::f16;

/// Columns that share a step below 16 bits.
pub(in crate::kernels) const GROUP: usize = 64;

/// Largest whole number of 16 bits; its negative is the smallest one, because a product of two pairs must fit.
pub(in crate::kernels) const LARGEST: f32 = 32_767.0;
/// A bit less than the root of 2^31: what rounding adds to the length of a row is less than the difference.
const LENGTH: f32 = 46_300.0;
/// Rows of smaller numbers become zeros: their squares would not be normal numbers.
const SMALLEST: f32 = 1e-15;

/// The step of whole numbers of 16 bits for one row. Their squares add up to less than 2^31, so the product of two rows
/// (Cauchy and Schwarz) and every part of it fit in 32 bits. What rounding takes is a 14,000th of the row's length,
/// whatever the numbers; half precision takes a 5,000th. NaN if one is not finite, so that what is read shows it.
pub(in crate::kernels) fn step(numbers: &[f32]) -> f32 {
    const LANES: usize = 8;
    let (blocks, rest) = numbers.as_chunks::<LANES>();
    let (mut squares, mut largest) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for block in blocks {
        for lane in 0..LANES {
            squares[lane] += block[lane] * block[lane];
            largest[lane] = if block[lane].abs() > largest[lane] { block[lane].abs() } else { largest[lane] };
        }
    }
    let squares = squares.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    let largest = largest.iter().chain(rest).fold(0.0_f32, |most, x| most.max(x.abs()));
    if !squares.is_finite() {
        return f32::NAN;
    }
    if largest < SMALLEST { 0.0 } else { (squares.sqrt() / LENGTH).max(largest / LARGEST) }
}

/// What numbers are multiplied with before [`whole`] rounds them.
pub(in crate::kernels) fn inverse(step: f32) -> f32 {
    if step > 0.0 { step.recip() } else { 0.0 }
}

/// The nearest whole number, half to even, of a quotient whose size is at most [`LARGEST`].
#[inline]
pub(in crate::kernels) fn whole(quotient: f32) -> i16 {
    (quotient + SHIFT).to_bits() as i16
}

/// Lower bound and step of a group.
#[derive(Clone, Copy, Default)]
pub(super) struct Scale {
    pub(super) low: f32,
    pub(super) step: f32,
}

impl Scale {
    /// Covers all numbers with codes from 0 to `largest`; NaN if one is not finite or beyond half precision, so that
    /// what is read shows it.
    pub(super) fn of(numbers: &[f32], largest: u8) -> Self {
        let bounds = numbers.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
        let low = below(bounds.0);
        let step = above((bounds.1 - low) / f32::from(largest));
        if !(low + step).is_finite() || numbers.iter().any(|x| !x.is_finite()) {
            return Self { low: f32::NAN, step: f32::NAN };
        }
        Self { low, step }
    }

    /// Codes of the numbers; the others stay as they are.
    pub(super) fn codes(self, numbers: &[f32], largest: u8, out: &mut [u8; GROUP]) {
        // A step of 0 means that all numbers are the lower bound; with one of NaN codes do not matter.
        if self.step > 0.0 {
            for (out, number) in out.iter_mut().zip(numbers) {
                let code = ((number - self.low) / self.step).max(0.0).min(f32::from(largest));
                *out = (code + SHIFT).to_bits() as u8;
            }
        } else {
            out.fill(0);
        }
    }

    pub(super) fn put(self, to: &mut [u8], index: usize) {
        let [a, b] = f16::from_f32(self.low).to_le_bytes();
        let [c, d] = f16::from_f32(self.step).to_le_bytes();
        to[4 * index..4 * index + 4].copy_from_slice(&[a, b, c, d]);
    }
}

/// The nearest number of half precision that is not above.
fn below(x: f32) -> f32 {
    let near = f16::from_f32(x);
    if near.to_f32() <= x { near.to_f32() } else { -next(-near).to_f32() }
}

/// The nearest number of half precision that is not below.
fn above(x: f32) -> f32 {
    let near = f16::from_f32(x);
    if near.to_f32() >= x { near.to_f32() } else { next(near).to_f32() }
}

/// The next larger number of half precision.
fn next(x: f16) -> f16 {
    let bits = x.to_bits();
    match bits {
        0x8000 | 0 => f16::from_bits(1),
        _ if bits & 0x8000 == 0 => f16::from_bits(bits + 1),
        _ => f16::from_bits(bits - 1),
    }
}
