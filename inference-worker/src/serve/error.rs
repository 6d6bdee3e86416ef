//! Refusals and failures of both ports, each mapped once to a status and an error object.

use super::account::ErrorClass;
use crate::engine::{Failure, Refused};
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;

/// An error of the public port, in OpenAI's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<&'static str>,
    message: String,
    /// Seconds after which a refused client may try again.
    retry_after: u64,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after: 1 }
    }

    /// 400 for a field that breaks a rule.
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_value", message);
        Self { param: Some(param), ..error }
    }

    /// 400 for a value of another type than the field's; without a field, for a body that is no object.
    pub(crate) fn wrong_type(param: Option<&'static str>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_type", message);
        Self { param, ..error }
    }

    /// 400 for a field whose feature this server does not have.
    pub(crate) fn unsupported(param: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "unsupported_parameter", message);
        Self { param: Some(param), ..error }
    }

    /// 400 for a prompt that does not fit.
    pub(crate) fn too_long(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "context_length_exceeded", message)
    }

    /// 400 for a body that is not JSON.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_json", message)
    }

    /// An HTTP-level refusal (404, 405, 408, 413).
    pub(crate) fn http(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    /// 503 while there is no model or no longer one.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "unavailable", message)
    }

    /// 503 for a tier that was asked for and cannot be reached.
    pub(crate) fn no_tier(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "tier_unavailable", message)
    }

    /// 504 for a passed deadline.
    pub(crate) fn deadline(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", "deadline_exceeded", message)
    }

    /// 500.
    pub(crate) fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", code, message)
    }

    /// 429 where as many requests are read as may be at once.
    pub(crate) fn crowded() -> Self {
        let message = "as many requests are being read as this server reads at once; try again after a moment";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "reading_full", message)
    }

    /// The fault is not the client's.
    pub(crate) fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }

    /// What a job that was not taken is answered, and how it counts; `gap` is how soon a slot becomes free.
    pub(crate) fn refused(refused: Refused, gap: Duration) -> (Self, ErrorClass) {
        match refused {
            Refused::Full => {
                let message =
                    "as many requests wait as this server lets wait; try again after the time of `Retry-After`";
                let full = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", message);
                let retry_after = gap.as_secs_f64().ceil().max(1.0) as u64;
                (Self { retry_after, ..full }, ErrorClass::Overloaded)
            }
            // Only background work is told so, and no user's request is that.
            Refused::Busy => (Self::unavailable("the engine has other work to do"), ErrorClass::Server),
            Refused::Stopped => (Self::unavailable("the engine has stopped"), ErrorClass::Server),
        }
    }

    /// What a failed job is answered, and how it counts before its first byte; `None`: as a client that went away.
    pub(crate) fn failed(failure: &Failure) -> (Self, Option<ErrorClass>) {
        match failure {
            Failure::NonFinite { .. } => {
                let message = "the model gave logits that are not finite numbers";
                (Self::internal("non_finite_logits", message), Some(ErrorClass::NonFinite))
            }
            // The client's schema, not the model.
            Failure::Grammar { .. } => {
                let message = "the form of `response_format` outgrew its limits; ask for a simpler schema";
                (Self::invalid("response_format", message), None)
            }
            Failure::Forward { .. } | Failure::Yielded => {
                let message = "the model could not process the request";
                (Self::internal("forward_failed", message), Some(ErrorClass::Server))
            }
        }
    }

    /// The error object, as in a body or in the last event of a stream.
    pub(crate) fn object(&self) -> Value {
        let Self { kind, code, param, message, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.object())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS || self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, self.retry_after.into());
        }
        response
    }
}

/// An error's text and those of its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// An error of the internal port: `{"error": {"code", "message"}}` and fields that go with the code.
#[derive(Debug)]
pub(crate) struct InternalError {
    status: StatusCode,
    code: &'static str,
    message: String,
    running: Option<String>,
}

impl InternalError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), running: None }
    }

    /// 400 that names the field, the rule and the remedy.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// 409: another job runs.
    pub(crate) fn busy(running: &str) -> Self {
        let message = format!("comparison `{running}` runs and is not cut; ask again when it is done");
        Self { running: Some(running.to_owned()), ..Self::new(StatusCode::CONFLICT, "busy", message) }
    }
}

impl IntoResponse for InternalError {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(running) = self.running {
            error["running"] = Value::String(running);
        }
        (self.status, Json(json!({"error": error}))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_client_is_told_when_a_slot_becomes_free() {
        for (gap, told) in [(0, "1"), (300, "1"), (1001, "2"), (42_000, "42")] {
            let (error, class) = ApiError::refused(Refused::Full, Duration::from_millis(gap));
            assert_eq!(class, ErrorClass::Overloaded);
            assert_eq!(error.into_response().headers()[header::RETRY_AFTER], told);
        }
    }
}
