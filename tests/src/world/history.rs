use super::http_routes;
use anyhow::Result;
use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Client, ResourceExt,
    api::DynamicObject,
    runtime::watcher::{self, Event, watcher},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::task::JoinHandle;

/// One stored version of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteVersion {
    /// When the watch delivered it.
    pub seen: Timestamp,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Weights of all backends of the user's rules, by Service name; of the rule that holds the split of an A/B test, where
    /// there is one.
    pub weights: BTreeMap<String, i64>,
    /// Names of the rules that were derived for a trial.
    pub derived: Vec<String>,
    /// Those of them that requests take.
    pub awake: Vec<String>,
    /// Our annotations, without their prefix.
    pub ledger: BTreeMap<String, String>,
}

/// Every stored version of one HTTPRoute, as a watch of our own delivers them: an auditor that shares no code with
/// the operator.
pub struct RouteHistory {
    versions: Arc<Mutex<Vec<RouteVersion>>>,
    task: JoinHandle<()>,
}

impl RouteHistory {
    /// Starts watching.
    pub fn watch(client: Client, namespace: &str, name: &str) -> Self {
        let versions = Arc::new(Mutex::new(Vec::new()));
        let api = http_routes(client, namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let task = tokio::spawn({
            let versions = versions.clone();
            async move {
                let mut events = Box::pin(watcher(api, config));
                while let Some(event) = events.next().await {
                    if let Ok(Event::Apply(route) | Event::InitApply(route)) = event {
                        record(&versions, &route);
                    }
                }
            }
        });
        Self { versions, task }
    }

    /// All versions so far; status writes of the gateway are folded into the version that they belong to.
    pub fn versions(&self) -> Vec<RouteVersion> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Index of the next version.
    pub fn mark(&self) -> usize {
        self.versions().len()
    }

    /// The largest weight that `revision` had in any version from `mark` on.
    pub fn largest_weight(&self, revision: &str, mark: usize) -> i64 {
        self.versions()[mark..].iter().filter_map(|v| v.weights.get(revision)).copied().max().unwrap_or(0)
    }

    /// Stops and checks what every stored version must hold: under a rollout all weights sum to 100, the epoch never
    /// falls, and a rolled-back attempt never gains weight.
    pub fn audit(&self) -> Result<usize> {
        let versions = self.versions();
        for pair in versions.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            if new.ledger.contains_key("rollout") {
                let sum: i64 = new.weights.values().sum();
                anyhow::ensure!(sum == 100, "version {}: weights {:?} sum to {sum}", new.resource_version, new.weights);
            }
            if let (Some(before), Some(after)) = (old.ledger.get("epoch"), new.ledger.get("epoch")) {
                let (before, after): (u64, u64) = (before.parse()?, after.parse()?);
                anyhow::ensure!(after >= before, "version {}: epoch fell {before} → {after}", new.resource_version);
            }
            if let Some(latch) = new.ledger.get("rollback-of")
                && old.ledger.get("rollback-of") == Some(latch)
                && old.ledger.get("attempt") == new.ledger.get("attempt")
                && old.ledger.get("candidate") == new.ledger.get("candidate")
            {
                let revision = latch.split('/').nth(1).unwrap_or_default();
                let weight = |v: &RouteVersion| v.weights.get(revision).copied().unwrap_or(0);
                anyhow::ensure!(
                    weight(new) <= weight(old),
                    "version {}: the rolled-back {revision} rose from {} to {}",
                    new.resource_version,
                    weight(old),
                    weight(new)
                );
            }
        }
        Ok(versions.len())
    }
}

impl Drop for RouteHistory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn record(versions: &Mutex<Vec<RouteVersion>>, route: &DynamicObject) {
    let mut weights = BTreeMap::new();
    let rules = route.data["spec"]["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = route.annotations().get("rollouts.bitnet.dev/derived-rules").map(String::as_str).unwrap_or_default();
    let is_derived = |rule: &&serde_json::Value| names.split(',').any(|name| rule["name"] == name);
    let derived = rules.iter().filter(is_derived).map(|rule| rule["name"].as_str().unwrap_or_default().to_owned());
    let derived: Vec<String> = derived.collect();
    let asleep = |rule: &serde_json::Value| rule["matches"].to_string().contains("\"x-bitnet-dormant\"");
    let awake = rules.iter().filter(|rule| is_derived(rule) && !asleep(rule));
    let awake: Vec<String> = awake.map(|rule| rule["name"].as_str().unwrap_or_default().to_owned()).collect();
    let apart = awake.iter().any(|name| name == "bitnet-split");
    let counted = |rule: &&serde_json::Value| if apart { rule["name"] == "bitnet-split" } else { !is_derived(rule) };
    for rule in rules.iter().filter(counted) {
        for backend in rule["backendRefs"].as_array().into_iter().flatten() {
            let name = backend["name"].as_str().unwrap_or_default().to_owned();
            *weights.entry(name).or_default() += backend["weight"].as_i64().unwrap_or(1);
        }
    }
    let ledger = route
        .annotations()
        .iter()
        .filter_map(|(k, v)| Some((k.strip_prefix("rollouts.bitnet.dev/")?.to_owned(), v.clone())))
        .collect();
    let version = RouteVersion {
        seen: Timestamp::now(),
        resource_version: route.resource_version().unwrap_or_default(),
        weights,
        derived,
        awake,
        ledger,
    };
    let mut versions = versions.lock().unwrap_or_else(PoisonError::into_inner);
    let same = versions.last().is_some_and(|last| {
        let rules = last.derived == version.derived && last.awake == version.awake;
        rules && last.weights == version.weights && last.ledger == version.ledger
    });
    if !same {
        versions.push(version);
    }
}
