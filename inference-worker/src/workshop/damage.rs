//! Candidates with real faults: made from a healthy packed model, and kept only if the fault shows on the probes.

use super::export::{StoredTensor, read_tensors, write_json, write_tensors};
use super::probing::{Baseline, Loaded, Similarity, TAIL};
use super::progress::Progress;
use super::staging::Staging;
use super::{Outcome, WorkshopError, files};
use crate::model::LayerPrecision;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What to break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The four 2-bit fields of every packed byte in reverse order: a conversion with the wrong bit order. Gross.
    Order,
    /// A wrong rotary base: a configuration error. The mean passes, the tail does not; the base is searched for, below
    /// the right one and, if none there fits, above.
    Rope,
    /// One projection has lost its weights. The mean passes, the tail does not.
    Zero {
        /// Part of the name of exactly one packed tensor; without it, the output projections are tried.
        tensor: Option<String>,
    },
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Damage {
    /// Directory of the fp16 model that candidates are compared with.
    pub baseline: PathBuf,
    /// Directory of the healthy packed model.
    pub model: PathBuf,
    /// Probe prompts, JSON lines.
    pub probes: PathBuf,
    /// What to break.
    pub fault: Fault,
    /// Tokens of the baseline's continuations: `probes.maxTokens` of the gate that is to see the fault.
    pub tokens: usize,
    /// Directory to make.
    pub out: PathBuf,
    /// Threads for measuring.
    pub threads: usize,
}

/// What was made; damage.json of the new directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// SHA-256 over fault, tokens, baseline, model and probes: an equal order need not be made again.
    pub order_hash: String,
    /// `order`, `rope` or `zero`.
    pub fault: String,
    /// What was changed.
    pub change: String,
    /// Tokens of the continuations on which both were measured.
    pub tokens: usize,
    /// The model before.
    pub healthy: Similarity,
    /// The model after.
    pub damaged: Similarity,
    /// What a rollout with a gate of .95 and .90 over as many tokens will show.
    pub expect: String,
    /// SHA-256 of every other file, by path.
    pub files: BTreeMap<String, String>,
}

/// A rope search needs this many probes for its probabilities to mean something.
const ROPE_PROBES: usize = 200;
/// Where a wrong rope base must land. A gate of .95 for the mean must pass it, and one of .90 for the 5th percentile must
/// refuse it soon: at P = .10 only two of three such faults are caught within 60 ticks, above .25 the fault is gross.
#[derive(Clone, Copy, Debug)]
struct Window {
    mean: f64,
    tail: (f64, f64),
}

/// Room on both sides.
const WANTED: Window = Window { mean: 0.955, tail: (0.14, 0.25) };
/// The same verdicts with less room, for a pair that has no base in the wanted window.
const NARROW: Window = Window { mean: 0.951, tail: (0.13, 0.25) };

impl Window {
    fn has(&self, s: &Similarity) -> bool {
        s.mean >= self.mean && (self.tail.0..=self.tail.1).contains(&s.tail)
    }

    /// Whether the search is to go back towards the right base: the mean has little room left, or the tail enough.
    fn is_passed_by(&self, s: &Similarity) -> bool {
        s.mean < self.mean + 0.001 || s.tail > f64::midpoint(self.tail.0, self.tail.1)
    }
}

/// The tail gate allows .05; a fault near it would honestly stay undecided.
const ZERO_TAIL: f64 = 0.08;
/// A gross fault is far below any gate.
const ORDER_MEAN: f64 = 0.5;

const NOTE: &str = "damage.json";

/// Raised whenever the program changes in a way that changes the result of an equal order.
const FORMAT: u32 = 2;

