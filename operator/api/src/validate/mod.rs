//! From a custom resource to [`Rollout`], the one input of every later step: references resolved, defaults applied,
//! every rule of the schema checked again (a stored object may be older than the rule).
//!
//! Pure and total: an object of any shape gives a rollout or a [`Refusal`], never a panic.

#[cfg(feature = "crd")]
mod ab_test;
mod gate;
#[cfg(feature = "crd")]
mod guard;
mod refusal;
#[cfg(feature = "crd")]
mod revision;
#[cfg(feature = "crd")]
mod serving;
#[cfg(feature = "crd")]
mod strategy;

pub use gate::resolve_gate;
pub use refusal::{Refusal, RefusalReason};
#[cfg(feature = "crd")]
pub use revision::{HASH_LENGTH, revision_name};

use crate::units::Duration;
#[cfg(feature = "crd")]
use crate::v1alpha1::{
    ArmSpec, Capacity, DeletionPolicy, LoadBalancing, ModelRollout, Precision, QualityGate, RouteSpec, SourceSpec,
};
use bitnet_core::Span;
#[cfg(feature = "crd")]
use bitnet_core::model::{self, Rollout, RouteTarget, Serving, Settings, Source};
#[cfg(feature = "crd")]
use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "crd")]
/// Longest name of a rollout: names of revisions (`<name>-<10 characters>`) must be DNS labels.
pub const NAME_LENGTH: usize = 52;

#[cfg(feature = "crd")]
/// The node pools of this installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// Their names.
    pub names: BTreeSet<String>,
    /// The pool of arms that name none.
    pub default: String,
    /// Memory limits of the workers, in bytes, of the pools that have one.
    pub memory: BTreeMap<String, u64>,
}

#[cfg(feature = "crd")]
/// Validates a rollout. `gate` is the QualityGate that `spec.gate` names, `None` if it does not exist; it is not looked
/// at where the gate is inline.
pub fn validate(rollout: &ModelRollout, gate: Option<&QualityGate>, pools: &Pools) -> Result<Rollout, Refusal> {
    let name = rollout_name(rollout)?;
    let metadata = &rollout.metadata;
    let malformed = |field: &str| {
        Refusal::new(RefusalReason::Malformed, field, "is missing from the stored object", "create the object again")
    };
    let namespace = metadata.namespace.clone().ok_or_else(|| malformed("metadata.namespace"))?;
    let uid = metadata.uid.clone().filter(|uid| !uid.is_empty()).ok_or_else(|| malformed("metadata.uid"))?;

    let spec = &rollout.spec;
    if !matches!(spec.baseline.precision, None | Some(Precision::Fp16 | Precision::Auto)) {
        return Err(Refusal::invalid(
            "spec.baseline.precision",
            "the baseline is the fp16 reference",
            "set it to fp16 or auto",
        ));
    }
    let whole = spec.strategy.as_ref().is_some_and(|strategy| strategy.canary.is_none());
    if spec.capacity == Capacity::Swap && whole {
        return Err(Refusal::invalid(
            "spec.capacity",
            "blueGreen and abTest need both models whole",
            "set it to surge, or use a canary",
        ));
    }
    if spec.baseline.serving.as_ref().is_some_and(|serving| serving.fallback.is_some()) {
        return Err(Refusal::invalid(
            "spec.baseline.serving.fallback",
            "the baseline is the last tier",
            "give it to spec.model.serving",
        ));
    }
    let baseline = arm(name, "spec.baseline", &spec.baseline, Precision::Fp16, pools)?;
    let model = arm(name, "spec.model", &spec.model, Precision::Auto, pools)?;
    let (route, load_balancing) = (route(&spec.route)?, spec.route.load_balancing);
    let strategy = strategy::strategy(spec.strategy.as_ref(), model.replicas)?;
    let gate = gate::chosen_gate(name, spec, gate)?;
    Ok(Rollout {
        namespace,
        name: name.to_owned(),
        uid,
        generation: metadata.generation.unwrap_or(0),
        deleting: metadata.deletion_timestamp.is_some(),
        paused: spec.paused,
        baseline,
        model,
        route,
        load_balancing: load_balancing.map(|how| match how {
            LoadBalancing::RoundRobin => model::LoadBalancing::RoundRobin,
            LoadBalancing::LeastRequest => model::LoadBalancing::LeastRequest,
        }),
        strategy,
        guard: guard::guard(spec.guard.as_ref(), &gate)?,
        gate,
        scale_down_delay: span("spec.scaleDownDelay", &spec.scale_down_delay, 0, 168 * HOUR)?,
        progress_deadline: span("spec.progressDeadline", &spec.progress_deadline, 10_000, 168 * HOUR)?,
        capacity: match spec.capacity {
            Capacity::Surge => model::Capacity::Surge,
            Capacity::Swap => model::Capacity::Swap,
        },
        deletion_policy: match spec.deletion_policy {
            DeletionPolicy::Delete => model::DeletionPolicy::Delete,
            DeletionPolicy::Orphan => model::DeletionPolicy::Orphan,
        },
    })
}

