//! What the route does beside the weights of our rule, as it is stored.

use super::RouteView;
use crate::render::detours::{PREFIX, SPLIT, mark_of};
use bitnet_core::{
    model::{HeaderMatch, Revision},
    observation::{Detour, Detours},
};
use serde_json::{Map, Value};

/// A route has at most this many rules.
const MOST_RULES: usize = 16;
/// Appended to the name of a derived rule that is not what it should be: such a rule is never asked for.
const ALTERED: char = '!';

/// The detours of a route, and the backends that its split is in.
pub(super) fn read(view: &RouteView) -> (Detours, Option<&Value>) {
    let none = Value::Null;
    let ours = view.rule().unwrap_or(&none);
    let derived = view.derived();
    let split = derived.iter().find(|(_, rule)| rule["name"] == format!("{PREFIX}{SPLIT}").as_str());
    let refs = split.map_or_else(|| view.backend_refs(), |(_, rule)| rule.get("backendRefs"));
    let mark = common_mark(refs);
    let mut rules: Vec<Detour> = derived
        .iter()
        .map(|(_, rule)| {
            let mut detour = detour(ours, rule);
            if common_mark(rule.get("backendRefs")) != mark {
                detour.name.push(ALTERED);
            }
            detour
        })
        .collect();
    // Where the split is apart, our rule gives everything to its first backend, unmarked.
    let aside =
        |(i, backend): (usize, &Value)| backend["weight"] == if i == 0 { 100 } else { 0 } && mark_of(backend).is_none();
    if split.is_some() && !list(view.backend_refs()).iter().enumerate().all(aside) {
        for rule in &mut rules {
            rule.name.push(ALTERED);
        }
    }
    (Detours { mark: mark.map(str::to_owned), rules }, refs)
}

/// Rules that could be added to the route.
pub(super) fn spare(view: &RouteView) -> u32 {
    MOST_RULES.saturating_sub(view.rules().len()) as u32
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The mark of all backends; where they differ, something that is never asked for.
fn common_mark(refs: Option<&Value>) -> Option<&str> {
    let mut marks = list(refs).iter().map(mark_of);
    let first = marks.next().flatten();
    if marks.all(|mark| mark == first) { first } else { Some("?") }
}

fn detour(ours: &Value, rule: &Value) -> Detour {
    let name = rule["name"].as_str().unwrap_or_default();
    let mut name = name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let headers = more_headers(ours, rule).filter(|_| rest(ours) == rest(rule));
    if headers.is_none() {
        name.push(ALTERED);
    }
    let to = match list(rule.get("backendRefs")) {
        [only] if only["weight"] == 100 => only["name"].as_str().map(|name| Revision(name.to_owned())),
        _ => None,
    };
    Detour { name, headers: headers.unwrap_or_default(), to }
}

/// Everything but what a derived rule has of its own.
fn rest(rule: &Value) -> Map<String, Value> {
    let mut rest = rule.as_object().cloned().unwrap_or_default();
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
