//! Does the GPU compute what the CPU computes?

use super::cache::{Cache, KvPrecision};
use super::error::CudaError;
use super::forward::{CudaModel, multiply};
use super::gpu::{Gpu, NORM_THREADS};
use super::params::{CacheShape, Kind, Norm, Product, Use};
use super::weights::plain;
use crate::engine::Turn;
use crate::kernels::{Cpu, Dense, Elements, Kernels, Quantized, Rows, Ternary, TernaryProduct};
use crate::model::{Matrix, Model, Step, Want, cosine};
use crate::random::Random;
use half::{bf16, f16};

/// Least cosine of the logits where something is rounded to whole numbers, activations of a ternary model or keys and
/// values: last digits differ, which now and then turns a rounding; a wrong kernel gives unrelated logits.
const LEAST_COSINE: f64 = 0.99;
/// Least cosine where nothing is but floats to 16 bits.
const LEAST_COSINE_OF_FLOATS: f64 = 0.999;
/// Relative error of a product of floats, of the sum of its terms' magnitudes.
const FLOAT_ERROR: f64 = 1e-5;
/// Numbers of tokens: each kernel, its edges, and more than one block.
const TOKENS: [usize; 9] = [1, 7, 8, 9, 16, 17, 32, 33, 130];

/// One thing that was compared.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Check {
    /// What was computed.
    pub name: String,
    /// Numbers that were compared.
    pub compared: usize,
    /// What was found.
    pub found: String,
    /// Whether it may be so.
    pub passed: bool,
}

impl CudaModel {
    /// Compares products on random data, and the logits of this model, with the CPU's.
    ///
    /// # Errors
    /// The driver's. A difference is a [`Check`] that did not pass.
    pub fn self_test(&self, model: &Model) -> Result<Vec<Check>, CudaError> {
        let mut checks = kernels(&self.gpu)?;
        checks.push(self.logits_check(model, 40, 3)?);
        Ok(checks)
    }

    /// The shorter check before serving: one shape of every kind of product, and the logits of a few tokens.
    ///
    /// # Errors
    /// The driver's, and [`CudaError::SelfTest`] with the first difference.
    pub fn check(&self, model: &Model) -> Result<(), CudaError> {
        let mut checks = Vec::new();
        for tokens in [1, 33] {
            checks.push(ternary(&self.gpu, 96, 320, tokens, Fill::Random)?);
            checks.push(dense(&self.gpu, Kind::F16, 64, 320, tokens)?);
            checks.push(dense(&self.gpu, Kind::Bf16, 64, 320, tokens)?);
        }
        checks.push(self.logits_check(model, 3, 1)?);
        match checks.into_iter().find(|check| !check.passed) {
            Some(Check { name, found, .. }) => Err(CudaError::SelfTest { finding: format!("{name}: {found}") }),
            None => Ok(()),
        }
    }

    /// A prompt of `tokens` and then `steps` single tokens, in three sequences together: logits of all positions.
    pub fn logits_check(&self, model: &Model, tokens: usize, steps: usize) -> Result<Check, CudaError> {
        let width = self.config().vocab_size;
        let steps = steps.min(self.config().context.saturating_sub(1));
        let tokens = tokens.min(self.config().context - steps).max(1);
        let text: Vec<Vec<u32>> = (0..3)
            .map(|s| (0..tokens + steps).map(|i| ((i * 7919 + s * 104_729 + 17) % width) as u32).collect())
            .collect();
        let failed = |error: String| CudaError::SelfTest { finding: error };
        let mut caches: Vec<Cache> = text.iter().map(|text| self.new_cache(text.len())).collect();
        let mut found: Vec<Vec<f32>> = vec![Vec::new(); 3];
        let every: Vec<u32> = (0..tokens as u32).collect();
        let parts = std::iter::once(0..tokens).chain((tokens..tokens + steps).map(|at| at..at + 1));
        for part in parts {
            let mut turns: Vec<Turn<'_, Cache>> = caches
                .iter_mut()
                .zip(&text)
                .map(|(cache, text)| Turn {
                    cache,
                    tokens: &text[part.clone()],
                    want: &every[..part.len()],
                    logits: Vec::new(),
                })
                .collect();
            self.forward(&mut turns).map_err(failed)?;
            turns.into_iter().zip(&mut found).for_each(|(turn, found)| found.extend(turn.logits));
        }
        let mut expected = Vec::new();
        for text in &text {
            let mut cache = model.new_cache(text.len());
            let mut steps = [Step::new(&mut cache, text, Want::All)];
            model.forward(&mut steps).map_err(|error| failed(error.to_string()))?;
            let [step] = steps;
            expected.push(step.logits);
        }
        let rows = found.iter().zip(&expected).flat_map(|(a, b)| a.chunks_exact(width).zip(b.chunks_exact(width)));
        let (mut least, mut agreed, mut errors) = (1.0_f64, 0, Vec::new());
        let mut broken = 0;
        for (a, b) in rows {
            let Some((cosine, error)) = compare(a, b) else {
                broken += 1;
                continue;
            };
            least = least.min(cosine);
            errors.push(error);
            agreed += usize::from(largest(a) == largest(b));
        }
        errors.sort_by(f64::total_cmp);
        let rounded = self.precision() == "ternary" || self.kv == KvPrecision::Int8;
        let limit = if rounded { LEAST_COSINE } else { LEAST_COSINE_OF_FLOATS };
        let median = errors.get(errors.len() / 2).copied().unwrap_or_default();
        let lame = if broken > 0 { format!(", {broken} finite on neither") } else { String::new() };
        Ok(Check {
            name: format!("logits of the {} model, {tokens} tokens at once and {steps} singly", self.precision()),
            compared: errors.len() * width,
            found: format!(
                "least cosine {least:.6} (limit {limit}), median relative difference {median:.1e}, same choice {agreed} of {}{lame}",
                errors.len()
            ),
            passed: least >= limit,
        })
    }
}

