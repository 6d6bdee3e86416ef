//! Whether the route's gateway can spread requests over pods as the spec asks, and the policy that tells it to.

use super::{Error, RouteView, gateway_api};
use crate::render::owned_by;
use bitnet_core::{
    model::{Rollout, RouteTarget},
    observation::RouteState,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};
use serde_json::Value;

/// Controllers of Envoy Gateway have names with this beginning.
const ENVOY_GATEWAY: &str = "gateway.envoyproxy.io/";

/// What is known of a route's load balancing.
#[derive(Clone, Debug, Default)]
pub struct Balancing {
    /// Every Gateway of the route is Envoy Gateway's.
    pub possible: bool,
    /// The BackendTrafficPolicy of the rollout's name.
    pub policy: Option<DynamicObject>,
    /// Why the spec's load balancing is not in effect, in words; `None`: it is, or none is asked for.
    pub problem: Option<String>,
}

/// Kind and version of the policies of Envoy Gateway.
pub(crate) fn policies() -> ApiResource {
    let kind = GroupVersionKind::gvk("gateway.envoyproxy.io", "v1alpha1", "BackendTrafficPolicy");
    ApiResource::from_gvk_with_plural(&kind, "backendtrafficpolicies")
}

/// Looks. A route that is not ours yet and cannot be balanced as asked becomes [`RouteState::Unsupported`].
pub(super) async fn look(
    client: &Client,
    rollout: &Rollout,
    state: &mut RouteState,
    view: &RouteView,
) -> Result<Balancing, Error> {
    let asked = rollout.load_balancing.is_some() && !rollout.deleting;
    let controllers = match (&*state, &rollout.route) {
        (RouteState::Found(_), _) => view.controllers(),
        (RouteState::Missing, RouteTarget::Own { gateway, .. }) if asked => {
            controller(client, rollout, gateway).await?.into_iter().collect()
        }
        _ => return Ok(Balancing::default()),
    };
    let problem = asked.then(|| unable(&controllers)).flatten();
    let ours = matches!(state, RouteState::Found(route) if route.ledger.is_some());
    if let Some(why) = problem.as_ref().filter(|_| !ours) {
        *state = RouteState::Unsupported(why.clone());
    }
    let possible = unable(&controllers).is_none();
    if !ours || !possible {
        return Ok(Balancing { possible, policy: None, problem });
    }
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &rollout.namespace, &policies());
    let policy = api.get_opt(&rollout.name).await;
    let policy = policy.map_err(|source| Error { what: "the BackendTrafficPolicy", source })?;
    let problem = policy.as_ref().filter(|_| asked).and_then(|policy| refused(&rollout.uid, policy));
    Ok(Balancing { possible, policy, problem })
}

/// Who runs the Gateway of a route that does not exist yet: what its class says.
async fn controller(client: &Client, rollout: &Rollout, gateway: &str) -> Result<Option<String>, Error> {
    let gateways = gateway_api("Gateway", "gateways");
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &rollout.namespace, &gateways);
    let found = api.get_opt(gateway).await.map_err(|source| Error { what: "the Gateway", source })?;
    let Some(class) = found.as_ref().and_then(|found| found.data["spec"]["gatewayClassName"].as_str()) else {
        return Ok(None);
    };
    let api = Api::<DynamicObject>::all_with(client.clone(), &gateway_api("GatewayClass", "gatewayclasses"));
    let class = api.get_opt(class).await.map_err(|source| Error { what: "the GatewayClass", source })?;
    Ok(class.and_then(|class| class.data["spec"]["controllerName"].as_str().map(str::to_owned)))
}

/// Why these controllers cannot do it; `None`: they can.
fn unable(controllers: &[String]) -> Option<String> {
    if controllers.is_empty() {
        return Some("no Gateway has said yet who runs it: spec.route.loadBalancing needs Envoy Gateway".to_owned());
    }
    let other = controllers.iter().find(|name| !name.starts_with(ENVOY_GATEWAY))?;
    Some(format!(
        "its Gateway is run by {other}, which has no BackendTrafficPolicy: leave spec.route.loadBalancing out, or use a Gateway of Envoy Gateway"
    ))
}

