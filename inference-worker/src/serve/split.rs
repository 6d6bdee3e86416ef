//! A/B tests: which arm a user belongs to, and feedback.
//!
//! The route marks the requests of a test (`x-bitnet-split`), so a test begins and ends with the very write that moves
//! its traffic. The mark holds the rollout's uid, which only the cluster knows: a client cannot choose an arm by it.
//! With a cookie, the arm that a new user drew sets it, and the route leads later requests there. With a header, the
//! user's hash says which arm it is, and a request that came to the other arm is passed on once; where that arm cannot be
//! reached, this one answers.

use super::error::ApiError;
use super::public::read;
use super::worker::Worker;
use crate::compare::is_peer_of;
use crate::engine::random;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bitnet_api::worker::{PUBLIC_PORT, SPLIT_HEADER, USER_GROUPS};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Set on a request that was passed on: it is not passed on again.
const HOP_HEADER: &str = "x-bitnet-hop";
/// Headers that belong to one connection.
const OF_A_CONNECTION: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
];

/// An A/B test as the route's mark describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    uid: String,
    stable: String,
    pub(super) candidate: String,
    weight: usize,
    pub(super) attempt: u32,
    sticky: Sticky,
    seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Sticky {
    Cookie(String),
    Header(HeaderName),
}

impl Split {
    /// Reads a mark; `None` if it is not one of the rollout `uid`.
    pub(super) fn read(mark: &str, uid: &str) -> Option<Self> {
        let fields: Vec<&str> = mark.split(';').collect();
        let ["1", of, stable, candidate, weight, attempt, kind, name, seconds] = fields.as_slice() else { return None };
        if uid.is_empty() || *of != uid {
            return None;
        }
        let sticky = match *kind {
            "cookie" => Sticky::Cookie((*name).to_owned()),
            "header" => Sticky::Header(name.parse().ok()?),
            _ => return None,
        };
        let weight = weight.parse().ok().filter(|weight| (1..=99).contains(weight))?;
        let text = |field: &str| field.to_owned();
        let (attempt, seconds) = (attempt.parse().ok()?, seconds.parse().ok()?);
        Some(Self { uid: text(of), stable: text(stable), candidate: text(candidate), weight, attempt, sticky, seconds })
    }

    /// Group of a user who is told apart by a header.
    fn group(&self, user: &[u8]) -> usize {
        (hash(&[self.uid.as_bytes(), user]) % USER_GROUPS as u64) as usize
    }

    /// The arm of a group: the first groups, as many as the weight asks for, are the candidate's.
    fn arm(&self, group: usize) -> &str {
        if group * 100 < self.weight * USER_GROUPS { &self.candidate } else { &self.stable }
    }

    /// The arm and the user's token that a cookie of ours holds.
    fn cookie(&self, headers: &HeaderMap) -> Option<(String, String)> {
        let Sticky::Cookie(name) = &self.sticky else { return None };
        let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (arm, token) = pairs.find(|(key, _)| key == name)?.1.split_once('~')?;
        (arm == self.stable || arm == self.candidate).then(|| (arm.to_owned(), token.to_owned()))
    }

    /// Who asks, where the test knows.
    fn user(&self, headers: &HeaderMap) -> Option<u64> {
        match &self.sticky {
            Sticky::Cookie(_) => self.cookie(headers).map(|(_, token)| hash(&[b"cookie", token.as_bytes()])),
            Sticky::Header(name) => headers.get(name).map(|user| hash(&[b"header", user.as_bytes()])),
        }
    }
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |hash, byte| (hash << 8) | u64::from(*byte))
}

/// The test that a request belongs to. Only revisions of this rollout are its arms, whatever the mark says.
fn split(worker: &Worker, headers: &HeaderMap) -> Option<Split> {
    let mark = headers.get(SPLIT_HEADER)?.to_str().ok()?;
    let settings = &worker.settings;
    let (rollout, uid) = (settings.rollout.as_deref()?, settings.rollout_uid.as_deref()?);
    Split::read(mark, uid).filter(|split| [&split.stable, &split.candidate].iter().all(|arm| is_peer_of(rollout, arm)))
}

/// Every request of a test is answered by the arm of its user.
pub(super) async fn keep(State(worker): State<Arc<Worker>>, request: Request, next: Next) -> Response {
    let Some(split) = split(&worker, request.headers()).filter(|_| request.uri().path().starts_with("/v1/")) else {
        return next.run(request).await;
    };
    match &split.sticky {
        Sticky::Cookie(name) => {
            let known = split.cookie(request.headers()).is_some();
            let ours = [&split.stable, &split.candidate].contains(&&worker.settings.revision);
            let mut response = next.run(request).await;
            if !known && ours {
                let (arm, token, seconds) = (&worker.settings.revision, random::entropy(), split.seconds);
                let cookie = format!("{name}={arm}~{token:016x}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax");
                if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                    response.headers_mut().append(header::SET_COOKIE, cookie);
                    worker.users.assigned(&split);
                }
            }
            response
        }
        Sticky::Header(name) => {
            let Some(group) = request.headers().get(name).map(|user| split.group(user.as_bytes())) else {
                return next.run(request).await;
            };
            let arm = split.arm(group);
            if arm == worker.settings.revision {
                worker.users.came(&split, group);
            } else if !request.headers().contains_key(HOP_HEADER) {
                return pass_on(&worker, arm, request, next).await;
            }
            next.run(request).await
        }
    }
}

/// The other arm's answer, as it comes; our own where that arm cannot be reached.
async fn pass_on(worker: &Worker, arm: &str, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = match read(body).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let Some(loaded) = worker.loaded() else { return next.run(Request::from_parts(parts, Body::from(body))).await };
    match ask(worker, &loaded.arms, arm, &parts, body.clone()).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(arm, error = &error as &dyn std::error::Error, "the user's arm was not reached");
            next.run(Request::from_parts(parts, Body::from(body))).await
        }
    }
}