/// Makes the candidate, measures it on all probes, and publishes it if the fault shows. The same candidate made from the
/// same inputs before is kept.
///
/// # Errors
/// [`WorkshopError::Missed`] if it does not show; [`WorkshopError::Refused`] if the model is not packed, the pattern does
/// not name one tensor, or `out` holds something that this function did not make. Nothing is left at `out` then, or what
/// was there before.
pub fn damage(order: &Damage, progress: &mut dyn Progress) -> Result<Outcome<Report>, WorkshopError> {
    let order_hash = order.hash()?;
    if order.out.exists() {
        let note = fs::read(order.out.join(NOTE)).ok();
        let Some(report) = note.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else {
            return Err(WorkshopError::Refused(format!(
                "{} exists and was not made by this command: choose another --out",
                order.out.display()
            )));
        };
        // A note of an older form is made anew.
        if let Ok(report) = serde_json::from_value::<Report>(report)
            && report.order_hash == order_hash
            && report.files == files_of(&order.out)?
        {
            return Ok(Outcome::Present(report));
        }
    }
    let baseline = Baseline::new(&order.baseline, &order.probes, order.tokens, order.threads)?;
    let loaded = Loaded::open(&order.model)?;
    let healthy = baseline.compare(&loaded)?;
    progress.note(&format!("healthy: {healthy}"));
    let staging = Staging::new(&order.out)?;
    let precisions = loaded.model.config().precisions.clone();
    drop(loaded);
    let bench = Bench { order, baseline, healthy, precisions, dir: staging.path() };
    bench.copy()?;
    let (change, damaged) = match &order.fault {
        Fault::Order => bench.reverse_order()?,
        Fault::Rope => bench.wrong_rope(progress)?,
        Fault::Zero { tensor } => bench.zero(tensor.as_deref(), progress)?,
    };
    let report = Report {
        order_hash,
        fault: order.fault.name().to_owned(),
        change,
        tokens: order.tokens,
        healthy,
        damaged,
        expect: expectation(&damaged).to_owned(),
        files: files_of(staging.path())?,
    };
    let path = staging.path().join(NOTE);
    write_json(&path, &serde_json::to_value(&report).map_err(WorkshopError::json(&path))?)?;
    staging.publish()?;
    Ok(Outcome::Made(report))
}

impl Fault {
    /// `order`, `rope` or `zero`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Rope => "rope",
            Self::Zero { .. } => "zero",
        }
    }
}

impl Damage {
    fn hash(&self) -> Result<String, WorkshopError> {
        let digest = |dir: &Path| crate::model::digest(dir).map_err(WorkshopError::load(dir));
        let probes = fs::read(&self.probes).map_err(WorkshopError::file("read", &self.probes))?;
        let (baseline, model, probes) = (digest(&self.baseline)?, digest(&self.model)?, files::hash(&probes));
        Ok(files::hash(
            format!("{FORMAT}\0{:?}\0{}\0{baseline}\0{model}\0{probes}", self.fault, self.tokens).as_bytes(),
        ))
    }
}

fn files_of(dir: &Path) -> Result<BTreeMap<String, String>, WorkshopError> {
    let mut all = files::hash_all(dir)?;
    all.remove(NOTE);
    Ok(all)
}

/// What a rollout with the default gate (mean .95, 5th percentile .90) does with such a candidate.
fn expectation(damaged: &Similarity) -> &'static str {
    if damaged.mean < 0.8 {
        "both quality tests fail grossly: rolled back in preflight, within a few ticks and before any live request"
    } else if damaged.mean < 0.95 {
        "mean and tail test fail: rolled back at the first step at the latest"
    } else {
        "the mean test passes, the tail test does not: rolled back at the first step, within some tens of ticks"
    }
}

/// One fault in the making: copies of the healthy model's files that are changed and measured.
struct Bench<'a> {
    order: &'a Damage,
    baseline: Baseline,
    healthy: Similarity,
    /// Of layers that are stored otherwise than most.
    precisions: BTreeMap<String, LayerPrecision>,
    dir: &'a Path,
}

type Made = Result<(String, Similarity), WorkshopError>;

