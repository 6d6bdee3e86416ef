//! Where weights lie: in memory of their own, or in a mapped file that other processes map as well.

use half::{bf16, f16};
use memmap2::Mmap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

/// Bytes of a block of packed weights.
pub(super) const BLOCK_BYTES: usize = 128;
/// Smaller allocations gain nothing from huge pages.
const WORTH_HUGE_PAGES: usize = 4 << 20;

/// The unit of packed weights: two cache lines, aligned so that no load crosses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(128))]
pub(crate) struct Block(pub(crate) [u8; BLOCK_BYTES]);

/// Numbers of which any bytes are a value, without padding; so they may be read from a file and written to one.
///
/// # Safety
/// Both are true of the type.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: an array of bytes.
unsafe impl Plain for Block {}
// SAFETY: any 32 bits are an f32.
unsafe impl Plain for f32 {}
// SAFETY: a transparent u16.
unsafe impl Plain for f16 {}
// SAFETY: likewise.
unsafe impl Plain for bf16 {}

/// The bytes of some numbers, in this machine's order.
pub(crate) fn bytes_of<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no padding, so all of their bytes are there to be read.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Numbers that do not change.
#[derive(Clone)]
pub(crate) enum Storage<T> {
    /// In memory of this process.
    Owned(Vec<T>),
    /// In a file that is mapped for reading.
    Mapped(Mapped<T>),
}

/// A part of a mapped file.
#[derive(Clone)]
pub(crate) struct Mapped<T> {
    file: Arc<Mmap>,
    start: usize,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Plain> Storage<T> {
    /// `len` numbers from the byte `start` of a file on; none if the file ends before, or they are not aligned.
    pub(crate) fn mapped(file: &Arc<Mmap>, start: usize, len: usize) -> Option<Self> {
        let bytes = file.get(start..start.checked_add(len.checked_mul(size_of::<T>())?)?)?;
        let aligned = bytes.as_ptr().cast::<T>().is_aligned();
        aligned.then(|| Self::Mapped(Mapped { file: Arc::clone(file), start, len, kind: PhantomData }))
    }
}

impl<T: Plain> Deref for Storage<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(numbers) => numbers,
            // SAFETY: `Storage::mapped` saw that so many numbers lie there and are aligned; any bytes are numbers; and
            // the map lives as long as this value.
            Self::Mapped(part) => unsafe {
                std::slice::from_raw_parts(part.file.as_ptr().add(part.start).cast(), part.len)
            },
        }
    }
}

impl<T> From<Vec<T>> for Storage<T> {
    fn from(numbers: Vec<T>) -> Self {
        Self::Owned(numbers)
    }
}

impl<T: Plain + PartialEq> PartialEq for Storage<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T> fmt::Debug for Storage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned(numbers) => write!(f, "Owned({})", numbers.len()),
            Self::Mapped(part) => write!(f, "Mapped({})", part.len),
        }
    }
}

/// Packed weights in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocks(Vec<Block>);

impl Blocks {
    /// Room for `count` blocks, on huge pages where the system gives them.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let mut blocks = Vec::with_capacity(count);
        advise_huge_pages(&mut blocks);
        Self(blocks)
    }
}

impl From<Blocks> for Storage<Block> {
    fn from(blocks: Blocks) -> Self {
        Self::Owned(blocks.0)
    }
}

impl Extend<Block> for Blocks {
    fn extend<I: IntoIterator<Item = Block>>(&mut self, blocks: I) {
        self.0.extend(blocks);
    }
}

/// Asks for huge pages behind a large vector that is still empty: weights are streamed, and a page walk every 4 KiB
/// costs a tenth of the bandwidth. Without them everything works as before.
pub(super) fn advise_huge_pages<T>(vector: &mut Vec<T>) {
    let bytes = vector.capacity() * size_of::<T>();
    if bytes < WORTH_HUGE_PAGES {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let start = vector.as_mut_ptr().cast::<u8>();
        let skip = start.align_offset(PAGE);
        let len = (bytes - skip) / PAGE * PAGE;
        // SAFETY: the range lies inside the vector's own allocation, and MADV_HUGEPAGE changes no content. A refusal
        // (no huge pages in this kernel) leaves everything as it was.
        let _ = unsafe { libc::madvise(start.add(skip).cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_part_of_a_file_reads_as_what_was_written_and_ends_with_the_file() {
        let numbers = [1.5_f32, -2.0, f32::NAN, 4.0];
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes_of(&numbers)).unwrap();
        // SAFETY: nobody else has this file.
        let file = Arc::new(unsafe { Mmap::map(&file) }.unwrap());
        let part = Storage::<f32>::mapped(&file, 4, 3).unwrap();
        assert_eq!(bytes_of(&part), bytes_of(&numbers[1..]));
        assert!(Storage::<f32>::mapped(&file, 4, 4).is_none(), "behind the end");
        assert!(Storage::<f32>::mapped(&file, 2, 1).is_none(), "not aligned");
        assert!(Storage::<f32>::mapped(&file, 4, usize::MAX).is_none());
        assert!(Storage::<Block>::mapped(&file, usize::MAX, 1).is_none());
    }
}
