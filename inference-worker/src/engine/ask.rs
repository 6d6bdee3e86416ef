//! Internal work in one call: what the internal port, the comparison and the warm-up ask of the engine. It goes
//! through the same queue as live requests.

use super::{Engine, Event, Failure, Finish, Job, Refused, Work};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// A greedy continuation and its times by the engine's clock. No `Debug`: token ids are text.
pub struct Generated {
    /// Token ids, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Seconds from arrival to the first token (to the end where there is none).
    pub ttft: f64,
    /// Mean seconds per token after the first, 0 for fewer than two.
    pub tpot: f64,
    /// The engine processed no other job from its arrival to its end.
    pub alone: bool,
    /// Logits that were not finite; if there are any, the continuation broke off there.
    pub non_finite: u64,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The job was not taken.
    #[error("the engine took no more work")]
    Refused(#[source] Refused),
    /// The job failed.
    #[error("the engine could not do the work")]
    Failed(#[source] Failure),
    /// Time was up; the job is cancelled.
    #[error("the engine did not answer within {0:?}")]
    Deadline(Duration),
    /// The engine died meanwhile.
    #[error("the engine has stopped")]
    Died,
}

impl Engine {
    /// Continues `prompt` greedily by at most `tokens` tokens; ids in `stop` end it (none = exactly `tokens`).
    pub async fn generate(
        &self,
        prompt: Vec<u32>,
        tokens: usize,
        stop: Vec<u32>,
        limit: Duration,
    ) -> Result<Generated, AskError> {
        let arrival = Instant::now();
        let work = Work::greedy(tokens, stop);
        let events = self.ask(prompt, work, arrival)?;
        let following = follow(events, arrival);
        tokio::time::timeout(limit, following).await.map_err(|_| AskError::Deadline(limit))?
    }

    /// Logits `[positions, vocabulary]` of `tokens` under teacher forcing; `positions` not empty, each within `tokens`.
    pub async fn score(&self, tokens: Vec<u32>, positions: Vec<u32>, limit: Duration) -> Result<Vec<f32>, AskError> {
        let mut events = self.ask(tokens, Work::Score { positions }, Instant::now())?;
        let following = async move {
            while let Some(event) = events.recv().await {
                match event {
                    Event::Scores(scores) => return Ok(scores),
                    Event::Failed(failure) => return Err(AskError::Failed(failure)),
                    Event::Token { .. } | Event::Ended(_) => {}
                }
            }
            Err(AskError::Died)
        };
        tokio::time::timeout(limit, following).await.map_err(|_| AskError::Deadline(limit))?
    }

    fn ask(&self, prompt: Vec<u32>, work: Work, arrival: Instant) -> Result<UnboundedReceiver<Event>, AskError> {
        let (job, events) = Job::new(self.class, prompt, work, arrival);
        self.submit(job).map_err(AskError::Refused)?;
        Ok(events)
    }
}

async fn follow(mut events: UnboundedReceiver<Event>, arrival: Instant) -> Result<Generated, AskError> {
    let mut tokens = Vec::new();
    let (mut first, mut last) = (None, arrival);
    while let Some(event) = events.recv().await {
        let (end, alone, non_finite) = match event {
            Event::Token { id, at, .. } => {
                tokens.push(id);
                first.get_or_insert(at);
                last = at;
                continue;
            }
            Event::Scores(_) => continue,
            Event::Ended(ended) => (ended.at, ended.alone, 0),
            Event::Failed(Failure::NonFinite { count }) => (Instant::now(), false, count),
            Event::Failed(failure) => return Err(AskError::Failed(failure)),
        };
        let first = first.unwrap_or(end);
        let tpot = time_per_token(first, last, tokens.len()).unwrap_or(0.0);
        let ttft = first.saturating_duration_since(arrival).as_secs_f64();
        return Ok(Generated { tokens, ttft, tpot, alone, non_finite });
    }
    Err(AskError::Died)
}

/// Mean seconds per token after the first; `None` for fewer than two tokens.
pub(crate) fn time_per_token(first: Instant, last: Instant, tokens: usize) -> Option<f64> {
    (tokens >= 2).then(|| last.saturating_duration_since(first).as_secs_f64() / (tokens - 1) as f64)
}

impl AskError {
    /// Background work was not taken or was given up, because there was other work.
    pub fn is_busy(&self) -> bool {
        matches!(self, AskError::Refused(Refused::Busy) | AskError::Failed(Failure::Yielded))
    }
}

impl Generated {
    /// It has exactly `tokens` tokens and no broken logits.
    pub fn is_whole(&self, tokens: usize) -> bool {
        self.tokens.len() == tokens && self.non_finite == 0
    }
}

impl Finish {
    /// OpenAI's `finish_reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}
