use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};

/// The HTTPRoutes of a namespace, every field of them: types of our own would drop what they do not know.
pub fn http_routes(client: Client, namespace: &str) -> Api<DynamicObject> {
    untyped(client, namespace, &GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"))
}

/// The Gateways of a namespace.
pub fn gateways(client: Client, namespace: &str) -> Api<DynamicObject> {
    untyped(client, namespace, &GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway"))
}

/// The ModelRollouts of a namespace as a user's client sees them.
pub fn model_rollouts(client: Client, namespace: &str) -> Api<DynamicObject> {
    untyped(client, namespace, &GroupVersionKind::gvk("rollouts.bitnet.dev", "v1alpha1", "ModelRollout"))
}

fn untyped(client: Client, namespace: &str, kind: &GroupVersionKind) -> Api<DynamicObject> {
    Api::namespaced_with(client, namespace, &ApiResource::from_gvk(kind))
}
