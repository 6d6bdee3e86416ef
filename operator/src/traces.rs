//! Traces by OTLP over HTTP, where the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`); without one nothing
//! is collected and nothing is sent. Each reconcile is a trace: its steps, its writes, and the requests to the API server
//! and to workers within them. Metrics are scraped, not sent.

use opentelemetry::{Key, KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use reqwest::Url;
use std::time::Duration;
use tracing::{Level, Metadata, Span, Subscriber, subscriber::Interest};
use tracing_subscriber::{Layer, filter::dynamic_filter_fn, layer::Context, registry::LookupSpan};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const TRACES_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
const DISABLED: &str = "OTEL_SDK_DISABLED";
const SERVICE: &str = "bitnet-rollouts";
/// Longest wait for what was not sent yet when the process ends: it must be gone before its pod is killed.
const LAST: Duration = Duration::from_secs(3);

/// Why traces cannot be sent. The operator does not start on any of these: whoever names a collector wants traces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no address.
    #[error(
        "environment variable {variable}: `{value}` is not an http:// or https:// URL: give the collector's OTLP/HTTP \
         address, for example http://collector.observability:4318, or leave it empty to send no traces"
    )]
    Endpoint {
        /// The variable.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// Another protocol is asked for.
    #[error(
        "environment variable {variable}: `{value}` is not spoken here: leave it empty or say http/protobuf, and name the \
         collector's port for OTLP/HTTP (4318 by default)"
    )]
    Protocol {
        /// The variable.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// The exporter does not start.
    #[error(
        "the exporter of traces does not start: correct the environment variables OTEL_EXPORTER_OTLP_…, or remove them"
    )]
    Exporter(#[from] ExporterBuildError),
}

/// Where traces go, by the variables of the OpenTelemetry specification. `None`: nowhere.
fn endpoint(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Url>, Error> {
    let set =
        |name: &'static str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    if set(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    // One for traces is the whole address, the common one is where the path of each signal begins.
    let (name, value, whole) = match (set(TRACES_ENDPOINT), set(ENDPOINT)) {
        (Some(value), _) => (TRACES_ENDPOINT, value, true),
        (None, Some(value)) => (ENDPOINT, value, false),
        (None, None) => return Ok(None),
    };
    for name in [TRACES_PROTOCOL, PROTOCOL] {
        match set(name) {
            Some(value) if value != "http/protobuf" => return Err(Error::Protocol { variable: name, value }),
            Some(_) => break,
            None => {}
        }
    }
    let address = if whole { value.clone() } else { format!("{}/v1/traces", value.trim_end_matches('/')) };
    match Url::parse(&address) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(url)),
        _ => Err(Error::Endpoint { variable: name, value }),
    }
}

/// Traces on their way to a collector.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// As the environment says. `None`: no collector is named.
    pub fn from_env() -> Result<Option<Self>, Error> {
        endpoint(|name| std::env::var(name).ok())?.map(|url| Self::to(&url)).transpose()
    }

    /// To this address, in batches, from a thread of its own.
    pub fn to(url: &Url) -> Result<Self, Error> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(url.as_str())
            .with_protocol(Protocol::HttpBinary)
            .build()?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let detected = Resource::builder().build();
        let named = detected.get(&Key::from_static_str("service.name")).map(|name| name.to_string());
        let resource = Resource::builder().with_attribute(version);
        let resource = match named.as_deref() {
            // What the library says where the environment gives no name: `unknown_service:operator`.
            Some(name) if !name.starts_with("unknown_service") => resource,
            _ => resource.with_service_name(SERVICE),
        };
        let provider =
            SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
        Ok(Self { provider })
    }

    /// What the log's subscriber is joined with.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let tracer = self.provider.tracer(SERVICE);
        // Thread and place in the source say nothing to whoever reads a trace.
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_threads(false).with_location(false);
        let filter = dynamic_filter_fn(belongs).with_callsite_filter(|metadata| {
            // The rest is never looked at again: it costs nothing.
            if known(metadata) { Interest::sometimes() } else { Interest::never() }
        });
        layer.with_filter(filter.with_max_level_hint(Level::DEBUG))
    }

    /// Sends what is left. It waits for an answer: not on a thread that others need.
    pub fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST) {
            tracing::info!(error = &error as &dyn std::error::Error, "the last traces were not sent");
        }
    }
}

/// Marks a span, which must have these two fields, as failed.
pub(crate) fn failed(span: &Span, error: &dyn std::error::Error) {
    span.record("otel.status_code", "ERROR").record("otel.status_description", error.to_string());
}

/// Our spans, whatever the log shows, and below them the requests of the Kubernetes client: alone those would be watches and
/// renewals of the lease. The exporter's own requests are nobody's.
fn belongs<S>(metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    known(metadata) && (is_ours(metadata) || context.lookup_current().is_some())
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("bitnet_operator")
}

fn known(metadata: &Metadata<'_>) -> bool {
    let finest = if metadata.is_span() { Level::DEBUG } else { Level::INFO };
    let requests = metadata.is_span() && metadata.target().starts_with("kube_client");
    *metadata.level() <= finest && (is_ours(metadata) || requests)
}

#[cfg(test)]
pub(crate) mod tests;
