//! Wealth of a grid of bets: plain products, and the mixture over restarts.

use super::{
    bets::BETS,
    logspace::{log_add_exp, log_mean_exp},
};

/// Steps per unit of log-wealth in a stored state.
pub(super) const GRID: f64 = (1u64 << 20) as f64;

/// Rounds down to a multiple of 2⁻²⁰, so that the state is short as text and comes back bit for bit. Rounding a bettor's
/// wealth down keeps every guarantee; over a thousand ticks it costs .001 of ln E.
pub(super) fn settled(ln: f64) -> f64 {
    (ln * GRID).floor() / GRID
}

/// A settled value in grid steps.
pub(super) fn steps(ln: f64) -> i64 {
    (ln * GRID).floor() as i64
}

/// Wealth of a grid of `K` constant bets, each started with 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wealth<const K: usize = BETS> {
    ln: [f64; K],
}

impl<const K: usize> Default for Wealth<K> {
    fn default() -> Self {
        Self { ln: [0.0; K] }
    }
}

impl<const K: usize> Wealth<K> {
    /// Takes the increments of any number of observations.
    pub fn add(&mut self, increments: &[f64; K]) {
        for (l, i) in self.ln.iter_mut().zip(increments) {
            *l += i;
        }
    }

    /// Ln of the e-value: of the average over the grid.
    pub fn ln_e(&self) -> f64 {
        log_mean_exp(&self.ln)
    }

    /// Log-wealth of each bet.
    pub fn ln_each(&self) -> &[f64; K] {
        &self.ln
    }

    /// Rounds to the grid of stored states.
    pub fn settle(&mut self) {
        self.ln = self.ln.map(settled);
    }

    /// Stored form after [`Wealth::settle`].
    pub fn to_steps(&self) -> [i64; K] {
        self.ln.map(steps)
    }

    /// From the stored form.
    pub fn from_steps(steps: [i64; K]) -> Self {
        Self { ln: steps.map(|s| s as f64 / GRID) }
    }
}

/// Half of the prior starts at the first tick, the rest is spread evenly over a horizon declared beforehand: a defect
/// that appears in the middle is found in about the time that it would have taken from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPrior {
    horizon: u32,
}

impl RestartPrior {
    /// Prior of what starts at the first tick.
    pub const AT_START: f64 = 0.5;

    /// Restarts at ticks 1..=`horizon` (at least 1).
    pub fn new(horizon: u32) -> Self {
        Self { horizon: horizon.max(1) }
    }

    fn share(self) -> f64 {
        (1.0 - Self::AT_START) / f64::from(self.horizon)
    }

    /// Ln of the prior that has not started after `tick`; −∞ once all has.
    fn ln_unused(self, tick: u32) -> f64 {
        (self.share() * f64::from(self.horizon.saturating_sub(tick))).ln()
    }
}

/// Mixture over the start times of a grid of `K` bets. Still an e-process: its prior sums to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Restarting<const K: usize = BETS> {
    ln: [f64; K],
}

impl<const K: usize> Default for Restarting<K> {
    fn default() -> Self {
        Self { ln: [RestartPrior::AT_START.ln(); K] }
    }
}

impl<const K: usize> Restarting<K> {
    /// Ends tick `tick` (from 1, each exactly once), which brought `increments`: a new sequence of bets starts with it.
    pub fn tick(&mut self, prior: RestartPrior, tick: u32, increments: &[f64; K]) {
        let start = if tick <= prior.horizon { prior.share().ln() } else { f64::NEG_INFINITY };
        for (l, i) in self.ln.iter_mut().zip(increments) {
            *l = log_add_exp(*l, start) + i;
        }
    }

    /// Ln of the e-value after `tick` ticks.
    pub fn ln_e(&self, prior: RestartPrior, tick: u32) -> f64 {
        log_add_exp(log_mean_exp(&self.ln), prior.ln_unused(tick))
    }

    /// Rounds to the grid of stored states.
    pub fn settle(&mut self) {
        self.ln = self.ln.map(settled);
    }

    /// Stored form after [`Restarting::settle`].
    pub fn to_steps(&self) -> [i64; K] {
        self.ln.map(steps)
    }

    /// From the stored form.
    pub fn from_steps(steps: [i64; K]) -> Self {
        Self { ln: steps.map(|s| s as f64 / GRID) }
    }
}
