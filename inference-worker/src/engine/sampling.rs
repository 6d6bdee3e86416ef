//! The next token from a row of logits.

use super::job::Likelihood;
use super::random::Random;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 = greedy (the most likely token, the first on ties); otherwise logits are divided by it.
    pub temperature: f32,
    /// The smallest set of tokens whose probability reaches this share is kept, 0 < p ≤ 1.
    pub top_p: f32,
    /// Only this many most likely tokens are kept; 0 = all.
    pub top_k: usize,
    /// Tokens less likely than this share of the most likely one's probability are dropped; 0 = none.
    pub min_p: f32,
    /// Makes the answer repeatable; `None` draws a seed.
    pub seed: Option<u64>,
}

impl Sampling {
    /// The most likely token each time.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: None };
}

/// One request's sampler: its settings and the state of its random numbers.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: Random,
}

/// The row of logits has this many entries that are NaN or infinite: there is no next token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NonFinite(pub(crate) u64);

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        let random = sampling.seed.map_or_else(Random::from_entropy, Random::from_seed);
        Self { sampling, random }
    }

    /// Chooses a token, an index into `logits`.
    pub(crate) fn next(&mut self, logits: &[f32]) -> Result<u32, NonFinite> {
        let mut best = 0;
        let mut broken = 0;
        for (i, &x) in logits.iter().enumerate() {
            broken += u64::from(!x.is_finite());
            if x > logits[best] {
                best = i;
            }
        }
        if broken > 0 || logits.is_empty() {
            return Err(NonFinite(broken));
        }
        if self.sampling.temperature <= 0.0 {
            return Ok(best as u32);
        }
        Ok(self.draw(logits, logits[best]))
    }

    fn draw(&mut self, logits: &[f32], top: f32) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        let weight = |x: f32| {
            let weight = f64::from((x - top) / temperature).exp();
            if weight < f64::from(min_p) { 0.0 } else { weight }
        };
        if top_p >= 1.0 && (top_k == 0 || top_k >= logits.len()) {
            let total: f64 = logits.iter().map(|&x| weight(x)).sum();
            return pick(logits.iter().map(|&x| weight(x)).enumerate(), self.random.unit() * total);
        }
        // A heap gives the most likely tokens in order without sorting a vocabulary of 128 000 for each token.
        let mut heap: BinaryHeap<Entry> =
            logits.iter().enumerate().map(|(i, &logit)| Entry { logit, token: i }).collect();
        let limit = if top_k == 0 { logits.len() } else { top_k };
        let mut kept: Vec<(usize, f64)> = Vec::new();
        let mut mass = 0.0;
        // `top_p` is a share of what `top_k` left, so with both the set of `top_k` comes first.
        let total: f64 = if top_k == 0 { logits.iter().map(|&x| weight(x)).sum() } else { f64::INFINITY };
        while kept.len() < limit && mass < f64::from(top_p) * total {
            let Some(entry) = heap.pop() else { break };
            mass += weight(entry.logit);
            kept.push((entry.token, weight(entry.logit)));
        }
        if top_k > 0 && top_p < 1.0 {
            let wanted = f64::from(top_p) * mass;
            let mut reached = 0.0;
            let enough = kept.iter().position(|(_, w)| {
                reached += w;
                reached >= wanted
            });
            kept.truncate(enough.map_or(kept.len(), |i| i + 1));
            mass = kept.iter().map(|(_, w)| w).sum();
        }
        pick(kept.into_iter(), self.random.unit() * mass)
    }
}

/// How likely the row holds `token`, and its `count` most likely tokens.
pub(super) fn likelihood(logits: &[f32], token: u32, count: usize) -> Likelihood {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from(x - best).exp()).sum();
    let log = |x: f32| (f64::from(x - best) - total.ln()) as f32;
    let mut top: BinaryHeap<Reverse<Entry>> = BinaryHeap::with_capacity(count + 1);
    for (token, &logit) in logits.iter().enumerate() {
        if top.len() == count && top.peek().is_none_or(|least| least.0.logit >= logit) {
            continue;
        }
        top.push(Reverse(Entry { logit, token }));
        if top.len() > count {
            top.pop();
        }
    }
    let top = top.into_sorted_vec().into_iter().map(|Reverse(entry)| (entry.token as u32, log(entry.logit))).collect();
    Likelihood { chosen: log(logits[token as usize]), best: log(best), top }
}

