//! Calls to other workers. A peer is a Service of the same rollout, named by revision; nothing that comes over the wire
//! can make this worker call anything else.

use super::halves;
use bitnet_api::worker::{GENERATE_PATH, GenerateRequest, GenerateResult, SCORE_PATH, ScoreRequest};
use serde::Serialize;
use std::time::Duration;

/// Largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;
/// A continuation is at most 512 numbers.
const MAX_JSON: usize = 1 << 20;
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// From the call to the last byte.
const TOTAL_TIME: Duration = Duration::from_secs(30);

/// Where peers listen.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// Internal port of all peers.
    pub port: u16,
    /// Addresses of single peers, `(name, host:port)`: for development, where there are no Services.
    pub addresses: Vec<(String, String)>,
    /// The same of the public port, for the other arm of an A/B test.
    pub public: Vec<(String, String)>,
    /// Time for a whole call.
    pub limit: Duration,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self { port: bitnet_api::worker::INTERNAL_PORT, addresses: Vec::new(), public: Vec::new(), limit: TOTAL_TIME }
    }
}

/// Which connection a call uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// One that may be open already.
    Kept,
    /// A new one: a broken connection, or a Service's bad pod behind it, is not met twice.
    Fresh,
}

/// Calls peers; holds connections.
pub(super) struct Peers {
    settings: PeerSettings,
    kept: reqwest::Client,
    fresh: reqwest::Client,
}

/// What went wrong at a peer: a closed set, so that a report can count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerError {
    Connect,
    Timeout,
    /// The connection broke in the answer.
    Broken,
    /// 4xx: it does not know what it was asked, for example a prompt beyond its context.
    Refused,
    /// 429 or 503.
    Overloaded,
    /// Another 5xx.
    Failed,
    /// 3xx is not followed.
    Redirect,
    TooLarge,
    /// 200 with something else than the answer.
    Garbage,
    /// Its logits are not finite numbers.
    NonFinite,
}

impl PeerError {
    /// Short name for the report.
    pub(super) fn reason(self) -> &'static str {
        match self {
            PeerError::Connect => "connect",
            PeerError::Timeout => "timeout",
            PeerError::Broken => "broken",
            PeerError::Refused => "refused",
            PeerError::Overloaded => "overloaded",
            PeerError::Failed => "failed",
            PeerError::Redirect => "redirect",
            PeerError::TooLarge => "tooLarge",
            PeerError::Garbage => "garbage",
            PeerError::NonFinite => "nonFinite",
        }
    }

    /// The same question on a new connection may be answered.
    pub(super) fn may_pass(self) -> bool {
        !matches!(self, PeerError::Refused | PeerError::NonFinite)
    }
}

impl Peers {
    pub(super) fn new(settings: &PeerSettings) -> reqwest::Result<Self> {
        let client = |idle: usize| {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                // Peers are called in plain HTTP inside the namespace: no root certificates are needed, and an image
                // without any must work.
                .tls_certs_only([])
                .http1_only()
                .connect_timeout(CONNECT_TIME)
                .timeout(settings.limit)
                .pool_max_idle_per_host(idle)
                .build()
        };
        Ok(Self { settings: settings.clone(), kept: client(2)?, fresh: client(0)? })
    }

    /// A greedy continuation by the peer's model.
    pub(super) async fn generate(
        &self,
        peer: &str,
        connection: Connection,
        request: &GenerateRequest,
    ) -> Result<GenerateResult, PeerError> {
        let body = self.call(peer, connection, GENERATE_PATH, request, MAX_JSON).await?;
        continuation(&body, request.tokens).ok_or(PeerError::Garbage)
    }

    /// The peer's logits `[positions, vocabulary]`.
    pub(super) async fn score(
        &self,
        peer: &str,
        connection: Connection,
        request: &ScoreRequest,
        vocabulary: usize,
    ) -> Result<Vec<f32>, PeerError> {
        let body = self.call(peer, connection, SCORE_PATH, request, MAX_ANSWER).await?;
        let logits = halves::decode(&body).ok_or(PeerError::Garbage)?;
        if logits.len() != request.positions.len() * vocabulary {
            return Err(PeerError::Garbage);
        }
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(PeerError::NonFinite);
        }
        Ok(logits)
    }

    async fn call(
        &self,
        peer: &str,
        connection: Connection,
        path: &str,
        request: &impl Serialize,
        limit: usize,
    ) -> Result<Vec<u8>, PeerError> {
        let client = if connection == Connection::Kept { &self.kept } else { &self.fresh };
        let known = self.settings.addresses.iter().find(|(name, _)| name == peer);
        let address = known.map_or_else(|| format!("{peer}:{}", self.settings.port), |(_, address)| address.clone());
        let mut response =
            client.post(format!("http://{address}{path}")).json(request).send().await.map_err(|e| classify(&e))?;
        match response.status().as_u16() {
            200 => {}
            300..=399 => return Err(PeerError::Redirect),
            429 | 503 => return Err(PeerError::Overloaded),
            400..=499 => return Err(PeerError::Refused),
            500..=599 => return Err(PeerError::Failed),
            _ => return Err(PeerError::Garbage),
        }
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(PeerError::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| classify(&e))? {
            if body.len() + chunk.len() > limit {
                return Err(PeerError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn classify(error: &reqwest::Error) -> PeerError {
    if error.is_timeout() {
        PeerError::Timeout
    } else if error.is_connect() {
        PeerError::Connect
    } else {
        PeerError::Broken
    }
}

/// A peer's answer to a request for at most so many tokens; `None` where it is none.
pub fn continuation(body: &[u8], tokens: u32) -> Option<GenerateResult> {
    let result: GenerateResult = serde_json::from_slice(body).ok()?;
    let times = [result.ttft, result.tpot, result.busy_seconds];
    let good = result.tokens.len() <= tokens as usize && times.iter().all(|t| t.is_finite() && *t >= 0.0);
    good.then_some(result)
}

/// A peer's name is its revision: `<rollout>-` and ten letters or digits of base32.
pub(crate) fn is_peer_of(rollout: &str, name: &str) -> bool {
    let hash = name.strip_prefix(rollout).and_then(|rest| rest.strip_prefix('-'));
    hash.is_some_and(|hash| hash.len() == 10 && hash.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_revisions_of_the_same_rollout_are_peers() {
        assert!(is_peer_of("chat", "chat-abcdefg234"));
        assert!(is_peer_of("chat-a", "chat-a-abcdefg234"));
        for name in [
            "chat-baseline",
            "other-abcdefg234",
            "chat-abcdefg23",
            "chat-abcdefg2345",
            "chat-ABCDEFG234",
            "chat-abcdefg018",
            "chat-abcdefg234.other",
            "chat-abcdefg234:80",
            "chat-abcdefg234/x",
            "http://chat-abcdefg234",
            "chat-abc.efg234",
            "",
            "chat-",
        ] {
            assert!(!is_peer_of("chat", name), "{name}");
        }
    }
}
