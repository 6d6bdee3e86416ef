//! Before a model is served: do these kernels compute, on this very CPU, what the portable ones do?

use super::{
    CodeWidth, Codes, CodesProduct, Cpu, Dense, DenseProduct, Elements, Kernels, KvBits, KvFormat, Quantized, Rows,
    Sequence, Ternary, TernaryProduct,
};
use crate::random::Random;
use half::{bf16, f16};
use std::convert::Infallible;

/// Rows, columns and tokens: on and off every block size, so that each loop and each rest of one runs.
const SHAPES: [(usize, usize, usize); 5] = [(64, 512, 1), (70, 700, 2), (33, 1100, 5), (40, 64, 12), (31, 2570, 7)];
/// Relative to the sum of magnitudes: sums of floats in another order differ in the last digits only.
const FLOAT_ERROR: f32 = 1e-5;
/// Weights of attention are whole numbers of 1 / 65,500 of their sum: a last digit may turn the rounding of some.
const WEIGHT_ERROR: f32 = 1e-3;

/// A kernel that computes something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {kernels} kernels give another {what} than the portable ones at {rows} x {columns} and {tokens} tokens; serve on another machine, and report its CPU"
)]
pub struct KernelFault {
    /// Name of the kernels.
    pub kernels: &'static str,
    /// What differs.
    pub what: &'static str,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Tokens at once.
    pub tokens: usize,
}

impl Cpu {
    /// Compares these kernels with the portable ones on random data of some shapes: integers must be equal, floats equal
    /// but for rounding. Some milliseconds.
    ///
    /// # Errors
    /// The first [`KernelFault`].
    pub fn self_test(&self) -> Result<(), KernelFault> {
        let mut random = Random::from_seed(1);
        for (rows, columns, tokens) in SHAPES {
            let fault = |what| KernelFault { kernels: self.kernels().name(), what, rows, columns, tokens };
            let mut x = Rows::new(tokens, columns);
            (0..tokens).for_each(|row| x.row_mut(row).iter_mut().for_each(|x| *x = random.unit() as f32 * 8.0 - 4.0));
            let portable = Kernels::portable();
            if self.quantised(&x) != quantised_by(portable, &mut x) {
                return Err(fault("quantised activation"));
            }
            if !self.ternary_agrees(rows, columns, tokens, &mut random) {
                return Err(fault("ternary product"));
            }
            if let Some(width) = [CodeWidth::Binary, CodeWidth::Int4, CodeWidth::Int8]
                .into_iter()
                .find(|width| !self.codes_agree(*width, (rows, columns, tokens), &mut random))
            {
                return Err(fault(product_of(width)));
            }
            if !self.floats_agree(rows, &x, &mut random) {
                return Err(fault("product of floats"));
            }
            if !self.attention_agrees(&x) {
                return Err(fault("attention"));
            }
        }
        Ok(())
    }

    /// In tests of this test: one wrong number where it was asked for.
    #[cfg(test)]
    fn spoil(&self, what: &str, out: &mut Rows) {
        if self.spoiled == Some(what) {
            let last = out.count() - 1;
            out.row_mut(last).iter_mut().for_each(|x| *x = -0.5 - *x);
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "as in tests")]
    fn spoil(&self, _: &str, _: &mut Rows) {}

    fn quantised(&self, x: &Rows) -> Vec<(Vec<i8>, u32)> {
        let mut out = Quantized::default();
        let mut x = x.clone();
        self.spoil("quantised activation", &mut x);
        self.quantise(&mut x, &mut out);
        (0..out.count()).map(|row| (out.row(row).to_vec(), out.scale(row).to_bits())).collect()
    }

    /// Against plain sums: the limits of the types, and random values.
    fn ternary_agrees(&self, rows: usize, columns: usize, tokens: usize, random: &mut Random) -> bool {
        let mut codes: Vec<u8> = (0..rows * columns).map(|_| random.below(3) as u8).collect();
        // A row of the same sign throughout meets the largest activations: there sums of 16 bits would wrap.
        codes[..columns].fill(2);
        let fill = |row: usize, to: &mut [u8]| {
            to.copy_from_slice(&codes[row * columns..][..columns]);
            Ok::<(), Infallible>(())
        };
        let Ok(weights) = Ternary::from_codes(rows, columns, fill, |_, _| unreachable!("codes are below 3"));
        let (values, x) = activations(columns, tokens, random);
        let mut out = Rows::new(tokens, rows);
        self.ternary(&x, &mut [TernaryProduct { weights: &weights, divisor: 1.0, factor: 1.0, out: &mut out }]);
        self.spoil("ternary product", &mut out);
        are_products(&out, &codes, &values, columns, |products, sum| products - sum)
    }

    /// Against plain sums, as the ternary ones.
    fn codes_agree(
        &self,
        width: CodeWidth,
        (rows, columns, tokens): (usize, usize, usize),
        random: &mut Random,
    ) -> bool {
        let most = ((1_u16 << width.bits()) - 1) as u8;
        let mut codes: Vec<u8> = (0..rows * columns).map(|_| random.bits() as u8 & most).collect();
        codes[..columns].fill(most);
        let fill = |row: usize, to: &mut [u8]| {
            to.copy_from_slice(&codes[row * columns..][..columns]);
            Ok::<f32, Infallible>(1.0)
        };
        let Ok(weights) = Codes::from_codes(width, rows, columns, fill);
        let (values, x) = activations(columns, tokens, random);
        let mut out = Rows::new(tokens, rows);
        self.codes(&x, &mut [CodesProduct { weights: &weights, out: &mut out }]);
        self.spoil(product_of(width), &mut out);
        are_products(&out, &codes, &values, columns, |products, sum| width.product(products, sum))
    }

