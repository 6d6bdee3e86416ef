//! Gates that cannot decide, found before a rollout: by the planning formulas of [`crate::stats::forecast`], which lie
//! within about 30 % of simulation.

use super::{Course, Step, Users};
use crate::{
    Span,
    evidence::{Gate, OnNoTraffic, ab::AbMetric},
    model::{AbTest, GuardRule, OnEnd, Pace},
    plan::ab_settings,
    stats::{asymptotic, forecast, histogram::Shift},
};
use statrs::distribution::{ContinuousCDF, Normal};

/// What is known of the place in which a gate will decide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// Requests per second of both arms together; 0: none.
    pub rate: f64,
    /// Error rate of a healthy revision.
    pub errors: f64,
    /// Cosine of a good candidate: mean and standard deviation over prompts.
    pub cosine: (f64, f64),
    /// Share of a good candidate's prompts under the tail threshold.
    pub tail: f64,
    /// Standard deviation of one generation's time, in logarithms.
    pub pair_noise: f64,
    /// Standard deviation of a pod's own speed, in logarithms: what nodes differ by.
    pub pod_spread: f64,
    /// Pods of the candidate and of stable.
    pub pods: (u32, u32),
    /// Users of an A/B test, with the smallest difference between candidate and stable that matters.
    pub users: Users,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Even a good candidate will not be promoted.
    CannotDecide,
    /// A decision will come, but be weaker or later than it looks.
    Weak,
}

/// One finding: which field, what about it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The field of the rollout or of its gate.
    pub field: &'static str,
    /// What holds, with numbers.
    pub rule: String,
    /// What would end it.
    pub remedy: String,
}

/// Requests of the smaller arm at the last step that prove p95 and p99 of an identical candidate (simulated, with blocks
/// of 30 s).
const P95_REQUESTS: f64 = 3_000.0;
const P99_REQUESTS: f64 = 14_000.0;

/// Requests of stable at the last step from which the judge asks for live latency at all.
const LIVE_REQUESTS: f64 = 6_000.0;

/// Pods per arm under which a slow node cannot be told from a slow model.
const PODS: u32 = 3;

/// Largest cosine that a threshold may ask for: rounding of bf16 alone moves logits by more than the rest.
const NOISE_FLOOR: f64 = 0.999;

/// Generations of stable that the scale of the error votes is taken from where there is no traffic.
const HISTORY_GENERATIONS: f64 = 100.0;

/// Length of the tripwire's window in seconds, and of a block of pairs.
const WINDOW: f64 = 60.0;
const BLOCK: f64 = 10.0;

/// Alarms per year that a guard may raise of a model on its margins: more, and nobody heeds them.
const ALARMS_A_YEAR: f64 = 12.0;

/// Finds what keeps a gate from deciding, worst first; nothing where it can. `guard` is what follows a promotion, if anything
/// does.
pub fn lint(gate: &Gate, course: &Course, guard: Option<&GuardRule>, setting: &Setting) -> Vec<Finding> {
    let mut found = Found { list: Vec::new() };
    found.quality(gate, setting);
    // A test that only reports asks no proof of latency.
    if !matches!(course, Course::Test(test) if test.on_end == OnEnd::Report) {
        found.pairs(gate, setting);
    }
    match course {
        Course::Steps(steps, pace) => {
            // A step that the evidence ends takes at least one block.
            let least = Span::seconds(BLOCK as i64).max(gate.interval);
            let timed = |step: &Step| if *pace == Pace::Time { *step } else { Step { duration: least, ..*step } };
            let steps: Vec<Step> = steps.iter().map(timed).collect();
            found.steps(gate, &steps, setting);
            found.traffic(gate, &steps, setting);
        }
        Course::Switch { .. } => found.window(gate, 100, setting),
        Course::Test(test) => found.test(gate, test, setting),
    }
    if let Some(rule) = guard {
        found.guard(rule, setting);
    }
    found.pods(gate, setting);
    found.list.sort_by_key(|f| f.severity);
    found.list
}

struct Found {
    list: Vec<Finding>,
}

