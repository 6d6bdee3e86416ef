//! Attention of queries over cached keys and values.
//!
//! Keys are visited in blocks of 32 positions at fixed places, with a running maximum and sum, so a query's result does
//! not depend on which other queries are computed, nor on how its sequence was cut into passes.

#![expect(clippy::inline_always, reason = "compiled into callers that have the features of the register")]
#![expect(clippy::needless_range_loop, reason = "indices of several arrays of registers, which all become names")]

use super::kv::{KvFormat, POSITIONS};
use super::rows::Cells;
use super::simd::{Vector, exp};
use super::{Cpu, Kernels, Rows, Set};
use std::cell::RefCell;
use std::ops::Range;

/// Queries that share a widened block.
const TOGETHER: usize = 32;
/// Rows of values are padded to a multiple, so that no register ends behind them.
const PADDING: usize = 32;

/// Lanes of the widest register.
const MOST_LANES: usize = 16;

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
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    queries: Vec<f32>,
    results: Vec<f32>,
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
        let stride = width.next_multiple_of(PADDING);
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
    use super::{Scratch, Work, attend};
    use std::arch::x86_64::{__m256, __m512};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn attend_avx2(work: &Work<'_>, scratch: &mut Scratch) {
        // SAFETY: this function has the features of the register.
        unsafe { attend::<__m256>(work, scratch) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn attend_avx512(work: &Work<'_>, scratch: &mut Scratch) {
        // SAFETY: this function has the features of the register.
        unsafe { attend::<__m512>(work, scratch) }
    }
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn attend<V: Vector>(work: &Work<'_>, scratch: &mut Scratch) {
    let width = work.format.head_dim;
    let stride = width.next_multiple_of(PADDING);
    let Scratch { keys, values, scores, sums, queries, results } = scratch;
    let count = queries.len() / width;
    keys.resize(width * POSITIONS, 0.0);
    // Columns behind the width stay zero.
    if values.len() != stride * POSITIONS {
        values.clear();
        values.resize(stride * POSITIONS, 0.0);
    }
    scores.resize(count * POSITIONS, 0.0);
    // Largest score so far, and sum of the exponentials.
    sums.clear();
    sums.extend((0..count).flat_map(|_| [f32::NEG_INFINITY, 0.0]));
    results.clear();
    results.resize(count * stride, 0.0);
    let last = work.visible + (count / work.group) - 1;
    let bytes = work.format.block_bytes();
    let blocks = KvFormat::blocks(last);
    assert!(work.head.len() >= blocks * bytes);
    for (index, block) in work.head.chunks_exact(bytes).take(blocks).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { work.format.read::<V>(block, keys, values, stride) };
        let first = index * POSITIONS;
        let rows = if V::WIDE { 4 } else { 2 };
        for start in (0..count).step_by(rows) {
            let rows = rows.min(count - start);
            let seen = |query: usize| (work.visible + query / work.group).saturating_sub(first).min(POSITIONS);
            if seen(start + rows - 1) == 0 {
                continue;
            }
            let queries = &queries[start * width..(start + rows) * width];
            let scores = &mut scores[start * POSITIONS..(start + rows) * POSITIONS];
            let results = &mut results[start * stride..(start + rows) * stride];
            // SAFETY: the caller's promise; rows and strides are as these functions check.
            unsafe {
                match (rows, V::WIDE) {
                    (4, _) => score::<V, 4>(queries, keys, width, scores),
                    (3, _) => score::<V, 3>(queries, keys, width, scores),
                    (2, _) => score::<V, 2>(queries, keys, width, scores),
                    _ => score::<V, 1>(queries, keys, width, scores),
                }
                for (row, scores) in scores.as_chunks_mut::<POSITIONS>().0.iter_mut().enumerate() {
                    let sums = &mut sums[2 * (start + row)..2 * (start + row) + 2];
                    let shrink = weigh::<V>(scores, seen(start + row), work.scale, sums);
                    if shrink != 1.0 {
                        for x in &mut results[row * stride..(row + 1) * stride] {
                            *x *= shrink;
                        }
                    }
                }
                let most = seen(start + rows - 1);
                match (rows, V::WIDE) {
                    (4, _) => add_values::<V, 4>(scores, values, stride, most, results),
                    (3, _) => add_values::<V, 3>(scores, values, stride, most, results),
                    (2, _) => add_values::<V, 2>(scores, values, stride, most, results),
                    _ => add_values::<V, 1>(scores, values, stride, most, results),
                }
            }
        }
    }
    for (row, results) in results.chunks_exact_mut(stride).enumerate() {
        let factor = sums[2 * row + 1].recip();
        for x in results {
            *x *= factor;
        }
    }
}

/// From scores to exponentials relative to the running maximum; returns by what earlier results shrink.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn weigh<V: Vector>(scores: &mut [f32; POSITIONS], seen: usize, scale: f32, sums: &mut [f32]) -> f32 {
    if seen == 0 {
        scores.fill(0.0);
        return 1.0;
    }
    let before = sums[0];
    scores[seen..].fill(f32::NEG_INFINITY);
    let mut lanes = [0.0; MOST_LANES];
    // SAFETY: the caller's promise; the scores are a whole number of registers.
    unsafe {
        let mut largest = V::splat(f32::NEG_INFINITY);
        let mut at = 0;
        while at < POSITIONS {
            largest = V::load(scores.as_ptr().add(at)).max(largest);
            at += V::LANES;
        }
        largest.store(lanes.as_mut_ptr());
    }
    let highest = lanes[..V::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
    let largest = if highest > before { highest } else { before };
    // SAFETY: as above.
    let total = unsafe {
        let mut total = V::splat(0.0);
        let mut at = 0;
        while at < POSITIONS {
            let score = V::load(scores.as_ptr().add(at)).fma(V::splat(scale), V::splat(-largest));
            let weight = exp(score);
            weight.store(scores.as_mut_ptr().add(at));
            at += V::LANES;
        }
        scores[seen..].fill(0.0);
        at = 0;
        while at < POSITIONS {
            total = total.add(V::load(scores.as_ptr().add(at)));
            at += V::LANES;
        }
        total.sum()
    };
    let shrink = if before == largest { 1.0 } else { (before - largest).exp() };
    sums[0] = largest;
    sums[1] = sums[1] * shrink + total;
    shrink
}

/// `scores[row][position] = query[row] · key[position]`.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn score<V: Vector, const R: usize>(queries: &[f32], keys: &[f32], width: usize, scores: &mut [f32]) {
    const { assert!(POSITIONS.is_multiple_of(V::LANES) && POSITIONS / V::LANES <= 4) };
    assert!(queries.len() == R * width && keys.len() == width * POSITIONS && scores.len() == R * POSITIONS);
    let vectors = POSITIONS / V::LANES;
    // SAFETY: the lengths were checked above.
    unsafe {
        let mut sums = [[V::splat(0.0); 4]; R];
        for column in 0..width {
            let mut key = [V::splat(0.0); 4];
            for v in 0..vectors {
                key[v] = V::load(keys.as_ptr().add(column * POSITIONS + v * V::LANES));
            }
            for row in 0..R {
                let query = V::splat(*queries.as_ptr().add(row * width + column));
                for v in 0..vectors {
                    sums[row][v] = query.fma(key[v], sums[row][v]);
                }
            }
        }
        for row in 0..R {
            for v in 0..vectors {
                sums[row][v].store(scores.as_mut_ptr().add(row * POSITIONS + v * V::LANES));
            }
        }
    }
}

