//! Many runs on all processors, and how far they are.

use std::{
    num::NonZero,
    sync::atomic::{AtomicU64, Ordering},
};

/// Runs of the seeds that follow from `seed`, in their order, on all processors.
pub(super) fn parallel<T: Send>(seed: u64, runs: u64, f: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let first = seed.wrapping_mul(1_000_003);
    let part = |thread: u64| -> Vec<(u64, T)> {
        (thread..runs).step_by(threads as usize).map(|i| (i, f(first.wrapping_add(i)))).collect()
    };
    let mut all: Vec<(u64, T)> = std::thread::scope(|scope| {
        let part = &part;
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        // A panic of a run is a defect of ours: it goes on here.
        let joined = handles.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, run)| run).collect()
}

/// How far it is, on a terminal's standard error.
pub(super) struct Progress {
    shown: bool,
    all: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    pub(super) fn new(shown: bool) -> Self {
        Self { shown, all: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    pub(super) fn begin(&self, all: u64) {
        self.all.store(all, Ordering::Relaxed);
    }

    pub(super) fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.all.load(Ordering::Relaxed).max(1);
        // Once per percent.
        if self.shown && done * 100 / all != (done - 1) * 100 / all {
            eprint!("\rsimulating: {} %", done * 100 / all);
        }
    }

    pub(super) fn end(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
