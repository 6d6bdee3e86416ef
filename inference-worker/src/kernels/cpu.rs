//! Kernels on several threads.

use super::portable;
use super::rows::Cells;
use super::ternary::PANEL;
use super::{Codes, Dense, Kernels, Pool, Quantized, Rows, TOKENS, Ternary, Tokens};
use serde::{Deserialize, Serialize};

/// Multiply-adds below which a product is not worth waking a thread: some microseconds.
const WORTH_THREADS: usize = 1 << 19;
/// A float that is normalised and quantised takes about as long as so many multiply-adds.
const ROW_WORK: usize = 32;
/// Panels that a thread takes at once: some microseconds, and long enough a stretch to be streamed.
const PANELS: usize = 4;

/// Bits of quantised activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationBits {
    /// `s = √7 / (mean |x| + 1e-5)`, from -8 to 7.
    Four,
    /// `s = 127 / max(|x|max, 1e-5)`, from -128 to 127.
    #[default]
    Eight,
}

impl ActivationBits {
    /// The number of bits.
    pub fn bits(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// A CPU: instruction set and threads.
#[derive(Debug)]
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    /// What comes out wrong, to see whether the self-test finds it.
    #[cfg(test)]
    pub(crate) spoiled: Option<&'static str>,
}

/// One product of quantised rows with a ternary matrix.
pub struct TernaryProduct<'a> {
    /// The matrix.
    pub weights: &'a Ternary,
    /// Each result is the integer product over `row scale × divisor`, times `factor`.
    pub divisor: f32,
    /// See `divisor`.
    pub factor: f32,
    /// Receives one row per token.
    pub out: &'a mut Rows,
}

/// One product of quantised rows with a matrix of codes: the integer product over the row's scale, times the factor of
/// the matrix's row.
pub struct CodesProduct<'a> {
    /// The matrix.
    pub weights: &'a Codes,
    /// Receives one row per token.
    pub out: &'a mut Rows,
}

/// One product of rows with a matrix of floats.
pub struct DenseProduct<'a> {
    /// The matrix.
    pub weights: &'a Dense,
    /// Receives one row per token.
    pub out: &'a mut Rows,
}

