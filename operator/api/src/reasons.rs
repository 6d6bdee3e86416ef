//! Reasons of conditions and events, what each one means, and what to do about it. What a running rollout waits for is
//! core's [`Reason`]; what was refused before that is a [`RefusalReason`]; the few that belong to neither are here.
//! `docs/reasons.md` is written from this file.

use crate::validate::RefusalReason;
pub use bitnet_core::report::Reason;

/// `Accepted=True`: the spec and everything it names were understood.
pub const ACCEPTED: &str = "Accepted";
/// A condition about evidence, without any.
pub const NO_EVIDENCE: &str = "NoEvidence";
/// `QualityHealthy=True`: nothing speaks against the candidate so far.
pub const WITHIN_MARGINS: &str = "WithinMargins";
/// `RolledBack=False`: no model of this spec was rolled back.
pub const NOT_ROLLED_BACK: &str = "NotRolledBack";
/// `Reconciling=False` and `Stalled=False`: what the spec asks for serves, or a person stopped it on purpose.
pub const SETTLED: &str = "Settled";
/// `TrafficManaged=Unknown`: the route could not be read.
pub const ROUTE_UNKNOWN: &str = "RouteUnknown";
/// `TrafficManaged=False`: the API server denied a write.
pub const WRITE_DENIED: &str = "WriteDenied";
/// An event: the stored evidence could not be read.
pub const EVIDENCE_RESTARTED: &str = "EvidenceRestarted";

/// A reason as people look it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in conditions and events.
    pub name: String,
    /// What it says.
    pub meaning: String,
    /// What to do.
    pub remedy: &'static str,
}

const NOTHING: &str = "Nothing to do.";

