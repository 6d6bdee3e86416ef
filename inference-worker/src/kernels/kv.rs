//! Cached keys and values of one head, in blocks of 32 positions.
//!
//! A block holds its keys column by column (32 positions beside each other) and its values position by position. Of 16
//! bits, two columns of a key, or two positions of a value, lie beside each other: these are pairs, which is what
//! attention multiplies (see `pairs`). A position's numbers are whole multiples of one step, in single precision. Below
//! 16 bits, 64 columns of one position share a lower bound and a step, each in half precision; a number is
//! `low + step · code` and off by at most half a step.

mod append;
mod read;
mod rounding;

pub use append::Append;
pub(super) use read::{Numbers, Scales};
pub(super) use rounding::{GROUP, LARGEST, inverse, step, whole};

use rounding::Scale;
use serde::{Deserialize, Serialize};

/// Positions of a block.
pub(super) const POSITIONS: usize = 32;
/// Values are padded with columns to a multiple: so many are multiplied at once.
pub(super) const COLUMNS: usize = 8;

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
    /// Whole multiples of a step per key and per value.
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
        match self {
            Self::ThirtyTwo => {}
            Self::Sixteen => {
                let step = step(head);
                let inverse = inverse(step);
                for x in head {
                    *x = step * f32::from(whole(*x * inverse));
                }
            }
            Self::Three | Self::Four | Self::Eight => {
                let largest = self.largest();
                for numbers in head.chunks_mut(GROUP) {
                    let (scale, mut codes) = (Scale::of(numbers, largest), [0; GROUP]);
                    scale.codes(numbers, largest, &mut codes);
                    numbers.iter_mut().zip(codes).for_each(|(x, code)| *x = scale.low + scale.step * f32::from(code));
                }
            }
        }
    }

    /// Largest code below 16 bits.
    fn largest(self) -> u8 {
        match self {
            Self::Three => 7,
            Self::Four => 15,
            Self::Eight | Self::Sixteen | Self::ThirtyTwo => 255,
        }
    }

    /// Whether numbers are codes between bounds.
    pub(super) fn coded(self) -> bool {
        self < Self::Sixteen
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
    /// Parts of a row that have a step of their own.
    pub(super) fn groups(self) -> usize {
        if self.bits.coded() { self.head_dim.div_ceil(GROUP) } else { 1 }
    }

    /// Pairs of columns.
    pub(super) fn pairs(self) -> usize {
        self.head_dim.div_ceil(2)
    }

    /// Columns of values with their padding.
    pub(super) fn padded(self) -> usize {
        self.head_dim.next_multiple_of(COLUMNS)
    }

    /// Bytes of `count` codes.
    fn codes(self, count: usize) -> usize {
        count * self.bits.bits() / 8
    }

    /// Bytes of the bounds and steps of a block's keys, or of its values.
    fn bounds(self) -> usize {
        if self.bits == KvBits::ThirtyTwo { 0 } else { self.groups() * POSITIONS * 4 }
    }

    fn key_bytes(self) -> usize {
        let columns = if self.bits == KvBits::Sixteen { 2 * self.pairs() } else { self.head_dim };
        self.bounds() + columns * self.codes(POSITIONS)
    }

    fn value_bytes(self) -> usize {
        match self.bits {
            KvBits::ThirtyTwo => POSITIONS * self.codes(self.head_dim),
            KvBits::Sixteen => self.bounds() + POSITIONS * self.codes(self.padded()),
            _ => self.bounds() + POSITIONS * self.groups() * self.codes(GROUP),
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
        let block = &mut head[position / POSITIONS * self.block_bytes()..][..self.block_bytes()];
        self.write_in(block, position % POSITIONS, key, value);
    }

    /// Stores one key and one value in a slot of a block.
    fn write_in(self, block: &mut [u8], slot: usize, key: &[f32], value: &[f32]) {
        assert!(key.len() == self.head_dim && value.len() == self.head_dim);
        let (keys, values) = block.split_at_mut(self.key_bytes());
        match self.bits {
            KvBits::ThirtyTwo => {
                let (keys, values) = (keys.as_chunks_mut().0, values.as_chunks_mut().0);
                for (to, key) in keys.iter_mut().skip(slot).step_by(POSITIONS).zip(key) {
                    *to = key.to_ne_bytes();
                }
                let values = values[slot * self.head_dim..].iter_mut();
                values.zip(value).for_each(|(to, value)| *to = value.to_ne_bytes());
            }
            KvBits::Sixteen => {
                let (keys, values) = (wide(keys, slot, key), wide(values, slot, value));
                for (key, to) in key.chunks(2).zip(keys.numbers.chunks_exact_mut(2 * POSITIONS)) {
                    let to = &mut to[2 * slot..2 * slot + 2];
                    to.iter_mut().zip(key).for_each(|(to, x)| *to = whole(x * keys.inverse).to_le_bytes());
                }
                let to = &mut values.numbers[slot / 2 * 2 * self.padded()..][..2 * self.padded()];
                for (to, x) in to.iter_mut().skip(slot % 2).step_by(2).zip(value) {
                    *to = whole(x * values.inverse).to_le_bytes();
                }
            }
            _ => self.write_codes(keys, values, slot, key, value),
        }
    }

    fn write_codes(self, keys: &mut [u8], values: &mut [u8], slot: usize, key: &[f32], value: &[f32]) {
        let (largest, mut numbers) = (self.bits.largest(), [0; GROUP]);
        let (bounds, codes) = keys.split_at_mut(self.bounds());
        let line = self.codes(POSITIONS);
        for (group, key) in key.chunks(GROUP).enumerate() {
            let scale = Scale::of(key, largest);
            scale.put(bounds, group * POSITIONS + slot);
            scale.codes(key, largest, &mut numbers);
            let lines = codes[group * GROUP * line..].chunks_exact_mut(line);
            lines.zip(&numbers[..key.len()]).for_each(|(line, code)| self.put(line, slot, *code));
        }
        let (bounds, codes) = values.split_at_mut(self.bounds());
        let line = self.codes(GROUP);
        for (group, value) in value.chunks(GROUP).enumerate() {
            let scale = Scale::of(value, largest);
            let at = slot * self.groups() + group;
            scale.put(bounds, at);
            scale.codes(value, largest, &mut numbers);
            self.pack(&numbers, &mut codes[at * line..][..line]);
        }
    }

    /// One code of a line of [`POSITIONS`], in the order of [`KvFormat::pack`].
    #[inline]
    fn put(self, line: &mut [u8], index: usize, code: u8) {
        let put = |byte: &mut u8, shift: usize, mask: u8, code: u8| {
            *byte = *byte & !(mask << shift) | (code & mask) << shift;
        };
        match self.bits {
            KvBits::Three => {
                let (low, high) = (POSITIONS / 4, POSITIONS / 8);
                put(&mut line[index % low], index / low * 2, 3, code);
                put(&mut line[low + index % high], index / high, 1, code >> 2);
            }
            KvBits::Four => put(&mut line[index % (POSITIONS / 2)], index / (POSITIONS / 2) * 4, 15, code),
            _ => line[index] = code,
        }
    }

    /// A line of codes: bytes; or two per byte, the second half in the upper bits; or their lower two bits four per
    /// byte, then their upper bits eight per byte.
    fn pack(self, codes: &[u8; GROUP], line: &mut [u8]) {
        match self.bits {
            KvBits::Three => {
                let (low, high) = line.split_at_mut(GROUP / 4);
                low.fill(0);
                for (part, codes) in codes.chunks_exact(GROUP / 4).enumerate() {
                    low.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= (code & 3) << (2 * part));
                }
                high.fill(0);
                for (part, codes) in codes.chunks_exact(GROUP / 8).enumerate() {
                    high.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= (code >> 2 & 1) << part);
                }
            }
            KvBits::Four => {
                let (low, high) = codes.split_at(GROUP / 2);
                for (byte, (low, high)) in line.iter_mut().zip(low.iter().zip(high)) {
                    *byte = low & 15 | high << 4;
                }
            }
            _ => line.copy_from_slice(codes),
        }
    }
}

/// Where the whole numbers of one row go.
struct Wide<'a> {
    numbers: &'a mut [[u8; 2]],
    inverse: f32,
}

/// Stores the step of a row of 16 bits.
fn wide<'a>(to: &'a mut [u8], slot: usize, row: &[f32]) -> Wide<'a> {
    let (steps, numbers) = to.split_at_mut(4 * POSITIONS);
    let step = step(row);
    steps[4 * slot..4 * slot + 4].copy_from_slice(&step.to_ne_bytes());
    Wide { numbers: numbers.as_chunks_mut().0, inverse: inverse(step) }
}

#[cfg(test)]
mod tests;
