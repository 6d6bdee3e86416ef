//! Parameters: masters in full precision, the live weights that the network sees, and the optimiser between them.
//!
//! The straight-through estimator needs no node in the graph: the *quantised* weights are the variables, their gradient
//! is applied to the masters, and the masters are quantised again. That equals `w + (q(w) - w).detach()` and costs one
//! quantisation per step instead of one per use.

use super::ops::read;
use super::recipe::{ModelShape, RMS_EPS, ROPE_THETA};
use super::ternary;
use crate::engine::random::Random;
use crate::model::{ActivationBits, KvBits, LayerPrecision};
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

/// Tensors of one decoder layer, in the order of [`Weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Norm before attention.
    InputNorm,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// Norm of the attention output.
    AttentionNorm,
    /// Output projection.
    Output,
    /// Norm before the feed-forward part.
    PostNorm,
    /// Gate projection.
    Gate,
    /// Up projection.
    Up,
    /// Norm of the gated product.
    FeedForwardNorm,
    /// Down projection.
    Down,
}

impl Slot {
    /// All slots, in order.
    pub const ALL: [Self; 11] = [
        Self::InputNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionNorm,
        Self::Output,
        Self::PostNorm,
        Self::Gate,
        Self::Up,
        Self::FeedForwardNorm,
        Self::Down,
    ];

    /// Index of this slot of a layer among all tensors; 0 is the embedding.
    pub fn index(self, layer: usize) -> usize {
        1 + layer * Self::ALL.len() + self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Self::InputNorm => "input_layernorm",
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::AttentionNorm => "self_attn.attn_sub_norm",
            Self::Output => "self_attn.o_proj",
            Self::PostNorm => "post_attention_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::FeedForwardNorm => "mlp.ffn_sub_norm",
            Self::Down => "mlp.down_proj",
        }
    }

    fn dims(self, s: &ModelShape) -> Vec<usize> {
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        match self {
            Self::InputNorm | Self::PostNorm => vec![s.width],
            Self::AttentionNorm => vec![q],
            Self::FeedForwardNorm => vec![s.ffn],
            Self::Query => vec![q, s.width],
            Self::Key | Self::Value => vec![kv, s.width],
            Self::Output => vec![s.width, q],
            Self::Gate | Self::Up => vec![s.ffn, s.width],
            Self::Down => vec![s.width, s.ffn],
        }
    }
}

/// What a tensor is for: it decides initial values, weight decay and quantisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Embedding and head: never ternary.
    Embedding,
    /// Weight of a norm: never ternary, no weight decay.
    Norm,
    /// A linear layer of the decoder: ternary in a student.
    Projection,
}

/// Live weights `[rows, columns]` of a master; of every layer that is not full, exactly what its stored form means.
fn live(precision: LayerPrecision, master: &[f32], columns: usize) -> Vec<f32> {
    let grid = |most: f32| {
        let row = |row: &[f32]| {
            let step = integer_step(row, most);
            row.iter().map(|w| (w / step).round_ties_even() * step).collect::<Vec<f32>>()
        };
        master.chunks(columns.max(1)).flat_map(row).collect()
    };
    match precision {
        LayerPrecision::Full => master.to_vec(),
        LayerPrecision::Int8 => grid(INT8),
        LayerPrecision::Int4 => grid(INT4),
        LayerPrecision::Ternary => {
            let ternary = ternary::Ternary::of(master);
            ternary.weights.iter().map(|&w| f32::from(w) * ternary.scale).collect()
        }
        LayerPrecision::Binary => {
            let scale = ternary::Ternary::of(master).scale;
            master.iter().map(|w| if *w >= 0.0 { scale } else { -scale }).collect()
        }
    }
}

/// Largest code of the symmetric grid of 8 bits.
pub(super) const INT8: f32 = 127.0;
/// Largest code of the symmetric grid of 4 bits.
pub(super) const INT4: f32 = 7.0;

/// Factor of a row's integer codes of which the largest is `most`.
pub(super) fn integer_step(row: &[f32], most: f32) -> f32 {
    row.iter().fold(1e-12f32, |top, w| top.max(w.abs())) / most
}