/// Every reason that a condition, an event or a notification can carry, by name.
pub fn all() -> Vec<Entry> {
    let running = Reason::ALL.iter().map(|reason| Entry {
        name: reason.name(),
        meaning: reason.meaning().to_owned(),
        remedy: remedy(*reason),
    });
    let refused = RefusalReason::ALL.iter().map(|reason| Entry {
        name: reason.name().to_owned(),
        meaning: meaning_of_refusal(*reason).to_owned(),
        remedy: remedy_of_refusal(*reason),
    });
    let others = OTHERS.iter().map(|(name, meaning, remedy)| Entry {
        name: (*name).to_owned(),
        meaning: (*meaning).to_owned(),
        remedy,
    });
    let mut all: Vec<_> = running.chain(refused).chain(others).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

const OTHERS: [(&str, &str, &str); 8] = [
    (ACCEPTED, "The spec and everything it names were understood.", NOTHING),
    (NO_EVIDENCE, "Nothing was compared and no live request was seen yet.", "Wait for the first tick of an attempt."),
    (WITHIN_MARGINS, "Nothing speaks against the candidate so far.", NOTHING),
    (SETTLED, "What the spec asks for serves, or a person stopped it on purpose.", NOTHING),
    (NOT_ROLLED_BACK, "The model of this spec was not rolled back.", NOTHING),
    (
        ROUTE_UNKNOWN,
        "The route could not be read in this look.",
        "It is read again by itself. If it stays: the operator's log names the refusal of the API server.",
    ),
    (
        WRITE_DENIED,
        "The API server denied a write of the operator: a right is missing, or an admission policy refuses it.",
        "The message has the API server's words. Give the right back (the chart's Role), or change the policy or quota that refuses.",
    ),
    (
        EVIDENCE_RESTARTED,
        "The evidence in status could not be read (edited by hand, or from a newer operator): the attempt gathers it anew.",
        "Nothing to do; the verdict comes later. Do not edit `status.evidence`.",
    ),
];

fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::Serving | Reason::Adopted | Reason::Promoted | Reason::Deleting | Reason::NamespaceTerminating => {
            NOTHING
        }
        Reason::BaselineNotReady | Reason::CandidateNotReady => {
            "Look at the pod that the message names: `kubectl describe pod`. Usual causes: no node fits the pool, the image cannot be pulled, the model's digest differs."
        }
        Reason::RouteMissing => "Create the HTTPRoute that `spec.route.httpRoute` names, or correct the name.",
        Reason::RuleMissing => "Name a rule of the route in `spec.route.rule`: with several rules it must be given.",
        Reason::GatewayMissing => {
            "Create the Gateway that `spec.route.gateway` names in this namespace, or correct the name."
        }
        Reason::GatewayUnsupported => {
            "`spec.route.loadBalancing` needs a route whose Gateways are all run by Envoy Gateway: leave the field out, or attach the route to such a Gateway. If the Gateway has not answered yet, it goes on by itself."
        }
        Reason::RouteInUse => "Give this rollout a route of its own, or delete the rollout that the message names.",
        Reason::RouteNotAccepted => {
            "The message has the gateway's words (`status.parents` of the route). Correct the route or the Gateway's listeners."
        }
        Reason::NoBackend => {
            "Bring pods of any revision back: `kubectl get pods -l rollouts.bitnet.dev/rollout=NAME`. Traffic follows by itself."
        }
        Reason::NotComparable => {
            "The message names the field (tokenizer, chat template, vocabulary, end tokens, context). Convert the candidate from the same model as the baseline."
        }
        Reason::IdentityUnknown => {
            "Wait for ready workers. If it stays: port 9090 of the workers must be reachable from the operator (NetworkPolicy)."
        }
        Reason::ProbeSetMissing => {
            "Create the ConfigMap that the gate names, with one `{\"prompt\": \"…\"}` per line under its key. Pods mount the name that the gate had when they were created: `retry` or a new model takes another one over."
        }
        Reason::Preflight | Reason::Step => "Nothing to do: `status.missing` says what is waited for.",
        Reason::StepPaused => "`kubectl bitnet promote NAME` goes on; `abort` ends it.",
        Reason::Preview => {
            "Nothing to do; with `autoPromote: false`, `kubectl bitnet promote NAME` switches once everything is proven."
        }
        Reason::PreviewTaken => {
            "Rename or delete the HTTPRoute `NAME-preview`, which belongs to somebody else, or leave `previewHost` out."
        }
        Reason::Switched => {
            "Nothing to do. `kubectl bitnet abort NAME` is the instant way back while the old revision is kept."
        }
        Reason::Paused => "`kubectl bitnet resume NAME`, or `spec.paused: false`.",
        Reason::Tripwire => {
            "Look at the workers' logs: half of the requests or more failed. It goes on by itself once pods are ready, or `kubectl bitnet abort NAME`."
        }
        Reason::CandidateLost => "Look at why the pods went away. It goes on by itself once they are ready.",
        Reason::Inconclusive => {
            "There was too little evidence before the gate's deadline. `kubectl bitnet explain NAME` says of what. More traffic, more probes per tick, a longer `deadline`, or a smaller `minSamples`; then `kubectl bitnet retry NAME`. `kubectl bitnet lint` says beforehand."
        }
        Reason::Reported => {
            "Read the report (`kubectl bitnet explain NAME`), then `kubectl bitnet promote NAME`, or set the model back."
        }
        Reason::SampleRatioMismatch => {
            "Users do not reach the arms as they were assigned, so a comparison of them means nothing. Look for caches, retries or bots before the gateway, and start again with `retry`."
        }
        Reason::UsersDoWorse => {
            "The model is worse for users, whatever the probes say. Set the spec back, or give another model."
        }
        Reason::RulesChanged => {
            "Undo the edit of the rule while a test runs; it is derived anew by itself once the rule is as before."
        }
        Reason::NoTraffic => "Send traffic, or set the gate's `onNoTraffic: Probe` to go on by probes alone.",
        Reason::QualityFailed => {
            "The answers differ from fp16 by more than the gate allows. `kubectl bitnet explain NAME` has the numbers. Train or convert the model again and apply it."
        }
        Reason::LatencyFailed => {
            "The candidate is slower than `maxRatio` allows. Check the pool's CPUs and limits, the kernel that the worker names at its start, then `retry` or apply another model."
        }
        Reason::ErrorsFailed => {
            "The candidate fails more often than stable. `bitnet_requests_failed_total` by `class` and the workers' logs say how; repair, then `retry` or apply another model."
        }
        Reason::ProgressDeadlineExceeded => {
            "The message names what was waited for. Repair it, then `kubectl bitnet retry NAME`, or raise `spec.progressDeadline`."
        }
        Reason::Aborted => {
            "A person ended the attempt. `kubectl bitnet retry NAME` starts another one; `kubectl bitnet undo NAME` sets the spec back."
        }
        Reason::RolledBackByHand => "A person asked for fp16. Apply another model, or `kubectl bitnet retry NAME`.",
        Reason::RolledBack => {
            "Apply another model, or `kubectl bitnet retry NAME` if the cause was outside of it. `kubectl bitnet explain NAME` says why."
        }
        Reason::BaselineEditWaits => {
            "Nothing to do: the edit takes effect when the rollout has ended. To have it now, `kubectl bitnet abort NAME` first."
        }
        Reason::WeightsChanged => {
            "Change weights by the spec or a verb. In an emergency, write with the annotation `rollouts.bitnet.dev/break-glass`."
        }
        Reason::Withdrawn => "Nothing to do: the spec asks for something else.",
        Reason::StableLost => "Users are served by fp16. Bring stable's pods back; its traffic follows by itself.",
        Reason::Reconfigured => {
            "Nothing to do. Each edit of the gate or of the probes in a running attempt starts a new test with half the error budget: edit between attempts."
        }
        Reason::Extended => "Nothing to do (`onInconclusive: Extend`). `kubectl bitnet abort NAME` ends it.",
        Reason::VerbAnswered => "Nothing to do: the answer is in `status.verbs`.",
        Reason::Orphaned => {
            "Nothing to do. To remove what serves: take the route elsewhere, then delete the Deployment and Service that the event names."
        }
        Reason::FewPods => "Give each arm 3 pods or more: with fewer, one bad node looks like a bad model.",
    }
}

fn meaning_of_refusal(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::InvalidSpec => "A field of the ModelRollout breaks a rule.",
        RefusalReason::NotLanded => "A field asks for something that this version cannot do.",
        RefusalReason::GateMissing => "The QualityGate that the spec names does not exist.",
        RefusalReason::InvalidGate => "A field of the QualityGate breaks a rule.",
        RefusalReason::PoolMissing => "No node pool of that name was declared by the admin.",
        RefusalReason::Malformed => "The stored object cannot be read at all (written under another schema).",
    }
}

fn remedy_of_refusal(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::InvalidSpec | RefusalReason::InvalidGate => {
            "The message has the field, the rule and what would make it right. Nothing moves until then, and what serves goes on serving."
        }
        RefusalReason::NotLanded => "Leave the field out, as the message says, or upgrade the operator.",
        RefusalReason::GateMissing => "Create the QualityGate in the rollout's namespace, or correct `spec.gate.name`.",
        RefusalReason::PoolMissing => "Name one of the chart's `pools`, or have the admin declare it there.",
        RefusalReason::Malformed => {
            "Apply the object again as the CRD asks for it, or delete it. Others are not held up."
        }
    }
}
