//! What the guards of promoted models remember. It lives in memory, so that a quiet rollout writes nothing; what would be
//! missed after a restart is in status as well, whenever the plan says so.

use bitnet_core::plan::Watch;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// The watches of all rollouts, by UID.
#[derive(Debug, Default)]
pub struct Guards(Mutex<BTreeMap<String, Watch>>);

impl Guards {
    /// What is known of a rollout's guard.
    pub fn get(&self, uid: &str) -> Option<Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Takes over what a plan that was carried out remembers.
    pub fn set(&self, uid: &str, watch: Option<Watch>) {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match watch {
            Some(watch) => watches.insert(uid.to_owned(), watch),
            None => watches.remove(uid),
        };
    }
}
