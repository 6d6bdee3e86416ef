//! The last comparisons of a rollout one by one, for the page: how the cosines are spread, where the margin lies, which
//! prompts are worst, and what a model scores against itself.

use crate::observe::Compared;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Comparisons that are kept of a rollout.
const KEPT: usize = 1000;
/// Bars of the histogram.
const BARS: usize = 40;
/// Prompts that are named.
const WORST: usize = 10;
/// Baselines whose A/A trials are kept.
const FLOORS: usize = 64;

/// The last comparisons.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring(VecDeque<(i64, Compared)>);

impl Ring {
    pub(super) fn add(&mut self, at: i64, compared: &[Compared]) {
        self.0.extend(compared.iter().filter(|one| one.cosine.is_finite()).map(|one| (at, *one)));
        let surplus = self.0.len().saturating_sub(KEPT);
        self.0.drain(..surplus);
    }

    /// What the page shows; `None` without a comparison.
    pub(super) fn summary(&self, margins: Margins, floor: Option<Floor>) -> Option<Summary> {
        let (first, _) = self.0.front()?;
        let lowest = self.0.iter().map(|(_, one)| one.cosine).fold(1.0, f64::min);
        // A twentieth below whatever must be seen, so that the margin is never the picture's edge.
        let from = ((lowest.min(margins.mean).min(margins.tail) * 20.0).floor() / 20.0 - 0.05).max(-1.0);
        let width = (1.0 - from) / BARS as f64;
        let mut bars = vec![0; BARS];
        for (_, one) in &self.0 {
            bars[(((one.cosine - from) / width) as usize).min(BARS - 1)] += 1;
        }
        Some(Summary {
            count: self.0.len(),
            since: *first,
            from,
            bars,
            mean: self.0.iter().map(|(_, one)| one.cosine).sum::<f64>() / self.0.len() as f64,
            margins,
            floor,
            worst: self.worst(),
        })
    }

    /// The lowest cosine of each of the prompts that have the lowest ones.
    fn worst(&self) -> Vec<Worst> {
        let mut by_probe: BTreeMap<u32, Worst> = BTreeMap::new();
        for (at, one) in &self.0 {
            let Some(probe) = one.probe else { continue };
            let worst = by_probe.entry(probe).or_insert(Worst { probe, cosine: 1.0, times: 0, at: *at });
            worst.times += 1;
            if one.cosine <= worst.cosine {
                (worst.cosine, worst.at) = (one.cosine, *at);
            }
        }
        let mut worst: Vec<_> = by_probe.into_values().collect();
        worst.sort_by(|a, b| a.cosine.total_cmp(&b.cosine));
        worst.truncate(WORST);
        worst
    }

    fn floor(&self) -> Option<Floor> {
        let mut cosines: Vec<_> = self.0.iter().map(|(_, one)| one.cosine).collect();
        cosines.sort_by(f64::total_cmp);
        let (at, _) = self.0.back()?;
        Some(Floor { cosine: *cosines.get(cosines.len() / 20)?, count: cosines.len(), at: *at })
    }
}

/// The gate's margins.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Margins {
    /// The mean must be at least this.
    pub mean: f64,
    /// At most `tail_share` of the prompts may lie under this (at a random position of each).
    pub tail: f64,
    /// Share of the tail.
    pub tail_share: f64,
}

/// What the baseline scores against itself: 95 % of the comparisons of an A/A trial were at least this.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Floor {
    /// The 5th percentile.
    pub cosine: f64,
    /// Comparisons that it rests on.
    pub count: usize,
    /// The last of them, in milliseconds since the epoch.
    pub at: i64,
}

/// A prompt that does badly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Worst {
    /// Its place in the probe set, from 0.
    pub probe: u32,
    /// Its lowest cosine.
    pub cosine: f64,
    /// Times that it was compared.
    pub times: u32,
    /// When it was lowest, in milliseconds since the epoch.
    pub at: i64,
}

/// Comparisons as the page shows them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    /// How many.
    pub count: usize,
    /// When the first of them was made, in milliseconds since the epoch.
    pub since: i64,
    /// Left end of the first bar; the last one ends at 1.
    pub from: f64,
    /// Comparisons by bar.
    pub bars: Vec<u32>,
    /// Their mean.
    pub mean: f64,
    /// The gate's margins.
    pub margins: Margins,
    /// The A/A floor; `None`: this process has watched no A/A trial of this baseline.
    pub floor: Option<Floor>,
    /// The worst prompts, the worst one first; empty where the workers do not name them.
    pub worst: Vec<Worst>,
}