impl Found {
    fn cannot(&mut self, field: &'static str, rule: String, remedy: impl Into<String>) {
        self.list.push(Finding { severity: Severity::CannotDecide, field, rule, remedy: remedy.into() });
    }

    fn weak(&mut self, field: &'static str, rule: String, remedy: impl Into<String>) {
        self.list.push(Finding { severity: Severity::Weak, field, rule, remedy: remedy.into() });
    }

    fn steps(&mut self, gate: &Gate, steps: &[Step], setting: &Setting) {
        let Some(last) = steps.last() else {
            return self.cannot("spec.strategy", "there is no step".into(), "give at least one weight");
        };
        let dwell = dwell(steps);
        if dwell.0 >= gate.deadline.0 {
            self.cannot(
                "deadline",
                format!("the steps take {} s, the deadline is after {} s", seconds(dwell), seconds(gate.deadline)),
                "shorten the steps or lengthen the deadline",
            );
        }
        // Load per pod, in whole numbers.
        let candidate = u64::from(last.weight) * u64::from(setting.pods.1);
        let stable = u64::from(100 - last.weight.min(100)) * u64::from(setting.pods.0);
        if candidate < stable {
            let rule = format!(
                "at the last step ({} %) the candidate's pods have less load than stable's: latency cannot be decided \
                 under load",
                last.weight
            );
            let remedy = format!("end the list with {} %, equal load per pod", equal_load(setting.pods));
            if live_asked(gate, steps, setting) {
                self.cannot("spec.strategy.canary.steps", rule, remedy);
            } else {
                self.weak("spec.strategy.canary.steps", rule, remedy);
            }
        } else if candidate > stable {
            self.weak(
                "spec.strategy.canary.steps",
                format!(
                    "at the last step ({} %) the candidate's pods have more load than stable's: there a slow candidate \
                     is found by pairs only",
                    last.weight
                ),
                format!("end the list with {} %, equal load per pod", equal_load(setting.pods)),
            );
        }
    }

    fn quality(&mut self, gate: &Gate, setting: &Setting) {
        let prompts = f64::from(gate.probes.per_tick) * f64::from(gate.horizon());
        for (field, wanted) in [("preflight", gate.preflight), ("minSamples", gate.min_samples)] {
            if f64::from(wanted) > prompts {
                self.cannot(
                    field,
                    format!("{wanted} prompts are asked for, and {prompts} fit into the deadline"),
                    "lower it, or raise probes.perTick or deadline",
                );
            }
        }
        if gate.min_mean > NOISE_FLOOR || gate.tail_min > NOISE_FLOOR {
            self.weak(
                "signals.cosine",
                format!("a threshold above {NOISE_FLOOR} lies inside the noise of rounding"),
                "lower it: the same model on another kernel may miss it",
            );
        }
        let (mean, sd) = setting.cosine;
        let needed = forecast::bounded_mean(gate.alpha_promote, mean - gate.min_mean, sd * sd, gate.min_mean);
        self.enough("signals.cosine.minMean", needed, prompts, "prompts", || {
            format!("a candidate with a mean cosine of {mean} must prove more than {}", gate.min_mean)
        });
        let below = (setting.tail < gate.tail_share)
            .then(|| forecast::share(gate.alpha_promote, setting.tail, gate.tail_share))
            .flatten();
        self.enough("signals.cosine.tail", below, prompts, "prompts", || {
            format!(
                "a candidate with {} of its prompts in the tail must prove less than {}",
                setting.tail, gate.tail_share
            )
        });
    }

