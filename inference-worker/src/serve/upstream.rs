//! The next tier: workers that answer what this one cannot, or should not. For a BitNet model that is the fp16 baseline.
//!
//! A request is handed on before its first byte only. It carries how often it was handed on, so that two workers that
//! name each other end. What comes back is passed on as it is, with its own revision and tier.

use super::error::ApiError;
use super::public::{ID_HEADER, TIME_HEADER};
use super::tiers::{HOPS_HEADER, TIER_HEADER};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_api::worker::REVISION_HEADER;
use futures::{StreamExt, stream};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests are handed on so often at most: binary to ternary to fp16.
pub(super) const MOST_HOPS: u32 = 2;
/// Addresses behind a name are looked up again after this time.
const FRESH: Duration = Duration::from_secs(5);
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// What a deadline may lose on its way to the next tier.
const ROUNDING: Duration = Duration::from_millis(5);
/// Endpoints that one request is offered to.
const ATTEMPTS: usize = 2;
/// What makes one request out of those of several servers: the gateway's id, and the trace context of W3C.
const TRACE: [&str; 3] = [ID_HEADER, "traceparent", "tracestate"];
/// Largest answer that is not a stream.
const MAX_ANSWER: usize = 16 << 20;

/// The next tier and how it is used.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// `host:port` of its public port; a host with several addresses is several endpoints.
    pub endpoints: Vec<String>,
    /// Which endpoint is next.
    pub balance: Balance,
    /// Requests that are there at once; the answers of more fail as they would without a next tier.
    pub concurrent: usize,
    /// From handing a request on to the last byte of its answer.
    pub limit: Duration,
    /// A model that has no first token after this time has failed.
    pub first_token: Duration,
    /// Below this confidence in its first tokens an answer is left to the next tier; from 0 to 1.
    pub min_confidence: Option<f32>,
}

/// How endpoints are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest of our requests, the next in turn on ties.
    #[default]
    LeastLoaded,
    /// One after the other.
    RoundRobin,
}

/// A client of the next tier.
pub(super) struct Upstream {
    pub(super) settings: UpstreamSettings,
    client: reqwest::Client,
    slots: Arc<Semaphore>,
    endpoints: Arc<Mutex<Endpoints>>,
}

#[derive(Default)]
struct Endpoints {
    known: Vec<SocketAddr>,
    looked_up: Option<Instant>,
    turn: usize,
    /// Our requests that run there.
    running: HashMap<SocketAddr, usize>,
}

/// What is handed on.
pub(super) struct Errand {
    pub(super) path: &'static str,
    pub(super) body: Bytes,
    /// How often it was handed on before.
    pub(super) hops: u32,
    /// The tier that the client asks for.
    pub(super) tier: Option<HeaderValue>,
    pub(super) stream: bool,
    /// When the client stops waiting.
    pub(super) deadline: Option<Instant>,
    /// See [`Errand::trace`].
    pub(super) trace: HeaderMap,
}

impl Errand {
    /// The headers of a request that the next tier gets as they are.
    pub(super) fn trace(headers: &HeaderMap) -> HeaderMap {
        let known =
            TRACE.into_iter().filter_map(|name| Some((HeaderName::from_static(name), headers.get(name)?.clone())));
        known.collect()
    }

    /// What fails when the client's time is over fails because of it. The next tier was told whole milliseconds, so for
    /// it the time may be over a little earlier.
    fn blamed(&self, error: Unanswered) -> Unanswered {
        if self.left().is_some_and(|left| left <= ROUNDING) { Unanswered::Late } else { error }
    }

    /// The time that the client still waits; `None`: it has not said how long.
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// Why the next tier gave no answer: a closed set, for a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// As many requests as may be are there.
    Full,
    /// No endpoint is known.
    NoEndpoint,
    /// No connection, no answer in time, or one that broke.
    Unreachable,
    /// It answered with another status than 200.
    Refused,
    /// The client's time is over.
    Late,
}

