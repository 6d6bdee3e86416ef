//! Attention to keys and values that are cached as they were computed: everything in single precision.

use super::{Scratch, Work};
use crate::kernels::kv::{KvFormat, POSITIONS};
use crate::kernels::simd::{Vector, exp};

/// Rows of values are padded to a multiple, so that no register ends behind them.
const PADDING: usize = 32;

/// Lanes of the widest register.
const MOST_LANES: usize = 16;

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn attend<V: Vector>(work: &Work<'_>, scratch: &mut Scratch) {
    let width = work.format.head_dim;
    let stride = width.next_multiple_of(PADDING);
    let Scratch { keys, values, scores, sums, queries, results, .. } = scratch;
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
        work.format.read(block, keys, values, stride);
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
