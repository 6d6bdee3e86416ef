//! The HTTPRoute: its rule, its weights, and the ledger in its annotations.

use super::detours;
use crate::render::{Compact, labels::MANAGED_BY, owned_by};
use bitnet_api::keys::{label, route as key};
use bitnet_core::{
    model::{LatchKey, Revision, Rollout, RouteTarget},
    observation::{Backend, Ledger, Preview, Route, RouteState},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};

/// Another rollout of the namespace, as far as the question goes who may have a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// It came first.
    pub older: bool,
    /// The HTTPRoute that it names.
    pub route: String,
}

/// The route as it was read, raw: fields that our types do not know stay in it.
#[derive(Clone, Debug, Default)]
pub struct RouteView {
    object: Option<DynamicObject>,
    rule: usize,
}

static NO_META: LazyLock<ObjectMeta> = LazyLock::new(ObjectMeta::default);

impl RouteView {
    /// The object with the index of our rule.
    pub fn new(object: Option<DynamicObject>, rule: usize) -> Self {
        Self { object, rule }
    }

    /// A route with a ledger: its rule is the one that the ledger names, else the first.
    pub fn managed(object: DynamicObject) -> Self {
        let name = object.metadata.annotations.as_ref().and_then(|all| all.get(key::RULE));
        let rules = object.data["spec"]["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
        let named = name.and_then(|name| rules.iter().position(|rule| rule["name"] == name.as_str()));
        let first = || rules.iter().position(|rule| !is_derived(&object.metadata, rule));
        let rule = named.or_else(first).unwrap_or(0);
        Self::new(Some(object), rule)
    }

    /// Its metadata; empty where there is no route.
    pub fn meta(&self) -> &ObjectMeta {
        self.object.as_ref().map_or(&NO_META, |object| &object.metadata)
    }

    /// Index of our rule, as a token of a JSON pointer.
    pub fn index(&self) -> String {
        self.rule.to_string()
    }

    /// Same rule, other version of the object.
    #[must_use]
    pub fn with(&self, object: DynamicObject) -> Self {
        Self { object: Some(object), rule: self.rule }
    }

    /// Our rule, raw.
    pub(crate) fn rule(&self) -> Option<&Value> {
        self.rules().get(self.rule)
    }

    /// All rules, raw.
    pub(crate) fn rules(&self) -> &[Value] {
        let rules = self.object.as_ref().map(|object| &object.data["spec"]["rules"]);
        rules.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// The rules that were derived from ours, with their indices.
    pub(crate) fn derived(&self) -> Vec<(usize, &Value)> {
        let meta = self.meta();
        self.rules().iter().enumerate().filter(|(_, rule)| is_derived(meta, rule)).collect()
    }

    /// Name of our rule, if it has one.
    pub fn rule_name(&self) -> Option<&str> {
        self.rule()?.get("name")?.as_str()
    }

    /// Backends of our rule, raw.
    pub fn backend_refs(&self) -> Option<&Value> {
        self.rule()?.get("backendRefs")
    }

    /// Its parents, raw.
    pub fn parents(&self) -> Option<&Value> {
        self.object.as_ref()?.data.get("spec")?.get("parentRefs")
    }

    /// Who runs the Gateways that have answered about this route.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let parents = self.object.as_ref().map(|object| &object.data["status"]["parents"]);
        let parents = parents.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        parents.iter().filter_map(|parent| parent["controllerName"].as_str().map(str::to_owned)).collect()
    }

    /// Weights by backend, as they are stored; a missing weight is 1. Those of the split, where a derived rule holds it.
    pub fn weights(&self) -> BTreeMap<String, i32> {
        let mut weights = BTreeMap::new();
        for backend in backends(detours::read(self).1) {
            *weights.entry(backend.name).or_default() += backend.weight as i32;
        }
        weights
    }

    /// The original backends that adoption kept: names of Services of this namespace, `None` for anything else.
    pub fn originals(&self) -> Option<Vec<Option<String>>> {
        let text = self.meta().annotations.as_ref()?.get(key::ORIGINALS)?;
        let refs: Value = serde_json::from_str(text).ok()?;
        let namespace = self.meta().namespace.as_deref();
        let name = |backend: &Value| {
            let here = backend["namespace"].as_str().is_none_or(|other| Some(other) == namespace);
            let service = backend["kind"].as_str().is_none_or(|kind| kind == "Service")
                && backend["group"].as_str().is_none_or(str::is_empty);
            backend["name"].as_str().filter(|_| here && service).map(str::to_owned)
        };
        Some(refs.as_array().map(|refs| refs.iter().map(name).collect()).unwrap_or_default())
    }
}

/// The ledger names this rule as one that was derived from ours.
fn is_derived(meta: &ObjectMeta, rule: &Value) -> bool {
    let names = meta.annotations.as_ref().and_then(|all| all.get(key::DERIVED_RULES));
    let name = rule["name"].as_str();
    names.is_some_and(|names| names.split(',').any(|derived| Some(derived) == name))
}

/// What the route says, given the other rollouts of the namespace.
pub(super) fn read(rollout: &Rollout, object: Option<DynamicObject>, rivals: &[Rival]) -> (RouteState, RouteView) {
    let Some(object) = object else {
        return match older_claim(rollout, rivals) {
            Some(name) => (RouteState::InUse(name), RouteView::default()),
            None => (RouteState::Missing, RouteView::default()),
        };
    };
    let empty = BTreeMap::new();
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&empty);
    let holder = annotations.get(key::ROLLOUT).and_then(|text| text.split_once('/'));
    let ours = holder.is_some_and(|(_, uid)| uid == rollout.uid);
    let in_use = match holder {
        Some((name, uid)) if !ours => rivals.iter().any(|rival| rival.uid == uid).then(|| name.to_owned()),
        Some(_) => None,
        None => older_claim(rollout, rivals),
    };
    let owned = owned(rollout, &object.metadata);
    let rule = rule_index(rollout, &object);
    let index = *rule.as_ref().unwrap_or(&0);
    let view = RouteView::new(Some(object), index);
    if let Some(name) = in_use {
        return (RouteState::InUse(name), view);
    }
    if let Err(reason) = rule {
        return (RouteState::RuleMissing(reason), view);
    }
    let ledger = if ours {
        match ledger(&rollout.uid, view.meta().annotations.as_ref().unwrap_or(&empty)) {
            Ok(ledger) => Some(ledger),
            Err(field) => {
                let reason = format!(
                    "annotation {field} of the HTTPRoute is damaged: put it back, or remove all annotations rollouts.bitnet.dev/* to begin again"
                );
                return (RouteState::RuleMissing(reason), view);
            }
        }
    } else {
        None
    };
    let (detours, split) = detours::read(&view);
    let acceptance = view.object.as_ref().map_or_else(|| Err(String::new()), acceptance);
    let route = Route {
        uid: view.meta().uid.clone().unwrap_or_default(),
        resource_version: view.meta().resource_version.clone().unwrap_or_default(),
        accepted: acceptance.is_ok(),
        acceptance_message: acceptance.err().unwrap_or_default(),
        backends: backends(split),
        detours,
        spare_rules: detours::spare(&view),
        ledger,
        owned,
        originals_ready: None,
    };
    (RouteState::Found(route), view)
}