const HOUR: i64 = 3_600_000;

#[cfg(feature = "crd")]
fn rollout_name(rollout: &ModelRollout) -> Result<&str, Refusal> {
    let name = rollout.metadata.name.as_deref().unwrap_or_default();
    if name.len() <= NAME_LENGTH && name.starts_with(|c: char| c.is_ascii_lowercase()) && is_dns_label(name) {
        return Ok(name);
    }
    Err(Refusal::invalid(
        "metadata.name",
        "names of revisions are made from it",
        format!("choose a DNS label that begins with a letter and has at most {NAME_LENGTH} characters"),
    ))
}

#[cfg(feature = "crd")]
fn arm(rollout: &str, field: &str, arm: &ArmSpec, precision: Precision, pools: &Pools) -> Result<Serving, Refusal> {
    let precision = arm.precision.unwrap_or(precision);
    let (pool, rule) = match &arm.pool {
        Some(pool) => (pool, "names a pool that the cluster's admin has not declared"),
        None => (&pools.default, "is not given, and the installation has no default pool"),
    };
    if !pools.names.contains(pool) {
        let names: Vec<_> = pools.names.iter().take(20).map(String::as_str).collect();
        let declared = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Refusal::new(
            RefusalReason::PoolMissing,
            format!("{field}.pool"),
            rule,
            format!("use a declared pool (declared: {declared}) or declare it in the chart's values"),
        ));
    }
    Ok(Serving {
        revision: revision_name(rollout, arm),
        source: source(field, &arm.source)?,
        precision: precision.name().to_owned(),
        pool: pool.clone(),
        replicas: integer(format!("{field}.replicas"), arm.replicas.unwrap_or(1), 1, 1000)?,
        settings: match &arm.serving {
            Some(serving) => serving::settings(&format!("{field}.serving"), serving, pools.memory.get(pool).copied())?,
            None => Settings::default(),
        },
    })
}

#[cfg(feature = "crd")]
fn source(field: &str, source: &SourceSpec) -> Result<Source, Refusal> {
    match (&source.image, &source.persistent_volume_claim) {
        (Some(image), None) => {
            if names_a_digest(image) {
                return Ok(Source::Image(image.clone()));
            }
            Err(Refusal::invalid(
                format!("{field}.source.image"),
                "an image is named by digest",
                "write repository@sha256:<64 hex characters>",
            ))
        }
        (None, Some(claim)) => {
            let field = format!("{field}.source.persistentVolumeClaim");
            object_name(&format!("{field}.claimName"), &claim.claim_name)?;
            let path = claim.path.clone().unwrap_or_default();
            if path.starts_with('/') || path.split('/').any(|part| part == "..") || !is_plain_path(&path) {
                return Err(Refusal::invalid(
                    format!("{field}.path"),
                    "the directory is relative to the claim's root",
                    "write a path of at most 512 characters from A-Z a-z 0-9 . _ - / without a leading / and without `..`",
                ));
            }
            let digest = claim.digest.strip_prefix("sha256:").unwrap_or(&claim.digest);
            if !is_hex_digest(digest) {
                return Err(Refusal::invalid(
                    format!("{field}.digest"),
                    "model files on a claim are named by their digest",
                    "write the 64 hex characters that `inference-worker inspect` prints",
                ));
            }
            Ok(Source::Claim { claim: claim.claim_name.clone(), path, digest: digest.to_owned() })
        }
        _ => Err(Refusal::invalid(
            format!("{field}.source"),
            "a model has exactly one source",
            "give either image or persistentVolumeClaim",
        )),
    }
}