/// Every kernel of products, on random and on extreme data, in shapes with and without padding.
fn kernels(gpu: &Gpu) -> Result<Vec<Check>, CudaError> {
    let mut checks = Vec::new();
    for (rows, columns) in [(2560, 2560), (640, 2560), (2560, 6912), (48, 80), (33, 130)] {
        for tokens in TOKENS {
            checks.push(ternary(gpu, rows, columns, tokens, Fill::Random)?);
        }
    }
    for tokens in [1, 32, 33] {
        checks.push(ternary(gpu, 64, 6912, tokens, Fill::Extreme)?);
    }
    for kind in [Kind::F16, Kind::Bf16] {
        for (rows, columns) in [(1000, 2560), (48, 80)] {
            for tokens in TOKENS {
                checks.push(dense(gpu, kind, rows, columns, tokens)?);
            }
        }
    }
    Ok(checks)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Random,
    /// The largest sums there are.
    Extreme,
}

fn floats(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| (random.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).collect()
}

/// Quantisation and ternary product of random rows, against the portable kernels: equal bits.
fn ternary(gpu: &Gpu, rows: usize, columns: usize, tokens: usize, fill: Fill) -> Result<Check, CudaError> {
    let mut random = Random::from_seed((rows * 31 + columns * 7 + tokens) as u64);
    let weights = Ternary::from_codes::<()>(
        rows,
        columns,
        |_, codes| {
            for code in codes {
                *code = if fill == Fill::Extreme { 2 } else { (random.bits() % 3) as u8 };
            }
            Ok(())
        },
        |_, _| (),
    )
    .unwrap_or_else(|()| unreachable!("codes are below 3"));
    let mut x = Rows::new(tokens, columns);
    for token in 0..tokens {
        let values = match fill {
            Fill::Random => floats(&mut random, columns),
            Fill::Extreme => vec![if token % 2 == 0 { 1.0 } else { -1.0 }; columns],
        };
        x.row_mut(token).copy_from_slice(&values);
    }
    let (divisor, factor) = (1.25, 0.031);
    let found = product(gpu, Matrix::Ternary { weights: &weights, divisor, factor }, &x)?;
    let cpu = Cpu::new(Kernels::portable(), 1).map_err(|error| CudaError::SelfTest { finding: error.to_string() })?;
    let (mut quantized, mut out) = (Quantized::default(), Rows::new(tokens, rows));
    cpu.quantise(&mut x, &mut quantized);
    cpu.ternary(&quantized, &mut [TernaryProduct { weights: &weights, divisor, factor, out: &mut out }]);
    let wrong = (0..tokens)
        .flat_map(|token| out.row(token).iter().zip(&found[token * rows..]))
        .filter(|(a, b)| a.to_bits() != b.to_bits())
        .count();
    Ok(Check {
        name: format!(
            "ternary {rows}x{columns}, {tokens} tokens{}",
            if fill == Fill::Extreme { ", largest sums" } else { "" }
        ),
        compared: tokens * rows,
        found: format!("{wrong} differ"),
        passed: wrong == 0,
    })
}

