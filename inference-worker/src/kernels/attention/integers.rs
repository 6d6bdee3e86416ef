//! Attention to keys and values of 16 bits and fewer: products of whole numbers, everything else in single precision.
//!
//! Lanes are queries. So the sums over positions go through the same lanes in one order, and a query's result has the
//! same bits in a register of any width, whichever queries are beside it. A query is rounded as a key of 16 bits is. The
//! weights of a block are rounded to whole numbers whose sum is at most 65,500, so that a sum of values fits in 32 bits.

use super::{Scratch, Work};
use crate::kernels::kv::{COLUMNS, GROUP, KvFormat, LARGEST, Numbers, POSITIONS, Scales, inverse, step, whole};
use crate::kernels::pairs::Pairs;
use crate::kernels::simd::exp;

/// Scores may be so much above the running maximum before it moves: what is summed until then shrinks less often.
const HEADROOM: f32 = 6.0;
/// Most that the whole numbers of a block's weights, each at most [`LARGEST`], add up to: with rounding, and times the
/// largest value, below 2^31.
const MOST: f32 = 65_500.0;

/// Memory of a thread.
#[derive(Default)]
pub(super) struct Buffers {
    numbers: Numbers,
    /// `[pair of columns][query]`.
    queries: Vec<[u8; 4]>,
    /// Steps of the queries times the scale of scores.
    factors: Vec<f32>,
    /// `[group][query]`: sums of the whole numbers.
    query_sums: Vec<f32>,
    /// Positions that a query sees.
    limits: Vec<f32>,
    /// `[position][query]`: scores, then their exponentials.
    scores: Vec<f32>,
    /// `[position][query]`: exponentials times the steps of values.
    scaled: Vec<f32>,
    /// Running maximum and sum of the exponentials.
    highest: Vec<f32>,
    totals: Vec<f32>,
    /// `[pair of positions][query]`, and what a whole number stands for.
    weights: Vec<[u8; 4]>,
    weight_steps: Vec<f32>,
    /// Sums of weighted lower bounds.
    lows: Vec<f32>,
    /// `[column][query]`.
    results: Vec<f32>,
}

fn reset(buffer: &mut Vec<f32>, len: usize, value: f32) {
    buffer.clear();
    buffer.resize(len, value);
}

/// Results of `scratch.queries` in `scratch.results`, rows of `width`.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn attend<V: Pairs>(work: &Work<'_>, scratch: &mut Scratch) {
    let format = work.format;
    let (width, groups) = (format.head_dim, format.groups());
    let count = scratch.queries.len() / width;
    let lanes = count.next_multiple_of(V::LANES);
    let Scratch { queries, results: out, integers: buffers, .. } = scratch;
    // SAFETY: the caller's promise.
    unsafe { buffers.begin(work, queries, lanes) };
    let last = work.visible + count / work.group - 1;
    let bytes = format.block_bytes();
    let blocks = KvFormat::blocks(last);
    assert!(work.head.len() >= blocks * bytes);
    let mut numbers = std::mem::take(&mut buffers.numbers);
    for (index, block) in work.head.chunks_exact(bytes).take(blocks).enumerate() {
        let first = index * POSITIONS;
        let view = numbers.read(format, block);
        let span = Span { first, whole: first + POSITIONS <= work.visible, seen: (last - first).min(POSITIONS) };
        // SAFETY: the caller's promise.
        unsafe {
            for group in 0..groups {
                buffers.score::<V>(format, view.keys, view.key_scales, group, lanes);
            }
            // One step per value: it goes into the exponentials as they are made.
            let plain = groups == 1 && !format.bits.coded();
            for lane in (0..lanes).step_by(V::LANES) {
                if plain {
                    buffers.weigh::<V, true>(&span, view.value_scales, lane, lanes);
                } else {
                    buffers.weigh::<V, false>(&span, view.value_scales, lane, lanes);
                }
            }
            for group in 0..groups {
                for lane in (0..lanes).step_by(V::LANES).filter(|_| !plain) {
                    buffers.scale::<V>(&span, view.value_scales, group, lane, lanes);
                }
                buffers.add_values::<V>(format, view.values, &span, group, lanes);
            }
        }
    }
    buffers.numbers = numbers;
    out.clear();
    for query in 0..count {
        let factor = buffers.totals[query].recip();
        out.extend(buffers.results.chunks_exact(lanes).take(width).map(|lanes| lanes[query] * factor));
    }
}

