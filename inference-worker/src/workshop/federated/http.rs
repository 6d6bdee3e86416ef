//! What coordinator and clients share of HTTP.

use super::protocol::Fault;
use crate::workshop::WorkshopError;
use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The secret that coordinator and clients share. No `Debug`: it must not reach a log.
#[derive(Clone)]
pub struct Token(String);

/// Fewest characters: a shorter one could be guessed.
const LEAST: usize = 16;

impl Token {
    /// Reads a file that holds the token and, maybe, white space around it.
    ///
    /// # Errors
    /// [`WorkshopError::Refused`] if it is shorter than 16 characters or not plain ASCII.
    pub fn read(path: &Path) -> Result<Self, WorkshopError> {
        let text = std::fs::read_to_string(path).map_err(WorkshopError::file("read", path))?;
        let token = text.trim();
        if token.len() < LEAST || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(WorkshopError::Refused(format!(
                "{} must hold a token of at least {LEAST} printable ASCII characters without spaces: write one, for example with `openssl rand -hex 32`",
                path.display()
            )));
        }
        Ok(Self(token.to_owned()))
    }

    /// Value of the `Authorization` header.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether a request carries it. Digests are compared, so that the time tells nothing about the token.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        Sha256::digest(given) == Sha256::digest(self.header())
    }
}

/// A refusal on the wire.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(Fault { error: self.1 })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_and_must_be_equal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Token::read(&path)
        };
        let token = read("0123456789abcdef\n").unwrap();
        for bad in ["", "short", "0123456789abc def", "0123456789abcde\u{e9}"] {
            let Err(error) = read(bad) else { panic!("{bad} must be refused") };
            assert!(error.to_string().contains("at least 16"), "{error}");
        }
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert!(token.is_in(&with("Bearer 0123456789abcdef")));
        assert!(!token.is_in(&with("Bearer 0123456789abcdeg")) && !token.is_in(&with("0123456789abcdef")));
        assert!(!token.is_in(&HeaderMap::new()));
    }
}
