//! How often the baseline would choose the model's own tokens: what the cascade's confidence rests on.

use super::Probes;
use super::similarity::first_maximum;
use crate::model::{ForwardError, Model, Step, Text, TextError, Want};
use crate::serve::Confidence;

/// Why there is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The models do not share a vocabulary.
    #[error("the models have {model} and {baseline} token ids; calibrate against the baseline of the same family")]
    Vocabulary {
        /// Of the model.
        model: usize,
        /// Of the baseline.
        baseline: usize,
    },
    /// A prompt cannot be encoded.
    #[error("prompt {number} cannot be encoded")]
    Prompt {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        source: TextError,
    },
    /// A model refused a pass.
    #[error("a forward pass failed")]
    Forward(#[source] ForwardError),
    /// No prompt leaves room for a token, or no logits are finite.
    #[error("no prompt gave a position; use prompts that are shorter than the context, and a model that is not broken")]
    Nothing,
}

/// Calibrates `model`: it continues each prompt greedily by at most `tokens` tokens, and at each of them the baseline is
/// asked for its own best token after the same text.
///
/// # Errors
/// [`CalibrateError`].
pub fn calibrate(
    model: &Model,
    baseline: &Model,
    text: &Text,
    probes: &Probes,
    tokens: usize,
) -> Result<Confidence, CalibrateError> {
    let (own, other) = (model.config().vocab_size, baseline.config().vocab_size);
    if own != other {
        return Err(CalibrateError::Vocabulary { model: own, baseline: other });
    }
    let context = model.config().context.min(baseline.config().context);
    let mut positions = Vec::new();
    for index in 0..probes.len() {
        let prompt = probes.tokens(index, text);
        let prompt = prompt.map_err(|source| CalibrateError::Prompt { number: index + 1, source })?;
        if !prompt.is_empty() && prompt.len() < context {
            let room = tokens.min(context - prompt.len());
            continue_and_ask(model, baseline, prompt, room, &mut positions).map_err(CalibrateError::Forward)?;
        }
    }
    Confidence::fit(positions).ok_or(CalibrateError::Nothing)
}

fn continue_and_ask(
    model: &Model,
    baseline: &Model,
    prompt: Vec<u32>,
    room: usize,
    positions: &mut Vec<(f64, bool)>,
) -> Result<(), ForwardError> {
    let first = prompt.len() - 1;
    let (mut said, mut text, mut fed) = (Vec::new(), prompt, 0);
    let mut cache = model.new_cache(text.len() + room);
    for _ in 0..room {
        let mut steps = [Step::new(&mut cache, &text[fed..], Want::Last)];
        model.forward(&mut steps)?;
        let logits = &steps[0].logits;
        if logits.iter().any(|x| !x.is_finite()) {
            break;
        }
        let token = first_maximum(logits);
        let best = logits[token];
        let probability = 1.0 / logits.iter().map(|x| f64::from(x - best).exp()).sum::<f64>();
        if model.config().eos.contains(&(token as u32)) {
            break;
        }
        said.push((token, probability));
        fed = text.len();
        text.push(token as u32);
    }
    if said.is_empty() {
        return Ok(());
    }
    let read = &text[..text.len() - 1];
    let wanted: Vec<u32> = (first..read.len()).map(|at| at as u32).collect();
    let mut cache = baseline.new_cache(read.len());
    let mut steps = [Step::new(&mut cache, read, Want::Positions(&wanted))];
    baseline.forward(&mut steps)?;
    let rows = steps[0].logits.chunks_exact(baseline.config().vocab_size);
    positions.extend(said.iter().zip(rows).map(|((token, p), row)| (*p, first_maximum(row) == *token)));
    Ok(())
}