/// The positions of a block that are looked at.
struct Span {
    first: usize,
    /// All queries see all of them.
    whole: bool,
    /// Positions that some query sees.
    seen: usize,
}

impl Buffers {
    /// Gets ready for these queries: rows of `head_dim`.
    ///
    /// # Safety
    /// None; inlined into callers that have wider registers.
    #[inline(always)]
    unsafe fn begin(&mut self, work: &Work<'_>, queries: &[f32], lanes: usize) {
        let (format, count) = (work.format, queries.len() / work.format.head_dim);
        let groups = format.groups();
        self.queries.clear();
        self.queries.resize(format.pairs() * lanes, [0; 4]);
        reset(&mut self.factors, lanes, 0.0);
        reset(&mut self.query_sums, groups * lanes, 0.0);
        for (lane, row) in queries.chunks_exact(format.head_dim).enumerate() {
            let step = step(row);
            let inverse = inverse(step);
            self.factors[lane] = step * work.scale;
            for (group, row) in row.chunks(if groups == 1 { row.len() } else { GROUP }).enumerate() {
                let to = self.queries[group * GROUP / 2 * lanes..].chunks_exact_mut(lanes);
                let mut sum = 0;
                for (to, pair) in to.zip(row.chunks(2)) {
                    let one = whole(pair[0] * inverse);
                    let other = pair.get(1).map_or(0, |x| whole(x * inverse));
                    sum += i32::from(one) + i32::from(other);
                    to[lane] = (u32::from(one.cast_unsigned()) | u32::from(other.cast_unsigned()) << 16).to_le_bytes();
                }
                self.query_sums[group * lanes + lane] = sum as f32;
            }
        }
        self.limits.clear();
        // Lanes without a query look where the last one does.
        self.limits.extend((0..lanes).map(|lane| (work.visible + lane.min(count - 1) / work.group) as f32));
        self.scores.resize(POSITIONS * lanes, 0.0);
        self.scaled.resize(POSITIONS * lanes, 0.0);
        reset(&mut self.highest, lanes, f32::NEG_INFINITY);
        reset(&mut self.totals, lanes, 0.0);
        self.weights.resize(POSITIONS / 2 * lanes, [0; 4]);
        self.weight_steps.resize(lanes, 0.0);
        self.lows.resize(lanes, 0.0);
        reset(&mut self.results, format.padded() * lanes, 0.0);
    }

