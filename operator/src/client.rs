//! The Kubernetes client: no retries of its own, a deadline on every call, and a fence before every write.
//!
//! The default client of kube repeats any request, writes included, for minutes: long after a lease was lost. Here a
//! request is sent once, it ends within its deadline, and a write is not sent at all once the fence is down.

use crate::lease::Fence;
use axum::{
    body::Body as Answer,
    http::{Method, Request, Response},
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tower::{BoxError, Layer, Service};

/// Deadline of a write, answer included: shorter than the lease's renew deadline.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Deadline of a read, answer included.
pub const READ_DEADLINE: Duration = Duration::from_secs(8);
/// A watch must begin to answer within this.
const WATCH_START_DEADLINE: Duration = Duration::from_secs(10);
/// A connection on which nothing is read for this long is dead: watches answer at least every 45 s.
const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// Largest answer that is read, except of a watch.
const ANSWER_LIMIT: usize = 64 << 20;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The lease is not held (any more).
    #[error("not sent: the leader lease is not held")]
    Fenced,
    /// The deadline passed; a write may or may not have taken effect.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
}

/// A client whose writes need the fence. `None`: for the lease itself, which cannot be fenced by what it maintains.
pub fn fenced(mut config: Config, fence: Option<Fence>) -> Result<Client, kube::Error> {
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(2));
    config.read_timeout = Some(IDLE_LIMIT);
    Ok(ClientBuilder::try_from(config)?.with_layer(&Guard { fence }).build())
}

/// The layer that holds deadlines and fence.
#[derive(Clone)]
pub struct Guard {
    fence: Option<Fence>,
}

impl Guard {
    /// A guard with a fence.
    pub fn new(fence: Option<Fence>) -> Self {
        Self { fence }
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Guarded { inner, fence: self.fence.clone() }
    }
}

/// A service behind [`Guard`].
pub struct Guarded<S> {
    inner: S,
    fence: Option<Fence>,
}

enum Kind {
    Watch,
    Read,
    Write,
}

fn kind<B>(request: &Request<B>) -> Kind {
    let watch = |query: &str| query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1");
    match *request.method() {
        Method::GET | Method::HEAD if request.uri().query().is_some_and(watch) => Kind::Watch,
        Method::GET | Method::HEAD => Kind::Read,
        _ => Kind::Write,
    }
}

impl<S, B> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = kind(&request);
        if matches!(kind, Kind::Write) && self.fence.as_ref().is_some_and(|fence| !fence.holds()) {
            return Box::pin(async { Err(Refused::Fenced.into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            match kind {
                Kind::Watch => within(WATCH_START_DEADLINE, answer).await.map(|response| response.map(Answer::new)),
                Kind::Read => within(READ_DEADLINE, whole(answer)).await,
                Kind::Write => within(WRITE_DEADLINE, whole(answer)).await,
            }
        })
    }
}

async fn within<T, E: Into<BoxError>>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, BoxError> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(Refused::Deadline(deadline).into()),
    }
}

async fn whole<B, E>(answer: impl Future<Output = Result<Response<B>, E>>) -> Result<Response<Answer>, BoxError>
where
    E: Into<BoxError>,
    B: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (head, body) = answer.await.map_err(Into::into)?.into_parts();
    let bytes = axum::body::to_bytes(Answer::new(body), ANSWER_LIMIT).await?;
    Ok(Response::from_parts(head, Answer::from(bytes)))
}

/// How an error of the API server is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// Somebody else wrote first: read again, plan again.
    Conflict,
    /// The object is gone.
    NotFound,
    /// The identity may not do this, or an admission policy forbids it.
    Denied,
    /// The object already exists.
    AlreadyExists,
    /// The lease is not held.
    Fenced,
    /// Anything that may be over by the next attempt.
    Transient,
}

impl Category {
    /// Label of metrics: a closed set.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::AlreadyExists => "already-exists",
            Self::Fenced => "fenced",
            Self::Transient => "transient",
        }
    }
}