impl Bench<'_> {
    fn copy(&self) -> Result<(), WorkshopError> {
        let from = &self.order.model;
        for entry in fs::read_dir(from).map_err(WorkshopError::file("read", from))? {
            let entry = entry.map_err(WorkshopError::file("read", from))?;
            let path = entry.path();
            if path.is_file() && entry.file_name() != NOTE {
                fs::copy(&path, self.dir.join(entry.file_name())).map_err(WorkshopError::file("copy", &path))?;
            }
        }
        Ok(())
    }

    fn measure(&self) -> Result<Similarity, WorkshopError> {
        self.baseline.compare(&Loaded::open(self.dir)?)
    }

    fn weights(&self) -> PathBuf {
        self.dir.join("model.safetensors")
    }

    fn packed(&self) -> Result<Vec<StoredTensor>, WorkshopError> {
        let tensors = read_tensors(&self.order.model.join("model.safetensors"))?;
        if tensors.iter().any(|t| self.is_packed(t)) {
            return Ok(tensors);
        }
        Err(WorkshopError::Refused(format!(
            "{} must hold a packed BitNet model (2-bit projections) but has no such tensor: name the bitnet directory of a pair",
            self.order.model.display()
        )))
    }

    /// Whether it is a matrix of 2-bit codes: int4 and binary ones are bytes, too.
    fn is_packed(&self, tensor: &StoredTensor) -> bool {
        let ternary = |m: &str| self.precisions.get(m).is_none_or(|p| *p == LayerPrecision::Ternary);
        let module = tensor.name.strip_suffix(".weight").filter(|m| m.ends_with("_proj"));
        tensor.dtype == Dtype::U8 && module.is_some_and(ternary)
    }

    fn reverse_order(&self) -> Made {
        let mut tensors = self.packed()?;
        let mut count = 0;
        for tensor in tensors.iter_mut().filter(|t| self.is_packed(t)) {
            tensor.bytes.iter_mut().for_each(|byte| *byte = reversed(*byte));
            count += 1;
        }
        write_tensors(&self.weights(), &tensors)?;
        let damaged = self.measure()?;
        if damaged.mean < ORDER_MEAN {
            return Ok((format!("reversed the four 2-bit fields of every byte in {count} matrices"), damaged));
        }
        Err(WorkshopError::Missed(format!(
            "the wrong bit order must bring the mean cosine below {ORDER_MEAN} but gives {damaged}: this model hardly uses its ternary weights"
        )))
    }

    /// Looks for a base below the right one, then above, that moves the tail into its window and leaves the mean alone.
    fn wrong_rope(&self, progress: &mut dyn Progress) -> Made {
        if self.healthy.prompts < ROPE_PROBES {
            return Err(WorkshopError::Refused(format!(
                "{} must hold at least {ROPE_PROBES} prompts for a rope search but has {}",
                self.order.probes.display(),
                self.healthy.prompts
            )));
        }
        let path = self.order.model.join("config.json");
        let text = fs::read(&path).map_err(WorkshopError::file("read", &path))?;
        let config: Value = serde_json::from_slice(&text).map_err(WorkshopError::json(&path))?;
        let right = f64::from(Loaded::open(&self.order.model)?.model.config().rope_theta);
        let mut at = |base: f64| {
            write_json(&self.dir.join("config.json"), &with_rope_base(&config, base))?;
            let found = self.measure()?;
            progress.note(&format!("rope base {base}: {found}"));
            Ok(found)
        };
        let mut found = None;
        for (window, hopeless) in [(WANTED, 2.0), (WANTED, right * 1e8), (NARROW, 2.0), (NARROW, right * 1e8)] {
            found = search_base(window, right, hopeless, &mut at)?;
            if found.is_some() {
                break;
            }
        }
        let Some((base, damaged)) = found else {
            return Err(WorkshopError::Missed(format!(
                "no rope base gives a mean cosine of at least {} and P(< {TAIL}) from {} to {}: this model depends too little on positions, or too much",
                NARROW.mean, NARROW.tail.0, NARROW.tail.1
            )));
        };
        write_json(&self.dir.join("config.json"), &with_rope_base(&config, base))?;
        Ok((format!("rope base {base} instead of {right}"), damaged))
    }

    fn zero(&self, pattern: Option<&str>, progress: &mut dyn Progress) -> Made {
        let tensors = self.packed()?;
        let named = |part: &str| -> Vec<String> {
            tensors.iter().filter(|t| self.is_packed(t) && t.name.contains(part)).map(|t| t.name.clone()).collect()
        };
        let candidates = match pattern {
            None => named("o_proj"),
            Some(part) => {
                let found = named(part);
                if found.len() != 1 {
                    return Err(WorkshopError::Refused(format!(
                        "--tensor must name one packed tensor but {part} is part of {}: {}",
                        found.len(),
                        if found.is_empty() { named("").join(", ") } else { found.join(", ") }
                    )));
                }
                found
            }
        };
        let mut best: Option<(String, Similarity)> = None;
        for name in candidates {
            self.write_zeroed(&name)?;
            let found = self.measure()?;
            progress.note(&format!("{name} zeroed: {found}"));
            // The subtlest of those that show, else the one that shows most.
            let subtler = |s: &Similarity| match (found.tail >= ZERO_TAIL, s.tail >= ZERO_TAIL) {
                (true, true) => found.mean > s.mean,
                _ => found.tail > s.tail,
            };
            if best.as_ref().is_none_or(|(_, s)| subtler(s)) {
                best = Some((name, found));
            }
        }
        match best {
            Some((name, damaged)) if damaged.tail >= ZERO_TAIL => {
                self.write_zeroed(&name)?;
                Ok((format!("all weights of {name} are 0"), damaged))
            }
            _ => Err(WorkshopError::Missed(format!(
                "a zeroed projection must bring P(cosine < {TAIL}) to {ZERO_TAIL} but brings {}: name another one with --tensor",
                best.map_or_else(|| "nothing".to_owned(), |(name, s)| format!("{name} to {s}"))
            ))),
        }
    }

    fn write_zeroed(&self, name: &str) -> Result<(), WorkshopError> {
        let mut tensors = self.packed()?;
        // Four codes of 1, which stand for weight 0.
        tensors.iter_mut().filter(|t| t.name == name).for_each(|t| t.bytes.fill(0b01_01_01_01));
        write_tensors(&self.weights(), &tensors)
    }
}

