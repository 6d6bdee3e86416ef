//! `/healthz`, `/readyz` and `/metrics`: read-only, no secrets, no objects' contents.

use crate::{lease::Fence, metrics::Metrics};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use bitnet_api::exposition::Exposition;
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::net::TcpListener;

/// What readiness depends on.
#[derive(Clone, Default)]
pub struct Readiness {
    watching: Arc<AtomicBool>,
    missing: Arc<Mutex<Vec<String>>>,
}

impl Readiness {
    /// The caches are filled and the controller runs.
    pub fn watching(&self) {
        self.watching.store(true, Ordering::Relaxed);
    }

    /// What the cluster lacks, each with its remedy; empty: nothing.
    pub fn missing(&self, missing: Vec<String>) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    /// `Ok` with the role, or what is missing. A standby that waits for the lease is ready: it could take over.
    fn state(&self, fence: &Fence) -> Result<&'static str, String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if !missing.is_empty() {
            return Err(missing.join("\n"));
        }
        match (fence.holds(), self.watching.load(Ordering::Relaxed)) {
            (false, false) => Ok("standby: another replica holds the lease"),
            (false, true) => Err("the leader lease was not renewed".into()),
            (true, false) => {
                Err("leading, but the custom resources are not listed yet: are the CRDs installed?".into())
            }
            (true, true) => Ok("leading"),
        }
    }
}

/// Binds `port` on all addresses, IPv4-only hosts included.
pub async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from((IpAddr::from([0, 0, 0, 0]), port))).await,
    }
}

/// `/healthz` (the process runs its event loop) and `/readyz` (with the reason).
pub fn health(readiness: Readiness, fence: Fence) -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route(
        "/readyz",
        get(move || async move {
            match readiness.state(&fence) {
                Ok(role) => (StatusCode::OK, format!("{role}\n")),
                Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            }
        }),
    )
}

/// `/metrics` in the text format that the scraper asks for.
pub fn metrics(metrics: Metrics) -> Router {
    async fn text(State(metrics): State<Metrics>, headers: HeaderMap) -> impl IntoResponse {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let format = Exposition::asked(accept);
        match metrics.encode() {
            Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, format.content_type())], format.text(text)),
            Err(error) => {
                (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], format!("{error}\n"))
            }
        }
    }
    Router::new().route("/metrics", get(text)).with_state(metrics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Request};
    use tokio::time::Instant;
    use tower::ServiceExt as _;

    async fn get(router: Router, path: &str) -> (StatusCode, String) {
        let answer = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_its_reason() {
        let (readiness, fence) = (Readiness::default(), Fence::default());
        let ready = || get(health(readiness.clone(), fence.clone()), "/readyz");
        assert_eq!(ready().await, (StatusCode::OK, "standby: another replica holds the lease\n".into()));
        readiness.missing(vec!["the CRDs are missing: install them".into()]);
        assert_eq!(
            ready().await,
            (StatusCode::SERVICE_UNAVAILABLE, "the CRDs are missing: install them\n".into()),
            "a standby could not take over"
        );
        readiness.missing(Vec::new());
        fence.renew(Instant::now());
        let (status, text) = ready().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("CRDs"), "{text}");
        readiness.watching();
        assert_eq!(ready().await, (StatusCode::OK, "leading\n".into()));
        fence.lose();
        assert_eq!(ready().await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