async fn ask(
    worker: &Worker,
    arms: &reqwest::Client,
    arm: &str,
    parts: &Parts,
    body: Bytes,
) -> Result<Response, reqwest::Error> {
    let known = worker.settings.peers.public.iter().find(|(name, _)| name == arm);
    let address = known.map_or_else(|| format!("{arm}:{PUBLIC_PORT}"), |(_, address)| address.clone());
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = parts.headers.clone();
    for name in OF_A_CONNECTION.iter().chain([&header::HOST, &header::CONTENT_LENGTH]) {
        headers.remove(name);
    }
    headers.insert(HeaderName::from_static(HOP_HEADER), HeaderValue::from_static("1"));
    let asked = arms.request(parts.method.clone(), format!("http://{address}{path}"));
    let answer = asked.headers(headers).timeout(worker.settings.request_timeout).body(body).send().await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    response.headers_mut().clone_from(answer.headers());
    for name in &OF_A_CONNECTION {
        response.headers_mut().remove(name);
    }
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    Ok(response)
}

/// A client for other arms: no redirects, no proxy.
pub(super) fn arms() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_only([])
        .http1_only()
        .connect_timeout(std::time::Duration::from_secs(1))
        .build()
}

#[derive(Deserialize)]
struct Said {
    id: String,
    value: f64,
}

/// What a user thinks of an answer: the first word of each user counts for the revision that answered.
pub(super) async fn feedback(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let _room = worker.desk.room(&body)?;
    let bytes = read(body).await?;
    let said: Said = serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::malformed(format!("the body must be {{\"id\": \"<id of the answer>\", \"value\": 0 to 1}}: {error}"))
    })?;
    if !(0.0..=1.0).contains(&said.value) {
        return Err(ApiError::invalid("value", "`value` must be a number from 0 (bad) to 1 (good)"));
    }
    let rollout = worker.settings.rollout.as_deref().unwrap_or_default();
    let Some(revision) = revision_of(&said.id).filter(|revision| is_peer_of(rollout, revision)) else {
        return Err(ApiError::invalid("id", "`id` must be the id of an answer of this rollout"));
    };
    let split = split(&worker, &headers);
    let user = split.as_ref().and_then(|split| split.user(&headers));
    let user = user.unwrap_or_else(|| hash(&[b"answer", said.id.as_bytes()]));
    let counted = worker.users.said(split.as_ref(), user, revision, said.value);
    Ok(Json(json!({"counted": counted})))
}

/// The revision in an answer's id: `<kind>-<revision>-<process and number>`.
fn revision_of(id: &str) -> Option<&str> {
    id.split_once('-')?.1.rsplit_once('-').map(|(revision, _)| revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "1;uid;chat-aaaaaaaaaa;chat-bbbbbbbbbb;10;3;header;x-user-id;3600";

    #[test]
    fn a_mark_of_another_rollout_or_form_means_nothing() {
        let split = Split::read(MARK, "uid").unwrap();
        assert_eq!((split.weight, split.attempt, split.seconds), (10, 3, 3600));
        for (mark, uid) in [
            (MARK, "other"),
            (MARK, ""),
            ("2;uid;a;b;10;3;header;x;1", "uid"),
            ("1;uid;a;b;100;3;header;x;1", "uid"),
            ("1;uid;a;b;10;3;query;x;1", "uid"),
            ("1;uid;a;b;10;3;header;x", "uid"),
            ("", ""),
        ] {
            assert_eq!(Split::read(mark, uid), None, "{mark}");
        }
    }

    #[test]
    fn a_user_has_one_arm_and_the_arms_have_their_shares() {
        let split = Split::read(MARK, "uid").unwrap();
        let mine = (0..USER_GROUPS).filter(|group| split.arm(*group) == split.candidate).count();
        assert_eq!(mine, USER_GROUPS.div_ceil(10));
        // 20,000 users: the share of the candidate is within 4 standard deviations of 10 % (false alarm 6e-5).
        let users = 20_000;
        let share = (0..users).filter(|u| split.arm(split.group(format!("user-{u}").as_bytes())) == split.candidate);
        let share = share.count() as f64 / f64::from(users);
        assert!((share - 0.1).abs() < 4.0 * (0.09 / f64::from(users)).sqrt(), "{share}");
        let other = Split::read(&MARK.replace("uid", "another"), "another").unwrap();
        let moved = (0..1000).filter(|u| split.group(&[*u as u8]) != other.group(&[*u as u8])).count();
        assert!(moved > 900, "another rollout draws anew");
    }

    #[test]
    fn a_cookie_is_found_among_others_and_only_of_an_arm() {
        let split = Split::read("1;uid;chat-aaaaaaaaaa;chat-bbbbbbbbbb;10;3;cookie;arm;60", "uid").unwrap();
        let of = |cookie: &str| {
            split.cookie(&HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(cookie).unwrap())]))
        };
        assert_eq!(of("a=b; arm=chat-bbbbbbbbbb~0f; c=d"), Some(("chat-bbbbbbbbbb".into(), "0f".into())));
        for other in ["arm=chat-cccccccccc~0f", "charm=chat-bbbbbbbbbb~0f", "arm=chat-bbbbbbbbbb", "", "arm"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn the_revision_is_in_the_id_of_an_answer() {
        assert_eq!(revision_of("chatcmpl-my-chat-aaaaaaaaaa-0123456700001a"), Some("my-chat-aaaaaaaaaa"));
        assert_eq!(revision_of("cmpl-0123456700001a"), None);
        assert_eq!(revision_of(""), None);
    }
}
