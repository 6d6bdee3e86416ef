//! The gradient of a whole lesson (both losses and the hidden states' distance, through every layer) against central
//! differences, for every tensor of the model.
//!
//! A step is a share of the tensor's own length: one that suits norms of weight 1 is far outside of where an embedding of
//! weight .05 is straight. Two step lengths and Richardson's extrapolation take the curvature out.

use super::*;
use crate::engine::random::Random;
use crate::workshop::ops::{Loss, Objective, StateLoss};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};

const SHAPE: ModelShape =
    ModelShape { vocabulary: 40, width: 16, layers: 2, heads: 4, kv_heads: 2, head_dim: 4, ffn: 24, context: 6 };
/// Largest error of a slope, as a share of it. Rounding in f32 makes some 1e-4.
const TOLERANCE: f64 = 5e-3;
/// What must be seen.
const WRONG: f64 = 1.02;

struct Lesson {
    weights: Weights,
    ids: Vec<u32>,
    targets: Vec<u32>,
    teacher: Tensor,
    states: Vec<Tensor>,
}

impl Lesson {
    fn new() -> Self {
        let mut random = Random::from_seed(7);
        let mut draw = || (0..2 * SHAPE.context).map(|_| random.below(SHAPE.vocabulary) as u32).collect::<Vec<_>>();
        let (ids, targets) = (draw(), draw());
        let teacher = Network::frozen(&Weights::random(SHAPE, 2).unwrap()).unwrap();
        let (teacher, states) = teacher.forward_with_states(&ids, SHAPE.context).unwrap();
        Self { weights: Weights::random(SHAPE, 1).unwrap(), ids, targets, teacher, states }
    }

    fn terms(&self, tensors: Vec<Tensor>) -> Vec<Tensor> {
        let network = Network::over(&self.weights, tensors);
        let (logits, states) = network.forward_with_states(&self.ids, SHAPE.context).unwrap();
        let teacher = Objective::Teacher { logits: self.teacher.clone(), temperature: 3.0 };
        let mut terms = vec![
            logits.apply_op1(Loss(teacher)).unwrap(),
            logits.apply_op1(Loss(Objective::NextToken(self.targets.clone()))).unwrap(),
        ];
        terms.extend(states.iter().zip(&self.states).map(|(x, t)| x.apply_op1(StateLoss(t.clone())).unwrap()));
        terms
    }

    /// The loss at tensors; terms are added in f64, which keeps the last digits that a difference needs.
    fn loss(&self, tensors: Vec<Tensor>) -> f64 {
        self.terms(tensors).iter().map(|term| f64::from(term.to_scalar::<f32>().unwrap())).sum()
    }

    /// Gradients of all tensors. With `wrong`, that tensor's way back leads through an operation whose backward pass is
    /// too large by [`WRONG`].
    fn gradients(&self, wrong: Option<usize>) -> Vec<Vec<f32>> {
        let live = self.weights.live();
        let mut tensors = live.clone();
        if let Some(index) = wrong {
            tensors[index] = tensors[index].apply_op1(Wrong).unwrap();
        }
        let terms = self.terms(tensors);
        let loss = terms.into_iter().reduce(|sum, term| (sum + term).unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        live.iter().map(|tensor| flat(grads.get(tensor).expect("a tensor without gradient"))).collect()
    }

    /// Largest error of a tensor's gradient along directions between itself and a random one, as a share of the slope.
    fn error(&self, index: usize, gradient: &[f32], random: &mut Random) -> f64 {
        let at: Vec<Tensor> = self.weights.frozen().unwrap();
        let values = flat(&at[index]);
        let reach = length(&values);
        let errors = (0..3).map(|_| {
            let noise: Vec<f32> = values.iter().map(|_| random.unit() as f32 - 0.5).collect();
            let (own, other) = (length(gradient).max(1e-30), length(&noise));
            let direction: Vec<f64> =
                gradient.iter().zip(&noise).map(|(g, n)| f64::from(*g) / own + f64::from(*n) / other).collect();
            let slope_at = |share: f64| {
                let step = share * reach;
                let moved = |sign: f64| {
                    let values: Vec<f32> =
                        values.iter().zip(&direction).map(|(v, d)| (f64::from(*v) + sign * step * d) as f32).collect();
                    let mut tensors = at.clone();
                    tensors[index] = Tensor::from_vec(values, at[index].shape(), &Device::Cpu).unwrap();
                    self.loss(tensors)
                };
                (moved(1.0) - moved(-1.0)) / (2.0 * step)
            };
            let numeric = (4.0 * slope_at(5e-3) - slope_at(1e-2)) / 3.0;
            let analytic: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
            (numeric - analytic).abs() / numeric.abs()
        });
        errors.fold(0.0, f64::max)
    }
}

/// The identity, with a wrong factor in its backward pass.
struct Wrong;

impl CustomOp1 for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((x.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some((grad * WRONG)?))
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn the_gradient_of_every_tensor_is_the_slope_of_the_loss_and_a_wrong_factor_shows() {
    let lesson = Lesson::new();
    let mut random = Random::from_seed(3);
    let right = lesson.gradients(None);
    assert_eq!(right.len(), lesson.weights.all.len());
    let mut worst: f64 = 0.0;
    for (index, parameter) in lesson.weights.all.iter().enumerate() {
        let error = lesson.error(index, &right[index], &mut random);
        assert!(error < TOLERANCE, "{}: off by {error:.1e} of the slope", parameter.name);
        worst = worst.max(error);
        let wrong = lesson.gradients(Some(index));
        let error = lesson.error(index, &wrong[index], &mut random);
        assert!(error > 2.0 * TOLERANCE, "{}: a factor of {WRONG} shows as {error:.1e} only", parameter.name);
    }
    println!("largest error of a slope {worst:.1e}");
}
