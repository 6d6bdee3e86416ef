//! Deployments, Services and pods by revision.

use super::problems;
use crate::render::labels;
use bitnet_api::keys::label;
use bitnet_core::{
    Time,
    model::Revision,
    observation::{Pod as SeenPod, Workload},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt;
use std::{collections::BTreeMap, net::IpAddr};

/// Sorts what belongs to a rollout by revision.
pub(super) fn read(
    deployments: &BTreeMap<String, Deployment>,
    services: &BTreeMap<String, Service>,
    pods: &[Pod],
    slices: &[EndpointSlice],
    autoscalers: &[HorizontalPodAutoscaler],
) -> BTreeMap<Revision, Workload> {
    let mut workloads = BTreeMap::<Revision, Workload>::new();
    for (name, deployment) in deployments {
        let Some(revision) = deployment.labels().get(label::REVISION).filter(|revision| *revision == name) else {
            continue;
        };
        let workload = workloads.entry(Revision(revision.clone())).or_default();
        let spec = deployment.spec.as_ref();
        workload.replicas = Some(spec.and_then(|spec| spec.replicas).unwrap_or(1).unsigned_abs());
        let template = spec.and_then(|spec| spec.template.metadata.as_ref()?.labels.as_ref());
        workload.baseline =
            template.is_some_and(|all| all.get(label::ROLE).is_some_and(|role| role == labels::BASELINE));
        workload.autoscaled = autoscalers.iter().any(|autoscaler| scales(autoscaler, name));
    }
    for (name, service) in services {
        let Some(revision) = service.labels().get(label::REVISION).filter(|revision| *revision == name) else {
            continue;
        };
        let workload = workloads.entry(Revision(revision.clone())).or_default();
        workload.service = true;
        workload.ready_endpoints = ready_endpoints(slices, name);
    }
    for pod in pods {
        let Some(revision) = pod.labels().get(label::REVISION) else { continue };
        // Labels can be put on any pod; only those of our Deployment's ReplicaSets count.
        let made_by_us = pod.owner_references().iter().any(|owner| {
            owner.kind == "ReplicaSet"
                && owner.name.strip_prefix(revision.as_str()).is_some_and(|rest| rest.starts_with('-'))
        });
        if let Some(workload) = workloads.get_mut(&Revision(revision.clone())).filter(|_| made_by_us) {
            workload.pods.push(seen(pod));
        }
    }
    for workload in workloads.values_mut() {
        workload.pods.sort_by(|a, b| a.name.cmp(&b.name));
    }
    workloads
}

/// Endpoints of a Service that take traffic.
pub(super) fn ready_endpoints(slices: &[EndpointSlice], service: &str) -> u32 {
    let of_service = slices
        .iter()
        .filter(|slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == service));
    let endpoints = of_service.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        endpoint
            .conditions
            .as_ref()
            .is_none_or(|conditions| conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false))
    });
    ready.count() as u32
}

/// The IP at which a pod is asked.
pub(super) fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn scales(autoscaler: &HorizontalPodAutoscaler, deployment: &str) -> bool {
    let target = &autoscaler.spec.scale_target_ref;
    target.kind == "Deployment" && target.name == deployment
}

fn seen(pod: &Pod) -> SeenPod {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True");
    let ready_since = ready
        .filter(|_| pod.metadata.deletion_timestamp.is_none())
        .map(|condition| Time(condition.last_transition_time.as_ref().map_or(0, |time| time.0.as_millisecond())));
    SeenPod { name: pod.name_any(), ready_since, problem: if ready_since.is_none() { problems::of(pod) } else { None } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels_of(revision: &str) -> serde_json::Value {
        json!({label::ROLLOUT: "chat", label::REVISION: revision})
    }

    #[test]
    fn pods_and_endpoints_are_found_by_revision() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "chat-a", "labels": labels_of("chat-a")},
            "spec": {"replicas": 2, "selector": {}, "template": {"metadata": {"labels": {label::ROLE: "baseline"}}}},
        }))
        .unwrap();
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "chat-a", "labels": labels_of("chat-a")}})).unwrap();
        let pod = |name: &str, owner: &str, extra: serde_json::Value| -> Pod {
            let mut pod = json!({
                "metadata": {"name": name, "labels": labels_of("chat-a"), "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "u"},
                ]},
                "status": {"podIP": "10.0.0.7", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2025-01-01T00:00:01Z"},
                ]},
            });
            if let Some(stamp) = extra.as_str() {
                pod["metadata"]["deletionTimestamp"] = json!(stamp);
            }
            serde_json::from_value(pod).unwrap()
        };
        let pods = [
            pod("b", "chat-a-1", json!(null)),
            pod("a", "chat-a-1", json!("2025-01-01T00:00:02Z")),
            pod("intruder", "chat-ab-1", json!(null)),
        ];
        let slice: EndpointSlice = serde_json::from_value(json!({
            "addressType": "IPv4", "metadata": {"labels": {"kubernetes.io/service-name": "chat-a"}},
            "endpoints": [
                {"addresses": ["10.0.0.7"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.8"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.9"], "conditions": {"ready": true, "terminating": true}},
            ],
        }))
        .unwrap();
        let read = read(
            &BTreeMap::from([("chat-a".into(), deployment)]),
            &BTreeMap::from([("chat-a".into(), service)]),
            &pods,
            &[slice],
            &[],
        );
        let workload = &read[&Revision("chat-a".into())];
        assert_eq!((workload.replicas, workload.service, workload.ready_endpoints), (Some(2), true, 1));
        assert!(workload.baseline && !workload.autoscaled);
        let names: Vec<_> = workload.pods.iter().map(|pod| (pod.name.as_str(), pod.ready_since)).collect();
        assert_eq!(names, [("a", None), ("b", Some(Time(1_735_689_601_000)))], "a goes away, the intruder is not ours");
        assert_eq!(address(&pods[0]), Some("10.0.0.7".parse().unwrap()));
    }
}
