//! An API server made of a closure, for tests of single requests. It records what it was asked.

use axum::{
    body::Body as Answer,
    http::{Method, Request, Response},
};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tower::{Layer, service_fn};

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Value,
}

impl Asked {
    /// `PATCH httproutes/chat`: what a test compares.
    pub(crate) fn line(&self) -> String {
        let tail: Vec<_> = self.path.split('?').next().unwrap_or_default().rsplit('/').take(2).collect();
        format!("{} {}/{}", self.method, tail[1], tail[0])
    }
}

/// Everything that was asked, in order.
pub(crate) type Log = Arc<Mutex<Vec<Asked>>>;

/// A client whose server is `answer`: status and body for each request.
pub(crate) fn server(
    layer: &crate::client::Guard,
    answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
) -> (Client, Log) {
    let log = Log::default();
    let (answer, seen) = (Arc::new(answer), Arc::clone(&log));
    let service = service_fn(move |request: Request<Body>| {
        let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let asked = Asked { method: head.method, path: head.uri.to_string(), body };
            seen.lock().unwrap().push(asked.clone());
            let (status, value) = answer(&asked);
            let response = Response::builder().status(status).body(Answer::from(value.to_string())).unwrap();
            Ok::<_, std::io::Error>(response)
        }
    });
    (Client::new(layer.layer(service), "ns"), log)
}

/// An answer that refuses.
pub(crate) fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}))
}

/// A rollout `chat` with UID `u` in namespace `tenant`, validated from the smallest useful object.
pub(crate) fn rollout() -> bitnet_core::model::Rollout {
    use bitnet_api::{
        v1alpha1::{ModelRollout, QualityGate},
        validate::{Pools, validate},
    };
    let image = |digit: &str| json!({"source": {"image": format!("r.example/m@sha256:{}", digit.repeat(64))}});
    let object: ModelRollout = serde_json::from_value(json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
        "metadata": {"name": "chat", "namespace": "tenant", "uid": "u", "generation": 1},
        "spec": {
            "baseline": image("a"), "model": image("b"), "route": {"httpRoute": "shop"}, "gate": {"name": "chat"},
        },
    }))
    .unwrap();
    let gate: QualityGate = serde_json::from_value(json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate", "metadata": {"name": "chat"},
        "spec": {"probes": {"configMap": "chat-probes"}},
    }))
    .unwrap();
    let pools = Pools { names: ["cpu".to_owned()].into(), default: "cpu".into(), ..Pools::default() };
    validate(&object, Some(&gate), &pools).unwrap()
}