/// Halves the logarithmic interval between the right base and a hopeless one. Damage grows with the distance, so the
/// search closes in on the largest tail whose mean still passes; of the bases in the window the one with the largest
/// tail is the answer.
fn search_base(
    window: Window,
    right: f64,
    hopeless: f64,
    measure: &mut impl FnMut(f64) -> Result<Similarity, WorkshopError>,
) -> Result<Option<(f64, Similarity)>, WorkshopError> {
    let (mut near, mut far) = (right, hopeless);
    let mut best: Option<(f64, Similarity)> = None;
    for _ in 0..12 {
        // Three digits: a base that somebody could have typed.
        let base = three_digits((near * far).sqrt());
        let found = measure(base)?;
        if window.has(&found) && best.is_none_or(|(_, s)| found.tail > s.tail) {
            best = Some((base, found));
        }
        if window.is_passed_by(&found) {
            far = base;
        } else {
            near = base;
        }
        if (near / far).ln().abs() < 0.05 {
            break;
        }
    }
    Ok(best)
}

fn reversed(byte: u8) -> u8 {
    byte << 6 | byte << 2 & 0b0011_0000 | byte >> 2 & 0b0000_1100 | byte >> 6
}

fn three_digits(x: f64) -> f64 {
    let unit = 10f64.powf(x.log10().floor() - 2.0);
    ((x / unit).round() * unit * 1e6).round() / 1e6
}

/// The configuration with another rotary base, in whichever of the two forms it is written.
fn with_rope_base(config: &Value, base: f64) -> Value {
    let mut config = config.clone();
    if let Some(nested) = config.get_mut("rope_parameters").and_then(Value::as_object_mut) {
        nested.insert("rope_theta".to_owned(), json!(base));
    }
    if let Some(fields) = config.as_object_mut() {
        fields.insert("rope_theta".to_owned(), json!(base));
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expectation_follows_the_gate() {
        let at = |mean| expectation(&model(1.0)(5e5).map(|s| Similarity { mean, ..s }).unwrap());
        assert!(
            at(0.27).contains("before any live")
                && at(0.93).contains("mean and tail")
                && at(0.956).contains("mean test passes")
        );
    }

    #[test]
    fn fields_are_reversed() {
        assert_eq!(reversed(0b00_01_10_00), 0b00_10_01_00);
        assert!((0..=255u8).all(|b| reversed(reversed(b)) == b));
    }

    #[test]
    fn bases_have_three_digits() {
        assert_eq!(three_digits(123_456.7), 123_000.0);
        assert_eq!(three_digits(1000.0), 1000.0);
        assert_eq!(three_digits(7.128), 7.13);
    }

    /// A model whose damage grows with the distance from its base: `loss` of the mean for each unit of tail.
    fn model(loss: f64) -> impl FnMut(f64) -> Result<Similarity, WorkshopError> {
        move |base| {
            let tail = 0.03 * (base / 5e5).ln().abs();
            let mean = 0.995 - loss * tail;
            Ok(Similarity { prompts: 200, mean, fifth_percentile: 0.8, tail, kl: 0.1, top1: 0.8, non_finite: 0 })
        }
    }

    #[test]
    fn the_search_finds_the_window_from_either_side_or_says_that_there_is_none() {
        for hopeless in [2.0, 5e13] {
            let (base, found) = search_base(WANTED, 5e5, hopeless, &mut model(0.2)).unwrap().unwrap();
            assert!((0.14..=0.25).contains(&found.tail) && found.mean >= 0.955, "{base}: {found}");
            assert_eq!(base < 5e5, hopeless < 5e5);
            // The mean is the bound: the window's far end is out of reach, its near end is not.
            let (_, found) = search_base(WANTED, 5e5, hopeless, &mut model(0.25)).unwrap().unwrap();
            assert!((0.14..=0.16).contains(&found.tail) && found.mean >= 0.955, "{found}");
            assert!(search_base(WANTED, 5e5, hopeless, &mut model(0.31)).unwrap().is_none());
            let (_, found) = search_base(NARROW, 5e5, hopeless, &mut model(0.31)).unwrap().unwrap();
            assert!(NARROW.has(&found) && !WANTED.has(&found), "{found}");
            assert!(search_base(NARROW, 5e5, hopeless, &mut model(0.4)).unwrap().is_none());
        }
    }

    #[test]
    fn both_forms_of_the_rope_base_are_changed() {
        let old = json!({"rope_theta": 5e5, "x": 1});
        assert_eq!(with_rope_base(&old, 10.0), json!({"rope_theta": 10.0, "x": 1}));
        let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}});
        let changed = with_rope_base(&new, 10.0);
        assert_eq!((&changed["rope_parameters"]["rope_theta"], &changed["rope_theta"]), (&json!(10.0), &json!(10.0)));
    }
}
