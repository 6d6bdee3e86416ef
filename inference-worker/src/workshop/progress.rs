//! What a person sees while a pair is made: a bar on a terminal, plain lines otherwise.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Receives what happens; the workshop itself prints nothing.
pub trait Progress {
    /// A stage begins that has this many steps (0: not counted).
    fn stage(&mut self, name: &str, steps: usize);
    /// A step of the stage is done.
    fn step(&mut self, done: usize, loss: f32, tokens: usize);
    /// Something worth a line.
    fn note(&mut self, line: &str);
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&mut self, _: &str, _: usize) {}
    fn step(&mut self, _: usize, _: f32, _: usize) {}
    fn note(&mut self, _: &str) {}
}

/// Writes to standard error.
#[derive(Debug)]
pub struct Console {
    bar: Option<ProgressBar>,
    stage: String,
    steps: usize,
    started: Instant,
    printed: Instant,
    tokens: usize,
    terminal: bool,
}

/// Plain lines come at most this often.
const LINES: Duration = Duration::from_secs(5);

impl Console {
    /// A bar if standard error is a terminal, else lines.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            bar: None,
            stage: String::new(),
            steps: 0,
            started: now,
            printed: now,
            tokens: 0,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn status(&self, done: usize, loss: f32) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let left = seconds / done.max(1) as f64 * self.steps.saturating_sub(done) as f64;
        format!("loss {loss:.4}  {:.0} tokens/s  {left:.0} s left", self.tokens as f64 / seconds)
    }

    fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Console {
    fn stage(&mut self, name: &str, steps: usize) {
        self.close();
        name.clone_into(&mut self.stage);
        (self.steps, self.tokens) = (steps, 0);
        self.started = Instant::now();
        self.printed = self.started;
        if self.terminal && steps > 0 {
            let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
            // A template of constants: were it malformed, the plain bar would do.
            let style = ProgressStyle::with_template("{prefix:12} {wide_bar} {pos}/{len}  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(self.stage.clone());
            self.bar = Some(bar);
        } else {
            eprintln!("{name}");
        }
    }

    fn step(&mut self, done: usize, loss: f32, tokens: usize) {
        self.tokens += tokens;
        if let Some(bar) = &self.bar {
            bar.set_message(self.status(done, loss));
            bar.set_position(done as u64);
        } else if done == self.steps || self.printed.elapsed() >= LINES {
            eprintln!("{}: step {done}/{}  {}", self.stage, self.steps, self.status(done, loss));
            self.printed = Instant::now();
        }
        if done == self.steps {
            self.close();
        }
    }

    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close();
    }
}
