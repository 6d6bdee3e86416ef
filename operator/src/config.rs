//! The operator's own settings: one YAML file that the chart writes from its values.

use crate::notifications::{Notification, Occasion, Template, TemplateError};
use bitnet_api::validate::Pools;
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Settings of the installation. Custom resources refer to a pool by name and can say no more than that.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Image of the workers; frozen in a Deployment when it is created, so that an upgrade of the operator restarts
    /// no pod.
    pub worker_image: String,
    /// Pull policy of worker and model images.
    #[serde(default)]
    pub image_pull_policy: PullPolicy,
    /// Node pools by name.
    #[serde(default)]
    pub pools: BTreeMap<String, Pool>,
    /// Pool of a revision that names none.
    #[serde(default = "default_pool")]
    pub default_pool: String,
    /// Namespaces to watch; empty: all.
    #[serde(default)]
    pub watch_namespaces: Vec<String>,
    /// Receivers of notifications.
    #[serde(default)]
    pub notifications: Vec<Channel>,
}

/// A receiver of notifications. Its address is a file of its name: never part of these settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Channel {
    /// A DNS label; also the key of its address in the Secret.
    pub name: String,
    /// What its body looks like.
    pub format: ChannelFormat,
    /// What it is told; empty: verdicts, and what needs somebody.
    #[serde(default)]
    pub occasions: Vec<Occasion>,
    /// Namespaces of the rollouts that it is told of; empty: all.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// The text, a Jinja template; `None`: the default one.
    #[serde(default)]
    pub template: Option<String>,
    /// An address without TLS is taken, too.
    #[serde(default)]
    pub insecure_http: bool,
}

impl Channel {
    /// It is to be told of this.
    pub fn wants(&self, notification: &Notification) -> bool {
        let wanted = if self.occasions.is_empty() { &Occasion::DEFAULT[..] } else { &self.occasions };
        let here = self.namespaces.is_empty() || self.namespaces.contains(&notification.namespace);
        here && wanted.contains(&notification.occasion)
    }
}

/// What a receiver's body looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ChannelFormat {
    /// All fields of a notification, and the text.
    Json,
    /// An incoming webhook of Slack (Mattermost and Rocket.Chat take the same).
    Slack,
    /// A workflow of Microsoft Teams: a message with an adaptive card.
    Teams,
}

/// A node pool as the cluster's admin declared it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pool {
    /// Node labels that pods of this pool need.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods of this pool bear.
    pub tolerations: Vec<Toleration>,
    /// Requests and limits of the worker container.
    pub resources: Option<ResourceRequirements>,
    /// Runtime class of the pods.
    pub runtime_class_name: Option<String>,
    /// Worker image of this pool (for example the CUDA build) instead of `workerImage`.
    pub image: Option<String>,
    /// What one pod of this pool costs in an hour, in a currency of your choice; above 0.
    pub price_per_pod_hour: Option<f64>,
}

/// When images are pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// On every start of a container.
    Always,
    /// Where the node does not have it.
    #[default]
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl PullPolicy {
    /// As in a pod.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

fn default_pool() -> String {
    "cpu".into()
}

/// Why the settings were not taken. The operator does not start on any of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: give --config the path of a readable YAML file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not the YAML that is wanted.
    #[error("the configuration {} is not valid: fix the named field", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_yaml::Error,
    },
    /// A template of a notification cannot be used.
    #[error("configuration field `{field}`: correct the template")]
    Template {
        /// The field.
        field: String,
        /// Where and why.
        #[source]
        source: TemplateError,
    },
    /// A field breaks a rule.
    #[error("configuration field `{field}`: {rule}")]
    Invalid {
        /// The field.
        field: String,
        /// Rule and remedy.
        rule: &'static str,
    },
}

