//! How sure a model is of its answer.
//!
//! Confidence in a token is the probability that the fp16 baseline would choose the same one (greedily), given how
//! likely the model holds its own best token. `calibrate` measures that on probes and writes it beside the model; here
//! it is looked up. Confidence in an answer is the mean over its first tokens: the share of them that the baseline would
//! have chosen as well.

use crate::model::files;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The calibration's name in a model directory.
pub const CONFIDENCE_FILE: &str = "confidence.json";
/// Bins of a calibration; each holds about as many positions.
const BINS: usize = 20;

/// Why a calibration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfidenceError {
    /// It is not there.
    #[error("cannot read {}; make it with `inference-worker calibrate`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} is not a calibration; make it again with `inference-worker calibrate`", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        #[source]
        source: serde_json::Error,
    },
    /// Its numbers break a rule.
    #[error("{}: `bins` {problem}; make it again with `inference-worker calibrate`", path.display())]
    Bins {
        /// The file.
        path: PathBuf,
        /// The rule.
        problem: &'static str,
    },
}

/// A calibration: agreement with the baseline by the probability of the model's best token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confidence {
    bins: Vec<Bin>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bin {
    /// Probabilities up to this one; the last bin's is 1.
    up_to: f64,
    /// Share of its positions at which the baseline's best token was the same; never falls from bin to bin.
    agreement: f64,
    /// Positions that it was measured on.
    positions: usize,
}

impl Confidence {
    /// Reads the calibration of a model directory.
    ///
    /// # Errors
    /// [`ConfidenceError`] with the file and the remedy.
    pub fn load(dir: &Path) -> Result<Self, ConfidenceError> {
        let path = dir.join(CONFIDENCE_FILE);
        let bytes = files::read(&path, files::JSON_BYTES)
            .map_err(|source| ConfidenceError::Read { path: path.clone(), source })?;
        let found: Self =
            serde_json::from_slice(&bytes).map_err(|source| ConfidenceError::Json { path: path.clone(), source })?;
        let problem = |problem| Err(ConfidenceError::Bins { path: path.clone(), problem });
        if found.bins.last().is_none_or(|bin| bin.up_to != 1.0) {
            return problem("must end at 1");
        }
        if found.bins.iter().any(|bin| !(0.0..=1.0).contains(&bin.up_to) || !(0.0..=1.0).contains(&bin.agreement)) {
            return problem("must hold probabilities");
        }
        if !found.bins.windows(2).all(|pair| pair[0].up_to < pair[1].up_to && pair[0].agreement <= pair[1].agreement) {
            return problem("must rise");
        }
        Ok(found)
    }

    /// A calibration from positions: the probability of the model's best token, and whether the baseline's was the
    /// same. `None` without positions.
    ///
    /// Bins hold about as many positions each; where agreement falls from one to the next, both become one (isotonic
    /// regression). A bin says (agreements + 1) / (positions + 2), so that a few agreements are no certainty.
    pub fn fit(mut positions: Vec<(f64, bool)>) -> Option<Self> {
        positions.sort_by(|a, b| a.0.total_cmp(&b.0));
        let size = positions.len().div_ceil(BINS).max(1);
        // Edge, agreements, positions.
        let mut pools: Vec<(f64, usize, usize)> = Vec::new();
        for part in positions.chunks(size) {
            let edge = part.last()?.0;
            let agreed = part.iter().filter(|(_, same)| *same).count();
            match pools.last_mut() {
                // Equal probabilities are in one bin.
                Some(last) if last.0 >= edge => *last = (last.0, last.1 + agreed, last.2 + part.len()),
                _ => pools.push((edge, agreed, part.len())),
            }
            while let [.., before, last] = &pools[..]
                && share(before) > share(last)
            {
                let joined = (last.0, before.1 + last.1, before.2 + last.2);
                pools.truncate(pools.len() - 2);
                pools.push(joined);
            }
        }
        pools.last_mut()?.0 = 1.0;
        let bins = pools.iter().map(|pool| Bin { up_to: pool.0.min(1.0), agreement: share(pool), positions: pool.2 });
        Some(Self { bins: bins.collect() })
    }

