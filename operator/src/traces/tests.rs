use super::*;
use axum::{Router, body::Bytes, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{Span, status::StatusCode},
};
use prost::Message as _;
use std::sync::{Arc, Mutex};
use tracing_subscriber::layer::SubscriberExt as _;

/// What a collector was sent.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    received: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    /// Listens as a collector does, and where: the protocol's own path, content type and encoding, over real HTTP.
    pub(crate) async fn listen() -> (Self, Url) {
        let collector = Self::default();
        let received = collector.received.clone();
        let take = async move |headers: HeaderMap, body: Bytes| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            received.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
        };
        let router = Router::new().route("/v1/traces", post(take));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        (collector, endpoint(only(ENDPOINT, &base)).unwrap().unwrap())
    }

    /// What was sent, once something was: on a busy machine that is after the wait for the last ones.
    pub(crate) async fn arrived(&self) -> Vec<Span> {
        for _ in 0..600 {
            if !self.spans().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.spans()
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let scopes = received.iter().flat_map(|request| &request.resource_spans).flat_map(|one| &one.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn resource(&self, key: &str) -> Option<String> {
        let received = self.received.lock().unwrap();
        let attributes = &received.first()?.resource_spans.first()?.resource.as_ref()?.attributes;
        attributes.iter().find(|one| one.key == key).and_then(|one| text(one.value.as_ref()?.value.as_ref()?))
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// To be held beside the subscriber of a test: where there is just one, the library asks the thread that comes first to a
/// span whether anybody wants it, for all threads; in the tests beside, nobody does.
pub(crate) fn beside() -> tracing::Dispatch {
    tracing::Dispatch::new(tracing_subscriber::registry())
}

/// A span's attribute.
pub(crate) fn attribute(span: &Span, key: &str) -> Option<String> {
    span.attributes.iter().find(|one| one.key == key).and_then(|one| text(one.value.as_ref()?.value.as_ref()?))
}

/// An environment with one variable.
fn only<'a>(name: &'a str, value: &'a str) -> impl Fn(&str) -> Option<String> + use<'a> {
    move |asked| (asked == name).then(|| value.to_owned())
}

#[test]
fn a_collector_is_named_by_the_variables_of_the_specification() {
    let url = |pairs: &[(&str, &str)]| {
        let found = endpoint(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned()));
        found.map(|url| url.map(String::from)).map_err(|error| error.to_string())
    };
    assert_eq!(url(&[]), Ok(None), "off by default");
    assert_eq!(url(&[(ENDPOINT, " ")]), Ok(None));
    let common = (ENDPOINT, "http://collector:4318/");
    assert_eq!(url(&[common]), Ok(Some("http://collector:4318/v1/traces".into())));
    assert_eq!(url(&[common, (TRACES_ENDPOINT, "https://a/b")]), Ok(Some("https://a/b".into())));
    assert_eq!(url(&[common, (DISABLED, "TRUE")]), Ok(None));
    assert_eq!(url(&[common, (PROTOCOL, "http/protobuf")]), Ok(Some("http://collector:4318/v1/traces".into())));
    assert_eq!(
        url(&[common, (TRACES_PROTOCOL, "http/protobuf"), (PROTOCOL, "grpc")]),
        Ok(Some("http://collector:4318/v1/traces".into()))
    );
    for (pairs, named) in [
        (vec![(ENDPOINT, "collector:4318")], [ENDPOINT, "`collector:4318`", "http://collector.observability:4318"]),
        (vec![(TRACES_ENDPOINT, "unix:/socket")], [TRACES_ENDPOINT, "`unix:/socket`", "URL"]),
        (vec![common, (PROTOCOL, "grpc")], [PROTOCOL, "`grpc`", "4318"]),
        (vec![common, (TRACES_PROTOCOL, "http/json")], [TRACES_PROTOCOL, "`http/json`", "http/protobuf"]),
    ] {
        let refusal = url(&pairs).unwrap_err();
        assert!(named.iter().all(|part| refusal.contains(part)), "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_sent_below_our_spans_and_alone_they_are_not() {
    let (collector, url) = Collector::listen().await;
    let traces = Traces::to(&url).unwrap();
    let _beside = beside();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(traces.layer()), || {
        let request = || tracing::debug_span!(target: "kube_client::client::builder", "HTTP", otel.name = "get");
        request().in_scope(|| tracing::debug!(target: "kube_client::client::builder", "requesting"));
        let ours = tracing::debug_span!("ours", otel.status_code = "ERROR");
        let _entered = ours.enter();
        tracing::info!("something happened");
        tracing::debug!("a detail");
        request().in_scope(|| tracing::trace_span!("finer").in_scope(|| {}));
        tracing::info_span!(target: "reqwest", "the exporter's own").in_scope(|| {});
    });
    traces.flush();
    let spans = collector.arrived().await;
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["get", "ours"]);
    assert_eq!(spans[0].parent_span_id, spans[1].span_id);
    assert_eq!(spans[1].status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(spans[1].events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["something happened"]);
    assert_eq!(collector.resource("service.name").as_deref(), Some("bitnet-rollouts"));
    assert_eq!(collector.resource("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_holds_nothing_up() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let traces = Traces::to(&Url::parse(&format!("http://{gone}/v1/traces")).unwrap()).unwrap();
    let begin = std::time::Instant::now();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(traces.layer()), || {
        for _ in 0..10_000 {
            tracing::info_span!("ours").in_scope(|| {});
        }
    });
    assert!(begin.elapsed() < Duration::from_secs(2), "spans are dropped, not waited for: {:?}", begin.elapsed());
    traces.flush();
    assert!(begin.elapsed() < LAST + Duration::from_secs(4), "{:?}", begin.elapsed());
}
