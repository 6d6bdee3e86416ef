//! What the route must do beside the weights: nothing, but in an A/B test and at a canary's step with a match. A pure function of the ledger and the weights
//! of a write, so that a lost status or an edit by hand is seen and put right.

use super::{
    RouteWrite,
    view::{Standing, View},
};
use crate::{
    model::{AbTest, HeaderMatch, Revision, Stickiness, Strategy},
    observation::{Detour, Detours, Ledger},
};

/// Name of the rule for the requests of a test that not all requests take part in.
const SPLIT: &str = "split";
/// Name of the rule for requests that go to the candidate for their headers.
const CHOSEN: &str = "candidate";
/// Name of the rule for users who stay with stable.
const STABLE: &str = "stable";
/// Version of the mark's form.
const FORM: u32 = 1;

/// The detours that belong to these weights under this ledger: what is awake, and what sleeps until a trial needs it.
fn wanted(view: &View<'_>, ledger: &Ledger, weights: &[(Revision, u32)]) -> Detours {
    if !derives(view) || view.standing_of(ledger) != Standing::Trial || fallen(ledger, view.model()) {
        return Detours::default();
    }
    let mut wanted = awake(view, ledger, weights);
    for name in names(view).into_iter().flatten() {
        if !wanted.rules.iter().any(|rule| rule.name == name) {
            wanted.rules.push(Detour::dormant(&name));
        }
    }
    wanted
}

/// The strategy asks for something beside weights at some time.
fn derives(view: &View<'_>) -> bool {
    match &view.rollout.strategy {
        Strategy::AbTest(_) => true,
        Strategy::Canary(_) => view.steps().iter().any(|s| !s.matches.is_empty()),
        Strategy::BlueGreen(_) => false,
    }
}

fn fallen(ledger: &Ledger, model: &Revision) -> bool {
    ledger.rollback_of.as_ref().is_some_and(|key| key.revision == *model)
}

fn awake(view: &View<'_>, ledger: &Ledger, weights: &[(Revision, u32)]) -> Detours {
    let model = view.model();
    let serving: Vec<&(Revision, u32)> = weights.iter().filter(|(_, weight)| *weight > 0).collect();
    let Some((stable, _)) = serving.iter().find(|(r, _)| r != model).filter(|_| serving.len() == 2) else {
        return Detours::default();
    };
    let weight = serving.iter().find(|(r, _)| r == model).map_or(0, |(_, weight)| *weight);
    match &view.rollout.strategy {
        Strategy::AbTest(test) => split(test, &view.rollout.uid, [stable, model], weight, ledger.attempt),
        Strategy::Canary(_) => {
            let step = view.step_at(weight).checked_sub(1).and_then(|i| view.steps().get(i));
            let headers = step.map(|s| s.matches.clone()).unwrap_or_default();
            let to = Some(model.clone());
            let rule = (!headers.is_empty()).then(|| Detour { name: CHOSEN.into(), headers, to, ..Detour::default() });
            Detours { mark: None, rules: rule.into_iter().collect() }
        }
        Strategy::BlueGreen(_) => Detours::default(),
    }
}

/// Names of the rules that a trial needs at some time, in their order; `None`: the route has no room for them.
fn names(view: &View<'_>) -> Option<Vec<String>> {
    let names: Vec<String> = match &view.rollout.strategy {
        // Whatever the arms and the weight are.
        Strategy::AbTest(test) => split(test, "", [view.model(); 2], 0, 0).rules.into_iter().map(|r| r.name).collect(),
        Strategy::Canary(_) if derives(view) => vec![CHOSEN.into()],
        Strategy::Canary(_) | Strategy::BlueGreen(_) => Vec::new(),
    };
    let there = |name: &str| view.route().is_some_and(|r| r.detours.rules.iter().any(|rule| rule.name == name));
    let more = names.iter().filter(|name| !there(name.as_str())).count();
    (more <= view.route()?.spare_rules as usize).then_some(names)
}

