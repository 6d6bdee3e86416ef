//! Cached keys and values of one head, in blocks of 32 positions.
//!
//! A block holds its keys column by column (32 positions beside each other), so that scores need no sum across a
//! register, and its values position by position. Below 16 bits, 64 columns of one position share a lower bound and a
//! step, each in half precision; a number is `low + step · code` and off by at most half a step.

use super::simd::{Element, Vector};
use half::f16;
use serde::{Deserialize, Serialize};

/// Positions of a block.
pub(super) const POSITIONS: usize = 32;
/// Columns that share a step.
const GROUP: usize = 64;

/// Bits per number of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvBits {
    /// Codes from 0 to 7, and 0.5 bits for bounds and steps.
    Three,
    /// Codes from 0 to 15, and 0.5 bits for bounds and steps.
    Four,
    /// Codes from 0 to 255, and 0.5 bits for bounds and steps.
    Eight,
    /// Half precision.
    Sixteen,
    /// Single precision: as computed.
    #[default]
    ThirtyTwo,
}

impl KvBits {
    /// What a server may choose from, most bits first.
    pub const SERVED: [Self; 4] = [Self::Sixteen, Self::Eight, Self::Four, Self::Three];

    /// The number of bits, bounds and steps not counted.
    pub fn bits(self) -> usize {
        match self {
            Self::Three => 3,
            Self::Four => 4,
            Self::Eight => 8,
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }

    /// What attention sees of one head's key or value.
    pub(crate) fn seen(self, head: &mut [f32]) {
        match self.largest() {
            None if self == Self::ThirtyTwo => {}
            None => {
                for x in head {
                    *x = f16::from_f32(*x).to_f32();
                }
            }
            Some(largest) => {
                for numbers in head.chunks_mut(GROUP) {
                    let scale = Scale::of(numbers, largest);
                    for x in numbers {
                        *x = scale.low + scale.step * f32::from(scale.code(*x, largest));
                    }
                }
            }
        }
    }

    /// Largest code; `None` for floats.
    fn largest(self) -> Option<u8> {
        match self {
            Self::Three => Some(7),
            Self::Four => Some(15),
            Self::Eight => Some(255),
            Self::Sixteen | Self::ThirtyTwo => None,
        }
    }
}

impl std::fmt::Display for KvBits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bits().fmt(f)
    }
}

impl std::str::FromStr for KvBits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::SERVED
            .into_iter()
            .find(|bits| bits.to_string() == text)
            .ok_or_else(|| "the bits of keys and values are 16, 8, 4 or 3".to_owned())
    }
}

/// How one head's keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvFormat {
    /// Precision.
    pub bits: KvBits,
    /// Numbers per key and per value.
    pub head_dim: usize,
}

impl KvFormat {
    fn groups(self) -> usize {
        self.head_dim.div_ceil(GROUP)
    }

    /// Bytes of `count` codes.
    fn codes(self, count: usize) -> usize {
        count * self.bits.bits() / 8
    }

    /// Bytes of the bounds and steps of a block's keys, or of its values.
    fn bounds(self) -> usize {
        if self.bits.largest().is_some() { self.groups() * POSITIONS * 4 } else { 0 }
    }

    fn key_bytes(self) -> usize {
        self.bounds() + self.head_dim * self.codes(POSITIONS)
    }

    fn value_bytes(self) -> usize {
        match self.bits.largest() {
            None => POSITIONS * self.codes(self.head_dim),
            Some(_) => self.bounds() + POSITIONS * self.groups() * self.codes(GROUP),
        }
    }

    /// Bytes of a block of 32 positions, keys and values.
    pub fn block_bytes(self) -> usize {
        self.key_bytes() + self.value_bytes()
    }

    /// Blocks for so many positions.
    pub fn blocks(positions: usize) -> usize {
        positions.div_ceil(POSITIONS)
    }

