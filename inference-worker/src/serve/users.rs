//! Users of an A/B test that this process met: who was given its cookie, which groups came, what they said. Bounded
//! memory, numbers only.

use super::split::Split;
use bitnet_api::worker::{Feedback, USER_GROUPS, Users as Counts};
use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// First feedback is remembered of this many users; the oldest are forgotten.
const REMEMBERED: usize = 1 << 16;
/// Revisions whose answers feedback is counted about: those of a rollout that can have live answers, and their forerunners.
const REVISIONS: usize = 8;

/// What is known of users.
#[derive(Default)]
pub(crate) struct Users(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Candidate and attempt of the test that the groups and the remembered users are of.
    test: Option<(String, u32)>,
    assigned: u64,
    groups: Vec<u8>,
    heard: HashSet<u64>,
    order: VecDeque<u64>,
    feedback: Vec<Feedback>,
}

impl Users {
    /// A new user was given our cookie.
    pub(crate) fn assigned(&self, split: &Split) {
        self.of(split).assigned += 1;
    }

    /// A user of this group came to us, as assigned.
    pub(crate) fn came(&self, split: &Split, group: usize) {
        let mut known = self.of(split);
        known.groups.resize(USER_GROUPS / 8, 0);
        if let Some(byte) = known.groups.get_mut(group / 8) {
            *byte |= 1 << (group % 8);
        }
    }

    /// The first feedback of a user about an answer of `revision`; false where the user said something before.
    pub(crate) fn said(&self, split: Option<&Split>, user: u64, revision: &str, value: f64) -> bool {
        let mut known = match split {
            Some(split) => self.of(split),
            None => self.lock(),
        };
        if !known.heard.insert(user) {
            return false;
        }
        known.order.push_back(user);
        if known.order.len() > REMEMBERED
            && let Some(oldest) = known.order.pop_front()
        {
            known.heard.remove(&oldest);
        }
        let place = known.feedback.iter().position(|f| f.revision == revision);
        let place = place.unwrap_or_else(|| {
            if known.feedback.len() == REVISIONS {
                known.feedback.remove(0);
            }
            known.feedback.push(Feedback { revision: revision.to_owned(), ..Feedback::default() });
            known.feedback.len() - 1
        });
        let thousandths = (value.clamp(0.0, 1.0) * 1000.0).round() as u64;
        let feedback = &mut known.feedback[place];
        feedback.count += 1;
        feedback.sum += thousandths;
        feedback.squares += thousandths * thousandths;
        true
    }

    /// The counters as they are now.
    pub(crate) fn counts(&self) -> Counts {
        let known = self.lock();
        let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
        let groups = known.groups.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        Counts { assigned: known.assigned, groups, feedback: known.feedback.clone() }
    }

    /// What is known of the users of this test: another candidate or attempt begins anew, counters excepted.
    fn of(&self, split: &Split) -> MutexGuard<'_, Known> {
        let mut known = self.lock();
        let test = (split.candidate.clone(), split.attempt);
        if known.test.as_ref() != Some(&test) {
            known.test = Some(test);
            known.groups.clear();
            known.heard.clear();
            known.order.clear();
        }
        known
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Plain additions: a panic elsewhere leaves no half-made change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(attempt: u32) -> Split {
        let mark = format!("1;u;chat-aaaaaaaaaa;chat-bbbbbbbbbb;10;{attempt};cookie;arm;60");
        Split::read(&mark, "u").expect("a mark")
    }

    #[test]
    fn a_user_is_heard_once_per_test_and_sums_are_exact() {
        let users = Users::default();
        assert!(users.said(Some(&split(1)), 7, "chat-bbbbbbbbbb", 0.25));
        assert!(!users.said(Some(&split(1)), 7, "chat-bbbbbbbbbb", 1.0));
        assert!(users.said(Some(&split(2)), 7, "chat-bbbbbbbbbb", 1.0), "another attempt is another test");
        let wanted = Feedback { revision: "chat-bbbbbbbbbb".into(), count: 2, sum: 1250, squares: 1_062_500 };
        assert_eq!(users.counts().feedback, [wanted]);
    }

    #[test]
    fn groups_are_a_bit_set_that_a_new_test_empties_and_assignments_only_grow() {
        let users = Users::default();
        users.came(&split(1), 9);
        users.came(&split(1), 9);
        users.assigned(&split(1));
        let counts = users.counts();
        assert_eq!((counts.groups.len(), &counts.groups[..6], counts.assigned), (USER_GROUPS / 4, "000200", 1));
        users.assigned(&split(2));
        assert_eq!((users.counts().groups.as_str(), users.counts().assigned), ("", 2));
    }

    #[test]
    fn memory_is_bounded() {
        let users = Users::default();
        for user in 0..REMEMBERED as u64 + 10 {
            users.said(None, user, &format!("chat-{}", user % 20), 1.0);
        }
        let known = users.lock();
        assert_eq!((known.heard.len(), known.order.len(), known.feedback.len()), (REMEMBERED, REMEMBERED, REVISIONS));
    }
}
