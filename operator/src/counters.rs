//! References of the workers' cumulative counters: what was read at the last tick that was stored.
//!
//! They live in memory only and advance after the status write of their tick succeeded. So a tick is counted exactly
//! once: a conflict recomputes it from the same references, and a new leader, which has none, drops one interval.

mod usage;
mod users;

pub use usage::Usage;

use bitnet_api::worker::{Buckets, Counters};
use bitnet_core::{
    Span,
    evidence::{Histogram, LiveArm},
    observation::{Live, Users},
    stats::counters::{PodCounters, add, delta},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};
use tokio::time::Instant;
use users::{Groups, PodUsers};

/// A scrape older than this many intervals is no reference: weights may have changed since.
const STALE: i64 = 3;

/// Answers of one arm's ready pods.
#[derive(Clone, Debug, Default)]
pub struct ArmScrape {
    /// The arm's revision.
    pub revision: String,
    /// By pod; `None`: it did not answer, or nothing usable.
    pub answers: Vec<(String, Option<Counters>)>,
    /// All pods that exist, ready or not: a container that restarts keeps its reference.
    pub alive: BTreeSet<String>,
}

/// Answers of both arms in a tick.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// The candidate's.
    pub candidate: ArmScrape,
    /// Stable's.
    pub stable: ArmScrape,
    /// Length of a tick.
    pub interval: Span,
    /// Number of the attempt: another one is another test, for which users count anew.
    pub attempt: u32,
}

/// The references of one rollout.
#[derive(Clone, Debug)]
struct Known {
    at: Instant,
    scrape: u64,
    pods: BTreeMap<String, Last>,
    /// The test that the groups belong to: candidate and attempt.
    test: (String, u32),
    /// Groups of users that candidate and stable have met.
    groups: [Groups; 2],
}

/// Last counters of a pod.
#[derive(Clone, Debug)]
struct Last {
    counters: PodCounters,
    users: PodUsers,
    usage: Usage,
    /// Number of the scrape that read them.
    scrape: u64,
}

/// References that wait for the status write of their tick.
#[derive(Clone, Debug)]
pub struct Pending {
    uid: String,
    next: Known,
    used: Option<[Usage; 2]>,
}

impl Pending {
    /// What candidate and stable used in the interval of this tick; `None` where nothing was counted in it.
    pub fn used(&self) -> Option<&[Usage; 2]> {
        self.used.as_ref()
    }
}

/// What the pods of an arm did in an interval.
#[derive(Default)]
struct Interval {
    live: LiveArm,
    users: PodUsers,
    usage: Option<Usage>,
}

/// The references of all rollouts, by UID.
#[derive(Debug, Default)]
pub struct References(Mutex<BTreeMap<String, Known>>);

impl References {
    /// What happened since the last stored tick, and the references to take over once this one is stored.
    ///
    /// `None` where an arm has no pod with a usable reference or a ready pod did not answer.
    pub fn difference(&self, uid: &str, scrape: &Scrape) -> (Option<Live>, Pending) {
        let now = Instant::now();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(uid).filter(|known| {
            now.duration_since(known.at).as_millis() as i64 <= scrape.interval.0.max(1000).saturating_mul(STALE)
        });
        let number = before.map_or(0, |before| before.scrape) + 1;
        let test = (scrape.candidate.revision.clone(), scrape.attempt);
        let same = known.get(uid).filter(|known| known.test == test);
        let groups = same.map(|known| known.groups.clone()).unwrap_or_default();
        let mut next = Known { at: now, scrape: number, pods: BTreeMap::new(), test, groups };
        let mut met = [0, 0];
        let mut users = PodUsers::default();
        let arms = [&scrape.candidate, &scrape.stable];
        for (i, arm) in arms.into_iter().enumerate() {
            for answer in arm.answers.iter().filter_map(|(_, answer)| answer.as_ref()) {
                met[i] += next.groups[i].take(&answer.users.groups);
            }
        }
        // What was met before the first look at this test is not of this interval.
        let met = if same.is_some() && before.is_some() { met } else { [0, 0] };
        let mut assigned = [0, 0];
        let arms = [0, 1].map(|i| {
            let Interval { live, users: these, usage } = arm_difference(before, arms[i], &mut next)?;
            assigned[i] = these.assigned().saturating_add(met[i]);
            users.add(&these);
            Some((live, usage.unwrap_or(Usage::NONE)))
        });
        let users = Users {
            assigned: assigned.into(),
            outcomes: (users.outcomes(&scrape.candidate.revision), users.outcomes(&scrape.stable.revision)),
        };
        let seconds = before.map_or(0.0, |before| now.duration_since(before.at).as_secs_f64());
        let (live, used) = match arms {
            [Some((candidate, spent)), Some((stable, by_stable))] => {
                (Some(Live { candidate, stable, seconds, users }), Some([spent, by_stable]))
            }
            _ => (None, None),
        };
        (live, Pending { uid: uid.to_owned(), next, used })
    }