    fn pairs(&mut self, gate: &Gate, setting: &Setting) {
        let blocks = gate.deadline.as_seconds() / BLOCK.max(gate.interval.as_seconds());
        // Of the pairs of a block at least half are alone on a worker that is 30 % busy.
        let per_block = f64::from(gate.probes.pairs) * (BLOCK / gate.interval.as_seconds()).max(1.0) / 2.0;
        let unit = 1.5f64.ln();
        let mean = (gate.max_ratio.ln() / unit).min(1.0);
        let variance = 2.0 * (setting.pair_noise / unit).powi(2) / per_block.max(1.0);
        let needed = forecast::votes(gate.alpha_promote, mean, variance);
        self.enough("signals.latency.maxRatio", needed, blocks, "blocks of pairs", || {
            format!("an equally fast candidate must prove less than {} times", gate.max_ratio)
        });
        if Shift::of(gate.max_ratio).not_worse == 0 {
            self.weak(
                "signals.latency.maxRatio",
                format!(
                    "{} is less than one bucket (1.095): live latency is compared without any margin",
                    gate.max_ratio
                ),
                "write at least 1.1, or 1.2 for two whole buckets",
            );
        }
    }

    fn traffic(&mut self, gate: &Gate, steps: &[Step], setting: &Setting) {
        let Some((first, last)) = steps.first().zip(steps.last()) else { return };
        if setting.rate <= 0.0 {
            return self.silence(gate, steps, setting);
        }
        let equal = forecast::error_excess(gate.alpha_promote, setting.errors, setting.errors, gate.max_excess);
        let available = available(gate, steps, setting);
        self.enough("signals.errors.maxExcess", equal, available, "requests of the smaller arm", || {
            format!(
                "at an error rate of {} a candidate that is no worse must prove an excess under {}",
                setting.errors, gate.max_excess
            )
        });
        if live_asked(gate, steps, setting) {
            let smaller = at_last(gate, steps) * setting.rate * f64::from(last.weight.min(100 - last.weight)) / 100.0;
            for (asked, needed, name) in
                [(gate.percentiles.p99, P99_REQUESTS, "p99"), (gate.percentiles.p95, P95_REQUESTS, "p95")]
            {
                if asked && smaller < needed {
                    self.cannot(
                        "signals.latency.percentiles",
                        format!(
                            "{name} takes about {needed} requests per arm at the last step, {smaller:.0} will come"
                        ),
                        format!("leave {name} out (rollback watches it in any case), or lengthen the deadline"),
                    );
                }
            }
        }
        self.window(gate, first.weight, setting);
    }

    /// The users of an A/B test; and what the gate asks where it may promote.
    fn test(&mut self, gate: &Gate, test: &AbTest, setting: &Setting) {
        self.window(gate, test.weight(), setting);
        if test.on_end == OnEnd::Promote {
            // At the split it is the test's time that counts, not the gate's deadline.
            let lasting = Gate { deadline: test.duration(), ..gate.clone() };
            let step = Step { weight: test.weight(), duration: Span(0) };
            self.traffic(&lasting, &[step], setting);
        }
        let Some(metric) = test.metric else { return };
        let users = setting.users;
        let all = users.per_second * test.duration().as_seconds();
        let share = f64::from(test.weight()) / 100.0;
        let (candidate, stable) = (all * share, all * (1.0 - share));
        let alpha = ab_settings(test, gate).alpha;
        let (rule, enough) = match metric {
            AbMetric::Conversion => {
                let needed = forecast::two_shares(alpha, users.outcome.0, users.outcome.1);
                // Of unequal arms as much comes as of equal ones of this size.
                let equal = 2.0 * candidate * stable / all.max(1.0);
                let text = needed.map_or("cannot be told apart".to_owned(), |n| {
                    format!("take about {n} users per arm, and as much as {equal:.0} will come")
                });
                (text, needed.is_some_and(|n| n as f64 <= equal))
            }
            AbMetric::Mean { .. } => {
                let least = candidate.min(stable);
                let variance = users.deviation.powi(2) * (1.0 / candidate.max(1.0) + 1.0 / stable.max(1.0));
                let planned = ab_settings(test, gate).planned as f64;
                let rho = asymptotic::narrowest_at(planned, alpha);
                let half = asymptotic::half_width(all.max(1.0), (all.max(1.0) * variance).sqrt(), rho, alpha);
                let gap = (users.outcome.0 - users.outcome.1).abs();
                let text = format!(
                    "can be told apart if they are {half:.3} apart at the end, with {least:.0} users in the smaller arm \
                     (at least {} are asked for)",
                    asymptotic::LEAST
                );
                (text, half <= gap && least >= asymptotic::LEAST as f64)
            }
        };
        if !enough {
            self.cannot(
                "spec.strategy.abTest.duration",
                format!("outcomes of {:.4} and {:.4} {rule}", users.outcome.0, users.outcome.1),
                "test longer, split evenly, or ask for a larger difference",
            );
        }
    }