/// The preview route as core sees it.
pub(super) fn preview(rollout: &Rollout, object: Option<&DynamicObject>) -> Preview {
    let Some(object) = object else { return Preview::Missing };
    if !owned_by(&object.metadata, &rollout.uid) {
        return Preview::Foreign;
    }
    let spec = &object.data["spec"];
    let texts = |list: &Value, of: fn(&Value) -> &Value| -> Vec<String> {
        let all = list.as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().map(|item| of(item).as_str().unwrap_or_default().to_owned()).collect()
    };
    Preview::Ours {
        hosts: texts(&spec["hostnames"], |host| host),
        backends: texts(&spec["rules"][0]["backendRefs"], |backend| &backend["name"]),
    }
}

/// The route was created by this rollout, or by one of its name that was let go: then nobody owns it.
fn owned(rollout: &Rollout, meta: &ObjectMeta) -> bool {
    let label = |key| meta.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let left = matches!(rollout.route, RouteTarget::Own { .. })
        && meta.owner_references.as_deref().unwrap_or_default().is_empty()
        && label(label::ROLLOUT) == Some(rollout.name.as_str())
        && label("app.kubernetes.io/managed-by") == Some(MANAGED_BY);
    left || owned_by(meta, &rollout.uid)
}

/// An older rollout names the same route and nobody holds it yet.
fn older_claim(rollout: &Rollout, rivals: &[Rival]) -> Option<String> {
    let route = rollout.route.route_name(&rollout.name);
    rivals.iter().find(|rival| rival.older && rival.route == route).map(|rival| rival.name.clone())
}

