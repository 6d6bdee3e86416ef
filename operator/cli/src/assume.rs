//! What a computation must assume about a place that it cannot see: its traffic, its models and its nodes.

use bitnet_api::units::Duration;
use bitnet_core::{
    Span,
    evidence::{Gate, ab::AbMetric},
    model::AbTest,
    simulate::{Users, World, lint::Setting},
};

/// The assumptions; the more of them are yours, the better the answer.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Assumptions")]
pub(crate) struct Assumptions {
    /// Requests per second of both arms together; 0: none.
    #[arg(long, default_value_t = 20.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Error rate of stable and of a good candidate.
    #[arg(long, default_value_t = 0.002, value_parser = share)]
    pub(crate) errors: f64,
    /// Mean cosine of a good candidate's prompts (`inference-worker evaluate` measures it).
    #[arg(long, default_value_t = 0.965, value_parser = share)]
    pub(crate) cosine: f64,
    /// Its standard deviation over prompts.
    #[arg(long, default_value_t = 0.025, value_parser = share)]
    pub(crate) cosine_sd: f64,
    /// Share of a good candidate's prompts under the gate's tail threshold.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub(crate) tail: f64,
    /// Standard deviation of one generation's time on an idle engine, in logarithms (.2: 20 %).
    #[arg(long, default_value_t = 0.2, value_parser = spread)]
    pub(crate) noise: f64,
    /// Standard deviation of a pod's own speed, in logarithms: what your nodes differ by.
    #[arg(long, default_value_t = 0.02, value_parser = spread)]
    pub(crate) pod_spread: f64,
    /// Latency of an arm that serves everything as a multiple of that without load.
    #[arg(long, default_value_t = 1.4, value_parser = factor)]
    pub(crate) load: f64,
    /// Share of ticks in which one arm alone is three times as slow and fails a fifth of its requests.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub(crate) bursts: f64,
    /// How long such a burst lasts (longer than a block of 10 s, it breaks the promise about rollbacks).
    #[arg(long, default_value = "10s", value_parser = length)]
    pub(crate) burst_length: Span,
    /// New users with an outcome per second, both arms of an A/B test together.
    #[arg(long, default_value_t = 1.0, value_parser = rate)]
    pub(crate) users: f64,
    /// Outcome of a user of stable: the share that converts (default .05), or the mean value (default: the middle of its range).
    #[arg(long, value_parser = any)]
    pub(crate) outcome: Option<f64>,
    /// Standard deviation of a user's value (default: a quarter of its range; a conversion has its own).
    #[arg(long, value_parser = any)]
    pub(crate) outcome_sd: Option<f64>,
    /// The difference of outcomes that matters, relative to stable's (.1: a tenth).
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    pub(crate) effect: f64,
}

fn any(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1e12)
}

fn length(text: &str) -> Result<Span, String> {
    Duration::from(text).milliseconds().map(Span).map_err(|e| e.to_string())
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("it must be {least} to {most}")) }
}

fn share(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1.0)
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1e6)
}

fn spread(text: &str) -> Result<f64, String> {
    number(text, 0.0, 2.0)
}

fn factor(text: &str) -> Result<f64, String> {
    number(text, 1.0, 100.0)
}

impl Assumptions {
    /// A good candidate, judged in ticks of `interval`.
    pub(crate) fn world(&self, pods: (u32, u32), interval: Span) -> World {
        World {
            cosine: (self.cosine, self.cosine_sd),
            tail: self.tail,
            before: ((self.cosine, self.cosine_sd), self.tail),
            errors: (self.errors, self.errors),
            load: self.load,
            bursts: self.bursts,
            burst: u32::try_from((self.burst_length.0 + interval.0 - 1) / interval.0.max(1)).unwrap_or(u32::MAX).max(1),
            pair_noise: self.noise,
            pods,
            pod_spread: self.pod_spread,
            history: if self.rate > 0.0 { 20_000 } else { 0 },
            ..World::equal(self.rate)
        }
    }

    /// The same for the lints.
    pub(crate) fn setting(&self, pods: (u32, u32), test: Option<&AbTest>) -> Setting {
        Setting {
            users: self.users_of(test.and_then(|t| t.metric).unwrap_or(AbMetric::Conversion), 1.0 + self.effect),
            rate: self.rate,
            errors: self.errors,
            cosine: (self.cosine, self.cosine_sd),
            tail: self.tail,
            pair_noise: self.noise,
            pod_spread: self.pod_spread,
            pods,
        }
    }
}

