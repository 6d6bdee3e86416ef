//! Activations: one row per token.

use std::marker::PhantomData;

/// Floats per vector of the widest kernel: rows of floats are padded with zeros to a multiple.
pub(super) const FLOATS: usize = 16;

/// Integers per block of the kernel with the longest ones: rows of integers are padded with zeros to a multiple.
const VALUES: usize = 32;

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
        let stride = width.max(1).next_multiple_of(FLOATS);
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

    /// Cells for several threads; padding included where `padded`.
    pub(super) fn cells(&mut self, padded: bool) -> Cells<'_, f32> {
        let width = if padded { self.stride } else { self.width };
        Cells::new(&mut self.data, width, self.stride)
    }

    /// Rows with their padding, which is always zero.
    pub(super) fn padded(&self) -> (&[f32], usize) {
        (&self.data, self.stride)
    }
}

/// Rows of values that several threads write, each its own cells.
pub(super) struct Cells<'a, T> {
    data: *mut T,
    count: usize,
    width: usize,
    stride: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `part_mut`, whose caller promises that no cell is lent twice at a time.
unsafe impl<T: Send> Send for Cells<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Cells<'_, T> {}

impl<'a, T> Cells<'a, T> {
    /// Cells of rows that start every `stride` values.
    pub(super) fn new(data: &'a mut [T], width: usize, stride: usize) -> Self {
        assert!(width <= stride && stride > 0 && data.len().is_multiple_of(stride));
        let count = data.len() / stride;
        Self { data: data.as_mut_ptr(), count, width, stride, owner: PhantomData }
    }

    /// Number of rows.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Cells of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Cells of one row from `column` on.
    ///
    /// # Safety
    /// While these cells are borrowed, no other borrow of any of them exists.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that the cells are lent once")]
    pub(super) unsafe fn part_mut(&self, row: usize, column: usize, len: usize) -> &mut [T] {
        assert!(row < self.count && len <= self.width && column <= self.width - len);
        // SAFETY: by the assertion the cells lie inside the slice, which is borrowed exclusively for as long as this
        // value lives; by the caller's promise nobody else has them now.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + column), len) }
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
        self.stride = width.max(1).next_multiple_of(VALUES);
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

    /// Sum of one row.
    pub(super) fn sum(&self, index: usize) -> i32 {
        self.sums[index]
    }

    /// Rows with their padding of zeros, and the distance of two rows.
    pub(super) fn padded(&self) -> (&[i8], usize) {
        (&self.data, self.stride)
    }

    /// Values with their padding, scales, and sums, for several threads.
    pub(super) fn cells(&mut self) -> (Cells<'_, i8>, Cells<'_, f32>, Cells<'_, i32>) {
        let values = Cells::new(&mut self.data, self.stride, self.stride);
        (values, Cells::new(&mut self.scales, 1, 1), Cells::new(&mut self.sums, 1, 1))
    }
}