/// A/A trials by namespace and revision of the baseline: rollouts whose candidate is the baseline's own model.
#[derive(Clone, Debug, Default)]
pub(super) struct Floors(BTreeMap<(String, String), Ring>);

impl Floors {
    pub(super) fn add(&mut self, namespace: &str, baseline: &str, at: i64, compared: &[Compared]) {
        self.0.entry((namespace.to_owned(), baseline.to_owned())).or_default().add(at, compared);
        if self.0.len() > FLOORS {
            let oldest = self.0.iter().min_by_key(|(_, ring)| ring.0.back().map(|(at, _)| *at));
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.0.remove(&oldest);
            }
        }
    }

    pub(super) fn of(&self, namespace: &str, baseline: &str) -> Option<Floor> {
        self.0.get(&(namespace.to_owned(), baseline.to_owned()))?.floor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARGINS: Margins = Margins { mean: 0.95, tail: 0.9, tail_share: 0.05 };

    fn one(probe: u32, cosine: f64) -> Compared {
        Compared { probe: Some(probe), cosine }
    }

    #[test]
    fn the_last_thousand_are_kept_and_every_one_is_in_a_bar() {
        let mut ring = Ring::default();
        assert_eq!(ring.summary(MARGINS, None), None, "nothing was compared: no picture");
        for i in 0..1500 {
            ring.add(i64::from(i), &[one(i % 50, 0.96 + f64::from(i % 4) * 0.01)]);
        }
        let summary = ring.summary(MARGINS, None).unwrap();
        assert_eq!((summary.count, summary.since, summary.bars.iter().sum::<u32>()), (1000, 500, 1000));
        assert!((summary.from - 0.85).abs() < 1e-9 && (summary.mean - 0.975).abs() < 1e-9);
        // 0.96 lies in the bar that begins at 0.85 + 29 · 0.00375.
        assert_eq!(summary.bars[29], 250);
        ring.add(2000, &[one(1, 1.0), one(1, -1.0), one(1, f64::NAN), one(1, 0.0)]);
        let summary = ring.summary(MARGINS, None).unwrap();
        assert_eq!((summary.count, summary.from, summary.bars[0], summary.bars[20]), (1000, -1.0, 1, 1));
        assert_eq!(summary.bars.iter().sum::<u32>(), 1000);
    }

    #[test]
    fn the_worst_prompts_are_named_once_each() {
        let mut ring = Ring::default();
        ring.add(1, &[one(7, 0.2), one(3, 0.9), one(7, 0.1), Compared { probe: None, cosine: -0.5 }]);
        ring.add(2, &[one(7, 0.5), one(4, 0.3)]);
        let worst: Vec<_> =
            ring.worst().iter().map(|worst| (worst.probe, worst.cosine, worst.times, worst.at)).collect();
        assert_eq!(worst, [(7, 0.1, 3, 1), (4, 0.3, 1, 2), (3, 0.9, 1, 1)]);
        ring.add(3, &(10..100).map(|probe| one(probe, 0.99)).collect::<Vec<_>>());
        assert_eq!(ring.worst().len(), WORST);
    }

    #[test]
    fn the_floor_is_the_fifth_percentile_of_an_a_a_trial() {
        let mut floors = Floors::default();
        let all: Vec<_> = (0..100).map(|i| one(i, 1.0 - f64::from(i) / 1000.0)).collect();
        floors.add("ns", "chat-a", 5, &all);
        let floor = floors.of("ns", "chat-a").unwrap();
        assert!((floor.cosine - 0.906).abs() < 1e-9, "{floor:?}");
        assert_eq!((floor.count, floor.at), (100, 5));
        assert_eq!((floors.of("ns", "other"), floors.of("elsewhere", "chat-a")), (None, None));
        for i in 0..100 {
            floors.add("ns", &format!("r{i}"), 10 + i, &all);
        }
        assert_eq!(floors.0.len(), FLOORS);
        assert_eq!(floors.of("ns", "chat-a"), None, "the oldest goes first");
    }
}