fn rule_index(rollout: &Rollout, object: &DynamicObject) -> Result<usize, String> {
    let none = Vec::new();
    let rules = object.data["spec"]["rules"].as_array().unwrap_or(&none);
    let mut theirs = (0..rules.len()).filter(|i| !is_derived(&object.metadata, &rules[*i]));
    match &rollout.route {
        RouteTarget::Own { .. } => theirs.next().ok_or_else(|| "the HTTPRoute has no rule".into()),
        RouteTarget::Adopt { rule: Some(name), .. } => {
            let position = rules.iter().position(|rule| rule["name"] == name.as_str());
            position.ok_or_else(|| format!("the HTTPRoute has no rule named {name}: name one in spec.rules[].name"))
        }
        RouteTarget::Adopt { rule: None, .. } => match (theirs.next(), theirs.count()) {
            (Some(only), 0) => Ok(only),
            (first, more) => {
                let all = usize::from(first.is_some()) + more;
                Err(format!("the HTTPRoute has {all} rules: say which one with spec.route.rule"))
            }
        },
    }
}

fn backends(refs: Option<&Value>) -> Vec<Backend> {
    let refs = refs.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    refs.iter()
        .map(|backend| Backend {
            name: backend["name"].as_str().unwrap_or_default().to_owned(),
            weight: backend["weight"].as_u64().map_or(1, |weight| u32::try_from(weight).unwrap_or(u32::MAX)),
        })
        .collect()
}

/// Reads the ledger; the annotation that is damaged as the error.
fn ledger(uid: &str, annotations: &BTreeMap<String, String>) -> Result<Ledger, &'static str> {
    fn number<T: std::str::FromStr>(all: &BTreeMap<String, String>, key: &'static str) -> Result<T, &'static str> {
        all.get(key).and_then(|text| text.parse().ok()).ok_or(key)
    }
    let revision = |key| annotations.get(key).filter(|text| !text.is_empty()).map(|text| Revision(text.clone()));
    Ok(Ledger {
        uid: uid.to_owned(),
        stable: revision(key::STABLE).ok_or(key::STABLE)?,
        candidate: revision(key::CANDIDATE),
        attempt: number(annotations, key::ATTEMPT)?,
        step: number(annotations, key::STEP)?,
        epoch: number(annotations, key::EPOCH)?,
        rollback_of: annotations
            .get(key::ROLLBACK_OF)
            .map(|text| LatchKey::parse(text).ok_or(key::ROLLBACK_OF))
            .transpose()?,
        // A damaged record costs the record, not the rollout: pointers and latch are in annotations of their own.
        decision: annotations.get(key::DECISION).and_then(|text| Compact::stored(text)),
    })
}

/// Every parent says `Accepted` and `ResolvedRefs` about the current generation; else what is missing.
fn acceptance(object: &DynamicObject) -> Result<(), String> {
    let generation = object.metadata.generation.unwrap_or(0);
    let none = Vec::new();
    let wanted = object.data["spec"]["parentRefs"].as_array().unwrap_or(&none);
    let parents = object.data["status"]["parents"].as_array().unwrap_or(&none);
    if wanted.is_empty() {
        return Err("the HTTPRoute has no parentRefs".into());
    }
    for reference in wanted {
        let name = reference["name"].as_str().unwrap_or_default();
        let mut said = parents.iter().filter(|parent| same_parent(reference, &parent["parentRef"])).peekable();
        if said.peek().is_none() {
            return Err(format!("Gateway {name} has not answered"));
        }
        for parent in said {
            for type_ in ["Accepted", "ResolvedRefs"] {
                condition(parent, type_, generation).map_err(|reason| format!("Gateway {name}: {reason}"))?;
            }
        }
    }
    Ok(())
}

fn condition(parent: &Value, type_: &str, generation: i64) -> Result<(), String> {
    let conditions = parent["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(found) = conditions.iter().find(|condition| condition["type"] == type_) else {
        return Err(format!("{type_} is not reported"));
    };
    if found["observedGeneration"].as_i64().unwrap_or(0) < generation {
        return Err(format!("{type_} is about an older version of the route"));
    }
    if found["status"] == "True" {
        return Ok(());
    }
    Err(format!(
        "{type_} is {}: {}",
        found["status"].as_str().unwrap_or("?"),
        found["message"].as_str().unwrap_or_default()
    ))
}

/// The same parent, with defaults filled in.
fn same_parent(a: &Value, b: &Value) -> bool {
    let field = |value: &Value, name: &str, default: &str| value[name].as_str().unwrap_or(default).to_owned();
    ["name", "sectionName"].iter().all(|name| field(a, name, "") == field(b, name, ""))
        && field(a, "kind", "Gateway") == field(b, "kind", "Gateway")
        && a["port"] == b["port"]
        && match (a["namespace"].as_str(), b["namespace"].as_str()) {
            (Some(left), Some(right)) => left == right,
            // One side may spell the route's own namespace out.
            _ => true,
        }
}

#[cfg(test)]
mod tests;
