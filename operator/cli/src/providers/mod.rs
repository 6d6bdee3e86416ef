//! Traffic providers that the operator does not drive: what a split looks like in their objects, one file per provider.
//!
//! Pure: a [`Split`] becomes manifests, or a [`Refusal`] that names the provider and what it cannot do. Nothing here reaches a
//! cluster (docs/adr/0008).

mod inference_pool;
mod istio;
mod nginx;

use bitnet_api::keys::label;
use bitnet_core::model::{HeaderMatch, LoadBalancing, Revision};
use serde_json::{Value, json};

/// One state of a rollout's traffic: two arms and who meets which.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    pub(crate) namespace: String,
    /// Name of the rollout.
    pub(crate) rollout: String,
    pub(crate) stable: Revision,
    pub(crate) candidate: Revision,
    /// Percent of the requests for the candidate, 0 to 100, of those that nothing below sends anywhere.
    pub(crate) weight: u32,
    /// Requests with all of these go to the candidate; empty: none do.
    pub(crate) headers: Vec<HeaderMatch>,
    /// Requests with this cookie go to the candidate where its value is `always`, to stable where it is `never`.
    pub(crate) cookie: Option<String>,
    /// Host names; empty: all.
    pub(crate) hosts: Vec<String>,
    /// How requests are spread over the pods of a revision; `None`: as the provider does by itself.
    pub(crate) balancing: Option<LoadBalancing>,
}

/// A provider, with what only it needs to know.
#[derive(Clone, Debug)]
pub(crate) enum Provider {
    /// A VirtualService; `gateway`: the Istio Gateway that it is bound to, `None`: the mesh's own proxies.
    Istio { gateway: Option<String> },
    /// An Ingress and its canary.
    Nginx { class: String },
    /// An HTTPRoute of this Gateway over InferencePools, each with its endpoint picker's Service and port.
    InferencePool { gateway: String, picker: String, picker_port: u16 },
}

/// What a provider cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{provider} cannot do this: {field}: {rule}; {remedy}")]
pub(crate) struct Refusal {
    provider: &'static str,
    field: &'static str,
    rule: &'static str,
    remedy: &'static str,
}

impl Provider {
    /// The manifests, in the order in which they are applied.
    pub(crate) fn render(&self, split: &Split) -> Result<Vec<Value>, Refusal> {
        match self {
            Self::Istio { gateway } => istio::render(split, gateway.as_deref()),
            Self::Nginx { class } => nginx::render(split, class),
            Self::InferencePool { gateway, picker, picker_port } => {
                inference_pool::render(split, gateway, picker, *picker_port)
            }
        }
    }
}

impl Split {
    /// Metadata of an object of this split: found by the label of its rollout, managed by nobody here.
    fn meta(&self, name: &str) -> Value {
        json!({"name": name, "namespace": self.namespace, "labels": {label::ROLLOUT: self.rollout}})
    }

    /// Both arms with their weights, stable first.
    fn arms(&self) -> [(&Revision, u32); 2] {
        [(&self.stable, 100 - self.weight), (&self.candidate, self.weight)]
    }

    /// For the arms of the cookie: its value, and where it leads.
    fn cookie_arms(&self) -> [(&'static str, &Revision); 2] {
        [("always", &self.candidate), ("never", &self.stable)]
    }
}

/// A regular expression for a whole `Cookie` header that holds this cookie with this value.
fn cookie_pattern(name: &str, value: &str) -> String {
    format!("(.*[; ])?{name}={value}(;.*)?")
}

#[cfg(test)]
mod tests;
