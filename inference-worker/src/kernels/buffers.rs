//! Memory layouts that the kernels share.

use half::{bf16, f16};

/// Floats per vector of the widest kernel: rows of floats are padded with zeros to a multiple.
const FLOATS: usize = 8;
/// Columns per block of packed ternary weights: 32 bytes of four codes each.
pub(super) const BLOCK: usize = 128;
/// Bytes per block of packed ternary weights.
pub(super) const BLOCK_BYTES: usize = BLOCK / 4;

/// `count` rows of `width` floats: one row per token.
#[derive(Debug, Clone)]
pub struct Rows {
    count: usize,
    width: usize,
    stride: usize,
    data: Vec<f32>,
}

impl Rows {
    /// Rows of zeros.
    pub fn new(count: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(FLOATS);
        Self { count, width, stride, data: vec![0.0; count * stride] }
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Floats per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.stride..][..self.width]
    }

    /// One row, to write.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.data[index * self.stride..][..self.width]
    }

    /// Rows with their padding, which is always zero.
    pub(super) fn padded(&self) -> (&[f32], usize) {
        (&self.data, self.stride)
    }
}

/// Rows quantised to int8, with what is needed to undo it.
#[derive(Debug, Clone, Default)]
pub struct Quantized {
    width: usize,
    stride: usize,
    data: Vec<i8>,
    /// Sum of each row.
    sums: Vec<i32>,
    /// `127 / absolute maximum` of each row.
    scales: Vec<f32>,
}

impl Quantized {
    /// Room for `count` rows of `width`, all zero.
    pub(super) fn reset(&mut self, count: usize, width: usize) {
        self.width = width;
        self.stride = width.next_multiple_of(BLOCK);
        self.data.clear();
        self.data.resize(count * self.stride, 0);
        self.sums.clear();
        self.sums.resize(count, 0);
        self.scales.clear();
        self.scales.resize(count, 0.0);
    }

    /// Rows from integers; `scales` are taken as they are.
    ///
    /// # Panics
    /// If `values` is not a whole number of rows, or the scales are not one per row.
    pub fn from_values(width: usize, values: &[i8], scales: &[f32]) -> Self {
        assert!(values.len() == width * scales.len());
        let mut out = Self::default();
        out.reset(scales.len(), width);
        for (i, row) in values.chunks_exact(width).enumerate() {
            out.data[i * out.stride..][..width].copy_from_slice(row);
            out.sums[i] = row.iter().map(|v| i32::from(*v)).sum();
        }
        out.scales.copy_from_slice(scales);
        out
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.scales.len()
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub fn row(&self, index: usize) -> &[i8] {
        &self.data[index * self.stride..][..self.width]
    }

    /// `127 / absolute maximum` of one row; NaN if the row was not finite.
    pub fn scale(&self, index: usize) -> f32 {
        self.scales[index]
    }

    /// Rows with their padding of zeros, and the sum of each row.
    pub(super) fn padded(&self) -> (&[i8], usize, &[i32]) {
        (&self.data, self.stride, &self.sums)
    }

    pub(super) fn set(&mut self, index: usize, scale: f32, sum: i32) {
        self.scales[index] = scale;
        self.sums[index] = sum;
    }

    pub(super) fn padded_row_mut(&mut self, index: usize) -> &mut [i8] {
        &mut self.data[index * self.stride..][..self.stride]
    }
}

/// Stored floats, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Elements {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// Brain floats.
    Bf16(Vec<bf16>),
}

/// A matrix of floats in the precision of its checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    rows: usize,
    columns: usize,
    stride: usize,
    elements: Elements,
}

