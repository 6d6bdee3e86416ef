//! Where requests are read: JSON, tokenizer, chat template and schema, off the threads that serve connections.
//!
//! How long that takes and what memory it needs is up to the client and to the files of the model, so few are read at
//! once, the others wait, and both have the time that the request has. Small and large bodies wait apart: a large one
//! may take seconds, and nobody's chat should wait for it.

use super::account::ErrorClass;
use super::error::ApiError;
use super::follow::Time;
use super::public::MAX_BODY;
use axum::body::{Body, HttpBody};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Bodies above this size are large.
const SMALL_BODY: usize = 16 << 10;
/// Bodies that are read at once.
const SMALL_AT_ONCE: usize = 4;
const LARGE_AT_ONCE: usize = 1;
/// Bytes of large bodies that are here at once, in KiB: more are refused, however slowly they come.
const ROOM: usize = 32 << 10;
/// What reading takes per byte of a body, where each byte is a word and a token with its text and numbers: 140 were seen
/// of a million spaces.
const BYTES_PER_BYTE: usize = 160;

/// Most bytes that reading requests takes at once. Chat templates are not in
/// it: what they may make is bounded by their fuel, and what they make of a chat is no longer than a body.
pub(super) const fn memory() -> usize {
    (SMALL_AT_ONCE * SMALL_BODY + LARGE_AT_ONCE * MAX_BODY) * BYTES_PER_BYTE + (ROOM << 10)
}

/// The places at which requests are read.
pub(crate) struct Desk {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

/// Why a request was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// No place became free in time.
    Crowded,
    /// Reading took too long. It goes on, and holds its place until it ends.
    Late,
    /// It panicked.
    Broken,
}

impl Default for Desk {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { small: places(SMALL_AT_ONCE), large: places(LARGE_AT_ONCE), room: places(ROOM) }
    }
}

impl Desk {
    /// Room for a body that has not been read: what it says it has, or all that it may have. Small ones need none, so
    /// that whoever fills the room with large ones keeps nobody's chat out.
    ///
    /// # Errors
    /// 429 where there is no room.
    pub(super) fn room(&self, body: &Body) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let bytes = body.size_hint().upper().map_or(MAX_BODY, |bytes| bytes.min(MAX_BODY as u64) as usize);
        if bytes <= SMALL_BODY {
            return Ok(None);
        }
        let kib = bytes.div_ceil(1 << 10) as u32;
        Arc::clone(&self.room).try_acquire_many_owned(kib).map(Some).map_err(|_| ApiError::crowded())
    }

    /// Runs `work` on a body of so many bytes, within the request's time.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        time: &Time,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unread> {
        let until = Instant::from_std(time.arrival + time.limit);
        let places = if bytes <= SMALL_BODY { &self.small } else { &self.large };
        let waiting = timeout_at(until, Arc::clone(places).acquire_owned()).await;
        let place = waiting.map_err(|_| Unread::Crowded)?.map_err(|_| Unread::Broken)?;
        let working = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        timeout_at(until, working).await.map_err(|_| Unread::Late)?.map_err(|_| Unread::Broken)
    }
}

impl Unread {
    /// What a client is answered, and how it counts; `None`: as a client that went away.
    pub(super) fn answer(self, time: &Time) -> (ApiError, Option<ErrorClass>) {
        let ours = |class| (!time.by_client).then_some(class);
        match self {
            Self::Crowded => (ApiError::crowded(), ours(ErrorClass::Overloaded)),
            Self::Late => {
                let message = format!("the request was not read within {:?}", time.limit);
                (ApiError::deadline(message), ours(ErrorClass::Timeout))
            }
            Self::Broken => {
                let message = "the request could not be read";
                (ApiError::internal("parsing_failed", message), Some(ErrorClass::Server))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::{self, Duration};

    fn within(limit: Duration, by_client: bool) -> Time {
        Time { arrival: time::Instant::now(), limit, first: None, by_client }
    }

    #[tokio::test]
    async fn few_are_read_at_once_and_the_others_wait_no_longer_than_their_time() {
        let desk = Desk::default();
        let (long, short) = (within(Duration::from_mins(1), false), within(Duration::from_millis(1), false));
        let large = SMALL_BODY + 1;
        let mut ends = Vec::new();
        for _ in 0..LARGE_AT_ONCE {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            assert_eq!(desk.run(large, &short, move || ended.recv().is_err()).await, Err(Unread::Late));
        }
        assert_eq!(desk.run(large, &short, || ()).await, Err(Unread::Crowded), "who is late keeps the place");
        assert_eq!(desk.run(SMALL_BODY, &long, || 5).await, Ok(5), "small bodies wait for small ones alone");
        drop(ends.pop());
        assert_eq!(desk.run(large, &long, || 6).await, Ok(6), "whoever waits gets a place that becomes free");
        assert_eq!(desk.run(1, &long, || panic!("a fault")).await, Err::<(), _>(Unread::Broken));
    }

    #[test]
    fn large_bodies_have_so_much_room_and_small_ones_need_none() {
        let desk = Desk::default();
        let large = || desk.room(&Body::from(vec![b'x'; MAX_BODY]));
        let taken: Vec<_> = (0..(ROOM << 10) / MAX_BODY).map(|_| large().unwrap()).collect();
        assert_eq!(large().err(), Some(ApiError::crowded()));
        let unknown = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        assert_eq!(desk.room(&unknown).err(), Some(ApiError::crowded()), "it may be as large");
        assert!(desk.room(&Body::from(vec![b'x'; SMALL_BODY])).is_ok());
        drop(taken);
        assert!(large().is_ok());
    }

    #[test]
    fn a_clients_own_time_is_no_error_of_ours() {
        let (ours, theirs) = (within(Duration::ZERO, false), within(Duration::ZERO, true));
        for (unread, class) in [(Unread::Crowded, ErrorClass::Overloaded), (Unread::Late, ErrorClass::Timeout)] {
            assert_eq!((unread.answer(&ours).1, unread.answer(&theirs).1), (Some(class), None));
        }
        assert_eq!(Unread::Broken.answer(&theirs).1, Some(ErrorClass::Server));
    }
}
