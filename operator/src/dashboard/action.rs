//! Verbs of people, written to the custom resource with the caller's own token: the API server decides, and its audit
//! log names them. There is no cookie, so no other site can make a browser send one; and only JSON of this very site is
//! taken.

use super::{
    Visit,
    access::{Caller, Token},
    missing, problem,
};
use crate::client::fenced;
use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bitnet_api::{keys::PREFIX, v1alpha1::ModelRollout};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::AuthInfo,
};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// What can be asked for, as in the annotations.
pub(super) const VERBS: [&str; 7] = ["promote", "promote-full", "pause", "resume", "abort", "rollback", "retry"];

/// Makes a client of the API server that is its caller and nobody else.
pub type AsCaller = Arc<dyn Fn(&Token) -> Result<Client, kube::Error> + Send + Sync>;

/// Clients of callers on the cluster of `config`, without any identity of its own.
pub fn as_caller(config: &Config) -> AsCaller {
    let mut bare = Config::new(config.cluster_url.clone());
    bare.root_cert.clone_from(&config.root_cert);
    bare.accept_invalid_certs = config.accept_invalid_certs;
    bare.tls_server_name.clone_from(&config.tls_server_name);
    bare.proxy_url.clone_from(&config.proxy_url);
    Arc::new(move |token| {
        let mut config = bare.clone();
        config.auth_info = AuthInfo { token: Some(token.reveal().to_owned().into()), ..AuthInfo::default() };
        fenced(config, None)
    })
}

/// What the page has seen when the person asked: the operator acts on nothing else.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ask {
    revision: String,
    attempt: u32,
}

pub(super) async fn act(
    State(visit): State<Visit>,
    Path((namespace, name, verb)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !VERBS.contains(&verb.as_str()) {
        let text = format!("there is no verb {verb}: it is one of {}", VERBS.join(", "));
        return problem(StatusCode::NOT_FOUND, &text);
    }
    if let Some(refused) = foreign(&headers) {
        return refused;
    }
    // Who may not read it must not learn from a refusal whether it is there.
    let (user, token) = match visit.reader(&headers, &namespace).await {
        Ok(Caller::Known { user, token }) => (user.username.unwrap_or_default(), token),
        Ok(Caller::Loopback) => {
            let text = format!("a verb needs a login, also here: sign in, or use `kubectl bitnet {}`", words(&verb));
            return problem(StatusCode::UNAUTHORIZED, &text);
        }
        Err(refused) => return *refused,
    };
    let ask: Ask = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(error) => {
            let text = format!("the body must be {{\"revision\": …, \"attempt\": …}} as the page shows them: {error}");
            return problem(StatusCode::UNPROCESSABLE_ENTITY, &text);
        }
    };
    let Some(object) = visit.dashboard.find(&namespace, &name) else { return missing(&namespace, &name) };
    let client = match (visit.dashboard.inner.caller)(&token) {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "no client of a caller could be made");
            return problem(StatusCode::INTERNAL_SERVER_ERROR, "no client could be made: see the operator's log");
        }
    };
    let id = Timestamp::now().as_nanosecond().to_string();
    let request = json!({"id": id, "revision": ask.revision, "attempt": ask.attempt, "by": user}).to_string();
    let patch = json!({"metadata": {"uid": object.metadata.uid, "annotations": {format!("{PREFIX}{verb}"): request}}});
    let api = Api::<ModelRollout>::namespaced(client, &namespace);
    let written = api.patch_metadata(&name, &PatchParams::apply("bitnet-dashboard"), &Patch::Merge(&patch)).await;
    match written {
        Ok(_) => {
            tracing::info!(namespace, rollout = name, verb, by = user, "asked for on the dashboard");
            (StatusCode::ACCEPTED, Json(json!({"id": id, "by": user}))).into_response()
        }
        Err(kube::Error::Api(status)) => {
            let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::BAD_GATEWAY);
            problem(code, &format!("the API server refused: {}", status.message))
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a verb was not written");
            let text = "the API server did not answer: look whether the verb took effect before you ask again";
            problem(StatusCode::BAD_GATEWAY, text)
        }
    }
}

/// The verb as the command line has it.
fn words(verb: &str) -> &str {
    if verb == "promote-full" { "promote --full" } else { verb }
}

/// The answer to a request that some other site made a browser send.
fn foreign(headers: &HeaderMap) -> Option<Response> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let site = text("sec-fetch-site").unwrap_or("same-origin");
    if !matches!(site, "same-origin" | "none") {
        return Some(problem(StatusCode::FORBIDDEN, "verbs are taken only from the dashboard's own pages"));
    }
    let kind = text(header::CONTENT_TYPE.as_str()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        return Some(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a verb's body must be application/json"));
    }
    None
}
