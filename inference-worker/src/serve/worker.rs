//! What all handlers share: settings, the model once it is loaded, and the account.

use super::account::Account;
use super::confidence::{Confidence, ConfidenceError};
use super::continuations::Continuations;
use super::defaults::{Defaults, DefaultsError, GenerationConfig};
use super::metrics::{Build, Metrics, Names};
use super::openai::Limits;
use super::parsing::{self, Desk};
use super::split;
use super::upstream::{Upstream, UpstreamSettings};
use super::users::Users;
use crate::compare::{Comparer, PeerSettings, Shadow};
use crate::device::{Device, DeviceError, GpuKv, Runner};
use crate::engine::{self, AskError, Engine, Grammars, MemoryPlan};
use crate::model::{self, HeadMode, KvBits, LoadError, LoadOptions, Model, Text, WeightsCache};
use bitnet_api::worker::Identity;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The first pass of a large model reads its weights from the disk.
const WARM_UP_TIME: Duration = Duration::from_mins(10);

/// How to serve; see the command line for the meaning of each.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Model directory.
    pub model: PathBuf,
    /// Revision that this pod was started for, empty outside a rollout.
    pub revision: String,
    /// Rollout that the revision belongs to; peers must carry its name.
    pub rollout: Option<String>,
    /// UID of the rollout: only marks of A/B tests with it are believed.
    pub rollout_uid: Option<String>,
    /// Probe file.
    pub probes: Option<PathBuf>,
    /// Digest that the model directory must have.
    pub digest: Option<String>,
    /// Longest sequence, if shorter than the model allows.
    pub context: Option<usize>,
    /// How the engine batches.
    pub engine: engine::Options,
    /// Threads of a forward pass.
    pub threads: usize,
    /// Precision of cached keys and values, unless the model or the memory budget lowers it.
    pub kv_bits: KvBits,
    /// Bytes that weights, keys and values, and passes may take.
    pub memory_budget: Option<usize>,
    /// How logits are computed.
    pub head: HeadMode,
    /// Directory of repacked weights; none: weights are repacked at every start.
    pub weights_cache: Option<PathBuf>,
    /// Where the model runs.
    pub device: Device,
    /// Keys and values on a GPU.
    pub gpu_kv: GpuKv,
    /// How tokens are drawn where a request does not say.
    pub generation_config: GenerationConfig,
    /// Time from a request's arrival to the end of its answer.
    pub request_timeout: Duration,
    /// Time from the first byte of a request to the end of its head.
    pub head_time: Duration,
    /// Names under which metrics are shown.
    pub metric_names: Names,
    /// How long the worker serves on after it was told to stop.
    pub drain: Duration,
    /// The next tier, for requests that this model fails or doubts.
    pub upstream: Option<UpstreamSettings>,
    /// Where peers listen, and exceptions to it.
    pub peers: PeerSettings,
}

