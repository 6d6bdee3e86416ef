//! The Deployment of a revision. It is created once and never patched but for its replicas: what it serves, with which
//! worker image and which probe set, is frozen in it.

use super::labels;
use crate::config::{Config, Pool};
use bitnet_api::keys::label;
use bitnet_api::worker::{INTERNAL_PORT, PUBLIC_PORT};
use bitnet_core::{
    Span,
    model::{FallbackBalance, Rollout, Serving, Source},
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
const WEIGHTS: &str = "/weights";
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
    let claim = serving.settings.weights_cache.as_ref();
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // The worker is unready at once after SIGTERM, serves on while endpoints spread, drains, and exits.
        termination_grace_period_seconds: Some(30),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            // A claim for weights must be writable; one that is already is not walked through at every start.
            fs_group: claim.map(|_| USER),
            fs_group_change_policy: claim.map(|_| "OnRootMismatch".into()),
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
        volumes: Some(
            [model_volume(config, serving), probe_volume(rollout)].into_iter().chain(weights_volume(serving)).collect(),
        ),
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
        volume_mounts: Some(mounts(serving)),
        ..Container::default()
    }
}

fn mounts(serving: &Serving) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: Some(read_only).filter(|read_only| *read_only),
        ..VolumeMount::default()
    };
    let model = VolumeMount { sub_path: sub_path(&serving.source), ..mount("model", MODEL, true) };
    let weights = serving.settings.weights_cache.as_ref().map(|_| mount("weights", WEIGHTS, false));
    [model, mount("probes", PROBES, true)].into_iter().chain(weights).collect()
}

/// What is not given is not passed: the worker's defaults are its own.
fn arguments(rollout: &Rollout, serving: &Serving) -> Vec<String> {
    let settings = &serving.settings;
    let mut arguments: Vec<String> = vec!["serve".into()];
    let mut flag = |name: &str, value: Option<String>| {
        arguments.extend(value.into_iter().flat_map(|value| [format!("--{name}"), value]));
    };
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let time = |time: Option<Span>| time.map(|time| format!("{}ms", time.0));
    flag("model", Some(MODEL.into()));
    flag("rollout", Some(rollout.name.clone()));
    flag("rollout-uid", Some(rollout.uid.clone()));
    flag("revision", Some(serving.revision.0.clone()));
    flag("probes", Some(format!("{PROBES}/{}", rollout.gate.probes.key)));
    // Endpoint pickers of inference pools and autoscalers know these names.
    flag("metrics-compat", Some("vllm".into()));
    flag("max-batch", number(settings.max_batch));
    flag("batch-wait", time(settings.batch_wait));
    flag("queue", number(settings.queue));
    flag("context", number(settings.context_length));
    flag("prefix-cache", number(settings.prefix_cache_tokens));
    flag("kv-bits", number(settings.kv_bits));
    flag("head", settings.head.map(str::to_owned));
    flag("memory-budget", settings.memory_budget.map(|bytes| bytes.to_string()));
    flag("weights-cache", settings.weights_cache.as_ref().map(|_| WEIGHTS.into()));
    flag("request-timeout", time(settings.request_timeout));
    if let Source::Claim { digest, .. } = &serving.source {
        flag("digest", Some(digest.clone()));
    }
    if let Some(fallback) = &settings.fallback {
        flag("fallback", Some(format!("{}:{PUBLIC_PORT}", labels::baseline_service(&rollout.name))));
        let balance = fallback.balance.map(|balance| match balance {
            FallbackBalance::LeastLoaded => "least-loaded",
            FallbackBalance::RoundRobin => "round-robin",
        });
        flag("fallback-balance", balance.map(str::to_owned));
        // What is handed on has the time that its request has left, no less.
        flag("fallback-timeout", time(settings.request_timeout));
        flag("first-token-timeout", time(fallback.first_token));
        flag("min-confidence", fallback.min_confidence.map(|least| least.to_string()));
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

/// The claim of the repacked weights, to write to.
fn weights_volume(serving: &Serving) -> Option<Volume> {
    let claim_name = serving.settings.weights_cache.clone()?;
    let claim = PersistentVolumeClaimVolumeSource { claim_name, read_only: None };
    Some(Volume { name: "weights".into(), persistent_volume_claim: Some(claim), ..Volume::default() })
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
