//! The command as a container runs it: signals, exit statuses, the termination message.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A worker process; killed if a test fails before it ends.
struct Process {
    child: Child,
    public: SocketAddr,
}

impl Process {
    fn start(model: &Path, extra: &[&str]) -> Self {
        // Ports that are free now: nobody else on this host is given them again at once.
        let ports = [0; 2].map(|_: i32| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_inference-worker"))
            .env("BITNET_DRAIN", "1s") // a flag goes before it
            .args(["serve", "--bind", "127.0.0.1", "--log-format", "json", "--model"])
            .arg(model)
            .args(["--port", &ports[0].port().to_string(), "--internal-port", &ports[1].port().to_string()])
            .args(extra)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, public: ports[0] }
    }

    /// Status of `GET path`, 0 without an answer.
    fn get(&self, path: &str) -> u16 {
        let ask = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect(self.public)?;
            write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().ok().and_then(|answer| answer.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
    }

    fn until_ready(&self) {
        let started = Instant::now();
        while self.get("/readyz") != 200 {
            assert!(started.elapsed() < Duration::from_secs(30), "the worker is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
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
                let mut log = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
                return (status, log);
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
    let process = Process::start(dir.path(), &["--revision", "chat-abcdefg234"]);
    process.until_ready();
    process.signal("-TERM");
    let told = Instant::now();
    while process.get("/readyz") == 200 {
        assert!(told.elapsed() < Duration::from_millis(900), "readiness must go at once");
    }
    assert_eq!((process.get("/readyz"), process.get("/v1/models"), process.get("/livez")), (503, 200, 200));
    let (status, log) = process.end();
    assert!(status.success(), "{status}\n{log}");
    assert!(told.elapsed() >= Duration::from_secs(1), "it serves on for the drain time");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for message in ["listening", "ready", "draining", "stopped"] {
        assert!(lines.iter().any(|line| line["message"] == message), "{message} is not in\n{log}");
    }
}

#[test]
fn sigint_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model(dir.path(), 1);
    let process = Process::start(dir.path(), &["--drain", "60s"]);
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
    let right = Process::start(dir.path(), &["--digest", &format!("sha256:{}", found.to_uppercase())]);
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
