//! The operator's own metrics. Labels are closed sets, except the rollout's name; its series die with it.

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Instant,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Told {
    channel: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    verdict: &'static str,
}

/// Labels of a rollout's series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct Object {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub rollout: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectPhase {
    namespace: String,
    rollout: String,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectSignal {
    namespace: String,
    rollout: String,
    signal: &'static str,
}

type Float = Gauge<f64, AtomicU64>;

/// Handles of all metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    steps: Family<Step, Histogram, fn() -> Histogram>,
    reconciles: Family<Outcome, Counter>,
    calls: Family<Call, Counter>,
    verdicts: Family<Verdict, Counter>,
    notifications: Family<Told, Counter>,
    violations: Counter,
    route_writes: Counter,
    status_writes: Counter,
    weight: Family<Object, Gauge>,
    evidence: Family<Object, Float>,
    phase: Family<ObjectPhase, Gauge>,
    estimate: Family<ObjectSignal, Float>,
    samples: Family<ObjectSignal, Gauge>,
    shadow_samples: Family<Object, Gauge>,
    shadow_cosine: Family<Object, Float>,
    phases: Arc<Mutex<BTreeMap<Object, &'static str>>>,
}

/// What a reconcile tells about its rollout.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `status.phase`.
    pub phase: &'static str,
    /// The candidate's weight.
    pub weight: u32,
    /// ln of the combined rollback e-value.
    pub ln_rollback: Option<f64>,
    /// Point estimates by signal.
    pub estimates: Vec<(&'static str, Option<f64>)>,
    /// Samples (prompts, pairs, requests) by signal.
    pub samples: Vec<(&'static str, u64)>,
    /// Live prompts compared for display, and the sum of their cosines.
    pub shadow: Option<(u64, f64)>,
}

const SIGNALS: [&str; 4] = ["cosine", "cosine-tail", "latency", "errors"];

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let mut registry = Registry::with_prefix("bitnet_operator");
        let metrics = Self {
            registry: Arc::new(Registry::default()),
            steps: Family::new_with_constructor(histogram),
            reconciles: Family::default(),
            calls: Family::default(),
            verdicts: Family::default(),
            notifications: Family::default(),
            violations: Counter::default(),
            route_writes: Counter::default(),
            status_writes: Counter::default(),
            weight: Family::default(),
            evidence: Family::default(),
            phase: Family::default(),
            estimate: Family::default(),
            samples: Family::default(),
            shadow_samples: Family::default(),
            shadow_cosine: Family::default(),
            phases: Arc::default(),
        };
        registry.register_with_unit("step", "Time of each step of a reconcile", Unit::Seconds, metrics.steps.clone());
        registry.register("reconciles", "Reconciles by outcome", metrics.reconciles.clone());
        registry.register("worker_calls", "Calls of workers by outcome", metrics.calls.clone());
        registry.register("verdicts", "Verdicts written to a route", metrics.verdicts.clone());
        registry.register("notifications", "Notifications by receiver and outcome", metrics.notifications.clone());
        registry.register("plan_violations", "Plans that the lint refused (a bug)", metrics.violations.clone());
        registry.register("route_writes", "Writes of routes that took effect", metrics.route_writes.clone());
        registry.register("status_writes", "Writes of status that took effect", metrics.status_writes.clone());
        registry.register("candidate_weight", "Percent of the traffic on the candidate", metrics.weight.clone());
        registry.register(
            "rollback_evidence",
            "ln of the combined e-value against the candidate",
            metrics.evidence.clone(),
        );
        registry.register("phase", "1 for the phase that a rollout is in", metrics.phase.clone());
        registry.register("signal_estimate", "Point estimate of a signal in its unit", metrics.estimate.clone());
        registry.register("signal_samples", "Samples of a signal in the running attempt", metrics.samples.clone());
        let help = "Live prompts compared for display in the running attempt";
        registry.register("shadow_samples", help, metrics.shadow_samples.clone());
        registry.register("shadow_cosine", "Mean cosine of those prompts", metrics.shadow_cosine.clone());
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl Metrics {
    /// The text of `/metrics`.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Measures a step until the answer is dropped.
    pub fn step(&self, step: &'static str) -> Stopwatch {
        Stopwatch { histogram: self.steps.get_or_create(&Step { step }).clone(), start: Instant::now() }
    }

    /// Counts a reconcile; `outcome` from a closed set.
    pub fn reconciled(&self, outcome: &'static str) {
        self.reconciles.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a call of a worker; `outcome` is `ok` or a class of [`crate::worker::Error`].
    pub fn called(&self, call: &'static str, outcome: &'static str) {
        self.calls.get_or_create(&Call { call, outcome }).inc();
    }

    /// Counts a verdict that was written.
    pub fn verdict(&self, verdict: &'static str) {
        self.verdicts.get_or_create(&Verdict { verdict }).inc();
    }

    /// Counts a notification; `channel` is one of the settings', `outcome` is `sent`, `failed` or `dropped`.
    pub fn notified(&self, channel: &str, outcome: &'static str) {
        self.notifications.get_or_create(&Told { channel: channel.to_owned(), outcome }).inc();
    }

    /// Counts violations of the lint.
    pub fn violations(&self, count: usize) {
        self.violations.inc_by(count as u64);
    }

    /// Counts a route write.
    pub fn route_written(&self) {
        self.route_writes.inc();
    }

    /// Counts a status write.
    pub fn status_written(&self) {
        self.status_writes.inc();
    }

    /// Sets a rollout's series.
    pub fn observe(&self, object: &Object, facts: &Facts) {
        self.weight.get_or_create(object).set(i64::from(facts.weight));
        if let Some(ln) = facts.ln_rollback {
            self.evidence.get_or_create(object).set(ln);
        }
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let before = phases.insert(object.clone(), facts.phase);
        if let Some(old) = before.filter(|old| *old != facts.phase) {
            self.phase.remove(&phase_label(object, old));
        }
        self.phase.get_or_create(&phase_label(object, facts.phase)).set(1);
        for &(signal, estimate) in &facts.estimates {
            if let Some(value) = estimate {
                self.estimate.get_or_create(&signal_label(object, signal)).set(value);
            }
        }
        for &(signal, samples) in &facts.samples {
            self.samples.get_or_create(&signal_label(object, signal)).set(samples as i64);
        }
        if let Some((samples, cosine)) = facts.shadow {
            self.shadow_samples.get_or_create(object).set(samples as i64);
            if samples > 0 {
                self.shadow_cosine.get_or_create(object).set(cosine / samples as f64);
            } else {
                self.shadow_cosine.remove(object);
            }
        }
    }

    /// Drops a rollout's series.
    pub fn forget(&self, object: &Object) {
        self.weight.remove(object);
        self.evidence.remove(object);
        self.shadow_samples.remove(object);
        self.shadow_cosine.remove(object);
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = phases.remove(object) {
            self.phase.remove(&phase_label(object, old));
        }
        for signal in SIGNALS {
            self.estimate.remove(&signal_label(object, signal));
            self.samples.remove(&signal_label(object, signal));
        }
    }
}

fn phase_label(object: &Object, phase: &'static str) -> ObjectPhase {
    ObjectPhase { namespace: object.namespace.clone(), rollout: object.rollout.clone(), phase }
}

fn signal_label(object: &Object, signal: &'static str) -> ObjectSignal {
    ObjectSignal { namespace: object.namespace.clone(), rollout: object.rollout.clone(), signal }
}

/// Observes its lifetime.
pub struct Stopwatch {
    histogram: Histogram,
    start: Instant,
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.histogram.observe(self.start.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_die_with_their_object() {
        let metrics = Metrics::default();
        let object = |name: &str| Object { namespace: "ns".into(), rollout: name.into() };
        let mut facts = Facts {
            phase: "Progressing",
            weight: 20,
            ln_rollback: Some(-1.5),
            estimates: vec![("cosine", Some(0.97)), ("errors", None)],
            samples: vec![("cosine", 120)],
            shadow: Some((40, 39.0)),
        };
        metrics.observe(&object("one"), &facts);
        metrics.observe(&object("two"), &facts);
        facts.phase = "Serving";
        metrics.observe(&object("one"), &facts);
        let text = metrics.encode().unwrap();
        assert!(text.contains(r#"bitnet_operator_candidate_weight{namespace="ns",rollout="one"} 20"#), "{text}");
        assert!(!text.contains(r#"rollout="one",phase="Progressing""#), "the old phase is gone: {text}");
        let samples = r#"bitnet_operator_signal_samples{namespace="ns",rollout="one",signal="cosine"} 120"#;
        assert!(text.contains(samples), "{text}");
        let shadow = r#"bitnet_operator_shadow_cosine{namespace="ns",rollout="one"} 0.975"#;
        assert!(text.contains(shadow), "{text}");
        metrics.forget(&object("one"));
        let text = metrics.encode().unwrap();
        assert!(!text.contains(r#"rollout="one""#), "{text}");
        assert!(text.contains(r#"rollout="two""#), "{text}");
    }
}