    /// Stores one key and one value in the block of `position`; `head` holds all blocks of the head.
    ///
    /// # Panics
    /// If the block is not there, or a row is not `head_dim` long.
    pub fn write(self, head: &mut [u8], position: usize, key: &[f32], value: &[f32]) {
        assert!(key.len() == self.head_dim && value.len() == self.head_dim);
        let block = &mut head[position / POSITIONS * self.block_bytes()..][..self.block_bytes()];
        let (keys, values) = block.split_at_mut(self.key_bytes());
        let slot = position % POSITIONS;
        let Some(largest) = self.bits.largest() else {
            for (column, (key, value)) in key.iter().zip(value).enumerate() {
                self.put_float(keys, column * POSITIONS + slot, *key);
                self.put_float(values, slot * self.head_dim + column, *value);
            }
            return;
        };
        let (bounds, codes) = keys.split_at_mut(self.bounds());
        let line = self.codes(POSITIONS);
        for (group, numbers) in key.chunks(GROUP).enumerate() {
            let scale = Scale::of(numbers, largest);
            scale.put(bounds, group * POSITIONS + slot);
            for (i, number) in numbers.iter().enumerate() {
                let codes = &mut codes[(group * GROUP + i) * line..][..line];
                self.put_code(codes, POSITIONS, slot, scale.code(*number, largest));
            }
        }
        let (bounds, codes) = values.split_at_mut(self.bounds());
        let line = self.codes(GROUP);
        for (group, numbers) in value.chunks(GROUP).enumerate() {
            let scale = Scale::of(numbers, largest);
            let at = slot * self.groups() + group;
            scale.put(bounds, at);
            for (i, number) in numbers.iter().enumerate() {
                self.put_code(&mut codes[at * line..][..line], GROUP, i, scale.code(*number, largest));
            }
        }
    }

    fn put_float(self, to: &mut [u8], index: usize, number: f32) {
        if self.bits == KvBits::Sixteen {
            to[2 * index..2 * index + 2].copy_from_slice(&f16::from_f32(number).to_ne_bytes());
        } else {
            to[4 * index..4 * index + 4].copy_from_slice(&number.to_ne_bytes());
        }
    }

    /// A line of `count` codes: bytes; or two per byte, the second half in the upper bits; or their lower two bits four
    /// per byte, then their upper bits eight per byte.
    fn put_code(self, line: &mut [u8], count: usize, index: usize, code: u8) {
        let mut put = |bytes: std::ops::Range<usize>, bits: usize, code: u8| {
            let (byte, shift) = (bytes.start + index % bytes.len(), index / bytes.len() * bits);
            let mask = ((1_u16 << bits) - 1) as u8;
            line[byte] = line[byte] & !(mask << shift) | (code & mask) << shift;
        };
        match self.bits {
            KvBits::Three => {
                put(0..count / 4, 2, code);
                put(count / 4..count / 4 + count / 8, 1, code >> 2);
            }
            KvBits::Four => put(0..count / 2, 4, code),
            _ => line[index] = code,
        }
    }

