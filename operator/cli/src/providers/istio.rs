//! Istio: a VirtualService whose routes hold the weights, and a DestinationRule per revision where balancing is asked for.

use super::{Refusal, Split, cookie_pattern};
use bitnet_api::worker::PUBLIC_PORT;
use bitnet_core::model::{HeaderMatch, LoadBalancing, Revision};
use serde_json::{Map, Value, json};

pub(super) fn render(split: &Split, gateway: Option<&str>) -> Result<Vec<Value>, Refusal> {
    if split.hosts.is_empty() {
        return Err(Refusal {
            provider: "Istio",
            field: "--host",
            rule: "a VirtualService names the hosts that it is about",
            remedy: "give --host (in a mesh without a gateway: the Service that clients call)",
        });
    }
    // The first route that matches is taken: those for some requests stand before the one for all others.
    let mut routes = Vec::new();
    if !split.headers.is_empty() {
        let matches: Map<String, Value> = split.headers.iter().map(header).collect();
        routes.push(
            json!({"name": "candidate", "match": [{"headers": matches}], "route": [to(split, &split.candidate, 100)]}),
        );
    }
    if let Some(cookie) = &split.cookie {
        for (value, revision) in split.cookie_arms() {
            let matches = json!([{"headers": {"cookie": {"regex": cookie_pattern(cookie, value)}}}]);
            routes.push(
                json!({"name": format!("cookie-{value}"), "match": matches, "route": [to(split, revision, 100)]}),
            );
        }
    }
    let weights: Vec<_> = split.arms().map(|(revision, weight)| to(split, revision, weight)).into();
    routes.push(json!({"name": "split", "route": weights}));
    let mut spec = json!({"hosts": split.hosts, "http": routes});
    if let Some(gateway) = gateway {
        spec["gateways"] = json!([gateway]);
    }
    let service = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": split.meta(&split.rollout), "spec": spec,
    });
    let rules =
        split.balancing.iter().flat_map(|how| split.arms().map(|(revision, _)| balanced(split, revision, *how)));
    Ok(std::iter::once(service).chain(rules).collect())
}

/// The whole name of the Service of a revision: a short one would be of the namespace that reads it.
fn host(split: &Split, revision: &Revision) -> String {
    format!("{revision}.{}.svc.cluster.local", split.namespace)
}

fn to(split: &Split, revision: &Revision, weight: u32) -> Value {
    json!({"destination": {"host": host(split, revision), "port": {"number": PUBLIC_PORT}}, "weight": weight})
}

/// Names of headers are in lower case there; a regular expression is for the whole value, as with us.
fn header(wanted: &HeaderMatch) -> (String, Value) {
    let how = if wanted.regex { "regex" } else { "exact" };
    (wanted.name.to_ascii_lowercase(), json!({how: wanted.value}))
}

fn balanced(split: &Split, revision: &Revision, how: LoadBalancing) -> Value {
    let simple = match how {
        LoadBalancing::RoundRobin => "ROUND_ROBIN",
        LoadBalancing::LeastRequest => "LEAST_REQUEST",
    };
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": split.meta(revision.as_str()),
        "spec": {"host": host(split, revision), "trafficPolicy": {"loadBalancer": {"simple": simple}}},
    })
}
