//! Labels of everything that belongs to a rollout, and the selectors made of them.

use bitnet_api::keys::label;
use bitnet_core::model::{Revision, Rollout};
use std::collections::BTreeMap;

/// Value of [`label::ROLE`] on pods that were created as the fp16 baseline.
pub const BASELINE: &str = "baseline";
/// Value of `app.kubernetes.io/managed-by`, and the name under which we write.
pub const MANAGED_BY: &str = "bitnet-rollouts";

type Labels = BTreeMap<String, String>;

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Labels of an object of a rollout.
pub fn of_rollout(rollout: &str) -> Labels {
    labels([
        ("app.kubernetes.io/name", "inference-worker"),
        ("app.kubernetes.io/instance", rollout),
        ("app.kubernetes.io/managed-by", MANAGED_BY),
        (label::ROLLOUT, rollout),
    ])
}

/// Labels of an object of a revision.
pub fn of(rollout: &Rollout, revision: &Revision) -> Labels {
    let mut all = of_rollout(&rollout.name);
    all.insert(label::REVISION.into(), revision.0.clone());
    all
}

/// Selector of a revision's pods; it never changes, for it contains the revision's hash.
pub fn selector(rollout: &Rollout, revision: &Revision) -> Labels {
    labels([(label::ROLLOUT, &rollout.name), (label::REVISION, revision.as_str())])
}

/// Selector of the fp16 pods.
pub fn baseline_selector(rollout: &Rollout) -> Labels {
    labels([(label::ROLLOUT, &rollout.name), (label::ROLE, BASELINE)])
}

/// Name of the Service of the fp16 pods.
pub fn baseline_service(rollout: &str) -> String {
    format!("{rollout}-baseline")
}

/// Label selector, as a query, of everything that belongs to a rollout.
pub fn query(rollout: &str) -> String {
    format!("{}={rollout}", label::ROLLOUT)
}
