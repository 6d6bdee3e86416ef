//! The next token from a row of logits.

use super::job::Likelihood;
use super::random::Random;
use super::softmax::{Entry, Row, Weight, nucleus, pick};

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
        let row = Row::new(logits);
        let broken = row.broken();
        if broken > 0 || logits.is_empty() {
            return Err(NonFinite(broken));
        }
        if self.sampling.temperature <= 0.0 || self.sampling.top_k == 1 {
            return Ok(row.first());
        }
        Ok(self.draw(&row, logits.len()))
    }

    fn draw(&mut self, row: &Row<'_>, vocabulary: usize) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        let weight = Weight { best: row.best(), temperature, floor: min_p };
        let share = f64::from(top_p);
        let chance = self.random.unit();
        // `top_p` is a share of what `top_k` left, so with both the set of `top_k` comes first.
        let kept = if top_k == 0 || top_k >= vocabulary {
            let masses = row.masses(weight);
            let total: f64 = masses.iter().sum();
            if top_p >= 1.0 {
                return row.at(weight, &masses, chance * total);
            }
            // All tokens that weigh less than this weigh less together than what `top_p` leaves out, so none of them is
            // needed; half of it is safe from rounding.
            let least = 0.5 * (1.0 - share) * total / vocabulary as f64;
            let mut kept = row.heavier(weight, least as f32);
            nucleus(&mut kept, share * total);
            kept
        } else {
            let mut kept = row.largest(top_k);
            // Whatever order the selection leaves, a seed draws the same token.
            kept.sort_unstable_by_key(|entry| entry.token);
            for entry in &mut kept {
                entry.value = weight.of(entry.value);
            }
            kept.retain(|entry| entry.value > 0.0);
            if top_p < 1.0 {
                let total = mass(&kept);
                nucleus(&mut kept, share * total);
            }
            kept
        };
        let target = chance * mass(&kept);
        pick(kept.into_iter(), target)
    }
}

fn mass(entries: &[Entry]) -> f64 {
    entries.iter().map(|entry| f64::from(entry.value)).sum()
}

/// How likely the row holds `token`, and its `count` most likely tokens.
pub(super) fn likelihood(logits: &[f32], token: u32, count: usize) -> Likelihood {
    let row = Row::new(logits);
    let best = row.best();
    let total: f64 = row.masses(Weight { best, temperature: 1.0, floor: 0.0 }).iter().sum();
    let log = |x: f32| (f64::from(x - best) - total.ln()) as f32;
    let mut top = row.largest(count);
    top.sort_unstable_by(|a, b| a.falling(*b));
    let top = top.into_iter().map(|entry| (entry.token, log(entry.value))).collect();
    Likelihood { chosen: log(logits[token as usize]), best: log(best), top }
}

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

    /// Probabilities by the definition: temperature, `min_p`, `top_k`, `top_p` of what is left, in f64 and by a sort.
    fn exact(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weigh = |x: f32| (f64::from(x - best) / f64::from(sampling.temperature)).exp();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let mut weights = vec![0.0; logits.len()];
        let count = if sampling.top_k == 0 { logits.len() } else { sampling.top_k };
        for &at in order.iter().take(count) {
            let weight = weigh(logits[at]);
            weights[at] = if weight < f64::from(sampling.min_p) { 0.0 } else { weight };
        }
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        for &at in &order {
            if sampling.top_p < 1.0 && reached >= f64::from(sampling.top_p) * total {
                weights[at] = 0.0;
            }
            reached += weights[at];
        }
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    }

    /// Pearson's statistic of `draws` tokens against the exact probabilities, rare tokens taken together, and its limit:
    /// what chi-square exceeds with a probability of 1e-9 (Wilson and Hilferty's approximation, whose error there is below
    /// a hundredth of the limit). Twenty rows of options: the test fails by chance once in 5e7 runs, and its seed is fixed.
    fn chi_square(sampling: Sampling, logits: &[f32], draws: usize) -> (f64, f64) {
        let wanted = exact(sampling, logits);
        let mut sampler = Sampler::new(Sampling { seed: Some(5), ..sampling });
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.next(logits).unwrap() as usize] += 1.0;
        }
        let (mut statistic, mut cells, mut rare) = (0.0, 0, (0.0, 0.0));
        let mut add = |found: f64, expected: f64| {
            statistic += (found - expected).powi(2) / expected;
            cells += 1;
        };
        for (found, share) in counts.iter().zip(&wanted) {
            let expected = share * draws as f64;
            assert!(expected > 0.0 || *found == 0.0, "a token that is cut off was drawn");
            if expected >= 10.0 {
                add(*found, expected);
            } else {
                rare = (rare.0 + found, rare.1 + expected);
            }
        }
        if rare.1 >= 10.0 {
            add(rare.0, rare.1);
        }
        let freedom = f64::from((cells - 1).max(1));
        let spread = 2.0 / (9.0 * freedom);
        (statistic, 1.02 * freedom * (1.0 - spread + 5.998 * spread.sqrt()).powi(3))
    }

    #[test]
    fn draws_have_the_exact_distribution() {
        let mut random = Random::from_seed(3);
        let mut normal = || (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        let flat: Vec<f32> = (0..1000).map(|_| normal() as f32).collect();
        let peaked: Vec<f32> = (0..1000).map(|_| 3.0 * normal() as f32).collect();
        let equal = vec![1.5; 300];
        // As a form of JSON masks all but a few tokens.
        let masked: Vec<f32> = (0..600).map(|at| if at % 97 == 3 { at as f32 / 200.0 } else { f32::MIN }).collect();
        let all = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        for logits in [&flat, &peaked, &equal, &masked] {
            for sampling in [
                all,
                Sampling { temperature: 0.6, top_p: 0.9, ..all },
                Sampling { top_k: 50, ..all },
                Sampling { top_k: 40, top_p: 0.5, ..all },
                Sampling { min_p: 0.05, top_p: 0.95, temperature: 1.7, ..all },
            ] {
                let (statistic, limit) = chi_square(sampling, logits, 20_000);
                assert!(statistic <= limit, "{sampling:?} of {}: {statistic} is above {limit}", logits.len());
            }
        }
    }

    #[test]
    fn the_edges_of_the_options_take_the_likeliest() {
        let logits: Vec<f32> = (0..700).map(|at| if at == 400 { 3.0 } else { (at % 5) as f32 / 5.0 }).collect();
        let all = Sampling { temperature: 1.0, seed: Some(1), ..Sampling::GREEDY };
        for sampling in [
            Sampling { top_k: 1, ..all },
            Sampling { top_p: 1e-6, ..all },
            Sampling { top_p: 1e-6, top_k: 10, ..all },
            Sampling { min_p: 1.0, ..all },
            Sampling { temperature: 1e-3, ..all },
            Sampling { temperature: f32::from_bits(1), ..all },
        ] {
            let mut sampler = Sampler::new(sampling);
            assert!((0..200).all(|_| sampler.next(&logits) == Ok(400)), "{sampling:?}");
        }
        let mut only = vec![f32::MIN; 700];
        only[699] = -40.0;
        let mut sampler = Sampler::new(Sampling { temperature: 2.0, ..all });
        assert!((0..200).all(|_| sampler.next(&only) == Ok(699)), "what is masked is never drawn");
        let mut first = Sampler::new(Sampling { top_p: 1e-6, ..all });
        assert_eq!(first.next(&[2.0; 700]), Ok(0), "of equals the lowest token");
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
