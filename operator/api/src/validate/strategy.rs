use super::{
    HOUR, Refusal,
    ab_test::{ab_test, headers},
    integer, is_dns_label, span,
};
use crate::v1alpha1::{self, BlueGreenSpec, CanarySpec, MatchSpec, StepSpec, StrategySpec};
use bitnet_core::{
    Span,
    model::{BlueGreen, Canary, CanaryStep, HeaderMatch, Pace, Strategy},
};

/// First share of a canary in percent.
const INITIAL_WEIGHT: i32 = 5;
/// Ratio of two shares.
const FACTOR: i32 = 2;
/// Time at each share.
const STEP_DURATION: Span = Span::seconds(300);
/// Equal load: the last share before all of the traffic.
const LAST_WEIGHT: u32 = 50;

/// `replicas` are the model's.
pub(super) fn strategy(strategy: Option<&StrategySpec>, replicas: u32) -> Result<Strategy, Refusal> {
    let Some(strategy) = strategy else { return canary(&CanarySpec::default(), replicas).map(Strategy::Canary) };
    match (&strategy.canary, &strategy.blue_green, &strategy.ab_test) {
        (Some(spec), None, None) => canary(spec, replicas).map(Strategy::Canary),
        (None, Some(spec), None) => blue_green(spec).map(Strategy::BlueGreen),
        (None, None, Some(spec)) => ab_test(spec).map(Strategy::AbTest),
        _ => Err(Refusal::invalid("spec.strategy", "a rollout has exactly one strategy", "write `canary: {}`")),
    }
}

fn blue_green(spec: &BlueGreenSpec) -> Result<BlueGreen, Refusal> {
    if let Some(host) = &spec.preview_host
        && (host.len() > 253 || !host.split('.').all(is_dns_label))
    {
        return Err(Refusal::invalid(
            "spec.strategy.blueGreen.previewHost",
            "it is one host name",
            "write a lower-case DNS name of at most 253 characters, without a wildcard",
        ));
    }
    Ok(BlueGreen { auto_promote: spec.auto_promote.unwrap_or(true), preview_host: spec.preview_host.clone() })
}

fn canary(spec: &CanarySpec, replicas: u32) -> Result<Canary, Refusal> {
    let pace = match spec.pace {
        None | Some(v1alpha1::Pace::Time) => Pace::Time,
        Some(v1alpha1::Pace::Evidence) => Pace::Evidence,
    };
    let by_time = [
        ("spec.strategy.canary.stepDuration", spec.step_duration.is_some()),
        ("spec.strategy.canary.steps", spec.steps.iter().flatten().any(|step| step.duration.is_some())),
    ];
    if let Some((field, _)) = by_time.into_iter().find(|(_, given)| *given && pace == Pace::Evidence) {
        return Err(Refusal::invalid(
            field,
            "a duration sets the pace by time",
            "leave it out with pace: evidence, or use pace: time",
        ));
    }
    let made = spec.initial_weight.is_some() || spec.factor.is_some() || spec.step_duration.is_some();
    let steps = match &spec.steps {
        Some(_) if made => {
            return Err(Refusal::invalid(
                "spec.strategy.canary",
                "steps take the place of initialWeight, factor and stepDuration",
                "give one or the other",
            ));
        }
        Some(steps) => listed(steps, replicas, pace)?,
        None => doubling(spec)?,
    };
    Ok(Canary { steps, pace })
}

/// 5, 10, 20, 40, 50: each share a multiple of the one before, the last one equal load.
fn doubling(spec: &CanarySpec) -> Result<Vec<CanaryStep>, Refusal> {
    let field = "spec.strategy.canary";
    let mut weight = integer(
        format!("{field}.initialWeight"),
        spec.initial_weight.unwrap_or(INITIAL_WEIGHT),
        1,
        LAST_WEIGHT as i32,
    )?;
    let factor = integer(format!("{field}.factor"), spec.factor.unwrap_or(FACTOR), 2, LAST_WEIGHT as i32)?;
    let duration = match &spec.step_duration {
        Some(text) => span(&format!("{field}.stepDuration"), text, 0, 168 * HOUR)?,
        None => STEP_DURATION,
    };
    let mut steps = Vec::new();
    while weight < LAST_WEIGHT {
        steps.push(CanaryStep::plain(weight, duration));
        weight *= factor;
    }
    steps.push(CanaryStep::plain(LAST_WEIGHT, duration));
    Ok(steps)
}

