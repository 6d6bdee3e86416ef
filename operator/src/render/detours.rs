//! What a trial adds to a route: rules that are copies of ours but for their name, further headers and backends, and a
//! header that the gateway adds to the requests of an A/B test. Nothing of it stays when the trial has ended.
//!
//! The header is a filter of the rule, not of its backends: Envoy Gateway gives each backend of a rule that has backends
//! with filters a cluster of its own, so a filter that comes or goes there renames the cluster that carries all of the
//! traffic, and requests in between are lost.

use super::{Operations, http_route::backend_ref};
use crate::observe::RouteView;
use bitnet_api::worker::SPLIT_HEADER;
use bitnet_core::{
    model::{HeaderMatch, Revision},
    observation::{Detour, DetourState, Detours},
};
use serde_json::{Map, Value, json};

/// Names of derived rules begin with this.
pub(crate) const PREFIX: &str = "bitnet-";
/// Name of the detour that holds the split where not all requests take part.
pub(crate) const SPLIT: &str = "split";
/// A dormant rule wants this header with this value, which no request has. Where one has, it takes the way of our rule.
pub(crate) const DORMANT: (&str, &str) = ("x-bitnet-dormant", "no-request-has-this");

/// What our own rule says in a write: its backends (the split, or all of it to the first one where a derived rule holds
/// the split), and the mark.
struct Own<'a> {
    refs: Value,
    mark: Option<&'a str>,
}

fn own<'a>(existing: Option<&Value>, backends: &[(Revision, u32)], detours: &'a Detours) -> Own<'a> {
    let apart = detours.rules.iter().any(|rule| rule.name == SPLIT && rule.state == DetourState::Awake);
    let refs = backends.iter().enumerate().map(|(i, (revision, weight))| {
        let weight = match (apart, i) {
            (false, _) => *weight,
            (true, 0) => 100,
            (true, _) => 0,
        };
        backend_ref(existing, revision, weight)
    });
    Own { refs: refs.collect(), mark: detours.mark.as_deref().filter(|_| !apart) }
}

/// Our rule and those derived from it, as the write says.
pub(super) fn write(operations: &mut Operations, view: &RouteView, backends: &[(Revision, u32)], detours: &Detours) {
    let own = own(view.backend_refs(), backends, detours);
    operations.add(["spec", "rules", &view.index(), "backendRefs"], own.refs.clone());
    mark(operations, view, own.mark);
    let Some(ours) = view.rule() else { return };
    let rules = detours.rules.iter().map(|detour| match detour.state {
        DetourState::Dormant | DetourState::Altered => dormant(ours, detour, &own.refs, detours.mark.as_deref()),
        DetourState::Awake => derived(ours, detour, backends, detours.mark.as_deref()),
    });
    replace(operations, view, &rules.collect::<Vec<_>>());
}

/// Our rule without a mark, and no other rule.
pub(super) fn clear(operations: &mut Operations, view: &RouteView) {
    mark(operations, view, None);
    replace(operations, view, &[]);
}

/// The filters of our rule, with this mark.
fn mark(operations: &mut Operations, view: &RouteView, mark: Option<&str>) {
    let Some(rule) = view.rule() else { return };
    let marked = marked(rule.clone(), mark);
    let path = ["spec", "rules", &view.index(), "filters"];
    match (rule.get("filters"), marked.get("filters")) {
        (old, Some(new)) if old != Some(new) => operations.add(path, new.clone()),
        (Some(_), None) => operations.remove(path),
        _ => {}
    }
}

fn derived(ours: &Value, detour: &Detour, backends: &[(Revision, u32)], mark: Option<&str>) -> Value {
    let existing = ours.get("backendRefs");
    let refs: Vec<Value> = match &detour.to {
        Some(revision) => vec![backend_ref(existing, revision, 100)],
        None => backends.iter().map(|(revision, weight)| backend_ref(existing, revision, *weight)).collect(),
    };
    copy(ours, detour, &detour.headers, Value::Array(refs), mark)
}

fn dormant(ours: &Value, detour: &Detour, refs: &Value, mark: Option<&str>) -> Value {
    let (name, value) = DORMANT;
    let nobody = HeaderMatch { name: name.into(), value: value.into(), regex: false };
    copy(ours, detour, &[nobody], refs.clone(), mark)
}

fn copy(ours: &Value, detour: &Detour, headers: &[HeaderMatch], refs: Value, mark: Option<&str>) -> Value {
    let mut rule = ours.as_object().cloned().unwrap_or_default();
    rule.insert("name".into(), json!(format!("{PREFIX}{}", detour.name)));
    rule.insert("matches".into(), narrowed(ours.get("matches"), headers));
    rule.insert("backendRefs".into(), refs);
    marked(Value::Object(rule), mark)
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

/// A rule whose requests the gateway marks, or none of whose requests it marks any more. Other filters stay.
pub(crate) fn marked(mut rule: Value, mark: Option<&str>) -> Value {
    let Some(object) = rule.as_object_mut() else { return rule };
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
    rule
}

fn is_mark(header: &Value) -> bool {
    header["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(SPLIT_HEADER))
}

/// The mark of a rule.
pub(crate) fn mark_of(rule: &Value) -> Option<&str> {
    let filters = rule["filters"].as_array()?;
    let headers = filters.iter().filter_map(|filter| filter["requestHeaderModifier"]["set"].as_array()).flatten();
    headers.filter(|header| is_mark(header)).find_map(|header| header["value"].as_str())
}

/// Puts `wanted` in the place of the derived rules that the route has, each in its place: gateways name the backends of a
/// rule by its number.
fn replace(operations: &mut Operations, view: &RouteView, wanted: &[Value]) {
    let stored = view.derived();
    let kept = stored.len().min(wanted.len());
    for ((index, old), new) in stored.iter().zip(wanted).filter(|((_, old), new)| old != new) {
        let index = index.to_string();
        operations.test(["spec", "rules", &index, "name"], old["name"].clone());
        operations.replace(["spec", "rules", &index], new.clone());
    }
    // From the last to the first: an index must not move before it is used.
    for (index, rule) in stored[kept..].iter().rev() {
        let index = index.to_string();
        operations.test(["spec", "rules", &index, "name"], rule["name"].clone());
        operations.remove(["spec", "rules", &index]);
    }
    for rule in &wanted[kept..] {
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
        let bare = json!({"name": "completions", "backendRefs": []});
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
