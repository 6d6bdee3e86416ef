//! What an A/B test adds to a route: rules that are copies of ours but for their name, further headers and backends, and a
//! header that the gateway adds to the requests of the test. Nothing of it stays when the test ends.

use super::{Operations, http_route::backend_ref};
use crate::observe::RouteView;
use bitnet_api::worker::SPLIT_HEADER;
use bitnet_core::{
    model::{HeaderMatch, Revision},
    observation::{Detour, Detours},
};
use serde_json::{Map, Value, json};

/// Names of derived rules begin with this.
pub(crate) const PREFIX: &str = "bitnet-";
/// Name of the detour that holds the split where not all requests take part.
pub(crate) const SPLIT: &str = "split";

/// Backends of our own rule: the split, or all of it to the first backend where a derived rule holds the split.
pub(super) fn own_refs(existing: Option<&Value>, backends: &[(Revision, u32)], detours: &Detours) -> Value {
    let apart = detours.rules.iter().any(|rule| rule.name == SPLIT);
    let mark = detours.mark.as_deref().filter(|_| !apart);
    let refs = backends.iter().enumerate().map(|(i, (revision, weight))| {
        let weight = match (apart, i) {
            (false, _) => *weight,
            (true, 0) => 100,
            (true, _) => 0,
        };
        marked(backend_ref(existing, revision, weight), mark)
    });
    refs.collect()
}

/// The derived rules of a write, whole.
pub(super) fn rules(view: &RouteView, backends: &[(Revision, u32)], detours: &Detours) -> Vec<Value> {
    let Some(ours) = view.rule() else { return Vec::new() };
    detours.rules.iter().map(|detour| derived(ours, detour, backends, detours.mark.as_deref())).collect()
}

fn derived(ours: &Value, detour: &Detour, backends: &[(Revision, u32)], mark: Option<&str>) -> Value {
    let existing = ours.get("backendRefs");
    let refs: Vec<Value> = match &detour.to {
        Some(revision) => vec![marked(backend_ref(existing, revision, 100), mark)],
        None => backends.iter().map(|(r, weight)| marked(backend_ref(existing, r, *weight), mark)).collect(),
    };
    let mut rule = ours.as_object().cloned().unwrap_or_default();
    rule.insert("name".into(), json!(format!("{PREFIX}{}", detour.name)));
    rule.insert("matches".into(), narrowed(ours.get("matches"), &detour.headers));
    rule.insert("backendRefs".into(), Value::Array(refs));
    Value::Object(rule)
}

/// Each match of the rule, with further headers; a rule without matches meets every request.
fn narrowed(matches: Option<&Value>, headers: &[HeaderMatch]) -> Value {
    let more = headers.iter().map(|header| {
        let kind = if header.regex { "RegularExpression" } else { "Exact" };
        json!({"type": kind, "name": header.name, "value": header.value})
    });
    let all = json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
    let given = matches.and_then(Value::as_array).filter(|given| !given.is_empty());
    let given = given.or(all.as_array()).cloned().unwrap_or_default();
    let with = |mut found: Value| {
        let mut headers = found["headers"].as_array().cloned().unwrap_or_default();
        headers.extend(more.clone());
        found["headers"] = Value::Array(headers);
        found
    };
    given.into_iter().map(with).collect()
}

/// A backend whose requests the gateway marks, or none of whose requests it marks any more. Other filters stay.
pub(super) fn marked(mut backend: Value, mark: Option<&str>) -> Value {
    let Some(object) = backend.as_object_mut() else { return backend };
    let mut filters = object.get("filters").and_then(Value::as_array).cloned().unwrap_or_default();
    for filter in filters.iter_mut().filter(|filter| filter["type"] == "RequestHeaderModifier") {
        let Some(change) = filter.get_mut("requestHeaderModifier").and_then(Value::as_object_mut) else { continue };
        if let Some(set) = change.get_mut("set").and_then(Value::as_array_mut) {
            set.retain(|header| !is_mark(header));
            if set.is_empty() {
                change.remove("set");
            }
        }
    }
    let empty = |filter: &Value| filter["requestHeaderModifier"].as_object().is_some_and(Map::is_empty);
    filters.retain(|filter| filter["type"] != "RequestHeaderModifier" || !empty(filter));
    if let Some(mark) = mark {
        let header = json!({"name": SPLIT_HEADER, "value": mark});
        match filters.iter_mut().find(|filter| filter["type"] == "RequestHeaderModifier") {
            Some(filter) => {
                let mut set = filter["requestHeaderModifier"]["set"].as_array().cloned().unwrap_or_default();
                set.push(header);
                filter["requestHeaderModifier"]["set"] = Value::Array(set);
            }
            None => filters.push(json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [header]}})),
        }
    }
    if filters.is_empty() {
        object.remove("filters");
    } else {
        object.insert("filters".into(), Value::Array(filters));
    }
    backend
}

fn is_mark(header: &Value) -> bool {
    header["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(SPLIT_HEADER))
}

/// The mark of a backend.
pub(crate) fn mark_of(backend: &Value) -> Option<&str> {
    let filters = backend["filters"].as_array()?;
    let headers = filters.iter().filter_map(|filter| filter["requestHeaderModifier"]["set"].as_array()).flatten();
    headers.filter(|header| is_mark(header)).find_map(|header| header["value"].as_str())
}

/// Puts `wanted` in the place of the derived rules that the route has; nothing where they are these already.
pub(super) fn replace(operations: &mut Operations, view: &RouteView, wanted: &[Value]) {
    let stored = view.derived();
    if stored.iter().map(|(_, rule)| *rule).eq(wanted) {
        return;
    }
    // From the last to the first: an index must not move before it is used.
    for (index, rule) in stored.iter().rev() {
        let index = index.to_string();
        operations.test(["spec", "rules", &index, "name"], rule["name"].clone());
        operations.remove(["spec", "rules", &index]);
    }
    for rule in wanted {
        operations.add(["spec", "rules", "-"], rule.clone());
    }
}

/// Names of rules, as the annotation keeps them; `None` for none.
pub(super) fn names(detours: &Detours) -> Option<String> {
    let names: Vec<String> = detours.rules.iter().map(|rule| format!("{PREFIX}{}", rule.name)).collect();
    (!names.is_empty()).then(|| names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_and_goes_without_a_trace() {
        let bare = json!({"name": "chat-a", "port": 8080, "weight": 1});
        let theirs =
            json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": "y"}]}});
        let mirror = json!({"type": "RequestMirror"});
        for filters in [json!(null), json!([mirror]), json!([theirs, mirror])] {
            let mut before = bare.clone();
            if !filters.is_null() {
                before["filters"] = filters;
            }
            let during = marked(before.clone(), Some("1;u"));
            assert_eq!(mark_of(&during), Some("1;u"));
            let modifiers = during["filters"].as_array().unwrap().iter();
            assert_eq!(modifiers.filter(|f| f["type"] == "RequestHeaderModifier").count(), 1, "one is allowed");
            assert_eq!(mark_of(&marked(during.clone(), Some("2"))), Some("2"));
            assert_eq!(marked(during, None), before);
        }
    }
}
