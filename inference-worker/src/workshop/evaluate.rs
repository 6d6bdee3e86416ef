//! Would this pair be promoted? The production comparison and the production judge, offline.
//!
//! Every prompt is compared once at every position of the baseline's continuation. A simulated rollout then draws from
//! these rows as a tick draws (the same seeds, the same order) and hands them to the judge, tick by tick, until quality
//! is proven, disproven, or the deadline comes. Many simulated rollouts, each with its own uid, show how sure that is.
//!
//! Latency and errors are not part of it: they depend on live traffic and on the machines that serve it.

use super::WorkshopError;
use super::inspect::{Rule, inspect, pair_rules};
use super::probing::{Baseline, Loaded, Similarity, TAIL};
use crate::compare::similarity::RowSimilarity;
use crate::compare::{Probes, draw, of_rows};
use crate::kernels::Kernels;
use crate::model::LoadOptions;
use bitnet_api::worker::CompareRequest;
use bitnet_core::evidence::{self, Evidence, Finding, Gate, PromptSample, SignalKind, Tick};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct Order {
    /// Directory of the fp16 model.
    pub baseline: PathBuf,
    /// Directory of the model that may come beside it.
    pub candidate: PathBuf,
    /// Probe prompts, JSON lines.
    pub probes: PathBuf,
    /// The gate.
    pub gate: Gate,
    /// Simulated rollouts, at least 1.
    pub rollouts: u32,
    /// Threads for measuring.
    pub threads: usize,
}

/// What a pair would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Quality is proven in at least 95 of 100 rollouts.
    Promoted,
    /// It is disproven in at least 95 of 100.
    RolledBack,
    /// Neither: the deadline comes first too often, or rollouts differ.
    Undecided,
    /// The operator would not compare them.
    NotComparable,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled back",
            Self::Undecided => "undecided",
            Self::NotComparable => "not comparable",
        })
    }
}

/// Share of rollouts that makes a verdict.
const SURE: f64 = 0.95;

/// The whole answer. Numbers only: no text of a prompt is in it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// The verdict.
    pub verdict: Verdict,
    /// Rules that a pair must meet before anything is compared.
    pub rules: Vec<Rule>,
    /// The gate's numbers that decided.
    pub gate: GateFacts,
    /// SHA-256 of the probe file.
    pub probe_set: String,
    /// Candidate against baseline over all prompts and positions; absent where the pair is not comparable.
    pub measured: Option<Measured>,
}

/// The gate as far as quality is concerned.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GateFacts {
    /// Name.
    pub name: String,
    /// Least mean cosine.
    pub min_mean: f64,
    /// Cosine under which a position counts for the tail.
    pub tail_min: f64,
    /// Share of such positions that is allowed.
    pub tail_share: f64,
    /// Prompts per tick.
    pub per_tick: u32,
    /// Prompts that a promotion needs.
    pub min_samples: u32,
    /// Ticks until the deadline.
    pub ticks: u32,
}

/// What the comparison and the simulated rollouts gave.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Candidate against baseline.
    pub similarity: Similarity,
    /// Noise floor: the baseline against itself on the portable kernels, whose sums round otherwise.
    pub floor: Similarity,
    /// Cosines of the candidate at all positions, and of the floor.
    pub histogram: Histogram,
    /// The simulated rollouts.
    pub rollouts: Rollouts,
    /// Every prompt, the worst first.
    pub prompts: Vec<PromptFact>,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PromptFact {
    /// Its id in the probe file, or its place.
    pub id: String,
    /// Place in the probe file, from 0.
    pub index: usize,
    /// Positions compared.
    pub positions: usize,
    /// Cosine averaged over them.
    pub cosine: f64,
    /// The least of them.
    pub lowest: f64,
    /// Share of them under the gate's tail threshold.
    pub tail: f64,
    /// Mean KL in nats.
    pub kl: f64,
    /// Share with the same most likely token.
    pub top1: f64,
}

/// Counts of cosines in equal bins.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Histogram {
    /// Lower edge of the first bin; the last one ends at 1.
    pub from: f64,
    /// Share of the candidate's positions in each bin; what lies below the first is in it.
    pub candidate: Vec<f64>,
    /// Share of the floor's.
    pub floor: Vec<f64>,
}

