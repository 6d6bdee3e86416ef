//! Linear layers: plain, ternary, or of codes.

use super::ScaleRule;
use crate::kernels::{
    ActivationBits, Codes, CodesProduct, Cpu, Dense, DenseProduct, Quantized, Rows, Ternary, TernaryProduct,
};
use std::sync::Arc;

/// Weights of one linear layer without bias. Models of one process share equal ones.
#[derive(Debug, Clone)]
pub(super) enum Linear {
    Dense(Arc<Dense>),
    Ternary { weights: Arc<Ternary>, scale: f32, rule: ScaleRule },
    Codes(Arc<Codes>),
}

/// Input of one or several linear layers, quantised at most once for all of them.
#[derive(Debug)]
pub(super) struct Input {
    rows: Rows,
    quantized: Quantized,
    bits: ActivationBits,
}

impl Input {
    /// `bits` are those of layers that quantise their input.
    pub(super) fn new(count: usize, width: usize, bits: ActivationBits) -> Self {
        Self { rows: Rows::new(count, width), quantized: Quantized::default(), bits }
    }

    /// The rows, to be written in parts; [`Input::finish`] must follow.
    pub(super) fn rows_mut(&mut self) -> &mut Rows {
        &mut self.rows
    }

    /// Calls `fill` for each row, and gets it ready for this layer and those of its kind.
    pub(super) fn finish(&mut self, cpu: &Cpu, for_layer: &Linear, fill: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        match for_layer {
            Linear::Ternary { .. } | Linear::Codes(_) => {
                cpu.fill_and_quantise(&mut self.rows, &mut self.quantized, self.bits, fill);
            }
            Linear::Dense(_) => {
                let work = self.rows.width();
                cpu.each_part(&mut self.rows, 1, work, &|row, _, cells| fill(row, cells));
            }
        }
    }
}

impl Linear {
    pub(super) fn precision(&self) -> &'static str {
        match self {
            Self::Dense(weights) => weights.precision(),
            Self::Ternary { .. } => "ternary",
            Self::Codes(weights) => weights.width().name(),
        }
    }

    /// Bytes that a product reads.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(weights) => weights.bytes(),
            Self::Ternary { weights, .. } => weights.bytes(),
            Self::Codes(weights) => weights.bytes(),
        }
    }

    /// Where the matrix lies: the same for layers that share it.
    pub(super) fn address(&self) -> usize {
        match self {
            Self::Dense(weights) => Arc::as_ptr(weights).addr(),
            Self::Ternary { weights, .. } => Arc::as_ptr(weights).addr(),
            Self::Codes(weights) => Arc::as_ptr(weights).addr(),
        }
    }

    /// Multiply-adds per token.
    pub(super) fn products(&self) -> usize {
        match self {
            Self::Dense(weights) => weights.rows() * weights.columns(),
            Self::Ternary { weights, .. } => weights.rows() * weights.columns(),
            Self::Codes(weights) => weights.rows() * weights.columns(),
        }
    }
}

/// `out = input · weightsᵀ` of several layers, as one piece of work for all threads where they are of one kind.
pub(super) fn apply<const N: usize>(cpu: &Cpu, layers: [&Linear; N], input: &Input, outs: [&mut Rows; N]) {
    let (mut dense, mut ternary, mut codes) = (Vec::with_capacity(N), Vec::with_capacity(N), Vec::new());
    for (layer, out) in layers.into_iter().zip(outs) {
        match layer {
            Linear::Dense(weights) => dense.push(DenseProduct { weights, out }),
            Linear::Ternary { weights, scale, rule } => {
                let (divisor, factor) = match rule {
                    ScaleRule::Multiply => (1.0, *scale),
                    ScaleRule::Divide => (*scale, 1.0),
                };
                ternary.push(TernaryProduct { weights, divisor, factor, out });
            }
            Linear::Codes(weights) => codes.push(CodesProduct { weights, out }),
        }
    }
    if !dense.is_empty() {
        cpu.dense(&input.rows, &mut dense);
    }
    if !ternary.is_empty() {
        cpu.ternary(&input.quantized, &mut ternary);
    }
    if !codes.is_empty() {
        cpu.codes(&input.quantized, &mut codes);
    }
}