    /// A guard that will call a good model, or call too often.
    fn guard(&mut self, rule: &GuardRule, setting: &Setting) {
        let settings = &rule.settings;
        let cases = [
            (setting.cosine.0 <= settings.min_mean, "mean cosine", setting.cosine.0, settings.min_mean),
            (setting.tail >= settings.tail_share, "share in the tail", setting.tail, settings.tail_share),
        ];
        for (_, name, good, margin) in cases.into_iter().filter(|c| c.0) {
            self.cannot(
                "spec.guard",
                format!("a good model's {name} is {good}, the margin is {margin}: the guard will send it back to fp16"),
                "widen the gate's margin, or leave the guard out",
            );
        }
        let years = settings.run_length * rule.interval.as_seconds() / (365.0 * 86_400.0);
        if years * ALARMS_A_YEAR < 1.0 {
            self.weak(
                "spec.guard.interval",
                format!(
                    "a comparison every {} s calls a model on its margins every {:.0} days on average",
                    rule.interval.as_seconds(),
                    years * 365.0
                ),
                "compare less often: a healthy model is called far less, but not never",
            );
        }
    }

    /// Without live requests the pairs' generations stand in for them.
    fn silence(&mut self, gate: &Gate, steps: &[Step], setting: &Setting) {
        if gate.on_no_traffic == OnNoTraffic::Hold {
            return self.cannot(
                "onNoTraffic",
                "there is no traffic, and the gate asks to hold then".into(),
                "set it to Probe: the pairs' generations stand in for requests",
            );
        }
        let first = steps.first().map_or(0.0, |s| seconds(s.duration));
        let ticks = ((seconds(gate.deadline) - preflight(gate) - first) / gate.interval.as_seconds()).max(0.0);
        let available = (ticks * f64::from(gate.probes.pairs) - HISTORY_GENERATIONS).max(0.0);
        let needed = forecast::error_excess(gate.alpha_promote, setting.errors, setting.errors, gate.max_excess);
        if let Some(needed) = needed.filter(|n| *n as f64 > available) {
            let per_tick = (needed as f64 + HISTORY_GENERATIONS) / ticks.max(1.0);
            self.cannot(
                "onNoTraffic",
                format!(
                    "without live requests {} pairs per tick stand in for them: {available:.0} fit into the deadline, \
                     proving an excess under {} takes about {needed}",
                    gate.probes.pairs, gate.max_excess
                ),
                format!(
                    "raise probes.pairs to {:.0} (64 is the most), widen maxExcess, lengthen the deadline, or bring \
                     requests",
                    per_tick.ceil()
                ),
            );
        }
    }

    /// The tripwire's window at the first weight.
    fn window(&mut self, gate: &Gate, weight: u32, setting: &Setting) {
        let in_window = setting.rate * f64::from(weight) / 100.0 * WINDOW;
        if setting.rate > 0.0 && in_window < f64::from(gate.tripwire.min_requests) {
            self.weak(
                "tripwire.minRequests",
                format!(
                    "at {weight} % the candidate gets {in_window:.0} requests a minute, the tripwire waits for {}",
                    gate.tripwire.min_requests
                ),
                "lower it, or begin with a larger weight: until then only the verdict stops a failing candidate",
            );
        }
    }