/// How the simulated rollouts ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollouts {
    /// How many.
    pub count: u32,
    /// Share in which quality was proven.
    pub promoted: f64,
    /// Share in which the mean was disproven.
    pub rolled_back_by_mean: f64,
    /// Share in which the tail was disproven.
    pub rolled_back_by_tail: f64,
    /// Share without a verdict at the deadline.
    pub undecided: f64,
    /// Prompts until the verdict in the rollouts that had one: median and 90th percentile.
    pub prompts: Option<(u32, u32)>,
}

/// Compares the pair and lets the judge decide.
///
/// # Errors
/// If a model does not load or run, the probe file is none, or a prompt leaves no room in the context.
pub fn evaluate(order: &Order) -> Result<Evaluation, WorkshopError> {
    let set = Probes::read(Some(&order.probes)).map_err(|source| WorkshopError::Probes { source })?;
    let rules = pair_rules(&inspect(&order.baseline)?, &inspect(&order.candidate)?);
    let comparable = rules.iter().all(|rule| rule.met);
    let measured = if comparable { Some(measure(order, &set)?) } else { None };
    let gate = &order.gate;
    Ok(Evaluation {
        verdict: measured.as_ref().map_or(Verdict::NotComparable, |m| m.rollouts.verdict()),
        rules,
        gate: GateFacts {
            name: gate.name.clone(),
            min_mean: gate.min_mean,
            tail_min: gate.tail_min,
            tail_share: gate.tail_share,
            per_tick: gate.probes.per_tick,
            min_samples: gate.min_samples,
            ticks: gate.horizon(),
        },
        probe_set: set.set.hash.clone(),
        measured,
    })
}

fn measure(order: &Order, set: &Probes) -> Result<Measured, WorkshopError> {
    let gate = &order.gate;
    let baseline = Baseline::of(&order.baseline, set, gate.probes.max_tokens as usize, order.threads)?;
    let rows = baseline.rows(&Loaded::open(&order.candidate)?)?;
    let portable = LoadOptions { kernels: Some(Kernels::portable()), ..LoadOptions::default() };
    let floor = baseline.rows(&Loaded::with_options(&order.baseline, &portable)?)?;
    let mut prompts: Vec<PromptFact> =
        rows.iter().enumerate().map(|(index, rows)| prompt_fact(set.id(index), index, rows, gate.tail_min)).collect();
    prompts.sort_by(|a, b| a.cosine.total_cmp(&b.cosine));
    Ok(Measured {
        similarity: Similarity::of(&rows),
        floor: Similarity::of(&floor),
        histogram: histogram(&rows, &floor, gate.tail_min),
        rollouts: rollouts(gate, &set.set.hash, &rows, order.rollouts),
        prompts,
    })
}

fn prompt_fact(id: String, index: usize, rows: &[RowSimilarity], tail_min: f64) -> PromptFact {
    let whole = of_rows(rows);
    let low = rows.iter().filter(|row| row.cosine < tail_min || row.non_finite > 0).count();
    PromptFact {
        id,
        index,
        positions: rows.len(),
        cosine: whole.cosine,
        lowest: rows.iter().map(|row| row.cosine).fold(1.0, f64::min),
        tail: low as f64 / rows.len().max(1) as f64,
        kl: whole.kl,
        top1: whole.top1,
    }
}

const BINS: usize = 48;

/// From a little below the tail threshold or the candidate's 1st percentile, whichever is lower.
fn histogram(rows: &[Vec<RowSimilarity>], floor: &[Vec<RowSimilarity>], tail_min: f64) -> Histogram {
    let mut all: Vec<f64> = rows.iter().flatten().map(|row| row.cosine).collect();
    all.sort_by(f64::total_cmp);
    let low = all.get(all.len() / 100).copied().unwrap_or(0.0).min(tail_min - 0.02);
    let from = ((low * 50.0).floor() / 50.0).max(-1.0);
    let shares = |of: &[Vec<RowSimilarity>]| {
        let mut bins = vec![0.0; BINS];
        let count = of.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        for row in of.iter().flatten() {
            let place = ((row.cosine - from) / (1.0 - from) * BINS as f64).max(0.0) as usize;
            bins[place.min(BINS - 1)] += 1.0 / count;
        }
        bins
    };
    Histogram { from, candidate: shares(rows), floor: shares(floor) }
}

