//! Sequential statistics: e-processes for bounded means, shares and block votes; restart mixtures; histograms.
//!
//! An e-process E for a null hypothesis is a bettor's wealth that cannot grow on average while the null is true:
//! `P(E ever ≥ 1/α) ≤ α`, however often one looks (Ville). Everything here works with ln E. Rejecting a *rollback* null
//! ("acceptable") proves a candidate worse than its margin; rejecting a *promotion* null ("unacceptable") proves it
//! within the margin.
//!
//! | module | engine |
//! |---|---|
//! | [`bets`] | constant bets on a bounded mean or a share (E1) |
//! | [`wealth`] | plain products of bets, and the mixture over restarts |
//! | [`votes`] | one bounded, arm-antisymmetric number per block of live requests (E3) |
//! | [`histogram`] | sparse latency histograms, margins as bucket shifts, quantile edges |
//! | [`thinning`] | exact random subsamples of counts |
//! | [`counters`] | deltas of a pod's cumulative counters |
//! | [`intervals`] | confidence sequences, for display |
//! | [`forecast`] | samples that a decision will need, for display |

pub mod bets;
pub mod counters;
pub mod forecast;
pub mod histogram;
pub mod intervals;
pub mod logspace;
pub mod thinning;
pub mod votes;
pub mod wealth;
