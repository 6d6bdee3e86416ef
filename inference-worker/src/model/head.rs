//! The head: from the last hidden state to logits.
//!
//! The head is the largest matrix that a token reads. In 8 bits per weight it is half of that, and wrong by little; by
//! how much at most is known for each row, because the parts that rounding took away are known when the model is loaded:
//! with `w = ŵ + e` and `x = x̂ + d`, `w · x = ŵ · x̂ + e · x + ŵ · d`, and a product is at most the product of the
//! lengths. So the rows whose logit may be among the largest are known as well, and only those are read in full.

use crate::kernels::{CodeWidth, Codes, CodesProduct, Cpu, Dense, DenseProduct, Quantized, Rows};
use std::convert::Infallible;
use std::sync::Arc;

/// How logits are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeadMode {
    /// In the checkpoint's precision.
    #[default]
    Exact,
    /// In 8 bits, and again in the checkpoint's precision where a logit may be one of the [`HeadMode::EXACT`] largest:
    /// those are the largest of the exact head, bit for bit; the others are close and smaller.
    Screened,
    /// In 8 bits.
    Int8,
}

impl HeadMode {
    /// Logits that are exact in a screened head.
    pub const EXACT: usize = 40;
}

/// 8-bit rows, and how wrong they are.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) codes: Codes,
    /// Length of what rounding took from each row.
    pub(super) lost: Vec<f32>,
    /// Length of each rounded row.
    pub(super) size: Vec<f32>,
    /// Whether candidates are computed again.
    pub(super) rescore: bool,
}

impl Screen {
    /// `None` for an exact head, or one that is too wide for 8-bit products.
    pub(super) fn new(weights: &Dense, mode: HeadMode) -> Option<Self> {
        if mode == HeadMode::Exact || weights.columns() > Codes::MOST_COLUMNS {
            return None;
        }
        let (rows, columns) = (weights.rows(), weights.columns());
        let (mut lost, mut size) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let mut line = vec![0.0; columns];
        let codes = Codes::from_codes(CodeWidth::Int8, rows, columns, |row, codes| {
            weights.read_row(row, &mut line);
            let largest = line.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            // NaN hides from `max`; it must show in the logits.
            let factor = if line.iter().all(|w| w.is_finite()) { largest / 127.0 } else { f32::NAN };
            let (mut away, mut left) = (0.0_f64, 0.0_f64);
            for (code, weight) in codes.iter_mut().zip(&line) {
                let value = if factor > 0.0 { (weight / factor).round_ties_even().clamp(-127.0, 127.0) } else { 0.0 };
                *code = (value as i32 + 128) as u8;
                let rounded = f64::from(value) * f64::from(factor);
                away += (f64::from(*weight) - rounded).powi(2);
                left += rounded.powi(2);
            }
            lost.push(up(away.sqrt()));
            size.push(up(left.sqrt()));
            Ok::<f32, Infallible>(factor)
        });
        let Ok(codes) = codes;
        Some(Self { codes, lost, size, rescore: mode == HeadMode::Screened })
    }

    /// Bytes that a product reads; candidates not counted.
    pub(super) fn bytes(&self) -> usize {
        self.codes.bytes()
    }

    /// Bytes in memory.
    pub(super) fn held(&self) -> usize {
        self.codes.bytes() + 4 * (self.lost.len() + self.size.len())
    }

    fn logits(&self, cpu: &Cpu, weights: &Dense, x: &mut Rows, out: &mut Rows) {
        let mut quantized = Quantized::default();
        cpu.quantise(x, &mut quantized);
        cpu.codes(&quantized, &mut [CodesProduct { weights: &self.codes, out }]);
        if !self.rescore {
            return;
        }
        let mut single = Rows::new(1, x.width());
        for token in 0..x.count() {
            single.row_mut(0).copy_from_slice(x.row(token));
            let scale = f64::from(quantized.scale(token));
            let pairs = x.row(token).iter().zip(quantized.row(token));
            let (length, away) = pairs.fold((0.0, 0.0), |(length, away), (x, q)| {
                let x = f64::from(*x);
                (length + x * x, away + (x - f64::from(*q) / scale).powi(2))
            });
            let (length, away) = (up(length.sqrt()), up(away.sqrt()));
            for row in self.candidates(out.row(token), length, away) {
                out.row_mut(token)[row] = cpu.dense_row(weights, row, &single);
            }
        }
    }

    /// Rows whose exact logit may be among the largest. `length` is that of the input, `away` of what its rounding took.
    fn candidates(&self, logits: &[f32], length: f32, away: f32) -> Vec<usize> {
        // Sums of floats: each of the columns + 8 additions on the way rounds once, relative to the sum of magnitudes.
        let rounding = (self.codes.columns() + 8) as f32 * f32::EPSILON;
        let bound = |row: usize| {
            let exact = self.lost[row] * length + self.size[row] * away;
            exact + rounding * (self.size[row] + self.lost[row]) * (length + away)
        };
        // The largest lower bounds, smallest first.
        let mut best: Vec<f32> = Vec::with_capacity(HeadMode::EXACT + 1);
        for (row, logit) in logits.iter().enumerate() {
            if best.len() == HeadMode::EXACT && *logit <= best[0] {
                continue;
            }
            let least = logit - bound(row);
            if least.is_nan() || (best.len() == HeadMode::EXACT && least <= best[0]) {
                continue;
            }
            best.insert(best.partition_point(|x| *x < least), least);
            if best.len() > HeadMode::EXACT {
                best.remove(0);
            }
        }
        let Some(least) = best.first() else { return Vec::new() };
        (0..logits.len()).filter(|row| logits[*row] + bound(*row) >= *least).collect()
    }
}

