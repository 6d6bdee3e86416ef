use crate::workshop::network::Network;
use crate::workshop::ops::{Loss, Objective, StateLoss};
use crate::workshop::probing::Loaded;
use crate::workshop::train::in_parallel;
use crate::workshop::weights::Weights;
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};

/// What a student learns from sequences of a text: T² · KL against a served teacher, the next token, and the teacher's
/// hidden states.
pub(in crate::workshop) struct Lesson<'a> {
    /// The model to come close to.
    pub(in crate::workshop) teacher: &'a Loaded,
    /// Ids of the text.
    pub(in crate::workshop) tokens: &'a [u32],
    /// Tokens of a sequence.
    pub(in crate::workshop) sequence: usize,
    /// T, above 0.
    pub(in crate::workshop) temperature: f32,
    /// Weights of T² · KL and of the next token's cross entropy; one of them above 0.
    pub(in crate::workshop) weights: (f32, f32),
    /// The teacher in the training graph, and the weight of the distance of hidden states behind every layer.
    pub(in crate::workshop) states: Option<(&'a Network, f32)>,
    /// Threads; the result does not depend on them.
    pub(in crate::workshop) threads: usize,
}

impl Lesson<'_> {
    /// Sums, over the sequences that begin at `starts`, of the loss and of its gradients; added in the order of `starts`.
    pub(in crate::workshop) fn gradients(&self, weights: &Weights, starts: &[usize]) -> Result<(f32, Vec<Vec<f32>>)> {
        let network = Network::live(weights);
        let threads = self.threads.clamp(1, starts.len().max(1));
        let mut work: Vec<Vec<(usize, usize)>> = vec![Vec::new(); threads];
        for (share, start) in starts.iter().enumerate() {
            work[share % threads].push((share, *start));
        }
        let parts = in_parallel(work, |part| {
            part.into_iter().map(|(share, start)| Ok((share, self.one(&network, start)?))).collect::<Result<Vec<_>>>()
        })?;
        let mut parts: Vec<_> = parts.into_iter().flatten().collect();
        parts.sort_by_key(|(share, _)| *share);
        let loss = parts.iter().map(|(_, (loss, _))| loss).sum::<f32>();
        let gradients: Vec<GradStore> = parts.into_iter().map(|(_, (_, gradients))| gradients).collect();
        Ok((loss, weights.gradients(&gradients)?))
    }

    fn one(&self, network: &Network, start: usize) -> Result<(f32, GradStore)> {
        let inputs = &self.tokens[start..start + self.sequence];
        let (kl, entropy) = self.weights;
        let mut terms = Vec::new();
        let student = match self.states {
            None => network.forward(inputs, self.sequence)?,
            Some((teacher, weight)) => {
                let (student, states) = network.forward_with_states(inputs, self.sequence)?;
                let weight = f64::from(weight) / states.len().max(1) as f64;
                for (state, wanted) in states.iter().zip(teacher.forward_with_states(inputs, self.sequence)?.1) {
                    terms.push((state.apply_op1(StateLoss(wanted))? * weight)?);
                }
                student
            }
        };
        if kl > 0.0 {
            let logits = self.teacher.logits(inputs).map_err(candle_core::Error::wrap)?;
            let logits = Tensor::from_vec(logits, student.shape(), &Device::Cpu)?;
            let objective = Objective::Teacher { logits, temperature: self.temperature };
            terms.push((student.apply_op1(Loss(objective))? * f64::from(kl))?);
        }
        if entropy > 0.0 {
            let targets = self.tokens[start + 1..=start + self.sequence].to_vec();
            terms.push((student.apply_op1(Loss(Objective::NextToken(targets)))? * f64::from(entropy))?);
        }
        let mut terms = terms.into_iter();
        let first = terms.next().ok_or_else(|| candle_core::Error::msg("no loss"))?;
        let loss = terms.try_fold(first, |sum, term| sum + term)?;
        Ok((loss.to_scalar::<f32>()?, loss.backward()?))
    }
}
