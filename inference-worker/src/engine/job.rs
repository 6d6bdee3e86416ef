//! What the engine is asked for, and what it answers.

use super::grammar::Grammar;
use super::processors::Processors;
use super::sampling::Sampling;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Whose work it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A user's request.
    Live,
    /// Comparison, score, pair or warm-up: in no counter but busy time.
    Internal,
    /// Work that nobody waits for. It is taken only by an engine without other work, reads few tokens in a pass, and is given
    /// up as soon as other work comes, so that this waits for one short pass at most. In no counter.
    Background,
}

/// What is to be done with the prompt. No `Debug`: token ids are text.
pub enum Work {
    /// Tokens, one [`Event::Token`] each.
    Generate {
        /// At most this many tokens, at least 1.
        max_tokens: usize,
        /// How each is chosen.
        sampling: Sampling,
        /// Ids that end the answer (not part of it); empty = exactly `max_tokens` are generated.
        stop: Vec<u32>,
        /// Say with each token how likely it was, and so many of the most likely ones; `None` = say nothing.
        likelihood: Option<usize>,
        /// What the answer must look like; it ends where nothing may follow.
        grammar: Option<Box<Grammar>>,
        /// What is added to the logits before a token is chosen.
        processors: Option<Box<Processors>>,
    },
    /// Logits at these positions of the prompt, each `< prompt.len()`, in any order, one [`Event::Scores`].
    Score {
        /// Row `p` = logits after reading `prompt[..=p]`.
        positions: Vec<u32>,
    },
}

impl Work {
    /// At most so many of the most likely tokens; ids in `stop` end them.
    pub fn greedy(max_tokens: usize, stop: Vec<u32>) -> Self {
        let sampling = Sampling::GREEDY;
        Self::Generate { max_tokens, sampling, stop, likelihood: None, grammar: None, processors: None }
    }
}

/// A unit of work for the engine. Dropping its receiver cancels it and frees its slot before the next forward pass.
pub struct Job {
    pub(crate) class: Class,
    pub(crate) prompt: Vec<u32>,
    pub(crate) work: Work,
    pub(crate) arrival: Instant,
    pub(crate) events: UnboundedSender<Event>,
}

impl Job {
    /// A job that arrives now, and where its events come out. The number of events is bounded by the work: one per
    /// token and one at the end.
    ///
    /// The caller has checked: prompt not empty, all ids below the vocabulary, prompt and answer within the context.
    pub fn new(class: Class, prompt: Vec<u32>, work: Work, arrival: Instant) -> (Self, UnboundedReceiver<Event>) {
        let (events, receiver) = unbounded_channel();
        (Self { class, prompt, work, arrival, events }, receiver)
    }
}

/// What the engine reports about a job. The last event is `Ended` or `Failed`; a channel that closes without either
/// means that the engine died.
pub enum Event {
    /// The next token.
    Token {
        /// Its id.
        id: u32,
        /// When it was chosen, by the engine's clock.
        at: Instant,
        /// From the job's arrival to its first forward pass.
        queued: Duration,
        /// How likely it was, where that was asked for.
        likelihood: Option<Box<Likelihood>>,
    },
    /// Logits `[positions, vocabulary]`, row major, as asked.
    Scores(Vec<f32>),
    /// The work is done.
    Ended(Ended),
    /// It is not going to be.
    Failed(Failure),
}

/// How likely the model held a token, before temperature and cuts. Logarithms are natural. No `Debug`: ids are text.
#[derive(Clone)]
pub struct Likelihood {
    /// Logarithm of the chosen token's probability.
    pub chosen: f32,
    /// Logarithm of the most likely token's probability.
    pub best: f32,
    /// The most likely tokens with their logarithms, the likeliest first; as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Why it ended there.
    pub finish: Finish,
    /// When, by the engine's clock.
    pub at: Instant,
    /// From its arrival to its end the engine processed no other job.
    pub alone: bool,
    /// From its arrival to its first forward pass.
    pub queued: Duration,
    /// Tokens of the prompt that were read before, for another request.
    pub reused: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it (or the scores are complete).
    Stop,
    /// The number of tokens asked for was reached.
    Length,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The model's logits are broken.
    #[error("{count} logits of the next token are not finite")]
    NonFinite {
        /// How many of the row.
        count: u64,
    },
    /// The forward pass was refused.
    #[error("the forward pass failed: {reason}")]
    Forward {
        /// The model's own words (no text of the request).
        reason: String,
    },
    /// The form that was asked for outgrew its limits.
    #[error("the answer's form could not be followed: {reason}")]
    Grammar {
        /// The library's own words (no text of the request).
        reason: String,
    },
    /// Background work made room for other work.
    #[error("the engine has other work to do")]
    Yielded,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many jobs wait as may wait.
    #[error("the queue is full")]
    Full,
    /// The engine has other work, and this is for its idle time.
    #[error("the engine has other work to do")]
    Busy,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}
