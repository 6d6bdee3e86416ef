use super::{HOUR, Refusal, integer, span};
use crate::v1alpha1::{AbTestSpec, HeaderMatchType, MatchSpec, MetricType, OnEnd, StickinessSpec};
use bitnet_core::{
    Span,
    evidence::ab::AbMetric,
    model::{self, AbTest, CanaryStep, HeaderMatch, Stickiness},
};

/// Share of the users in percent.
const WEIGHT: i32 = 10;
/// A week: no day of it weighs more than another.
const DURATION: Span = Span(168 * HOUR);
/// Name of the cookie.
const COOKIE: &str = "bitnet-arm";

pub(super) fn ab_test(spec: &AbTestSpec) -> Result<AbTest, Refusal> {
    let field = "spec.strategy.abTest";
    let weight = integer(format!("{field}.weight"), spec.weight.unwrap_or(WEIGHT), 1, 99)?;
    let duration = match &spec.duration {
        Some(text) => span(&format!("{field}.duration"), text, 60_000, 2160 * HOUR)?,
        None => DURATION,
    };
    Ok(AbTest {
        split: [CanaryStep::plain(weight, duration)],
        matches: match &spec.matches {
            Some(matches) => headers(&format!("{field}.match.headers"), matches)?,
            None => Vec::new(),
        },
        stickiness: stickiness(&format!("{field}.stickiness"), spec.stickiness.as_ref())?,
        metric: spec.metric.as_ref().map(|metric| match metric.kind {
            MetricType::Conversion => AbMetric::Conversion,
            MetricType::Mean => AbMetric::Mean { low: 0.0, high: 1.0 },
        }),
        on_end: match spec.on_end.unwrap_or_default() {
            OnEnd::Report => model::OnEnd::Report,
            OnEnd::Promote => model::OnEnd::Promote,
        },
    })
}

pub(super) fn headers(field: &str, spec: &MatchSpec) -> Result<Vec<HeaderMatch>, Refusal> {
    let all = &spec.headers;
    let printable = |text: &str| (1..=1024).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if !(1..=8).contains(&all.len()) || !all.iter().all(|h| is_token(&h.name, b"-") && printable(&h.value)) {
        return Err(Refusal::invalid(
            field,
            "each entry is a header's name and value",
            "write 1 to 8 of them: names of at most 64 characters from A-Z a-z 0-9 -, values of printable characters",
        ));
    }
    let header = |h: &crate::v1alpha1::HeaderSpec| HeaderMatch {
        name: h.name.clone(),
        value: h.value.clone(),
        regex: h.kind == Some(HeaderMatchType::RegularExpression),
    };
    Ok(all.iter().map(header).collect())
}

fn stickiness(field: &str, spec: Option<&StickinessSpec>) -> Result<Stickiness, Refusal> {
    let Some(spec) = spec else { return Ok(Stickiness::Cookie(COOKIE.into())) };
    match (&spec.cookie, &spec.header) {
        (Some(cookie), None) if is_token(cookie, b"-_") => Ok(Stickiness::Cookie(cookie.clone())),
        (None, Some(header)) if is_token(header, b"-") => Ok(Stickiness::Header(header.clone())),
        _ => Err(Refusal::invalid(
            field,
            "users are told apart by exactly one of cookie and header",
            "give one name of at most 64 characters from A-Z a-z 0-9 - (a cookie also _)",
        )),
    }
}

fn is_token(text: &str, more: &[u8]) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1alpha1::HeaderSpec;

    #[test]
    fn a_tenth_of_the_users_for_a_week_by_cookie_and_a_person_decides() {
        let made = ab_test(&AbTestSpec::default()).unwrap();
        assert_eq!((made.weight(), made.duration()), (10, Span::seconds(7 * 24 * 3600)));
        assert_eq!(made.stickiness, Stickiness::Cookie("bitnet-arm".into()));
        assert_eq!((made.on_end, made.metric, made.matches.len()), (model::OnEnd::Report, None, 0));
    }

    #[test]
    fn what_would_break_a_cookie_or_a_rule_is_refused() {
        let sticky = |cookie: Option<&str>, header: Option<&str>| AbTestSpec {
            stickiness: Some(StickinessSpec { cookie: cookie.map(str::to_owned), header: header.map(str::to_owned) }),
            ..AbTestSpec::default()
        };
        for (cookie, header) in [(None, None), (Some("a"), Some("b")), (Some("a=b"), None), (None, Some("x;y"))] {
            let refusal = ab_test(&sticky(cookie, header)).unwrap_err();
            assert_eq!(refusal.field, "spec.strategy.abTest.stickiness", "{cookie:?} {header:?}");
        }
        let matches = |name: &str, value: &str| AbTestSpec {
            matches: Some(MatchSpec {
                headers: vec![HeaderSpec { kind: None, name: name.into(), value: value.into() }],
            }),
            ..AbTestSpec::default()
        };
        assert!(ab_test(&matches("x-beta", "yes")).is_ok());
        for (name, value) in [("x beta", "yes"), ("", "yes"), ("x-beta", ""), ("x-beta", "\n")] {
            assert_eq!(ab_test(&matches(name, value)).unwrap_err().field, "spec.strategy.abTest.match.headers");
        }
        let for_ever = AbTestSpec { duration: Some("2161h".into()), ..AbTestSpec::default() };
        assert_eq!(ab_test(&for_ever).unwrap_err().field, "spec.strategy.abTest.duration");
    }
}