/// A product of floats against sums in double precision of the same rounded inputs.
fn dense(gpu: &Gpu, kind: Kind, rows: usize, columns: usize, tokens: usize) -> Result<Check, CudaError> {
    let mut random = Random::from_seed((rows * 31 + columns * 7 + tokens) as u64);
    let round = |x: f32| if kind == Kind::Bf16 { bf16::from_f32(x).to_f32() } else { f16::from_f32(x).to_f32() };
    let values = floats(&mut random, rows * columns);
    let elements = match kind {
        Kind::Bf16 => Elements::Bf16(values.iter().map(|v| bf16::from_f32(*v)).collect()),
        _ => Elements::F16(values.iter().map(|v| f16::from_f32(*v)).collect()),
    };
    let weights = Dense::new(rows, columns, &elements);
    let mut x = Rows::new(tokens, columns);
    for token in 0..tokens {
        x.row_mut(token).copy_from_slice(&floats(&mut random, columns));
    }
    let found = product(gpu, Matrix::Dense(&weights), &x)?;
    let mut worst = 0.0_f64;
    for token in 0..tokens {
        for row in 0..rows {
            let terms = values[row * columns..(row + 1) * columns].iter().zip(x.row(token));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), (w, x)| {
                let term = f64::from(round(*w)) * f64::from(round(*x));
                (sum + term, size + term.abs())
            });
            let error = (f64::from(found[token * rows + row]) - sum).abs() / size;
            // Not `max` alone, which would hide NaN.
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
    }
    Ok(Check {
        name: format!("{} {rows}x{columns}, {tokens} tokens", if kind == Kind::Bf16 { "bf16" } else { "fp16" }),
        compared: tokens * rows,
        found: format!("largest relative error {worst:.1e}"),
        passed: worst <= FLOAT_ERROR,
    })
}

/// `weights · x` on the GPU, after making `x` its input there; poisoned before, so that a number nobody wrote shows.
fn product(gpu: &Gpu, weights: Matrix<'_>, x: &Rows) -> Result<Vec<f32>, CudaError> {
    let packed = plain(gpu, weights)?;
    let (tokens, columns) = (x.count(), x.width());
    let rows = match weights {
        Matrix::Dense(dense) => dense.rows(),
        Matrix::Ternary { weights, .. } => weights.rows(),
        Matrix::Codes(codes) => codes.rows(),
    };
    let flat: Vec<f32> = (0..tokens).flat_map(|token| x.row(token)).copied().collect();
    let from = gpu.copy(&flat)?;
    let input = gpu.copy(&vec![0x7f_u8; tokens * packed.input_bytes()])?;
    let (scales, sums) = (gpu.zeros(tokens * 4)?, gpu.zeros(tokens * 4)?);
    let out = gpu.copy(&vec![f32::NAN; tokens * rows])?;
    let norm = Norm {
        x: gpu.address(&from),
        parts: 0,
        weight: 0,
        seats: 0,
        out: gpu.address(&input),
        scales: gpu.address(&scales),
        sums: gpu.address(&sums),
        eps: 0.0,
        width: columns as i32,
        stride: packed.input_stride() as i32,
        kind: packed.kind,
        splits: 1,
        head_dim: 1,
    };
    gpu.launch(gpu.kernels.norm_rows(columns), [tokens as u32, 1, 1], NORM_THREADS, &norm)?;
    let params = Product {
        weights: packed.weights(gpu),
        rule: packed.rule(gpu),
        x: gpu.address(&input),
        scales: gpu.address(&scales),
        sums: gpu.address(&sums),
        out: gpu.address(&out),
        groups: packed.groups as i32,
        chunks: packed.chunks as i32,
        tokens: tokens as i32,
        purpose: Use::Write,
        width: rows as i32,
        silu: 0,
        heads: 0,
        seats: 0,
        angles: 0,
        kv: 0,
        shape: CacheShape { layer: 0, layers: 0, kv_heads: 0, head_dim: 0, bytes: 0 },
    };
    multiply(gpu, packed.kind, &params)?;
    let mut found = vec![0.0; tokens * rows];
    gpu.read(gpu.address(&out), &mut found)?;
    gpu.wait()?;
    Ok(found)
}

/// Cosine and relative difference of a row of the GPU's and one of the CPU's. `None` where neither is finite: that is
/// the model's fault, and is counted when it serves.
fn compare(a: &[f32], b: &[f32]) -> Option<(f64, f64)> {
    let finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
    match (finite(a), finite(b)) {
        (true, true) => {}
        (false, false) => return None,
        _ => return Some((0.0, f64::INFINITY)),
    }
    let square = b.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let difference = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
    Some((cosine(a, b), (difference / square.max(f64::MIN_POSITIVE)).sqrt()))
}

fn largest(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_nan_are_no_agreement_with_numbers() {
        let (row, zeros, nan) = ([1.0, -2.0, 3.0], [0.0; 3], [1.0, f32::NAN, 3.0]);
        assert!(compare(&row, &row).is_some_and(|(cosine, error)| cosine > 0.999_999 && error == 0.0));
        assert!(compare(&zeros, &zeros).is_some_and(|(cosine, _)| cosine == 1.0));
        for (a, b) in [(&zeros, &row), (&row, &zeros), (&nan, &row), (&row, &nan)] {
            assert!(compare(a, b).is_some_and(|(cosine, _)| cosine == 0.0));
        }
        assert_eq!(compare(&nan, &nan), None);
    }
}
