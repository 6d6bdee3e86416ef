//! Storing the keys and values of a pass, on several threads.

use super::super::rows::Cells;
use super::super::{Cpu, Rows};
use super::{KvFormat, POSITIONS};

/// A float that is stored takes about as long as so many multiply-adds.
const WORK: usize = 64;

/// Where one sequence's keys and values of one layer go.
pub struct Append<'a> {
    /// How they are stored.
    pub format: KvFormat,
    /// All heads, one after the other, each `head_bytes` long.
    pub heads: &'a mut [u8],
    /// Bytes of one head.
    pub head_bytes: usize,
    /// Rows of keys and values: the first one, and how many.
    pub rows: (usize, usize),
    /// Position of the first of them; the others follow.
    pub position: usize,
}

impl Cpu {
    /// Stores rows of keys and values (`heads × head_dim`) of all sequences.
    ///
    /// # Panics
    /// If the shapes do not fit, or a head has no room for a position.
    pub fn append(&self, sequences: &mut [Append<'_>], keys: &Rows, values: &Rows) {
        let mut items = Vec::new();
        let mut work = 0;
        let places: Vec<_> = sequences
            .iter_mut()
            .map(|Append { format, heads, head_bytes, rows, position }| {
                (*format, Cells::new(heads, *head_bytes, *head_bytes), *rows, *position)
            })
            .collect();
        for (index, (format, heads, (_, count), position)) in places.iter().enumerate() {
            assert!(heads.count() * format.head_dim == keys.width() && keys.width() == values.width());
            let end = position + count;
            for block in position / POSITIONS..KvFormat::blocks(end) {
                let positions = (block * POSITIONS).max(*position)..((block + 1) * POSITIONS).min(end);
                work = work.max(2 * positions.len() * format.head_dim * WORK);
                items.extend((0..heads.count()).map(|head| (index, head, block, positions.clone())));
            }
        }
        self.split(items.len(), 1, work, &|range| {
            for (index, head, block, positions) in &items[range] {
                let (format, heads, (first, _), start) = &places[*index];
                // SAFETY: each block of each head is in one item only, and each item is in one range.
                let to = unsafe { heads.part_mut(*head, block * format.block_bytes(), format.block_bytes()) };
                let numbers = head * format.head_dim..(head + 1) * format.head_dim;
                for position in positions.clone() {
                    let row = first + position - start;
                    let (key, value) = (&keys.row(row)[numbers.clone()], &values.row(row)[numbers.clone()]);
                    format.write_in(to, position % POSITIONS, key, value);
                }
            }
        });
    }
}