/// One tensor of a model in training.
pub struct Parameter {
    /// Name in a Hugging Face checkpoint.
    pub name: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// How the live value comes from the master; of embedding and norms always `Full`.
    pub precision: LayerPrecision,
    /// Full-precision value.
    pub master: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    live: Var,
}

/// How a model rounds what is no weight: fields of its config.json.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rounding {
    /// Of what q, k, v and gate, up read, where these are quantised; the other two read 8 bits.
    pub activation_bits: ActivationBits,
    /// Of keys and values.
    pub kv_bits: KvBits,
}

impl Rounding {
    /// Phase 4: 4-bit activations into attention and feed-forward part, keys and values of 3 bits (BitNet a4.8,
    /// arXiv 2411.04965).
    pub const PHASE_4: Self = Self { activation_bits: ActivationBits::Four, kv_bits: KvBits::Three };
}

/// All parameters of a model: the embedding, eleven per layer ([`Slot`]), the final norm.
pub struct Weights {
    /// Shape of the model.
    pub shape: ModelShape,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Added to the mean square in every norm.
    pub rms_eps: f32,
    /// How activations, keys and values are rounded beside the weights.
    pub rounding: Rounding,
    /// The tensors, in the order of the type's description.
    pub all: Vec<Parameter>,
    updates: i32,
}

/// Constants of AdamW that no recipe changes.
const BETA: (f32, f32) = (0.9, 0.98);
const DECAY: f32 = 0.01;
const CLIP: f32 = 1.0;

impl Weights {
    /// Random initial weights, from the seed alone.
    pub fn random(shape: ModelShape, seed: u64) -> Result<Self> {
        let mut random = Random::from_seed(seed);
        let all = layout(&shape).into_iter().map(|(name, dims, role)| {
            let n = dims.iter().product();
            let spread = match role {
                Role::Norm => 0.0,
                Role::Embedding => 0.05,
                // Half the variance into the residual stream: with 2 · layers additions it would grow otherwise.
                Role::Projection if name.contains("o_proj") || name.contains("down_proj") => {
                    0.5 / (dims[1] as f32).sqrt()
                }
                Role::Projection => 0.8 / (dims[1] as f32).sqrt(),
            };
            let master = match role {
                Role::Norm => vec![1.0; n],
                _ => (0..n).map(|_| normal(&mut random) * spread).collect(),
            };
            Parameter::new(name, dims, role, master)
        });
        let all = all.collect::<Result<_>>()?;
        Ok(Self { shape, rope_theta: ROPE_THETA, rms_eps: RMS_EPS, rounding: Rounding::default(), all, updates: 0 })
    }

    /// A student: this model's weights, projections ternary from the first step.
    pub fn student(&self) -> Result<Self> {
        let masters = self.all.iter().map(|p| p.master.clone()).collect();
        let mut student = Self::of(self.shape, self.rope_theta, self.rms_eps, masters)?;
        student.quantise(|_| LayerPrecision::Ternary)?;
        Ok(student)
    }

    /// A model of given masters, in the order of [`layout`], at full precision.
    pub fn of(shape: ModelShape, rope_theta: f32, rms_eps: f32, masters: Vec<Vec<f32>>) -> Result<Self> {
        let parameters = layout(&shape).into_iter().zip(masters);
        let all = parameters.map(|((name, dims, role), master)| Parameter::new(name, dims, role, master));
        let rounding = Rounding::default();
        Ok(Self { shape, rope_theta, rms_eps, rounding, all: all.collect::<Result<_>>()?, updates: 0 })
    }

    /// Sets the precision of every projection, by full name, and makes the live weights anew.
    pub fn quantise(&mut self, of: impl Fn(&str) -> LayerPrecision) -> Result<()> {
        for p in self.all.iter_mut().filter(|p| p.role == Role::Projection) {
            p.precision = of(&p.name);
        }
        self.refresh()
    }

    /// Highest degree of quantisation of a projection: what a checkpoint of one kind is stored in.
    pub fn precision(&self) -> LayerPrecision {
        self.all.iter().map(|p| p.precision).find(|p| *p != LayerPrecision::Full).unwrap_or(LayerPrecision::Full)
    }