/// How one simulated rollout ended, and after how many prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both quality tests were won and the gate's least number of prompts reached.
    Promoted(u32),
    /// A quality test was lost: which one.
    RolledBack(SignalKind, u32),
    /// The deadline came.
    Undecided,
}

/// Simulates rollouts over rows (one list per prompt, none empty), each with its own uid.
pub fn rollouts(gate: &Gate, probe_set: &str, rows: &[Vec<RowSimilarity>], count: u32) -> Rollouts {
    let ends: Vec<End> = (0..count.max(1)).map(|n| rollout(gate, probe_set, rows, &format!("offline-{n}"))).collect();
    let share = |which: &dyn Fn(&End) -> bool| ends.iter().filter(|end| which(end)).count() as f64 / ends.len() as f64;
    let mut prompts: Vec<u32> = ends
        .iter()
        .filter_map(|end| match end {
            End::Promoted(n) | End::RolledBack(_, n) => Some(*n),
            End::Undecided => None,
        })
        .collect();
    prompts.sort_unstable();
    let at = |share: f64| prompts.get(((prompts.len() as f64 * share) as usize).min(prompts.len().saturating_sub(1)));
    Rollouts {
        count: count.max(1),
        promoted: share(&|end| matches!(end, End::Promoted(_))),
        rolled_back_by_mean: share(&|end| matches!(end, End::RolledBack(SignalKind::Cosine, _))),
        rolled_back_by_tail: share(&|end| matches!(end, End::RolledBack(signal, _) if *signal != SignalKind::Cosine)),
        undecided: share(&|end| *end == End::Undecided),
        prompts: at(0.5).copied().zip(at(0.9).copied()),
    }
}

/// One rollout's ticks, drawn and judged as in production.
pub fn rollout(gate: &Gate, probe_set: &str, rows: &[Vec<RowSimilarity>], uid: &str) -> End {
    let mut evidence = Evidence::new(gate);
    for number in 1..=gate.horizon() {
        let request = CompareRequest {
            key: String::new(),
            uid: uid.to_owned(),
            attempt: 1,
            tick: number,
            baseline: String::new(),
            stable: String::new(),
            probes: gate.probes.per_tick,
            max_tokens: gate.probes.max_tokens,
            positions: gate.probes.positions,
            pairs: 0,
            pair_tokens: gate.probes.pair_tokens,
        };
        let drawn = draw::draws(&request, rows.len()).probes;
        let prompts = drawn.iter().map(|probe| {
            let all = &rows[probe.prompt];
            let places = draw::positions(probe.positions, all.len(), request.positions as usize);
            let rows: Vec<RowSimilarity> = places.into_iter().map(|place| all[place]).collect();
            let one = of_rows(&rows);
            PromptSample { cosine: one.cosine, cosine_at: one.cosine_at, mse: one.mse, kl: one.kl, top1: one.top1 }
        });
        let probes = evidence::Probes {
            probe_set: probe_set.to_owned(),
            probe_set_size: rows.len() as u32,
            drawn: request.probes,
            prompts: prompts.collect(),
            ..evidence::Probes::default()
        };
        let seed = draw::seed(uid, 1, number);
        let found = evidence.step(gate, &Tick { number, probes: Some(probes), seed, ..Tick::default() });
        if let Finding::RollBack { signal, .. } = found.finding {
            return End::RolledBack(signal, found.prompts);
        }
        if found.quality_proven && found.preflight_done && found.prompts >= gate.min_samples {
            return End::Promoted(found.prompts);
        }
    }
    End::Undecided
}

