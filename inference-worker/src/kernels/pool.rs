//! Threads that share the work of one product.
//!
//! Work is cut into parts that threads take one by one, the calling thread as well. So a thread that another process
//! keeps from running delays its callers by the part that it holds, and by nothing else; threads that are at equal
//! shares, or that meet at a barrier, would all run at the pace of the slowest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two products of a forward pass little time passes; a thread that slept would come too late for most.
const SPIN: Duration = Duration::from_micros(60);
/// Looks at the state between two looks at the clock.
const LOOKS: usize = 64;

/// A function of the number of a part.
type Part<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads that wait for work; they end when this value is dropped.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Whether a caller has the helpers.
    taken: AtomicBool,
}

struct Shared {
    /// Parts of the present work in the upper half, the next one to take in the lower; equal: nothing to take.
    state: AtomicU64,
    /// A `Part` on the stack of the caller. It is there for whoever has taken a part that is not done.
    work: AtomicPtr<()>,
    done: AtomicUsize,
    panicked: AtomicBool,
    closing: AtomicBool,
    /// Helpers that sleep, or are about to.
    asleep: AtomicUsize,
    /// The caller sleeps until `done` is complete.
    caller_asleep: AtomicBool,
    lock: Mutex<()>,
    to_helpers: Condvar,
    to_caller: Condvar,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of `threads` threads, the calling one included; at least 1.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            caller_asleep: AtomicBool::new(false),
            lock: Mutex::new(()),
            to_helpers: Condvar::new(),
            to_caller: Condvar::new(),
        });
        // Built first, so that an error below stops the threads that have started.
        let mut pool = Self { shared, helpers: Vec::new(), taken: AtomicBool::new(false) };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let helper = std::thread::Builder::new().name(format!("kernel-{index}")).spawn(move || shared.help())?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Threads that share work, the calling one included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `part` once for each number below `count`, on all threads, and returns when all calls have returned. A
    /// call while another thread uses the pool, or from a part, runs on the calling thread alone.
    ///
    /// # Panics
    /// If a part panics, after the others have ended.
    pub fn run(&self, count: usize, part: Part<'_>) {
        let alone = count < 2 || self.helpers.is_empty() || u32::try_from(count).is_err();
        if alone || self.taken.swap(true, Ordering::Acquire) {
            (0..count).for_each(part);
            return;
        }
        let shared = &*self.shared;
        shared.done.store(0, Ordering::Relaxed);
        let work: *const Part<'_> = &raw const part;
        shared.work.store(work.cast_mut().cast(), Ordering::Relaxed);
        // Sequentially consistent with `asleep`: either a helper that is about to sleep sees this, or it is seen below.
        shared.state.store((count as u64) << 32, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            drop(shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
            shared.to_helpers.notify_all();
        }
        while let Some(index) = shared.take() {
            shared.call(index);
        }
        shared.wait_until_done(count);
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        self.taken.store(false, Ordering::Release);
        assert!(!panicked, "a part of a product panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        drop(self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.to_helpers.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches what its parts throw, so there is nothing to learn here.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn open(state: u64) -> bool {
        (state & u64::from(u32::MAX)) < state >> 32
    }

    /// Takes the next part, if there is one. Whoever has it may use `work` until it has counted the part as done: the
    /// caller waits for that before it returns or starts other work.
    fn take(&self) -> Option<usize> {
        let mut state = self.state.load(Ordering::Acquire);
        while Self::open(state) {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((state & u64::from(u32::MAX)) as usize),
                Err(now) => state = now,
            }
        }
        None
    }

    /// Calls a part that [`Shared::take`] gave.
    fn call(&self, index: usize) {
        let work = self.work.load(Ordering::Relaxed).cast::<Part<'static>>();
        // SAFETY: `take` gave this part of the present work, and its exchange read what `run` stored after `work`. The
        // part is not counted as done, so `run` has not returned and the pointer is to its living argument.
        let part = unsafe { *work };
        if catch_unwind(AssertUnwindSafe(|| part(index))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        let count = (self.state.load(Ordering::Relaxed) >> 32) as usize;
        // Sequentially consistent with `caller_asleep`, as `state` with `asleep`.
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 == count && self.caller_asleep.load(Ordering::SeqCst) {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.to_caller.notify_all();
        }
    }

    /// Waits for the parts that helpers hold. Soon the caller sleeps: then its CPU is free for a helper that another
    /// process has pushed from its own.
    fn wait_until_done(&self, count: usize) {
        if spin_until(|| self.done.load(Ordering::Acquire) == count) {
            return;
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.caller_asleep.store(true, Ordering::SeqCst);
        while self.done.load(Ordering::SeqCst) != count {
            guard = self.to_caller.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_asleep.store(false, Ordering::Relaxed);
    }

    fn help(&self) {
        loop {
            while let Some(index) = self.take() {
                self.call(index);
            }
            if spin_until(|| Self::open(self.state.load(Ordering::Relaxed)) || self.closing.load(Ordering::Relaxed)) {
                if self.closing.load(Ordering::Relaxed) {
                    return;
                }
                continue;
            }
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.asleep.fetch_add(1, Ordering::SeqCst);
            while !Self::open(self.state.load(Ordering::SeqCst)) && !self.closing.load(Ordering::SeqCst) {
                guard = self.to_helpers.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Looks for a short time whether something has come true.
fn spin_until(mut ready: impl FnMut() -> bool) -> bool {
    let mut start = None;
    loop {
        for _ in 0..LOOKS {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_called_once_whatever_the_pauses() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for round in 0..3_000_usize {
                let count = round % 37;
                let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, &|part| {
                    calls[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "round {round}");
                if round % 500 == 0 {
                    // Long enough for all helpers to fall asleep.
                    std::thread::sleep(SPIN * 20);
                }
            }
        }
    }

    #[test]
    fn the_caller_wakes_after_a_long_part_of_a_helper() {
        let pool = Pool::new(3).unwrap();
        let caller = std::thread::current().id();
        let slow = AtomicUsize::new(0);
        while slow.load(Ordering::Relaxed) == 0 {
            pool.run(30, &|_| {
                if std::thread::current().id() != caller && slow.fetch_add(1, Ordering::Relaxed) == 0 {
                    std::thread::sleep(SPIN * 200);
                }
            });
        }
    }

    #[test]
    fn a_second_caller_and_a_part_of_a_part_work_alone() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, &|_| {
                            pool.run(3, &|inner| {
                                sum.fetch_add(inner, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 5 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_works_on() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..6 {
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(6, &|part| assert_ne!(part, bad))));
            assert!(outcome.is_err());
        }
        let calls = AtomicUsize::new(0);
        pool.run(9, &|_| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 9);
    }
}
