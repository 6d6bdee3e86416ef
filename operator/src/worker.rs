//! Client of the workers' internal port. A worker is asked by the IP of its pod and trusted with nothing: every call
//! has a deadline, every answer a size limit, redirects and proxies are off, and each number is checked before use.

use bitnet_api::worker::{
    COMPARE_PATH, COUNTERS_PATH, CompareRequest, CompareResult, Counters, IDENTITY_PATH, INTERNAL_PORT, Identity,
    SHADOW_PATH, ShadowRequest, ShadowResult,
};
use reqwest::{Method, Response, StatusCode, header, redirect};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tracing::{Instrument, debug_span, field};

mod checks;

pub use checks::Unusable;

/// Deadline of a call, answer included.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Largest answer that is read.
pub const ANSWER_LIMIT: usize = 1 << 20;

/// Why a worker's answer was not taken. None of these is evidence for or against a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("the worker at {address} did not answer")]
    Unreachable {
        /// Pod IP and port.
        address: SocketAddr,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Slower than [`DEADLINE`].
    #[error("the worker at {0} did not answer within {DEADLINE:?}")]
    Slow(SocketAddr),
    /// Another status than the protocol has.
    #[error("the worker at {address} answered {status}")]
    Status {
        /// Pod IP and port.
        address: SocketAddr,
        /// What it said.
        status: StatusCode,
    },
    /// More than [`ANSWER_LIMIT`].
    #[error("the worker at {0} answered more than {ANSWER_LIMIT} bytes")]
    TooLarge(SocketAddr),
    /// Not the JSON of the protocol (NaN and infinity are no JSON).
    #[error("the worker at {address} answered something that is not the protocol's JSON")]
    Garbage {
        /// Pod IP and port.
        address: SocketAddr,
        /// Where it goes wrong.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// JSON whose numbers cannot be.
    #[error("the worker at {address} answered numbers that cannot be")]
    Unusable {
        /// Pod IP and port.
        address: SocketAddr,
        /// Which.
        #[source]
        source: Unusable,
    },
}

impl Error {
    /// Label of metrics: a closed set.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Slow(_) => "slow",
            Self::Status { .. } => "status",
            Self::TooLarge(_) => "too-large",
            Self::Garbage { .. } => "garbage",
            Self::Unusable { .. } => "unusable",
        }
    }

    /// An answer came, and it is not one that the protocol allows.
    pub fn is_bad_answer(&self) -> bool {
        matches!(self, Self::TooLarge(_) | Self::Garbage { .. } | Self::Unusable { .. })
    }
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Poll {
    /// The worker does not know it.
    Unknown,
    /// It runs.
    Running,
    /// It is done.
    Done(Box<CompareResult>),
}

/// What a worker said to a new job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It runs, or it ran already under this key.
    Accepted,
    /// The worker has another job.
    Busy,
}

/// Asks workers.
#[derive(Clone, Debug)]
pub struct Workers {
    client: reqwest::Client,
    port: u16,
}