    /// Takes references over: their tick was stored.
    pub fn commit(&self, pending: Pending) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pending.uid, pending.next);
    }

    /// Drops the references of a rollout that is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

fn arm_difference(before: Option<&Known>, arm: &ArmScrape, next: &mut Known) -> Option<Interval> {
    let reference = |pod: &str| before.and_then(|before| before.pods.get(pod));
    // Pods that were not asked keep their last counters: what ran on them when they crashed is still owed.
    for pod in &arm.alive {
        if let Some(known) = reference(pod) {
            next.pods.insert(pod.clone(), known.clone());
        }
    }
    let mut complete = true;
    let mut counted: Option<Interval> = None;
    for (pod, answer) in &arm.answers {
        let Some(answer) = answer else {
            complete = false;
            continue;
        };
        let (counters, users, usage) = (pod_counters(answer), PodUsers::of(answer), Usage::of(answer));
        if let Some(last) = reference(pod) {
            // The same process without the scrape before this one: the difference spans more than this interval.
            let fresh = before.is_some_and(|before| last.scrape == before.scrape);
            let same = last.counters.process == counters.process;
            if fresh || !same {
                let arm = counted.get_or_insert_default();
                add(&mut arm.live, &delta(Some(&last.counters), Some(&counters)));
                arm.users.add(&users.since(Some(&last.users).filter(|_| same)));
                arm.usage.get_or_insert(Usage::NONE).add(&usage.since(Some(&last.usage).filter(|_| same)));
            }
        }
        next.pods.insert(pod.clone(), Last { counters, users, usage, scrape: next.scrape });
    }
    counted.filter(|_| complete)
}

impl ArmScrape {
    /// Cumulative counts of the pods that answered, with the age of the oldest in seconds.
    pub fn total(&self) -> Option<(LiveArm, f64)> {
        let answers: Vec<_> = self.answers.iter().filter_map(|(_, answer)| answer.as_ref()).collect();
        let oldest = answers
            .iter()
            .map(|answer| answer.ready_seconds)
            .fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))))?;
        let mut total = LiveArm::default();
        for answer in answers {
            add(&mut total, &pod_counters(answer).totals);
        }
        Some((total, oldest))
    }
}

