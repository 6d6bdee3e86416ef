//! The Deployment of a revision. It is created once and never patched but for its replicas: what it serves, with which
//! worker image and which probe set, is frozen in it.

use super::labels;
use crate::config::{Config, Pool};
use bitnet_api::keys::label;
use bitnet_api::worker::{INTERNAL_PORT, PUBLIC_PORT};
use bitnet_core::{
    model::{Rollout, Serving, Source},
    plan::Grow,
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Capabilities, ConfigMapVolumeSource, Container, ContainerPort, HTTPGetAction, ImageVolumeSource,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
            SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

const MODEL: &str = "/model";
const PROBES: &str = "/probes";
/// Unprivileged user of the worker.
const USER: i64 = 65532;

/// The Deployment of a revision that does not exist yet.
pub(super) fn render(config: &Config, rollout: &Rollout, grow: &Grow, owner: &OwnerReference) -> Deployment {
    let serving = &grow.serving;
    let mut pod_labels = labels::of(rollout, &serving.revision);
    if grow.baseline {
        pod_labels.insert(label::ROLE.into(), labels::BASELINE.into());
    }
    let mut own_labels = labels::of(rollout, &serving.revision);
    own_labels.insert(label::POOL.into(), serving.pool.clone());
    let absent = Pool::default();
    let pool = config.pool(&serving.pool).unwrap_or(&absent);
    Deployment {
        metadata: ObjectMeta {
            name: Some(serving.revision.0.clone()),
            namespace: Some(rollout.namespace.clone()),
            labels: Some(own_labels),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(grow.replicas.unwrap_or(serving.replicas) as i32),
            selector: LabelSelector {
                match_labels: Some(labels::selector(rollout, &serving.revision)),
                ..LabelSelector::default()
            },
            revision_history_limit: Some(1),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(pod_labels), ..ObjectMeta::default() }),
                spec: Some(pod(config, pool, rollout, serving)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn pod(config: &Config, pool: &Pool, rollout: &Rollout, serving: &Serving) -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // The worker is unready at once after SIGTERM, serves on while endpoints spread, drains, and exits.
        termination_grace_period_seconds: Some(30),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        node_selector: Some(pool.node_selector.clone()).filter(|selector| !selector.is_empty()),
        tolerations: Some(pool.tolerations.clone()).filter(|tolerations| !tolerations.is_empty()),
        runtime_class_name: pool.runtime_class_name.clone(),
        topology_spread_constraints: Some(vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".into(),
            when_unsatisfiable: "ScheduleAnyway".into(),
            label_selector: Some(LabelSelector {
                match_labels: Some(labels::selector(rollout, &serving.revision)),
                ..LabelSelector::default()
            }),
            ..TopologySpreadConstraint::default()
        }]),
        containers: vec![container(config, pool, rollout, serving)],
        volumes: Some(vec![model_volume(config, serving), probe_volume(rollout)]),
        ..PodSpec::default()
    }
}

fn container(config: &Config, pool: &Pool, rollout: &Rollout, serving: &Serving) -> Container {
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.into()),
        container_port: number.into(),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    };
    Container {
        name: "worker".into(),
        image: Some(pool.image.as_ref().unwrap_or(&config.worker_image).clone()),
        image_pull_policy: Some(config.image_pull_policy.name().into()),
        args: Some(arguments(rollout, serving)),
        ports: Some(vec![port("http", PUBLIC_PORT), port("internal", INTERNAL_PORT)]),
        resources: pool.resources.clone(),
        // Loading a model may take minutes on a slow disk; progressDeadline is the limit that people set.
        startup_probe: Some(probe("/livez", 2, 900)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("File".into()),
        volume_mounts: Some(vec![
            VolumeMount {
                name: "model".into(),
                mount_path: MODEL.into(),
                read_only: Some(true),
                sub_path: sub_path(&serving.source),
                ..VolumeMount::default()
            },
            VolumeMount {
                name: "probes".into(),
                mount_path: PROBES.into(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
        ]),
        ..Container::default()
    }
}

fn arguments(rollout: &Rollout, serving: &Serving) -> Vec<String> {
    let settings = &serving.settings;
    let mut arguments: Vec<String> = vec!["serve".into()];
    let mut flag = |name: &str, value: String| {
        arguments.push(format!("--{name}"));
        arguments.push(value);
    };
    flag("model", MODEL.into());
    flag("rollout", rollout.name.clone());
    flag("rollout-uid", rollout.uid.clone());
    flag("revision", serving.revision.0.clone());
    flag("probes", format!("{PROBES}/{}", rollout.gate.probes.key));
    flag("max-batch", settings.max_batch.to_string());
    flag("batch-wait", format!("{}ms", settings.batch_wait.0));
    if let Some(tokens) = settings.context_length {
        flag("context", tokens.to_string());
    }
    if let Some(bits) = settings.kv_bits {
        flag("kv-bits", bits.to_string());
    }
    if let Some(bytes) = settings.memory_budget {
        flag("memory-budget", bytes.to_string());
    }
    if let Source::Claim { digest, .. } = &serving.source {
        flag("digest", digest.clone());
    }
    if let Some(fallback) = &settings.fallback {
        flag("fallback", format!("{}:{PUBLIC_PORT}", labels::baseline_service(&rollout.name)));
        if let Some(least) = fallback.min_confidence {
            flag("min-confidence", least.to_string());
        }
    }
    arguments
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("http".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn model_volume(config: &Config, serving: &Serving) -> Volume {
    let volume = Volume { name: "model".into(), ..Volume::default() };
    match &serving.source {
        Source::Image(reference) => Volume {
            image: Some(ImageVolumeSource {
                reference: Some(reference.clone()),
                pull_policy: Some(config.image_pull_policy.name().into()),
            }),
            ..volume
        },
        Source::Claim { claim, .. } => Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: Some(true),
            }),
            ..volume
        },
    }
}

fn sub_path(source: &Source) -> Option<String> {
    let Source::Claim { path, .. } = source else { return None };
    Some(path.trim_matches('/').to_owned()).filter(|path| !path.is_empty() && path != ".")
}

/// Optional: a missing ConfigMap must not keep the pod from serving; the worker then reports that it has no probe set.
fn probe_volume(rollout: &Rollout) -> Volume {
    Volume {
        name: "probes".into(),
        config_map: Some(ConfigMapVolumeSource {
            name: rollout.gate.probes.config_map.clone(),
            optional: Some(true),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}
