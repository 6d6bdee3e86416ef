//! Models of a given shape with random weights: what speed depends on, without a checkpoint.

use super::head::Head;
use super::linear::Linear;
use super::{
    Activation, ActivationBits, KvBits, Layer, LinearKind, LoadError, LoadOptions, Model, ModelConfig, ScaleRule,
};
use crate::engine::random::Random;
use crate::kernels::{Block, Blocks, CodeWidth, Codes, Dense, Elements, Ternary, blocks};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A shape that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How it is called on the command line.
    pub name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    context: usize,
    tied: bool,
    activation: Activation,
    sub_norms: bool,
}

/// The model pair of the demo, as `distill` makes it.
const DEMO: Shape = Shape {
    name: "demo",
    hidden: 128,
    intermediate: 384,
    layers: 4,
    heads: 2,
    kv_heads: 1,
    head_dim: 64,
    vocabulary: 1024,
    context: 128,
    tied: true,
    activation: Activation::Relu2,
    sub_norms: true,
};

impl Shape {
    /// All shapes: the demo's pair, BitNet b1.58 large, 3B and 2B-4T, Falcon-E 1B and 3B, and Llama3-8B-1.58.
    pub const ALL: [Self; 7] = [
        DEMO,
        Self {
            name: "large",
            hidden: 1536,
            intermediate: 4096,
            layers: 24,
            heads: 16,
            kv_heads: 16,
            head_dim: 96,
            vocabulary: 32_002,
            context: 2048,
            tied: false,
            activation: Activation::Silu,
            sub_norms: true,
        },
        Self {
            name: "2b-4t",
            hidden: 2560,
            intermediate: 6912,
            layers: 30,
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
            vocabulary: 128_256,
            context: 4096,
            tied: true,
            activation: Activation::Relu2,
            sub_norms: true,
        },
        Self {
            name: "3b",
            hidden: 3200,
            intermediate: 8640,
            layers: 26,
            heads: 32,
            kv_heads: 32,
            head_dim: 100,
            vocabulary: 32_002,
            context: 2048,
            tied: false,
            activation: Activation::Silu,
            sub_norms: true,
        },
        Self {
            name: "falcon-e-1b",
            hidden: 2048,
            intermediate: 4096,
            layers: 24,
            heads: 16,
            kv_heads: 2,
            head_dim: 128,
            vocabulary: 32_768,
            context: 4096,
            tied: false,
            activation: Activation::Silu,
            sub_norms: false,
        },
        Self {
            name: "falcon-e-3b",
            hidden: 2048,
            intermediate: 13_312,
            layers: 32,
            heads: 16,
            kv_heads: 2,
            head_dim: 128,
            vocabulary: 32_768,
            context: 4096,
            tied: false,
            activation: Activation::Silu,
            sub_norms: false,
        },
        Self {
            name: "8b",
            hidden: 4096,
            intermediate: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocabulary: 128_256,
            context: 8192,
            tied: false,
            activation: Activation::Silu,
            sub_norms: false,
        },
    ];

    /// The shape of a name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name == name)
    }

    fn config(self, linear: LinearKind) -> ModelConfig {
        ModelConfig {
            vocab_size: self.vocabulary,
            hidden_size: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            intermediate_size: self.intermediate,
            rope_theta: 500_000.0,
            rope_scaling: None,
            rms_eps: 1e-5,
            context: self.context,
            eos: Vec::new(),
            bos: None,
            activation: self.activation,
            sub_norms: self.sub_norms,
            tied: self.tied,
            linear,
            precisions: BTreeMap::new(),
            input_bits: ActivationBits::Eight,
            kv_bits: KvBits::ThirtyTwo,
        }
    }
}

/// How random weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Ternary linear layers, head in half precision.
    Ternary,
    /// Half precision throughout.
    F16,
    /// Brain floats throughout.
    Bf16,
    /// Linear layers of so many bits per weight with a factor per row, head in half precision.
    Codes(CodeWidth),
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Ternary,
        Self::F16,
        Self::Bf16,
        Self::Codes(CodeWidth::Binary),
        Self::Codes(CodeWidth::Int4),
        Self::Codes(CodeWidth::Int8),
    ];

    /// `ternary`, `fp16`, `bf16`, `binary`, `int4` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ternary => "ternary",
            Self::F16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Codes(width) => width.name(),
        }
    }
}

impl Model {
    /// A model with random weights: numbers of a sensible size in the right places, and no sense.
    ///
    /// # Errors
    /// [`LoadError::Threads`].
    pub fn random(shape: Shape, precision: Precision, seed: u64, options: &LoadOptions) -> Result<Self, LoadError> {
        let linear = match precision {
            Precision::Ternary | Precision::Codes(_) => LinearKind::Packed(ScaleRule::Multiply),
            Precision::F16 | Precision::Bf16 => LinearKind::Dense,
        };
        let mut config = shape.config(linear);
        config.context = options.context.unwrap_or(config.context).clamp(1, config.context);
        let mut source = Source { random: Random::from_seed(seed), precision };
        let embedding = Arc::new(source.dense(config.vocab_size, config.hidden_size));
        let head = (!config.tied).then(|| Arc::new(source.dense(config.vocab_size, config.hidden_size)));
        let head = Head::new(head, &embedding, options.head);
        let layers = (0..config.layers).map(|_| source.layer(&config)).collect();
        let norm = vec![1.0; config.hidden_size];
        Self::new(config, options, embedding, layers, norm, head)
    }
}

