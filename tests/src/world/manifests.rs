use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Writes the objects of one namespace as YAML, as a user would have them in files.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// The namespace.
    pub namespace: String,
    /// Host name of its route.
    pub host: String,
}

impl Manifests {
    /// Manifests for `namespace`, its route at host `<namespace>.example`.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.into(), host: format!("{namespace}.example") }
    }

    /// The namespace, under Pod Security "restricted".
    pub fn namespace(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": self.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        })
    }

    /// A Gateway `gw` with one HTTP listener.
    pub fn gateway(&self) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": self.namespace},
            "spec": {
                "gatewayClassName": "eg",
                "listeners": [{"name": "http", "protocol": "HTTP", "port": 80,
                               "allowedRoutes": {"namespaces": {"from": "All"}}}],
            },
        })
    }

    /// The user's own route `name`: rule `completions` is what a rollout adopts, rule `status` is none of its business.
    pub fn route(&self, name: &str, gateway_namespace: &str) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": self.namespace, "annotations": {"team.example/owner": "platform"}},
            "spec": {
                "parentRefs": [{"name": "gw", "namespace": gateway_namespace}],
                "hostnames": [self.host],
                "rules": [
                    {"name": "completions", "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                     "timeouts": {"request": "15s"},
                     "backendRefs": []},
                    {"name": "teapot", "matches": [{"path": {"type": "Exact", "value": "/teapot"}}],
                     "filters": [{"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/v1/models"}, "statusCode": 302}}]},
                ],
            },
        })
    }

    /// ConfigMap `name` with the probe prompts of a file under `prompts.jsonl`.
    pub fn probes(&self, name: &str, file: &Path) -> Result<Value> {
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Ok(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": self.namespace},
            "data": {"prompts.jsonl": text},
        }))
    }

    /// A QualityGate.
    pub fn gate(&self, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        })
    }

    /// A ModelRollout `name`: fp16 `baseline`, `model` (a `spec.model`), canary `steps`.
    pub fn rollout(&self, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        })
    }
}

/// The demo's gate: short, so that people can watch it; its error rates assume bursts shorter than its 10 s blocks.
/// Twelve prompts per tick find the hidden fault (P(cosine < .90) = .135) within 60 ticks in 9,999 of 10,000 simulated
/// rollouts (`kubectl bitnet simulate -d cosine=0.9513,tail=0.135` with a deadline of 2 m).
pub fn demo_gate() -> Value {
    json!({
        "probes": {"configMap": "chat-probes", "key": "prompts.jsonl", "perTick": 12, "maxTokens": 16, "positions": 8,
                   "pairs": 8, "pairTokens": 8},
        "preflight": 48,
        "interval": "2s",
        "warmup": "10s",
        "signals": {"latency": {"maxRatio": "1.5"}, "errors": {"maxExcess": "0.02"}},
        "minSamples": 200,
        "deadline": "10m",
    })
}
