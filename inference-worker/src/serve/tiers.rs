//! Which tier answers: this model, or the next one because this one failed, is not sure, or was not asked for.

use super::account::ErrorClass;
use super::error::ApiError;
use super::public::{Refusal, TIME_HEADER};
use super::upstream::{Errand, MOST_HOPS, Unanswered, Upstream};
use super::worker::{Loaded, Worker};
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use std::time::{Duration, Instant};

/// In a request: the tier that is wanted. In an answer: the one that gave it (`binary`, `ternary`, `mixed`, `int4`, `int8`, `fp16`).
pub const TIER_HEADER: &str = "x-bitnet-tier";
/// In an answer of the next tier: why it was asked (`server`, `timeout`, `non_finite`, `confidence`, `asked`).
pub const FALLBACK_HEADER: &str = "x-bitnet-fallback";
/// How often a request was handed on.
pub const HOPS_HEADER: &str = "x-bitnet-hops";

/// The tiers by rising precision.
const TIERS: [&str; 6] = ["binary", "ternary", "mixed", "int4", "int8", FLOATS];
/// The tier of plain floats of 16 or 32 bits, whichever.
const FLOATS: &str = "fp16";

/// The tier of a precision.
pub(super) fn tier(precision: &str) -> &'static str {
    TIERS.into_iter().find(|tier| *tier == precision).unwrap_or(FLOATS)
}

/// When the client stops waiting, where it has said so; what it said was checked before.
fn deadline(headers: &HeaderMap, arrival: Instant) -> Option<Instant> {
    let milliseconds = headers.get(TIME_HEADER)?.to_str().ok()?.parse().ok()?;
    arrival.checked_add(Duration::from_millis(milliseconds))
}

/// The way of one request through the tiers.
pub(super) struct Tiers<'a> {
    worker: &'a Worker,
    loaded: &'a Loaded,
    errand: Errand,
    /// The client asks for another tier than this one.
    elsewhere: bool,
    /// The client asks for this tier.
    here: bool,
}

impl<'a> Tiers<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        loaded: &'a Loaded,
        headers: &HeaderMap,
        path: &'static str,
        body: Bytes,
        stream: bool,
        arrival: Instant,
    ) -> Result<Self, ApiError> {
        let own = tier(&loaded.identity.precision);
        let asked = headers.get(TIER_HEADER);
        // What cannot be read was handed on too often.
        let hops = headers
            .get(HOPS_HEADER)
            .map_or(0, |hops| hops.to_str().ok().and_then(|hops| hops.parse().ok()).unwrap_or(MOST_HOPS));
        if asked.is_some_and(|asked| !TIERS.iter().any(|tier| asked.as_bytes() == tier.as_bytes())) {
            let message = format!("the header `{TIER_HEADER}` must be one of {}", TIERS.join(", "));
            return Err(ApiError::invalid(TIER_HEADER, message));
        }
        let here = asked.is_some_and(|tier| tier == own);
        let deadline = deadline(headers, arrival);
        let errand = Errand { path, body, hops, tier: asked.cloned(), stream, deadline, trace: Errand::trace(headers) };
        Ok(Self { worker, loaded, errand, elsewhere: asked.is_some() && !here, here })
    }

    fn upstream(&self) -> Option<&'a Upstream> {
        self.loaded.upstream.as_ref().filter(|_| self.errand.hops < MOST_HOPS)
    }

    /// Whether the client asks for another tier.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// Whether the next tier may answer.
    pub(super) fn may_hand_on(&self) -> bool {
        self.upstream().is_some()
    }

    /// Time to the first token, after which the model has failed.
    pub(super) fn first_token(&self) -> Option<Duration> {
        self.upstream().map(|upstream| upstream.settings.first_token)
    }

    /// Whether the model's confidence decides.
    pub(super) fn doubts(&self) -> bool {
        !self.here && self.loaded.confidence.is_some() && self.upstream().is_some()
    }

    /// Whether the model is not sure enough of an answer whose first tokens were that likely.
    pub(super) fn doubt(&self, opening: &[f32]) -> bool {
        let least = self.upstream().and_then(|upstream| upstream.settings.min_confidence);
        let (Some(least), Some(confidence)) = (least, &self.loaded.confidence) else { return false };
        confidence.of_answer(opening).is_some_and(|found| found < least)
    }

    /// The answer of the tier that the client asks for.
    pub(super) async fn asked_for(&self) -> Result<Response, ApiError> {
        let own = tier(&self.loaded.identity.precision);
        if self.upstream().is_none() {
            let message = format!("this server has the tier {own} only; leave the header `{TIER_HEADER}` out");
            return Err(ApiError::no_tier(message));
        }
        self.hand_on("asked").await.map_err(|unanswered| match unanswered {
            Unanswered::Late => {
                ApiError::deadline("the tier that was asked for did not answer in the time that was left")
            }
            _ => ApiError::no_tier("the tier that was asked for does not answer"),
        })
    }

    /// The next tier's answer to what this one is not sure of.
    pub(super) async fn escalate(&self) -> Option<Response> {
        self.hand_on("confidence").await.ok()
    }

    /// The next tier's answer to what this model failed. A full queue is no failure of the model, and an overload must
    /// not become that of the next tier.
    pub(super) async fn take_over(&self, failed: &Refusal) -> Option<Response> {
        let reason = match failed.class {
            ErrorClass::Server => "server",
            ErrorClass::Timeout => "timeout",
            ErrorClass::NonFinite => "non_finite",
            ErrorClass::Overloaded | ErrorClass::BrokenStream | ErrorClass::Fallback => return None,
        };
        self.hand_on(reason).await.ok()
    }

    async fn hand_on(&self, reason: &'static str) -> Result<Response, Unanswered> {
        let answer = self.upstream().ok_or(Unanswered::NoEndpoint)?.answer(&self.errand).await;
        let outcome = match &answer {
            Ok(_) => "answered",
            Err(Unanswered::Full) => "full",
            Err(Unanswered::NoEndpoint) => "no_endpoint",
            Err(Unanswered::Unreachable) => "unreachable",
            Err(Unanswered::Refused) => "refused",
            Err(Unanswered::Late) => "late",
        };
        self.worker.account.metrics().handed_on(reason, outcome);
        let mut response = answer?;
        response.headers_mut().insert(FALLBACK_HEADER, HeaderValue::from_static(reason));
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LayerPrecision;

    #[test]
    fn every_precision_has_a_tier_and_only_plain_floats_share_one() {
        for precision in ["fp16", "bf16", "fp32"] {
            assert_eq!(tier(precision), "fp16");
        }
        for layers in LayerPrecision::ALL.into_iter().filter(|layers| *layers != LayerPrecision::Full) {
            assert_eq!(tier(layers.name()), layers.name());
        }
        assert_eq!(tier("mixed"), "mixed");
    }
}
