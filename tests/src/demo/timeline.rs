use crate::world::Rollouts;
use anyhow::Result;
use bitnet_api::v1alpha1::ModelRolloutStatus;
use std::time::{Duration, Instant};

/// Prints a rollout's progress, one line for each change that a reader cares about.
pub struct Timeline {
    begin: Instant,
    last: Option<Shown>,
    last_line: Instant,
}

/// What makes a new line.
#[derive(Clone, PartialEq)]
struct Shown {
    phase: String,
    step: i32,
    weight: i32,
    verdict: String,
    attempt: Option<i32>,
}

impl Shown {
    fn of(status: &ModelRolloutStatus) -> Self {
        let step = status.step.clone().unwrap_or_default();
        Self {
            phase: status.phase.clone(),
            step: step.index,
            weight: step.weight,
            verdict: status.verdict.clone().unwrap_or_default(),
            attempt: status.attempt,
        }
    }
}

/// Between changes, a line at least this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

impl Timeline {
    /// Time starts now.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { begin: now, last: None, last_line: now }
    }

    /// One line of our own.
    pub fn note(&self, text: &str) {
        println!("  {}  {text}", self.clock());
    }

    /// Time since the start, `m:ss`.
    pub fn clock(&self) -> String {
        let seconds = self.begin.elapsed().as_secs();
        format!("{:>2}:{:02}", seconds / 60, seconds % 60)
    }

    /// Follows `name` until `done` holds of the status of the current generation, or an error after `limit`.
    pub async fn follow(
        &mut self,
        rollouts: &Rollouts,
        name: &str,
        limit: Duration,
        done: impl Fn(&ModelRolloutStatus) -> bool + Send + Sync + 'static,
    ) -> Result<ModelRolloutStatus> {
        let begin = Instant::now();
        loop {
            let rollout = rollouts.get(name).await?;
            let status = rollout.status.unwrap_or_default();
            let current = status.observed_generation == rollout.metadata.generation;
            if current {
                self.show(&status);
            }
            if current && done(&status) {
                return Ok(status);
            }
            if begin.elapsed() > limit {
                anyhow::bail!("{name} is still {} after {} s: {}", status.phase, limit.as_secs(), status.message);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// What is known already: no line for it.
    #[must_use]
    pub fn after(mut self, status: &ModelRolloutStatus) -> Self {
        self.last = Some(Shown::of(status));
        self
    }

    fn show(&mut self, status: &ModelRolloutStatus) {
        let shown = Shown::of(status);
        let changed = self.last.as_ref() != Some(&shown);
        if !changed && self.last_line.elapsed() < HEARTBEAT {
            return;
        }
        println!("  {}  {}", self.clock(), line(status));
        self.last = Some(shown);
        self.last_line = Instant::now();
    }
}

/// One status as one line: phase, weight, and the four signals with their evidence.
fn line(status: &ModelRolloutStatus) -> String {
    let step = status.step.clone().unwrap_or_default();
    let place = if step.of > 0 && status.attempt.is_some() {
        format!("{:<11} step {}/{} {:>3} %", status.phase, step.index, step.of, step.weight)
    } else {
        format!("{:<24}", status.phase)
    };
    let signals: Vec<String> = status
        .signals
        .iter()
        .filter(|s| s.estimate.is_some())
        .map(|s| {
            let mark = match s.verdict.as_str() {
                "Proven" => "✓",
                "Failed" => "✗",
                _ => " ",
            };
            format!("{} {}{mark}", s.name, s.estimate.as_deref().unwrap_or("-"))
        })
        .collect();
    if signals.is_empty() {
        return format!("{place}  {}", first_sentence(&status.message));
    }
    let tick = status.tick.map(|t| format!("tick {t:<3}")).unwrap_or_default();
    format!("{place}  {tick} {}  → {}", signals.join("  "), status.verdict.as_deref().unwrap_or("-"))
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}
