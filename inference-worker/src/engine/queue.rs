//! The bounded queue in front of the engine.

use super::job::{Class, Job, Refused};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// First come, first served; blocks without spinning; never grows beyond its capacity.
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    capacity: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// Places of internal jobs, which are their own: a flood of users must not stop the comparison that would judge it, and
/// the other way round. One compare job and its peers ask for a few things at a time.
const INTERNAL_PLACES: usize = 16;

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), capacity }
    }

    /// Adds a job at the end, or refuses it.
    pub(crate) fn push(&self, job: Job) -> Result<(), Refused> {
        self.push_all(vec![job])
    }

    /// Adds jobs of one class at the end, or refuses all of them.
    pub(crate) fn push_all(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let Some(class) = jobs.first().map(|job| job.class) else { return Ok(()) };
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Stopped);
        }
        let limit = match class {
            Class::Live => self.capacity,
            Class::Internal => INTERNAL_PLACES,
            Class::Background if !state.jobs.is_empty() => return Err(Refused::Busy),
            Class::Background => 1,
        };
        let waiting = |state: &State| state.jobs.iter().filter(|waiting| waiting.class == class).count();
        let full = |state: &State| waiting(state) + jobs.len() > limit;
        if full(&state) {
            state.jobs.retain(|waiting| !waiting.events.is_closed());
            if full(&state) {
                return Err(Refused::Full);
            }
        }
        state.jobs.extend(jobs);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next job that somebody still waits for; blocks until there is one. `None`: closed and empty.
    pub(crate) fn wait(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = pop(&mut state) {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next job if one arrives before `until`.
    pub(crate) fn wait_until(&self, until: Instant) -> Option<Job> {
        let mut state = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(job) = pop(&mut state) {
                return Some(job);
            }
            if state.closed || left.is_zero() {
                return None;
            }
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The next job if one is there.
    pub(crate) fn take(&self) -> Option<Job> {
        pop(&mut self.lock())
    }

    /// Jobs that wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Users' requests that wait and whose users do, too.
    pub(crate) fn live(&self) -> usize {
        self.lock().jobs.iter().filter(|job| job.class == Class::Live && !job.events.is_closed()).count()
    }

    /// Takes no more jobs; those that wait are still served.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Takes no more jobs and drops those that wait, which tells their callers.
    pub(crate) fn abandon(&self) {
        self.close();
        self.lock().jobs.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the deque half changed: every change is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pop(state: &mut State) -> Option<Job> {
    while let Some(job) = state.jobs.pop_front() {
        if !job.events.is_closed() {
            return Some(job);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::job::{Event, Work};
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc::UnboundedReceiver;

    fn job(class: Class, id: u32) -> (Job, UnboundedReceiver<Event>) {
        Job::new(class, vec![id], Work::Score { positions: vec![0] }, Instant::now())
    }

    #[test]
    fn users_and_comparisons_have_places_of_their_own() {
        let queue = Queue::new(2);
        let comparisons: Vec<_> = (0..INTERNAL_PLACES as u32)
            .map(|i| {
                let (job, receiver) = job(Class::Internal, i);
                queue.push(job).unwrap();
                receiver
            })
            .collect();
        let (internal, _) = job(Class::Internal, 99);
        assert_eq!(queue.push(internal), Err(Refused::Full));
        drop(comparisons);
        let kept: Vec<_> = (0..2)
            .map(|i| {
                let (job, receiver) = job(Class::Live, i);
                queue.push(job).unwrap();
                receiver
            })
            .collect();
        let (third, _third_receiver) = job(Class::Live, 2);
        assert_eq!(queue.push(third), Err(Refused::Full));
        let (internal, _internal_receiver) = job(Class::Internal, 3);
        assert_eq!(queue.push(internal), Ok(()), "places of comparisons that went away are free");
        assert_eq!((queue.len(), queue.live()), (3, 2), "a comparison is no user");
        drop(kept);
        assert_eq!(queue.live(), 0, "who went away does not wait");
        let (fourth, _fourth_receiver) = job(Class::Live, 4);
        assert_eq!(queue.push(fourth), Ok(()), "places of callers that went away are free");
        assert_eq!(queue.take().unwrap().prompt, [3]);
        assert_eq!(queue.take().unwrap().prompt, [4]);
        assert!(queue.take().is_none());
    }

    #[test]
    fn the_jobs_of_one_request_are_taken_all_or_none() {
        let queue = Queue::new(3);
        let jobs = |count: u32| (0..count).map(|id| job(Class::Live, id)).unzip::<_, _, Vec<_>, Vec<_>>();
        let (two, _receivers) = jobs(2);
        assert_eq!(queue.push_all(two), Ok(()));
        let (more, mut refused) = jobs(2);
        assert_eq!(queue.push_all(more), Err(Refused::Full));
        assert_eq!(queue.len(), 2, "none of them waits");
        assert!(refused.iter_mut().all(|events| events.try_recv().is_err() && events.is_closed()));
        let (one, _receiver) = jobs(1);
        assert_eq!(queue.push_all(one), Ok(()));
        assert_eq!(queue.push_all(Vec::new()), Ok(()));
    }

    #[test]
    fn idle_time_is_what_nobody_else_wants() {
        let queue = Queue::new(2);
        let (first, _first_receiver) = job(Class::Background, 1);
        assert_eq!(queue.push(first), Ok(()));
        let (second, _second_receiver) = job(Class::Background, 2);
        assert_eq!(queue.push(second), Err(Refused::Busy));
        let (live, _live_receiver) = job(Class::Live, 3);
        assert_eq!(queue.push(live), Ok(()), "it holds no place of a user");
    }

    #[test]
    fn a_closed_queue_serves_what_waits_and_then_ends() {
        let queue = Queue::new(4);
        let (first, _receiver) = job(Class::Live, 1);
        queue.push(first).unwrap();
        queue.close();
        let (late, _late_receiver) = job(Class::Live, 2);
        assert_eq!(queue.push(late), Err(Refused::Stopped));
        assert_eq!(queue.wait().unwrap().prompt, [1]);
        assert!(queue.wait().is_none());
        assert!(Queue::new(1).wait_until(Instant::now() + Duration::from_millis(5)).is_none());
    }

    #[test]
    fn abandoned_jobs_tell_their_callers() {
        let queue = Queue::new(4);
        let (waiting, mut receiver) = job(Class::Live, 1);
        queue.push(waiting).unwrap();
        queue.abandon();
        assert!(receiver.try_recv().is_err());
        assert!(receiver.is_closed());
    }
}