/// `results[row] += Σ weight[row][position] · value[position]` over the first `count` positions.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn add_values<V: Vector, const R: usize>(
    weights: &[f32],
    values: &[f32],
    stride: usize,
    count: usize,
    results: &mut [f32],
) {
    const { assert!(PADDING.is_multiple_of(V::LANES) && PADDING / V::LANES <= 4) };
    assert!(weights.len() == R * POSITIONS && count <= POSITIONS && values.len() == POSITIONS * stride);
    assert!(results.len() == R * stride && stride.is_multiple_of(PADDING));
    let vectors = PADDING / V::LANES;
    for from in (0..stride).step_by(PADDING) {
        // SAFETY: the lengths were checked above, and `from` is at most `stride - PADDING`.
        unsafe {
            let mut sums = [[V::splat(0.0); 4]; R];
            for row in 0..R {
                for v in 0..vectors {
                    sums[row][v] = V::load(results.as_ptr().add(row * stride + from + v * V::LANES));
                }
            }
            for position in 0..count {
                let mut value = [V::splat(0.0); 4];
                for v in 0..vectors {
                    value[v] = V::load(values.as_ptr().add(position * stride + from + v * V::LANES));
                }
                for row in 0..R {
                    let weight = V::splat(*weights.as_ptr().add(row * POSITIONS + position));
                    for v in 0..vectors {
                        sums[row][v] = weight.fma(value[v], sums[row][v]);
                    }
                }
            }
            for row in 0..R {
                for v in 0..vectors {
                    sums[row][v].store(results.as_mut_ptr().add(row * stride + from + v * V::LANES));
                }
            }
        }
    }
}
