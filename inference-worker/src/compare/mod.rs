//! Comparison with peers: probe draws, teacher-forced scores, latency pairs, and the job that runs them.
//!
//! Runs in the candidate. For each drawn prompt the baseline gives a greedy continuation and its logits, this worker
//! scores the same tokens, and [`similarity`] says how alike they are. Then both arms generate the same prompts for
//! their latency. Only numbers leave.

mod busy;
mod calibrate;
pub mod draw;
mod forcing;
pub mod halves;
mod job;
mod peer;
mod probes;
mod request;
mod shadow;
pub mod similarity;

pub use calibrate::{CalibrateError, calibrate};
pub(crate) use forcing::of_rows;
pub(crate) use peer::is_peer_of;
pub use peer::{PeerSettings, continuation};
pub use probes::{ProbeError, Probes};
pub use request::Invalid;
pub(crate) use shadow::Shadow;

use crate::engine::Engine;
use crate::model::Text;
use bitnet_api::worker::{Busy, CompareRequest, CompareResult, Identity};
use busy::BusyMeter;
use job::{Bench, Found};
use peer::Peers;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Results kept for a caller that asks again.
const KEPT: usize = 16;

/// Runs comparisons, one at a time, and keeps their results.
pub struct Comparer {
    engine: Engine,
    text: Text,
    identity: Identity,
    probes: Option<PathBuf>,
    rollout: Option<String>,
    peers: Peers,
    limit: Duration,
    jobs: Mutex<Jobs>,
    busy: Mutex<BusyMeter>,
}

#[derive(Default)]
struct Jobs {
    running: Option<String>,
    done: VecDeque<Arc<CompareResult>>,
}

/// Why a comparison was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartRefused {
    /// The request breaks a rule.
    Invalid(Invalid),
    /// Another one runs; its key.
    Running(String),
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// The answer.
    Done(Arc<CompareResult>),
    /// It runs.
    Running,
    /// Nothing.
    Unknown,
}

impl Comparer {
    /// A comparer with nothing done yet.
    ///
    /// # Errors
    /// If no HTTP client can be made.
    pub fn new(
        engine: Engine,
        text: Text,
        identity: Identity,
        probes: Option<PathBuf>,
        rollout: Option<String>,
        peers: &PeerSettings,
    ) -> Result<Self, reqwest::Error> {
        let limit = peers.limit;
        let peers = Peers::new(peers)?;
        Ok(Self {
            engine,
            text,
            identity,
            probes,
            rollout,
            peers,
            limit,
            jobs: Mutex::default(),
            busy: Mutex::new(BusyMeter::new(Instant::now())),
        })
    }

    /// Starts a comparison; the key of one that runs or is kept starts nothing and is fine.
    pub fn start(self: &Arc<Self>, request: CompareRequest) -> Result<(), StartRefused> {
        request::check(&request, self.rollout.as_deref()).map_err(StartRefused::Invalid)?;
        let mut jobs = lock(&self.jobs);
        if jobs.done.iter().any(|done| done.key == request.key) || jobs.running.as_ref() == Some(&request.key) {
            return Ok(());
        }
        if let Some(running) = &jobs.running {
            return Err(StartRefused::Running(running.clone()));
        }
        jobs.running = Some(request.key.clone());
        drop(jobs);
        let comparer = Arc::clone(self);
        tokio::spawn(async move {
            // Whatever happens to the task, the place becomes free again.
            let mut place = Place { comparer: &comparer, result: None };
            place.result = Some(comparer.run(&request).await);
        });
        Ok(())
    }

    /// The result of `key`, if it is here.
    pub fn result(&self, key: &str) -> Stored {
        let jobs = lock(&self.jobs);
        if let Some(done) = jobs.done.iter().find(|done| done.key == key) {
            return Stored::Done(Arc::clone(done));
        }
        if jobs.running.as_deref() == Some(key) { Stored::Running } else { Stored::Unknown }
    }

    async fn run(&self, request: &CompareRequest) -> CompareResult {
        let started = Instant::now();
        let mut result = CompareResult { key: request.key.clone(), tick: request.tick, ..CompareResult::default() };
        let path = self.probes.clone();
        let reading = tokio::task::spawn_blocking(move || Probes::read(path.as_deref())).await;
        let found = match reading {
            Ok(Ok(probes)) => {
                let bench = Bench {
                    engine: &self.engine,
                    text: &self.text,
                    peers: &self.peers,
                    probes: &probes,
                    request,
                    vocabulary: self.identity.vocabulary as usize,
                    context: self.identity.context as usize,
                    limit: self.limit,
                };
                result.drawn = request.probes;
                result.probe_set = Some(probes.set.clone());
                bench.run().await
            }
            Ok(Err(error)) => {
                tracing::warn!(key = request.key, error = %error, "no probe set");
                Found::default()
            }
            Err(_) => Found::default(),
        };
        let Found { prompts, pairs, errors, stable } = found;
        let mut meter = lock(&self.busy);
        result.busy = Busy {
            candidate: meter.own(Instant::now(), self.engine.busy_seconds()),
            stable: stable.and_then(|(process, seconds, at)| meter.peer(&process, at, seconds)),
        };
        drop(meter);
        result.prompts = prompts;
        result.pairs = pairs;
        result.peer_errors = errors.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        let (key, drawn, compared, paired) = (&result.key, result.drawn, result.prompts.len(), result.pairs.len());
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(key, drawn, compared, paired, errors = ?result.peer_errors, seconds, "compared");
        result
    }
}

struct Place<'a> {
    comparer: &'a Comparer,
    result: Option<CompareResult>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut jobs = lock(&self.comparer.jobs);
        jobs.running = None;
        if let Some(result) = self.result.take() {
            jobs.done.push_back(Arc::new(result));
            if jobs.done.len() > KEPT {
                jobs.done.pop_front();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section is a few assignments; a panic inside one is not possible.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
