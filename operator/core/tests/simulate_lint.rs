//! Gates that cannot decide are found before a rollout.

#[path = "../examples/montecarlo/gates.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod gates;

use bitnet_core::{
    Span,
    evidence::{Gate, OnNoTraffic, ab::AbMetric, guard::GuardSettings},
    model::{AbTest, CanaryStep, GuardRule, OnEnd, Stickiness},
    simulate::{
        Course, Step, Users,
        lint::{Setting, Severity, lint},
    },
};
use gates::{default_steps, steps};

const SETTING: Setting = Setting {
    rate: 20.0,
    errors: 0.002,
    cosine: (0.965, 0.025),
    tail: 0.01,
    pair_noise: 0.2,
    pod_spread: 0.02,
    pods: (3, 3),
    users: Users { per_second: 2.0, outcome: (0.055, 0.05), deviation: 0.0, lost: 0.0 },
};

/// Fields of what cannot be decided, and of what is weak.
fn fields(gate: &Gate, steps: &[Step], setting: Setting) -> (Vec<&'static str>, Vec<&'static str>) {
    let found = lint(gate, &Course::by_time(steps), None, &setting);
    assert!(found.iter().all(|f| !f.rule.is_empty() && !f.remedy.is_empty()));
    let of = |severity| found.iter().filter(|f| f.severity == severity).map(|f| f.field).collect();
    (of(Severity::CannotDecide), of(Severity::Weak))
}

#[test]
fn the_default_gate_decides_at_20_requests_a_second() {
    assert_eq!(fields(&Gate::default(), &default_steps(), SETTING), (vec![], vec![]));
}

#[test]
fn each_thing_that_keeps_a_gate_from_deciding_is_named() {
    let gate = Gate::default;
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
        fields(&Gate { percentiles: p99, ..Gate::default() }, &default_steps(), Setting { rate: 8.0, ..SETTING });
    assert!(
        cannot.contains(&"signals.latency.percentiles") || cannot.contains(&"signals.errors.maxExcess"),
        "{cannot:?}"
    );
    assert_eq!(fields(&Gate::default(), &[], SETTING).0, ["spec.strategy"]);
}

#[test]
fn what_is_weak_is_said_and_refuses_nothing() {
    let one = Setting { pods: (1, 1), ..SETTING };
    assert_eq!(fields(&Gate::default(), &default_steps(), one), (vec![], vec!["spec.model.replicas"]));
    let uneven = Setting { pod_spread: 0.2, ..SETTING };
    assert_eq!(fields(&Gate::default(), &default_steps(), uneven), (vec![], vec!["signals.latency.maxRatio"]));
    let (cannot, weak) = fields(&Gate::default(), &steps(&[1, 50], 60), SETTING);
    assert_eq!((cannot, weak), (vec![], vec!["tripwire.minRequests"]));
    let silent = Setting { rate: 0.0, ..SETTING };
    assert_eq!(fields(&Gate::default(), &default_steps(), silent).0, ["onNoTraffic"], "8 pairs per tick are too few");
    let mut many = Gate::default();
    many.probes.pairs = 32;
    assert_eq!(fields(&many, &default_steps(), silent).0, Vec::<&str>::new(), "enough pairs stand in for requests");
    let long = Gate { deadline: Span::seconds(6 * 3600), ..Gate::default() };
    assert_eq!(fields(&long, &default_steps(), Setting { rate: 4.0, ..SETTING }).0, Vec::<&str>::new());
}

fn test(metric: Option<AbMetric>, weight: u32, hours: i64, on_end: OnEnd) -> Course {
    Course::Test(AbTest {
        split: [CanaryStep::plain(weight, Span::seconds(3600 * hours))],
        matches: Vec::new(),
        stickiness: Stickiness::Cookie("arm".into()),
        metric,
        on_end,
    })
}

/// An A/B test lasts longer than any deadline; what it lacks is users.
#[test]
fn an_ab_test_needs_users_and_where_it_promotes_requests() {
    let found = |course: &Course, setting: &Setting| -> Vec<&'static str> {
        lint(&Gate::default(), course, None, setting).iter().map(|f| f.field).collect()
    };
    let conversion = Some(AbMetric::Conversion);
    let long = test(conversion, 50, 72, OnEnd::Promote);
    assert_eq!(found(&long, &SETTING), Vec::<&str>::new());
    let short = test(conversion, 50, 4, OnEnd::Report);
    assert_eq!(found(&short, &SETTING), ["spec.strategy.abTest.duration"], "a tenth of 5 % takes 30,000 users");
    assert_eq!(found(&test(None, 50, 4, OnEnd::Report), &SETTING), Vec::<&str>::new(), "nothing is asked of users");
    // 10 % of the users tell less than half of them, and the same in a mean, which wants a thousand of them at least.
    let uneven = |hours| test(conversion, 10, hours, OnEnd::Report);
    assert_eq!(found(&uneven(12), &SETTING).len(), 1);
    assert_eq!(found(&uneven(48), &SETTING).len(), 0);
    let spending = Users { per_second: 0.1, outcome: (4.4, 4.0), deviation: 2.0, lost: 0.0 };
    let mean = Some(AbMetric::Mean { low: 0.0, high: 10.0 });
    let few = Setting { users: spending, ..SETTING };
    assert_eq!(found(&test(mean, 50, 2, OnEnd::Report), &few), ["spec.strategy.abTest.duration"]);
    assert_eq!(found(&test(mean, 50, 24, OnEnd::Report), &few), Vec::<&str>::new());
    let alike = Users { outcome: (0.05, 0.05), ..SETTING.users };
    assert_eq!(found(&long, &Setting { users: alike, ..SETTING }), ["spec.strategy.abTest.duration"]);
    let thin = Setting { rate: 0.05, ..SETTING };
    assert!(found(&test(None, 50, 24, OnEnd::Promote), &thin).contains(&"signals.errors.maxExcess"));
    assert!(!found(&test(None, 50, 24, OnEnd::Report), &thin).contains(&"signals.errors.maxExcess"));
}

#[test]
fn a_guard_that_would_call_a_good_model_is_named() {
    let gate = Gate::default();
    let rule = GuardRule { interval: Span::seconds(60), settings: GuardSettings::of(&gate) };
    let found = |rule: &GuardRule, setting: &Setting| -> Vec<(Severity, &'static str)> {
        let all = lint(&gate, &Course::by_time(&default_steps()), Some(rule), setting);
        all.iter().filter(|f| f.field.starts_with("spec.guard")).map(|f| (f.severity, f.field)).collect()
    };
    assert_eq!(found(&rule, &SETTING), []);
    for setting in [Setting { cosine: (0.94, 0.02), ..SETTING }, Setting { tail: 0.06, ..SETTING }] {
        assert_eq!(found(&rule, &setting), [(Severity::CannotDecide, "spec.guard")]);
    }
    let hasty = GuardRule { interval: Span::seconds(1), ..rule };
    assert_eq!(found(&hasty, &SETTING), [(Severity::Weak, "spec.guard.interval")]);
}
