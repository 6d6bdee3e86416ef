//! The engine: one thread that owns the model, batches sequences, and keeps the clock.
//!
//! Every interval that anybody sees (time to first token, time per token, busy seconds) is taken from this process's
//! one monotonic clock, at the engine. Jobs join and leave the batch between forward passes. Nothing here knows HTTP
//! or text.

mod ask;
mod batch;
mod device_plan;
mod grammar;
mod job;
mod network;
mod pace;
mod plan;
mod prefix;
mod processors;
mod queue;
mod sampling;
mod sharing;
mod softmax;
#[cfg(test)]
mod tests;
mod turnover;

pub use crate::random;
pub use ask::{AskError, Generated};
pub use device_plan::{DevicePlan, DeviceTooSmall};
pub use grammar::{Form, Grammar, GrammarError, Grammars};
pub use job::{Class, Ended, Event, Failure, Finish, Job, Likelihood, Refused, Work};
pub use network::{Network, Turn};
pub use plan::{BudgetTooSmall, MemoryPlan};
pub use processors::Processors;
pub use sampling::Sampling;

pub(crate) use ask::time_per_token;
use batch::{Batch, Seen};
#[cfg(feature = "cuda")]
pub(crate) use network::on_threads;
use queue::Queue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use turnover::Turnover;

/// How the engine batches.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Sequences that run at once, at least 1.
    pub max_batch: usize,
    /// An idle engine under dense traffic waits at most this long for more requests before it starts a batch.
    pub batch_wait: Duration,
    /// Requests that may wait for a slot; one more is refused.
    pub queue: usize,
    /// Prompt tokens read in one pass at most.
    pub prefill_chunk: usize,
    /// Time that prompts may add to a pass in which answers are being written.
    pub prefill_budget: Duration,
    /// Tokens whose keys and values are kept after their requests, for live requests that begin alike; 0 = nothing is
    /// shared. None: the memory plan says how many, and without a plan 2048.
    pub prefix_tokens: Option<usize>,
    /// Memory that reading requests takes at most, before the engine has them; it is in the plan.
    pub request_bytes: usize,
}

impl Options {
    /// See the field.
    fn prefix_tokens(&self) -> usize {
        self.prefix_tokens.unwrap_or(2048)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_batch: 32,
            batch_wait: Duration::from_millis(10),
            queue: 256,
            prefill_chunk: 256,
            prefill_budget: Duration::from_millis(100),
            prefix_tokens: None,
            request_bytes: 0,
        }
    }
}

/// Handle to the engine's thread; cheap to clone. The thread ends when [`Engine::close`] was called and its work is
/// done, or with its process.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    /// Class of what is asked through this handle.
    class: Class,
}

struct Shared {
    queue: Queue,
    alive: AtomicBool,
    busy_nanos: AtomicU64,
    background_nanos: AtomicU64,
    running: AtomicUsize,
    cached_tokens: AtomicUsize,
    reused_tokens: AtomicU64,
    looked_up_tokens: AtomicU64,
    non_finite: AtomicU64,
    passes: AtomicU64,
    /// Nanoseconds between two slots that become free while others wait.
    slot_gap: AtomicU64,
    bytes_per_pass: usize,
    /// Start of the pass that runs now, nanoseconds after `epoch` plus one; 0 between passes.
    pass_started: AtomicU64,
    epoch: Instant,
}

impl Engine {
    /// Starts the thread that owns `network`.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start<N: Network>(network: N, options: Options) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Queue::new(options.queue),
            alive: AtomicBool::new(true),
            busy_nanos: AtomicU64::new(0),
            background_nanos: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            cached_tokens: AtomicUsize::new(0),
            reused_tokens: AtomicU64::new(0),
            looked_up_tokens: AtomicU64::new(0),
            non_finite: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            slot_gap: AtomicU64::new(0),
            bytes_per_pass: network.bytes_per_pass(),
            pass_started: AtomicU64::new(0),
            epoch: Instant::now(),
        });
        let state = Arc::clone(&shared);
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || run(network, options, &state))?;
        Ok(Self { shared, class: Class::Internal })
    }

    /// A handle whose questions are [`Class::Background`]: answered only while nobody else asks.
    #[must_use]
    pub fn background(&self) -> Self {
        Self { class: Class::Background, ..self.clone() }
    }

    /// Queues a job.
    pub fn submit(&self, job: Job) -> Result<(), Refused> {
        if job.class == Class::Background && self.running() > 0 {
            return Err(Refused::Busy);
        }
        self.shared.queue.push(job)
    }

    /// Queues the jobs of one request, all or none.
    pub fn submit_all(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        self.shared.queue.push_all(jobs)
    }

    /// Nothing runs and nothing waits, background work aside.
    pub fn is_idle(&self) -> bool {
        self.running() == 0 && self.waiting() == 0
    }

    /// Takes no more jobs; the thread ends after those that it has.
    pub fn close(&self) {
        self.shared.queue.close();
    }

    /// False once the thread has ended, by a panic or after [`Engine::close`].
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// How long the forward pass that runs now has been running; zero between passes.
    pub fn pass_age(&self) -> Duration {
        match self.shared.pass_started.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            started => self.shared.epoch.elapsed().saturating_sub(Duration::from_nanos(started - 1)),
        }
    }

    /// Cumulative seconds in which the engine did background work; not in [`Engine::busy_seconds`].
    pub fn background_seconds(&self) -> f64 {
        self.shared.background_nanos.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Cumulative seconds in which the engine worked.
    pub fn busy_seconds(&self) -> f64 {
        self.shared.busy_nanos.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Jobs with a slot, background work aside. An answer comes out of its pass, the slot and the counts of the pass
    /// after it: they are true once the slot is free.
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::Acquire)
    }

    /// Jobs that wait for one.
    pub fn waiting(&self) -> usize {
        self.shared.queue.len()
    }

    /// How soon a slot becomes free while all are taken and others wait, as it was lately; zero while that is not known.
    pub fn slot_gap(&self) -> Duration {
        Duration::from_nanos(self.shared.slot_gap.load(Ordering::Relaxed))
    }

    /// Users' requests that wait for one.
    pub fn waiting_users(&self) -> usize {
        self.shared.queue.live()
    }

    /// Tokens whose keys and values are held for jobs with a slot.
    pub fn cached_tokens(&self) -> usize {
        self.shared.cached_tokens.load(Ordering::Relaxed)
    }

    /// Prompt tokens that were not read again because an earlier request began alike.
    pub fn reused_tokens(&self) -> u64 {
        self.shared.reused_tokens.load(Ordering::Relaxed)
    }

    /// Prompt tokens that were looked up among those of earlier requests.
    pub fn looked_up_tokens(&self) -> u64 {
        self.shared.looked_up_tokens.load(Ordering::Relaxed)
    }

    /// Logits that were not finite, in rows that a next token was to be chosen from.
    pub fn non_finite(&self) -> u64 {
        self.shared.non_finite.load(Ordering::Relaxed)
    }

    /// Forward passes that were run, those for background work alone aside.
    pub fn passes(&self) -> u64 {
        self.shared.passes.load(Ordering::Relaxed)
    }

    /// Bytes of weights that one pass reads; 0 where that is not known.
    pub fn bytes_per_pass(&self) -> usize {
        self.shared.bytes_per_pass
    }
}