impl Workers {
    /// A client for workers that listen on `port` (outside of tests the protocol's).
    pub fn new(port: u16) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(1))
            .timeout(DEADLINE)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(20))
            .http1_only()
            .build()?;
        Ok(Self { client, port })
    }

    /// A client for the protocol's port.
    pub fn internal() -> Result<Self, reqwest::Error> {
        Self::new(INTERNAL_PORT)
    }

    /// Who the worker is.
    pub async fn identity(&self, pod: IpAddr) -> Result<Identity, Error> {
        let identity: Identity = self.get(pod, IDENTITY_PATH).await?;
        self.checked(pod, checks::identity(&identity))?;
        Ok(identity)
    }

    /// Its cumulative counters.
    pub async fn counters(&self, pod: IpAddr) -> Result<Counters, Error> {
        let counters: Counters = self.get(pod, COUNTERS_PATH).await?;
        self.checked(pod, checks::counters(&counters))?;
        Ok(counters)
    }

    /// Asks for a comparison.
    pub async fn start(&self, pod: IpAddr, request: &CompareRequest) -> Result<Posted, Error> {
        let answer = self.send(pod, Method::POST, COMPARE_PATH, Some(request)).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::OK => Ok(Posted::Accepted),
            StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS => Ok(Posted::Busy),
            status => Err(Error::Status { address: self.address(pod), status }),
        }
    }

    /// Allows a share of the live prompts to be compared for a while; answers what was found so far.
    pub async fn shadow(&self, pod: IpAddr, request: &ShadowRequest) -> Result<ShadowResult, Error> {
        let answer = self.send(pod, Method::POST, SHADOW_PATH, Some(request)).await?;
        let result: ShadowResult = match answer.status() {
            StatusCode::OK => self.json(pod, answer).await?,
            status => return Err(Error::Status { address: self.address(pod), status }),
        };
        self.checked(pod, checks::shadow(&result))?;
        Ok(result)
    }

    /// Asks what became of the job `key` of tick `tick`, for which at most `probes` prompts and `pairs` pairs were
    /// asked.
    pub async fn poll(&self, pod: IpAddr, asked: &Asked<'_>) -> Result<Poll, Error> {
        let answer = self.send(pod, Method::GET, &format!("{COMPARE_PATH}/{}", asked.key), None::<&()>).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(Poll::Unknown),
            StatusCode::ACCEPTED => Ok(Poll::Running),
            StatusCode::OK => {
                let result: CompareResult = self.json(pod, answer).await?;
                self.checked(pod, checks::comparison(&result, asked))?;
                Ok(Poll::Done(Box::new(result)))
            }
            status => Err(Error::Status { address: self.address(pod), status }),
        }
    }

    fn address(&self, pod: IpAddr) -> SocketAddr {
        SocketAddr::new(pod, self.port)
    }

    fn checked(&self, pod: IpAddr, outcome: Result<(), Unusable>) -> Result<(), Error> {
        outcome.map_err(|source| Error::Unusable { address: self.address(pod), source })
    }

    async fn get<T: DeserializeOwned>(&self, pod: IpAddr, path: &str) -> Result<T, Error> {
        let answer = self.send(pod, Method::GET, path, None::<&()>).await?;
        match answer.status() {
            StatusCode::OK => self.json(pod, answer).await,
            status => Err(Error::Status { address: self.address(pod), status }),
        }
    }

    async fn send(
        &self,
        pod: IpAddr,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response, Error> {
        let address = self.address(pod);
        let span = debug_span!(
            "worker",
            otel.kind = "client",
            http.method = %method,
            server.address = %address,
            url.path = path,
            http.status_code = field::Empty,
            otel.status_code = field::Empty,
        );
        let mut request = self.client.request(method, format!("http://{address}{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().instrument(span.clone()).await;
        match &answer {
            Ok(answer) => span.record("http.status_code", answer.status().as_u16()),
            Err(_) => span.record("otel.status_code", "ERROR"),
        };
        answer.map_err(|source| transport(address, source))
    }

    async fn json<T: DeserializeOwned>(&self, pod: IpAddr, mut answer: Response) -> Result<T, Error> {
        let address = self.address(pod);
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/json") {
            return Err(Error::Garbage { address, source: None });
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|source| transport(address, source))? {
            if bytes.len() + chunk.len() > ANSWER_LIMIT {
                return Err(Error::TooLarge(address));
            }
            bytes.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&bytes).map_err(|source| Error::Garbage { address, source: Some(source) })
    }
}

/// What a job was asked for: the bounds of its answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Name of the job.
    pub key: &'a str,
    /// Its tick.
    pub tick: u32,
    /// Most prompts.
    pub probes: u32,
    /// Most pairs.
    pub pairs: u32,
}

fn transport(address: SocketAddr, source: reqwest::Error) -> Error {
    if source.is_timeout() { Error::Slow(address) } else { Error::Unreachable { address, source } }
}
