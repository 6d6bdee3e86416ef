//! A watch that may last for months: the Shiryaev–Roberts e-detector (Shin, Ramdas, Rinaldo).
//!
//! A new sequence of bets starts with every observation, each with a wealth of 1, and their wealths are added up:
//! `M_t = (M_{t−1} + 1)·e_t`. While the null holds, `E[M_t] ≤ t`, so a watch that calls at `M ≥ c` calls on average not
//! before `c` observations, however it is looked at. That is an *average run length*, not a probability: a detector that
//! runs for ever calls some day. A restart mixture ([`super::wealth`]) would never call falsely with probability
//! 1 − α, but its budget runs out with its horizon.

use super::{
    bets::BETS,
    logspace::{log_add_exp, log_mean_exp},
    wealth::{GRID, settled, steps},
};

/// Added-up wealth of a grid of `K` bets, started anew with every observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detector<const K: usize = BETS> {
    /// `None` before the first observation: the sum of no wealth has no finite logarithm.
    ln: Option<[f64; K]>,
}

impl<const K: usize> Default for Detector<K> {
    fn default() -> Self {
        Self { ln: None }
    }
}

impl<const K: usize> Detector<K> {
    /// Takes one observation (a tick's increments together). Time without data is no observation: otherwise silence
    /// alone would call in the end.
    pub fn observe(&mut self, increments: &[f64; K]) {
        let mut ln = self.ln.map_or([0.0; K], |ln| ln.map(|l| log_add_exp(l, 0.0)));
        for (l, i) in ln.iter_mut().zip(increments) {
            *l += i;
        }
        self.ln = Some(ln);
    }

    /// ln M, averaged over the grid; −∞ before the first observation.
    pub fn ln_m(&self) -> f64 {
        self.ln.as_ref().map_or(f64::NEG_INFINITY, |ln| log_mean_exp(ln))
    }

    /// Rounds to the grid of stored states, downwards: a smaller M keeps its average run length.
    pub fn settle(&mut self) {
        self.ln = self.ln.map(|ln| ln.map(settled));
    }

    /// Stored form after [`Detector::settle`]; `None` before the first observation.
    pub fn to_steps(&self) -> Option<[i64; K]> {
        self.ln.map(|ln| ln.map(steps))
    }

    /// From the stored form.
    pub fn from_steps(steps: Option<[i64; K]>) -> Self {
        Self { ln: steps.map(|steps| steps.map(|s| s as f64 / GRID)) }
    }
}
