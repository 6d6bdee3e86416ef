//! What the route must do beside the weights: nothing, but in an A/B test and at a canary's step with a match. A pure function of the ledger and the weights
//! of a write, so that a lost status or an edit by hand is seen and put right.

use super::view::View;
use crate::{
    model::{AbTest, HeaderMatch, Revision, Stickiness, Strategy},
    observation::{Detour, Detours, Ledger},
};

/// Name of the rule for requests that go to the candidate for their headers.
const CHOSEN: &str = "candidate";
/// Version of the mark's form.
const FORM: u32 = 1;

/// The detours that belong to these weights under this ledger.
pub(super) fn wanted(view: &View<'_>, ledger: &Ledger, weights: &[(Revision, u32)]) -> Detours {
    let model = view.model();
    let on_trial = ledger.candidate.as_ref() == Some(model) && ledger.stable != *model;
    let fallen = ledger.rollback_of.as_ref().is_some_and(|key| key.revision == *model);
    let serving: Vec<&(Revision, u32)> = weights.iter().filter(|(_, weight)| *weight > 0).collect();
    let other = serving.iter().find(|(r, _)| r != model);
    match (&view.rollout.strategy, other) {
        (Strategy::AbTest(test), Some((stable, _))) if on_trial && !fallen && serving.len() == 2 => {
            let weight = serving.iter().find(|(r, _)| r == model).map_or(0, |(_, weight)| *weight);
            split(test, &view.rollout.uid, [stable, model], weight, ledger.attempt)
        }
        (Strategy::Canary(_), Some(_)) if on_trial && !fallen && serving.len() == 2 => {
            let weight = serving.iter().find(|(r, _)| r == model).map_or(0, |(_, weight)| *weight);
            let step = view.step_at(weight).checked_sub(1).and_then(|i| view.steps().get(i));
            let headers = step.map(|s| s.matches.clone()).unwrap_or_default();
            let rule = (!headers.is_empty()).then(|| Detour { name: CHOSEN.into(), headers, to: Some(model.clone()) });
            Detours { mark: None, rules: rule.into_iter().collect() }
        }
        _ => Detours::default(),
    }
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
        rules.push(Detour { name: "split".into(), headers: test.matches.clone(), to: None });
    }
    if let Stickiness::Cookie(cookie) = &test.stickiness {
        for (name, to) in [(CHOSEN, model), ("stable", stable)] {
            let headers = test.matches.iter().cloned().chain([carries(cookie, to)]).collect();
            rules.push(Detour { name: name.into(), headers, to: Some(to.clone()) });
        }
    }
    Detours { mark: Some(mark), rules }
}

/// The cookie that a worker of `revision` set, among others.
fn carries(cookie: &str, revision: &Revision) -> HeaderMatch {
    let value = format!("(.*[; ])?{cookie}={revision}~[0-9a-f]+(;.*)?");
    HeaderMatch { name: "Cookie".into(), value, regex: true }
}

/// The observed detours are those that belong to the observed weights.
pub(super) fn in_order(view: &View<'_>) -> bool {
    let (Some(route), Some(ledger)) = (view.route(), view.ledger()) else { return true };
    let weights: Vec<(Revision, u32)> = route.backends.iter().map(|b| (Revision(b.name.clone()), b.weight)).collect();
    route.detours == wanted(view, ledger, &weights)
}

/// Rules that an A/B test needs.
pub(super) fn needed(view: &View<'_>, test: &AbTest) -> usize {
    split(test, "", [view.model(), view.model()], 1, 1).rules.len()
}

/// Why so many rules beside the user's do not fit into the route; `None`: they do.
pub(super) fn no_room(view: &View<'_>, needed: usize) -> Option<String> {
    let route = view.route()?;
    let room = route.spare_rules as usize + route.detours.rules.len();
    (needed > room).then(|| {
        let rules = if needed == 1 { "1 rule".to_owned() } else { format!("{needed} rules") };
        format!("{rules} beside yours would not fit, an HTTPRoute has at most 16: remove some")
    })
}