impl Upstream {
    pub(super) fn new(settings: UpstreamSettings) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // Plain HTTP inside the namespace: an image without root certificates must work.
            .tls_certs_only([])
            .http1_only()
            .connect_timeout(CONNECT_TIME)
            .timeout(settings.limit)
            .build()?;
        let slots = Arc::new(Semaphore::new(settings.concurrent));
        Ok(Self { settings, client, slots, endpoints: Arc::default() })
    }

    /// The next tier's answer, from its first byte on.
    pub(super) async fn answer(&self, errand: &Errand) -> Result<Response, Unanswered> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Unanswered::Full)?;
        self.look_up().await;
        let mut tried = Vec::new();
        let mut outcome = Unanswered::NoEndpoint;
        for _ in 0..ATTEMPTS {
            if errand.left() == Some(Duration::ZERO) {
                return Err(Unanswered::Late);
            }
            let Some(visit) = self.visit(&tried) else { break };
            tried.push(visit.address);
            match self.ask(&visit, errand).await {
                Ok(response) => {
                    let answer = self.pass_on(response, visit, permit, errand.stream).await;
                    return answer.map_err(|error| errand.blamed(error));
                }
                Err(error) => outcome = error,
            }
        }
        Err(errand.blamed(outcome))
    }

    async fn ask(&self, visit: &Visit, errand: &Errand) -> Result<reqwest::Response, Unanswered> {
        let mut request = self
            .client
            .post(format!("http://{}{}", visit.address, errand.path))
            .header(header::CONTENT_TYPE, "application/json")
            .header(HOPS_HEADER, errand.hops + 1)
            .headers(errand.trace.clone())
            .body(errand.body.clone());
        if let Some(left) = errand.left() {
            // At least one: zero is no time that could be asked for.
            let milliseconds = left.as_millis().max(1);
            request = request.header(TIME_HEADER, milliseconds.to_string()).timeout(left.min(self.settings.limit));
        }
        if let Some(tier) = &errand.tier {
            request = request.header(TIER_HEADER, tier);
        }
        let response = request.send().await.map_err(|_| Unanswered::Unreachable)?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(Unanswered::Refused) }
    }

    /// A stream is passed on as it comes, an object once it is whole: until then a failure can still be answered.
    async fn pass_on(
        &self,
        response: reqwest::Response,
        visit: Visit,
        permit: OwnedSemaphorePermit,
        stream: bool,
    ) -> Result<Response, Unanswered> {
        let headers: Vec<(HeaderName, HeaderValue)> = [header::CONTENT_TYPE.as_str(), REVISION_HEADER, TIER_HEADER]
            .into_iter()
            .filter_map(|name| {
                let value = response.headers().get(name)?.clone();
                Some((HeaderName::from_static(name), value))
            })
            .collect();
        let body = if stream { streamed(response, visit, permit) } else { Body::from(whole(response).await?) };
        let mut response = body.into_response();
        response.headers_mut().extend(headers);
        Ok(response)
    }

    /// Learns the endpoints' addresses; if that fails, those known before go on.
    async fn look_up(&self) {
        {
            let mut endpoints = lock(&self.endpoints);
            if endpoints.looked_up.is_some_and(|at| at.elapsed() < FRESH) {
                return;
            }
            // Noted before: others need not ask meanwhile.
            endpoints.looked_up = Some(Instant::now());
        }
        let mut found = Vec::new();
        for name in &self.settings.endpoints {
            match tokio::time::timeout(CONNECT_TIME, tokio::net::lookup_host(name)).await {
                Ok(Ok(addresses)) => found.extend(addresses),
                Ok(Err(error)) => tracing::warn!(%error, endpoint = name, "an endpoint of the next tier is not found"),
                Err(_) => tracing::warn!(endpoint = name, "looking up an endpoint of the next tier takes too long"),
            }
        }
        found.sort_unstable();
        found.dedup();
        if !found.is_empty() {
            lock(&self.endpoints).known = found;
        }
    }

    /// Chooses an endpoint that was not tried.
    fn visit(&self, tried: &[SocketAddr]) -> Option<Visit> {
        let mut endpoints = lock(&self.endpoints);
        let count = endpoints.known.len();
        let turn = endpoints.turn;
        let mut free = (0..count).map(|at| (turn + at) % count).filter(|at| !tried.contains(&endpoints.known[*at]));
        let load = |at: &usize| endpoints.running.get(&endpoints.known[*at]).copied().unwrap_or(0);
        let chosen = match self.settings.balance {
            Balance::RoundRobin => free.next(),
            Balance::LeastLoaded => free.min_by_key(load),
        }?;
        let address = endpoints.known[chosen];
        endpoints.turn = chosen + 1;
        *endpoints.running.entry(address).or_default() += 1;
        Some(Visit { address, endpoints: Arc::clone(&self.endpoints) })
    }
}

