//! Packed ternary weights.

use super::memory::{BLOCK_BYTES, Block, Blocks, Storage};

/// Rows of a panel: what a kernel works on at once.
pub(super) const PANEL: usize = 32;
/// Columns of a block.
pub(super) const COLUMNS: usize = 16;
/// Most columns of a matrix: below it no 32-bit sum of any kernel wraps, whatever the activations are.
pub const MOST_COLUMNS: usize = 1 << 22;

/// A matrix of -1, 0 and 1, in 2 bits each.
///
/// Rows come in panels of 32, which lie one after the other; a panel is a sequence of blocks of 16 columns in 128 bytes.
/// Byte `4 r + k` of a block holds row `r` of the panel at the columns `k`, `4 + k`, `8 + k` and `12 + k` in the bits
/// 0-1, 2-3, 4-5 and 6-7, each as weight + 1. So a register holds 4 columns of 8 or 16 rows: it is multiplied with 4
/// activations that are the same for all rows, a dot-product instruction adds the 4 products of each row, no sum runs
/// across a register, and memory is read in one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Ternary {
    rows: usize,
    columns: usize,
    data: Storage<Block>,
}

impl Ternary {
    /// A matrix from a function that writes the codes (weight + 1, so 0, 1 or 2) of one row.
    ///
    /// # Errors
    /// What the function returns, or `(row, column)` of the first code above 2 in the function's error type.
    ///
    /// # Panics
    /// If there are no rows, no columns, or more than [`MOST_COLUMNS`].
    pub fn from_codes<E>(
        rows: usize,
        columns: usize,
        mut codes: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
        bad_code: impl Fn(usize, usize) -> E,
    ) -> Result<Self, E> {
        let width = columns.next_multiple_of(COLUMNS);
        let mut data = Blocks::with_capacity(blocks(rows, columns));
        // Padding meets activations of zero, or rows that nobody reads; code 1 makes it a weight of zero as well.
        let mut lines = vec![1; PANEL * width];
        let mut panel = vec![[0; BLOCK_BYTES]; width / COLUMNS];
        for first in (0..rows).step_by(PANEL) {
            for (r, line) in lines.chunks_exact_mut(width).enumerate() {
                if first + r < rows {
                    codes(first + r, &mut line[..columns])?;
                    if let Some(column) = line[..columns].iter().position(|code| *code > 2) {
                        return Err(bad_code(first + r, column));
                    }
                } else {
                    line.fill(1);
                }
                for (block, codes) in panel.iter_mut().zip(line.as_chunks::<COLUMNS>().0) {
                    block[4 * r..4 * r + 4].copy_from_slice(&pack(codes));
                }
            }
            data.extend(panel.iter().map(|block| Block(*block)));
        }
        Ok(Self::from_blocks(rows, columns, data))
    }

    /// A matrix from blocks in the layout of this type; any bytes without the code 3 will do.
    ///
    /// # Panics
    /// If the number of blocks is not [`blocks`], or as [`Ternary::from_codes`].
    pub(crate) fn from_blocks(rows: usize, columns: usize, data: impl Into<Storage<Block>>) -> Self {
        let data = data.into();
        assert!(rows > 0 && columns > 0 && columns <= MOST_COLUMNS && data.len() == blocks(rows, columns));
        Self { rows, columns, data }
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
        self.data.len() * BLOCK_BYTES
    }

    /// One weight: -1, 0 or 1.
    pub fn weight(&self, row: usize, column: usize) -> i8 {
        let (block, place) = (column / COLUMNS, column % COLUMNS);
        let byte = self.panel(row / PANEL)[block].0[4 * (row % PANEL) + place % 4];
        ((byte >> (place / 4 * 2)) & 3) as i8 - 1
    }

    /// The blocks as they lie in memory, and the rows of a panel; for files and for backends that keep their own copy.
    pub(crate) fn packed(&self) -> (&[Block], usize) {
        (&self.data, PANEL)
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Blocks of one panel.
    pub(super) fn panel(&self, index: usize) -> &[Block] {
        let count = self.columns.div_ceil(COLUMNS);
        &self.data[index * count..(index + 1) * count]
    }
}

/// Blocks of a matrix.
pub(crate) fn blocks(rows: usize, columns: usize) -> usize {
    rows.div_ceil(PANEL) * columns.div_ceil(COLUMNS)
}

/// Four bytes of one row: the codes of column `4 j + k` go to the bits `2 j` of byte `k`.
fn pack(codes: &[u8; COLUMNS]) -> [u8; 4] {
    let word = |j: usize| u32::from_le_bytes([codes[4 * j], codes[4 * j + 1], codes[4 * j + 2], codes[4 * j + 3]]);
    (word(0) | word(1) << 2 | word(2) << 4 | word(3) << 6).to_le_bytes()
}