/// Why a policy that is there is not in effect.
fn refused(uid: &str, policy: &DynamicObject) -> Option<String> {
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    if !owned_by(&policy.metadata, uid) {
        return Some(format!(
            "BackendTrafficPolicy {name} belongs to somebody else: rename it, or leave spec.route.loadBalancing out"
        ));
    }
    let ancestors = policy.data["status"]["ancestors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let conditions = ancestors.iter().flat_map(|ancestor| ancestor["conditions"].as_array().into_iter().flatten());
    let refusal = conditions.into_iter().find(|condition| is_refusal(condition, policy.metadata.generation))?;
    Some(format!("BackendTrafficPolicy {name} is not accepted: {}", refusal["message"].as_str().unwrap_or_default()))
}

fn is_refusal(condition: &Value, generation: Option<i64>) -> bool {
    condition["type"] == "Accepted"
        && condition["status"] == "False"
        && condition["observedGeneration"].as_i64().unwrap_or(0) >= generation.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Guard,
        fake::{Asked, refusal, rollout, server},
    };
    use bitnet_core::{model::LoadBalancing, observation::Route};
    use serde_json::json;

    const OURS: &str = "gateway.envoyproxy.io/gatewayclass-controller";

    fn view(controllers: &[&str]) -> RouteView {
        let parents: Vec<_> = controllers.iter().map(|name| json!({"controllerName": name})).collect();
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "shop"},
            "spec": {"rules": [{}]}, "status": {"parents": parents},
        });
        RouteView::new(Some(serde_json::from_value(object).unwrap()), 0)
    }

    fn found(ours: bool) -> RouteState {
        let ledger = bitnet_core::observation::Ledger {
            uid: "u".into(),
            stable: bitnet_core::model::Revision("chat-a".into()),
            candidate: None,
            attempt: 1,
            step: 0,
            epoch: 1,
            rollback_of: None,
            decision: None,
        };
        RouteState::Found(Route { ledger: ours.then_some(ledger), ..Route::default() })
    }

    fn asking() -> Rollout {
        Rollout { load_balancing: Some(LoadBalancing::RoundRobin), ..rollout() }
    }

    async fn look_at(
        rollout: &Rollout,
        state: RouteState,
        controllers: &[&str],
        answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
    ) -> (RouteState, Balancing, usize) {
        let (client, log) = server(&Guard::new(None), answer);
        let mut state = state;
        let balancing = look(&client, rollout, &mut state, &view(controllers)).await.unwrap();
        let asked = log.lock().unwrap().len();
        (state, balancing, asked)
    }

    fn nothing(_: &Asked) -> (u16, Value) {
        refusal(404, "NotFound", "no")
    }

    #[tokio::test]
    async fn another_gateway_is_refused_by_name_before_anything_moves() {
        let (state, _, asked) = look_at(&asking(), found(false), &[OURS, "nginx.org/gateway"], nothing).await;
        let RouteState::Unsupported(why) = state else { panic!("{state:?}") };
        assert!(
            why.contains("run by nginx.org/gateway") && why.contains("leave spec.route.loadBalancing out"),
            "{why}"
        );
        assert_eq!(asked, 0);
        let (state, ..) = look_at(&asking(), found(false), &[], nothing).await;
        assert!(matches!(state, RouteState::Unsupported(why) if why.contains("no Gateway has said")));
        // One that is not asked anything does what it can.
        let (state, ..) = look_at(&rollout(), found(false), &["nginx.org/gateway"], nothing).await;
        assert_eq!(state, found(false));
    }

    #[tokio::test]
    async fn a_route_that_is_ours_keeps_its_way_back_and_the_problem_is_told() {
        let (state, balancing, _) = look_at(&asking(), found(true), &["nginx.org/gateway"], nothing).await;
        assert_eq!(state, found(true));
        assert!(!balancing.possible && balancing.problem.unwrap().contains("nginx.org/gateway"));
        let (_, balancing, asked) = look_at(&asking(), found(true), &[OURS], nothing).await;
        assert!(balancing.possible && balancing.problem.is_none() && asked == 1);
        let foreign = |_: &Asked| {
            let kind = json!({"apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "BackendTrafficPolicy"});
            (
                200,
                json!({"apiVersion": kind["apiVersion"], "kind": kind["kind"], "metadata": {"name": "chat"}, "spec": {}}),
            )
        };
        let (_, balancing, _) = look_at(&asking(), found(true), &[OURS], foreign).await;
        assert!(balancing.problem.unwrap().contains("belongs to somebody else"));
        let conflicted = |_: &Asked| {
            let conditions = json!([{"type": "Accepted", "status": "False", "message": "a policy is there", "observedGeneration": 2}]);
            (
                200,
                json!({
                    "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "BackendTrafficPolicy",
                    "metadata": {"name": "chat", "generation": 2, "ownerReferences": [
                        {"apiVersion": "v1", "kind": "X", "name": "chat", "uid": "u"},
                    ]},
                    "spec": {}, "status": {"ancestors": [{"conditions": conditions}]},
                }),
            )
        };
        let (_, balancing, _) = look_at(&asking(), found(true), &[OURS], conflicted).await;
        assert!(balancing.problem.unwrap().contains("is not accepted: a policy is there"));
    }

    #[tokio::test]
    async fn the_class_says_who_will_run_a_route_that_is_not_there_yet() {
        let mut own = asking();
        own.route = RouteTarget::Own { gateway: "gw".into(), hostnames: Vec::new() };
        let class = |controller: &'static str| {
            move |asked: &Asked| {
                let spec = if asked.path.contains("gatewayclasses") {
                    json!({"controllerName": controller})
                } else {
                    json!({"gatewayClassName": "c"})
                };
                (200, json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec}))
            }
        };
        let (state, ..) = look_at(&own, RouteState::Missing, &[], class("istio.io/gateway-controller")).await;
        assert!(matches!(state, RouteState::Unsupported(why) if why.contains("istio.io/gateway-controller")));
        let (state, balancing, _) = look_at(&own, RouteState::Missing, &[], class(OURS)).await;
        assert_eq!((state, balancing.possible), (RouteState::Missing, true));
    }
}