    /// Adds what one group of columns gives to the scores, in steps of the queries.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    unsafe fn score<V: Pairs>(
        &mut self,
        format: KvFormat,
        keys: &[[u8; 4]],
        scales: &Scales,
        group: usize,
        lanes: usize,
    ) {
        let first = group * GROUP / 2;
        let pairs = if format.groups() == 1 { format.pairs() } else { (format.pairs() - first).min(GROUP / 2) };
        let product = Product {
            rows: &keys[first * POSITIONS..],
            stride: POSITIONS,
            count: POSITIONS,
            lanes: &self.queries[first * lanes..],
            width: lanes,
            pairs,
        };
        let steps = &scales.step[group * POSITIONS..][..POSITIONS];
        let lows = scales.low.get(group * POSITIONS..).filter(|lows| lows.len() >= POSITIONS);
        assert!(self.scores.len() == POSITIONS * lanes);
        let sums = self.query_sums[group * lanes..][..lanes].as_ptr();
        let mut scores = Scores { to: self.scores.as_mut_ptr(), lanes, steps, lows, sums, first: group == 0 };
        // SAFETY: the caller's promise; positions and lanes are those of the buffers.
        unsafe { product.each::<V>(&mut scores) };
    }

    /// From scores to exponentials relative to the running maximum, for a register of queries; where `PLAIN`, on to
    /// weights: the steps of values are in them, and there are no lower bounds.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    unsafe fn weigh<V: Pairs, const PLAIN: bool>(&mut self, span: &Span, scales: &Scales, lane: usize, lanes: usize) {
        assert!(self.scores.len() == POSITIONS * lanes && lane + V::LANES <= lanes && span.seen <= POSITIONS);
        assert!(scales.step.len() >= POSITIONS);
        // SAFETY: the caller's promise; so many lanes are left in each row.
        unsafe {
            let scores = self.scores.as_mut_ptr().add(lane);
            let factor = V::load(self.factors[lane..].as_ptr());
            let limit = V::load(self.limits[lane..].as_ptr()).add(V::splat(-(span.first as f32)));
            let before = V::load(self.highest[lane..].as_ptr());
            let nothing = V::splat(f32::NEG_INFINITY);
            let mut largest = nothing;
            let mut at = scores;
            for position in 0..span.seen {
                let mut score = V::load(at).fma(factor, V::splat(0.0));
                if !span.whole {
                    score = score.where_less(V::splat(position as f32), limit, nothing);
                }
                score.store(at);
                largest = score.max(largest);
                at = at.wrapping_add(lanes);
            }
            // One that is unequal to itself, if any: then results are NaN whatever is done.
            let highest = largest.where_less(before.add(V::splat(HEADROOM)), largest, before);
            let negative = highest.fma(V::splat(-1.0), V::splat(0.0));
            let shrink = exp(before.add(negative));
            let mut total = V::load(self.totals[lane..].as_ptr()).fma(shrink, V::splat(0.0));
            let (mut sum, mut largest) = (V::splat(0.0), V::splat(0.0));
            let mut at = scores;
            for position in 0..span.seen {
                let mut weight = exp(V::load(at).add(negative));
                if !span.whole {
                    weight = weight.where_less(V::splat(position as f32), limit, V::splat(0.0));
                }
                total = total.add(weight);
                if PLAIN {
                    weight = weight.fma(V::splat(*scales.step.get_unchecked(position)), V::splat(0.0));
                    if !span.whole {
                        // What nobody wrote may be NaN.
                        weight = weight.where_less(V::splat(position as f32), limit, V::splat(0.0));
                    }
                    sum = sum.add(weight);
                    largest = largest.max(weight);
                }
                weight.store(at);
                at = at.wrapping_add(lanes);
            }
            if PLAIN {
                self.round::<V>(span, scores, sum, largest, lane, lanes);
            }
            total.store(self.totals[lane..].as_mut_ptr());
            let old = bits_of(&self.highest[lane..lane + V::LANES]);
            highest.store(self.highest[lane..].as_mut_ptr());
            if span.first > 0 && old != bits_of(&self.highest[lane..lane + V::LANES]) {
                for results in self.results.chunks_exact_mut(lanes) {
                    let to = results[lane..].as_mut_ptr();
                    V::load(to).fma(shrink, V::splat(0.0)).store(to);
                }
            }
        }
    }

    /// The weights of one group of columns, for a register of queries.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    unsafe fn scale<V: Pairs>(&mut self, span: &Span, scales: &Scales, group: usize, lane: usize, lanes: usize) {
        assert!(self.scores.len() == POSITIONS * lanes && lane + V::LANES <= lanes);
        assert!(self.scaled.len() == POSITIONS * lanes && self.lows.len() == lanes && span.seen <= POSITIONS);
        let groups = scales.step.len() / POSITIONS;
        assert!(group < groups && scales.low.len() == scales.step.len());
        // SAFETY: the caller's promise; so many lanes are left in each row.
        unsafe {
            let limit = V::load(self.limits[lane..].as_ptr()).add(V::splat(-(span.first as f32)));
            let nothing = V::splat(0.0);
            let (mut sum, mut largest, mut low) = (nothing, nothing, nothing);
            let mut from = self.scores.as_ptr().add(lane);
            let scaled = self.scaled.as_mut_ptr().add(lane);
            let mut to = scaled;
            for position in 0..span.seen {
                let (weight, at) = (V::load(from), position * groups + group);
                let mut scaled = weight.fma(V::splat(*scales.step.get_unchecked(at)), nothing);
                let mut term = weight.fma(V::splat(*scales.low.get_unchecked(at)), low);
                if !span.whole {
                    // What nobody wrote may be NaN.
                    scaled = scaled.where_less(V::splat(position as f32), limit, nothing);
                    term = term.where_less(V::splat(position as f32), limit, low);
                }
                scaled.store(to);
                sum = sum.add(scaled);
                largest = largest.max(scaled);
                low = term;
                from = from.wrapping_add(lanes);
                to = to.wrapping_add(lanes);
            }
            low.store(self.lows.as_mut_ptr().add(lane));
            self.round::<V>(span, scaled, sum, largest, lane, lanes);
        }
    }

    /// Scaled weights, with their sum and the largest of them, as whole numbers.
    ///
    /// # Safety
    /// The CPU has the features of `V`; [`POSITIONS`] rows of `lanes` weights are at `scaled`.
    #[inline(always)]
    unsafe fn round<V: Pairs>(&mut self, span: &Span, scaled: *mut f32, sum: V, largest: V, lane: usize, lanes: usize) {
        assert!(self.weights.len() == POSITIONS / 2 * lanes && self.weight_steps.len() == lanes);
        assert!(lane + V::LANES <= lanes && span.seen <= POSITIONS);
        // SAFETY: the caller's promise; so many lanes are left in each row.
        unsafe {
            let nothing = V::splat(0.0);
            if span.seen % 2 == 1 {
                nothing.store(scaled.add(span.seen * lanes));
            }
            // The sum is NaN if a weight is.
            let step = largest.fma(V::splat(LARGEST.recip()), nothing).max(sum.fma(V::splat(MOST.recip()), nothing));
            let step = step.at_least(f32::MIN_POSITIVE);
            step.store(self.weight_steps.as_mut_ptr().add(lane));
            let inverse = step.reciprocal();
            let mut from = scaled.cast_const();
            let mut to = self.weights.as_mut_ptr().add(lane);
            for _ in 0..span.seen.div_ceil(2) {
                let (first, second) = (V::load(from), V::load(from.add(lanes)));
                V::store_pairs(V::round_to_pairs(first.fma(inverse, nothing), second.fma(inverse, nothing)), to);
                from = from.wrapping_add(2 * lanes);
                to = to.wrapping_add(lanes);
            }
        }
    }

    /// Adds the weighted values of one group of columns.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    unsafe fn add_values<V: Pairs>(
        &mut self,
        format: KvFormat,
        values: &[[u8; 4]],
        span: &Span,
        group: usize,
        lanes: usize,
    ) {
        let first = group * GROUP;
        let count = if format.groups() == 1 { format.padded() } else { (format.padded() - first).min(GROUP) };
        let product = Product {
            rows: &values[first..],
            stride: format.padded(),
            count,
            lanes: &self.weights,
            width: lanes,
            pairs: span.seen.div_ceil(2),
        };
        let to = self.results[first * lanes..][..count * lanes].as_mut_ptr();
        let (steps, lows) = (self.weight_steps[..lanes].as_ptr(), self.lows[..lanes].as_ptr());
        let mut results = Results { to, lanes, steps, lows: format.bits.coded().then_some(lows) };
        // SAFETY: the caller's promise; columns and lanes are those of the buffers.
        unsafe { product.each::<V>(&mut results) };
    }
}

