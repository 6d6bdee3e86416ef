//! One linear layer, plain or ternary.

use super::ScaleRule;
use crate::kernels::{Dense, Kernels, Quantized, Rows, Ternary};

/// Weights of one linear layer without bias.
#[derive(Debug)]
pub(super) enum Linear {
    Dense(Dense),
    Ternary { weights: Ternary, scale: f32, rule: ScaleRule },
}

/// Input of one or several linear layers, quantised at most once for all of them.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) rows: Rows,
    quantized: Quantized,
    products: Vec<i32>,
}

impl Input {
    pub(super) fn new(count: usize, width: usize) -> Self {
        Self { rows: Rows::new(count, width), quantized: Quantized::default(), products: Vec::new() }
    }

    /// To be called after `rows` were written and before [`Linear::apply`].
    pub(super) fn ready(&mut self, kernels: Kernels, for_layer: &Linear) {
        if matches!(for_layer, Linear::Ternary { .. }) {
            kernels.quantise(&self.rows, &mut self.quantized);
        }
    }
}

impl Linear {
    pub(super) fn precision(&self) -> &'static str {
        match self {
            Self::Dense(weights) => weights.precision(),
            Self::Ternary { .. } => "ternary",
        }
    }

    /// `out = input · weightsᵀ` for all rows.
    pub(super) fn apply(&self, kernels: Kernels, input: &mut Input, out: &mut Rows) {
        match self {
            Self::Dense(weights) => kernels.dense(weights, &input.rows, out),
            Self::Ternary { weights, scale, rule } => {
                kernels.ternary(weights, &input.quantized, &mut input.products);
                for (token, products) in input.products.chunks_exact(weights.rows()).enumerate() {
                    let factor = input.quantized.scale(token);
                    let out = out.row_mut(token).iter_mut().zip(products);
                    match rule {
                        ScaleRule::Multiply => out.for_each(|(y, p)| *y = *p as f32 / factor * scale),
                        ScaleRule::Divide => {
                            let factor = factor * scale;
                            out.for_each(|(y, p)| *y = *p as f32 / factor);
                        }
                    }
                }
            }
        }
    }
}