#[cfg(feature = "crd")]
fn route(route: &RouteSpec) -> Result<RouteTarget, Refusal> {
    for (field, given) in [
        ("spec.route.virtualService", &route.virtual_service),
        ("spec.route.http", &route.http),
        ("spec.route.ingress", &route.ingress),
    ] {
        if given.is_some() {
            return Err(Refusal::new(
                RefusalReason::NotLanded,
                field,
                "is of a traffic provider that the operator does not drive",
                "use httpRoute (a route of yours) or gateway (a route of the operator's); `kubectl bitnet render` prints what the \
                 provider would need",
            ));
        }
    }
    match (&route.http_route, &route.gateway) {
        (Some(http_route), None) => {
            object_name("spec.route.httpRoute", http_route)?;
            if route.hostnames.is_some() {
                return Err(Refusal::invalid(
                    "spec.route.hostnames",
                    "host names belong to a route of the operator's own",
                    "leave it out: the HTTPRoute that you own has its own host names",
                ));
            }
            if let Some(rule) = &route.rule {
                object_name("spec.route.rule", rule)?;
            }
            Ok(RouteTarget::Adopt { http_route: http_route.clone(), rule: route.rule.clone() })
        }
        (None, Some(gateway)) => {
            object_name("spec.route.gateway", gateway)?;
            if route.rule.is_some() {
                return Err(Refusal::invalid(
                    "spec.route.rule",
                    "it names a rule of httpRoute",
                    "leave it out: a route of the operator's own has one rule",
                ));
            }
            let hostnames = route.hostnames.clone().unwrap_or_default();
            if hostnames.len() > 16 || !hostnames.iter().all(|name| is_hostname(name)) {
                return Err(Refusal::invalid(
                    "spec.route.hostnames",
                    "each entry is a host name, with at most a leading `*.`",
                    "write at most 16 lower-case DNS names",
                ));
            }
            Ok(RouteTarget::Own { gateway: gateway.clone(), hostnames })
        }
        _ => Err(Refusal::invalid(
            "spec.route",
            "a rollout has exactly one route",
            "give either httpRoute (a route of yours) or gateway (a route of the operator's)",
        )),
    }
}

/// A length of time within bounds, in milliseconds.
fn span(field: &str, text: &Duration, least: i64, most: i64) -> Result<Span, Refusal> {
    let milliseconds = text
        .milliseconds()
        .map_err(|error| Refusal::invalid(field, error.to_string(), format!("write {}", bounds(least, most))))?;
    if (least..=most).contains(&milliseconds) {
        return Ok(Span(milliseconds));
    }
    Err(Refusal::invalid(field, format!("`{text}` is out of bounds"), format!("write {}", bounds(least, most))))
}

fn bounds(least: i64, most: i64) -> String {
    format!("a length of time between {least}ms and {}s", most / 1000)
}

/// A number within bounds.
fn integer(field: String, number: i32, least: i32, most: i32) -> Result<u32, Refusal> {
    if (least..=most).contains(&number) {
        return Ok(number.unsigned_abs());
    }
    Err(Refusal::invalid(
        field,
        format!("{number} is out of bounds"),
        format!("write a number between {least} and {most}"),
    ))
}

/// A name of another object, or of a rule.
fn object_name(field: &str, name: &str) -> Result<(), Refusal> {
    if name.len() <= 253 && name.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err(Refusal::invalid(
        field,
        "it is the name of an object",
        "write at most 253 characters from a-z 0-9 - . that begin and end with a letter or digit",
    ))
}

fn is_dns_label(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(feature = "crd")]
fn is_hostname(text: &str) -> bool {
    text.len() <= 253 && text.strip_prefix("*.").unwrap_or(text).split('.').all(is_dns_label)
}

#[cfg(feature = "crd")]
fn is_plain_path(text: &str) -> bool {
    text.len() <= 512 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b))
}

#[cfg(feature = "crd")]
fn is_hex_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(feature = "crd")]
/// `[host[:port]/]path[:tag]@sha256:<64 hex characters>`: no scheme, so no URL.
fn names_a_digest(image: &str) -> bool {
    let Some((name, digest)) = image.split_once("@sha256:") else { return false };
    let mut parts: Vec<&str> = name.split('/').collect();
    let tag = match parts.last_mut() {
        Some(last) => last.split_once(':').map(|(path, tag)| {
            *last = path;
            tag
        }),
        None => None,
    };
    // Without a slash, `a:5000` may as well be a host with a port: either way nothing is reached by it.
    let host = if parts.len() > 1 { parts.first_mut() } else { None };
    let port = host.and_then(|host| {
        host.split_once(':').map(|(name, port)| {
            *host = name;
            port
        })
    });
    let is_tag = |tag: &str| {
        tag.len() <= 128
            && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let is_port = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    image.len() <= 512
        && is_hex_digest(digest)
        && tag.is_none_or(is_tag)
        && port.is_none_or(is_port)
        && parts.into_iter().all(|part| {
            let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            edge(part.as_bytes().first())
                && edge(part.as_bytes().last())
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b))
        })
}