fn listed(steps: &[StepSpec], replicas: u32, pace: Pace) -> Result<Vec<CanaryStep>, Refusal> {
    let list = "spec.strategy.canary.steps";
    if steps.len() > 20 {
        return Err(Refusal::invalid(list, "there are too many steps", "write at most 20"));
    }
    let mut made: Vec<CanaryStep> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let field = format!("{list}[{i}]");
        match (step.weight, &step.pause) {
            (Some(weight), None) => {
                let weight = integer(format!("{field}.weight"), weight, 1, 99)?;
                if made.last().is_some_and(|before| before.weight >= weight) {
                    return Err(Refusal::invalid(
                        format!("{field}.weight"),
                        "weights rise strictly from step to step",
                        "write a larger weight than that of the step before",
                    ));
                }
                let duration = match &step.duration {
                    Some(text) => span(&format!("{field}.duration"), text, 0, 168 * HOUR)?,
                    None => STEP_DURATION,
                };
                let replicas = pods(&format!("{field}.replicas"), step.replicas, weight, made.last(), replicas)?;
                let matches = matches(&format!("{field}.match"), step.matches.as_ref(), pace)?;
                made.push(CanaryStep { weight, duration, pause: false, replicas, matches });
            }
            (None, Some(_)) if step.replicas.is_some() || step.matches.is_some() => {
                return Err(Refusal::invalid(
                    field,
                    "a pause keeps the pods and the rule of the step before it",
                    "give replicas and match to a step with a weight",
                ));
            }
            (None, Some(_)) if step.duration.is_some() => {
                return Err(Refusal::invalid(
                    format!("{field}.duration"),
                    "a pause ends with the verb promote",
                    "give the duration to the weight before it",
                ));
            }
            (None, Some(_)) => match made.last_mut() {
                Some(before) => before.pause = true,
                None => {
                    return Err(Refusal::invalid(
                        list,
                        "a pause holds the weight before it",
                        "begin with a step that has a weight",
                    ));
                }
            },
            _ => {
                return Err(Refusal::invalid(field, "a step is a weight or a pause", "give exactly one of the two"));
            }
        }
    }
    match made.last() {
        None => Err(Refusal::invalid(list, "there is no step", "write at least one weight, or leave steps out")),
        Some(last) if !last.matches.is_empty() => Err(Refusal::invalid(
            list,
            "live errors and latency are compared at the last step, and a match sends it other requests than stable",
            "leave match out there, or add a step without it",
        )),
        Some(_) => Ok(made),
    }
}

/// Pods of a step: enough for its weight, at most all, not fewer than before.
fn pods(
    field: &str,
    given: Option<i32>,
    weight: u32,
    before: Option<&CanaryStep>,
    all: u32,
) -> Result<Option<u32>, Refusal> {
    let least = before.map_or(1, |b| b.replicas.unwrap_or(all));
    if given.is_none() {
        return Ok(None);
    }
    let least = least.max((u64::from(all) * u64::from(weight)).div_ceil(100) as u32);
    integer(field.to_owned(), given.unwrap_or_default(), least as i32, all as i32).map(Some)
}

