//! Candidates with real faults: made from a healthy packed model, and kept only if the fault shows on the probes.

use super::WorkshopError;
use super::export::{StoredTensor, read_tensors, write_json, write_tensors};
use super::probing::{Baseline, Loaded, Similarity, TAIL};
use super::progress::Progress;
use super::staging::Staging;
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// What to break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The four 2-bit fields of every packed byte in reverse order: a conversion with the wrong bit order. Gross.
    Order,
    /// A wrong rotary base: a configuration error. The mean passes, the tail does not; the base is searched for.
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
    /// Directory to make.
    pub out: PathBuf,
    /// Threads for measuring.
    pub threads: usize,
}

/// What was made; damage.json of the new directory.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `order`, `rope` or `zero`.
    pub fault: &'static str,
    /// What was changed.
    pub change: String,
    /// The model before.
    pub healthy: Similarity,
    /// The model after.
    pub damaged: Similarity,
    /// What a rollout with the demonstration's gate will show.
    pub expect: &'static str,
}

/// A rope search needs this many probes for its probabilities to mean something.
const ROPE_PROBES: usize = 200;
/// A gate of .95 must pass, with room for the draw of prompts.
const ROPE_MEAN: f64 = 0.951;
/// Below, the tail test takes too long; above, the fault is gross.
const ROPE_TAIL: (f64, f64) = (0.13, 0.25);
/// The tail gate allows .05; a fault near it would honestly stay undecided.
const ZERO_TAIL: f64 = 0.08;
/// Two thirds of a gross fault's probes are far outside any gate.
const ORDER_MEAN: f64 = 0.5;

const NOTE: &str = "damage.json";

/// Makes the candidate, measures it on all probes, and publishes it if the fault shows.
///
/// # Errors
/// [`WorkshopError::Missed`] if it does not show; [`WorkshopError::Refused`] if the model is not packed, the pattern does
/// not name one tensor, or `out` holds something that this function did not make. Nothing is left at `out` then, or what
/// was there before.
pub fn damage(order: &Damage, progress: &mut dyn Progress) -> Result<Report, WorkshopError> {
    if order.out.exists() && !order.out.join(NOTE).exists() {
        return Err(WorkshopError::Refused(format!(
            "{} exists and was not made by this command: choose another --out",
            order.out.display()
        )));
    }
    let baseline = Baseline::new(&order.baseline, &order.probes, order.threads)?;
    let healthy = baseline.compare(&Loaded::open(&order.model)?)?;
    progress.note(&format!("healthy: {healthy}"));
    let staging = Staging::new(&order.out)?;
    let bench = Bench { order, baseline, healthy, dir: staging.path() };
    bench.copy()?;
    let (fault, (change, damaged), expect) = match &order.fault {
        Fault::Order => ("order", bench.reverse_order()?, "rolled back before any live request: preflight sees it within ticks"),
        Fault::Rope => ("rope", bench.wrong_rope(progress)?, TAIL_FAULT),
        Fault::Zero { tensor } => ("zero", bench.zero(tensor.as_deref(), progress)?, TAIL_FAULT),
    };
    let report = Report { fault, change, healthy, damaged, expect };
    let path = staging.path().join(NOTE);
    write_json(&path, &serde_json::to_value(&report).map_err(WorkshopError::json(&path))?)?;
    staging.publish()?;
    Ok(report)
}

const TAIL_FAULT: &str =
    "the mean test passes, the tail test does not: rolled back at the first step, within some tens of ticks";

/// One fault in the making: copies of the healthy model's files that are changed and measured.
struct Bench<'a> {
    order: &'a Damage,
    baseline: Baseline,
    healthy: Similarity,
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
        if tensors.iter().any(is_packed) {
            return Ok(tensors);
        }
        Err(WorkshopError::Refused(format!(
            "{} must hold a packed BitNet model (2-bit projections) but has no such tensor: name the bitnet directory of a pair",
            self.order.model.display()
        )))
    }

    fn reverse_order(&self) -> Made {
        let mut tensors = self.packed()?;
        let mut count = 0;
        for tensor in tensors.iter_mut().filter(|t| is_packed(t)) {
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

    /// Halves the logarithmic interval below the right base until the tail is where it should be.
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
        let (mut low, mut high) = (2f64, right);
        let mut best: Option<(f64, Similarity)> = None;
        for _ in 0..14 {
            // Three digits: a base that somebody could have typed.
            let base = three_digits((low * high).sqrt());
            write_json(&self.dir.join("config.json"), &with_rope_base(&config, base))?;
            let found = self.measure()?;
            progress.note(&format!("rope base {base}: {found}"));
            if (ROPE_TAIL.0..=ROPE_TAIL.1).contains(&found.tail)
                && found.mean >= ROPE_MEAN
                && best.is_none_or(|(_, s)| found.tail > s.tail)
            {
                best = Some((base, found));
            }
            // Aim at the middle of the window, less far if the mean would fail.
            if found.tail > f64::midpoint(ROPE_TAIL.0, ROPE_TAIL.1) || found.mean < ROPE_MEAN + 0.001 {
                low = base;
            } else {
                high = base;
            }
            if high / low < 1.02 {
                break;
            }
        }
        let Some((base, damaged)) = best else {
            return Err(WorkshopError::Missed(format!(
                "no rope base below {right} gives a mean cosine of at least {ROPE_MEAN} and P(< {TAIL}) from {} to {}: this model depends too little on positions, or too much",
                ROPE_TAIL.0, ROPE_TAIL.1
            )));
        };
        write_json(&self.dir.join("config.json"), &with_rope_base(&config, base))?;
        Ok((format!("rope base {base} instead of {right}"), damaged))
    }

    fn zero(&self, pattern: Option<&str>, progress: &mut dyn Progress) -> Made {
        let tensors = self.packed()?;
        let named = |part: &str| -> Vec<String> {
            tensors.iter().filter(|t| is_packed(t) && t.name.contains(part)).map(|t| t.name.clone()).collect()
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
            if best.as_ref().is_none_or(|(_, s)| found.tail > s.tail) {
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

fn is_packed(tensor: &StoredTensor) -> bool {
    tensor.dtype == Dtype::U8 && tensor.name.ends_with("_proj.weight")
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

    #[test]
    fn both_forms_of_the_rope_base_are_changed() {
        let old = json!({"rope_theta": 5e5, "x": 1});
        assert_eq!(with_rope_base(&old, 10.0), json!({"rope_theta": 10.0, "x": 1}));
        let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}});
        let changed = with_rope_base(&new, 10.0);
        assert_eq!((&changed["rope_parameters"]["rope_theta"], &changed["rope_theta"]), (&json!(10.0), &json!(10.0)));
    }
}