impl Config {
    /// Reads and checks the settings.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let config: Self = serde_yaml::from_str(&text).map_err(|source| Error::Parse { path: path.into(), source })?;
        config.check()?;
        Ok(config)
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    /// What `validate` knows of the pools. A limit that is no quantity bounds nothing here: the API server refuses its pods.
    pub fn known_pools(&self) -> Pools {
        let limit = |pool: &Pool| {
            let limits = pool.resources.as_ref()?.limits.as_ref()?;
            quantity(&limits.get("memory")?.0)
        };
        Pools {
            names: self.pools.keys().cloned().collect(),
            default: self.default_pool.clone(),
            memory: self.pools.iter().filter_map(|(name, pool)| Some((name.clone(), limit(pool)?))).collect(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let invalid = |field: &str, rule| Err(Error::Invalid { field: field.into(), rule });
        if self.worker_image.trim().is_empty() {
            return invalid("workerImage", "must name an image, best by digest");
        }
        if !self.pools.contains_key(&self.default_pool) {
            return invalid("defaultPool", "must be one of the names under `pools`: declare that pool or change this");
        }
        for (name, pool) in &self.pools {
            if !is_dns_label(name) {
                return invalid(&format!("pools.{name}"), "a pool's name is a DNS label of at most 63 characters");
            }
            if pool.image.as_ref().is_some_and(|image| image.trim().is_empty()) {
                return invalid(&format!("pools.{name}.image"), "must name an image, or be left out");
            }
            if pool.price_per_pod_hour.is_some_and(|price| !(price.is_finite() && price > 0.0)) {
                return invalid(
                    &format!("pools.{name}.pricePerPodHour"),
                    "must be above 0: leave it out where the price is not known",
                );
            }
        }
        for (index, channel) in self.notifications.iter().enumerate() {
            let field = |part: &str| format!("notifications[{index}].{part}");
            // The Secret's other key is `ca.crt`, which is no label.
            if !is_dns_label(&channel.name) {
                return invalid(&field("name"), "a channel's name is a DNS label of at most 63 characters");
            }
            if self.notifications[..index].iter().any(|other| other.name == channel.name) {
                return invalid(&field("name"), "another channel has this name: give each its own");
            }
            if channel.namespaces.iter().any(|name| !is_dns_label(name)) {
                return invalid(&field("namespaces"), "a namespace's name is a DNS label");
            }
            if let Err(source) = Template::new(channel.format, channel.template.as_deref()) {
                return Err(Error::Template { field: field("template"), source });
            }
        }
        if let Some(bad) = self.watch_namespaces.iter().find(|name| !is_dns_label(name)) {
            return invalid(&format!("watchNamespaces: `{bad}`"), "a namespace's name is a DNS label");
        }
        Ok(())
    }
}

/// A quantity of Kubernetes in whole units, for example bytes; `None` where it is none.
fn quantity(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
    Some((number * factor) as u64)
}

fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    fn load(text: &str) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_full_file_is_read() {
        let config = load(
            "workerImage: localhost/inference-worker:1\nimagePullPolicy: Never\ndefaultPool: cpu\nwatchNamespaces: [a]\n\
             pools:\n  cpu: {resources: {requests: {cpu: 100m}}}\n  gpu:\n    nodeSelector: {accelerator: h200}\n    \
             tolerations: [{key: nvidia.com/gpu, operator: Exists}]\n    resources: {limits: {nvidia.com/gpu: '1'}}\n    \
             runtimeClassName: nvidia\n    image: localhost/inference-worker:1-cuda\n    pricePerPodHour: 2.5\n",
        )
        .unwrap();
        assert_eq!(config.image_pull_policy, PullPolicy::Never);
        let gpu = config.pool("gpu").unwrap();
        assert_eq!(gpu.image.as_deref(), Some("localhost/inference-worker:1-cuda"));
        assert_eq!(gpu.tolerations[0].key.as_deref(), Some("nvidia.com/gpu"));
        assert_eq!((gpu.price_per_pod_hour, config.pool("cpu").unwrap().price_per_pod_hour), (Some(2.5), None));
    }

    #[test]
    fn limits_of_pools_are_known_where_there_are_any() {
        let config = load(
            "workerImage: x\npools: {cpu: {resources: {limits: {memory: 1536Mi}}}, b: {resources: {limits: {memory: '1e3'}}}, \
             c: {resources: {limits: {cpu: '2'}}}, d: {}, e: {resources: {limits: {memory: 2Gi}, requests: {memory: 1Gi}}}}",
        )
        .unwrap();
        let pools = config.known_pools();
        assert_eq!((pools.names.len(), pools.default.as_str()), (5, "cpu"));
        let memory: Vec<_> = pools.memory.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        assert_eq!(memory, [("cpu", 3 << 29), ("e", 2 << 30)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("workerImage: x\npools: {gpu: {}}", "defaultPool"),
            ("workerImage: ''\npools: {cpu: {}}", "workerImage"),
            ("workerImage: x\npools: {cpu: {}, UPPER: {}}", "pools.UPPER"),
            ("workerImage: x\npools: {cpu: {}}\nwatchNamespaces: ['a b']", "watchNamespaces"),
            ("workerImage: x\npools: {cpu: {image: ' '}}", "pools.cpu.image"),
            ("workerImage: x\npools: {cpu: {pricePerPodHour: 0}}", "pools.cpu.pricePerPodHour"),
            ("workerImage: x\npools: {cpu: {pricePerPodHour: .inf}}", "pools.cpu.pricePerPodHour"),
            ("workerImage: x\npools: {cpu: {}}\nnotifications: [{name: A, format: Json}]", "notifications[0].name"),
            (
                "workerImage: x\npools: {cpu: {}}\nnotifications: [{name: a, format: Json}, {name: a, format: Slack}]",
                "notifications[1].name",
            ),
            (
                "workerImage: x\npools: {cpu: {}}\nnotifications: [{name: a, format: Json, namespaces: ['']}]",
                "notifications[0].namespaces",
            ),
            (
                "workerImage: x\npools: {cpu: {}}\nnotifications: [{name: a, format: Json, template: '{{ typo }}'}]",
                "notifications[0].template",
            ),
        ];
        for (text, field) in cases {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_and_named_by_the_source() {
        let error = load("workerImage: x\npools: {cpu: {nodeselector: {}}}").unwrap_err();
        assert!(error.source().unwrap().to_string().contains("nodeselector"), "{error:?}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nowhere/config.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/config.yaml"));
    }
}