/// The detours of a write with these weights. Rules that the gateway does not know yet come asleep, rules that nothing
/// asks for any more go to sleep ([`crate::observation::DetourState`]), and none changes its place, because gateways name a rule's backends
/// by it.
pub(super) fn of_write(view: &View<'_>, ledger: &Ledger, weights: &[(Revision, u32)]) -> Detours {
    let Detours { mark, rules: wanted } = wanted(view, ledger, weights);
    let there = view.route().map(|r| r.detours.rules.as_slice()).unwrap_or_default();
    let known = there.iter().map(|old| {
        let same = wanted.iter().find(|rule| rule.name == old.name);
        same.cloned().unwrap_or_else(|| Detour::dormant(&old.name))
    });
    let new = wanted.iter().filter(|rule| !there.iter().any(|old| old.name == rule.name));
    let rules = known.chain(new.map(|rule| Detour::dormant(&rule.name))).collect();
    Detours { mark, rules }
}

/// Takes rules out of a write that sleep and that nothing asks for.
pub(super) fn without_leftovers(view: &View<'_>, write: &mut RouteWrite) {
    if let RouteWrite::Set { detours, ledger, backends, .. } = write {
        let wanted = wanted(view, ledger, backends);
        detours.rules.retain(|rule| wanted.rules.iter().any(|other| other.name == rule.name));
    }
}

/// The observed detours, those that belong to the observed weights.
fn both<'a>(view: &View<'a>) -> Option<(&'a Detours, Detours)> {
    let (route, ledger) = (view.route()?, view.ledger()?);
    if !derives(view) {
        return Some((&route.detours, Detours::default()));
    }
    Some((&route.detours, wanted(view, ledger, &view.backends())))
}

/// How the observed detours differ from those that belong to the observed weights, the least difference first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Not at all, or by rules that sleep.
    Kept,
    /// By rules that sleep and are to wake.
    Asleep,
    /// Otherwise.
    Lost,
}

/// Are the observed detours those that belong to the observed weights?
pub(super) fn order(view: &View<'_>) -> Order {
    let Some((there, wanted)) = both(view) else { return Order::Kept };
    let mut order = if there.mark == wanted.mark { Order::Kept } else { Order::Lost };
    for rule in &there.rules {
        order = order.max(match wanted.rules.iter().find(|other| other.name == rule.name) {
            Some(other) if other == rule => Order::Kept,
            Some(_) if rule.sleeps() => Order::Asleep,
            None if rule.sleeps() => Order::Kept,
            _ => Order::Lost,
        });
    }
    let missing = |rule: &Detour| !there.rules.iter().any(|other| other.name == rule.name);
    if wanted.rules.iter().any(missing) { Order::Lost } else { order }
}

/// Rules that sleep and that nothing asks for.
pub(super) fn leftovers(view: &View<'_>) -> bool {
    both(view).is_some_and(|(there, wanted)| {
        there.rules.iter().any(|rule| !wanted.rules.iter().any(|other| other.name == rule.name))
    })
}

fn split(test: &AbTest, uid: &str, [stable, model]: [&Revision; 2], weight: u32, attempt: u32) -> Detours {
    let (kind, name) = match &test.stickiness {
        Stickiness::Cookie(name) => ("cookie", name),
        Stickiness::Header(name) => ("header", name),
    };
    let seconds = test.duration().0 / 1000;
    let mark = format!("{FORM};{uid};{stable};{model};{weight};{attempt};{kind};{name};{seconds}");
    let mut rules = Vec::new();
    if !test.matches.is_empty() {
        rules.push(Detour { name: SPLIT.into(), headers: test.matches.clone(), ..Detour::default() });
    }
    if let Stickiness::Cookie(cookie) = &test.stickiness {
        for (name, to) in [(CHOSEN, model), (STABLE, stable)] {
            let headers = test.matches.iter().cloned().chain([carries(cookie, to)]).collect();
            rules.push(Detour { name: name.into(), headers, to: Some(to.clone()), ..Detour::default() });
        }
    }
    Detours { mark: Some(mark), rules }
}

/// The cookie that a worker of `revision` set, among others.
fn carries(cookie: &str, revision: &Revision) -> HeaderMatch {
    let value = format!("(.*[; ])?{cookie}={revision}~[0-9a-f]+(;.*)?");
    HeaderMatch { name: "Cookie".into(), value, regex: true }
}

/// Why the rules that a trial needs do not fit into the route; `None`: they do.
pub(super) fn no_room(view: &View<'_>) -> Option<&'static str> {
    let full = view.route().is_some() && names(view).is_none();
    full.then_some("the rules that it needs beside yours would not fit, an HTTPRoute has at most 16: remove some")
}
