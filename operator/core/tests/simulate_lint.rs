//! Gates that cannot decide are found before a rollout.

#[path = "../examples/montecarlo/gates.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod gates;

use bitnet_core::{
    Span,
    evidence::{Gate, OnNoTraffic},
    simulate::{
        Course, Step,
        lint::{Setting, Severity, lint},
    },
};
use gates::{default_gate, default_steps, steps};

const SETTING: Setting = Setting {
    rate: 20.0,
    errors: 0.002,
    cosine: (0.965, 0.025),
    tail: 0.01,
    pair_noise: 0.2,
    pod_spread: 0.02,
    pods: (3, 3),
};

/// Fields of what cannot be decided, and of what is weak.
fn fields(gate: &Gate, steps: &[Step], setting: Setting) -> (Vec<&'static str>, Vec<&'static str>) {
    let found = lint(gate, &Course::by_time(steps), &setting);
    assert!(found.iter().all(|f| !f.rule.is_empty() && !f.remedy.is_empty()));
    let of = |severity| found.iter().filter(|f| f.severity == severity).map(|f| f.field).collect();
    (of(Severity::CannotDecide), of(Severity::Weak))
}

#[test]
fn the_default_gate_decides_at_20_requests_a_second() {
    assert_eq!(fields(&default_gate(), &default_steps(), SETTING), (vec![], vec![]));
}

#[test]
fn each_thing_that_keeps_a_gate_from_deciding_is_named() {
    let gate = default_gate;
    let cases: [(Gate, Vec<Step>, Setting, &str); 9] = [
        (gate(), default_steps(), Setting { rate: 1.0, ..SETTING }, "signals.errors.maxExcess"),
        (gate(), steps(&[5, 50], 1800), SETTING, "deadline"),
        (gate(), steps(&[5, 20], 300), SETTING, "spec.strategy.canary.steps"),
        (gate(), default_steps(), Setting { cosine: (0.951, 0.05), ..SETTING }, "signals.cosine.minMean"),
        (gate(), default_steps(), Setting { cosine: (0.94, 0.05), ..SETTING }, "signals.cosine.minMean"),
        (gate(), default_steps(), Setting { tail: 0.06, ..SETTING }, "signals.cosine.tail"),
        (Gate { max_ratio: 1.01, ..gate() }, default_steps(), SETTING, "signals.latency.maxRatio"),
        (Gate { min_samples: 5000, ..gate() }, default_steps(), SETTING, "minSamples"),
        (
            Gate { on_no_traffic: OnNoTraffic::Hold, ..gate() },
            default_steps(),
            Setting { rate: 0.0, ..SETTING },
            "onNoTraffic",
        ),
    ];
    for (gate, steps, setting, field) in cases {
        let (cannot, _) = fields(&gate, &steps, setting);
        assert!(cannot.contains(&field), "{field}: {cannot:?}");
    }
    let p99 = bitnet_core::evidence::Percentiles { body: true, p95: true, p99: true };
    let (cannot, _) =
        fields(&Gate { percentiles: p99, ..default_gate() }, &default_steps(), Setting { rate: 8.0, ..SETTING });
    assert!(
        cannot.contains(&"signals.latency.percentiles") || cannot.contains(&"signals.errors.maxExcess"),
        "{cannot:?}"
    );
    assert_eq!(fields(&default_gate(), &[], SETTING).0, ["spec.strategy"]);
}

#[test]
fn what_is_weak_is_said_and_refuses_nothing() {
    let one = Setting { pods: (1, 1), ..SETTING };
    assert_eq!(fields(&default_gate(), &default_steps(), one), (vec![], vec!["spec.model.replicas"]));
    let uneven = Setting { pod_spread: 0.2, ..SETTING };
    assert_eq!(fields(&default_gate(), &default_steps(), uneven), (vec![], vec!["signals.latency.maxRatio"]));
    let (cannot, weak) = fields(&default_gate(), &steps(&[1, 50], 60), SETTING);
    assert_eq!((cannot, weak), (vec![], vec!["tripwire.minRequests"]));
    let silent = Setting { rate: 0.0, ..SETTING };
    assert_eq!(fields(&default_gate(), &default_steps(), silent).0, ["onNoTraffic"], "8 pairs per tick are too few");
    let mut many = default_gate();
    many.probes.pairs = 32;
    assert_eq!(fields(&many, &default_steps(), silent).0, Vec::<&str>::new(), "enough pairs stand in for requests");
    let long = Gate { deadline: Span::seconds(6 * 3600), ..default_gate() };
    assert_eq!(fields(&long, &default_steps(), Setting { rate: 4.0, ..SETTING }).0, Vec::<&str>::new());
}