impl Rollouts {
    /// What the shares come to.
    pub fn verdict(&self) -> Verdict {
        if self.promoted >= SURE {
            Verdict::Promoted
        } else if self.rolled_back_by_mean + self.rolled_back_by_tail >= SURE {
            Verdict::RolledBack
        } else {
            Verdict::Undecided
        }
    }
}

/// Whether the display's tail threshold is the gate's, too: [`Similarity::tail`] counts under [`TAIL`].
pub fn tail_is_shown(gate: &GateFacts) -> bool {
    (gate.tail_min - TAIL).abs() < 1e-9
}

/// Text of prompts for a report, by index; read again from the probe file, so that an [`Evaluation`] never holds any.
///
/// # Errors
/// If the file is no probe set any more.
pub fn texts(probes: &Path) -> Result<Vec<String>, WorkshopError> {
    let set = Probes::read(Some(probes)).map_err(|source| WorkshopError::Probes { source })?;
    Ok((0..set.len()).map(|index| set.text(index)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::gate::read_gate;
    use super::*;
    use crate::engine::random::Random;

    fn row(cosine: f64) -> RowSimilarity {
        RowSimilarity { cosine, mse: 0.1, kl: 0.01, top1: true, non_finite: 0 }
    }

    /// 100 prompts of 20 positions, cosines uniform in a range, and a share of them low.
    fn rows(range: (f64, f64), low: f64, seed: u64) -> Vec<Vec<RowSimilarity>> {
        let mut random = Random::from_seed(seed);
        let mut one = || {
            let x = range.0 + (range.1 - range.0) * random.unit();
            row(if random.unit() < low { 0.6 } else { x })
        };
        (0..100).map(|_| (0..20).map(|_| one()).collect()).collect()
    }

    #[test]
    fn clear_cases_are_clear_and_a_border_case_is_not() {
        let gate = read_gate(None).unwrap();
        let of = |range, low| rollouts(&gate, "h", &rows(range, low, 1), 40);
        let good = of((0.97, 1.0), 0.0);
        assert_eq!((good.verdict(), good.promoted), (Verdict::Promoted, 1.0));
        assert!(good.prompts.unwrap().0 >= gate.min_samples);
        let bad = of((0.2, 0.4), 0.0);
        assert_eq!(bad.verdict(), Verdict::RolledBack);
        assert!(bad.prompts.unwrap().1 <= 64, "{bad:?}");
        // The mean is fine (about .964), a tenth of the positions is far below: only the tail test sees it.
        let tail = of((0.99, 1.0), 0.10);
        assert_eq!((tail.verdict(), tail.rolled_back_by_mean), (Verdict::RolledBack, 0.0), "{tail:?}");
        // Exactly as many as are allowed: false promotions at most 5 %, false rollbacks at most 1 %; of 40 rollouts,
        // more than 7 promotions have probability below .002.
        let border = of((0.99, 1.0), 0.05);
        assert_eq!(border.verdict(), Verdict::Undecided, "{border:?}");
        let sum = border.promoted + border.rolled_back_by_mean + border.rolled_back_by_tail + border.undecided;
        assert!((sum - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_rollout_is_its_uid_and_broken_logits_lose() {
        let gate = read_gate(None).unwrap();
        let rows = rows((0.93, 0.99), 0.01, 2);
        assert_eq!(rollout(&gate, "h", &rows, "a"), rollout(&gate, "h", &rows, "a"));
        let ends: Vec<End> = (0..8).map(|n| rollout(&gate, "h", &rows, &n.to_string())).collect();
        assert!(ends.iter().any(|end| *end != ends[0]), "{ends:?}");
        let broken: Vec<Vec<RowSimilarity>> =
            (0..9).map(|_| vec![RowSimilarity { non_finite: 1, ..row(0.99) }]).collect();
        assert!(matches!(rollout(&gate, "h", &broken, "a"), End::RolledBack(..)));
    }

    #[test]
    fn bins_hold_everything_once() {
        let h = histogram(&rows((0.7, 1.0), 0.1, 3), &[vec![row(1.0)]], 0.9);
        assert!((h.candidate.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(h.floor[BINS - 1], 1.0);
        assert!(h.from <= 0.6 && h.from >= -1.0, "{}", h.from);
    }
}
