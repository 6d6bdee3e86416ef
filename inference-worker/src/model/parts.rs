//! A loaded model's weights, for backends that keep their own copy.

use super::forward::{angles, frequencies};
use super::linear::Linear;
use super::{Layer, Model, ScaleRule};
use crate::kernels::{Codes, Dense, Ternary};

/// Weights of one linear layer.
#[derive(Clone, Copy)]
pub(crate) enum Matrix<'a> {
    /// Floats.
    Dense(&'a Dense),
    /// Each result is the integer product over `row scale × divisor`, times `factor`.
    Ternary { weights: &'a Ternary, divisor: f32, factor: f32 },
    /// Codes of one, four or eight bits.
    Codes(&'a Codes),
}

/// Weights of one decoder layer.
pub(crate) struct LayerParts<'a> {
    pub(crate) input_norm: &'a [f32],
    pub(crate) query: Matrix<'a>,
    pub(crate) key: Matrix<'a>,
    pub(crate) value: Matrix<'a>,
    pub(crate) attention_sub_norm: Option<&'a [f32]>,
    pub(crate) output: Matrix<'a>,
    pub(crate) post_attention_norm: &'a [f32],
    pub(crate) gate: Matrix<'a>,
    pub(crate) up: Matrix<'a>,
    pub(crate) ffn_sub_norm: Option<&'a [f32]>,
    pub(crate) down: Matrix<'a>,
}

impl Model {
    /// The embedding.
    pub(crate) fn embedding(&self) -> &Dense {
        &self.embedding
    }

    /// The head, where it is not the embedding.
    pub(crate) fn own_head(&self) -> Option<&Dense> {
        self.head.own.as_deref()
    }

    /// Whether logits are computed in 8 bits first.
    pub(crate) fn is_screened(&self) -> bool {
        self.head.screen.is_some()
    }

    /// The last norm.
    pub(crate) fn last_norm(&self) -> &[f32] {
        &self.norm
    }

    /// Cosine and sine of each position of the context: `head_dim / 2` pairs, position by position.
    pub(crate) fn angle_table(&self) -> Vec<f32> {
        let frequencies = frequencies(&self.config);
        let pairs = |position| {
            let (cos, sin) = angles(&frequencies, position);
            cos.into_iter().zip(sin).flat_map(|(cos, sin)| [cos, sin])
        };
        (0..self.config.context).flat_map(pairs).collect()
    }

    /// The decoder's layers, in order.
    pub(crate) fn layer_parts(&self) -> impl Iterator<Item = LayerParts<'_>> {
        self.layers.iter().map(Layer::parts)
    }
}

impl Layer {
    fn parts(&self) -> LayerParts<'_> {
        LayerParts {
            input_norm: &self.input_norm,
            query: self.query.matrix(),
            key: self.key.matrix(),
            value: self.value.matrix(),
            attention_sub_norm: self.attention_sub_norm.as_deref(),
            output: self.output.matrix(),
            post_attention_norm: &self.post_attention_norm,
            gate: self.gate.matrix(),
            up: self.up.matrix(),
            ffn_sub_norm: self.ffn_sub_norm.as_deref(),
            down: self.down.matrix(),
        }
    }
}

impl Linear {
    fn matrix(&self) -> Matrix<'_> {
        match self {
            Self::Dense(weights) => Matrix::Dense(weights),
            Self::Ternary { weights, scale, rule } => {
                let (divisor, factor) = match rule {
                    ScaleRule::Multiply => (1.0, *scale),
                    ScaleRule::Divide => (*scale, 1.0),
                };
                Matrix::Ternary { weights, divisor, factor }
            }
            Self::Codes(weights) => Matrix::Codes(weights),
        }
    }
}
