use super::{Outcome, Record};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::net::TcpStream;

/// One completion request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `Host` header.
    pub host: String,
    /// One more header.
    pub header: Option<(String, String)>,
    /// The prompt.
    pub prompt: String,
    /// Tokens to ask for.
    pub max_tokens: u32,
    /// Ask for a stream.
    pub stream: bool,
    /// Give up after this.
    pub timeout: Duration,
}

/// Keep-alive connections to one address. A request takes an idle connection or opens one; nothing is ever sent twice.
pub struct Connections {
    address: SocketAddr,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// How far a request came before it failed.
struct Failure {
    outcome: Outcome,
    status: u16,
    arm: Option<String>,
}

impl Failure {
    fn before_head(outcome: Outcome) -> Self {
        Self { outcome, status: 0, arm: None }
    }
}

impl Connections {
    /// No connection yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::new(Vec::new()) }
    }

    /// Sends one request, once, and says what became of it.
    pub async fn send(&self, request: &Request) -> Record {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        let start = Instant::now();
        let result = tokio::time::timeout(request.timeout, self.exchange(request)).await;
        let latency = start.elapsed().as_secs_f64() * 1e3;
        let (status, arm, outcome) = match result {
            Ok(Ok((status, arm))) => (status, arm, if status == 200 { Outcome::Ok } else { Outcome::Status }),
            Ok(Err(failure)) => (failure.status, failure.arm, failure.outcome),
            Err(_) => (0, None, Outcome::Timeout),
        };
        Record { at, arm, status, latency, stream: request.stream, outcome }
    }

    async fn exchange(&self, request: &Request) -> Result<(u16, Option<String>), Failure> {
        let mut connection = self.connection().await?;
        let body = json!({
            "model": "default", "prompt": request.prompt, "max_tokens": request.max_tokens,
            "temperature": 0, "stream": request.stream,
        });
        let mut head = hyper::Request::post("/v1/completions")
            .header("host", &request.host)
            .header("content-type", "application/json");
        if let Some((name, value)) = &request.header {
            head = head.header(name, value);
        }
        let head = head
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|e| Failure::before_head(Outcome::Connect(e.to_string())))?;
        let answer =
            connection.send_request(head).await.map_err(|e| Failure::before_head(Outcome::Reset(chain(&e))))?;
        let status = answer.status().as_u16();
        let arm =
            answer.headers().get(bitnet_api::worker::REVISION_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = answer.into_body().collect().await.map_err(|e| Failure {
            outcome: Outcome::Truncated(chain(&e)),
            status,
            arm: arm.clone(),
        })?;
        if status == 200
            && let Err(outcome) = complete(request.stream, &body.to_bytes())
        {
            return Err(Failure { outcome, status, arm });
        }
        if connection.ready().await.is_ok() {
            self.lock().push(connection);
        }
        Ok((status, arm))
    }

    /// An idle connection that is still open, or a new one. Choosing another one here is no retry: nothing was sent.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        loop {
            let Some(mut connection) = self.lock().pop() else { break };
            if connection.ready().await.is_ok() && !connection.is_closed() {
                return Ok(connection);
            }
        }
        let connect = |e: &dyn std::error::Error| Failure::before_head(Outcome::Connect(chain(e)));
        let stream = TcpStream::connect(self.address).await.map_err(|e| connect(&e))?;
        stream.set_nodelay(true).map_err(|e| connect(&e))?;
        let (sender, task) = handshake(TokioIo::new(stream)).await.map_err(|e| connect(&e))?;
        tokio::spawn(async move {
            // Its errors reach the request that is under way.
            let _ = task.await;
        });
        Ok(sender)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Is this the whole of an answer?
fn complete(stream: bool, body: &[u8]) -> Result<(), Outcome> {
    let text = std::str::from_utf8(body).map_err(|e| Outcome::Malformed(e.to_string()))?;
    if !stream {
        let answer: Value = serde_json::from_str(text).map_err(|e| Outcome::Malformed(e.to_string()))?;
        return match answer["choices"][0]["finish_reason"].as_str() {
            Some(_) => Ok(()),
            None => Err(Outcome::Malformed("no choices[0].finish_reason".into())),
        };
    }
    let events: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    if events.last() != Some(&"[DONE]") {
        return Err(Outcome::Truncated("stream without [DONE]".into()));
    }
    for event in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(event).map_err(|e| Outcome::Malformed(e.to_string()))?;
        if !chunk["error"].is_null() {
            return Err(Outcome::Malformed(format!("error event: {}", chunk["error"])));
        }
    }
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_or_says_what_is_missing() {
        assert_eq!(complete(false, br#"{"choices":[{"text":"a","finish_reason":"length"}]}"#), Ok(()));
        assert!(matches!(complete(false, br#"{"choices":[]}"#), Err(Outcome::Malformed(_))));
        assert!(matches!(complete(false, b"{\"choices\""), Err(Outcome::Malformed(_))));
        assert_eq!(complete(true, b"data: {\"choices\":[]}\n\ndata: [DONE]\n\n"), Ok(()));
        assert!(matches!(complete(true, b"data: {\"choices\":[]}\n\n"), Err(Outcome::Truncated(_))));
        assert!(matches!(complete(true, b"data: {\"error\":{}}\n\ndata: [DONE]\n\n"), Err(Outcome::Malformed(_))));
    }
}