impl Assumptions {
    /// Users who fare `factor` times as well with the candidate.
    pub(crate) fn users_of(&self, metric: AbMetric, factor: f64) -> Users {
        let (low, high, usual) = match metric {
            AbMetric::Conversion => (0.0, 1.0, 0.05),
            AbMetric::Mean { low, high } => (low, high, f64::midpoint(low, high)),
        };
        let stable = self.outcome.unwrap_or(usual).clamp(low, high);
        Users {
            per_second: self.users,
            outcome: ((stable * factor).clamp(low, high), stable),
            deviation: self.outcome_sd.unwrap_or((high - low) / 4.0),
            lost: 0.0,
        }
    }
}

/// What is wrong with a candidate: `latency=1.5,errors=0.02,after=10m`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Defect {
    /// Multiple of stable's latency.
    latency: Option<f64>,
    /// Error rate.
    errors: Option<f64>,
    /// Mean cosine.
    cosine: Option<f64>,
    /// Share of prompts in the tail.
    tail: Option<f64>,
    /// It begins so long after the first comparison, in milliseconds.
    after: i64,
}

impl Defect {
    /// Reads `key=value,…`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut defect = Self::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not key=value"))?;
            let of = |least, most| number(value, least, most).map(Some).map_err(|e| format!("{key}: {e}"));
            match key {
                "latency" => defect.latency = of(0.01, 1000.0)?,
                "errors" => defect.errors = of(0.0, 1.0)?,
                "cosine" => defect.cosine = of(0.0, 1.0)?,
                "tail" => defect.tail = of(0.0, 1.0)?,
                "after" => {
                    defect.after = Duration::from(value).milliseconds().map_err(|e| format!("after: {e}"))?;
                }
                other => return Err(format!("`{other}` is none of latency, errors, cosine, tail and after")),
            }
        }
        if defect == (Self { after: defect.after, ..Self::default() }) {
            return Err("give at least one of latency, errors, cosine and tail".into());
        }
        Ok(defect)
    }

    /// One clear defect in each signal, as far beyond the gate's margin as matters in practice, and all of them at once in
    /// the middle of a rollout.
    pub(crate) fn usual(gate: &Gate, good: &Assumptions) -> Vec<Self> {
        let rounded = |x: f64| (x * 1000.0).round() / 1000.0;
        let latency = Some(rounded(gate.max_ratio * gate.max_ratio));
        let errors = Some(rounded((good.errors + 5.0 * gate.max_excess).min(1.0)));
        let cosine = Some(rounded(gate.min_mean - 0.02));
        let tail = Some(rounded((3.0 * gate.tail_share).min(0.9)));
        vec![
            Self { latency, ..Self::default() },
            Self { errors, ..Self::default() },
            Self { cosine, ..Self::default() },
            Self { tail, ..Self::default() },
            Self { latency, errors, cosine, tail, after: 600_000.min(gate.deadline.0 / 4) },
        ]
    }

    /// The world of a good candidate, with this defect.
    pub(crate) fn of(&self, good: &World, gate: &Gate) -> World {
        World {
            latency: self.latency.unwrap_or(good.latency),
            errors: (self.errors.unwrap_or(good.errors.0), good.errors.1),
            cosine: (self.cosine.unwrap_or(good.cosine.0), good.cosine.1),
            tail: self.tail.unwrap_or(good.tail),
            onset: u32::try_from(self.after / gate.interval.0.max(1)).unwrap_or(u32::MAX),
            ..*good
        }
    }

    /// In words.
    pub(crate) fn name(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.latency.map(|x| format!("latency {x}x")));
        parts.extend(self.errors.map(|x| format!("errors {} %", percent(x))));
        parts.extend(self.cosine.map(|x| format!("cosine {x}")));
        parts.extend(self.tail.map(|x| format!("tail {} %", percent(x))));
        let after = match self.after {
            0 => String::new(),
            ms => format!(", from {} on", crate::files::length(Span(ms))),
        };
        format!("{}{after}", parts.join(", "))
    }
}

/// A share as percent with at most two digits after the point.
pub(crate) fn percent(share: f64) -> String {
    let text = format!("{:.2}", 100.0 * share);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defects_are_read() {
        let defect = Defect::parse("latency=1.5,errors=0.02,after=10m").unwrap();
        assert_eq!(defect.name(), "latency 1.5x, errors 2 %, from 10m on");
        let cases = [
            ("latency", "is not key=value"),
            ("speed=2", "`speed` is none of"),
            ("errors=2", "errors: it must be 0 to 1"),
            ("tail=NaN", "tail: it must be 0 to 1"),
            ("after=10m", "give at least one"),
            ("latency=2,after=soon", "after: `soon` is no length of time"),
        ];
        for (text, part) in cases {
            let error = Defect::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn percents_are_short() {
        assert_eq!([percent(0.002), percent(0.5), percent(1.0), percent(0.00123)], ["0.2", "50", "100", "0.12"]);
    }
}
