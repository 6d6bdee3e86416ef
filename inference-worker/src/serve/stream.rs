//! Server-sent events, as OpenAI clients read them.

use super::error::ApiError;
use super::follow::{Answer, Piece};
use super::reply::Reply;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

/// A comment this often keeps proxies from closing a stream that waits for a long prompt.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The stream of an answer whose first pieces are known: roles (chat), text, the end of each choice with its reason,
/// usage if asked for, `[DONE]`. A failure becomes an error event, and `[DONE]` does not follow it.
pub(super) fn response(reply: Reply, first: Vec<Piece>, answer: Answer) -> Response {
    let mut state = Streaming { reply, answer, ready: VecDeque::new(), over: false };
    for choice in 0..state.reply.choices() {
        state.ready.extend(state.reply.role_chunk(choice).map(|role| role.to_string()));
    }
    for piece in first {
        state.take(piece);
    }
    Sse::new(events(state)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Streaming {
    reply: Reply,
    answer: Answer,
    ready: VecDeque<String>,
    over: bool,
}

impl Streaming {
    fn take(&mut self, piece: Piece) {
        match piece {
            Piece::Text { choice, text, said } => {
                let chunk = self.reply.text_chunk(choice, &text, &said, None);
                self.push(&chunk);
            }
            Piece::End { choice, finish, said } => {
                let chunk = self.reply.text_chunk(choice, "", &said, Some(finish));
                self.push(&chunk);
            }
            Piece::Done(usage) => {
                self.ready.extend(self.reply.usage_chunk(usage).map(|chunk| chunk.to_string()));
                self.ready.push_back("[DONE]".to_owned());
                self.over = true;
            }
            Piece::Failed(failed) => {
                self.push(&ApiError::object(&failed.error));
                self.over = true;
            }
        }
    }

    fn push(&mut self, object: &Value) {
        self.ready.push_back(object.to_string());
    }
}

fn events(state: Streaming) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(state, |mut state| async move {
        loop {
            if let Some(data) = state.ready.pop_front() {
                return Some((Ok(Event::default().data(data)), state));
            }
            if state.over {
                return None;
            }
            let piece = state.answer.next().await;
            state.take(piece);
        }
    })
}
