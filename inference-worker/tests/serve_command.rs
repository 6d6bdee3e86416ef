//! The command as a container runs it: signals, exit statuses, the termination message.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A worker process; killed if a test fails before it ends.
struct Process {
    child: Child,
    log: BufReader<ChildStderr>,
    /// What was read of the log.
    read: String,
}

impl Process {
    fn start(model: &Path, extra: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_inference-worker"))
            .env("BITNET_DRAIN", "1s") // a flag goes before it
            .args(["serve", "--bind", "127.0.0.1", "--port", "0", "--internal-port", "0", "--log-format", "json"])
            .arg("--model")
            .arg(model)
            .args(extra)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, read: String::new() }
    }

    /// Status of `GET path`, 0 without an answer.
    fn get(public: SocketAddr, path: &str) -> u16 {
        let ask = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect(public)?;
            write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().ok().and_then(|answer| answer.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
    }

    /// The public address once the worker is ready; it picked its ports and told them in its log.
    fn until_ready(&mut self) -> SocketAddr {
        let public = loop {
            let begin = self.read.len();
            assert!(self.log.read_line(&mut self.read).unwrap() > 0, "the worker ended: {}", self.read);
            let line: serde_json::Value = serde_json::from_str(&self.read[begin..]).unwrap();
            if line["message"] == "listening" {
                break line["public"].as_str().unwrap().parse().unwrap();
            }
        };
        let started = Instant::now();
        while Self::get(public, "/readyz") != 200 {
            assert!(started.elapsed() < Duration::from_secs(30), "the worker is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        public
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; exit status and what was logged.
    fn end(mut self) -> (ExitStatus, String) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.log.read_to_string(&mut self.read).unwrap();
                return (status, std::mem::take(&mut self.read));
            }
            assert!(started.elapsed() < Duration::from_secs(30), "the worker does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_drains_and_ends_with_status_0() {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model(dir.path(), 1);
    let mut process = Process::start(dir.path(), &["--revision", "chat-abcdefg234"]);
    let public = process.until_ready();
    let get = |path: &str| Process::get(public, path);
    let told = Instant::now();
    process.signal("-TERM");
    while get("/readyz") == 200 {
        assert!(told.elapsed() < Duration::from_millis(900), "readiness must go at once");
    }
    assert_eq!((get("/readyz"), get("/v1/models"), get("/livez")), (503, 200, 200));
    let (status, log) = process.end();
    assert!(status.success(), "{status}\n{log}");
    assert!(told.elapsed() >= Duration::from_secs(1), "it serves on for the drain time");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for message in ["listening", "ready", "draining", "stopped"] {
        assert!(lines.iter().any(|line| line["message"] == message), "{message} is not in\n{log}");
    }
}

#[test]
fn a_model_of_phase_4_is_served_with_the_cache_that_it_was_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    support::tiny_model(&plain, 1);
    let model = dir.path().join("phase-4");
    let made = Command::new(env!("CARGO_BIN_EXE_inference-worker"))
        .args(["convert", "--phase", "4", "--out", model.to_str().unwrap(), plain.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut process = Process::start(&model, &["--kv-bits", "8"]);
    let public = process.until_ready();
    let body = r#"{"model": "x", "prompt": "the", "max_tokens": 3}"#;
    let mut socket = TcpStream::connect(public).unwrap();
    let length = body.len();
    write!(
        socket,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text_completion"), "{answer}");
    process.signal("-INT");
    let (_, log) = process.end();
    assert!(log.contains(" at 3 bits"), "{log}");
}

#[test]
fn sigint_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model(dir.path(), 1);
    let mut process = Process::start(dir.path(), &["--drain", "60s"]);
    process.until_ready();
    process.signal("-INT");
    assert!(process.end().0.success());
}

#[test]
fn another_digest_is_status_3_and_says_both() {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model(dir.path(), 1);
    let found = inference_worker::model::digest(dir.path()).unwrap();
    let log_dir = tempfile::tempdir().unwrap();
    let termination = log_dir.path().join("termination-log");
    std::fs::write(&termination, "").unwrap();
    let expected = "0".repeat(64);
    let file = termination.to_str().unwrap();
    let (status, _) = Process::start(dir.path(), &["--digest", &expected, "--termination-log", file]).end();
    assert_eq!(status.code(), Some(3));
    let message = std::fs::read_to_string(&termination).unwrap();
    assert!(message.starts_with(&format!("DigestMismatch: expected {expected} found {found}")), "{message}");
    let mut right = Process::start(dir.path(), &["--digest", &format!("sha256:{}", found.to_uppercase())]);
    right.until_ready();
}

#[test]
fn a_model_that_cannot_be_loaded_says_why() {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model(dir.path(), 1);
    let weights = dir.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let log_dir = tempfile::tempdir().unwrap();
    let termination = log_dir.path().join("termination-log");
    std::fs::write(&termination, "").unwrap();
    let file = termination.to_str().unwrap();
    let (status, log) = Process::start(dir.path(), &["--termination-log", file]).end();
    assert_eq!(status.code(), Some(1), "{log}");
    let message = std::fs::read_to_string(&termination).unwrap();
    assert!(message.starts_with("ModelInvalid: ") && message.contains("model.safetensors"), "{message}");
    // Without the file nothing is written.
    let absent = log_dir.path().join("absent");
    let (status, _) = Process::start(dir.path(), &["--termination-log", absent.to_str().unwrap()]).end();
    assert_eq!((status.code(), absent.exists()), (Some(1), false));
}