    /// Reads a block as f32: keys column by column, [`POSITIONS`] apart; values position by position, `stride` apart.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
    pub(super) unsafe fn read<V: Vector>(self, block: &[u8], keys: &mut [f32], values: &mut [f32], stride: usize) {
        let (from_keys, from_values) = block.split_at(self.key_bytes());
        let (to_keys, _) = keys.as_chunks_mut::<POSITIONS>();
        let width = self.head_dim;
        match self.bits {
            // SAFETY: the caller's promise.
            KvBits::ThirtyTwo => unsafe {
                widen::<V, f32>(from_keys, to_keys.as_flattened_mut());
                for (from, to) in from_values.chunks_exact(4 * width).zip(values.chunks_exact_mut(stride)) {
                    widen::<V, f32>(from, &mut to[..width]);
                }
            },
            // SAFETY: likewise.
            KvBits::Sixteen => unsafe {
                widen::<V, f16>(from_keys, to_keys.as_flattened_mut());
                for (from, to) in from_values.chunks_exact(2 * width).zip(values.chunks_exact_mut(stride)) {
                    widen::<V, f16>(from, &mut to[..width]);
                }
            },
            _ => self.read_codes(from_keys, from_values, to_keys, values, stride),
        }
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
    fn read_codes(
        self,
        from_keys: &[u8],
        from_values: &[u8],
        keys: &mut [[f32; POSITIONS]],
        values: &mut [f32],
        stride: usize,
    ) {
        let (bounds, codes) = from_keys.split_at(self.bounds());
        let line = self.codes(POSITIONS);
        for (group, (keys, codes)) in keys.chunks_mut(GROUP).zip(codes.chunks(GROUP * line)).enumerate() {
            let mut scales = [Scale::default(); POSITIONS];
            for (slot, scale) in scales.iter_mut().enumerate() {
                *scale = Scale::get(bounds, group * POSITIONS + slot);
            }
            for (keys, codes) in keys.iter_mut().zip(codes.chunks_exact(line)) {
                let mut numbers = [0.0; POSITIONS];
                self.unpack(codes, &mut numbers);
                for slot in 0..POSITIONS {
                    keys[slot] = scales[slot].low + scales[slot].step * numbers[slot];
                }
            }
        }
        let (bounds, codes) = from_values.split_at(self.bounds());
        let line = self.codes(GROUP);
        for (slot, values) in values.chunks_exact_mut(stride).enumerate() {
            for (group, values) in values[..self.head_dim].chunks_mut(GROUP).enumerate() {
                let at = slot * self.groups() + group;
                let scale = Scale::get(bounds, at);
                let mut numbers = [0.0; GROUP];
                self.unpack(&codes[at * line..][..line], &mut numbers);
                values.iter_mut().zip(numbers).for_each(|(to, code)| *to = scale.low + scale.step * code);
            }
        }
    }

    /// The inverse of [`KvFormat::put_code`] for a whole line.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
    fn unpack<const N: usize>(self, line: &[u8], out: &mut [f32; N]) {
        match self.bits {
            KvBits::Three => {
                let (low, high) = line.split_at(N / 4);
                for (part, out) in out.chunks_exact_mut(N / 4).enumerate() {
                    out.iter_mut().zip(low).for_each(|(o, byte)| *o = f32::from((byte >> (2 * part)) & 3));
                }
                for (part, out) in out.chunks_exact_mut(N / 8).enumerate() {
                    out.iter_mut().zip(high).for_each(|(o, byte)| *o += f32::from((byte >> part & 1) << 2));
                }
            }
            KvBits::Four => {
                for (part, out) in out.chunks_exact_mut(N / 2).enumerate() {
                    out.iter_mut().zip(line).for_each(|(o, byte)| *o = f32::from((byte >> (4 * part)) & 15));
                }
            }
            _ => out.iter_mut().zip(line).for_each(|(o, byte)| *o = f32::from(*byte)),
        }
    }
}

/// Floats as f32. On a machine with another order of bytes than that of the cache nothing is stored for others, so the
/// machine's own order will do.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled into callers that have wider registers")]
unsafe fn widen<V: Vector, E: Element>(from: &[u8], to: &mut [f32]) {
    assert!(from.len() == to.len() * size_of::<E>());
    let whole = to.len() / V::LANES * V::LANES;
    let from = from.as_ptr().cast::<E>();
    // SAFETY: both hold so many elements; loads and stores need no alignment.
    unsafe {
        let mut at = 0;
        while at < whole {
            E::load::<V>(from.add(at)).store(to.as_mut_ptr().add(at));
            at += V::LANES;
        }
        for (at, to) in to.iter_mut().enumerate().skip(whole) {
            *to = from.add(at).read_unaligned().to_float();
        }
    }
}

/// Lower bound and step of a group.
#[derive(Clone, Copy, Default)]
struct Scale {
    low: f32,
    step: f32,
}

impl Scale {
    /// Covers all numbers with codes from 0 to `largest`; NaN if one is not finite or beyond half precision, so that
    /// what is read shows it.
    fn of(numbers: &[f32], largest: u8) -> Self {
        let bounds = numbers.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
        let low = below(bounds.0);
        let step = above((bounds.1 - low) / f32::from(largest));
        if !(low + step).is_finite() || numbers.iter().any(|x| !x.is_finite()) {
            return Self { low: f32::NAN, step: f32::NAN };
        }
        Self { low, step }
    }

    fn code(self, number: f32, largest: u8) -> u8 {
        // NaN becomes 0; a step of 0 means that all numbers are the lower bound.
        let code = if self.step > 0.0 { (number - self.low) / self.step } else { 0.0 };
        code.round_ties_even().clamp(0.0, f32::from(largest)) as u8
    }

    fn put(self, to: &mut [u8], index: usize) {
        let [a, b] = f16::from_f32(self.low).to_le_bytes();
        let [c, d] = f16::from_f32(self.step).to_le_bytes();
        to[4 * index..4 * index + 4].copy_from_slice(&[a, b, c, d]);
    }