impl Settings {
    /// The command line's defaults, on one thread of the CPU and outside any rollout.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            revision: String::new(),
            rollout: None,
            rollout_uid: None,
            probes: None,
            digest: None,
            context: None,
            engine: engine::Options::default(),
            threads: 1,
            kv_bits: KvBits::Sixteen,
            memory_budget: None,
            head: HeadMode::default(),
            weights_cache: None,
            device: Device::Cpu,
            gpu_kv: GpuKv::default(),
            generation_config: GenerationConfig::default(),
            request_timeout: Duration::from_mins(1),
            head_time: Duration::from_secs(10),
            metric_names: Names::default(),
            drain: Duration::from_secs(5),
            upstream: None,
            peers: PeerSettings::default(),
        }
    }

    /// An option that was given and that only a CPU has: a GPU refuses it.
    pub fn for_cpus(&self) -> Option<&'static str> {
        let kv_bits = (self.kv_bits != KvBits::Sixteen).then_some("--kv-bits");
        self.memory_budget.and(Some("--memory-budget")).or(kv_bits)
    }
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory does not have the digest that was given.
    #[error(
        "DigestMismatch: expected {expected} found {found}; mount the model that the digest was taken of, or correct the digest"
    )]
    DigestMismatch {
        /// As given.
        expected: String,
        /// As computed.
        found: String,
    },
    /// The directory cannot be loaded.
    #[error("ModelInvalid")]
    ModelInvalid(#[source] LoadError),
    /// The memory budget is too small for this model.
    #[error("MemoryBudget")]
    Budget(#[source] engine::BudgetTooSmall),
    /// Not one sequence fits in the memory of the GPU.
    #[error("DeviceMemory")]
    DeviceMemory(#[source] engine::DeviceTooSmall),
    /// The operating system gives no thread for the engine.
    #[error("the engine's thread did not start")]
    Thread(#[source] std::io::Error),
    /// The kernels do not compute on this CPU what they should.
    #[error("SelfTestFailed")]
    SelfTest(#[source] model::SelfTestError),
    /// The GPU that was asked for cannot be used.
    #[error("DeviceUnavailable")]
    Device(#[source] DeviceError),
    /// No HTTP client could be made.
    #[error("the HTTP client for other workers did not start")]
    Peers(#[source] reqwest::Error),
    /// The next tier is to take over where this model is not sure, and nothing says how sure it is.
    #[error("--min-confidence needs a calibration of the model")]
    Confidence(#[source] ConfidenceError),
    /// The model's own way of drawing tokens cannot be read.
    #[error("GenerationConfig")]
    GenerationConfig(#[source] DefaultsError),
    /// The engine could not do a first forward pass.
    #[error("ModelInvalid: the first forward pass failed")]
    WarmUp(#[source] AskError),
}

/// A model that serves.
pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) text: Text,
    /// What answers may be asked to look like.
    pub(crate) grammars: Arc<Grammars>,
    pub(crate) identity: Identity,
    defaults: Defaults,
    pub(crate) comparer: Arc<Comparer>,
    pub(crate) shadow: Arc<Shadow>,
    pub(crate) continuations: Continuations,
    /// Asks the other arm of an A/B test.
    pub(crate) arms: reqwest::Client,
    pub(super) upstream: Option<Upstream>,
    pub(super) confidence: Option<Confidence>,
}

impl Loaded {
    pub(crate) fn limits(&self) -> Limits {
        let Identity { vocabulary, context, .. } = self.identity;
        Limits { vocabulary: vocabulary as usize, context: context as usize, defaults: self.defaults }
    }
}

/// What an engine serves, as far as the model knows it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Rows of the output head.
    pub vocabulary: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Ids that end an answer.
    pub eos: Vec<u32>,
    /// Content digest of the model directory.
    pub digest: String,
    /// `ternary`, `binary`, `fp16`, `bf16` or `fp32`; `mixed` where layers differ.
    pub precision: String,
    /// Name of the kernel set.
    pub kernel: String,
    /// `cpu` or `cuda`.
    pub device: &'static str,
}

/// The state of one worker process.
pub struct Worker {
    pub(crate) settings: Settings,
    pub(crate) account: Arc<Account>,
    pub(crate) model_name: String,
    /// Users of an A/B test.
    pub(crate) users: Users,
    /// Where requests are read.
    pub(super) desk: Desk,
    loaded: OnceLock<Loaded>,
    draining: AtomicBool,
    answers: AtomicU64,
}

/// Why the worker should get no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotReady {
    Loading,
    Draining,
    EngineStopped,
    EngineStuck,
}

impl NotReady {
    pub(crate) fn text(self) -> &'static str {
        match self {
            NotReady::Loading => "the model is loading",
            NotReady::Draining => "the worker is draining",
            NotReady::EngineStopped => "the engine has stopped",
            NotReady::EngineStuck => "the engine is stuck in one forward pass",
        }
    }
}

impl Worker {
    /// A worker without a model: alive, not ready.
    pub fn new(settings: Settings) -> Arc<Self> {
        let directory = settings.model.file_name().map(|name| name.to_string_lossy().into_owned());
        let model_name = settings.rollout.clone().or(directory).unwrap_or_else(|| "model".to_owned());
        Arc::new(Self {
            account: Arc::new(Account::new(Metrics::new(&model_name, settings.metric_names))),
            model_name,
            settings,
            users: Users::default(),
            desk: Desk::default(),
            loaded: OnceLock::new(),
            draining: AtomicBool::new(false),
            answers: AtomicU64::new(0),
        })
    }

    /// Loads the model of the settings, warms it up and becomes ready. Blocks for as long as reading takes.
    pub fn load(&self) -> Result<(), StartError> {
        let dir = &self.settings.model;
        let found = model::digest(dir).map_err(StartError::ModelInvalid)?;
        if let Some(expected) = &self.settings.digest {
            let wanted = expected.strip_prefix("sha256:").unwrap_or(expected);
            if !wanted.eq_ignore_ascii_case(&found) {
                return Err(StartError::DigestMismatch { expected: expected.clone(), found });
            }
        }
        let Settings { context, threads, kv_bits, head, .. } = self.settings;
        let weights_cache = self.settings.weights_cache.clone().map(|dir| WeightsCache { dir, digest: found.clone() });
        let options =
            LoadOptions { context, threads: Some(threads), kv_bits, head, weights_cache, ..LoadOptions::default() };
        let text = Text::load(dir).map_err(StartError::ModelInvalid)?;
        let model = Model::load(dir, &options).map_err(StartError::ModelInvalid)?;
        // A GPU is compared with the CPU there, the CPU with the portable kernels here.
        let mut model = Runner::place(model, self.settings.device, self.settings.gpu_kv, self.settings.for_cpus())
            .map_err(StartError::Device)?;
        let engine = self.plan(&mut model)?;
        let config = model.config();
        let facts = Facts {
            vocabulary: config.vocab_size,
            context: config.context,
            eos: config.eos.clone(),
            digest: found,
            precision: model.precision().to_owned(),
            kernel: model.kernel().to_owned(),
            device: model.device(),
        };
        let engine = Engine::start(model, engine).map_err(StartError::Thread)?;
        self.install(engine, text, facts)
    }

    /// Checks a model on the CPU and plans its memory; how the engine batches then.
    fn plan(&self, model: &mut Runner) -> Result<engine::Options, StartError> {
        let Settings { engine, memory_budget, .. } = self.settings;
        match model {
            Runner::Cpu(model) => {
                model.self_test().map_err(StartError::SelfTest)?;
                let engine = engine::Options { request_bytes: parsing::memory(), ..engine };
                let plan = MemoryPlan::of(model, &engine, memory_budget).map_err(StartError::Budget)?;
                tracing::info!(total = plan.total(), budget = memory_budget, %plan, "memory in bytes at most");
                self.account.metrics().set_plan(&plan.parts());
                model.set_kv_bits(plan.kv_bits);
                Ok(engine::Options { max_batch: plan.sequences, prefix_tokens: Some(plan.kept_tokens), ..engine })
            }
            #[cfg(feature = "cuda")]
            Runner::Cuda(model) => {
                let plan = model.plan(&engine).map_err(|error| StartError::Device(DeviceError::Cuda(error)))?;
                let plan = plan.map_err(StartError::DeviceMemory)?;
                tracing::info!(%plan, "device memory in bytes at most");
                Ok(engine::Options { max_batch: plan.sequences, prefix_tokens: Some(plan.kept_tokens), ..engine })
            }
        }
    }

    /// Serves an engine that runs already. Not ready before [`Worker::warm_up`]. A second call changes nothing.
    pub fn install(&self, engine: Engine, text: Text, facts: Facts) -> Result<(), StartError> {
        let Facts { vocabulary, context, eos, digest, precision, kernel, device } = facts;
        let identity = Identity {
            revision: self.settings.revision.clone(),
            tokenizer: text.tokenizer_hash().to_owned(),
            chat_template: text.template_hash().to_owned(),
            vocabulary: vocabulary as u32,
            context: context as u32,
            eos: eos.clone(),
            model_digest: digest,
            precision,
            kernel,
            device: device.to_owned(),
            worker_version: env!("CARGO_PKG_VERSION").to_owned(),
            process: self.account.process().to_owned(),
        };
        let Identity { revision, precision, kernel, device, .. } = &identity;
        let threads = self.settings.threads;
        self.account.metrics().set_build(&Build { revision, precision, kernel, device, threads });
        let comparer = Comparer::new(
            engine.clone(),
            text.clone(),
            identity.clone(),
            self.settings.probes.clone(),
            self.settings.rollout.clone(),
            &self.settings.peers,
        )
        .map_err(StartError::Peers)?;
        let rollout = self.settings.rollout.clone();
        let shadow =
            Shadow::new(&engine, rollout, vocabulary, context, &self.settings.peers).map_err(StartError::Peers)?;
        let arms = split::arms().map_err(StartError::Peers)?;
        let upstream = self.settings.upstream.clone();
        let doubts = upstream.as_ref().is_some_and(|upstream| upstream.min_confidence.is_some());
        let confidence = doubts.then(|| Confidence::load(&self.settings.model)).transpose();
        let confidence = confidence.map_err(StartError::Confidence)?;
        let upstream = upstream.map(Upstream::new).transpose().map_err(StartError::Peers)?;
        let grammars = Arc::new(Grammars::new(text.clone(), vocabulary, eos));
        let defaults = Defaults::load(self.settings.generation_config, &self.settings.model);
        let defaults = defaults.map_err(StartError::GenerationConfig)?;
        self.loaded.get_or_init(|| Loaded {
            engine,
            text,
            grammars,
            identity,
            defaults,
            comparer: Arc::new(comparer),
            shadow,
            continuations: Continuations::default(),
            arms,
            upstream,
            confidence,
        });
        Ok(())
    }

    /// Runs the first forward passes, so that no user waits for them, and becomes ready. A second call does nothing.
    pub async fn warm_up(&self) -> Result<(), StartError> {
        let Some(loaded) = self.loaded.get() else { return Ok(()) };
        if self.account.ready_since().is_some() {
            return Ok(());
        }
        let tokens = loaded.limits().context.saturating_sub(1).min(4);
        if tokens > 0 {
            let limit = WARM_UP_TIME;
            let first = loaded.engine.generate(vec![0], tokens, Vec::new(), limit).await.map_err(StartError::WarmUp)?;
            if first.non_finite > 0 {
                // Serving goes on: what such a model answers is counted, and the rollout decides about it.
                tracing::warn!(non_finite = first.non_finite, "the model gives logits that are not finite");
            }
        }
        self.account.set_ready();
        let Identity { revision, vocabulary, context, precision, kernel, model_digest, .. } = &loaded.identity;
        tracing::info!(revision, vocabulary, context, precision, kernel, model_digest, "ready");
        Ok(())
    }

    /// The model, once it is there.
    pub(crate) fn loaded(&self) -> Option<&Loaded> {
        self.loaded.get()
    }

    /// Stops being ready; requests are still served.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the worker was told to stop.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether the process can still do its work; if not, only a restart helps.
    pub(crate) fn live(&self) -> Result<(), NotReady> {
        let Some(loaded) = self.loaded.get() else { return Ok(()) };
        if !loaded.engine.is_alive() {
            return Err(NotReady::EngineStopped);
        }
        // No pass may take longer than a whole answer; twice that says that none will end.
        if loaded.engine.pass_age() > self.settings.request_timeout * 2 {
            return Err(NotReady::EngineStuck);
        }
        Ok(())
    }

    /// Whether the worker should get traffic.
    pub(crate) fn ready(&self) -> Result<(), NotReady> {
        if self.is_draining() {
            return Err(NotReady::Draining);
        }
        if self.account.ready_since().is_none() {
            return Err(NotReady::Loading);
        }
        self.live()
    }

    /// A new answer's id: the kind, the revision and what nobody else has.
    pub(crate) fn answer_id(&self, prefix: &str) -> String {
        let n = self.answers.fetch_add(1, Ordering::Relaxed);
        let process = &self.account.process()[..8];
        match self.settings.revision.as_str() {
            "" => format!("{prefix}-{process}{n:06x}"),
            revision => format!("{prefix}-{revision}-{process}{n:06x}"),
        }
    }

    /// Cumulative seconds in which the engine worked.
    pub(crate) fn busy_seconds(&self) -> f64 {
        self.loaded.get().map_or(0.0, |loaded| loaded.engine.busy_seconds())
    }
}