/// What becomes of sums. Not a closure, because that has no features and is not sure to be inlined.
trait Take {
    /// # Safety
    /// The CPU has the features of `V`; row and lane are within the buffers.
    unsafe fn take<V: Pairs>(&mut self, row: usize, lane: usize, sums: V::Ints);
}

struct Scores<'a> {
    to: *mut f32,
    lanes: usize,
    steps: &'a [f32],
    lows: Option<&'a [f32]>,
    /// Sums of the queries' whole numbers.
    sums: *const f32,
    /// No other group has been added yet.
    first: bool,
}

impl Take for Scores<'_> {
    #[inline(always)]
    unsafe fn take<V: Pairs>(&mut self, position: usize, lane: usize, sums: V::Ints) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.to.add(position * self.lanes + lane);
            let mut score = V::splat(0.0);
            if let Some(lows) = self.lows {
                if !self.first {
                    score = V::load(to);
                }
                score = V::load(self.sums.add(lane)).fma(V::splat(*lows.get_unchecked(position)), score);
            }
            V::from_ints(sums).fma(V::splat(*self.steps.get_unchecked(position)), score).store(to);
        }
    }
}

struct Results {
    to: *mut f32,
    lanes: usize,
    steps: *const f32,
    lows: Option<*const f32>,
}