    fn floats_agree(&self, rows: usize, x: &Rows, random: &mut Random) -> bool {
        let weights: Vec<f32> = (0..rows * x.width()).map(|_| random.unit() as f32 * 2.0 - 1.0).collect();
        let stored = [
            Elements::F16(weights.iter().map(|w| f16::from_f32(*w)).collect()),
            Elements::Bf16(weights.iter().map(|w| bf16::from_f32(*w)).collect()),
            Elements::F32(weights),
        ];
        stored.iter().all(|elements| {
            let matrix = Dense::new(rows, x.width(), elements);
            let mut out = Rows::new(x.count(), rows);
            self.dense(x, &mut [DenseProduct { weights: &matrix, out: &mut out }]);
            self.spoil("product of floats", &mut out);
            let mut line = vec![0.0; x.width()];
            (0..rows).all(|row| {
                matrix.read_row(row, &mut line);
                (0..x.count()).all(|token| {
                    let terms = line.iter().zip(x.row(token)).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    (f64::from(out.row(token)[row]) - sum).abs() <= f64::from(FLOAT_ERROR) * size
                })
            })
        })
    }

    fn attention_agrees(&self, x: &Rows) -> bool {
        const POSITIONS: usize = 40;
        let width = (x.width() / 4).min(96);
        let numbers = x.row(0);
        let Ok(portable) = Cpu::new(Kernels::portable(), 1) else { return true };
        KvBits::SERVED.into_iter().all(|bits| {
            let format = KvFormat { bits, head_dim: width };
            let mut head = vec![0; KvFormat::blocks(POSITIONS) * format.block_bytes()];
            for position in 0..POSITIONS {
                let row = |at: usize| &numbers[(7 * position + at) % (numbers.len() - width)..][..width];
                format.write(&mut head, position, row(0), row(3));
            }
            // Two heads of queries for one of keys, and three tokens.
            let mut query = Rows::new(3, 2 * width);
            (0..3).for_each(|token| query.row_mut(token).copy_from_slice(&numbers[token..][..2 * width]));
            let sequence = Sequence { format, heads: &head, head_bytes: head.len(), rows: (0, 3), visible: 33 };
            let by = |cpu: &Self| {
                let mut out = Rows::new(3, 2 * width);
                cpu.attend(&[sequence], &query, 0.1, &mut out);
                out
            };
            let (mut found, expected) = (by(self), by(&portable));
            self.spoil("attention", &mut found);
            (0..3).all(|token| {
                let mut pairs = found.row(token).iter().zip(expected.row(token));
                pairs.all(|(a, b)| (a - b).abs() <= WEIGHT_ERROR)
            })
        })
    }
}

/// Random rows of integers, the first one as large as they get; scales are 1.
fn activations(columns: usize, tokens: usize, random: &mut Random) -> (Vec<i8>, Quantized) {
    let mut values: Vec<i8> = (0..tokens * columns).map(|_| random.bits() as i8).collect();
    values[..columns].fill(127);
    let x = Quantized::from_values(columns, &values, &vec![1.0; tokens]);
    (values, x)
}

/// Whether these are the plain products of rows of values and rows of codes; `meaning` makes them of the sum of code ×
/// value and the sum of the values.
fn are_products(out: &Rows, codes: &[u8], values: &[i8], columns: usize, meaning: impl Fn(i32, i32) -> i32) -> bool {
    values.chunks_exact(columns).enumerate().all(|(token, values)| {
        let sum = values.iter().map(|value| i32::from(*value)).sum();
        let product = |codes: &[u8]| -> i32 {
            codes.iter().zip(values).map(|(code, value)| i32::from(*code) * i32::from(*value)).sum()
        };
        // Sums of so few products are exact as floats.
        let expected = codes.chunks_exact(columns).map(|codes| meaning(product(codes), sum) as f32);
        out.row(token).iter().copied().eq(expected)
    })
}

fn product_of(width: CodeWidth) -> &'static str {
    match width {
        CodeWidth::Binary => "binary product",
        CodeWidth::Int4 => "product of 4-bit weights",
        CodeWidth::Int8 => "product of 8-bit weights",
    }
}

fn quantised_by(kernels: Kernels, x: &mut Rows) -> Vec<(Vec<i8>, u32)> {
    let row = |index: usize, x: &Rows| {
        let width = x.padded().1.next_multiple_of(16);
        let mut padded = vec![0.0; width];
        padded[..x.width()].copy_from_slice(x.row(index));
        let mut out = vec![0; width];
        let (scale, _) = kernels.quantise(&padded, &mut out);
        (out[..x.width()].to_vec(), scale.to_bits())
    };
    (0..x.count()).map(|index| row(index, x)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_number_is_found() {
        let parts = ["ternary product", "binary product", "product of 4-bit weights", "product of 8-bit weights"];
        let parts = parts.into_iter().chain(["quantised activation", "product of floats", "attention"]);
        for kernels in Kernels::all() {
            for what in parts.clone() {
                let mut cpu = Cpu::new(kernels, 2).unwrap();
                cpu.spoiled = Some(what);
                let fault = cpu.self_test().expect_err(what);
                assert_eq!((fault.what, fault.kernels), (what, kernels.name()));
            }
        }
    }

    #[test]
    fn every_path_of_this_cpu_passes() {
        for kernels in Kernels::all() {
            for threads in [1, 2] {
                assert_eq!(Cpu::new(kernels, threads).unwrap().self_test(), Ok(()), "{}", kernels.name());
            }
        }
    }
}