    /// Live weights of quantised projections from masters with Gaussian noise of `spread` times the mean of |w|, from the
    /// seed alone; for one step of training.
    pub fn disturb(&self, spread: f32, seed: u64) -> Result<()> {
        for (index, p) in self.all.iter().enumerate().filter(|(_, p)| p.precision != LayerPrecision::Full) {
            let mut random = Random::from_seed(seed ^ (index as u64) << 40);
            let scale = spread * ternary::Ternary::of(&p.master).scale;
            let noisy: Vec<f32> = p.master.iter().map(|w| w + scale * normal(&mut random)).collect();
            p.live.set(&Tensor::from_vec(p.live_of(&noisy), p.dims.clone(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    /// Moments of the optimiser of every tensor, and the number of its updates: with the masters, all that a run needs
    /// to go on.
    pub fn moments(&self) -> (Vec<[&[f32]; 2]>, i32) {
        (self.all.iter().map(|p| [p.first.as_slice(), p.second.as_slice()]).collect(), self.updates)
    }

    /// Takes moments that [`Weights::moments`] gave of a model of this shape.
    pub fn restore_moments(&mut self, moments: Vec<[Vec<f32>; 2]>, updates: i32) {
        for (p, [first, second]) in self.all.iter_mut().zip(moments) {
            (p.first, p.second) = (first, second);
        }
        self.updates = updates;
    }

    /// The variables, for a network whose gradients are wanted.
    pub fn live(&self) -> Vec<Tensor> {
        self.all.iter().map(|p| p.live.as_tensor().clone()).collect()
    }

    /// Copies of the live weights, for a network that does not change and tracks no gradients.
    pub fn frozen(&self) -> Result<Vec<Tensor>> {
        self.all.iter().map(|p| p.live.as_detached_tensor().copy()).collect()
    }

    /// Whether every master is a number.
    pub fn all_finite(&self) -> bool {
        self.all.iter().all(|p| p.master.iter().all(|w| w.is_finite()))
    }

    /// Number of weights.
    pub fn count(&self) -> usize {
        self.all.iter().map(|p| p.master.len()).sum()
    }

    /// Rounds everything that a checkpoint stores as f16 to f16 (a student's projections are stored as codes), so that
    /// the live network is the one that will be served.
    pub fn round_to_stored(&mut self) -> Result<()> {
        for p in &mut self.all {
            if p.precision == LayerPrecision::Full {
                p.master.iter_mut().for_each(|w| *w = half::f16::from_f32(*w).to_f32());
            }
        }
        self.refresh()
    }

    /// Makes the live weights from the masters.
    pub fn refresh(&self) -> Result<()> {
        self.all.iter().try_for_each(Parameter::refresh)
    }

    /// One step of AdamW on the mean of the shares' gradients, clipped to norm 1. Returns the norm before clipping.
    pub fn update(&mut self, shares: &[GradStore], learning_rate: f32, threads: usize) -> Result<f32> {
        let sums = self.gradients(shares)?;
        self.apply(&sums, shares.len(), learning_rate, CLIP, threads)
    }

    /// Sum of the shares' gradients, in order, for every tensor.
    pub fn gradients(&self, shares: &[GradStore]) -> Result<Vec<Vec<f32>>> {
        self.all.iter().map(|p| p.gradient(shares)).collect()
    }

    /// One step of AdamW on `sums / shares`, clipped to norm `clip`. Returns the norm before clipping.
    pub fn apply(
        &mut self,
        sums: &[Vec<f32>],
        shares: usize,
        learning_rate: f32,
        clip: f32,
        threads: usize,
    ) -> Result<f32> {
        self.updates += 1;
        let share = 1.0 / shares as f32;
        // Sums of 4096 squares in f32, their sum in f64: exact enough, and in one order.
        let squares = |g: &[f32]| g.chunks(4096).map(|c| f64::from(c.iter().map(|v| v * v).sum::<f32>())).sum::<f64>();
        let norm = sums.iter().map(|g| squares(g)).sum::<f64>().sqrt() as f32 * share;
        let step = AdamStep {
            factor: share * if norm > clip { clip / norm } else { 1.0 },
            learning_rate,
            first_bias: 1.0 / (1.0 - BETA.0.powi(self.updates)),
            second_bias: 1.0 / (1.0 - BETA.1.powi(self.updates)),
        };
        let mut work: Vec<Vec<(&mut Parameter, &[f32])>> = (0..threads).map(|_| Vec::new()).collect();
        let mut load = vec![0; threads];
        for (p, g) in self.all.iter_mut().zip(sums) {
            let least = (0..threads).min_by_key(|&t| load[t]).unwrap_or(0);
            load[least] += g.len();
            work[least].push((p, g));
        }
        super::train::in_parallel(work, |part| {
            part.into_iter().try_for_each(|(p, g)| {
                p.step(g, &step);
                p.refresh()
            })
        })?;
        Ok(norm)
    }
}

struct AdamStep {
    factor: f32,
    learning_rate: f32,
    first_bias: f32,
    second_bias: f32,
}

impl Parameter {
    fn new(name: String, dims: Vec<usize>, role: Role, master: Vec<f32>) -> Result<Self> {
        let n = master.len();
        let live = Var::from_vec(master.clone(), dims.clone(), &Device::Cpu)?;
        let precision = LayerPrecision::Full;
        Ok(Self { name, dims, role, precision, master, first: vec![0.0; n], second: vec![0.0; n], live })
    }

    /// What the network sees of these masters.
    fn live_of(&self, master: &[f32]) -> Vec<f32> {
        live(self.precision, master, self.dims.last().copied().unwrap_or(1))
    }

    /// Live weights from the master.
    fn refresh(&self) -> Result<()> {
        self.live.set(&Tensor::from_vec(self.live_of(&self.master), self.dims.clone(), &Device::Cpu)?)
    }

    /// Sum of the shares' gradients, in order.
    fn gradient(&self, shares: &[GradStore]) -> Result<Vec<f32>> {
        let mut sum = vec![0f32; self.master.len()];
        for share in shares {
            let Some(gradient) = share.get(self.live.as_tensor()) else {
                candle_core::bail!("{} has no gradient", self.name)
            };
            read(gradient, |g| {
                sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
                Ok(())
            })?;
        }
        Ok(sum)
    }

    fn step(&mut self, gradient: &[f32], step: &AdamStep) {
        let decay = if self.role == Role::Norm { 0.0 } else { DECAY };
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((w, (m, v)), g) in self.master.iter_mut().zip(moments).zip(gradient) {
            let g = g * step.factor;
            *m = BETA.0 * *m + (1.0 - BETA.0) * g;
            *v = BETA.1 * *v + (1.0 - BETA.1) * g * g;
            let move_to = *m * step.first_bias / ((*v * step.second_bias).sqrt() + 1e-8);
            *w -= step.learning_rate * (decay * *w + move_to);
        }
    }
}

/// Name, shape and role of every tensor of a model.
pub fn layout(shape: &ModelShape) -> Vec<(String, Vec<usize>, Role)> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![shape.vocabulary, shape.width], Role::Embedding)];
    for layer in 0..shape.layers {
        for slot in Slot::ALL {
            let dims = slot.dims(shape);
            let role = if dims.len() == 1 { Role::Norm } else { Role::Projection };
            all.push((format!("model.layers.{layer}.{}.weight", slot.name()), dims, role));
        }
    }
    all.push(("model.norm.weight".to_owned(), vec![shape.width], Role::Norm));
    all
}

/// Standard normal (Box and Muller).
fn normal(random: &mut Random) -> f32 {
    let (u, v) = (random.unit().max(1e-12), random.unit());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_index_the_layout() {
        let shape =
            ModelShape { vocabulary: 8, width: 4, layers: 2, heads: 2, kv_heads: 1, head_dim: 2, ffn: 6, context: 8 };
        let layout = layout(&shape);
        assert_eq!(layout.len(), 2 + 2 * Slot::ALL.len());
        for layer in 0..2 {
            for slot in Slot::ALL {
                let (name, dims, _) = &layout[slot.index(layer)];
                assert_eq!(*name, format!("model.layers.{layer}.{}.weight", slot.name()));
                assert_eq!(*dims, slot.dims(&shape));
            }
        }
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut random = Random::from_seed(1);
        let x: Vec<f64> = (0..20_000).map(|_| f64::from(normal(&mut random))).collect();
        let mean = x.iter().sum::<f64>() / 2e4;
        let variance = x.iter().map(|v| v * v).sum::<f64>() / 2e4;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
