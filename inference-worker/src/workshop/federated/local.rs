//! One client's part of one round.

use super::protocol::Plan;
use crate::engine::random::Random;
use crate::workshop::WorkshopError;
use crate::workshop::probing::Loaded;
use crate::workshop::progress::Progress;
use crate::workshop::student::Lesson;
use crate::workshop::weights::Weights;
use sha2::{Digest, Sha256};

/// What a client trains with.
pub(super) struct Place<'a> {
    pub(super) teacher: &'a Loaded,
    /// Ids of its own text.
    pub(super) tokens: &'a [u32],
    /// Its name: with the plan's seed, it decides the order of sequences.
    pub(super) client: &'a str,
    pub(super) threads: usize,
}

/// Whole sequences in a text.
pub(super) fn sequences(tokens: usize, sequence: usize) -> usize {
    tokens.saturating_sub(1) / sequence
}

/// Trains the weights, in place, as the plan says for a round (from 0). Returns the loss averaged over the last epoch.
///
/// # Errors
/// [`WorkshopError::Missed`] if a loss or a weight is no number any more: nothing is to be delivered then.
pub(super) fn train(
    plan: &Plan,
    round: usize,
    place: &Place<'_>,
    weights: &mut Weights,
    progress: &mut dyn Progress,
) -> Result<f32, WorkshopError> {
    let failed = || WorkshopError::tensor("training on this client's text");
    plan.quantise(weights).map_err(failed())?;
    let lesson = Lesson {
        teacher: place.teacher,
        tokens: place.tokens,
        sequence: plan.sequence,
        temperature: plan.temperature,
        weights: (plan.kl, plan.cross_entropy),
        states: None,
        threads: place.threads,
    };
    let count = sequences(place.tokens.len(), plan.sequence);
    let steps = plan.epochs * count.div_ceil(plan.batch);
    let mut done = 0;
    let mut last = f32::NAN;
    progress.stage(&format!("round {}", round + 1), steps);
    for epoch in 0..plan.epochs {
        let mut order: Vec<usize> = (0..count).map(|index| index * plan.sequence).collect();
        shuffle(&mut order, &mut Random::from_seed(seed(plan.seed, place.client, round, epoch)));
        let (mut sum, mut batches) = (0.0, 0);
        for starts in order.chunks(plan.batch) {
            let (loss, gradients) = lesson.gradients(weights, starts).map_err(failed())?;
            let loss = loss / starts.len() as f32;
            let share = plan.schedule.share(round * steps + done, plan.rounds * steps);
            // The optimiser begins every round with no memory, and its first steps would be its largest.
            let begin = ((done + 1) as f32 / BEGIN).min(1.0);
            let rate = plan.learning_rate * share * begin;
            let norm =
                weights.apply(&gradients, starts.len(), rate, plan.clip, place.threads.max(1)).map_err(failed())?;
            if !(loss.is_finite() && norm.is_finite()) {
                return Err(WorkshopError::Missed(format!(
                    "round {}, step {}: the loss is {loss}, the gradient's norm {norm}: nothing is delivered; start the coordinator with a lower --learning-rate",
                    round + 1,
                    done + 1
                )));
            }
            done += 1;
            (sum, batches) = (sum + loss, batches + 1);
            progress.step(done, loss, starts.len() * plan.sequence);
        }
        last = sum / batches.max(1) as f32;
    }
    if weights.all_finite() {
        return Ok(last);
    }
    Err(WorkshopError::Missed(format!(
        "round {}: the weights are no numbers any more: nothing is delivered; start the coordinator with a lower --learning-rate",
        round + 1
    )))
}

/// Steps over which a round's learning rate rises.
const BEGIN: f32 = 5.0;

fn seed(seed: u64, client: &str, round: usize, epoch: usize) -> u64 {
    let hash = Sha256::digest(format!("{seed} {client} {round} {epoch}"));
    hash.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

fn shuffle(values: &mut [usize], random: &mut Random) {
    for last in (1..values.len()).rev() {
        values.swap(last, random.below(last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_round_and_epoch_has_an_order_of_its_own() {
        let base = seed(1, "a", 0, 0);
        let others = [seed(2, "a", 0, 0), seed(1, "b", 0, 0), seed(1, "a", 1, 0), seed(1, "a", 0, 1)];
        assert!(others.iter().all(|other| *other != base));
        let mut values: Vec<usize> = (0..50).collect();
        shuffle(&mut values, &mut Random::from_seed(base));
        assert_ne!(values, (0..50).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..50).collect::<Vec<_>>(), "nothing is lost");
    }

    #[test]
    fn sequences_need_a_token_after_them() {
        assert_eq!([0, 1, 8, 9, 16, 17].map(|n| sequences(n, 8)), [0, 0, 0, 1, 1, 2]);
    }
}
