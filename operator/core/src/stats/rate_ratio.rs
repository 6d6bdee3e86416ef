//! Bets per request on two error rates (E2a): is the candidate's rate above `ρ` times stable's plus `δ`?
//!
//! Each failure bets on the arm that it came from. Exact for independent requests, without a normal or rare-event
//! approximation; stable's rate and the arms' sizes may change from tick to tick. Requests of one moment that share their
//! bad luck are *not* independent: then the truth is in [`super::votes`], and this engine is for a fast mode whose
//! precondition ([`super::history`]) was checked.
//!
//! Why a tick's e-value has a mean of at most 1: with `v = e^g` and `u = (ρ_k/ρ)·v`, `n_c·ρ·(u − 1) = n_b·(1 − v)`, so
//! `E[u^s_c·v^s_b] ≤ exp(n_c·θ_c·(u − 1) + n_b·θ_b·(v − 1)) ≤ exp(n_c·δ·(u − 1))` under `θ_c ≤ ρ·θ_b + δ`, and the last
//! term of the increment takes that away.

use super::bets::{BETS, Increments, NOTHING};

/// Bets on "θ_c is above ρ·θ_b + δ", or on "is below".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateRatio {
    rho: f64,
    delta: f64,
    /// Alternatives ρ_k / ρ.
    ratios: Increments,
}

impl RateRatio {
    /// The claim "the candidate fails more often".
    ///
    /// # Panics
    /// If not `rho > 0` and `delta ≥ 0`, both finite.
    pub fn worse(rho: f64, delta: f64) -> Self {
        Self::against(rho, delta, [1.5, 2.0, 3.0, 5.0, 8.0, 15.0, 40.0, 200.0])
    }

    /// The claim "the candidate does not fail more often".
    ///
    /// # Panics
    /// If not `rho > 0` and `delta ≥ 0`, both finite.
    pub fn not_worse(rho: f64, delta: f64) -> Self {
        Self::against(rho, delta, [0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.02])
    }

    fn against(rho: f64, delta: f64, ratios: Increments) -> Self {
        assert!(rho > 0.0 && rho.is_finite() && delta >= 0.0 && delta.is_finite(), "a margin is finite, its ratio > 0");
        Self { rho, delta, ratios }
    }

    /// Increments of one tick; each arm as `(failures, requests)` over the same interval. More failures than requests
    /// count as all of them.
    pub fn increments(&self, candidate: (u64, u64), stable: (u64, u64)) -> Increments {
        let ((s_c, n_c), (s_b, n_b)) = (candidate, stable);
        if n_c == 0 || n_b == 0 {
            return NOTHING;
        }
        let (s_c, s_b) = (s_c.min(n_c) as f64, s_b.min(n_b) as f64);
        let (n_c, n_b) = (n_c as f64, n_b as f64);
        let mut increments = [0.0; BETS];
        for (increment, ratio) in increments.iter_mut().zip(self.ratios) {
            let g = (self.rho * n_c + n_b).ln() - (self.rho * ratio * n_c + n_b).ln();
            let ln_u = ratio.ln() + g;
            *increment = s_c * ln_u + s_b * g - n_c * self.delta * ln_u.exp_m1();
        }
        increments
    }
}
