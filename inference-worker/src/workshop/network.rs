//! The BitNet graph, for training: the same arithmetic as serving, in candle's autograd.

use super::ops::{Attention, Linear, QuantiseActivations, QuantiseCache, RmsNorm, Rope, RopeTable, SquaredGate};
use super::recipe::ModelShape;
use super::weights::{Rounding, Slot, Weights};
use crate::model::{ActivationBits, KvBits, LayerPrecision};
use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// A network over live or frozen weights. Cheap to clone; safe to share between threads.
#[derive(Clone)]
pub struct Network {
    shape: ModelShape,
    rms_eps: f32,
    /// Of each tensor: it meets quantised activations.
    quantised: Arc<[bool]>,
    rounding: Rounding,
    tensors: Vec<Tensor>,
    rope: Arc<RopeTable>,
}

impl Network {
    /// A network whose gradients reach the weights.
    pub fn live(weights: &Weights) -> Self {
        Self::over(weights, weights.live())
    }

    /// A network over a copy of the weights, without gradients.
    pub fn frozen(weights: &Weights) -> Result<Self> {
        Ok(Self::over(weights, weights.frozen()?))
    }

    fn over(weights: &Weights, tensors: Vec<Tensor>) -> Self {
        let shape = weights.shape;
        let rope = Arc::new(RopeTable::new(shape.context, shape.head_dim, weights.rope_theta));
        let quantised = weights.all.iter().map(|p| p.precision != LayerPrecision::Full).collect();
        Self { shape, rms_eps: weights.rms_eps, quantised, rounding: weights.rounding, tensors, rope }
    }

    /// Logits `[ids, vocabulary]` of sequences of `sequence` tokens (at most the context), one after the other.
    pub fn forward(&self, ids: &[u32], sequence: usize) -> Result<Tensor> {
        self.run(ids, sequence, None)
    }

    /// The same, and the residual stream `[ids, width]` behind every decoder layer.
    pub fn forward_with_states(&self, ids: &[u32], sequence: usize) -> Result<(Tensor, Vec<Tensor>)> {
        let mut states = Vec::with_capacity(self.shape.layers);
        let logits = self.run(ids, sequence, Some(&mut states))?;
        Ok((logits, states))
    }

    /// Shape of the model.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn run(&self, ids: &[u32], sequence: usize, mut states: Option<&mut Vec<Tensor>>) -> Result<Tensor> {
        let shape = &self.shape;
        if sequence == 0 || sequence > shape.context || !ids.len().is_multiple_of(sequence) {
            candle_core::bail!("{} tokens are not sequences of {sequence} within {}", ids.len(), shape.context)
        }
        let embedding = &self.tensors[0];
        let mut x = embedding.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)?;
        for layer in 0..shape.layers {
            let at = |slot: Slot| &self.tensors[slot.index(layer)];
            let norm = |x: &Tensor, slot| x.apply_op2(at(slot), RmsNorm { eps: self.rms_eps });
            let linear = |x: &Tensor, slot| x.apply_op2(at(slot), Linear);
            let rope = || Rope { table: Arc::clone(&self.rope), sequence, inverse: false };
            let attention =
                Attention { sequence, heads: shape.heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim };

            let inputs = self.rounding.activation_bits;
            let h = self.quantise(norm(&x, Slot::InputNorm)?, Slot::Query.index(layer), inputs)?;
            let q = linear(&h, Slot::Query)?.apply_op1(rope())?;
            let k = self.cached(linear(&h, Slot::Key)?.apply_op1(rope())?)?;
            let v = self.cached(linear(&h, Slot::Value)?)?;
            let o = q.apply_op3(&k, &v, attention)?;
            let eight = ActivationBits::Eight;
            let o = self.quantise(norm(&o, Slot::AttentionNorm)?, Slot::Output.index(layer), eight)?;
            x = (x + linear(&o, Slot::Output)?)?;

            let h = self.quantise(norm(&x, Slot::PostNorm)?, Slot::Gate.index(layer), inputs)?;
            let m = linear(&h, Slot::Gate)?.apply_op2(&linear(&h, Slot::Up)?, SquaredGate)?;
            let m = self.quantise(norm(&m, Slot::FeedForwardNorm)?, Slot::Down.index(layer), eight)?;
            x = (x + linear(&m, Slot::Down)?)?;
            if let Some(states) = &mut states {
                states.push(x.clone());
            }
        }
        let last = self.tensors.len() - 1;
        x.apply_op2(&self.tensors[last], RmsNorm { eps: self.rms_eps })?.apply_op2(embedding, Linear)
    }

    /// Activations as the tensor of this index meets them; tensors that share an input are of one kind.
    fn quantise(&self, x: Tensor, reader: usize, bits: ActivationBits) -> Result<Tensor> {
        if self.quantised[reader] { x.apply_op1(QuantiseActivations(bits)) } else { Ok(x) }
    }

    /// Keys or values as attention finds them in the cache.
    fn cached(&self, x: Tensor) -> Result<Tensor> {
        match self.rounding.kv_bits {
            KvBits::ThirtyTwo => Ok(x),
            bits => x.apply_op1(QuantiseCache { bits, head_dim: self.shape.head_dim }),
        }
    }
}

#[cfg(test)]
mod gradients;
