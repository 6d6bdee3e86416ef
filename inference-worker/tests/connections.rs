//! Many connections at the real listener: those that are open and say nothing cost those that ask nothing.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use serde_json::json;
use std::time::Duration;
use support::{Running, counters, fake};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const IDLE: usize = 1000;
const ACTIVE: usize = 32;
const EACH: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_and_32_active_ones_fail_nobody() {
    // Both ends of each connection are in this process.
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(limit >= 3000, "{limit} open files are too few for this test: raise the hard limit");
    let fake = fake("an answer of some length", |_| ()).await;
    let mut running = Running::start(fake.worker.clone()).await;
    let mut idle = Vec::new();
    for n in 0..IDLE {
        let mut stream = TcpStream::connect(running.public).await.unwrap();
        if n % 2 == 0 {
            // Half of them have asked before: a connection that is kept.
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200");
        }
        idle.push(stream);
    }
    let mut active = JoinSet::new();
    for n in 0..ACTIVE {
        let url = running.url("/v1/completions");
        active.spawn(async move {
            let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
            for round in 0..EACH {
                let stream = (n + round) % 2 == 0;
                let body = json!({"prompt": format!("{n} {round}"), "max_tokens": 64, "stream": stream});
                let answer = client.post(&url).json(&body).send().await.unwrap();
                assert_eq!(answer.status(), 200, "client {n}, request {round}");
                let text = answer.text().await.unwrap();
                let whole = if stream { text.ends_with("data: [DONE]\n\n") } else { text.contains("of some length") };
                assert!(whole, "client {n}, request {round}: {text}");
            }
        });
    }
    while let Some(done) = active.join_next().await {
        done.unwrap();
    }
    let counted = counters(&fake).await;
    assert_eq!((counted.finished, counted.errors.total()), ((ACTIVE * EACH) as u64, 0));
    // The idle ones were not cut, however long they said nothing: longer than a head may take.
    tokio::time::sleep(Duration::from_millis(400)).await;
    for (n, stream) in idle.iter_mut().enumerate().step_by(97) {
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("HTTP/1.1 200"), "connection {n}: {answer}");
    }
    drop(idle);
    running.stop(inference_worker::serve::Stop::Now);
}