/// However the thread ends, callers learn of it: no job is left waiting and none is taken.
struct Farewell<'a>(&'a Shared);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::Release);
        self.0.queue.abandon();
        self.0.running.store(0, Ordering::Release);
        self.0.pass_started.store(0, Ordering::Release);
    }
}

fn run<N: Network>(network: N, options: Options, shared: &Shared) {
    let mut batch = Batch::new(network, options);
    let mut density = Density::new(options.batch_wait);
    let mut turnover = Turnover::default();
    // Dropped first: who hears that its job is gone finds a queue that takes no more.
    let _farewell = Farewell(shared);
    loop {
        if batch.len() == 0 {
            let Some(first) = shared.queue.wait() else { return };
            gather(&mut batch, first, &mut density, options, shared);
        }
        while batch.wanted() < options.max_batch.max(1) {
            let Some(job) = shared.queue.take() else { break };
            density.arrived(&job);
            batch.admit(job);
        }
        let started = Instant::now();
        let time = if batch.wanted() > 0 { &shared.busy_nanos } else { &shared.background_nanos };
        shared.running.store(batch.wanted(), Ordering::Release);
        let since = started.saturating_duration_since(shared.epoch).as_nanos() as u64;
        shared.pass_started.store(since + 1, Ordering::Release);
        let taken = batch.len();
        batch.pass();
        if batch.is_lost() {
            tracing::error!("every forward pass fails: the engine stops, so that the worker is started anew");
            return;
        }
        batch.drop_cancelled();
        turnover.passed(taken - batch.len(), shared.queue.len() > 0, Instant::now());
        shared.slot_gap.store(turnover.gap().as_nanos() as u64, Ordering::Relaxed);
        shared.pass_started.store(0, Ordering::Release);
        time.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        shared.cached_tokens.store(batch.cached_tokens(), Ordering::Relaxed);
        let Seen { passes, reused, looked_up, non_finite } = batch.seen();
        shared.passes.store(passes, Ordering::Relaxed);
        shared.reused_tokens.store(reused, Ordering::Relaxed);
        shared.looked_up_tokens.store(looked_up, Ordering::Relaxed);
        shared.non_finite.store(non_finite, Ordering::Relaxed);
        // Last: who sees a free slot sees the counts of what was in it.
        shared.running.store(batch.wanted(), Ordering::Release);
    }
}

/// Starts a batch on an idle engine. Where traffic is dense the first request waits a little for company, because one
/// pass over several prompts reads the weights once; a lone request, and internal work, never wait.
fn gather<N: Network>(batch: &mut Batch<N>, first: Job, density: &mut Density, options: Options, shared: &Shared) {
    density.arrived(&first);
    let until = first.arrival + options.batch_wait;
    let mut worth_waiting = batch::is_live(&first) && density.is_dense();
    batch.admit(first);
    shared.running.store(batch.wanted(), Ordering::Release);
    while worth_waiting && batch.wanted() < options.max_batch {
        let Some(job) = shared.queue.wait_until(until) else { return };
        density.arrived(&job);
        worth_waiting = batch::is_live(&job) || job.class == Class::Background;
        batch.admit(job);
    }
}

/// How close together live requests arrive.
struct Density {
    window: Duration,
    last: Option<Instant>,
    /// Smoothed gap in seconds.
    gap: f64,
}

impl Density {
    fn new(window: Duration) -> Self {
        Self { window, last: None, gap: f64::INFINITY }
    }

    fn arrived(&mut self, job: &Job) {
        if !batch::is_live(job) {
            return;
        }
        if let Some(last) = self.last {
            let gap = job.arrival.saturating_duration_since(last).as_secs_f64();
            // Eight requests' memory; the first gap starts it.
            self.gap = if self.gap.is_finite() { self.gap + (gap - self.gap) / 8.0 } else { gap };
        }
        self.last = Some(job.arrival);
    }

    /// Waiting the whole window would bring several more requests, not just perhaps one.
    fn is_dense(&self) -> bool {
        self.gap * 4.0 < self.window.as_secs_f64()
    }
}
