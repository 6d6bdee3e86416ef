//! A network that answers what it was told, slowly or wrongly where its prompt says so.

use super::{EOS, VOCABULARY};
use inference_worker::engine::{Network, Turn};
use std::time::Duration;

/// A prompt with this byte is answered slowly, 30 ms a token.
pub const SLOW: char = '%';
/// A prompt with this byte waits 30 ms before each token and never ends by itself.
pub const WAITS: char = '&';
/// Reading it gives logits that are not finite, after two good tokens where it is written twice.
pub const BREAKS: char = '!';
/// Reading it ends the engine.
pub const FALLS: char = '~';

/// Answers the script's tokens one after the other and ends it with end-of-text.
pub struct Scripted {
    script: Vec<u32>,
    /// Marks in prompts mean nothing.
    steady: bool,
}

/// What one sequence has read.
#[derive(Default)]
pub struct Sequence {
    prompt: Vec<u32>,
    answered: usize,
    started: bool,
}

impl Scripted {
    pub fn new(script: Vec<u32>) -> Self {
        Self { script, steady: false }
    }

    /// One that answers well whatever its prompt says.
    pub fn steady(script: Vec<u32>) -> Self {
        Self { script, steady: true }
    }
}

fn has(prompt: &[u32], c: char) -> usize {
    // The tiny tokenizer's id of an ASCII character is its byte.
    prompt.iter().filter(|id| **id == c as u32).count()
}

impl Network for Scripted {
    type Cache = Sequence;

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn new_cache(&self, _capacity: usize) -> Sequence {
        Sequence::default()
    }

    fn fork(&self, cache: &Sequence, len: usize, _capacity: usize) -> Sequence {
        let prompt = cache.prompt.iter().copied().take(len).collect();
        Sequence { prompt, answered: 0, started: false }
    }

    fn bytes_per_pass(&self) -> usize {
        1000
    }

    fn forward(&self, turns: &mut [Turn<'_, Sequence>]) -> Result<(), String> {
        let mut slow = false;
        for turn in turns {
            let sequence = &mut *turn.cache;
            if sequence.started {
                sequence.answered += 1;
            } else {
                sequence.prompt.extend(turn.tokens);
                sequence.started = !turn.want.is_empty();
            }
            let prompt: &[u32] = if self.steady { &[] } else { &sequence.prompt };
            assert!(has(prompt, FALLS) == 0, "the scripted network falls");
            let endless = has(prompt, WAITS) > 0;
            slow |= endless || has(prompt, SLOW) > 0;
            let breaks = has(prompt, BREAKS);
            let broken = breaks == 1 || breaks > 1 && sequence.answered >= 2;
            let next = match self.script.get(sequence.answered) {
                _ if endless => self.script[sequence.answered % self.script.len()],
                Some(token) => *token,
                None => EOS,
            };
            for _ in turn.want {
                let mut row = vec![0.0; VOCABULARY];
                row[next as usize] = 60.0; // certain at any temperature
                if broken {
                    row[7] = f32::NAN;
                }
                turn.logits.extend(row);
            }
        }
        if slow {
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    }
}
