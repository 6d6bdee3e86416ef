//! What the operator needs of its cluster, asked before it works and until it is there: a Kubernetes that is new enough,
//! the custom resources, Gateway API, and its rights. Each answer names the remedy.

use crate::observe::http_routes;
use bitnet_api::v1alpha1::ModelRollout;
use k8s_openapi::api::authorization::v1::{ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::{Api, Client, Resource, api::PostParams};
use std::time::Duration;

/// Oldest minor version of Kubernetes 1 that mounts images as volumes without a feature gate.
const OLDEST: u32 = 35;
/// Time between two looks while something is missing.
const AGAIN: Duration = Duration::from_secs(10);

/// What may be done in each watched namespace: group, resource, verbs. The chart grants exactly this.
pub const RIGHTS: [(&str, &str, &str); 14] = [
    ("gateway.networking.k8s.io", "httproutes", "get list watch patch create delete"),
    ("gateway.networking.k8s.io", "gateways", "get"),
    ("gateway.envoyproxy.io", "backendtrafficpolicies", "get create patch delete"),
    ("", "services", "get list watch create patch delete"),
    ("", "pods", "list watch"),
    ("discovery.k8s.io", "endpointslices", "list watch"),
    ("apps", "deployments", "get list watch create patch delete"),
    ("autoscaling", "horizontalpodautoscalers", "list watch"),
    ("rollouts.bitnet.dev", "modelrollouts", "get list watch patch"),
    ("rollouts.bitnet.dev", "modelrollouts/status", "patch"),
    ("rollouts.bitnet.dev", "modelrollouts/finalizers", "update"),
    ("rollouts.bitnet.dev", "qualitygates", "get list watch"),
    ("rollouts.bitnet.dev", "rolloutdecisions", "get list watch create delete"),
    ("events.k8s.io", "events", "create patch"),
];

/// The cluster can never serve this operator.
#[derive(Debug, thiserror::Error)]
#[error(
    "Kubernetes {0} is too old: models are mounted as image volumes, which need 1.{OLDEST}. Upgrade the cluster, or remove this release"
)]
pub struct TooOld(String);

/// Fails where the API server says that it is too old; one that does not answer is asked again by everything else.
pub async fn version(client: &Client) -> Result<(), TooOld> {
    match client.apiserver_version().await {
        Ok(found) => new_enough(&found.major, &found.minor),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the API server did not say its version");
            Ok(())
        }
    }
}

fn new_enough(major: &str, minor: &str) -> Result<(), TooOld> {
    // Some providers write `35+`.
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(u32::MAX);
    if number(major) == 1 && number(minor) < OLDEST {
        return Err(TooOld(format!("{major}.{minor}")));
    }
    Ok(())
}

/// Looks until nothing is missing, and tells `missing` each time: an empty list at the end.
pub async fn watch(client: Client, namespaces: Vec<String>, home: String, missing: impl Fn(Vec<String>)) {
    let mut told = Vec::new();
    loop {
        let found = look(&client, &namespaces, &home).await;
        for text in found.iter().filter(|text| !told.contains(*text)) {
            tracing::warn!("{text}");
        }
        missing(found.clone());
        if found.is_empty() {
            return;
        }
        told = found;
        tokio::time::sleep(AGAIN).await;
    }
}

/// What is missing, each with its remedy. What cannot be asked is not missing.
async fn look(client: &Client, namespaces: &[String], home: &str) -> Vec<String> {
    let mut missing = Vec::new();
    let (routes, plural) = (http_routes(), ModelRollout::plural(&()));
    if !serves(client, &ModelRollout::api_version(&()), &plural).await {
        missing.push(
            "the custom resources of rollouts.bitnet.dev are not installed: helm install bitnet-rollouts-crds"
                .to_owned(),
        );
    }
    if !serves(client, &routes.api_version, &routes.plural).await {
        missing.push(
            "Gateway API (gateway.networking.k8s.io/v1) is not installed: install an implementation of it, for example Envoy Gateway"
                .to_owned(),
        );
    }
    // Rights in all namespaces show in each of them.
    let asked = if namespaces.is_empty() { vec![home.to_owned()] } else { namespaces.to_vec() };
    for namespace in asked {
        let lacking = lacking(client, &namespace).await;
        if !lacking.is_empty() {
            let place =
                if namespaces.is_empty() { "any namespace".to_owned() } else { format!("namespace {namespace}") };
            missing.push(format!(
                "this operator lacks rights in {place}: {}; helm upgrade bitnet-rollouts grants them (values watchNamespaces, serviceAccount)",
                lacking.join(", ")
            ));
        }
    }
    missing
}

async fn serves(client: &Client, api_version: &str, plural: &str) -> bool {
    match client.list_api_group_resources(api_version).await {
        Ok(list) => list.resources.iter().any(|resource| resource.name == plural),
        Err(kube::Error::Api(status)) => status.code != 404,
        Err(_) => true,
    }
}

/// Verbs of [`RIGHTS`] that are not granted in a namespace, `verb resource`.
async fn lacking(client: &Client, namespace: &str) -> Vec<String> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) },
        ..SelfSubjectRulesReview::default()
    };
    let answer = Api::<SelfSubjectRulesReview>::all(client.clone()).create(&PostParams::default(), &review).await;
    // Webhook authorizers cannot list what they would allow.
    let Some(status) = answer.ok().and_then(|review| review.status).filter(|status| !status.incomplete) else {
        return Vec::new();
    };
    RIGHTS
        .iter()
        .flat_map(|(group, resource, verbs)| verbs.split(' ').map(move |verb| (*group, *resource, verb)))
        .filter(|wanted| !status.resource_rules.iter().any(|rule| grants(rule, *wanted)))
        .map(|(group, resource, verb)| {
            let dot = if group.is_empty() { "" } else { "." };
            format!("{verb} {resource}{dot}{group}")
        })
        .collect()
}

