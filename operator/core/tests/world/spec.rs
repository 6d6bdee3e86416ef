//! A rollout with the demo's gate, and short names for its revisions.

use bitnet_core::{
    Span,
    evidence::{Gate, ProbeSettings, ab::AbMetric, guard::GuardSettings},
    model::{
        AbTest, BlueGreen, Canary, CanaryStep, Capacity, DeletionPolicy, GuardRule, HeaderMatch, OnEnd, Pace, Revision,
        Rollout, RouteTarget, Serving, Settings, Source, Stickiness, Strategy,
    },
};

pub(crate) fn gate() -> Gate {
    Gate {
        name: "chat".into(),
        probes: ProbeSettings {
            config_map: "chat-probes".into(),
            max_tokens: 16,
            positions: 8,
            ..ProbeSettings::default()
        },
        preflight: 48,
        interval: Span::seconds(2),
        warmup: Span::seconds(10),
        max_ratio: 1.5,
        max_excess: 0.02,
        deadline: Span::seconds(600),
        ..Gate::default()
    }
}

pub(crate) fn revision(name: &str) -> Revision {
    Revision(format!("chat-{name:x<10}"))
}

pub(crate) fn short(name: &str) -> &str {
    name.strip_prefix("chat-").unwrap_or(name).trim_end_matches('x')
}

pub(crate) fn serving(name: &str, precision: &str, replicas: u32) -> Serving {
    Serving {
        revision: revision(name),
        source: Source::Image(format!("registry.example/{name}@sha256:00")),
        precision: precision.into(),
        pool: "cpu".into(),
        replicas,
        settings: Settings::default(),
    }
}

pub(crate) fn rollout() -> Rollout {
    Rollout {
        namespace: "team".into(),
        name: "chat".into(),
        uid: "5c1f7f0e-0000-4000-8000-000000000001".into(),
        generation: 1,
        deleting: false,
        paused: false,
        baseline: serving("fp", "fp16", 3),
        model: serving("fp", "fp16", 3),
        route: RouteTarget::Adopt { http_route: "chat".into(), rule: None },
        strategy: canary("5:20,10:20,20:20,50:20"),
        gate: gate(),
        guard: None,
        scale_down_delay: Span::seconds(15),
        progress_deadline: Span::seconds(120),
        capacity: Capacity::Surge,
        deletion_policy: DeletionPolicy::Delete,
        load_balancing: None,
    }
}

/// A canary that is paced by time.
pub(crate) fn canary(text: &str) -> Strategy {
    Strategy::Canary(Canary { steps: steps(text), pace: Pace::Time })
}

/// A canary that is paced by evidence.
pub(crate) fn by_evidence(text: &str) -> Strategy {
    Strategy::Canary(Canary { steps: steps(text), pace: Pace::Evidence })
}

pub(crate) fn blue_green(auto_promote: bool, preview_host: Option<&str>) -> Strategy {
    Strategy::BlueGreen(BlueGreen { auto_promote, preview_host: preview_host.map(str::to_owned) })
}

/// A guard that looks every so many seconds, with the gate's margins.
pub(crate) fn guard(seconds: i64) -> Option<GuardRule> {
    (seconds > 0).then(|| GuardRule { interval: Span::seconds(seconds), settings: GuardSettings::of(&gate()) })
}

/// An A/B test: `weight:seconds`, and words: `promote`, `header`, `match`, `nometric`.
pub(crate) fn ab_test(split: &str, words: &[&str]) -> Strategy {
    let has = |word: &str| words.contains(&word);
    let split: [CanaryStep; 1] = steps(split).try_into().unwrap();
    Strategy::AbTest(AbTest {
        split,
        matches: if has("match") { vec![beta()] } else { Vec::new() },
        stickiness: if has("header") {
            Stickiness::Header("x-user-id".into())
        } else {
            Stickiness::Cookie("bitnet-arm".into())
        },
        metric: (!has("nometric")).then_some(AbMetric::Conversion),
        on_end: if has("promote") { OnEnd::Promote } else { OnEnd::Report },
    })
}

/// `weight:seconds` and further words, comma-separated: `pause`, `pods=N`, `match` (the header `x-beta: yes`).
pub(crate) fn steps(text: &str) -> Vec<CanaryStep> {
    let step = |s: &str| {
        let mut parts = s.split(':');
        let weight = parts.next().unwrap().parse().unwrap();
        let mut step = CanaryStep::plain(weight, Span::seconds(parts.next().unwrap().parse().unwrap()));
        for word in parts {
            match word.split_once('=').unwrap_or((word, "")) {
                ("pause", _) => step.pause = true,
                ("pods", n) => step.replicas = Some(n.parse().unwrap()),
                ("match", _) => step.matches = vec![beta()],
                other => panic!("no word {other:?} of a step"),
            }
        }
        step
    };
    text.split(',').map(step).collect()
}

fn beta() -> HeaderMatch {
    HeaderMatch { name: "x-beta".into(), value: "yes".into(), regex: false }
}
