//! Bets on which arm a request or a user came from (E2b, E2c), given what it was like.
//!
//! If slow requests come from the candidate more often than its share of the traffic says, it is slower. The bet at each
//! level of an outcome is a fixed function ℓ that does not fall with the outcome; under "the candidate is stochastically
//! at most stable" the tick's e-value has a mean of at most 1, whatever stable's distribution is in that tick, so that
//! load which changes over the day does no harm. Exact for independent units: for requests that come in bursts use
//! [`super::votes`]. Users who are assigned by lot are independent.

use super::{
    bets::{BETS, Increments},
    histogram::{CELLS, Cells},
};

/// Factors on the odds of stable's guessed rate: from 1.15 to 12, evenly in logarithms.
fn factors() -> Increments {
    std::array::from_fn(|i| 1.15 * (12.0f64 / 1.15).powf(i as f64 / (BETS - 1) as f64))
}

/// Factors of a two-sided test, from 1.02 to 1.8: differences of a few percent matter there.
fn narrow() -> Increments {
    std::array::from_fn(|i| 1.02 * (1.8f64 / 1.02).powf(i as f64 / (BETS - 1) as f64))
}

/// Bets on the share of units with some property (E2b), `K` alternatives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Odds<const K: usize = BETS> {
    guess: f64,
    factors: [f64; K],
}

impl Odds {
    /// The claim "the candidate's share is larger". `guess` is what is known of stable's share *before* the data that are
    /// tested; a bad guess costs time, never validity. Outside [1e-9, 1 − 1e-9] it is moved there, NaN is ½.
    pub fn larger(guess: f64) -> Self {
        Self { guess: within(guess), factors: factors() }
    }

    /// The claim "the candidate's share is smaller"; see [`Odds::larger`].
    pub fn smaller(guess: f64) -> Self {
        Self { guess: within(guess), factors: factors().map(f64::recip) }
    }
}

impl Odds<{ 2 * BETS }> {
    /// The claim "the shares differ": the average of both directions; see [`Odds::larger`].
    pub fn different(guess: f64) -> Self {
        let up = narrow();
        let factors = std::array::from_fn(|k| if k < BETS { up[k] } else { up[k - BETS].recip() });
        Self { guess: within(guess), factors }
    }
}

impl<const K: usize> Odds<K> {
    /// Increments of one tick; each arm as `(units with the property, units)`.
    pub fn increments(&self, candidate: (u64, u64), stable: (u64, u64)) -> [f64; K] {
        let ((s_c, n_c), (s_b, n_b)) = (candidate, stable);
        if n_c == 0 || n_b == 0 {
            return [0.0; K];
        }
        let (s_c, s_b) = (s_c.min(n_c) as f64, s_b.min(n_b) as f64);
        let (n_c, n_b) = (n_c as f64, n_b as f64);
        let n = n_c + n_b;
        let (p_b, q_b) = (self.guess, 1.0 - self.guess);
        self.factors.map(|kappa| {
            let scale = q_b + kappa * p_b;
            let (p_c, q_c) = (kappa * p_b / scale, q_b / scale);
            let (p, q) = ((n_c * p_c + n_b * p_b) / n, (n_c * q_c + n_b * q_b) / n);
            s_c * (p_c / p).ln() + (n_c - s_c) * (q_c / q).ln() + s_b * (p_b / p).ln() + (n_b - s_b) * (q_b / q).ln()
        })
    }
}

fn within(guess: f64) -> f64 {
    if guess.is_nan() { 0.5 } else { guess.clamp(1e-9, 1.0 - 1e-9) }
}

/// Number of bets of [`Dominance`].
pub const VIEWS: usize = 15;

/// Bets on two histograms (E2c): tilts over the ranks see the body, steps see the tails.
#[derive(Clone, Debug, PartialEq)]
pub struct Dominance {
    ell: [[f64; CELLS]; VIEWS],
}

/// What the bets of [`Dominance`] look at.
const NAMES: [&str; VIEWS] =
    ["body", "body", "body", "body", "body", "p90", "p90", "p90", "p95", "p95", "p95", "p99", "p99", "p99", "p99"];

impl Dominance {
    /// The bets that fit a history of stable, in cells that both arms go through; `None` without observations. The history
    /// ends before the first tick that is tested.
    pub fn of(history: &Cells) -> Option<Self> {
        let total: f64 = history.iter().map(|&n| n as f64).sum();
        if total == 0.0 {
            return None;
        }
        let shares = history.map(|n| n as f64 / total);
        let mut ranks = [0.0; CELLS];
        let mut upto = [0.0; CELLS];
        let mut sum = 0.0;
        for j in 0..CELLS {
            ranks[j] = sum + shares[j] / 2.0;
            sum += shares[j];
            upto[j] = sum;
        }
        let tilt = |eta: f64| ranks.map(|u| (eta * u).exp());
        let step = |p: f64, times: f64| {
            // Cells above the first that reaches the quantile; sums of shares are not exact.
            let edge = upto.iter().position(|&u| u >= p - 1e-12).unwrap_or(CELLS - 1);
            std::array::from_fn(|j| if j > edge { times } else { 1.0 })
        };
        let mut ell: [[f64; CELLS]; VIEWS] = [[1.0; CELLS]; VIEWS];
        let tilts = [0.3, 0.6, 1.2, 2.4, 4.8].map(tilt);
        let steps = [(0.9, 1.5), (0.9, 3.0), (0.9, 8.0), (0.95, 1.5), (0.95, 3.0), (0.95, 8.0), (0.99, 1.5)];
        let more = [(0.99, 3.0), (0.99, 8.0), (0.99, 20.0)];
        let made = tilts.into_iter().chain(steps.into_iter().chain(more).map(|(p, times)| step(p, times)));
        for (to, from) in ell.iter_mut().zip(made) {
            // Mean 1 over the history: without it a bet would be as valid, but weaker.
            let mean: f64 = from.iter().zip(&shares).map(|(l, p)| l * p).sum();
            *to = from.map(|l| l / mean);
        }
        Some(Self { ell })
    }

    /// The bets ℓ, one row per view: positive, none falls with the cell.
    pub fn ell(&self) -> &[[f64; CELLS]; VIEWS] {
        &self.ell
    }

    /// Increments of one tick: cells of the candidate, shifted down by the margin, and of stable.
    pub fn increments(&self, candidate: &Cells, stable: &Cells) -> [f64; VIEWS] {
        let total = |cells: &Cells| cells.iter().map(|&n| n as f64).sum::<f64>();
        let (n_c, n_b) = (total(candidate), total(stable));
        let mut increments = [0.0; VIEWS];
        if n_c == 0.0 || n_b == 0.0 {
            return increments;
        }
        for (increment, ell) in increments.iter_mut().zip(&self.ell) {
            for ((&c, &b), &l) in candidate.iter().zip(stable).zip(ell) {
                if c > 0 || b > 0 {
                    let g = ((n_c + n_b) / (n_c * l + n_b)).ln();
                    *increment += c as f64 * (l.ln() + g) + b as f64 * g;
                }
            }
        }
        increments
    }

    /// What a view looks at: `body`, `p90`, `p95` or `p99`; the view with the largest wealth names the reason.
    pub fn name(view: usize) -> &'static str {
        NAMES.get(view).copied().unwrap_or_default()
    }
}
