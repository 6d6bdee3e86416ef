//! Gateway API inference extension: an HTTPRoute whose backends are InferencePools, one per revision, each with an endpoint
//! picker that chooses the pod.

use super::{Refusal, Split, cookie_pattern};
use bitnet_api::{keys::label, worker::PUBLIC_PORT};
use bitnet_core::model::Revision;
use serde_json::{Value, json};

const GROUP: &str = "inference.networking.k8s.io";

pub(super) fn render(split: &Split, gateway: &str, picker: &str, picker_port: u16) -> Result<Vec<Value>, Refusal> {
    if split.balancing.is_some() {
        return Err(Refusal {
            provider: "an InferencePool",
            field: "spec.route.loadBalancing",
            rule: "its endpoint picker chooses the pod",
            remedy: "leave it out, and configure the picker",
        });
    }
    let mut rules = Vec::new();
    if !split.headers.is_empty() {
        let headers: Vec<_> =
            split.headers.iter().map(|wanted| header(&wanted.name, &wanted.value, wanted.regex)).collect();
        rules.push(rule("candidate", &headers, &[backend(&split.candidate, 100)]));
    }
    if let Some(cookie) = &split.cookie {
        for (value, revision) in split.cookie_arms() {
            let headers = [header("Cookie", &cookie_pattern(cookie, value), true)];
            rules.push(rule(&format!("cookie-{value}"), &headers, &[backend(revision, 100)]));
        }
    }
    rules.push(rule("split", &[], &split.arms().map(|(revision, weight)| backend(revision, weight))));
    let mut spec = json!({"parentRefs": [{"name": gateway}], "rules": rules});
    if !split.hosts.is_empty() {
        spec["hostnames"] = json!(split.hosts);
    }
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        // Not the name of the route that the operator makes for itself.
        "metadata": split.meta(&format!("{}-pools", split.rollout)), "spec": spec,
    });
    let pool = |revision: &Revision| {
        json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "InferencePool", "metadata": split.meta(revision.as_str()),
            "spec": {
                "selector": {"matchLabels": {label::ROLLOUT: split.rollout, label::REVISION: revision.as_str()}},
                "targetPorts": [{"number": PUBLIC_PORT}],
                // A picker that does not answer must not take the model off the air.
                "endpointPickerRef": {"name": picker.replace("{}", revision.as_str()), "port": {"number": picker_port}, "failureMode": "FailOpen"},
            },
        })
    };
    Ok(vec![pool(&split.stable), pool(&split.candidate), route])
}

fn rule(name: &str, headers: &[Value], backends: &[Value]) -> Value {
    let mut matches = json!({"path": {"type": "PathPrefix", "value": "/"}});
    if !headers.is_empty() {
        matches["headers"] = json!(headers);
    }
    json!({"name": name, "matches": [matches], "backendRefs": backends})
}

fn header(name: &str, value: &str, regex: bool) -> Value {
    json!({"type": if regex { "RegularExpression" } else { "Exact" }, "name": name, "value": value})
}

fn backend(revision: &Revision, weight: u32) -> Value {
    json!({"group": GROUP, "kind": "InferencePool", "name": revision.as_str(), "weight": weight})
}
