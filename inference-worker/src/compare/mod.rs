//! Comparison with peers: probe draws, teacher-forced scores, latency pairs, and the job that runs them.

pub mod similarity;