/// Sorts an error of the client. A JSON patch whose `test` failed answers 422: a conflict like 409. An admission
/// policy also answers 422 or 403; it names itself in the message.
pub fn category(error: &kube::Error) -> Category {
    match error {
        kube::Error::Api(status) => match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => Category::AlreadyExists,
            (404 | 410, _) => Category::NotFound,
            (401 | 403, _) => Category::Denied,
            (422, _) if status.message.contains("ValidatingAdmissionPolicy") => Category::Denied,
            (409 | 422, _) => Category::Conflict,
            _ => Category::Transient,
        },
        kube::Error::Service(source)
            if source.downcast_ref::<Refused>().is_some_and(|r| matches!(r, Refused::Fenced)) =>
        {
            Category::Fenced
        }
        _ => Category::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{refusal, server};
    use axum::{Router, http::StatusCode, routing::any};
    use k8s_openapi::api::core::v1::Service as KubeService;
    use kube::{
        Api,
        api::{ListParams, PostParams},
    };
    use serde_json::json;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[tokio::test]
    async fn a_write_is_not_sent_while_the_fence_is_down_and_reads_are() {
        let fence = Fence::default();
        let (client, log) = server(&Guard::new(Some(fence.clone())), |_| {
            (200, json!({"metadata": {"name": "s"}, "items": [], "apiVersion": "v1", "kind": "Service"}))
        });
        let api = Api::<KubeService>::namespaced(client, "ns");
        let service = KubeService {
            metadata: kube::api::ObjectMeta { name: Some("s".into()), ..Default::default() },
            ..Default::default()
        };
        let refused = api.create(&PostParams::default(), &service).await.unwrap_err();
        assert_eq!(category(&refused), Category::Fenced);
        api.list(&ListParams::default()).await.unwrap();
        assert_eq!(log.lock().unwrap().len(), 1, "only the list was sent");
        fence.renew(tokio::time::Instant::now());
        api.create(&PostParams::default(), &service).await.unwrap();
        fence.lose();
        let refused = api.create(&PostParams::default(), &service).await.unwrap_err();
        assert_eq!(category(&refused), Category::Fenced);
        assert_eq!(log.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_write_is_sent_once_whatever_the_server_says() {
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        let router = Router::new().fallback(any(move || {
            seen.fetch_add(1, Ordering::SeqCst);
            async { (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")], "{}") }
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, router).into_future());
        let client = fenced(Config::new(format!("http://{address}").parse().unwrap()), None).unwrap();
        let api = Api::<KubeService>::namespaced(client, "ns");
        let service = KubeService {
            metadata: kube::api::ObjectMeta { name: Some("s".into()), ..Default::default() },
            ..Default::default()
        };
        let error = api.create(&PostParams::default(), &service).await.unwrap_err();
        assert_eq!(category(&error), Category::Transient, "{error:?}");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline_even_in_the_middle_of_its_answer() {
        let never = tower::service_fn(|_: Request<Body>| async {
            let body = Answer::from_stream(futures::stream::pending::<Result<axum::body::Bytes, std::io::Error>>());
            Ok::<_, std::io::Error>(Response::new(body))
        });
        let client = Client::new(Guard::new(None).layer(never), "ns");
        let api = Api::<KubeService>::namespaced(client, "ns");
        let start = tokio::time::Instant::now();
        let error = api.get("s").await.unwrap_err();
        assert!(
            matches!(&error, kube::Error::Service(source) if source.downcast_ref::<Refused>().is_some()),
            "{error:?}"
        );
        assert_eq!(start.elapsed(), READ_DEADLINE);
        let start = tokio::time::Instant::now();
        api.create(&PostParams::default(), &KubeService::default()).await.unwrap_err();
        assert_eq!(start.elapsed(), WRITE_DEADLINE);
        assert!(WRITE_DEADLINE < crate::lease::RENEW_DEADLINE);
    }

    #[tokio::test]
    async fn answers_are_sorted() {
        let cases = [
            (409, "Conflict", "the object has been modified", Category::Conflict),
            (409, "AlreadyExists", "x", Category::AlreadyExists),
            (422, "Invalid", "the server rejected our request due to an error in our request", Category::Conflict),
            (
                422,
                "Invalid",
                "httproutes \"chat\" is forbidden: ValidatingAdmissionPolicy 'bitnet' denied",
                Category::Denied,
            ),
            (403, "Forbidden", "exceeded quota", Category::Denied),
            (404, "NotFound", "x", Category::NotFound),
            (429, "TooManyRequests", "x", Category::Transient),
            (500, "InternalError", "x", Category::Transient),
        ];
        for (code, reason, message, wanted) in cases {
            let (client, _) = server(&Guard::new(None), move |_| refusal(code, reason, message));
            let error = Api::<KubeService>::namespaced(client, "ns").get("s").await.unwrap_err();
            assert_eq!(category(&error), wanted, "{code} {reason}");
        }
    }
}