fn grants(rule: &ResourceRule, (group, resource, verb): (&str, &str, &str)) -> bool {
    let has = |list: &[String], wanted: &str| list.iter().any(|entry| entry == "*" || entry == wanted);
    has(&rule.verbs, verb)
        && has(rule.api_groups.as_deref().unwrap_or_default(), group)
        && has(rule.resources.as_deref().unwrap_or_default(), resource)
        && rule.resource_names.as_deref().unwrap_or_default().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Guard,
        fake::{Asked, refusal, server},
    };
    use serde_json::{Value, json};

    #[test]
    fn an_old_kubernetes_is_refused_with_the_remedy() {
        for (major, minor) in [("1", "35"), ("1", "36+"), ("2", "0"), ("", "")] {
            assert!(new_enough(major, minor).is_ok(), "{major}.{minor}");
        }
        for minor in ["34", "9", "34+"] {
            let text = new_enough("1", minor).unwrap_err().to_string();
            assert!(text.contains(&format!("Kubernetes 1.{minor} ")) && text.contains("Upgrade the cluster"), "{text}");
        }
    }

    fn all_rights() -> Vec<Value> {
        let words = |verbs: &str| verbs.split(' ').map(str::to_owned).collect::<Vec<_>>();
        RIGHTS
            .iter()
            .map(|(group, resource, verbs)| json!({"apiGroups": [group], "resources": [resource], "verbs": words(verbs)}))
            .collect()
    }

    fn cluster(crds: bool, gateway: bool, rights: Vec<Value>, incomplete: bool) -> impl Fn(&Asked) -> (u16, Value) {
        let group = |there: bool, name: &str, version: &str| {
            if !there {
                return refusal(404, "NotFound", "the server could not find the requested resource");
            }
            let resource = json!({"name": name, "singularName": "", "namespaced": true, "kind": "X", "verbs": ["get"]});
            (200, json!({"kind": "APIResourceList", "groupVersion": version, "resources": [resource]}))
        };
        move |asked| match asked.path.as_str() {
            path if path.contains("rollouts.bitnet.dev") => {
                group(crds, "modelrollouts", "rollouts.bitnet.dev/v1alpha1")
            }
            path if path.contains("gateway") => group(gateway, "httproutes", "gateway.networking.k8s.io/v1"),
            path if path.contains("selfsubjectrulesreviews") => {
                let mut review = asked.body.clone();
                review["status"] = json!({"incomplete": incomplete, "resourceRules": rights, "nonResourceRules": []});
                (201, review)
            }
            path => panic!("{path}"),
        }
    }

    #[tokio::test]
    async fn a_whole_cluster_lacks_nothing() {
        let (client, log) = server(&Guard::new(None), cluster(true, true, all_rights(), false));
        assert_eq!(look(&client, &[], "bitnet-system").await, Vec::<String>::new());
        assert_eq!(log.lock().unwrap().last().unwrap().body["spec"]["namespace"], "bitnet-system");
    }

    #[tokio::test]
    async fn what_is_missing_is_named_with_its_remedy() {
        let (client, _) = server(&Guard::new(None), cluster(false, false, all_rights(), false));
        let missing = look(&client, &[], "bitnet-system").await;
        assert_eq!(missing.len(), 2);
        assert!(missing[0].contains("helm install bitnet-rollouts-crds"), "{missing:?}");
        assert!(missing[1].contains("Gateway API") && missing[1].contains("install an implementation"), "{missing:?}");

        let mut rights = all_rights();
        rights[0]["verbs"] = json!(["get", "list", "watch"]);
        let (client, _) = server(&Guard::new(None), cluster(true, true, rights, false));
        let missing = look(&client, &["a".into(), "b".into()], "bitnet-system").await;
        assert_eq!(missing.len(), 2);
        for verb in ["patch", "create", "delete"] {
            assert!(missing[0].contains(&format!("{verb} httproutes.gateway.networking.k8s.io")), "{missing:?}");
        }
        assert!(missing[0].contains("namespace a") && missing[1].contains("namespace b"), "{missing:?}");
        assert!(!missing[0].contains("get httproutes") && missing[0].contains("helm upgrade"), "{missing:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_known_is_not_missing() {
        let (client, _) = server(&Guard::new(None), cluster(true, true, Vec::new(), true));
        assert_eq!(look(&client, &[], "n").await, Vec::<String>::new());
        let (client, _) = server(&Guard::new(None), |_| refusal(403, "Forbidden", "no"));
        assert_eq!(look(&client, &[], "n").await, Vec::<String>::new());
    }

    /// The chart and this list are one.
    #[test]
    fn the_chart_grants_what_is_asked_for() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/bitnet-rollouts/templates/rbac.yaml");
        let template = std::fs::read_to_string(file).unwrap();
        let block =
            template.split("{{- define \"bitnet.rules\" -}}").nth(1).unwrap().split("{{- end -}}").next().unwrap();
        let granted: Vec<Value> = serde_yaml::from_str(block).unwrap();
        assert_eq!(granted, all_rights());
    }
}