/// One request at one endpoint.
struct Visit {
    address: SocketAddr,
    endpoints: Arc<Mutex<Endpoints>>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut endpoints = lock(&self.endpoints);
        if let Some(running) = endpoints.running.get_mut(&self.address) {
            *running -= 1;
            if *running == 0 {
                endpoints.running.remove(&self.address);
            }
        }
    }
}

fn lock(endpoints: &Mutex<Endpoints>) -> MutexGuard<'_, Endpoints> {
    // Every change is one assignment: a panic elsewhere leaves nothing half done.
    endpoints.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn whole(mut response: reqwest::Response) -> Result<Vec<u8>, Unanswered> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| Unanswered::Unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Unanswered::Refused);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A stream that breaks ends with an error event and without `[DONE]`, as one of our own does.
fn streamed(response: reqwest::Response, visit: Visit, permit: OwnedSemaphorePermit) -> Body {
    let guards = (visit, permit);
    let broken = |error: &reqwest::Error| {
        let error = if error.is_timeout() {
            ApiError::deadline("the answer of the next tier was not complete in the time that was left")
        } else {
            ApiError::internal("fallback_broken", "the answer of the next tier broke off")
        };
        Bytes::from(format!("data: {}\n\n", error.object()))
    };
    let passed = stream::unfold((response.bytes_stream(), guards, false), move |(mut from, guards, over)| async move {
        if over {
            return None;
        }
        match from.next().await? {
            Ok(bytes) => Some((bytes, (from, guards, false))),
            Err(error) => Some((broken(&error), (from, guards, true))),
        }
    });
    Body::from_stream(passed.map(Ok::<_, std::convert::Infallible>))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(balance: Balance) -> Upstream {
        let settings = UpstreamSettings {
            endpoints: Vec::new(),
            balance,
            concurrent: 1,
            limit: Duration::from_secs(1),
            first_token: Duration::from_secs(1),
            min_confidence: None,
        };
        let upstream = Upstream::new(settings).unwrap();
        lock(&upstream.endpoints).known = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        upstream
    }

    fn port(visit: Option<&Visit>) -> Option<u16> {
        visit.map(|visit| visit.address.port())
    }

    #[test]
    fn round_robin_goes_round_and_skips_what_was_tried() {
        let upstream = upstream(Balance::RoundRobin);
        let ports: Vec<_> = (0..4).map(|_| port(upstream.visit(&[]).as_ref())).collect();
        assert_eq!(ports, [1, 2, 3, 1].map(Some));
        let second = SocketAddr::from(([127, 0, 0, 1], 2));
        assert_eq!(port(upstream.visit(&[second]).as_ref()), Some(3));
        let all = lock(&upstream.endpoints).known.clone();
        assert_eq!(port(upstream.visit(&all).as_ref()), None);
    }

    #[test]
    fn least_loaded_counts_what_runs_and_forgets_what_ended() {
        let upstream = upstream(Balance::LeastLoaded);
        let mut visits: Vec<Visit> = (0..5).filter_map(|_| upstream.visit(&[])).collect();
        assert_eq!(visits.iter().map(|visit| visit.address.port()).collect::<Vec<_>>(), [1, 2, 3, 1, 2]);
        visits.remove(1);
        visits.remove(3);
        // The second endpoint has none now, the others two and one.
        assert_eq!(port(upstream.visit(&[]).as_ref()), Some(2));
        drop(visits);
        assert!(lock(&upstream.endpoints).running.is_empty());
    }
}
