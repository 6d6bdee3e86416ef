//! ingress-nginx: an Ingress for stable, and its canary, whose annotations hold the weight.

use super::{Refusal, Split};
use bitnet_api::worker::PUBLIC_PORT;
use bitnet_core::model::{HeaderMatch, LoadBalancing, Revision};
use serde_json::{Map, Value, json};

const PREFIX: &str = "nginx.ingress.kubernetes.io";

pub(super) fn render(split: &Split, class: &str) -> Result<Vec<Value>, Refusal> {
    let refused = |field, rule, remedy| Err(Refusal { provider: "ingress-nginx", field, rule, remedy });
    if split.balancing == Some(LoadBalancing::LeastRequest) {
        return refused(
            "spec.route.loadBalancing",
            "it does not balance by the number of requests",
            "write RoundRobin, or leave it out",
        );
    }
    let balancing = split.balancing.map(|_| ("load-balance", "round_robin".to_owned()));
    let mut canary = vec![("canary", "true".to_owned()), ("canary-weight", split.weight.to_string())];
    match split.headers.as_slice() {
        [] => {}
        [only] => canary.extend(by_header(only)),
        _ => {
            return refused(
                "spec.strategy.canary.steps[].match.headers",
                "a canary Ingress matches one header",
                "leave one of them, or use --provider istio",
            );
        }
    }
    canary.extend(split.cookie.iter().map(|name| ("canary-by-cookie", name.clone())));
    canary.extend(balancing.clone());
    let stable = ingress(split, class, &split.rollout, &split.stable, balancing.into_iter().collect());
    let candidate = ingress(split, class, &format!("{}-candidate", split.rollout), &split.candidate, canary);
    Ok(vec![stable, candidate])
}

/// Only the wanted value leads to the candidate; any other leaves the request to the cookie and the weight. Patterns are
/// searched for in the value there: anchors make them hold for all of it.
fn by_header(wanted: &HeaderMatch) -> [(&'static str, String); 2] {
    let value = if wanted.regex {
        ("canary-by-header-pattern", format!("^({})$", wanted.value))
    } else {
        ("canary-by-header-value", wanted.value.clone())
    };
    [("canary-by-header", wanted.name.clone()), value]
}

fn ingress(
    split: &Split,
    class: &str,
    name: &str,
    revision: &Revision,
    annotations: Vec<(&'static str, String)>,
) -> Value {
    let backend = json!({"service": {"name": revision.as_str(), "port": {"number": PUBLIC_PORT}}});
    let http = json!({"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]});
    let rules: Vec<Value> = match split.hosts.as_slice() {
        [] => vec![json!({"http": http})],
        hosts => hosts.iter().map(|host| json!({"host": host, "http": http})).collect(),
    };
    let mut meta = split.meta(name);
    if !annotations.is_empty() {
        let all: Map<String, Value> =
            annotations.into_iter().map(|(key, value)| (format!("{PREFIX}/{key}"), json!(value))).collect();
        meta["annotations"] = Value::Object(all);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta,
        "spec": {"ingressClassName": class, "rules": rules},
    })
}