    #[inline]
    fn get(from: &[u8], index: usize) -> Self {
        let bytes = &from[4 * index..4 * index + 4];
        let half = |a, b| f16::from_le_bytes([a, b]).to_f32();
        Self { low: half(bytes[0], bytes[1]), step: half(bytes[2], bytes[3]) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(format: KvFormat, head: &[u8], position: usize) -> (Vec<f32>, Vec<f32>) {
        let width = format.head_dim;
        let (mut keys, mut values) = (vec![0.0; width * POSITIONS], vec![0.0; width * POSITIONS]);
        let block = &head[position / POSITIONS * format.block_bytes()..][..format.block_bytes()];
        // SAFETY: an array needs no features.
        unsafe { format.read::<[f32; 8]>(block, &mut keys, &mut values, width) };
        let slot = position % POSITIONS;
        let key = (0..width).map(|column| keys[column * POSITIONS + slot]).collect();
        (key, values[slot * width..][..width].to_vec())
    }

    fn all() -> impl Iterator<Item = KvBits> {
        KvBits::SERVED.into_iter().chain([KvBits::ThirtyTwo])
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_but_for_half_a_step(
            head_dim in 1_usize..150,
            numbers in proptest::collection::vec(prop_oneof![-8.0_f32..8.0, Just(0.0), -1e-6_f32..1e-6, -9e3_f32..9e3], 40 * 300),
        ) {
            for bits in all() {
                let format = KvFormat { bits, head_dim };
                let mut head = vec![0xff; KvFormat::blocks(40) * format.block_bytes()];
                let row = |position: usize, which: usize| &numbers[(2 * position + which) * 150..][..head_dim];
                for position in 0..40 {
                    format.write(&mut head, position, row(position, 0), row(position, 1));
                }
                // Training rounds as the cache does, to the bit.
                for which in 0..2 {
                    let mut seen = row(7, which).to_vec();
                    bits.seen(&mut seen);
                    let (key, value) = read(format, &head, 7);
                    prop_assert_eq!(&seen, if which == 0 { &key } else { &value });
                }
                // The last ones again: neighbours must not change.
                format.write(&mut head, 33, row(33, 0), row(33, 1));
                for position in 0..40 {
                    let (key, value) = read(format, &head, position);
                    for (found, expected) in [(key, row(position, 0)), (value, row(position, 1))] {
                        for (found, expected) in found.chunks(GROUP).zip(expected.chunks(GROUP)) {
                            let limit = match bits.largest() {
                                None if bits == KvBits::ThirtyTwo => vec![0.0; expected.len()],
                                None => expected.iter().map(|x| x.abs() / 2048.0 + 6e-8).collect(),
                                Some(largest) => {
                                    let step = Scale::of(expected, largest).step;
                                    let range = expected.iter().fold(f32::MIN, |m, x| m.max(*x)) - expected.iter().fold(f32::MAX, |m, x| m.min(*x));
                                    let size = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                                    // Half precision rounds the bound by at most a 2^-10th and the step likewise.
                                    prop_assert!(step <= (range + size / 1024.0) / f32::from(largest) * 1.001 + 1e-7);
                                    vec![step * 0.501 + size * 1e-6; expected.len()]
                                }
                            };
                            for ((found, expected), limit) in found.iter().zip(expected).zip(limit) {
                                prop_assert!((found - expected).abs() <= limit, "{bits} {found} {expected} {limit}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_are_as_computed() {
        // 128 numbers: two bounds and two steps of two bytes, for the key and for the value.
        let expected = [
            (KvBits::ThirtyTwo, 1024),
            (KvBits::Sixteen, 512),
            (KvBits::Eight, 272),
            (KvBits::Four, 144),
            (KvBits::Three, 112),
        ];
        for (bits, bytes) in expected {
            assert_eq!(KvFormat { bits, head_dim: 128 }.block_bytes(), bytes * POSITIONS, "{bits}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for bits in all() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9] {
                let format = KvFormat { bits, head_dim: 3 };
                let mut head = vec![0; format.block_bytes()];
                format.write(&mut head, 5, &[1.0, bad, 2.0], &[bad, 0.0, 0.0]);
                let (key, value) = read(format, &head, 5);
                let shown = |x: f32| !x.is_finite() || x == bad;
                assert!(shown(key[1]) && shown(value[0]), "{bits} {bad}");
                assert!(read(format, &head, 6).0.iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for bits in KvBits::SERVED {
            assert_eq!(bits.to_string().parse(), Ok(bits));
        }
        assert!(["32", "2", "", "16 "].iter().all(|text| text.parse::<KvBits>().is_err()));
    }
}
