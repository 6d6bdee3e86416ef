//! `/metrics`: the same facts as the counters, in standard bucket layouts, under our names and under those that vLLM
//! dashboards, autoscalers and gateways already read.

use super::account::ErrorClass;
use crate::engine::{Engine, Finish};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

/// vLLM's layouts, extended downwards: small models on a CPU answer in less than a millisecond.
const FIRST_TOKEN: [f64; 22] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0,
];
const PER_TOKEN: [f64; 20] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
    2.5, 5.0,
];
const WHOLE: [f64; 21] = [
    0.001, 0.005, 0.02, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0,
];

/// All series of one worker; cheap to update.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    ttft: Histogram,
    inter_token: Histogram,
    whole: Histogram,
    queued: Histogram,
    success: Family<Finished, Counter>,
    failed: Family<Failed, Counter>,
    disconnected: Counter,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    running: Gauge,
    waiting: Gauge,
    cache_use: Gauge<f64, AtomicU64>,
    busy: Counter<f64, AtomicU64>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Failed {
    class: Class,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variant's name is the label's value, in Prometheus' own style")]
enum Class {
    server,
    overloaded,
    timeout,
    broken_stream,
    non_finite,
}

impl Metrics {
    /// Series at zero, labelled `model_name`.
    pub(crate) fn new(model_name: &str) -> Self {
        let labels = [(Cow::Borrowed("model_name"), Cow::Owned(model_name.to_owned()))];
        let metrics = Self {
            registry: Mutex::default(),
            ttft: Histogram::new(FIRST_TOKEN),
            inter_token: Histogram::new(PER_TOKEN),
            whole: Histogram::new(WHOLE),
            queued: Histogram::new(FIRST_TOKEN),
            success: Family::default(),
            failed: Family::default(),
            disconnected: Counter::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            cache_use: Gauge::default(),
            busy: Counter::default(),
        };
        let mut registry = Registry::with_labels(labels.into_iter());
        metrics.register(&mut registry);
        Self { registry: Mutex::new(registry), ..metrics }
    }

    fn register(&self, to: &mut Registry) {
        for (ours, theirs, help, histogram) in [
            ("time_to_first_token_seconds", "time_to_first_token_seconds", "Arrival to first token", &self.ttft),
            (
                "inter_token_latency_seconds",
                "inter_token_latency_seconds",
                "Time between two tokens",
                &self.inter_token,
            ),
            ("request_latency_seconds", "e2e_request_latency_seconds", "Arrival to the end of the answer", &self.whole),
            ("request_queue_time_seconds", "request_queue_time_seconds", "Arrival to first forward pass", &self.queued),
        ] {
            to.register(format!("bitnet_{ours}"), help, histogram.clone());
            to.register(format!("vllm:{theirs}"), help, histogram.clone());
        }
        for (ours, theirs, help, gauge) in [
            ("requests_running", "num_requests_running", "Jobs in the batch", &self.running),
            ("requests_waiting", "num_requests_waiting", "Jobs in the queue", &self.waiting),
        ] {
            to.register(format!("bitnet_{ours}"), help, gauge.clone());
            to.register(format!("vllm:{theirs}"), help, gauge.clone());
        }
        for (name, help, counter) in [
            ("prompt_tokens", "Prompt tokens read for live requests", &self.prompt_tokens),
            ("generation_tokens", "Tokens generated for live requests", &self.generated_tokens),
        ] {
            to.register(format!("bitnet_{name}"), help, counter.clone());
            to.register(format!("vllm:{name}"), help, counter.clone());
        }
        let help = "Share of the cache that full batches of the longest sequences would need";
        to.register("bitnet_kv_cache_usage_ratio", help, self.cache_use.clone());
        to.register("vllm:kv_cache_usage_perc", help, self.cache_use.clone());
        let help = "Answers that ended well, by how they ended";
        to.register("bitnet_requests_finished", help, self.success.clone());
        to.register("vllm:request_success", help, self.success.clone());
        to.register("bitnet_requests_failed", "Requests that ended in an error, by class", self.failed.clone());
        to.register("bitnet_requests_disconnected", "Requests whose client went away", self.disconnected.clone());
        to.register("bitnet_engine_busy_seconds", "Seconds in which the engine worked", self.busy.clone());
    }

    /// Adds the constant series that says what serves.
    pub(crate) fn set_build(&self, revision: &str, precision: &str, kernel: &str, device: &str) {
        let labels = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", revision.to_owned()),
            ("precision", precision.to_owned()),
            ("kernel", kernel.to_owned()),
            ("device", device.to_owned()),
        ];
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("bitnet_build", "What serves", Info::new(Vec::from(labels)));
    }

    /// Everything in OpenMetrics text; gauges are those of `engine` now, `room` the tokens that its caches may hold.
    pub(crate) fn render(&self, engine: Option<&Engine>, room: usize) -> Result<String, std::fmt::Error> {
        if let Some(engine) = engine {
            self.running.set(engine.running() as i64);
            self.waiting.set(engine.waiting() as i64);
            self.cache_use.set(engine.cached_tokens() as f64 / room.max(1) as f64);
            let busy = engine.busy_seconds();
            self.busy.inc_by((busy - self.busy.get()).max(0.0));
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }

    pub(super) fn first_token(&self, seconds: f64) {
        self.ttft.observe(seconds);
    }

    pub(super) fn between_tokens(&self, seconds: f64) {
        self.inter_token.observe(seconds);
    }

    pub(super) fn queued(&self, seconds: f64) {
        self.queued.observe(seconds);
    }

    pub(super) fn finished(&self, finish: Finish, prompt: u64, generated: u64, seconds: f64) {
        self.success.get_or_create(&Finished { finished_reason: finish.reason() }).inc();
        self.prompt_tokens.inc_by(prompt);
        self.generated_tokens.inc_by(generated);
        self.whole.observe(seconds);
    }

    pub(super) fn failed(&self, class: ErrorClass) {
        let class = match class {
            ErrorClass::Server => Class::server,
            ErrorClass::Overloaded => Class::overloaded,
            ErrorClass::Timeout => Class::timeout,
            ErrorClass::BrokenStream => Class::broken_stream,
            ErrorClass::NonFinite => Class::non_finite,
        };
        self.failed.get_or_create(&Failed { class }).inc();
    }

    pub(super) fn withdrawn(&self) {
        self.disconnected.inc();
    }
}