impl Take for Results {
    #[inline(always)]
    unsafe fn take<V: Pairs>(&mut self, column: usize, lane: usize, sums: V::Ints) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.to.add(column * self.lanes + lane);
            let mut result = V::load(to);
            if let Some(lows) = self.lows {
                result = result.add(V::load(lows.add(lane)));
            }
            V::from_ints(sums).fma(V::load(self.steps.add(lane)), result).store(to);
        }
    }
}

fn bits_of(numbers: &[f32]) -> [u32; 16] {
    std::array::from_fn(|i| numbers.get(i).map_or(0, |x| x.to_bits()))
}

/// `[row][lane]`: sums over pairs, exact.
struct Product<'a> {
    /// `[pair][row]`, rows `stride` apart.
    rows: &'a [[u8; 4]],
    stride: usize,
    count: usize,
    /// `[pair][lane]`, `width` apart.
    lanes: &'a [[u8; 4]],
    width: usize,
    pairs: usize,
}

impl Product<'_> {
    /// Hands on the sums of all rows and registers of lanes.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    unsafe fn each<V: Pairs>(&self, take: &mut impl Take) {
        assert!(self.count.is_multiple_of(COLUMNS) && self.width.is_multiple_of(V::LANES));
        assert!(self.pairs > 0 && self.rows.len() >= (self.pairs - 1) * self.stride + self.count);
        assert!(self.lanes.len() >= self.pairs * self.width);
        let mut lane = 0;
        // SAFETY: the caller's promise; so many lanes are left each time.
        unsafe {
            while V::WIDE && lane + 2 * V::LANES <= self.width {
                self.column::<V, 2>(lane, take);
                lane += 2 * V::LANES;
            }
            while lane < self.width {
                self.column::<V, 1>(lane, take);
                lane += V::LANES;
            }
        }
    }

    /// # Safety
    /// As [`Product::each`]; `R` registers are left from `lane` on.
    #[inline(always)]
    unsafe fn column<V: Pairs, const R: usize>(&self, lane: usize, take: &mut impl Take) {
        for row in (0..self.count).step_by(COLUMNS) {
            // SAFETY: the caller's promise; `each` has checked that so many rows and lanes are there for each pair.
            unsafe {
                let mut sums = [[V::zero(); R]; COLUMNS];
                let mut rows = self.rows.as_ptr().add(row);
                let mut lanes = self.lanes.as_ptr().add(lane);
                for _ in 0..self.pairs {
                    let mut pairs = [V::zero(); R];
                    for r in 0..R {
                        pairs[r] = V::load_pairs(lanes.add(r * V::LANES));
                    }
                    for c in 0..COLUMNS {
                        for r in 0..R {
                            sums[c][r] = V::add_products(sums[c][r], pairs[r], rows.add(c));
                        }
                    }
                    rows = rows.wrapping_add(self.stride);
                    lanes = lanes.wrapping_add(self.width);
                }
                for c in 0..COLUMNS {
                    for r in 0..R {
                        take.take::<V>(row + c, lane + r * V::LANES, sums[c][r]);
                    }
                }
            }
        }
    }
}
