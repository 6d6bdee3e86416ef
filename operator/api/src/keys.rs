//! Keys of annotations, labels and the finalizer, shared by the operator, the command line and the tests.

/// Prefix of every key of ours.
pub const PREFIX: &str = "rollouts.bitnet.dev/";

/// Annotations of a managed route.
pub mod route {
    /// `<name>/<uid>` of the rollout that holds the route.
    pub const ROLLOUT: &str = "rollouts.bitnet.dev/rollout";
    /// Name of the managed rule; without it, the rule is the first one.
    pub const RULE: &str = "rollouts.bitnet.dev/rule";
    /// Names of rules derived from the managed one, separated by commas; the admission policy treats them alike.
    pub const DERIVED_RULES: &str = "rollouts.bitnet.dev/derived-rules";
    /// The revision that was promoted last.
    pub const STABLE: &str = "rollouts.bitnet.dev/stable";
    /// The revision on trial, or judged last.
    pub const CANDIDATE: &str = "rollouts.bitnet.dev/candidate";
    /// Attempt of the candidate, from 1.
    pub const ATTEMPT: &str = "rollouts.bitnet.dev/attempt";
    /// Step of the attempt.
    pub const STEP: &str = "rollouts.bitnet.dev/step";
    /// Rises by 1 with every write.
    pub const EPOCH: &str = "rollouts.bitnet.dev/epoch";
    /// Latch key of the attempt that was rolled back: `<uid>/<revision>/<attempt>`.
    pub const ROLLBACK_OF: &str = "rollouts.bitnet.dev/rollback-of";
    /// The last verdict, a compact record.
    pub const DECISION: &str = "rollouts.bitnet.dev/decision";
    /// The backends that the rule had before adoption.
    pub const ORIGINALS: &str = "rollouts.bitnet.dev/original-backends";
    /// Set by a person on the very write that changes what only the operator may change: the reason in words.
    pub const BREAK_GLASS: &str = "rollouts.bitnet.dev/break-glass";
}

/// Annotations of a ModelRollout: `rollouts.bitnet.dev/<verb>` = JSON `{id, revision, attempt, by}`.
pub mod verb {
    /// End the pause of the current step.
    pub const PROMOTE: &str = "rollouts.bitnet.dev/promote";
    /// Go to 100 % without the missing evidence.
    pub const PROMOTE_FULL: &str = "rollouts.bitnet.dev/promote-full";
    /// Stop at the current weight.
    pub const PAUSE: &str = "rollouts.bitnet.dev/pause";
    /// Go on.
    pub const RESUME: &str = "rollouts.bitnet.dev/resume";
    /// All traffic to stable.
    pub const ABORT: &str = "rollouts.bitnet.dev/abort";
    /// All traffic to fp16.
    pub const ROLLBACK: &str = "rollouts.bitnet.dev/rollback";
    /// A new attempt with fresh evidence.
    pub const RETRY: &str = "rollouts.bitnet.dev/retry";
}

/// Labels of Deployments, Services and pods.
pub mod label {
    /// Name of the rollout.
    pub const ROLLOUT: &str = "rollouts.bitnet.dev/rollout";
    /// Name of the revision: in the selector, which never changes.
    pub const REVISION: &str = "rollouts.bitnet.dev/revision";
    /// Pool of a revision, on its Deployment.
    pub const POOL: &str = "rollouts.bitnet.dev/pool";
    /// `baseline` on pods of the fp16 revision: the Service `<rollout>-baseline` selects them.
    pub const ROLE: &str = "rollouts.bitnet.dev/role";
}

/// Labels of namespaces.
pub mod namespace {
    /// The consent that live prompts of this namespace are compared with the baseline, as [`GRANTED`].
    pub const SHADOW_CONSENT: &str = "rollouts.bitnet.dev/shadow-consent";
    /// The one value of [`SHADOW_CONSENT`] that means yes.
    pub const GRANTED: &str = "granted";
}

/// Finalizer of a ModelRollout.
pub const FINALIZER: &str = "rollouts.bitnet.dev/traffic";
