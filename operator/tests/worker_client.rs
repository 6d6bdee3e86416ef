//! What the operator makes of workers that answer badly: nothing is concluded, and nothing blocks.

#![allow(clippy::unwrap_used, reason = "clippy knows tests by their attribute, not their helpers")]

use bitnet_operator::worker::{ANSWER_LIMIT, Asked, DEADLINE, Error, Poll, Workers};
use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ASKED: Asked<'static> = Asked { key: "k", tick: 1, probes: 4, pairs: 2 };
const COUNTERS: &str = r#"{"process":"p","readySeconds":3.5,"ttft":[[-20,3]],"tpot":[[-31,2]],"started":4,"finished":3,
    "errors":{"server":1},"inFlight":0,"promptTokens":9,"generatedTokens":24,"emptyAnswers":0,"degenerateAnswers":0,
    "busySeconds":0.1}"#;

/// A server that answers each connection with these bytes (after the request's head) and then does `then`.
async fn worker(answer: impl Into<Vec<u8>>, then: Then) -> Workers {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let workers = Workers::new(listener.local_addr().unwrap().port()).unwrap();
    let answer = answer.into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone(), then));
        }
    });
    workers
}

#[derive(Clone, Copy)]
enum Then {
    Close,
    Hang,
    Drip,
    Flood,
}

async fn serve(mut stream: TcpStream, answer: Vec<u8>, then: Then) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
        head.push(byte[0]);
    }
    if stream.write_all(&answer).await.is_err() {
        return;
    }
    match then {
        Then::Close => drop(stream),
        Then::Hang => tokio::time::sleep(Duration::from_mins(1)).await,
        Then::Drip => {
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Then::Flood => {
            let block = vec![b' '; 1 << 16];
            while stream.write_all(&block).await.is_ok() {}
        }
    }
}

fn json(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

const ENDLESS: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_sound_answer_is_taken() {
    let counters = worker(json(COUNTERS), Then::Close).await.counters(HERE).await.unwrap();
    assert_eq!((counters.finished, counters.errors.total(), counters.ttft.0.as_slice()), (3, 1, [(-20, 3)].as_slice()));
}

#[tokio::test]
async fn nan_and_infinity_are_garbage() {
    for number in ["NaN", "Infinity", "-Infinity", "1e400", "null", "\"3\""] {
        let body = COUNTERS.replace("3.5", number);
        let error = worker(json(&body), Then::Close).await.counters(HERE).await.unwrap_err();
        assert!(matches!(error, Error::Garbage { .. }), "{number}: {error:?}");
        assert!(error.is_bad_answer());
    }
}

#[tokio::test]
async fn a_comparison_out_of_range_is_unusable() {
    let prompt = r#"{"cosine":C,"cosineAt":0.9,"mse":0.1,"kl":0.1,"top1":1.0,"nonFinite":0}"#;
    let result = |cosine: &str, key: &str| {
        let prompt = prompt.replace('C', cosine);
        json(&format!(
            r#"{{"key":"{key}","tick":1,"probeSet":{{"hash":"ab","size":3}},"drawn":1,"prompts":[{prompt}],"pairs":[],
            "busy":{{"candidate":0.1,"stable":null}},"peerErrors":[]}}"#
        ))
    };
    let good = worker(result("0.97", "k"), Then::Close).await.poll(HERE, &ASKED).await.unwrap();
    let Poll::Done(good) = good else { panic!("{good:?}") };
    assert!((good.prompts[0].cosine - 0.97).abs() < 1e-12);
    for (cosine, key) in [("1.5", "k"), ("0.97", "another-job")] {
        let error = worker(result(cosine, key), Then::Close).await.poll(HERE, &ASKED).await.unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn garbage_in_all_its_forms() {
    let html = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<b/>";
    let deep = json(&"[".repeat(100_000));
    let not_utf8 = {
        let mut bytes = json("{\"process\":\"????\"}").into_bytes();
        let at = bytes.iter().rposition(|b| *b == b'?').unwrap();
        bytes[at] = 0xff;
        bytes
    };
    let cases = [html.into(), json("").into_bytes(), json("{]").into_bytes(), deep.into_bytes(), not_utf8];
    for answer in cases {
        let error = worker(answer, Then::Close).await.counters(HERE).await.unwrap_err();
        assert!(matches!(error, Error::Garbage { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn nothing_and_half_an_answer_are_unreachable() {
    let half = json(COUNTERS).replace("content-length: ", "content-length: 9");
    for answer in [String::new(), half, "not http at all\r\n\r\n".into()] {
        let error = worker(answer, Then::Close).await.counters(HERE).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(!error.is_bad_answer());
    }
    // A port on which nobody listens.
    let closed = TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port();
    let error = Workers::new(closed).unwrap().counters(HERE).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_slow_worker_costs_one_deadline_however_it_is_slow() {
    let start = Instant::now();
    let silent = async { worker("", Then::Hang).await.counters(HERE).await };
    let dripping = async { worker(ENDLESS, Then::Drip).await.counters(HERE).await };
    let (silent, dripping) = tokio::join!(silent, dripping);
    assert!(matches!(silent, Err(Error::Slow(_))), "{silent:?}");
    assert!(matches!(dripping, Err(Error::Slow(_))), "{dripping:?}");
    assert!(start.elapsed() < DEADLINE + Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_huge_answer_is_cut_off() {
    let error = worker(ENDLESS, Then::Flood).await.counters(HERE).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge(_)), "{error:?}");
    let exact = format!("{COUNTERS}{}", " ".repeat(ANSWER_LIMIT - COUNTERS.len()));
    assert!(worker(json(&exact), Then::Close).await.counters(HERE).await.is_ok());
    let above = format!("{exact} ");
    let error = worker(json(&above), Then::Close).await.counters(HERE).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge(_)), "{error:?}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = TcpListener::bind((HERE, 0)).await.unwrap();
    let location = format!("http://{}/", target.local_addr().unwrap());
    let answer = format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let error = worker(answer, Then::Close).await.counters(HERE).await.unwrap_err();
    assert!(matches!(error, Error::Status { status, .. } if status == 307), "{error:?}");
    let followed = tokio::time::timeout(Duration::from_millis(300), target.accept()).await;
    assert!(followed.is_err(), "nobody came to the redirect's target");
}

#[tokio::test]
async fn a_job_is_unknown_running_or_done() {
    let status = |line: &str| format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n");
    let poll = async |line: &str| worker(status(line), Then::Close).await.poll(HERE, &ASKED).await;
    assert_eq!(poll("404 Not Found").await.unwrap(), Poll::Unknown);
    assert_eq!(poll("202 Accepted").await.unwrap(), Poll::Running);
    assert!(matches!(poll("500 Internal Server Error").await, Err(Error::Status { .. })));
}
