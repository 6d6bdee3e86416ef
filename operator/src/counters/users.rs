//! Users of an A/B test in one interval, from what each worker process has met since it began.

use bitnet_api::worker::{Counters, Feedback};
use bitnet_core::stats::asymptotic::Moments;
use std::collections::BTreeMap;

/// First feedback about one revision: users, sum in thousandths, sum of squares in millionths.
type Sums = (u64, u64, u64);

/// What one process has met.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PodUsers {
    assigned: u64,
    feedback: BTreeMap<String, Sums>,
}

impl PodUsers {
    pub(super) fn of(counters: &Counters) -> Self {
        let sums = |f: &Feedback| (f.revision.clone(), (f.count, f.sum, f.squares));
        Self { assigned: counters.users.assigned, feedback: counters.users.feedback.iter().map(sums).collect() }
    }

    /// What was met since `previous`; everything, where the process is another one or any counter fell.
    pub(super) fn since(&self, previous: Option<&Self>) -> Self {
        previous.and_then(|previous| self.minus(previous)).unwrap_or_else(|| self.clone())
    }

    fn minus(&self, previous: &Self) -> Option<Self> {
        let mut feedback = BTreeMap::new();
        for (revision, (count, sum, squares)) in &self.feedback {
            let (n, s, q) = previous.feedback.get(revision).copied().unwrap_or_default();
            let rest = (count.checked_sub(n)?, sum.checked_sub(s)?, squares.checked_sub(q)?);
            feedback.insert(revision.clone(), rest);
        }
        Some(Self { assigned: self.assigned.checked_sub(previous.assigned)?, feedback })
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.assigned = self.assigned.saturating_add(other.assigned);
        for (revision, (count, sum, squares)) in &other.feedback {
            let all = self.feedback.entry(revision.clone()).or_default();
            *all = (all.0.saturating_add(*count), all.1.saturating_add(*sum), all.2.saturating_add(*squares));
        }
    }

    pub(super) fn assigned(&self) -> u64 {
        self.assigned
    }

    /// First feedback about answers of `revision`.
    pub(super) fn outcomes(&self, revision: &str) -> Moments {
        let (n, sum, squares) = self.feedback.get(revision).copied().unwrap_or_default();
        Moments { n, sum: sum as f64 / 1e3, squares: squares as f64 / 1e6 }
    }
}

/// Groups of users that an arm has met, over all of its processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Groups(Vec<u8>);

impl Groups {
    /// Takes a process's groups; returns how many are new. Text that is no bit set brings none.
    pub(super) fn take(&mut self, text: &str) -> u64 {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        let bytes: Vec<u8> = digits.unwrap_or_default().chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect();
        if self.0.len() < bytes.len() {
            self.0.resize(bytes.len(), 0);
        }
        let mut new = 0;
        for (known, byte) in self.0.iter_mut().zip(bytes) {
            new += u64::from((byte & !*known).count_ones());
            *known |= byte;
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_api::worker::Users;

    fn pod(assigned: u64, feedback: &[(&str, u64, u64, u64)]) -> PodUsers {
        let feedback = feedback.iter().map(|(revision, count, sum, squares)| Feedback {
            revision: (*revision).into(),
            count: *count,
            sum: *sum,
            squares: *squares,
        });
        PodUsers::of(&Counters {
            users: Users { assigned, groups: String::new(), feedback: feedback.collect() },
            ..Counters::default()
        })
    }

    #[test]
    fn an_interval_is_the_difference_or_everything_since_a_restart() {
        let before = pod(5, &[("a", 2, 1500, 1_250_000)]);
        let now = pod(7, &[("a", 3, 2500, 2_250_000), ("b", 1, 0, 0)]);
        let since = now.since(Some(&before));
        assert_eq!((since.assigned(), since.outcomes("b").n), (2, 1));
        assert_eq!(since.outcomes("a"), Moments { n: 1, sum: 1.0, squares: 1.0 });
        assert_eq!(before.since(Some(&now)), before, "a counter fell: the process began again");
        assert_eq!(now.since(None), now);
    }

    #[test]
    fn a_group_is_new_once_whichever_process_meets_it() {
        let mut groups = Groups::default();
        assert_eq!(groups.take("0103"), 3);
        assert_eq!(groups.take("0103"), 0);
        assert_eq!(groups.take("80"), 1);
        assert_eq!(groups.take("zz"), 0);
        assert_eq!(groups.take(""), 0);
    }
}
