//! How many prompt tokens a pass reads while answers are being written: as many as a budget of time allows.

use std::time::Duration;

/// Fewer prompt tokens in a pass would cost more weight reading than they save waiting; and they do not show how fast
/// prompts are read.
pub(super) const LEAST: usize = 16;
/// Share of the newest pass in what is known of all.
const NEWEST: f64 = 0.25;

/// What passes took so far.
pub(super) struct Pace {
    /// Prompt tokens that a pass may read in any case.
    most: usize,
    /// Time that the reading of prompts may add to a pass in which others wait for their next token.
    budget: Duration,
    /// Seconds of a pass without prompt tokens, smoothed.
    decode: Option<f64>,
    /// Seconds that a prompt token adds to a pass, smoothed.
    token: Option<f64>,
}

impl Pace {
    pub(super) fn new(most: usize, budget: Duration) -> Self {
        Self { most: most.max(1), budget, decode: None, token: None }
    }

    /// Prompt tokens that the next pass may read; `decoding`: others wait for their next token in it.
    pub(super) fn chunk(&self, decoding: bool) -> usize {
        if !decoding {
            return self.most;
        }
        // Nothing is known before the first long prompt was read.
        let fitting = self.token.map_or(0.0, |token| self.budget.as_secs_f64() / token);
        // A cast of more than all integers is the largest of them.
        (fitting as usize).max(LEAST).min(self.most)
    }

    /// A pass that read so many prompt tokens, beside `decoding` answers or none, took this long.
    pub(super) fn passed(&mut self, prompt: usize, decoding: bool, took: Duration) {
        let took = took.as_secs_f64();
        if prompt == 0 {
            smooth(&mut self.decode, took);
        } else if prompt >= LEAST {
            let rest = if decoding { self.decode.map_or(0.0, |decode| decode.min(took)) } else { 0.0 };
            // Nothing is for nothing: where the difference is lost in noise, a tenth of the pass is taken.
            smooth(&mut self.token, (took - rest).max(took / 10.0) / prompt as f64);
        }
    }
}

fn smooth(known: &mut Option<f64>, new: f64) {
    *known = Some(known.map_or(new, |old| old + (new - old) * NEWEST));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that takes `pass` seconds for a pass and `token` more for each prompt token.
    fn settled(pass: f64, token: f64, most: usize, budget_ms: u64) -> (Pace, usize) {
        let mut pace = Pace::new(most, Duration::from_millis(budget_ms));
        let mut chunk = 0;
        for round in 0..40 {
            let decoding = round > 0;
            chunk = pace.chunk(decoding);
            pace.passed(0, true, Duration::from_secs_f64(pass));
            pace.passed(chunk, decoding, Duration::from_secs_f64(pass + token * chunk as f64));
        }
        (pace, chunk)
    }

    #[test]
    fn a_chunk_beside_answers_takes_the_budget_and_one_without_takes_all() {
        // 200 prompt tokens a second: 100 ms are 20 of them, however long a pass without them is.
        let (pace, chunk) = settled(0.1, 0.005, 256, 100);
        assert!((19..=21).contains(&chunk), "{chunk}");
        assert_eq!(pace.chunk(false), 256);
        assert_eq!(settled(0.1, 0.005, 256, 200).0.chunk(true) / 10, 3, "twice the time, twice the tokens: 39 or 40");
        assert_eq!(settled(0.002, 0.00001, 256, 100).1, 256, "a fast machine reads as much as is allowed");
    }

    #[test]
    fn a_chunk_is_never_smaller_than_is_worth_a_pass_nor_larger_than_allowed() {
        assert_eq!(settled(1.0, 0.5, 256, 100).1, LEAST);
        assert_eq!(settled(0.0, 0.0, 256, 0).1, LEAST, "no budget");
        assert_eq!(settled(1.0, 0.5, 4, 100).1, 4);
        assert_eq!(Pace::new(256, Duration::from_secs(1)).chunk(true), LEAST, "nothing is known yet");
        assert_eq!(Pace::new(0, Duration::ZERO).chunk(false), 1);
    }

    #[test]
    fn what_a_busy_neighbour_did_is_forgotten_and_short_prompts_say_nothing() {
        let (mut pace, before) = settled(0.1, 0.001, 256, 100);
        pace.passed(before, true, Duration::from_secs(2));
        assert!(pace.chunk(true) < before / 2, "one slow pass is taken seriously");
        for _ in 0..40 {
            let chunk = pace.chunk(true);
            pace.passed(chunk, true, Duration::from_secs_f64(0.1 + 0.001 * chunk as f64));
            pace.passed(1, false, Duration::from_secs(3));
        }
        assert!(pace.chunk(true) > before * 9 / 10);
    }
}