impl Dense {
    /// A matrix from its elements, row by row.
    ///
    /// # Panics
    /// If there are not `rows × columns` elements.
    pub fn new(rows: usize, columns: usize, elements: &Elements) -> Self {
        fn pad<T: Copy>(from: &[T], rows: usize, columns: usize, stride: usize, zero: T) -> Vec<T> {
            assert!(from.len() == rows * columns);
            let mut to = vec![zero; rows * stride];
            for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(columns)) {
                to[..columns].copy_from_slice(from);
            }
            to
        }
        let stride = columns.next_multiple_of(FLOATS);
        let elements = match elements {
            Elements::F32(v) => Elements::F32(pad(v, rows, columns, stride, 0.0)),
            Elements::F16(v) => Elements::F16(pad(v, rows, columns, stride, f16::ZERO)),
            Elements::Bf16(v) => Elements::Bf16(pad(v, rows, columns, stride, bf16::ZERO)),
        };
        Self { rows, columns, stride, elements }
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// `fp32`, `fp16` or `bf16`.
    pub fn precision(&self) -> &'static str {
        match self.elements {
            Elements::F32(_) => "fp32",
            Elements::F16(_) => "fp16",
            Elements::Bf16(_) => "bf16",
        }
    }

    /// Writes one row as f32.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.stride..row * self.stride + self.columns;
        match &self.elements {
            Elements::F32(v) => out.copy_from_slice(&v[range]),
            Elements::F16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, e)| *o = e.to_f32()),
            Elements::Bf16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, e)| *o = e.to_f32()),
        }
    }

    /// Elements with their padding of zeros, and the distance of two rows.
    pub(super) fn padded(&self) -> (&Elements, usize) {
        (&self.elements, self.stride)
    }
}

/// A matrix of -1, 0 and 1, in 2 bits each.
///
/// A row is a sequence of blocks of 128 columns in 32 bytes; byte `p` of a block holds column `p` in bits 0-1, `32 + p`
/// in bits 2-3, `64 + p` in bits 4-5 and `96 + p` in bits 6-7, each as weight + 1. So one 32-byte load and three shifts
/// give 128 codes in the order of the activations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ternary {
    rows: usize,
    columns: usize,
    stride: usize,
    data: Vec<u8>,
}

impl Ternary {
    /// A matrix from a function that writes the codes (weight + 1, so 0, 1 or 2) of one row.
    ///
    /// # Errors
    /// What the function returns, or `(row, column)` of the first code above 2 in the function's error type.
    pub fn from_codes<E>(
        rows: usize,
        columns: usize,
        mut codes: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
        bad_code: impl Fn(usize, usize) -> E,
    ) -> Result<Self, E> {
        let blocks = columns.div_ceil(BLOCK);
        let stride = blocks * BLOCK_BYTES;
        let mut data = vec![0; rows * stride];
        // Padding meets activations of zero; code 1 makes it a weight of zero as well.
        let mut line = vec![1; blocks * BLOCK];
        for (row, packed) in data.chunks_exact_mut(stride).enumerate() {
            codes(row, &mut line[..columns])?;
            if let Some(column) = line[..columns].iter().position(|code| *code > 2) {
                return Err(bad_code(row, column));
            }
            for (packed, line) in packed.chunks_exact_mut(BLOCK_BYTES).zip(line.chunks_exact(BLOCK)) {
                for (p, byte) in packed.iter_mut().enumerate() {
                    *byte = line[p] | line[32 + p] << 2 | line[64 + p] << 4 | line[96 + p] << 6;
                }
            }
        }
        Ok(Self { rows, columns, stride, data })
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One weight: -1, 0 or 1.
    pub fn weight(&self, row: usize, column: usize) -> i8 {
        let (block, place) = (column / BLOCK, column % BLOCK);
        let byte = self.data[row * self.stride + block * BLOCK_BYTES + place % BLOCK_BYTES];
        ((byte >> (place / BLOCK_BYTES * 2)) & 3) as i8 - 1
    }

    /// Packed rows and the distance of two rows in bytes.
    pub(super) fn packed(&self) -> (&[u8], usize) {
        (&self.data, self.stride)
    }
}