struct Source {
    random: Random,
    precision: Precision,
}

impl Source {
    fn layer(&mut self, config: &ModelConfig) -> Layer {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let sub_norm = |width| config.sub_norms.then(|| vec![1.0; width]);
        Layer {
            input_norm: vec![1.0; hidden],
            query: self.linear(wide, hidden),
            key: self.linear(narrow, hidden),
            value: self.linear(narrow, hidden),
            attention_sub_norm: sub_norm(wide),
            output: self.linear(hidden, wide),
            post_attention_norm: vec![1.0; hidden],
            gate: self.linear(inner, hidden),
            up: self.linear(inner, hidden),
            ffn_sub_norm: sub_norm(inner),
            down: self.linear(hidden, inner),
        }
    }

    fn linear(&mut self, rows: usize, columns: usize) -> Linear {
        match self.precision {
            Precision::Ternary => {
                // Half of the weights are zero, so a product of unit inputs has the variance columns / 2.
                let scale = (columns as f32 / 2.0).sqrt().recip();
                Linear::Ternary { weights: Arc::new(self.ternary(rows, columns)), scale, rule: ScaleRule::Multiply }
            }
            Precision::F16 | Precision::Bf16 => Linear::Dense(Arc::new(self.dense(rows, columns))),
            Precision::Codes(width) => Linear::Codes(Arc::new(self.codes(width, rows, columns))),
        }
    }

    fn ternary(&mut self, rows: usize, columns: usize) -> Ternary {
        let count = blocks(rows, columns);
        let mut data = Blocks::with_capacity(count);
        data.extend((0..count).map(|_| {
            let mut block = Block([0; 128]);
            for bytes in block.0.as_chunks_mut::<8>().0 {
                let bits = self.random.bits();
                // Where both bits of a code are set, which no code has, the upper one goes: code 1, weight 0.
                let both = bits & (bits >> 1) & 0x5555_5555_5555_5555;
                *bytes = (bits & !(both << 1)).to_le_bytes();
            }
            block
        }));
        Ternary::from_blocks(rows, columns, data)
    }

    /// All codes alike.
    fn codes(&mut self, width: CodeWidth, rows: usize, columns: usize) -> Codes {
        let count = Codes::blocks(width, rows, columns);
        let mut data = Blocks::with_capacity(count);
        data.extend((0..count).map(|_| {
            let mut block = Block([0; 128]);
            block.0.as_chunks_mut::<8>().0.iter_mut().for_each(|bytes| *bytes = self.random.bits().to_le_bytes());
            block
        }));
        // The mean square of a weight: 1 for -1 and 1, (4^bits - 1) / 12 and a little more for others.
        let square = if width == CodeWidth::Binary { 1.0 } else { 4_f32.powi(width.bits() as i32) / 12.0 };
        let factor = (columns as f32 * square).sqrt().recip();
        Codes::from_blocks(width, rows, columns, data.into(), vec![factor; rows])
    }

    /// Magnitudes from 1/64 to 1/32, either sign.
    fn dense(&mut self, rows: usize, columns: usize) -> Dense {
        let mut sixteen = std::iter::repeat_with(|| self.random.bits().to_le_bytes())
            .flat_map(|bytes| [0, 2, 4, 6].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]])));
        let count = rows * columns;
        let elements = match self.precision {
            Precision::Bf16 => {
                Elements::Bf16(sixteen.by_ref().take(count).map(|b| bf16::from_bits(b & 0x807f | 0x3c80)).collect())
            }
            Precision::F16 | Precision::Ternary | Precision::Codes(_) => {
                Elements::F16(sixteen.by_ref().take(count).map(|b| f16::from_bits(b & 0x83ff | 0x2400)).collect())
            }
        };
        Dense::new(rows, columns, &elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Step, Want};

    #[test]
    fn a_random_model_runs_and_depends_on_its_seed_alone() {
        let logits = |precision, seed, threads| {
            let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
            let model = Model::random(DEMO, precision, seed, &options).unwrap();
            let mut cache = model.new_cache(9);
            let mut steps = [Step::new(&mut cache, &[5, 900, 17, 3, 3, 8, 1023, 0, 44], Want::All)];
            model.forward(&mut steps).unwrap();
            let [step] = steps;
            step.logits
        };
        for precision in Precision::ALL {
            let one = logits(precision, 1, 1);
            assert!(one.len() == 9 * 1024 && one.iter().all(|x| x.is_finite()));
            assert_eq!(one, logits(precision, 1, 3), "threads change nothing");
            assert_ne!(one, logits(precision, 2, 1));
        }
    }

    #[test]
    fn names_are_unique() {
        for shape in Shape::ALL {
            assert_eq!(Shape::find(shape.name), Some(shape));
        }
        assert_eq!(Shape::find("1t"), None);
    }
}
