//! Connections whose clients are slow to say what they want.
//!
//! A client that has begun a request must send its whole head within a time, else its connection is closed. A
//! connection that is idle between requests is left open: closing it would race with the next request of a proxy.

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

/// A port whose connections have a time for the head of a request.
pub(super) struct Port {
    pub(super) listener: TcpListener,
    pub(super) head_time: Duration,
}

impl Listener for Port {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Tokens are small writes: held back to be joined, each would wait for the one before to be acknowledged.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
        (Connection { stream, requests: Arc::default(), head_time: self.head_time, until: None }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A client's connection.
pub(super) struct Connection {
    stream: TcpStream,
    requests: Arc<Requests>,
    head_time: Duration,
    /// After how many requests a head has begun, and when it must be complete.
    until: Option<(usize, Pin<Box<Sleep>>)>,
}

/// The requests of one connection.
#[derive(Default)]
struct Requests {
    begun: AtomicUsize,
    /// One is being handled, so that what arrives is its body.
    handling: AtomicBool,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let begun = self.requests.begun.load(Ordering::Acquire);
        if self.until.as_ref().is_some_and(|(before, _)| *before != begun) {
            self.until = None;
        }
        if self.requests.handling.load(Ordering::Acquire) || outcome.is_ready() && buffer.filled().len() == before {
            return outcome;
        }
        if outcome.is_ready() {
            let deadline = Instant::now() + self.head_time;
            self.until.get_or_insert_with(|| (begun, Box::pin(tokio::time::sleep_until(deadline))));
        }
        if let Some((_, until)) = &mut self.until
            && until.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// What a request knows of its connection.
#[derive(Clone)]
pub(super) struct Head(Arc<Requests>);

impl Connected<IncomingStream<'_, Port>> for Head {
    fn connect_info(stream: IncomingStream<'_, Port>) -> Self {
        Self(Arc::clone(&stream.io().requests))
    }
}

/// Stops the clock of the head while its request is handled.
pub(super) async fn watch(request: Request, next: Next) -> Response {
    struct Handling(Arc<Requests>);
    impl Drop for Handling {
        fn drop(&mut self) {
            self.0.handling.store(false, Ordering::Release);
        }
    }
    let requests = request.extensions().get::<ConnectInfo<Head>>().map(|info| Arc::clone(&info.0.0));
    let _handling = requests.map(|requests| {
        requests.handling.store(true, Ordering::Release);
        requests.begun.fetch_add(1, Ordering::AcqRel);
        Handling(requests)
    });
    next.run(request).await
}