/// The head of a model: its own matrix or the embedding, and what screens it.
#[derive(Debug)]
pub(super) struct Head {
    /// `None`: the embedding is the head.
    pub(super) own: Option<Arc<Dense>>,
    pub(super) screen: Option<Screen>,
}

impl Head {
    /// The head of a model with this embedding.
    pub(super) fn new(own: Option<Arc<Dense>>, embedding: &Dense, mode: HeadMode) -> Self {
        let screen = Screen::new(own.as_deref().unwrap_or(embedding), mode);
        Self { own, screen }
    }

    /// Bytes that logits of one token read, whatever the number of candidates.
    pub(super) fn bytes(&self, embedding: &Dense) -> usize {
        self.screen.as_ref().map_or_else(|| self.own.as_deref().unwrap_or(embedding).bytes(), Screen::bytes)
    }

    /// Logits of all rows.
    pub(super) fn logits(&self, cpu: &Cpu, embedding: &Dense, x: &mut Rows) -> Rows {
        let weights = self.own.as_deref().unwrap_or(embedding);
        let mut out = Rows::new(x.count(), weights.rows());
        match &self.screen {
            Some(screen) => screen.logits(cpu, weights, x, &mut out),
            None => cpu.dense(x, &mut [DenseProduct { weights, out: &mut out }]),
        }
        out
    }
}

/// A bound in single precision.
fn up(x: f64) -> f32 {
    (x as f32).next_up()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Elements, Kernels};
    use half::bf16;
    use proptest::prelude::*;

    fn rows_of(count: usize, width: usize, numbers: &[f32]) -> Rows {
        let mut rows = Rows::new(count, width);
        (0..count).for_each(|i| rows.row_mut(i).copy_from_slice(&numbers[i * width..(i + 1) * width]));
        rows
    }

    /// Places of the largest logits, the largest first, and the logits.
    fn order(logits: &[f32]) -> Vec<(usize, f32)> {
        let mut order: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        order
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_largest_logits_of_a_screened_head_are_those_of_the_exact_one(
            (vocabulary, width) in (1_usize..400, 1_usize..80),
            // Rows that are alike, so that rounding turns their order.
            close in prop_oneof![Just(0.0_f32), Just(1e-3), Just(1.0)],
            numbers in proptest::collection::vec(-1.0_f32..1.0, 400 * 80),
            x in proptest::collection::vec(prop_oneof![4 => -2.0_f32..2.0, 1 => Just(30.0_f32)], 2 * 80),
        ) {
            let weights = |i: usize| numbers[i % width] * (1.0 - close) + numbers[i] * close;
            let elements = Elements::Bf16((0..vocabulary * width).map(|i| bf16::from_f32(weights(i))).collect());
            let embedding = Dense::new(vocabulary, width, &elements);
            for kernels in Kernels::all() {
                let cpu = Cpu::new(kernels, 1).unwrap();
                let head = |mode| {
                    Head::new(None, &embedding, mode).logits(&cpu, &embedding, &mut rows_of(2, width, &x[..2 * width]))
                };
                let (exact, screened) = (head(HeadMode::Exact), head(HeadMode::Screened));
                for token in 0..2 {
                    let (exact, screened) = (order(exact.row(token)), order(screened.row(token)));
                    let count = HeadMode::EXACT.min(vocabulary);
                    prop_assert_eq!(&exact[..count], &screened[..count]);
                }
            }
        }
    }

    #[test]
    fn few_rows_are_computed_again_and_the_rest_is_close() {
        let (vocabulary, width) = (4096, 512);
        let mut random = crate::random::Random::from_seed(5);
        let mut numbers = |count: usize| -> Vec<f32> {
            (0..count).map(|_| (0..4).map(|_| random.unit() as f32 - 0.5).sum()).collect()
        };
        let embedding = Dense::new(vocabulary, width, &Elements::F32(numbers(vocabulary * width)));
        let cpu = Cpu::new(Kernels::detect(), 1).unwrap();
        let x = numbers(width);
        let head = |mode| Head::new(None, &embedding, mode).logits(&cpu, &embedding, &mut rows_of(1, width, &x));
        let (exact, int8, screened) = (head(HeadMode::Exact), head(HeadMode::Int8), head(HeadMode::Screened));
        let again = int8.row(0).iter().zip(screened.row(0)).filter(|(a, b)| a != b).count();
        assert!((HeadMode::EXACT..vocabulary / 4).contains(&again), "{again}");
        let error = exact.row(0).iter().zip(int8.row(0)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let size = exact.row(0).iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        assert!(error < 0.05 * size, "{error} of {size}");
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        let embedding = Dense::new(3, 2, &Elements::F32(vec![1.0, 2.0, f32::NAN, 1.0, f32::INFINITY, 0.0]));
        let cpu = Cpu::new(Kernels::detect(), 1).unwrap();
        for mode in [HeadMode::Exact, HeadMode::Screened, HeadMode::Int8] {
            let head = Head::new(None, &embedding, mode);
            let out = head.logits(&cpu, &embedding, &mut rows_of(2, 2, &[1.0, 1.0, f32::NAN, 0.0]));
            assert!(out.row(0)[0].is_finite() && !out.row(0)[1].is_finite() && !out.row(0)[2].is_finite(), "{mode:?}");
            assert!(out.row(1).iter().all(|x| !x.is_finite()), "{mode:?}");
        }
    }
}
