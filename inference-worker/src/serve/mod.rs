//! HTTP: the public OpenAI port and the internal port.
//!
//! A request's path: [`public`](public_router) reads and checks it, the engine runs it, `follow` turns events into
//! text, `account` counts how it ended. Text of prompts and answers is in no log and in no metric.

mod account;
mod body;
mod confidence;
mod continuations;
mod defaults;
mod energy;
mod error;
mod fields;
mod follow;
mod form;
mod internal;
mod listen;
mod messages;
mod metrics;
mod openai;
mod parsing;
mod public;
mod reply;
mod split;
mod stops;
mod stream;
mod tiers;
mod tokens;
mod unsupported;
mod upstream;
mod users;
mod worker;

pub use confidence::{CONFIDENCE_FILE, Confidence, ConfidenceError};
pub use defaults::{DefaultsError, GenerationConfig};
pub use internal::router as internal_router;
pub use metrics::Names as MetricNames;
pub use public::{TIME_HEADER, router as public_router};
pub use tiers::{FALLBACK_HEADER, HOPS_HEADER, TIER_HEADER};
pub use upstream::{Balance, UpstreamSettings};
pub use worker::{Facts, Settings, StartError, Worker};

use axum::middleware::from_fn;
use listen::{Head, Port};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Running requests end at their deadline; what is left after it and this is a client that does not read.
const AFTER_LAST_DEADLINE: Duration = Duration::from_secs(5);

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port cannot be opened.
    #[error("cannot listen on {address}; give another --bind, --port or --internal-port")]
    Listen {
        /// Address asked for.
        address: SocketAddr,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The model cannot be served.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A listener failed.
    #[error("the server failed")]
    Io(#[source] io::Error),
}

/// How the worker was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Serve on for the drain time, because traffic still comes (SIGTERM in a cluster).
    Drain,
    /// Only finish what runs (a person at a terminal).
    Now,
}

/// Two open ports and the worker behind them.
pub struct Server {
    worker: Arc<Worker>,
    public: TcpListener,
    internal: TcpListener,
}

impl Server {
    /// Opens both ports; port 0 picks a free one.
    pub async fn bind(worker: Arc<Worker>, public: SocketAddr, internal: SocketAddr) -> Result<Self, ServeError> {
        let open = |address: SocketAddr| async move {
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
        };
        Ok(Self { worker, public: open(public).await?, internal: open(internal).await? })
    }

    /// Addresses of the public and of the internal port.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.public.local_addr()?, self.internal.local_addr()?))
    }

    /// Serves until `stop` resolves, then drains: unready at once, new and old requests served on for the drain time
    /// with `Connection: close`, then no new connections, running requests finished. Health answers from the start;
    /// the model is loaded meanwhile unless the worker has one.
    pub async fn run(self, stop: impl Future<Output = Stop>) -> Result<(), ServeError> {
        let Self { worker, public, internal } = self;
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        let head_time = worker.settings.head_time;
        let port = |listener| Port { listener, head_time };
        let mut public = spawn(port(public), public_router(Arc::clone(&worker)), closing.clone());
        let mut internal = spawn(port(internal), internal_router(Arc::clone(&worker)), ended.clone());
        let _stop_with_us = (closing.clone().drop_guard(), ended.clone().drop_guard());
        tokio::pin!(stop);
        let how = tokio::select! {
            how = &mut stop => how,
            Err(error) = start(Arc::clone(&worker)) => return Err(error.into()),
            result = &mut public => return result.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(ServeError::Io),
            result = &mut internal => return result.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(ServeError::Io),
        };
        worker.start_draining();
        let drain = if how == Stop::Drain { worker.settings.drain } else { Duration::ZERO };
        tracing::info!(drain_seconds = drain.as_secs_f64(), "draining");
        tokio::time::sleep(drain).await;
        closing.cancel();
        let limit = worker.settings.request_timeout + AFTER_LAST_DEADLINE;
        if tokio::time::timeout(limit, &mut public).await.is_err() {
            tracing::warn!("connections were left open by clients that do not read; they are cut");
            public.abort();
        }
        ended.cancel();
        internal.abort();
        if let Some(loaded) = worker.loaded() {
            loaded.engine.close();
        }
        tracing::info!("stopped");
        Ok(())
    }
}

fn spawn(port: Port, router: axum::Router, close: CancellationToken) -> JoinHandle<io::Result<()>> {
    let service = router.layer(from_fn(listen::watch)).into_make_service_with_connect_info::<Head>();
    let serving = axum::serve(port, service).with_graceful_shutdown(close.cancelled_owned());
    tokio::spawn(async move { serving.await })
}

/// Loads and warms up; then pends for ever, because only its failure ends serving.
async fn start(worker: Arc<Worker>) -> Result<std::convert::Infallible, StartError> {
    if worker.loaded().is_none() {
        let loading = Arc::clone(&worker);
        match tokio::task::spawn_blocking(move || loading.load()).await {
            Ok(loaded) => loaded?,
            Err(panic) => return Err(StartError::Thread(io::Error::other(panic))),
        }
    }
    worker.warm_up().await?;
    std::future::pending().await
}