impl Cpu {
    /// These kernels on so many threads, the calling one included.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn new(kernels: Kernels, threads: usize) -> std::io::Result<Self> {
        Ok(Self {
            kernels,
            pool: Pool::new(threads)?,
            #[cfg(test)]
            spoiled: None,
        })
    }

    /// The instruction set.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Several products of the same rows, as one piece of work.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn ternary(&self, x: &Quantized, products: &mut [TernaryProduct<'_>]) {
        let mut total = 0;
        let parts: Vec<_> = products
            .iter_mut()
            .map(|product| {
                let TernaryProduct { weights, divisor, factor, out } = product;
                assert!(weights.columns() == x.width() && weights.rows() == out.width() && x.count() == out.count());
                total += weights.panels();
                (*weights, *divisor, *factor, out.cells(false))
            })
            .collect();
        self.split(total, PANELS, PANEL * x.width() * x.count(), &|panels| {
            for panel in panels {
                let (part, panel) = part_of(panel, parts.iter().map(|part| part.0.panels()));
                let (weights, divisor, factor, cells) = &parts[part];
                // SAFETY: each panel of each product is in one range only, so its cells are written once.
                unsafe { self.ternary_panel(x, weights, panel, (*divisor, *factor), cells) };
            }
        });
    }

    /// # Safety
    /// Nobody else has the cells of this panel's rows.
    unsafe fn ternary_panel(
        &self,
        x: &Quantized,
        weights: &Ternary,
        panel: usize,
        (divisor, factor): (f32, f32),
        cells: &Cells<'_, f32>,
    ) {
        let (first, rows) = (panel * PANEL, PANEL.min(weights.rows() - panel * PANEL));
        let mut line = [0.0; PANEL];
        each_token(
            x,
            |tokens, out| self.kernels.panel(weights, panel, tokens, out),
            |token, products| {
                let (sum, divisor) = (x.sum(token), x.scale(token) * divisor);
                // SAFETY: the caller's promise.
                let out = unsafe { cells.part_mut(token, first, rows) };
                // Straight to their place: a copy of what has just been stored would wait for the stores.
                if let Ok(out) = <&mut [f32; PANEL]>::try_from(&mut *out) {
                    self.kernels.finish(products, sum, divisor, factor, out);
                } else {
                    self.kernels.finish(products, sum, divisor, factor, &mut line);
                    out.copy_from_slice(&line[..rows]);
                }
            },
        );
    }

    /// `[token × rows + row]`: Σ weight × quantised activation, exact integers. On the calling thread: this is for
    /// checking, [`Cpu::ternary`] is for work.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn integers(&self, x: &Quantized, weights: &Ternary) -> Vec<i32> {
        assert!(weights.columns() == x.width());
        let mut out = vec![0; x.count() * weights.rows()];
        for panel in 0..weights.panels() {
            let (first, rows) = (panel * PANEL, PANEL.min(weights.rows() - panel * PANEL));
            each_token(
                x,
                |tokens, out| self.kernels.panel(weights, panel, tokens, out),
                |token, products| {
                    let at = token * weights.rows() + first;
                    for (out, product) in out[at..at + rows].iter_mut().zip(products) {
                        *out = product - x.sum(token);
                    }
                },
            );
        }
        out
    }

    /// Several products of the same rows, as one piece of work.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn codes(&self, x: &Quantized, products: &mut [CodesProduct<'_>]) {
        let mut total = 0;
        let parts: Vec<_> = products
            .iter_mut()
            .map(|CodesProduct { weights, out }| {
                assert!(weights.columns() == x.width() && weights.rows() == out.width() && x.count() == out.count());
                total += weights.panels();
                (*weights, out.cells(false))
            })
            .collect();
        self.split(total, PANELS, PANEL * x.width() * x.count(), &|panels| {
            for panel in panels {
                let (part, panel) = part_of(panel, parts.iter().map(|part| part.0.panels()));
                let (weights, cells) = &parts[part];
                let (first, rows) = (panel * PANEL, PANEL.min(weights.rows() - panel * PANEL));
                let factors = &weights.factors()[first..first + rows];
                each_token(
                    x,
                    |tokens, out| self.kernels.codes_panel(weights, panel, tokens, out),
                    |token, products| {
                        let (sum, scale) = (x.sum(token), x.scale(token));
                        // SAFETY: each panel of each product is in one range only, so its cells are written once.
                        let out = unsafe { cells.part_mut(token, first, rows) };
                        for ((out, codes), factor) in out.iter_mut().zip(products).zip(factors) {
                            *out = weights.width().product(*codes, sum) as f32 / scale * factor;
                        }
                    },
                );
            }
        });
    }

    /// As [`Cpu::integers`].
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn code_integers(&self, x: &Quantized, weights: &Codes) -> Vec<i32> {
        assert!(weights.columns() == x.width());
        let mut out = vec![0; x.count() * weights.rows()];
        for panel in 0..weights.panels() {
            let (first, rows) = (panel * PANEL, PANEL.min(weights.rows() - panel * PANEL));
            each_token(
                x,
                |tokens, out| self.kernels.codes_panel(weights, panel, tokens, out),
                |token, products| {
                    let at = token * weights.rows() + first;
                    for (out, codes) in out[at..at + rows].iter_mut().zip(products) {
                        *out = weights.width().product(*codes, x.sum(token));
                    }
                },
            );
        }
        out
    }

    /// One row of a matrix of floats times one row of values: the same bits as in [`Cpu::dense`].
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn dense_row(&self, weights: &Dense, row: usize, x: &Rows) -> f32 {
        assert!(weights.columns() == x.width() && x.count() == 1);
        let mut out = [0.0];
        self.kernels.dense(weights, row..row + 1, x, &mut out);
        out[0]
    }

    /// Several products of the same rows, as one piece of work: `out[token] = weights · x[token]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn dense(&self, x: &Rows, products: &mut [DenseProduct<'_>]) {
        const ROWS: usize = Kernels::DENSE_ROWS;
        let mut total = 0;
        let parts: Vec<_> = products
            .iter_mut()
            .map(|DenseProduct { weights, out }| {
                assert!(weights.columns() == x.width() && weights.rows() == out.width() && x.count() == out.count());
                total += weights.rows().div_ceil(ROWS);
                (*weights, out.cells(false))
            })
            .collect();
        self.split(total, 1, ROWS * x.width() * x.count(), &|blocks| {
            let mut results = vec![0.0; ROWS * x.count()];
            for block in blocks {
                let (part, block) = part_of(block, parts.iter().map(|part| part.0.rows().div_ceil(ROWS)));
                let (weights, cells) = &parts[part];
                let rows = block * ROWS..((block + 1) * ROWS).min(weights.rows());
                let results = &mut results[..rows.len() * x.count()];
                self.kernels.dense(weights, rows.clone(), x, results);
                for (token, results) in results.chunks_exact(rows.len()).enumerate() {
                    // SAFETY: each block of each product is in one range only, so its cells are written once.
                    unsafe { cells.part_mut(token, rows.start, rows.len()) }.copy_from_slice(results);
                }
            }
        });
    }

    /// Quantises each row to int8: `s = 127 / max(|x|max, 1e-5)`, `q = clamp(round half to even(x · s), -128, 127)`.
    ///
    /// A row that holds NaN or an infinity gets the scale NaN, so that every product with it is NaN and is counted.
    pub fn quantise(&self, x: &mut Rows, out: &mut Quantized) {
        self.fill_and_quantise(x, out, ActivationBits::Eight, &|_, _| ());
    }

    /// Fills each row and quantises it while it is in the cache.
    pub fn fill_and_quantise(
        &self,
        x: &mut Rows,
        out: &mut Quantized,
        bits: ActivationBits,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let (count, width) = (x.count(), x.width());
        out.reset(count, width);
        let stride = x.padded().1;
        let rows = x.cells(true);
        let (values, scales, sums) = out.cells();
        let padded = values.width();
        self.split(count, 1, width * ROW_WORK, &|range| {
            for index in range {
                // SAFETY: each row is in one range only; so is each row of the results.
                let (row, values, scale, sum) = unsafe {
                    let row = rows.part_mut(index, 0, stride);
                    let scale = &mut scales.part_mut(index, 0, 1)[0];
                    (row, values.part_mut(index, 0, padded), scale, &mut sums.part_mut(index, 0, 1)[0])
                };
                fill(index, &mut row[..width]);
                (*scale, *sum) = match bits {
                    ActivationBits::Eight => self.kernels.quantise(row, values),
                    ActivationBits::Four => portable::quantise_four(row, width, values),
                };
            }
        });
    }

    /// Calls `fill(row, part, cells)` for each of `parts` equal parts of each row. `work` is the number of multiply-adds
    /// of one part.
    ///
    /// # Panics
    /// If the rows' width is not a multiple of `parts`.
    pub fn each_part(
        &self,
        rows: &mut Rows,
        parts: usize,
        work: usize,
        fill: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let (count, width) = (rows.count(), rows.width() / parts);
        assert!(width * parts == rows.width());
        let cells = rows.cells(false);
        self.split(count * parts, 1, work, &|range| {
            for index in range {
                let (row, part) = (index / parts, index % parts);
                // SAFETY: each part of each row is in one range only.
                fill(row, part, unsafe { cells.part_mut(row, part * width, width) });
            }
        });
    }

    /// Calls `part` for ranges that cover `0..total`; `work` is that of one number.
    pub(super) fn split(&self, total: usize, step: usize, work: usize, part: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        if total.saturating_mul(work) < WORTH_THREADS || self.pool.threads() == 1 {
            part(0..total);
            return;
        }
        self.pool.run(total.div_ceil(step), &|index| part(index * step..((index + 1) * step).min(total)));
    }
}

/// Sums of code × value of one panel, as many tokens at once as a kernel takes, handed on token by token.
#[inline]
fn each_token(
    x: &Quantized,
    panel: impl Fn(Tokens<'_>, &mut [[i32; PANEL]]),
    mut take: impl FnMut(usize, &[i32; PANEL]),
) {
    let (values, stride) = x.padded();
    let mut products = [[0; PANEL]; TOKENS];
    for first in (0..x.count()).step_by(TOKENS) {
        let count = TOKENS.min(x.count() - first);
        let values = &values[first * stride..(first + count) * stride];
        panel(Tokens { values, stride }, &mut products[..count]);
        products[..count].iter().enumerate().for_each(|(i, products)| take(first + i, products));
    }
}

/// Number `index` of parts that lie one after the other, so many in each: which part, and its number there.
fn part_of(mut index: usize, sizes: impl Iterator<Item = usize>) -> (usize, usize) {
    for (part, size) in sizes.enumerate() {
        if index < size {
            return (part, index);
        }
        index -= size;
    }
    unreachable!("the sizes add up to the number of indices")
}
