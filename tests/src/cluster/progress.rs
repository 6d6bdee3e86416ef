//! One line per finished stage, with its time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Reports stages on standard error as they end; shared by the threads of one `up`.
#[derive(Debug, Clone)]
pub struct Progress {
    begin: Instant,
    quiet: bool,
}

impl Progress {
    /// Prints one line per stage.
    pub fn visible() -> Self {
        Self { begin: Instant::now(), quiet: false }
    }

    /// Prints nothing: for tests.
    pub fn quiet() -> Self {
        Self { begin: Instant::now(), quiet: true }
    }

    /// Time since the first stage began.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Prints a line at once.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{:>6.1} s  {text}", self.elapsed().as_secs_f64());
        }
    }

    /// Runs one stage, names it in its error, and reports how long it took.
    pub fn stage<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let value = work().with_context(|| format!("{name} failed"))?;
        self.note(&format!("{name} ({:.1} s)", begin.elapsed().as_secs_f64()));
        Ok(value)
    }
}
