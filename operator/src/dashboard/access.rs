//! Who asks, and what they may see. Tokens are reviewed by the API server; nothing here decides about rights.

use super::{Door, problem};
use crate::reconcile::Guarded;
use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long an answer of the API server is believed: also how long a revoked token still reads.
const BELIEVED: Duration = Duration::from_secs(30);
/// Answers that are kept.
const KEPT: usize = 1024;
/// Namespaces of one caller that are asked about one by one.
const NAMESPACES: usize = 64;
/// Longest token that is looked at.
const LONGEST: usize = 16 << 10;

/// A bearer token. It has no text form, so that it cannot reach a log.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token itself, for the `Authorization` of a request to the API server.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// Somebody who reached the loopback address.
    Loopback,
    /// The owner of a token that the API server knows.
    Known {
        /// Who that is.
        user: Box<UserInfo>,
        /// Their token.
        token: Token,
    },
}

impl Caller {
    /// Name of a known caller.
    pub(super) fn user(&self) -> Option<&str> {
        match self {
            Self::Loopback => None,
            Self::Known { user, .. } => user.username.as_deref(),
        }
    }
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denied {
    /// No token where one is needed.
    #[error("a login is needed: send `Authorization: Bearer <token>` (for example of `kubectl create token`)")]
    NoToken,
    /// The header is there, but holds no bearer token.
    #[error("the Authorization header holds no bearer token: it must be `Bearer <token>`")]
    NotABearer,
    /// The API server does not know the token.
    #[error("the API server does not know this token: it is wrong, or has expired")]
    Unknown,
    /// The caller may not.
    #[error("{user} may not list {resource} {place}: ask for that right, as the security page of the docs says")]
    Forbidden {
        /// Who.
        user: String,
        /// Which objects.
        resource: &'static str,
        /// Where, in words.
        place: String,
    },
    /// The API server did not answer the review.
    #[error("the API server did not review the login: try again, and see the operator's log")]
    Review(#[source] Box<kube::Error>),
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoToken | Self::NotABearer | Self::Unknown => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::Review(error) => {
                tracing::warn!(error = &**error as &dyn std::error::Error, "a login was not reviewed");
                StatusCode::BAD_GATEWAY
            }
        };
        let mut response = problem(status, &self.to_string());
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The namespaces whose rollouts a caller sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All.
    Everywhere,
    /// These.
    Only(BTreeSet<String>),
}

impl Scope {
    pub(super) fn holds(&self, namespace: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Only(names) => names.contains(namespace),
        }
    }

    pub(super) fn sees(&self, object: &Guarded) -> bool {
        self.holds(kube::Resource::meta(object).namespace.as_deref().unwrap_or_default())
    }
}

/// Answers that are believed for a while.
struct Believed<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash + Clone, V: Clone> Believed<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|(at, _)| at.elapsed() < BELIEVED).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.retain(|_, (at, _)| at.elapsed() < BELIEVED);
        }
        if kept.len() < KEPT {
            kept.insert(key, (Instant::now(), value));
        }
    }
}

/// Asks the API server about tokens and rights.
pub struct Reviewer {
    client: Client,
    users: Believed<[u8; 32], Box<UserInfo>>,
    rights: Believed<([u8; 32], &'static str, String), bool>,
}

impl Reviewer {
    /// A reviewer that asks with `client`, which needs the ClusterRole `system:auth-delegator`.
    pub fn new(client: Client) -> Self {
        Self { client, users: Believed::new(), rights: Believed::new() }
    }

    /// Who sent these headers.
    pub(super) async fn caller(&self, door: Door, headers: &HeaderMap) -> Result<Caller, Denied> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return if door == Door::Loopback { Ok(Caller::Loopback) } else { Err(Denied::NoToken) };
        };
        let token = bearer(value).ok_or(Denied::NotABearer)?;
        let hash = token.hash();
        if let Some(user) = self.users.get(&hash) {
            return Ok(Caller::Known { user, token });
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.reveal().to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| Denied::Review(Box::new(error)))?.status.unwrap_or_default();
        let named = |user: &UserInfo| user.username.as_ref().is_some_and(|name| !name.is_empty());
        match status.user.filter(|user| status.authenticated == Some(true) && named(user)) {
            Some(user) => {
                let user = Box::new(user);
                self.users.put(hash, user.clone());
                Ok(Caller::Known { user, token })
            }
            None => Err(Denied::Unknown),
        }
    }

    /// Whether the caller may list these objects of ours in a namespace; empty: in all.
    pub(super) async fn may_list(
        &self,
        caller: &Caller,
        resource: &'static str,
        namespace: &str,
    ) -> Result<(), Denied> {
        let Caller::Known { user, token } = caller else { return Ok(()) };
        let key = (token.hash(), resource, namespace.to_owned());
        let allowed = if let Some(allowed) = self.rights.get(&key) {
            allowed
        } else {
            let allowed = self.review(user, resource, namespace).await?;
            self.rights.put(key, allowed);
            allowed
        };
        if allowed {
            return Ok(());
        }
        let place =
            if namespace.is_empty() { "in any namespace".to_owned() } else { format!("in namespace {namespace}") };
        Err(Denied::Forbidden { user: user.username.clone().unwrap_or_default(), resource, place })
    }

    async fn review(&self, user: &UserInfo, resource: &str, namespace: &str) -> Result<bool, Denied> {
        let extra = user.extra.clone().map(|extra| extra.into_iter().collect::<BTreeMap<_, _>>());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                groups: user.groups.clone(),
                uid: user.uid.clone(),
                extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some("rollouts.bitnet.dev".into()),
                    resource: Some(resource.into()),
                    verb: Some("list".into()),
                    namespace: Some(namespace.into()).filter(|name: &String| !name.is_empty()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| Denied::Review(Box::new(error)))?.status.unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }

    /// Which of these namespaces the caller sees; somebody who sees none is refused.
    pub(super) async fn scope(&self, caller: &Caller, namespaces: BTreeSet<String>) -> Result<Scope, Denied> {
        let everywhere = match self.may_list(caller, "modelrollouts", "").await {
            Ok(()) => return Ok(Scope::Everywhere),
            Err(denied @ Denied::Forbidden { .. }) => denied,
            Err(denied) => return Err(denied),
        };
        let mut only = BTreeSet::new();
        for namespace in namespaces.into_iter().take(NAMESPACES) {
            match self.may_list(caller, "modelrollouts", &namespace).await {
                Ok(()) => {
                    only.insert(namespace);
                }
                Err(Denied::Forbidden { .. }) => {}
                Err(denied) => return Err(denied),
            }
        }
        if only.is_empty() { Err(everywhere) } else { Ok(Scope::Only(only)) }
    }
}

fn bearer(value: &HeaderValue) -> Option<Token> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let whole = !token.is_empty() && token.len() <= LONGEST && !token.contains(char::is_whitespace);
    (scheme.eq_ignore_ascii_case("bearer") && whole).then(|| Token(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_no_text_form() {
        let token = bearer(&HeaderValue::from_static("Bearer secret")).unwrap();
        assert_eq!(token.reveal(), "secret");
        assert!(!format!("{:?}", Caller::Known { user: Box::default(), token }).contains("secret"));
    }

    #[test]
    fn a_token_that_is_too_long_is_not_looked_at() {
        let value = |length| HeaderValue::from_str(&format!("Bearer {}", "x".repeat(length))).unwrap();
        assert!(bearer(&value(LONGEST)).is_some() && bearer(&value(LONGEST + 1)).is_none());
    }
}
