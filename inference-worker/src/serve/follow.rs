//! From the engine's events to text: decodes without cutting characters, honours stop strings and the deadline, and
//! closes the request's account by the right door.

use super::account::{ErrorClass, Ticket};
use super::error::ApiError;
use super::openai::Stopping;
use super::stops::Stops;
use crate::engine::{Event, Finish, Likelihood};
use crate::model::TextStream;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// Tokens of each choice by which an answer is trusted or left to the next tier.
pub(crate) const OPENING: usize = 8;

/// The choices of one request as they come.
pub(crate) struct Answer {
    choices: Vec<Choice>,
    /// Choices of each prompt.
    each: usize,
    /// Which choice is looked at first, so that none starves.
    turn: usize,
    time: Time,
    ready: VecDeque<Piece>,
    /// Taken when the request's account is closed.
    ticket: Option<Ticket>,
    /// The client has seen the first byte.
    begun: bool,
    /// How and when all choices ended.
    over: Option<(Finish, Instant)>,
    spoke: Option<Instant>,
}

/// How long an answer may take.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    /// When the request was complete.
    pub(crate) arrival: Instant,
    /// From there to the end of the answer.
    pub(crate) limit: Duration,
    /// From there to the first token, if less.
    pub(crate) first: Option<Duration>,
    /// The limit is the client's own: missing it is like going away, not an error of this server.
    pub(crate) by_client: bool,
}

/// The next thing to tell the client.
pub(crate) enum Piece {
    /// More text of a choice. It may be empty where there are tokens to report.
    Text { choice: usize, text: String, said: Vec<Said> },
    /// The last piece of a choice.
    End { choice: usize, finish: Finish, said: Vec<Said> },
    /// The last piece of a good answer.
    Done(Usage),
    /// The last piece of a bad one.
    Failed(Failed),
}

/// A token with its likelihood, where that was asked for. No `Debug`: ids are text.
pub(crate) struct Said {
    pub(crate) id: u32,
    pub(crate) likelihood: Box<Likelihood>,
}

/// Tokens of all choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Generated, without those that ended the choices.
    pub(crate) generated: usize,
    /// Of the prompt, read for an earlier request.
    pub(crate) reused: usize,
}

/// An answer that failed.
pub(crate) struct Failed {
    pub(crate) error: ApiError,
    /// How it counts; `None`: as a client that went away.
    pub(crate) class: Option<ErrorClass>,
}

struct Choice {
    events: UnboundedReceiver<Event>,
    decoder: TextStream,
    stops: Stops,
    /// Tokens in which no stop string is looked for.
    min_tokens: usize,
    tokens: usize,
    /// Tokens of the prompt that were not read for this choice.
    reused: usize,
    said: Vec<Said>,
    /// See [`Answer::opening`].
    opening: Vec<f32>,
    finish: Option<Finish>,
}

impl Answer {
    /// Follows one choice per receiver, `each` of them for each prompt; each with what decodes it.
    pub(crate) fn new(
        events: Vec<(UnboundedReceiver<Event>, TextStream)>,
        each: usize,
        time: Time,
        stops: &Stopping,
        ticket: Ticket,
    ) -> Self {
        let choice = |(events, decoder)| Choice {
            events,
            decoder,
            stops: Stops::new(stops.strings.clone(), stops.include),
            min_tokens: stops.min_tokens,
            tokens: 0,
            reused: 0,
            said: Vec::new(),
            opening: Vec::new(),
            finish: None,
        };
        Self {
            choices: events.into_iter().map(choice).collect(),
            each,
            turn: 0,
            time,
            ready: VecDeque::new(),
            ticket: Some(ticket),
            begun: false,
            over: None,
            spoke: None,
        }
    }

