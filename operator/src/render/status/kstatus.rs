//! The two conditions that kstatus reads beside `Ready`: Flux, `kubectl wait` scripts and everything else that knows no
//! kind of ours tell from them whether to wait or to give up.
//!
//! A missing object is waited for and not `Stalled`: the apply that brought the rollout may bring it a moment later.

use super::ConditionSet;
use bitnet_api::{
    conditions as kind, reasons,
    validate::{Refusal, RefusalReason},
};
use bitnet_core::report::{Phase, Reason, Report};

/// Where a rollout stands.
enum Stand {
    Settled,
    Reconciling,
    Stalled,
}

/// After a plan; `ready` is the condition `Ready`.
pub(super) fn put(set: &mut ConditionSet<'_>, report: &Report, ready: bool, message: &str) {
    let stand = match report.phase {
        _ if ready => Stand::Settled,
        Phase::Paused => Stand::Settled,
        Phase::RolledBack => Stand::Stalled,
        _ if needs_a_person(report.headline.reason) => Stand::Stalled,
        _ => Stand::Reconciling,
    };
    say(set, &stand, &report.headline.reason.name(), message);
}

/// After a refusal: the object must be edited, unless what it names is only not there yet.
pub(super) fn refused(set: &mut ConditionSet<'_>, refusal: &Refusal) {
    let stand = if refusal.reason == RefusalReason::GateMissing { Stand::Reconciling } else { Stand::Stalled };
    say(set, &stand, refusal.reason.name(), &refusal.to_string());
}

/// What no time and no other object of the cluster will end.
fn needs_a_person(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::RouteInUse
            | Reason::GatewayUnsupported
            | Reason::NotComparable
            | Reason::Inconclusive
            | Reason::Reported
    )
}

fn say(set: &mut ConditionSet<'_>, stand: &Stand, reason: &str, message: &str) {
    let (reconciling, stalled) = match stand {
        Stand::Settled => (false, false),
        Stand::Reconciling => (true, false),
        Stand::Stalled => (false, true),
    };
    for (type_, holds) in [(kind::RECONCILING, reconciling), (kind::STALLED, stalled)] {
        if holds {
            set.put(type_, "True", reason, message);
        } else {
            set.put(type_, "False", reasons::SETTLED, "");
        }
    }
}
