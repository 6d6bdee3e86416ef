use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a gateway spreads requests over pods.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadBalancing {
    /// One pod after the other.
    RoundRobin,
    /// The pod with the fewest requests under way, of two that are drawn.
    LeastRequest,
}

/// The route whose weights the operator sets: exactly one kind, in the rollout's namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.httpRoute), has(self.gateway), has(self.virtualService), has(self.ingress)].filter(given, given).size() == 1")
        .message("exactly one of httpRoute, gateway, virtualService and ingress must be given"),
    validation = Rule::new("!has(self.rule) || has(self.httpRoute)")
        .message("rule names a rule of httpRoute").field_path(".rule"),
    validation = Rule::new("!has(self.hostnames) || has(self.gateway)")
        .message("hostnames belong to a route of the operator's own: give gateway").field_path(".hostnames"),
    validation = Rule::new("!has(self.http) || has(self.virtualService)")
        .message("http names a route of virtualService").field_path(".http"),
    validation = Rule::new("!has(self.loadBalancing) || has(self.httpRoute) || has(self.gateway)")
        .message("loadBalancing needs a route of Gateway API: httpRoute or gateway").field_path(".loadBalancing"),
    validation = Rule::new("!has(self.virtualService)")
        .message("the operator does not drive a VirtualService: use httpRoute or gateway; kubectl bitnet render prints one").field_path(".virtualService"),
    validation = Rule::new("!has(self.ingress)")
        .message("the operator does not drive an Ingress: use httpRoute or gateway; kubectl bitnet render prints one").field_path(".ingress"),
)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// Name of an HTTPRoute of yours: the operator sets the backends of one of its rules and nothing else.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_route: Option<String>,
    /// Name of the rule. Default: the only rule.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Name of a Gateway: the operator creates and owns an HTTPRoute, named like the rollout, attached to it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Host names of the own route. Default: all.
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostnames: Option<Vec<String>>,
    /// How the gateway spreads requests over the pods of a model. Envoy Gateway does it (a BackendTrafficPolicy that the operator
    /// owns, merged with those of the Gateway); with another gateway the rollout is refused. May be changed at any time.
    /// Default: as the gateway does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// Name of an Istio VirtualService. Refused: the operator does not drive it (`kubectl bitnet render` prints one).
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_service: Option<String>,
    /// Name of an HTTP route of the VirtualService. Refused with it.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Name of an Ingress of ingress-nginx. Refused: the operator does not drive it (`kubectl bitnet render` prints one).
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<String>,
}