    /// Notes that the status line is on its way: the answer is ours, and from here on a failure is a broken stream.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
        if let Some(ticket) = &mut self.ticket {
            ticket.begin();
        }
        self.settle();
    }

    fn settle(&mut self) {
        if let Some((finish, at)) = self.over
            && let Some(ticket) = self.ticket.take()
        {
            ticket.finish(finish, at);
        }
    }

    /// Logarithms of the most likely token's probability at the first tokens of all choices, once it is known which
    /// those are. Tokens without likelihood have none.
    pub(crate) fn opening(&self) -> Option<Vec<f32>> {
        let known = |choice: &Choice| choice.finish.is_some() || choice.opening.len() == OPENING;
        self.choices.iter().all(known).then(|| self.choices.iter().flat_map(|c| &c.opening).copied().collect())
    }

    /// Closes the account of an answer that failed before its first byte, or that somebody else gave.
    pub(crate) fn close(&mut self, class: Option<ErrorClass>) {
        for choice in &mut self.choices {
            choice.events.close();
        }
        let Some(ticket) = self.ticket.take() else { return };
        match class {
            Some(class) => ticket.fail(class),
            None => drop(ticket),
        }
    }

    /// Closes the account of a request that was handed on without fault.
    pub(crate) fn hand_on(&mut self) {
        for choice in &mut self.choices {
            choice.events.close();
        }
        if let Some(ticket) = self.ticket.take() {
            ticket.hand_on();
        }
    }

    /// The next piece. Not to be called after `Done` or `Failed`. A failure after the first byte closes the account; one
    /// before it leaves that to [`Answer::close`], because somebody else may still answer.
    pub(crate) async fn next(&mut self) -> Piece {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return piece;
            }
            let Ok((at, event)) = tokio::time::timeout_at(self.deadline(), self.event()).await else {
                return self.late();
            };
            if let Err(failed) = self.take(at, event) {
                return self.fail(failed);
            }
        }
    }

    fn deadline(&self) -> tokio::time::Instant {
        let Time { arrival, limit, first, .. } = self.time;
        let limit = if self.spoke.is_none() { first.map_or(limit, |first| first.min(limit)) } else { limit };
        (arrival + limit).into()
    }

    fn late(&mut self) -> Piece {
        let Time { limit, by_client, .. } = self.time;
        let waited = self.time.arrival.elapsed();
        let message = if waited < limit {
            format!("the answer had no first token within {:?}", self.time.first.unwrap_or(limit))
        } else {
            format!("the answer was not complete within {limit:?}")
        };
        let own = !(by_client && waited >= limit);
        self.fail(Failed { error: ApiError::deadline(message), class: own.then_some(ErrorClass::Timeout) })
    }

    /// The next event of any choice that has not ended.
    async fn event(&mut self) -> (usize, Option<Event>) {
        poll_fn(|context| {
            let count = self.choices.len();
            for at in (self.turn..self.turn + count).map(|at| at % count) {
                let choice = &mut self.choices[at];
                if choice.finish.is_none()
                    && let Poll::Ready(event) = choice.events.poll_recv(context)
                {
                    self.turn = at + 1;
                    return Poll::Ready((at, event));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn take(&mut self, at: usize, event: Option<Event>) -> Result<(), Failed> {
        let undecodable = || Failed {
            error: ApiError::internal("undecodable", "the answer's tokens could not be decoded"),
            class: Some(ErrorClass::Server),
        };
        let choice = &mut self.choices[at];
        match event {
            Some(Event::Token { id, at: when, queued, likelihood }) => {
                choice.tokens += 1;
                if choice.opening.len() < OPENING {
                    choice.opening.extend(likelihood.as_ref().map(|likelihood| likelihood.best));
                }
                choice.said.extend(likelihood.map(|likelihood| Said { id, likelihood }));
                self.spoke = Some(when);
                if let Some(ticket) = &mut self.ticket {
                    if at == 0 {
                        ticket.begun(queued);
                        ticket.token(id, when);
                    } else {
                        ticket.another();
                    }
                }
                if let Some(text) = choice.decoder.push(id).map_err(|_| undecodable())? {
                    let looks = choice.tokens > choice.min_tokens;
                    let text = if looks { choice.stops.push(&text) } else { text };
                    self.say(at, text);
                }
                if self.choices[at].stops.hit() {
                    // The engine learns from the closed channel, before its next pass.
                    self.choices[at].events.close();
                    self.end(at, Finish::Stop, when);
                }
            }
            Some(Event::Ended(ended)) => {
                let rest = choice.decoder.finish().map_err(|_| undecodable())?;
                let mut text = choice.stops.push(&rest.unwrap_or_default());
                let finish = if choice.stops.hit() { Finish::Stop } else { ended.finish };
                text.push_str(&choice.stops.rest());
                self.say(at, text);
                self.choices[at].reused = ended.reused;
                if at == 0
                    && let Some(ticket) = &mut self.ticket
                {
                    ticket.begun(ended.queued);
                }
                self.end(at, finish, ended.at);
            }
            Some(Event::Scores(_)) => {}
            Some(Event::Failed(failure)) => {
                let (error, class) = ApiError::failed(&failure);
                return Err(Failed { error, class });
            }
            None => {
                let error = ApiError::internal("engine_stopped", "the engine stopped before the answer was complete");
                return Err(Failed { error, class: Some(ErrorClass::Server) });
            }
        }
        Ok(())
    }

    fn say(&mut self, at: usize, text: String) {
        if !text.is_empty() {
            let said = std::mem::take(&mut self.choices[at].said);
            self.ready.push_back(Piece::Text { choice: at, text, said });
        }
    }

    fn end(&mut self, at: usize, finish: Finish, when: Instant) {
        let choice = &mut self.choices[at];
        choice.finish = Some(finish);
        let said = std::mem::take(&mut choice.said);
        self.ready.push_back(Piece::End { choice: at, finish, said });
        let last = self.spoke.map_or(when, |spoke| spoke.max(when));
        self.spoke = Some(last);
        if self.choices.iter().all(|choice| choice.finish.is_some()) {
            self.over = Some((self.choices[0].finish.unwrap_or(finish), last));
            if self.begun {
                self.settle();
            }
            let generated = self.choices.iter().map(|choice| choice.tokens).sum();
            // A prompt counts once, however many choices it has, and so does what was not read of it.
            let prompts = self.choices.chunks(self.each.max(1));
            let reused = prompts.filter_map(|choices| choices.iter().map(|choice| choice.reused).max()).sum();
            self.ready.push_back(Piece::Done(Usage { generated, reused }));
        }
    }

    fn fail(&mut self, Failed { error, class }: Failed) -> Piece {
        for choice in &mut self.choices {
            choice.events.close();
        }
        if self.begun {
            let class = class.map(|class| if class == ErrorClass::Server { ErrorClass::BrokenStream } else { class });
            self.close(class);
            return Piece::Failed(Failed { error, class });
        }
        Piece::Failed(Failed { error, class })
    }
}