fn matches(field: &str, given: Option<&MatchSpec>, pace: Pace) -> Result<Vec<HeaderMatch>, Refusal> {
    let Some(given) = given else { return Ok(Vec::new()) };
    if pace == Pace::Evidence {
        return Err(Refusal::invalid(
            field,
            "live requests that were chosen are not compared, so they set no pace",
            "leave it out with pace: evidence, or use pace: time",
        ));
    }
    headers(&format!("{field}.headers"), given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1alpha1::{HeaderSpec, PauseSpec};

    /// The model's pods in these tests.
    const PODS: u32 = 10;

    fn canary(spec: &CanarySpec) -> Result<Canary, Refusal> {
        super::canary(spec, PODS)
    }

    fn weights(spec: &CanarySpec) -> Vec<u32> {
        canary(spec).unwrap().steps.iter().map(|step| step.weight).collect()
    }

    #[test]
    fn shares_double_up_to_equal_load() {
        assert_eq!(weights(&CanarySpec::default()), [5, 10, 20, 40, 50]);
        assert_eq!(canary(&CanarySpec::default()).unwrap().steps[0].duration, Span::seconds(300));
        let of =
            |initial, factor| CanarySpec { initial_weight: Some(initial), factor: Some(factor), ..Default::default() };
        assert_eq!(weights(&of(1, 3)), [1, 3, 9, 27, 50]);
        assert_eq!(weights(&of(50, 2)), [50]);
        assert_eq!(weights(&of(25, 2)), [25, 50]);
        assert_eq!(weights(&of(1, 50)), [1, 50]);
    }

    #[test]
    fn evidence_sets_the_pace_alone() {
        let spec = CanarySpec { pace: Some(v1alpha1::Pace::Evidence), ..CanarySpec::default() };
        let made = canary(&spec).unwrap();
        assert_eq!((made.pace, made.steps.len()), (Pace::Evidence, 5));
        let timed = CanarySpec { step_duration: Some("1m".into()), ..spec.clone() };
        assert_eq!(canary(&timed).unwrap_err().field, "spec.strategy.canary.stepDuration");
        let step = StepSpec { weight: Some(5), duration: Some("1m".into()), ..StepSpec::default() };
        let listed = CanarySpec { steps: Some(vec![step]), ..spec };
        assert_eq!(canary(&listed).unwrap_err().field, "spec.strategy.canary.steps");
    }

    #[test]
    fn a_switch_comes_by_itself_unless_it_is_asked_to_wait() {
        let made = blue_green(&BlueGreenSpec::default()).unwrap();
        assert_eq!(made, BlueGreen { auto_promote: true, preview_host: None });
        let host = |host: &str| BlueGreenSpec { auto_promote: Some(false), preview_host: Some(host.into()) };
        assert!(!blue_green(&host("preview.example")).unwrap().auto_promote);
        for bad in ["*.example", "Preview.example", "a..b", ""] {
            assert_eq!(blue_green(&host(bad)).unwrap_err().field, "spec.strategy.blueGreen.previewHost", "{bad}");
        }
    }

    #[test]
    fn pods_of_a_step_bear_its_weight_and_do_not_fall() {
        let step = |weight, replicas| StepSpec { weight: Some(weight), replicas, ..StepSpec::default() };
        let of = |steps: Vec<StepSpec>| canary(&CanarySpec { steps: Some(steps), ..CanarySpec::default() });
        let made = of(vec![step(5, Some(1)), step(20, Some(2)), step(50, None)]).unwrap();
        assert_eq!(made.steps.iter().map(|s| s.replicas).collect::<Vec<_>>(), [Some(1), Some(2), None]);
        for (steps, at) in [
            (vec![step(20, Some(1))], 0),
            (vec![step(5, Some(11))], 0),
            (vec![step(5, Some(3)), step(10, Some(2))], 1),
            (vec![step(5, None), step(50, Some(5))], 1),
        ] {
            assert_eq!(of(steps).unwrap_err().field, format!("spec.strategy.canary.steps[{at}].replicas"));
        }
    }

    #[test]
    fn a_match_is_for_steps_before_the_last_and_for_pace_by_time() {
        let header = HeaderSpec { kind: None, name: "x-beta".into(), value: "yes".into() };
        let beta = || Some(MatchSpec { headers: vec![header.clone()] });
        let step = |weight, matches| StepSpec { weight: Some(weight), matches, ..StepSpec::default() };
        let of = |steps: Vec<StepSpec>, pace| canary(&CanarySpec { steps: Some(steps), pace, ..CanarySpec::default() });
        let made = of(vec![step(1, beta()), step(50, None)], None).unwrap();
        assert_eq!((made.steps[0].matches.len(), made.steps[1].matches.len()), (1, 0));
        assert_eq!(of(vec![step(1, None), step(50, beta())], None).unwrap_err().field, "spec.strategy.canary.steps");
        let paced = of(vec![step(1, beta()), step(50, None)], Some(v1alpha1::Pace::Evidence)).unwrap_err();
        assert_eq!(paced.field, "spec.strategy.canary.steps[0].match");
        let none = Some(MatchSpec { headers: Vec::new() });
        let empty = of(vec![step(1, none), step(50, None)], None).unwrap_err();
        assert_eq!(empty.field, "spec.strategy.canary.steps[0].match.headers");
    }

    #[test]
    fn a_pause_belongs_to_the_weight_before_it() {
        let weight = |weight| StepSpec { weight: Some(weight), ..StepSpec::default() };
        let pause = StepSpec { pause: Some(PauseSpec {}), ..StepSpec::default() };
        let spec = CanarySpec { steps: Some(vec![weight(1), pause, weight(50)]), ..CanarySpec::default() };
        let steps = canary(&spec).unwrap().steps;
        assert_eq!(steps.iter().map(|step| (step.weight, step.pause)).collect::<Vec<_>>(), [(1, true), (50, false)]);
    }
}