    /// Confidence in an answer whose best tokens had these logarithms of probability; `None` without any.
    pub fn of_answer(&self, logs: &[f32]) -> Option<f32> {
        let sum: f64 = logs.iter().map(|log| self.of_token(f64::from(*log).exp())).sum();
        (!logs.is_empty()).then(|| (sum / logs.len() as f64) as f32)
    }

    fn of_token(&self, probability: f64) -> f64 {
        let bin = self.bins.iter().find(|bin| probability <= bin.up_to);
        bin.or(self.bins.last()).map_or(0.0, |bin| bin.agreement)
    }
}

/// Agreement at the least and the most likely best tokens.
impl std::fmt::Display for Confidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let positions: usize = self.bins.iter().map(|bin| bin.positions).sum();
        let agreement = |bin: Option<&Bin>| bin.map_or(0.0, |bin| bin.agreement);
        let (low, high) = (agreement(self.bins.first()), agreement(self.bins.last()));
        write!(f, "{positions} positions, agreement from {low:.3} to {high:.3}")
    }
}

fn share((_, agreed, positions): &(f64, usize, usize)) -> f64 {
    (*agreed as f64 + 1.0) / (*positions as f64 + 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::Random;
    use std::fs;

    #[test]
    fn a_calibration_finds_the_agreement_that_there_is() {
        // Agreement is the square of the probability.
        let mut random = Random::from_seed(4);
        let positions: Vec<(f64, bool)> = (0..40_000)
            .map(|_| {
                let p = random.unit();
                (p, random.unit() < p * p)
            })
            .collect();
        let fitted = Confidence::fit(positions).unwrap();
        for p in [0.1_f64, 0.35, 0.6, 0.85, 0.99] {
            // A bin of 2000 has an sd of at most .011 and half a width of .025, times the slope of at most 2.
            let found = fitted.of_answer(&[p.ln() as f32]).unwrap();
            assert!((f64::from(found) - p * p).abs() < 0.1, "{p}: {found}");
        }
        let mean = fitted.of_answer(&[0.1_f32.ln(), 0.99_f32.ln()]).unwrap();
        let both = fitted.of_answer(&[0.1_f32.ln()]).unwrap() + fitted.of_answer(&[0.99_f32.ln()]).unwrap();
        assert!((mean - both / 2.0).abs() < 1e-6);
        assert_eq!(fitted.of_answer(&[]), None);
    }

    #[test]
    fn agreement_never_falls_and_few_positions_prove_little() {
        let falling: Vec<(f64, bool)> = (0..100).map(|i| (f64::from(i) / 100.0, i < 50)).collect();
        let fitted = Confidence::fit(falling).unwrap();
        assert!(fitted.bins.windows(2).all(|pair| pair[0].agreement <= pair[1].agreement));
        assert!((fitted.of_answer(&[0.0]).unwrap() - 0.5).abs() < 0.02);
        let few = Confidence::fit(vec![(0.9, true), (0.9, true)]).unwrap();
        assert_eq!(few.of_answer(&[0.0]), Some(0.75));
        assert_eq!(Confidence::fit(Vec::new()), None);
    }

    #[test]
    fn a_file_is_read_back_and_a_bad_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Confidence::load(dir.path()), Err(ConfidenceError::Read { .. })));
        let fitted = Confidence::fit((0..50).map(|i| (f64::from(i) / 50.0, i > 20)).collect()).unwrap();
        let write = |text: &str| fs::write(dir.path().join(CONFIDENCE_FILE), text).unwrap();
        write(&serde_json::to_string(&fitted).unwrap());
        assert_eq!(Confidence::load(dir.path()).unwrap(), fitted);
        write("{}");
        assert!(matches!(Confidence::load(dir.path()), Err(ConfidenceError::Json { .. })));
        for bins in [
            "[]",
            r#"[{"upTo": 0.5, "agreement": 0.5, "positions": 9}]"#,
            r#"[{"upTo": 0.5, "agreement": 0.9, "positions": 9}, {"upTo": 1.0, "agreement": 0.5, "positions": 9}]"#,
            r#"[{"upTo": 1.0, "agreement": 1.5, "positions": 9}]"#,
        ] {
            write(&format!("{{\"bins\": {bins}}}"));
            assert!(matches!(Confidence::load(dir.path()), Err(ConfidenceError::Bins { .. })), "{bins}");
        }
    }
}
