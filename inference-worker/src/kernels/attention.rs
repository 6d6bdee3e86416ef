//! Attention of queries over cached keys and values.
//!
//! Keys are visited in blocks of 32 positions at fixed places, with a running maximum and sum, so a query's result does
//! not depend on which other queries are computed, nor on how its sequence was cut into passes.

#![expect(clippy::inline_always, reason = "compiled into callers that have the features of the register")]
#![expect(clippy::needless_range_loop, reason = "indices of several arrays of registers, which all become names")]

mod floats;
mod integers;

use super::kv::{KvBits, KvFormat};
use super::pairs::Pairs;
use super::rows::Cells;
use super::{Cpu, Kernels, Rows, Set};
use integers::Buffers;
use std::cell::RefCell;
use std::ops::Range;

/// Queries that share a widened block.
const TOGETHER: usize = 32;
/// What one sequence attends to in one layer.
#[derive(Clone, Copy)]
pub struct Sequence<'a> {
    /// How the heads' keys and values are stored.
    pub format: KvFormat,
    /// All heads, one after the other, each `head_bytes` long.
    pub heads: &'a [u8],
    /// Bytes of one head.
    pub head_bytes: usize,
    /// Rows of queries: the first one sees `visible` positions, each further one sees one more.
    pub rows: (usize, usize),
    /// See `rows`.
    pub visible: usize,
}

/// What some queries of one head share.
struct Work<'a> {
    format: KvFormat,
    head: &'a [u8],
    scale: f32,
    /// Queries per token.
    group: usize,
    /// Positions that the first token sees.
    visible: usize,
}

/// Memory of a thread; grows to what it needs and stays.
#[derive(Default)]
struct Scratch {
    /// Rows of queries and of results.
    queries: Vec<f32>,
    results: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    integers: Buffers,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Cpu {
    /// `out = softmax(query · keysᵀ · scale) · values` for all rows of all sequences; a row holds the heads' queries, and
    /// equally many of them belong to each head of keys and values.
    ///
    /// # Panics
    /// If the shapes do not fit or a query sees no position.
    pub fn attend(&self, sequences: &[Sequence<'_>], query: &Rows, scale: f32, out: &mut Rows) {
        assert!(query.width() == out.width() && query.count() == out.count());
        let mut items: Vec<(&Sequence<'_>, Range<usize>, usize)> = Vec::new();
        let mut work = 0;
        for sequence in sequences {
            let heads = sequence.heads.len() / sequence.head_bytes.max(1);
            let group = query.width() / sequence.format.head_dim / heads;
            assert!(group > 0 && group * heads * sequence.format.head_dim == query.width());
            let (first, count) = sequence.rows;
            assert!(first + count <= query.count() && sequence.visible > 0);
            let step = (TOGETHER / group).max(1);
            for start in (0..count).step_by(step) {
                let tokens = start..(start + step).min(count);
                let products = 2 * group * tokens.len() * sequence.format.head_dim * (sequence.visible + tokens.end);
                work = work.max(products);
                items.extend((0..heads).map(|head| (sequence, tokens.clone(), head)));
            }
        }
        let cells = out.cells(false);
        self.split(items.len(), 1, work, &|range| {
            SCRATCH.with_borrow_mut(|scratch| {
                for (sequence, tokens, head) in &items[range] {
                    // SAFETY: each head of each row belongs to one item only.
                    unsafe { self.attend_head(sequence, tokens.clone(), *head, query, scale, &cells, scratch) };
                }
            });
        });
    }

    /// # Safety
    /// Nobody else has the cells of this head and these tokens.
    #[expect(clippy::too_many_arguments, reason = "one item of the loop above")]
    unsafe fn attend_head(
        &self,
        sequence: &Sequence<'_>,
        tokens: Range<usize>,
        head: usize,
        query: &Rows,
        scale: f32,
        out: &Cells<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let width = sequence.format.head_dim;
        let heads = sequence.heads.len() / sequence.head_bytes;
        let group = query.width() / width / heads;
        let row = sequence.rows.0 + tokens.start;
        let columns = head * group * width..(head + 1) * group * width;
        scratch.queries.clear();
        for token in 0..tokens.len() {
            scratch.queries.extend_from_slice(&query.row(row + token)[columns.clone()]);
        }
        let work = Work {
            format: sequence.format,
            head: &sequence.heads[head * sequence.head_bytes..][..sequence.head_bytes],
            scale,
            group,
            visible: sequence.visible + tokens.start,
        };
        self.kernels().attend(&work, scratch);
        let stride = scratch.results.len() / (tokens.len() * group);
        for token in 0..tokens.len() {
            // SAFETY: the caller's promise.
            let cells = unsafe { out.part_mut(row + token, columns.start, columns.len()) };
            for (i, cells) in cells.chunks_exact_mut(width).enumerate() {
                cells.copy_from_slice(&scratch.results[(token * group + i) * stride..][..width]);
            }
        }
    }
}

impl Kernels {
    /// Results of `scratch.queries`, in `scratch.results`.
    fn attend(self, work: &Work<'_>, scratch: &mut Scratch) {
        match self.set {
            // SAFETY: an array needs no features.
            Set::Portable => unsafe { attend::<[f32; 8]>(work, scratch) },
            // SAFETY: every AArch64 CPU has the features of that register.
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => unsafe { attend::<[std::arch::aarch64::float32x4_t; 2]>(work, scratch) },
            // SAFETY: these sets exist only where the CPU has the features (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::AvxVnni => unsafe { x86::attend_avx2(work, scratch) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => unsafe { x86::attend_avx512(work, scratch) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{KvBits, Scratch, Work, attend, integers};
    use std::arch::x86_64::{__m256, __m512};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn attend_avx2(work: &Work<'_>, scratch: &mut Scratch) {
        // SAFETY: this function has the features of the register.
        unsafe { attend::<__m256>(work, scratch) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) fn attend_avx512(work: &Work<'_>, scratch: &mut Scratch) {
        let few = scratch.queries.len() <= 8 * work.format.head_dim;
        // SAFETY: this function has the features of the registers.
        unsafe {
            if few && work.format.bits != KvBits::ThirtyTwo {
                integers::attend::<__m256>(work, scratch);
            } else {
                attend::<__m512>(work, scratch);
            }
        }
    }
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn attend<V: Pairs>(work: &Work<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe {
        match work.format.bits {
            KvBits::ThirtyTwo => floats::attend::<V>(work, scratch),
            _ => integers::attend::<V>(work, scratch),
        }
    }
}
