//! What the route does beside the weights of our rule, as it is stored.

use super::RouteView;
use crate::render::detours::{DORMANT, PREFIX, SPLIT, mark_of, marked};
use bitnet_core::{
    model::{HeaderMatch, Revision},
    observation::{Detour, DetourState, Detours},
};
use serde_json::{Map, Value};

/// A route has at most this many rules.
const MOST_RULES: usize = 16;

/// The detours of a route, and the backends that its split is in.
pub(super) fn read(view: &RouteView) -> (Detours, Option<&Value>) {
    let none = Value::Null;
    let ours = view.rule().unwrap_or(&none);
    let derived = view.derived();
    let mut rules: Vec<Detour> = derived.iter().map(|(_, rule)| detour(ours, rule)).collect();
    let splits = |(detour, _): &(&Detour, &(usize, &Value))| detour.name == SPLIT && !detour.sleeps();
    let split = rules.iter().zip(&derived).find(splits).map(|(_, (_, rule))| *rule);
    // Where the split is apart, our rule gives everything to its first backend, unmarked.
    let aside = |(i, backend): (usize, &Value)| backend["weight"] == if i == 0 { 100 } else { 0 };
    let apart = mark_of(ours).is_none() && list(view.backend_refs()).iter().enumerate().all(aside);
    let mark = mark_of(split.unwrap_or(ours));
    for (detour, (_, rule)) in rules.iter_mut().zip(&derived) {
        if mark_of(rule) != mark || split.is_some() && !apart {
            detour.state = DetourState::Altered;
        }
    }
    let refs = split.map_or_else(|| view.backend_refs(), |rule| rule.get("backendRefs"));
    (Detours { mark: mark.map(str::to_owned), rules }, refs)
}

/// Rules that could be added to the route.
pub(super) fn spare(view: &RouteView) -> u32 {
    MOST_RULES.saturating_sub(view.rules().len()) as u32
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn detour(ours: &Value, rule: &Value) -> Detour {
    let name = rule["name"].as_str().unwrap_or_default();
    let name = name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let headers = more_headers(ours, rule).filter(|_| rest(ours) == rest(rule));
    let nobody = |header: &HeaderMatch| (header.name.as_str(), header.value.as_str()) == DORMANT;
    let to = match list(rule.get("backendRefs")) {
        [only] if only["weight"] == 100 => only["name"].as_str().map(|name| Revision(name.to_owned())),
        _ => None,
    };
    match headers {
        Some(headers) if headers.iter().any(nobody) => Detour::dormant(&name),
        Some(headers) => Detour { name, headers, to, state: DetourState::Awake },
        None => Detour { name, headers: Vec::new(), to, state: DetourState::Altered },
    }
}

/// Everything but what a derived rule has of its own.
fn rest(rule: &Value) -> Map<String, Value> {
    let mut rest = marked(rule.clone(), None).as_object().cloned().unwrap_or_default();
    for own in ["name", "matches", "backendRefs"] {
        rest.remove(own);
    }
    rest
}

/// The headers that every match of a derived rule has beside those of ours; `None` where the matches are others.
fn more_headers(ours: &Value, rule: &Value) -> Option<Vec<HeaderMatch>> {
    let (given, narrowed) = (list(ours.get("matches")), list(rule.get("matches")));
    if given.len() != narrowed.len() {
        return None;
    }
    let mut common: Option<Vec<HeaderMatch>> = None;
    for (given, narrowed) in given.iter().zip(narrowed) {
        let mut same = narrowed.as_object()?.clone();
        let mut wanted = given.as_object()?.clone();
        let headers = same.remove("headers")?;
        let theirs = wanted.remove("headers");
        let more = headers.as_array()?.strip_prefix(list(theirs.as_ref()))?;
        let more: Vec<HeaderMatch> = more.iter().map(header).collect();
        if same != wanted || common.as_ref().is_some_and(|common| *common != more) {
            return None;
        }
        common = Some(more);
    }
    common
}

fn header(header: &Value) -> HeaderMatch {
    let text = |field: &str| header[field].as_str().unwrap_or_default().to_owned();
    HeaderMatch { name: text("name"), value: text("value"), regex: header["type"] == "RegularExpression" }
}
