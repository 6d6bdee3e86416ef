//! What is trained, and how: everything that decides the result, apart from the program itself.

use serde::{Deserialize, Serialize};

/// Base of the rotary embedding of models made here, as in microsoft/bitnet-b1.58-2B-4T.
pub const ROPE_THETA: f32 = 500_000.0;
/// Added to the mean square in every norm.
pub const RMS_EPS: f32 = 1e-5;

/// Shape of both models of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelShape {
    /// Token ids; rows of the tied embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width between up and down projections.
    pub ffn: usize,
    /// Positions of a training sequence, and the served context.
    pub context: usize,
}

/// Ready-made shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// 0.9 million parameters: the demonstration's pair.
    Small,
    /// 3.3 million parameters.
    Big,
}

/// One training run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Optimiser steps.
    pub steps: usize,
    /// Highest learning rate: reached after warm-up, then a cosine down to 2 % of it.
    pub learning_rate: f32,
}

/// Everything that decides a pair. Equal recipes give equal models on one kind of CPU, whatever the number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recipe {
    /// Raised whenever the program changes in a way that changes the result of an equal recipe.
    pub format: u32,
    /// Seed of text, initial weights and batches.
    pub seed: u64,
    /// Shape of both models.
    pub shape: ModelShape,
    /// Bytes of training text.
    pub text_bytes: usize,
    /// Sequences per optimiser step; a multiple of `shares`.
    pub batch: usize,
    /// Parts into which a batch is cut. Gradients of the parts are added in order, so that the number of threads that
    /// compute them does not matter.
    pub shares: usize,
    /// The fp16 model.
    pub teacher: Schedule,
    /// The ternary model.
    pub student: Schedule,
    /// Temperature of the distillation loss.
    pub temperature: f32,
    /// Probe prompts to hold out.
    pub probes: usize,
    /// Prompts for live traffic to hold out.
    pub prompts: usize,
}

impl Recipe {
    /// Version of the program's results; see [`Recipe::format`].
    pub const FORMAT: u32 = 2;

    /// The proven recipe of a size.
    pub fn new(size: Size, seed: u64) -> Self {
        let shape = |width, heads, kv_heads, ffn| ModelShape {
            vocabulary: 1024,
            width,
            layers: 4,
            heads,
            kv_heads,
            head_dim: 64,
            ffn,
            context: 128,
        };
        let (shape, teacher, student) = match size {
            Size::Small => (
                shape(128, 2, 1, 384),
                Schedule { steps: 1200, learning_rate: 4e-3 },
                Schedule { steps: 800, learning_rate: 2e-3 },
            ),
            Size::Big => (
                shape(256, 4, 2, 768),
                Schedule { steps: 1000, learning_rate: 2.5e-3 },
                Schedule { steps: 150, learning_rate: 1.5e-3 },
            ),
        };
        Self {
            format: Self::FORMAT,
            seed,
            shape,
            text_bytes: 3_000_000,
            batch: 8,
            shares: 4,
            teacher,
            student,
            temperature: 3.0,
            probes: 320,
            prompts: 200,
        }
    }
}
