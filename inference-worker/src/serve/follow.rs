//! From the engine's events to text: decodes without cutting characters, honours stop strings and the deadline, and
//! closes the request's account by the right door.

use super::account::{ErrorClass, Ticket};
use super::error::ApiError;
use crate::engine::{Event, Finish};
use crate::model::TextStream;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// One answer as it comes.
pub(crate) struct Answer {
    events: UnboundedReceiver<Event>,
    deadline: tokio::time::Instant,
    limit: Duration,
    decoder: TextStream,
    stops: Stops,
    /// Taken when the request's account is closed.
    ticket: Option<Ticket>,
    end: Option<End>,
    tokens: usize,
    /// The client has seen the first byte.
    begun: bool,
}

/// The next thing to tell the client.
pub(crate) enum Piece {
    /// More text, not empty.
    Text(String),
    /// The last piece of a good answer.
    End(End),
    /// The last piece of a bad one.
    Failed(ApiError),
}

/// How a good answer ended.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) finish: Finish,
    /// Tokens generated, without the one that ended the answer.
    pub(crate) tokens: usize,
}

impl Answer {
    /// Follows `events`; the answer must be complete `limit` after the request's arrival.
    pub(crate) fn new(
        events: UnboundedReceiver<Event>,
        arrival: Instant,
        limit: Duration,
        decoder: TextStream,
        stops: Vec<String>,
        ticket: Ticket,
    ) -> Self {
        Self {
            events,
            deadline: (arrival + limit).into(),
            limit,
            decoder,
            stops: Stops::new(stops),
            ticket: Some(ticket),
            end: None,
            tokens: 0,
            begun: false,
        }
    }

    /// Notes that the status line is on its way: from here on a failure is a broken stream.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
    }

    /// The next piece. Not to be called after `End` or `Failed`.
    pub(crate) async fn next(&mut self) -> Piece {
        loop {
            if let Some(end) = self.end.take() {
                return Piece::End(end);
            }
            let Ok(event) = tokio::time::timeout_at(self.deadline, self.events.recv()).await else {
                let message = format!("the answer was not complete within {:?}", self.limit);
                return self.fail(ApiError::deadline(message), ErrorClass::Timeout);
            };
            match event {
                Some(Event::Token { id, at }) => {
                    self.tokens += 1;
                    if let Some(ticket) = &mut self.ticket {
                        ticket.token(id, at);
                    }
                    let Ok(text) = self.decoder.push(id) else { return self.undecodable() };
                    if let Some(text) = text.and_then(|text| self.emit(&text, at)) {
                        return Piece::Text(text);
                    }
                }
                Some(Event::Ended(ended)) => {
                    let Ok(rest) = self.decoder.finish() else { return self.undecodable() };
                    let mut text = self.stops.push(&rest.unwrap_or_default());
                    let finish = if self.stops.hit { Finish::Stop } else { ended.finish };
                    text.push_str(&self.stops.rest());
                    if let Some(ticket) = &self.ticket {
                        ticket.queued(ended.queued);
                    }
                    self.close(finish, ended.at);
                    if !text.is_empty() {
                        return Piece::Text(text);
                    }
                }
                Some(Event::Scores(_)) => {}
                Some(Event::Failed(failure)) => {
                    let (error, class) = ApiError::failed(&failure);
                    return self.fail(error, class);
                }
                None => {
                    let error =
                        ApiError::internal("engine_stopped", "the engine stopped before the answer was complete");
                    return self.fail(error, ErrorClass::Server);
                }
            }
        }
    }

    /// What can be shown of new text; a stop string in it ends the answer.
    fn emit(&mut self, text: &str, at: Instant) -> Option<String> {
        let shown = self.stops.push(text);
        if self.stops.hit {
            // The engine learns from the closed channel, before its next pass.
            self.events.close();
            self.close(Finish::Stop, at);
        }
        Some(shown).filter(|text| !text.is_empty())
    }

    fn close(&mut self, finish: Finish, at: Instant) {
        if let Some(ticket) = self.ticket.take() {
            ticket.finish(finish, at);
        }
        self.end = Some(End { finish, tokens: self.tokens });
    }

    fn undecodable(&mut self) -> Piece {
        self.fail(ApiError::internal("undecodable", "the answer's tokens could not be decoded"), ErrorClass::Server)
    }

    fn fail(&mut self, error: ApiError, class: ErrorClass) -> Piece {
        self.events.close();
        let class = if class == ErrorClass::Server && self.begun { ErrorClass::BrokenStream } else { class };
        if let Some(ticket) = self.ticket.take() {
            ticket.fail(class);
        }
        Piece::Failed(error)
    }
}

/// Finds stop strings in text that comes in pieces, and holds back what may become one.
struct Stops {
    strings: Vec<String>,
    held: String,
    hit: bool,
}

impl Stops {
    fn new(stops: Vec<String>) -> Self {
        Self { strings: stops, held: String::new(), hit: false }
    }

    /// Text that can be shown now: everything before a stop string, or all but an end that may begin one.
    fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let cut = if let Some(at) = found {
            self.hit = true;
            at
        } else {
            let open = |at: &usize| {
                let end = &self.held[*at..];
                self.strings.iter().any(|stop| stop.starts_with(end))
            };
            self.held.char_indices().map(|(at, _)| at).find(open).unwrap_or(self.held.len())
        };
        let rest = self.held.split_off(cut);
        let shown = std::mem::replace(&mut self.held, rest);
        if self.hit {
            self.held.clear();
        }
        shown
    }

    /// What was held back: no stop string will come any more.
    fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let mut finder = Stops::new(stops.iter().map(|&s| s.to_owned()).collect());
        let shown = pieces.iter().map(|piece| finder.push(piece)).collect();
        (shown, finder.rest(), finder.hit)
    }

    #[test]
    fn without_stops_text_passes_at_once() {
        assert_eq!(run(&[], &["a", "bc"]), (vec!["a".into(), "bc".into()], String::new(), false));
    }

    #[test]
    fn a_stop_over_several_pieces_is_found_and_nothing_of_it_is_shown() {
        let (shown, rest, hit) = run(&["END"], &["one E", "N", "D two"]);
        assert_eq!((shown, rest.as_str(), hit), (vec!["one ".into(), String::new(), String::new()], "", true));
    }

    #[test]
    fn a_false_start_is_shown_when_it_is_known_to_be_one() {
        let (shown, rest, hit) = run(&["END"], &["E", "NX", "é", "E"]);
        assert_eq!(shown, ["", "ENX", "é", ""]);
        assert_eq!((rest.as_str(), hit), ("E", false));
    }

    #[test]
    fn the_earliest_of_several_stops_counts() {
        let (shown, _, hit) = run(&["b", "ab"], &["xxabyy"]);
        assert_eq!((shown, hit), (vec!["xx".into()], true));
    }
}
