//! `/metrics`: the same facts as the counters, in standard bucket layouts, under our names and on request under those
//! that vLLM dashboards, autoscalers and gateways already read.

use super::account::ErrorClass;
use super::energy::Energy;
use crate::engine::{Engine, Finish};
use bitnet_api::worker::ShadowResult;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// Under which names metrics are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// `bitnet_…`.
    #[default]
    Ours,
    /// Also those of vLLM, where they mean the same.
    AndVllm,
}

/// What serves, for the constant series `bitnet_build_info`.
pub(crate) struct Build<'a> {
    pub(crate) revision: &'a str,
    pub(crate) precision: &'a str,
    pub(crate) kernel: &'a str,
    pub(crate) device: &'a str,
    pub(crate) threads: usize,
}

/// All series of one worker; cheap to update.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    /// A gauge, not OpenMetrics' `info`: the classic format has no such type.
    build: Family<Vec<(&'static str, String)>, Gauge>,
    energy: Mutex<Energy>,
    ttft: Histogram,
    inter_token: Histogram,
    whole: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    success: Family<Finished, Counter>,
    failed: Family<Failed, Counter>,
    disconnected: Counter,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    running: Gauge,
    waiting: Gauge,
    cache_use: Gauge<f64, AtomicU64>,
    busy: Counter<f64, AtomicU64>,
    passes: Counter,
    weight_bytes: Counter,
    per_pass: Gauge,
    planned: Family<Planned, Gauge>,
    reused: Counter,
    looked_up: Counter,
    /// Never raised: memory for a whole answer is planned before it begins.
    preempted: Counter,
    non_finite: Counter,
    switches: Counter,
    handed_on: Family<HandedOn, Counter>,
    joules: Family<Package, Counter<f64, AtomicU64>>,
    background: Counter<f64, AtomicU64>,
    shadow_samples: Counter,
    /// A family, so that it can be absent.
    shadow_cosine: Family<[(&'static str, String); 0], Gauge<f64, AtomicU64>>,
    shadow_dropped: Family<Dropped, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Package {
    package: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Planned {
    part: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Dropped {
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HandedOn {
    reason: &'static str,
    outcome: &'static str,
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
    fallback,
}

impl Metrics {
    /// Series at zero, labelled `model_name`.
    pub(crate) fn new(model_name: &str, names: Names) -> Self {
        let labels = [(Cow::Borrowed("model_name"), Cow::Owned(model_name.to_owned()))];
        let metrics = Self {
            registry: Mutex::default(),
            build: Family::default(),
            energy: Mutex::new(Energy::of_this_host()),
            ttft: Histogram::new(FIRST_TOKEN),
            inter_token: Histogram::new(PER_TOKEN),
            whole: Histogram::new(WHOLE),
            queued: Histogram::new(FIRST_TOKEN),
            prefill: Histogram::new(FIRST_TOKEN),
            decode: Histogram::new(WHOLE),
            success: Family::default(),
            failed: Family::default(),
            disconnected: Counter::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            cache_use: Gauge::default(),
            busy: Counter::default(),
            passes: Counter::default(),
            weight_bytes: Counter::default(),
            per_pass: Gauge::default(),
            planned: Family::default(),
            reused: Counter::default(),
            looked_up: Counter::default(),
            preempted: Counter::default(),
            non_finite: Counter::default(),
            switches: Counter::default(),
            handed_on: Family::default(),
            joules: Family::default(),
            background: Counter::default(),
            shadow_samples: Counter::default(),
            shadow_cosine: Family::default(),
            shadow_dropped: Family::default(),
        };
        let mut registry = Registry::with_labels(labels.into_iter());
        metrics.register(&mut registry);
        if names == Names::AndVllm {
            metrics.register_vllm(&mut registry);
        }
        Self { registry: Mutex::new(registry), ..metrics }
    }

    fn register(&self, to: &mut Registry) {
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "Arrival to first token", &self.ttft),
            ("inter_token_latency_seconds", "Time between two tokens", &self.inter_token),
            ("request_latency_seconds", "Arrival to the end of the answer", &self.whole),
            ("request_queue_time_seconds", "Arrival to first forward pass", &self.queued),
            ("request_prefill_time_seconds", "First forward pass to first token, of good answers", &self.prefill),
            ("request_decode_time_seconds", "First token to the end, of good answers", &self.decode),
        ] {
            to.register(format!("bitnet_{name}"), help, histogram.clone());
        }
        for (name, help, gauge) in [
            ("requests_running", "Jobs in the batch", &self.running),
            ("requests_waiting", "Jobs in the queue whose users are still there", &self.waiting),
            ("weight_bytes_per_pass", "Bytes of weights that a forward pass reads", &self.per_pass),
        ] {
            to.register(format!("bitnet_{name}"), help, gauge.clone());
        }
        for (name, help, counter) in [
            ("prompt_tokens", "Prompt tokens of answered live requests", &self.prompt_tokens),
            ("generation_tokens", "Tokens generated for live requests", &self.generated_tokens),
            ("prefix_cache_query_tokens", "Prompt tokens that were looked up in the prefix cache", &self.looked_up),
            ("prefix_cache_hit_tokens", "Prompt tokens that were read for an earlier request", &self.reused),
            ("forward_passes", "Forward passes", &self.passes),
            ("weight_read_bytes", "Bytes of weights read; over the busy seconds, the bandwidth", &self.weight_bytes),
            ("non_finite_logits", "Logits that were not finite numbers", &self.non_finite),
            ("requests_disconnected", "Requests whose client went away", &self.disconnected),
            ("involuntary_context_switches", "Times that a thread was pushed from its CPU", &self.switches),
        ] {
            to.register(format!("bitnet_{name}"), help, counter.clone());
        }
        let help = "Share of the cache that full batches of the longest sequences would need";
        to.register("bitnet_kv_cache_usage_ratio", help, self.cache_use.clone());
        let help = "Memory that the process may reach, by what takes it; weights that models share count once";
        to.register("bitnet_memory_planned_bytes", help, self.planned.clone());
        let help = "Answers that ended well, by how they ended";
        to.register("bitnet_requests_finished", help, self.success.clone());
        let help = "Requests offered to the next tier, by reason and by what came of it";
        to.register("bitnet_requests_handed_on", help, self.handed_on.clone());
        to.register("bitnet_requests_failed", "Requests that ended in an error, by class", self.failed.clone());
        to.register("bitnet_engine_busy_seconds", "Seconds in which the engine worked", self.busy.clone());
        let help = "Seconds in which the engine worked on what nobody waits for";
        to.register("bitnet_background_seconds", help, self.background.clone());
        let help = "Live prompts compared with the baseline, in whole blocks";
        to.register("bitnet_shadow_prompts", help, self.shadow_samples.clone());
        let help = "Mean cosine of those of the running attempt; absent before the first block";
        to.register("bitnet_shadow_cosine", help, self.shadow_cosine.clone());
        let help = "Live prompts that were chosen and not compared, by reason";
        to.register("bitnet_shadow_dropped", help, self.shadow_dropped.clone());
        to.register("bitnet_build_info", "What serves", self.build.clone());
        if !self.energy().is_empty() {
            // Absent, not zero, where the host does not count or does not show it.
            let help = "Energy of the CPU package or GPU since the start, whoever used it";
            to.register("bitnet_energy_joules", help, self.joules.clone());
        }
    }

    /// The names that dashboards, autoscalers and the Gateway API's inference extension know from vLLM.
    fn register_vllm(&self, to: &mut Registry) {
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "Arrival to first token", &self.ttft),
            ("inter_token_latency_seconds", "Time between two tokens", &self.inter_token),
            ("e2e_request_latency_seconds", "Arrival to the end of the answer", &self.whole),
            ("request_queue_time_seconds", "Arrival to first forward pass", &self.queued),
            ("request_prefill_time_seconds", "First forward pass to first token, of good answers", &self.prefill),
            ("request_decode_time_seconds", "First token to the end, of good answers", &self.decode),
        ] {
            to.register(format!("vllm:{name}"), help, histogram.clone());
        }
        to.register("vllm:num_requests_running", "Jobs in the batch", self.running.clone());
        to.register("vllm:num_requests_waiting", "Jobs in the queue whose users are still there", self.waiting.clone());
        to.register("vllm:kv_cache_usage_perc", "Share of the cache in use, 0 to 1", self.cache_use.clone());
        for (name, help, counter) in [
            ("prompt_tokens", "Prompt tokens of answered requests", &self.prompt_tokens),
            ("generation_tokens", "Tokens generated", &self.generated_tokens),
            ("prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache", &self.looked_up),
            ("prefix_cache_hits", "Prompt tokens that were read for an earlier request", &self.reused),
            ("num_preemptions", "Always 0: a request that has a place keeps it", &self.preempted),
        ] {
            to.register(format!("vllm:{name}"), help, counter.clone());
        }
        to.register("vllm:request_success", "Answers that ended well, by how they ended", self.success.clone());
    }

    /// The memory plan, by part, in bytes.
    pub(crate) fn set_plan(&self, parts: &[(&'static str, usize)]) {
        for (part, bytes) in parts {
            self.planned.get_or_create(&Planned { part }).set(*bytes as i64);
        }
    }

    /// Sets the constant series that says what serves.
    pub(crate) fn set_build(&self, build: &Build<'_>) {
        let labels = Vec::from([
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", build.revision.to_owned()),
            ("precision", build.precision.to_owned()),
            ("kernel", build.kernel.to_owned()),
            ("device", build.device.to_owned()),
            ("threads", build.threads.to_string()),
        ]);
        self.build.get_or_create(&labels).set(1);
    }

    /// Everything in OpenMetrics text; gauges are those of `engine` now, `room` the tokens that its caches may hold.
    pub(crate) fn render(
        &self,
        engine: Option<&Engine>,
        room: usize,
        shadow: Option<&(ShadowResult, u64)>,
    ) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        // Taken first: what is counted elsewhere is added here as a difference, by one scrape at a time.
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = engine {
            self.running.set(engine.running() as i64);
            self.waiting.set(engine.waiting_users() as i64);
            self.cache_use.set(engine.cached_tokens() as f64 / room.max(1) as f64);
            let busy = engine.busy_seconds();
            self.busy.inc_by((busy - self.busy.get()).max(0.0));
            self.background.inc_by((engine.background_seconds() - self.background.get()).max(0.0));
            self.per_pass.set(engine.bytes_per_pass() as i64);
            raise(&self.passes, engine.passes());
            raise(&self.weight_bytes, engine.passes() * engine.bytes_per_pass() as u64);
            raise(&self.reused, engine.reused_tokens());
            raise(&self.looked_up, engine.looked_up_tokens());
            raise(&self.non_finite, engine.non_finite());
        }
        if let Some((found, ever)) = shadow {
            raise(&self.shadow_samples, *ever);
            for (reason, count) in &found.dropped {
                raise(&self.shadow_dropped.get_or_create(&Dropped { reason: reason.clone() }), *count);
            }
            // Sums begin anew with an attempt.
            if found.samples == 0 {
                self.shadow_cosine.remove(&[]);
            } else {
                self.shadow_cosine.get_or_create(&[]).set(found.cosine / found.samples as f64);
            }
        }
        raise(&self.switches, involuntary_switches());
        for (package, joules) in self.energy().read() {
            let counter = self.joules.get_or_create(&Package { package });
            counter.inc_by((joules - counter.get()).max(0.0));
        }
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }

    /// Joules of all packages and GPUs since the start; `None` where the host shows none.
    pub(crate) fn joules(&self) -> Option<f64> {
        let read = self.energy().read();
        (!read.is_empty()).then(|| read.iter().map(|(_, joules)| joules).sum())
    }

    fn energy(&self) -> MutexGuard<'_, Energy> {
        self.energy.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub(super) fn phases(&self, prefill: f64, decode: f64) {
        self.prefill.observe(prefill);
        self.decode.observe(decode);
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
            ErrorClass::Fallback => Class::fallback,
        };
        self.failed.get_or_create(&Failed { class }).inc();
    }

    pub(super) fn handed_on(&self, reason: &'static str, outcome: &'static str) {
        self.handed_on.get_or_create(&HandedOn { reason, outcome }).inc();
    }

    pub(super) fn withdrawn(&self) {
        self.disconnected.inc();
    }
}

/// Brings a counter up to a total that is counted elsewhere.
fn raise(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Of all threads of this process: many say that its CPUs are somebody else's as well.
fn involuntary_switches() -> u64 {
    // SAFETY: all zeros is a valid `rusage`, and the call writes nothing but that.
    let (outcome, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), usage)
    };
    if outcome == 0 { usage.ru_nivcsw as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counters on the internal port carry the sum of what `/metrics` shows by package, and nothing where there is
    /// nothing.
    #[test]
    fn energy_is_a_sum_or_absent() {
        let root = tempfile::tempdir().unwrap();
        let metrics = Metrics::new("chat", Names::Ours);
        *metrics.energy() = Energy::below(root.path());
        assert_eq!(metrics.joules(), None);
        let package = |index: u32, microjoules: u32| {
            let folder = root.path().join(format!("intel-rapl:{index}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("name"), format!("package-{index}\n")).unwrap();
            for (file, value) in [("energy_uj", microjoules), ("max_energy_range_uj", 1_000_000_000)] {
                std::fs::write(folder.join(file), format!("{value}\n")).unwrap();
            }
        };
        package(0, 500);
        package(1, 700);
        *metrics.energy() = Energy::below(root.path());
        assert_eq!(metrics.joules(), Some(0.0), "counted from now");
        package(0, 2_000_500);
        package(1, 3_000_700);
        assert_eq!(metrics.joules(), Some(5.0));
    }

    #[test]
    fn every_metric_is_in_the_docs() {
        let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        let metrics = Metrics::new("chat", Names::AndVllm);
        metrics.set_build(&Build { revision: "r", precision: "ternary", kernel: "k", device: "cpu", threads: 1 });
        // A family shows itself with its first series.
        metrics.set_plan(&[("weights", 1)]);
        metrics.finished(Finish::Stop, 1, 1, 0.1);
        metrics.failed(ErrorClass::Server);
        metrics.handed_on("server", "answered");
        let found = ShadowResult { samples: 20, dropped: vec![("busy".to_owned(), 1)], ..ShadowResult::default() };
        let text = metrics.render(None, 1, Some(&(found, 20))).unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '))
            .map(|(name, _)| name)
            .collect();
        assert!(names.len() > 34, "{names:?}");
        for name in names {
            assert!(docs.contains(&format!("`{name}`")), "docs/metrics.md lacks {name}");
        }
    }

    #[test]
    fn the_mean_of_live_prompts_is_absent_until_there_is_one_and_counts_outlive_an_attempt() {
        let metrics = Metrics::new("chat", Names::Ours);
        let found = |samples: u64, cosine: f64, dropped: u64| ShadowResult {
            samples,
            cosine,
            dropped: vec![("busy".to_owned(), dropped)],
            ..ShadowResult::default()
        };
        let text = metrics.render(None, 1, Some(&(found(0, 0.0, 2), 0))).unwrap();
        assert!(!text.contains("bitnet_shadow_cosine{"), "{text}");
        assert!(text.contains("bitnet_shadow_dropped_total{model_name=\"chat\",reason=\"busy\"} 2\n"), "{text}");
        let text = metrics.render(None, 1, Some(&(found(40, 39.0, 3), 40))).unwrap();
        assert!(text.contains("bitnet_shadow_cosine{model_name=\"chat\"} 0.975\n"), "{text}");
        let text = metrics.render(None, 1, Some(&(found(0, 0.0, 3), 40))).unwrap();
        assert!(!text.contains("bitnet_shadow_cosine{"), "another attempt begins: {text}");
        assert!(text.contains("bitnet_shadow_prompts_total{model_name=\"chat\"} 40\n"), "{text}");
    }
}
