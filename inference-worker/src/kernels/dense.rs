//! Matrices of floats in the precision of their checkpoint.

use super::memory::advise_huge_pages;
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
            let mut to = Vec::with_capacity(rows * stride);
            advise_huge_pages(&mut to);
            for from in from.chunks_exact(columns) {
                to.extend_from_slice(from);
                to.resize(to.len() + stride - columns, zero);
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

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        let size = if matches!(self.elements, Elements::F32(_)) { 4 } else { 2 };
        self.rows * self.stride * size
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
    pub(crate) fn padded(&self) -> (&Elements, usize) {
        (&self.elements, self.stride)
    }
}