fn pod_counters(counters: &Counters) -> PodCounters {
    let histogram = |buckets: &Buckets| Histogram(buckets.0.iter().copied().filter(|(_, count)| *count > 0).collect());
    let errors = counters.errors.total();
    PodCounters {
        process: counters.process.clone(),
        totals: LiveArm {
            requests: counters.finished.saturating_add(errors),
            errors,
            ttft: histogram(&counters.ttft),
            tpot: histogram(&counters.tpot),
        },
        in_flight: counters.in_flight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_api::worker::{ErrorCounts, Feedback};

    fn pod(process: &str, finished: u64, server: u64, in_flight: u64) -> Counters {
        Counters {
            process: process.into(),
            ready_seconds: finished as f64,
            ttft: Buckets(vec![(-10, finished)]),
            finished,
            errors: ErrorCounts { server, ..ErrorCounts::default() },
            in_flight,
            ..Counters::default()
        }
    }

    fn arm(pods: &[(&str, Option<Counters>)]) -> ArmScrape {
        let answers = pods.iter().map(|(name, answer)| ((*name).to_owned(), answer.clone())).collect();
        ArmScrape { revision: String::new(), answers, alive: pods.iter().map(|(name, _)| (*name).to_owned()).collect() }
    }

    fn scrape(candidate: ArmScrape, stable: ArmScrape) -> Scrape {
        Scrape { candidate, stable, interval: Span::seconds(2), attempt: 1 }
    }

    fn steady(n: u64) -> Scrape {
        scrape(arm(&[("c", Some(pod("c1", n, 0, 0)))]), arm(&[("s", Some(pod("s1", 10 * n, 0, 0)))]))
    }

    #[tokio::test(start_paused = true)]
    async fn an_interval_is_counted_once_and_only_after_it_was_stored() {
        let references = References::default();
        let (live, pending) = references.difference("u", &steady(5));
        assert_eq!(live, None, "the first scrape only sets");
        references.commit(pending);
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        for _ in 0..2 {
            // A conflict at the status write: the same interval comes again.
            let (live, _) = references.difference("u", &steady(7));
            let live = live.unwrap();
            assert_eq!((live.candidate.requests, live.stable.requests), (2, 20));
            assert_eq!(live.candidate.ttft.0, BTreeMap::from([(-10, 2)]));
            assert!((live.seconds - 2.0).abs() < 1e-9);
        }
        let (_, pending) = references.difference("u", &steady(7));
        references.commit(pending);
        let (live, _) = references.difference("u", &steady(7));
        assert_eq!(live.unwrap().stable.requests, 0);
        references.forget("u");
        assert_eq!(references.difference("u", &steady(9)).0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_is_counted_with_its_interval() {
        let references = References::default();
        let at = |process: &str, tokens: u64, joules: Option<f64>| {
            let counters = Counters {
                generated_tokens: tokens,
                busy_seconds: tokens as f64 / 10.0,
                energy_joules: joules,
                ..pod(process, tokens, 0, 0)
            };
            scrape(arm(&[("c", Some(counters.clone()))]), arm(&[("s", Some(counters.clone())), ("t", Some(counters))]))
        };
        let used = |scrape: &Scrape| {
            let (_, pending) = references.difference("u", scrape);
            let used = pending.used().copied();
            references.commit(pending);
            used
        };
        assert_eq!(used(&at("1", 50, Some(9.0))), None, "the first scrape only sets");
        let [candidate, stable] = used(&at("1", 70, Some(15.0))).unwrap();
        assert_eq!(candidate, Usage { tokens: 20, busy_seconds: 2.0, joules: Some(6.0) });
        assert_eq!(stable, Usage { tokens: 40, busy_seconds: 4.0, joules: Some(12.0) }, "of both pods");
        let [candidate, _] = used(&at("2", 30, Some(4.0))).unwrap();
        assert_eq!(candidate, Usage { tokens: 30, busy_seconds: 3.0, joules: Some(4.0) }, "another process");
        let [candidate, _] = used(&at("2", 40, None)).unwrap();
        assert_eq!((candidate.tokens, candidate.joules), (10, None));
        let silent = scrape(arm(&[("c", None)]), arm(&[("s", Some(pod("2", 50, 0, 0)))]));
        assert_eq!(used(&silent), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_pod_voids_the_interval_and_is_not_counted_twice_later() {
        let references = References::default();
        let both = |c: Option<Counters>, n| scrape(arm(&[("c", c)]), arm(&[("s", Some(pod("s1", n, 0, 0)))]));
        references.commit(references.difference("u", &both(Some(pod("c1", 5, 0, 0)), 10)).1);
        let (live, pending) = references.difference("u", &both(None, 20));
        assert_eq!(live, None);
        references.commit(pending);
        let (live, pending) = references.difference("u", &both(Some(pod("c1", 50, 0, 0)), 30));
        assert_eq!(live, None, "the candidate's difference would span two intervals");
        references.commit(pending);
        let (live, _) = references.difference("u", &both(Some(pod("c1", 51, 0, 0)), 40));
        let live = live.unwrap();
        assert_eq!((live.candidate.requests, live.stable.requests), (1, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_ran_at_a_crash_counts_as_errors_even_if_the_pod_was_away_for_a_tick() {
        let references = References::default();
        let stable = |n| arm(&[("s", Some(pod("s1", n, 0, 0)))]);
        let away = ArmScrape { alive: BTreeSet::from(["c".to_owned()]), ..ArmScrape::default() };
        references.commit(references.difference("u", &scrape(arm(&[("c", Some(pod("c1", 5, 0, 3)))]), stable(1))).1);
        let (live, pending) = references.difference("u", &scrape(away, stable(2)));
        assert_eq!(live, None, "no candidate pod answered");
        references.commit(pending);
        let back = arm(&[("c", Some(pod("c2", 4, 1, 0)))]);
        let live = references.difference("u", &scrape(back, stable(3))).0.unwrap();
        assert_eq!((live.candidate.requests, live.candidate.errors), (5 + 3, 1 + 3));
    }

    #[tokio::test(start_paused = true)]
    async fn users_are_counted_once_by_cookie_or_by_group_and_anew_in_another_attempt() {
        let references = References::default();
        let with = |groups: &str, assigned: u64, said: u64, n: u64| {
            let feedback = |revision: &str| Feedback {
                revision: revision.into(),
                count: said,
                sum: 1000 * said,
                squares: 1_000_000 * said,
            };
            let users = bitnet_api::worker::Users {
                assigned,
                groups: groups.into(),
                feedback: vec![feedback("chat-c"), feedback("chat-s")],
            };
            Counters { users, ..pod("p", n, 0, 0) }
        };
        let at = |c: Counters, s: Counters, attempt| {
            let named = |revision: &str, pod: &str, counters| ArmScrape {
                revision: revision.into(),
                ..arm(&[(pod, Some(counters))])
            };
            Scrape { attempt, ..scrape(named("chat-c", "c", c), named("chat-s", "s", s)) }
        };
        references.commit(references.difference("u", &at(with("01", 4, 1, 5), with("f0", 9, 2, 5), 1)).1);
        let (live, pending) = references.difference("u", &at(with("03", 6, 2, 6), with("f1", 9, 2, 6), 1));
        let users = live.unwrap().users;
        // One group and two cookies of the candidate, one group of stable.
        assert_eq!(users.assigned, (1 + 2, 1));
        // Feedback about the candidate's answers came in at the candidate; stable heard nothing new about either.
        assert_eq!((users.outcomes.0.n, users.outcomes.1.n), (1, 1));
        references.commit(pending);
        let (live, _) = references.difference("u", &at(with("03", 6, 2, 6), with("f1", 9, 2, 6), 2));
        assert_eq!(live.unwrap().users.assigned, (0, 0), "what was met before the first look at a test is not of it");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_reference_only_sets() {
        let references = References::default();
        references.commit(references.difference("u", &steady(5)).1);
        tokio::time::advance(std::time::Duration::from_secs(7)).await;
        assert_eq!(references.difference("u", &steady(9)).0, None);
    }

    #[test]
    fn totals_are_summed_with_the_age_of_the_oldest() {
        let both = arm(&[("a", Some(pod("1", 5, 1, 0))), ("b", Some(pod("2", 7, 0, 0))), ("c", None)]);
        let (total, age) = both.total().unwrap();
        assert_eq!((total.requests, total.errors, age), (13, 1, 7.0));
        assert!(ArmScrape::default().total().is_none());
    }
}
