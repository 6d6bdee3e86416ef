//! Bodies of requests: within a size and a time, on both ports.

use axum::body::{Body, Bytes};
use http_body_util::LengthLimitError;
use std::time::Duration;

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is larger than allowed.
    TooLarge,
    /// It did not arrive in time.
    TooSlow,
    /// It is not framed as HTTP says, or the connection broke, where nobody reads the answer.
    Broken,
}

/// Reads a body of at most `most` bytes that arrives within `time`.
pub(super) async fn read(body: Body, most: usize, time: Duration) -> Result<Bytes, Unread> {
    let reading = tokio::time::timeout(time, axum::body::to_bytes(body, most)).await.map_err(|_| Unread::TooSlow)?;
    reading.map_err(|error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(this) = cause {
            if this.is::<LengthLimitError>() {
                return Unread::TooLarge;
            }
            cause = this.source();
        }
        Unread::Broken
    })
}
