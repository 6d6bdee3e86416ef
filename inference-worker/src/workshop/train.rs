//! The training loop: batches, learning rate, gradients in shares.

use super::network::Network;
use super::ops::{Loss, Objective};
use super::progress::Progress;
use super::recipe::{Recipe, Schedule};
use super::weights::Weights;
use crate::engine::random::Random;
use candle_core::Result;
use candle_core::backprop::GradStore;

/// What a run ended with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trained {
    /// Loss averaged over about the last twenty steps, nats.
    pub loss: f32,
    /// Tokens that went through the network.
    pub tokens: usize,
}

/// One training run's inputs.
pub struct Run<'a> {
    /// Shape of a batch, temperature, seed.
    pub recipe: &'a Recipe,
    /// Steps and learning rate.
    pub schedule: Schedule,
    /// Token ids of the training text.
    pub tokens: &'a [u32],
    /// The model to come close to; without one, the next token is learned.
    pub teacher: Option<&'a Network>,
    /// Threads; the result does not depend on it.
    pub threads: usize,
}

/// Trains `weights` in place.
///
/// # Errors
/// If the text is shorter than a sequence, or a loss is not finite (a learning rate that is too high).
pub fn train(weights: &mut Weights, run: &Run<'_>, progress: &mut dyn Progress) -> Result<Trained> {
    let (recipe, schedule) = (run.recipe, run.schedule);
    let context = recipe.shape.context;
    let per_share = recipe.batch / recipe.shares;
    if run.tokens.len() < context + 2 {
        candle_core::bail!("{} tokens of text are fewer than one sequence of {context}", run.tokens.len())
    }
    // Teacher and student draw different batches: the student is to agree with the teacher off its training order, too.
    let mut random = Random::from_seed(recipe.seed ^ if run.teacher.is_some() { 0x5107 } else { 0x7EAC });
    let mut smooth = None;
    let threads = run.threads.clamp(1, recipe.shares);
    for step in 0..schedule.steps {
        let network = Network::live(weights);
        let mut work: Vec<Vec<(usize, Batch)>> = (0..threads).map(|_| Vec::new()).collect();
        for share in 0..recipe.shares {
            let batch = Batch::draw(&mut random, run.tokens, per_share, context);
            work[share % threads].push((share, batch));
        }
        let mut results = in_parallel(work, |part| {
            part.into_iter()
                .map(|(share, batch)| Ok((share, batch.gradients(&network, run)?)))
                .collect::<Result<Vec<_>>>()
        })?
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
        results.sort_by_key(|(share, _)| *share);
        let loss = results.iter().map(|(_, (loss, _))| loss).sum::<f32>() / recipe.shares as f32;
        if !loss.is_finite() {
            candle_core::bail!("the loss of step {step} is {loss}: use a lower learning rate")
        }
        let gradients: Vec<GradStore> = results.into_iter().map(|(_, (_, gradients))| gradients).collect();
        weights.update(&gradients, learning_rate(schedule, step), threads)?;
        let mean = smooth.map_or(loss, |s: f32| 0.95 * s + 0.05 * loss);
        smooth = Some(mean);
        progress.step(step + 1, mean, recipe.batch * context);
    }
    Ok(Trained { loss: smooth.unwrap_or(f32::NAN), tokens: schedule.steps * recipe.batch * context })
}

/// Rises over the first 5 % of the steps (10 to 100 of them), then falls as a cosine to 2 %.
fn learning_rate(schedule: Schedule, step: usize) -> f32 {
    let warm_up = (schedule.steps as f32 * 0.05).clamp(10.0, 100.0);
    let done = step as f32 / schedule.steps as f32;
    let cosine = 0.5 * (1.0 + (std::f32::consts::PI * done).cos());
    schedule.learning_rate * ((step + 1) as f32 / warm_up).min(1.0) * (0.02 + 0.98 * cosine)
}

struct Batch {
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Batch {
    fn draw(random: &mut Random, tokens: &[u32], sequences: usize, context: usize) -> Self {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..sequences {
            let start = random.below(tokens.len() - context - 1);
            inputs.extend_from_slice(&tokens[start..][..context]);
            targets.extend_from_slice(&tokens[start + 1..][..context]);
        }
        Self { inputs, targets }
    }

    fn gradients(self, network: &Network, run: &Run<'_>) -> Result<(f32, GradStore)> {
        let context = run.recipe.shape.context;
        let objective = match run.teacher {
            Some(teacher) => Objective::Teacher {
                logits: teacher.forward(&self.inputs, context)?,
                temperature: run.recipe.temperature,
            },
            None => Objective::NextToken(self.targets),
        };
        let loss = network.forward(&self.inputs, context)?.apply_op1(Loss(objective))?;
        Ok((loss.to_scalar::<f32>()?, loss.backward()?))
    }
}

/// Runs `f` on each part, one thread each (the first on the caller's), and returns the results in order.
pub(super) fn in_parallel<T: Send, R: Send>(parts: Vec<T>, f: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let mut parts = parts.into_iter();
        let first = parts.next();
        let others: Vec<_> = parts.map(|part| scope.spawn(|| f(part))).collect();
        let mut results = first.map(&f).into_iter().collect::<Vec<_>>();
        for thread in others {
            results.push(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_then_falls_to_two_percent() {
        let schedule = Schedule { steps: 1000, learning_rate: 1.0 };
        assert!(learning_rate(schedule, 0) < 0.03);
        assert!(learning_rate(schedule, 50) > 0.97);
        assert!((learning_rate(schedule, 999) - 0.02).abs() < 1e-3);
        let all: Vec<f32> = (50..1000).map(|s| learning_rate(schedule, s)).collect();
        assert!(all.windows(2).all(|w| w[1] <= w[0]));
    }

    #[test]
    fn parallel_results_keep_their_order() {
        let squares = in_parallel((0..7u32).collect(), |x| Ok(x * x)).unwrap();
        assert_eq!(squares, [0, 1, 4, 9, 16, 25, 36]);
        assert!(in_parallel(vec![1, 2], |x| if x == 2 { candle_core::bail!("no") } else { Ok(x) }).is_err());
    }
}
