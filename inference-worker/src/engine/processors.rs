//! What a request adds to its logits before a token is drawn, with the names and the order of vLLM.

use std::collections::{HashMap, HashSet};

/// Changes of one request. No `Debug`: token ids are text.
#[derive(Clone, PartialEq)]
pub struct Processors {
    /// What is added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// Divides positive and multiplies negative logits of the tokens of prompt and answer; 1 = none.
    pub repetition_penalty: f32,
    /// Taken from the logit of a token for each time the answer has it.
    pub frequency_penalty: f32,
    /// Taken once from the logits of the answer's tokens.
    pub presence_penalty: f32,
    /// The answer does not end by itself before it has so many tokens.
    pub min_tokens: usize,
}

impl Default for Processors {
    fn default() -> Self {
        Self { bias: Vec::new(), repetition_penalty: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, min_tokens: 0 }
    }
}

/// The changes and what they depend on.
pub(super) struct Processing {
    processors: Processors,
    prompt: HashSet<u32>,
    /// Tokens of the answer and how often it has them.
    answer: HashMap<u32, u32>,
    generated: usize,
}

impl Processing {
    pub(super) fn new(processors: Processors, prompt: &[u32]) -> Self {
        let prompt = if processors.repetition_penalty == 1.0 { &[] } else { prompt };
        Self { processors, prompt: prompt.iter().copied().collect(), answer: HashMap::new(), generated: 0 }
    }

    /// Notes the next token of the answer.
    pub(super) fn take(&mut self, token: u32) {
        *self.answer.entry(token).or_default() += 1;
        self.generated += 1;
    }

    /// Changes a row; `ends` are the tokens that end the answer. Numbers stay numbers, and what is none stays none, so
    /// that a broken model is seen.
    pub(super) fn apply(&self, logits: &mut [f32], ends: &[u32]) {
        let Processors { bias, repetition_penalty, frequency_penalty, presence_penalty, min_tokens } = &self.processors;
        if self.generated < *min_tokens {
            for &end in ends {
                change(logits, end, |_| f32::MIN);
            }
        }
        for &(token, bias) in bias {
            change(logits, token, |logit| logit + bias);
        }
        if *repetition_penalty != 1.0 {
            let fresh = self.answer.keys().filter(|token| !self.prompt.contains(token));
            for &token in self.prompt.iter().chain(fresh) {
                change(logits, token, |logit| {
                    if logit > 0.0 { logit / repetition_penalty } else { logit * repetition_penalty }
                });
            }
        }
        for (&token, &count) in &self.answer {
            change(logits, token, |logit| logit - frequency_penalty * count as f32 - presence_penalty);
        }
    }
}

fn change(logits: &mut [f32], token: u32, to: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize).filter(|logit| logit.is_finite()) {
        *logit = to(*logit).clamp(f32::MIN, f32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(processors: Processors, said: &[u32], logits: &[f32]) -> Vec<f32> {
        let mut processing = Processing::new(processors, &[0, 1]);
        for &token in said {
            processing.take(token);
        }
        let mut logits = logits.to_vec();
        processing.apply(&mut logits, &[4]);
        logits
    }

    #[test]
    fn each_change_is_vllms() {
        let row = [2.0, -2.0, 3.0, 4.0, 5.0];
        let none = Processors::default();
        let bias = Processors { bias: vec![(3, -100.0), (9, 1.0)], ..none.clone() };
        assert_eq!(applied(bias, &[], &row), [2.0, -2.0, 3.0, -96.0, 5.0]);
        let repetition = Processors { repetition_penalty: 2.0, ..none.clone() };
        assert_eq!(applied(repetition, &[2, 2, 0], &row), [1.0, -4.0, 1.5, 4.0, 5.0], "once each, prompt as well");
        let counted = Processors { frequency_penalty: 0.5, presence_penalty: 0.25, ..none.clone() };
        assert_eq!(applied(counted, &[2, 2, 3], &row), [2.0, -2.0, 1.75, 3.25, 5.0], "the answer alone");
        let long = Processors { min_tokens: 2, ..none.clone() };
        assert_eq!(applied(long.clone(), &[2], &row)[4], f32::MIN);
        assert_eq!(applied(long, &[2, 2], &row), row);
        assert_eq!(applied(none, &[2, 3], &row), row);
    }

    #[test]
    fn numbers_stay_numbers_and_broken_ones_broken() {
        let strong = Processors { repetition_penalty: 2.0, bias: vec![(0, -1.0)], ..Processors::default() };
        let row = applied(strong, &[2], &[f32::MIN, f32::NAN, f32::INFINITY]);
        assert!(row[0] == f32::MIN && row[1].is_nan() && row[2] == f32::INFINITY);
    }
}