/// The first token at which the running sum exceeds `target`; rounding at the very end falls to the last one.
fn pick(weights: impl Iterator<Item = (usize, f64)>, target: f64) -> u32 {
    let mut sum = 0.0;
    let mut last = 0;
    for (token, weight) in weights {
        if weight > 0.0 {
            last = token;
        }
        sum += weight;
        if sum > target {
            return token as u32;
        }
    }
    last as u32
}

/// Ordered by logit, then by lower token first.
struct Entry {
    logit: f32,
    token: usize,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(Sampling { seed: Some(11), ..sampling });
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.next(logits).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn close(found: &[f64], wanted: &[f64]) {
        // sd of a share of 20 000 draws is at most .0035.
        assert!(found.iter().zip(wanted).all(|(f, w)| (f - w).abs() < 0.015), "{found:?} is not near {wanted:?}");
    }

    #[test]
    fn temperature_zero_takes_the_first_maximum() {
        assert_eq!(Sampler::new(Sampling::GREEDY).next(&[0.5, 2.0, 2.0]), Ok(1));
    }

    #[test]
    fn shares_are_those_of_the_softmax_after_temperature_top_k_and_top_p() {
        let ln = |p: f32| p.ln();
        let logits = [ln(0.1), ln(0.4), ln(0.2), ln(0.3)];
        let all = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        close(&frequencies(all, &logits), &[0.1, 0.4, 0.2, 0.3]);
        // Temperature 1/2 squares the odds: 1, 16, 4, 9 of 30.
        close(&frequencies(Sampling { temperature: 0.5, ..all }, &logits), &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 0.3]);
        close(&frequencies(Sampling { top_k: 2, ..all }, &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // .4 + .3 = .7 < .8: the third is needed to reach it.
        close(&frequencies(Sampling { top_p: 0.8, ..all }, &logits), &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        // Of the three that top-k leaves (.9), 3/4 is .675: two suffice.
        close(&frequencies(Sampling { top_k: 3, top_p: 0.75, ..all }, &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // Half of .4 is .2, which only .1 misses; three quarters of it are .3.
        close(&frequencies(Sampling { min_p: 0.49, ..all }, &logits), &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        close(&frequencies(Sampling { min_p: 0.74, ..all }, &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        close(&frequencies(Sampling { min_p: 0.49, top_k: 2, ..all }, &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    }

    #[test]
    fn likelihoods_are_logarithms_of_the_softmax_in_falling_order() {
        let probabilities = [0.1_f32, 0.4, 0.2, 0.3];
        let logits = probabilities.map(|p| p.ln() + 7.0);
        let said = likelihood(&logits, 2, 3);
        assert!((said.chosen - 0.2_f32.ln()).abs() < 1e-6 && (said.best - 0.4_f32.ln()).abs() < 1e-6);
        assert_eq!(said.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3, 2]);
        assert!(said.top.iter().all(|(token, log)| (log - probabilities[*token as usize].ln()).abs() < 1e-6));
        assert!(likelihood(&logits, 0, 0).top.is_empty());
        assert_eq!(likelihood(&logits, 0, 9).top.len(), 4);
        let tied: Vec<u32> = likelihood(&[1.0; 5], 0, 2).top.into_iter().map(|(token, _)| token).collect();
        assert_eq!(tied, [0, 1], "the lower token first");
    }

    #[test]
    fn a_seed_repeats_and_broken_rows_are_counted() {
        let warm = Sampling { temperature: 1.0, top_p: 0.9, seed: Some(3), ..Sampling::GREEDY };
        let run = |sampling| {
            let mut sampler = Sampler::new(sampling);
            (0..32).map(|_| sampler.next(&[0.0, 0.1, 0.2, 0.3]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(warm), run(warm));
        assert_ne!(run(warm), run(Sampling { seed: Some(4), ..warm }));
        assert_eq!(Sampler::new(Sampling::GREEDY).next(&[1.0, f32::NAN, f32::INFINITY]), Err(NonFinite(2)));
        assert_eq!(Sampler::new(warm).next(&[f32::NEG_INFINITY, 0.0]), Err(NonFinite(1)));
    }
}
