//! Where weights lie.

/// Bytes of a block of packed weights.
pub(super) const BLOCK_BYTES: usize = 128;
/// Smaller allocations gain nothing from huge pages.
const WORTH_HUGE_PAGES: usize = 4 << 20;

/// The unit of packed weights: two cache lines, aligned so that no load crosses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(128))]
pub(crate) struct Block(pub(crate) [u8; BLOCK_BYTES]);

/// Packed weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocks(Vec<Block>);

impl Blocks {
    /// Room for `count` blocks, on huge pages where the system gives them.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let mut blocks = Vec::with_capacity(count);
        advise_huge_pages(&mut blocks);
        Self(blocks)
    }

    pub(crate) fn as_slice(&self) -> &[Block] {
        &self.0
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
