//! Blocks of the cache as attention multiplies them.

use super::rounding::GROUP;
use super::{KvBits, KvFormat, POSITIONS};

/// A block of fewer than 32 bits: pairs of whole numbers, and what they stand for. A number is `low + step · whole`.
#[derive(Default)]
pub(in crate::kernels) struct Numbers {
    /// Unpacked pairs: `[pair of columns][position]`, and `[pair of positions][padded column]`.
    keys: Vec<[u8; 4]>,
    values: Vec<[u8; 4]>,
    pub(in crate::kernels) key_scales: Scales,
    pub(in crate::kernels) value_scales: Scales,
}

/// Bounds and steps: `[group][position]` of keys, `[position][group]` of values.
#[derive(Default)]
pub(in crate::kernels) struct Scales {
    /// Empty where all are 0.
    pub(in crate::kernels) low: Vec<f32>,
    pub(in crate::kernels) step: Vec<f32>,
}

impl Scales {
    fn resize(&mut self, count: usize, low: bool) {
        self.step.resize(count, 0.0);
        self.low.resize(if low { count } else { 0 }, 0.0);
    }

    /// Pairs of half precision.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
    fn take(&mut self, bounds: &[u8]) {
        for ((low, step), bytes) in self.low.iter_mut().zip(&mut self.step).zip(bounds.as_chunks().0) {
            let both = u32::from_le_bytes(*bytes);
            (*low, *step) = (half(both & 0xffff), half(both >> 16));
        }
    }
}

impl Numbers {
    /// Takes in a block, and returns the pairs of its keys and of its values.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
    pub(in crate::kernels) fn read<'a>(&'a mut self, format: KvFormat, block: &'a [u8]) -> View<'a> {
        let groups = format.groups();
        self.key_scales.resize(groups * POSITIONS, format.bits.coded());
        self.value_scales.resize(groups * POSITIONS, format.bits.coded());
        let (keys, values) = block.split_at(format.key_bytes());
        let ((key_bounds, keys), (value_bounds, values)) =
            (keys.split_at(format.bounds()), values.split_at(format.bounds()));
        if !format.bits.coded() {
            single(key_bounds, &mut self.key_scales.step);
            single(value_bounds, &mut self.value_scales.step);
            let (keys, values) = (keys.as_chunks().0, values.as_chunks().0);
            return View { keys, values, key_scales: &self.key_scales, value_scales: &self.value_scales };
        }
        self.key_scales.take(key_bounds);
        self.value_scales.take(value_bounds);
        self.keys.resize(format.pairs() * POSITIONS, [0; 4]);
        self.values.resize(POSITIONS / 2 * format.padded(), [0; 4]);
        let line = format.codes(POSITIONS);
        for (codes, to) in keys.chunks(2 * line).zip(self.keys.as_chunks_mut::<POSITIONS>().0) {
            let (mut first, mut second) = ([0; POSITIONS], [0; POSITIONS]);
            format.unpack(&codes[..line], &mut first);
            if codes.len() > line {
                format.unpack(&codes[line..], &mut second);
            }
            join(&first, &second, to);
        }
        let line = format.codes(GROUP);
        for (pair, to) in self.values.chunks_exact_mut(format.padded()).enumerate() {
            for (group, to) in to.chunks_mut(GROUP).enumerate() {
                let (mut first, mut second) = ([0; GROUP], [0; GROUP]);
                format.unpack(&values[(2 * pair * groups + group) * line..][..line], &mut first);
                format.unpack(&values[((2 * pair + 1) * groups + group) * line..][..line], &mut second);
                join(&first, &second, to);
            }
        }
        View { keys: &self.keys, values: &self.values, key_scales: &self.key_scales, value_scales: &self.value_scales }
    }
}

/// Floats of single precision. Nothing is stored for other machines, so the order of their bytes is this machine's.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
fn single(from: &[u8], to: &mut [f32]) {
    for (to, bytes) in to.iter_mut().zip(from.as_chunks().0) {
        *to = f32::from_ne_bytes(*bytes);
    }
}

/// A float of half precision from its bits, in steps that the compiler can take for many at once on every CPU.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
fn half(bits: u32) -> f32 {
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent's offset is 15 in half precision and 127 in single precision; all ones stay all ones.
    let offset = if magnitude >= 0x0f80_0000 { 224 << 23 } else { 112 << 23 };
    let normal = f32::from_bits(magnitude + offset);
    let small = (bits & 0x3ff) as i32 as f32 * 5.960_464_5e-8;
    let size = if bits & 0x7c00 == 0 { small } else { normal };
    f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
}

/// See [`Numbers`].
pub(in crate::kernels) struct View<'a> {
    pub(in crate::kernels) keys: &'a [[u8; 4]],
    pub(in crate::kernels) values: &'a [[u8; 4]],
    pub(in crate::kernels) key_scales: &'a Scales,
    pub(in crate::kernels) value_scales: &'a Scales,
}

/// Codes as pairs.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
fn join<const N: usize>(first: &[u8; N], second: &[u8; N], to: &mut [[u8; 4]]) {
    for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
        *to = (u32::from(*first) | u32::from(*second) << 16).to_le_bytes();
    }
}

impl KvFormat {
    /// Reads a block of 32 bits: keys column by column, [`POSITIONS`] apart; values position by position, `stride`
    /// apart.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
    pub(in crate::kernels) fn read(self, block: &[u8], keys: &mut [f32], values: &mut [f32], stride: usize) {
        assert!(self.bits == KvBits::ThirtyTwo);
        let (from_keys, from_values) = block.split_at(self.key_bytes());
        single(from_keys, keys);
        for (from, to) in from_values.chunks_exact(4 * self.head_dim).zip(values.chunks_exact_mut(stride)) {
            single(from, &mut to[..self.head_dim]);
        }
    }

    /// The inverse of [`KvFormat::pack`] for a line of 32 or 64 codes, eight at a time.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
    fn unpack<const N: usize>(self, line: &[u8], out: &mut [u8; N]) {
        const { assert!(N == 32 || N == 64) };
        let out = out.as_chunks_mut::<8>().0;
        match self.bits {
            KvBits::Three => {
                let (low, high) = line.split_at(N / 4);
                let low = low.as_chunks::<8>().0;
                for (at, out) in out.iter_mut().enumerate() {
                    let low = u64::from_le_bytes(low[at % (N / 32)]) >> (2 * (at / (N / 32)));
                    let high = if N == 64 {
                        u64::from_le_bytes(high.as_chunks().0[0]) >> at
                    } else {
                        let four = u64::from(u32::from_le_bytes(high.as_chunks().0[0]));
                        (four >> (2 * at) & 0x0101_0101) | (four >> (2 * at + 1) & 0x0101_0101) << 32
                    };
                    *out = (low & 0x0303_0303_0303_0303 | (high & 0x0101_0101_0101_0101) << 2).to_le_bytes();
                }
            }
            KvBits::Four => {
                let line = line.as_chunks::<8>().0;
                for (at, out) in out.iter_mut().enumerate() {
                    let word = u64::from_le_bytes(line[at % (N / 16)]) >> (4 * (at / (N / 16)));
                    *out = (word & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes();
                }
            }
            _ => out.as_flattened_mut().copy_from_slice(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_floats_of_half_precision_are_read() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (half(u32::from(bits)), half::f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{bits:x}");
        }
    }
}
