//! When a failed reconcile is tried again: per object, growing, with jitter, forgotten at the first success.

use crate::{client::Category, reconcile::Guarded};
use kube::runtime::reflector::ObjectRef;
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Failures in a row by object.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<ObjectRef<Guarded>, u32>>,
    jitter: RandomState,
}

impl Backoff {
    /// The reconcile of `object` succeeded.
    pub fn succeeded(&self, object: &ObjectRef<Guarded>) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
    }

    /// The reconcile of `object` failed: how long to wait. A conflict only means that somebody else was first.
    pub fn failed(&self, object: ObjectRef<Guarded>, category: Category) -> Duration {
        let jitter = self.jitter.hash_one(&object) % 100;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object).or_default();
        let wait = wait(*count, category);
        *count = count.saturating_add(1);
        wait + wait * jitter as u32 / 1000
    }
}

fn wait(failures: u32, category: Category) -> Duration {
    let (first, most) = match category {
        Category::Conflict => (Duration::from_millis(200), Duration::from_secs(5)),
        // A policy or a role that a person corrects: what it held up may be a rollback.
        Category::Denied => (Duration::from_secs(5), Duration::from_secs(30)),
        _ => (Duration::from_secs(5), Duration::from_mins(5)),
    };
    first.saturating_mul(2u32.saturating_pow(failures.min(16))).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_grows_to_its_limit_and_starts_anew_after_a_success() {
        let backoff = Backoff::default();
        let object = ObjectRef::<Guarded>::new("chat").within("ns");
        let failed = |category| backoff.failed(object.clone(), category);
        let first = failed(Category::Transient);
        assert!((5.0..=5.5).contains(&first.as_secs_f64()), "{first:?}");
        let later: Vec<_> = (0..20).map(|_| failed(Category::Transient)).collect();
        assert!(later.is_sorted());
        assert!((300.0..=330.0).contains(&later[19].as_secs_f64()), "{:?}", later[19]);
        backoff.succeeded(&object);
        assert!(failed(Category::Conflict) <= Duration::from_millis(220));
    }
}