    /// Pods that differ: no statistic can tell a slow node from a slow model.
    fn pods(&mut self, gate: &Gate, setting: &Setting) {
        let chance = slower_by_luck(gate.max_ratio, setting);
        if chance > gate.alpha_rollback {
            self.weak(
                "signals.latency.maxRatio",
                format!(
                    "pods that differ by {:.0} % (one standard deviation) make {:.1} % of identical candidates slower than \
                     {} times: they are rolled back, and confidence.rollback ({}) does not hold",
                    100.0 * setting.pod_spread,
                    100.0 * chance,
                    gate.max_ratio,
                    1.0 - gate.alpha_rollback
                ),
                "use more pods per arm, equal nodes, or a wider margin",
            );
        }
        let fewest = setting.pods.0.min(setting.pods.1);
        if fewest < PODS {
            self.weak(
                "spec.model.replicas",
                format!("{fewest} pod(s) in an arm: a slow node cannot be told from a slow model"),
                format!(
                    "run at least {PODS} pods per arm, or keep maxRatio ({}) above what your nodes differ by",
                    gate.max_ratio
                ),
            );
        }
    }

    /// Refuses where more is needed than comes; nothing is enough where there is no gap.
    fn enough(
        &mut self,
        field: &'static str,
        needed: Option<u64>,
        available: f64,
        unit: &str,
        claim: impl FnOnce() -> String,
    ) {
        match needed {
            None => self.cannot(
                field,
                format!("{}: it lies on the margin or beyond it", claim()),
                "widen the margin, or expect this candidate never to be promoted",
            ),
            Some(needed) if needed as f64 > available => self.cannot(
                field,
                format!("{}: that takes about {needed} {unit}, {available:.0} fit into the deadline", claim()),
                "widen the margin, lengthen the deadline, or bring more data per tick",
            ),
            Some(_) => {}
        }
    }
}

/// The chance that a model identical to stable gets pods that are slower than stable's by more than the margin: the speeds of
/// both arms' pods are averages of log-normal factors.
pub fn slower_by_luck(max_ratio: f64, setting: &Setting) -> f64 {
    let part = |pods: u32| 1.0 / f64::from(pods.max(1));
    let deviation = setting.pod_spread * (part(setting.pods.0) + part(setting.pods.1)).sqrt();
    if deviation > 0.0 { Normal::standard().sf(max_ratio.ln() / deviation) } else { 0.0 }
}

/// Dwell of all steps.
fn dwell(steps: &[Step]) -> Span {
    Span(steps.iter().fold(0i64, |sum, s| sum.saturating_add(s.duration.0)))
}

fn seconds(span: Span) -> f64 {
    span.as_seconds()
}

/// The weight at which both arms have the same load per pod.
fn equal_load((candidate, stable): (u32, u32)) -> u32 {
    let share = 100.0 * f64::from(candidate) / f64::from((candidate + stable).max(1));
    (share.round() as u32).clamp(1, 99)
}

/// Seconds of the preflight.
fn preflight(gate: &Gate) -> f64 {
    (f64::from(gate.preflight) / f64::from(gate.probes.per_tick.max(1))).ceil() * gate.interval.as_seconds()
}

/// Seconds at the last step until the deadline.
fn at_last(gate: &Gate, steps: &[Step]) -> f64 {
    let before = dwell(&steps[..steps.len().saturating_sub(1)]).as_seconds();
    (gate.deadline.as_seconds() - preflight(gate) - before).max(0.0)
}

/// Requests of the smaller arm from the first step to the deadline: evidence on errors is kept from step to step.
fn available(gate: &Gate, steps: &[Step], setting: &Setting) -> f64 {
    let part = |step: &Step, time: f64| setting.rate * time * f64::from(step.weight.min(100 - step.weight)) / 100.0;
    let Some((last, before)) = steps.split_last() else { return 0.0 };
    before.iter().map(|s| part(s, s.duration.as_seconds())).sum::<f64>() + part(last, at_last(gate, steps))
}

/// The judge will ask a promotion for live latency.
fn live_asked(gate: &Gate, steps: &[Step], setting: &Setting) -> bool {
    let stable = steps.last().map_or(0.0, |s| f64::from(100 - s.weight.min(100)) / 100.0);
    at_last(gate, steps) * setting.rate * stable >= LIVE_REQUESTS
}
