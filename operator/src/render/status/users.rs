//! What users of an A/B test said, as two more signals.

use super::decimal;
use bitnet_api::v1alpha1::SignalStatus;
use bitnet_core::evidence::ab::{AbAssessment, AbVerdict};

/// Names of the two signals.
pub(super) const NAMES: [&str; 2] = ["users", "sample-ratio"];

/// What users say, and whether they arrived as they were assigned.
pub(super) fn signals(users: &AbAssessment) -> [SignalStatus; 2] {
    let (candidate, stable) = users.users;
    let verdict = match users.verdict {
        AbVerdict::CandidateBetter => "Better",
        AbVerdict::CandidateWorse => "Worse",
        AbVerdict::NoDifferenceProven => "NoDifference",
        AbVerdict::SampleRatioMismatch | AbVerdict::Undecided if candidate + stable == 0 => "Waiting",
        AbVerdict::SampleRatioMismatch | AbVerdict::Undecided => "Continue",
    };
    let arm = |value: Option<f64>| value.map_or("-".into(), |value| decimal(value, 4));
    let said = SignalStatus {
        name: NAMES[0].into(),
        verdict: verdict.into(),
        samples: (candidate.saturating_add(stable)).min(1 << 52) as i64,
        estimate: users.difference.map(|difference| decimal(difference, 4)),
        interval: users.interval.iter().flat_map(|(low, high)| [decimal(*low, 4), decimal(*high, 4)]).collect(),
        evidence: Some(decimal(users.ln_e, 2)),
        detail: Some(format!(
            "{} of {candidate} users, {} of {stable} of stable",
            arm(users.arms.0),
            arm(users.arms.1)
        )),
        ..SignalStatus::default()
    };
    let (candidate, stable) = users.assigned;
    let all = candidate.saturating_add(stable);
    let arrived = SignalStatus {
        name: NAMES[1].into(),
        verdict: match users.verdict {
            AbVerdict::SampleRatioMismatch => "Failed",
            _ if all == 0 => "Waiting",
            _ => "Continue",
        }
        .into(),
        samples: all.min(1 << 52) as i64,
        estimate: (all > 0).then(|| decimal(candidate as f64 / all as f64, 4)),
        evidence: Some(decimal(users.ln_ratio, 2)),
        detail: Some(format!("{candidate} users came to it, {stable} to stable")),
        ..SignalStatus::default()
    };
    [said, arrived]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assessment(verdict: AbVerdict) -> AbAssessment {
        AbAssessment {
            verdict,
            difference: Some(0.0125),
            interval: Some((-0.01, 0.03)),
            arms: (Some(0.0625), Some(0.05)),
            users: (160, 1400),
            assigned: (200, 1800),
            ln_e: 1.25,
            ln_ratio: -0.5,
        }
    }

    #[test]
    fn users_and_their_arrival_are_told_apart() {
        let [said, arrived] = signals(&assessment(AbVerdict::CandidateBetter));
        assert_eq!((said.verdict.as_str(), said.samples, said.estimate.as_deref()), ("Better", 1560, Some("0.0125")));
        assert_eq!(said.detail.as_deref(), Some("0.0625 of 160 users, 0.0500 of 1400 of stable"));
        assert_eq!((arrived.verdict.as_str(), arrived.estimate.as_deref()), ("Continue", Some("0.1000")));
        let [said, arrived] = signals(&assessment(AbVerdict::SampleRatioMismatch));
        assert_eq!((said.verdict.as_str(), arrived.verdict.as_str()), ("Continue", "Failed"));
    }
}
