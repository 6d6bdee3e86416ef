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
//! | [`rate_ratio`] | bets per request on two error rates (E2a) |
//! | [`label_odds`] | bets per request or user on shares and histograms (E2b, E2c) |
//! | [`wealth`] | plain products of bets, and the mixture over restarts |
//! | [`detector`] | the watch that may last for months (SR e-detector) |
//! | [`votes`] | one bounded, arm-antisymmetric number per block of live requests (E3) |
//! | [`histogram`] | sparse latency histograms, margins as bucket shifts, quantile edges |
//! | [`thinning`] | exact random subsamples of counts |
//! | [`counters`] | deltas of a pod's cumulative counters |
//! | [`intervals`] | confidence sequences, for display |
//! | [`asymptotic`] | confidence sequences for means without known bounds |
//! | [`sample_ratio`] | do users arrive in the arms as assigned? |
//! | [`mann_whitney`] | Kayenta's verdict, for comparison |
//! | [`forecast`] | samples that a decision will need, for display |

pub mod asymptotic;
pub mod bets;
pub mod counters;
pub mod detector;
pub mod forecast;
pub mod histogram;
pub mod intervals;
pub mod label_odds;
pub mod logspace;
pub mod mann_whitney;
pub mod rate_ratio;
pub mod sample_ratio;
pub mod thinning;
pub mod votes;
pub mod wealth;
