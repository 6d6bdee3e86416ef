//! Matrices of floats in the precision of their checkpoint.

use super::memory::{Plain, Storage, advise_huge_pages};
use super::rows::FLOATS;
use half::{bf16, f16};

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

/// Floats in memory, row by row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// Where the floats of a matrix lie.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FloatStorage {
    F32(Storage<f32>),
    F16(Storage<f16>),
    Bf16(Storage<bf16>),
}

/// A matrix of floats in the precision of its checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    rows: usize,
    columns: usize,
    stride: usize,
    elements: FloatStorage,
}

impl Dense {
    /// A matrix from its elements, row by row.
    ///
    /// # Panics
    /// If there are not `rows × columns` elements.
    pub fn new(rows: usize, columns: usize, elements: &Elements) -> Self {
        fn pad<T: Plain>(from: &[T], rows: usize, columns: usize, stride: usize, zero: T) -> Storage<T> {
            assert!(from.len() == rows * columns);
            let mut to = Vec::with_capacity(rows * stride);
            advise_huge_pages(&mut to);
            for from in from.chunks_exact(columns) {
                to.extend_from_slice(from);
                to.resize(to.len() + stride - columns, zero);
            }
            to.into()
        }
        let stride = Self::stride(columns);
        let elements = match elements {
            Elements::F32(v) => FloatStorage::F32(pad(v, rows, columns, stride, 0.0)),
            Elements::F16(v) => FloatStorage::F16(pad(v, rows, columns, stride, f16::ZERO)),
            Elements::Bf16(v) => FloatStorage::Bf16(pad(v, rows, columns, stride, bf16::ZERO)),
        };
        Self { rows, columns, stride, elements }
    }

    /// Distance of two rows in memory, in elements: rows are padded with zeros.
    pub(crate) fn stride(columns: usize) -> usize {
        columns.next_multiple_of(FLOATS)
    }

    /// A matrix from its padded elements.
    ///
    /// # Panics
    /// If there are not `rows` times [`Dense::stride`] elements.
    pub(crate) fn from_padded(rows: usize, columns: usize, elements: FloatStorage) -> Self {
        let len = match &elements {
            FloatStorage::F32(v) => v.len(),
            FloatStorage::F16(v) => v.len(),
            FloatStorage::Bf16(v) => v.len(),
        };
        let stride = Self::stride(columns);
        assert!(len == rows * stride);
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
            FloatStorage::F32(_) => "fp32",
            FloatStorage::F16(_) => "fp16",
            FloatStorage::Bf16(_) => "bf16",
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        let size = if matches!(self.elements, FloatStorage::F32(_)) { 4 } else { 2 };
        self.rows * self.stride * size
    }

    /// Writes one row as f32.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.stride..row * self.stride + self.columns;
        match self.padded().0 {
            Floats::F32(v) => out.copy_from_slice(&v[range]),
            Floats::F16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, e)| *o = e.to_f32()),
            Floats::Bf16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, e)| *o = e.to_f32()),
        }
    }

    /// Elements with their padding of zeros, and the distance of two rows.
    pub(crate) fn padded(&self) -> (Floats<'_>, usize) {
        let floats = match &self.elements {
            FloatStorage::F32(v) => Floats::F32(v),
            FloatStorage::F16(v) => Floats::F16(v),
            FloatStorage::Bf16(v) => Floats::Bf16(v),
        };
        (floats, self.stride)
    }
}
