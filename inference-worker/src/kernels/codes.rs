//! Matrices of small integers other than ternary ones: binary, and 4 or 8 bits per weight with a factor per row.

use super::memory::{BLOCK_BYTES, Block, Blocks, Storage};
use super::ternary::PANEL;

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeWidth {
    /// -1 or 1.
    Binary,
    /// From -8 to 7.
    Int4,
    /// From -128 to 127.
    Int8,
}

impl CodeWidth {
    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            Self::Binary => 1,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }

    /// `binary`, `int4` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Int4 => "int4",
            Self::Int8 => "int8",
        }
    }

    /// Columns of a block.
    pub(super) fn columns(self) -> usize {
        4 * 8 / self.bits()
    }

    /// A weight is `step · code + low`.
    fn meaning(self) -> (i32, i32) {
        match self {
            Self::Binary => (2, -1),
            Self::Int4 => (1, -8),
            Self::Int8 => (1, -128),
        }
    }

    /// The product with weights, from that with codes and the sum of the values.
    #[inline]
    pub(super) fn product(self, codes: i32, sum: i32) -> i32 {
        let (step, low) = self.meaning();
        step.wrapping_mul(codes).wrapping_add(low.wrapping_mul(sum))
    }
}

/// A matrix of codes, with a factor per row.
///
/// Panels are as those of [`super::Ternary`]: byte `4 r + k` of a block of 128 bytes holds row `r` of the panel, and its
/// fields, from the lowest bits on, the columns `k`, `4 + k`, `8 + k` and so on.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    width: CodeWidth,
    rows: usize,
    columns: usize,
    data: Storage<Block>,
    factors: Vec<f32>,
}

impl Codes {
    /// Most columns of a matrix: below it no 32-bit sum wraps, whatever the activations are.
    pub const MOST_COLUMNS: usize = 1 << 16;

    /// A matrix from a function that writes the codes of one row and returns the row's factor.
    ///
    /// # Errors
    /// What the function returns.
    ///
    /// # Panics
    /// If there are no rows, no columns, or more than [`Codes::MOST_COLUMNS`].
    pub fn from_codes<E>(
        width: CodeWidth,
        rows: usize,
        columns: usize,
        mut codes: impl FnMut(usize, &mut [u8]) -> Result<f32, E>,
    ) -> Result<Self, E> {
        assert!(rows > 0 && columns > 0 && columns <= Self::MOST_COLUMNS);
        let (bits, per_block) = (width.bits(), width.columns());
        let count = columns.div_ceil(per_block);
        let mut data = Blocks::with_capacity(rows.div_ceil(PANEL) * count);
        let mut factors = Vec::with_capacity(rows);
        let mut line = vec![0; count * per_block];
        let mut panel = vec![[0; BLOCK_BYTES]; count];
        let mask = ((1_u16 << bits) - 1) as u8;
        for first in (0..rows).step_by(PANEL) {
            panel.fill([0; BLOCK_BYTES]);
            for r in 0..PANEL.min(rows - first) {
                factors.push(codes(first + r, &mut line[..columns])?);
                for (block, codes) in panel.iter_mut().zip(line.chunks_exact(per_block)) {
                    for (field, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                        for (k, code) in codes.iter().enumerate() {
                            block[4 * r + k] |= (code & mask) << (bits * field);
                        }
                    }
                }
            }
            data.extend(panel.iter().map(|block| Block(*block)));
        }
        Ok(Self { width, rows, columns, data: data.into(), factors })
    }

    /// Blocks of a matrix.
    pub(crate) fn blocks(width: CodeWidth, rows: usize, columns: usize) -> usize {
        rows.div_ceil(PANEL) * columns.div_ceil(width.columns())
    }

    /// A matrix from blocks in the layout of this type.
    ///
    /// # Panics
    /// If the number of blocks is not [`Codes::blocks`], there is not a factor per row, or as [`Codes::from_codes`].
    pub(crate) fn from_blocks(
        width: CodeWidth,
        rows: usize,
        columns: usize,
        data: Storage<Block>,
        factors: Vec<f32>,
    ) -> Self {
        assert!(rows > 0 && columns > 0 && columns <= Self::MOST_COLUMNS && factors.len() == rows);
        assert!(data.len() == Self::blocks(width, rows, columns));
        Self { width, rows, columns, data, factors }
    }

    /// The blocks as they lie in memory.
    pub(crate) fn packed(&self) -> &[Block] {
        &self.data
    }

    /// Bits of a weight.
    pub fn width(&self) -> CodeWidth {
        self.width
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.data.len() * BLOCK_BYTES + self.factors.len() * 4
    }

    /// What each row's products are multiplied with.
    pub fn factors(&self) -> &[f32] {
        &self.factors
    }

    /// One weight, without its factor.
    pub fn weight(&self, row: usize, column: usize) -> i32 {
        let (block, place) = (column / self.width.columns(), column % self.width.columns());
        let byte = self.panel(row / PANEL)[block].0[4 * (row % PANEL) + place % 4];
        let mask = ((1_u16 << self.width.bits()) - 1) as u8;
        let (step, low) = self.width.meaning();
        step * i32::from((byte >> (self.width.bits() * (place / 4))) & mask) + low
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Blocks of one panel.
    pub(super) fn panel(&self, index: usize) -> &[Block] {
        let count = self.columns.div_ceil(self.width.columns());
        &self.data[index * count..(index + 1) * count]
    }
}
