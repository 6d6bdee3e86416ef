//! A driver of continuous HTTP traffic that records every request.
//!
//! It is an open-loop client: requests start at fixed times whatever the answers take. It never retries, reuses
//! keep-alive connections as browsers and SDKs do, and calls everything a failure that a user would see as one: a
//! status other than 200, a connection that is refused or reset, a body cut short, a stream without `[DONE]`.

mod account;
mod client;
mod record;

pub use account::{Account, ArmAccount, binomial_upper, percentile};
pub use client::{Connections, Request};
pub use record::{Outcome, Record, read_records, write_records};

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;

/// What to send, where, and how often.
#[derive(Clone, Debug)]
pub struct Config {
    /// The gateway.
    pub address: SocketAddr,
    /// `Host` header.
    pub host: String,
    /// One more header of every request.
    pub header: Option<(String, String)>,
    /// Requests per second.
    pub rate: f64,
    /// Prompts, taken in turn.
    pub prompts: Vec<String>,
    /// `max_tokens` of each request.
    pub max_tokens: u32,
    /// Every n-th request streams; 0: none.
    pub stream_every: u64,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

impl Config {
    /// The defaults of the demo: 20 requests/s, 8 tokens, every second request a stream.
    pub fn new(address: SocketAddr, host: &str, prompts: Vec<String>) -> Self {
        Self {
            address,
            host: host.into(),
            header: None,
            rate: 20.0,
            prompts,
            max_tokens: 8,
            stream_every: 2,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Running traffic. Dropping it stops new requests; [`Traffic::stop`] also waits for the last answers.
pub struct Traffic {
    records: Arc<Mutex<Vec<Record>>>,
    in_flight: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Traffic {
    /// Starts sending.
    pub fn start(config: Config) -> Self {
        let records = Arc::new(Mutex::new(Vec::new()));
        let in_flight = Arc::new(AtomicU64::new(0));
        let stopping = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(drive(config, records.clone(), in_flight.clone(), stopping.clone()));
        Self { records, in_flight, stopping, task }
    }

    /// A copy of all records so far, in the order of their ends.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    /// Number of records so far: a mark for [`Traffic::since`].
    pub fn mark(&self) -> usize {
        lock(&self.records).len()
    }

    /// The records after a mark.
    pub fn since(&self, mark: usize) -> Vec<Record> {
        lock(&self.records)[mark..].to_vec()
    }

    /// Stops sending, waits for the answers that are due, and returns all records.
    pub async fn stop(self) -> Vec<Record> {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = self.task.await;
        while self.in_flight.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lock(&self.records).clone()
    }
}

/// Waits for the first good answer: before it, a failure only means that a gateway is not ready.
///
/// # Errors
/// When no request succeeded within `limit`; the last failure is in the message.
pub async fn first_answer(config: &Config, limit: Duration) -> anyhow::Result<()> {
    let connections = Connections::new(config.address);
    let begin = std::time::Instant::now();
    loop {
        let request = Request {
            host: config.host.clone(),
            header: config.header.clone(),
            prompt: config.prompts.first().cloned().unwrap_or_default(),
            max_tokens: config.max_tokens,
            stream: false,
            timeout: Duration::from_secs(5),
        };
        let record = connections.send(&request).await;
        if !record.failed() {
            return Ok(());
        }
        if begin.elapsed() > limit {
            anyhow::bail!("{} gave no answer within {} s: {record:?}", config.address, limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A poisoned lock only means that another request's task panicked: the records are still whole.
fn lock(records: &Mutex<Vec<Record>>) -> std::sync::MutexGuard<'_, Vec<Record>> {
    records.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn drive(config: Config, records: Arc<Mutex<Vec<Record>>>, in_flight: Arc<AtomicU64>, stopping: Arc<AtomicBool>) {
    let connections = Arc::new(Connections::new(config.address));
    let mut clock = tokio::time::interval(Duration::from_secs_f64(1.0 / config.rate));
    // An open loop does not catch up in bursts after a stall of this process.
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut number = 0u64;
    while !stopping.load(Ordering::Relaxed) {
        clock.tick().await;
        let prompt = &config.prompts[(number % config.prompts.len().max(1) as u64) as usize];
        let request = Request {
            host: config.host.clone(),
            header: config.header.clone(),
            prompt: prompt.clone(),
            max_tokens: config.max_tokens,
            stream: config.stream_every > 0 && number.is_multiple_of(config.stream_every),
            timeout: config.timeout,
        };
        number += 1;
        let (connections, records, in_flight) = (connections.clone(), records.clone(), in_flight.clone());
        in_flight.fetch_add(1, Ordering::AcqRel);
        tokio::spawn(async move {
            let record = connections.send(&request).await;
            lock(&records).push(record);
            in_flight.fetch_sub(1, Ordering::AcqRel);
        });
    }
}
