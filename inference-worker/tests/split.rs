//! A/B tests over sockets: two arms, users by cookie and by header, feedback.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use axum::http::StatusCode;
use bitnet_api::worker::{FEEDBACK_PATH, REVISION_HEADER, SPLIT_HEADER};
use serde_json::{Value, json};
use support::{Fake, Running, client, fake};

const STABLE: &str = "chat-aaaaaaaaaa";
const CANDIDATE: &str = "chat-bbbbbbbbbb";
const COMPLETIONS: &str = "/v1/completions";

fn mark(sticky: &str) -> String {
    format!("1;uid;{STABLE};{CANDIDATE};30;1;{sticky};3600")
}

struct Arms {
    stable: Running,
    candidate: Running,
    _files: [Fake; 2],
}

/// Both arms; each knows where the other one listens.
async fn arms() -> Arms {
    let candidate = fake("from candidate", |s| {
        s.revision = CANDIDATE.into();
        s.rollout = Some("chat".into());
        s.rollout_uid = Some("uid".into());
    })
    .await;
    let running_candidate = Running::start(candidate.worker.clone()).await;
    let address = running_candidate.public.to_string();
    let stable = fake("from stable", |s| {
        s.revision = STABLE.into();
        s.rollout = Some("chat".into());
        s.rollout_uid = Some("uid".into());
        s.peers.public = vec![(CANDIDATE.into(), address)];
    })
    .await;
    let running_stable = Running::start(stable.worker.clone()).await;
    Arms { stable: running_stable, candidate: running_candidate, _files: [candidate, stable] }
}

async fn ask(arm: &Running, headers: &[(&str, &str)], body: &Value) -> reqwest::Response {
    let mut request = client().post(arm.url(COMPLETIONS)).json(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn arm_of(response: &reqwest::Response) -> String {
    response.headers()[REVISION_HEADER].to_str().unwrap().to_owned()
}

fn bits(groups: &str) -> u32 {
    groups.chars().map(|c| c.to_digit(16).unwrap().count_ones()).sum()
}

#[tokio::test]
async fn a_request_that_came_to_the_wrong_arm_is_passed_on_once() {
    let arms = arms().await;
    let mark = mark("header;x-user-id");
    let prompt = json!({"prompt": "hi", "max_tokens": 20, "temperature": 0});
    let mut seen = [0, 0];
    for user in 0..40 {
        let user = format!("user-{user}");
        let headers = [(SPLIT_HEADER, mark.as_str()), ("x-user-id", user.as_str())];
        let first = ask(&arms.stable, &headers, &prompt).await;
        let arm = arm_of(&first);
        let answer: Value = first.json().await.unwrap();
        assert_eq!(arm_of(&ask(&arms.stable, &headers, &prompt).await), arm, "the same user, the same arm");
        let candidate = arm == CANDIDATE;
        seen[usize::from(candidate)] += 1;
        let wanted = if candidate { "from candidate" } else { "from stable" };
        assert_eq!(answer["choices"][0]["text"], wanted);
        if candidate {
            // Streams pass through piece by piece and whole.
            let body = json!({"prompt": "hi", "max_tokens": 20, "temperature": 0, "stream": true});
            let text = ask(&arms.stable, &headers, &body).await.text().await.unwrap();
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    let (stable, candidate) = (arms.stable.counters().await, arms.candidate.counters().await);
    // Users are distinct groups but for rare collisions; each is counted in its own arm, requests where they ran.
    assert!(bits(&stable.users.groups) <= seen[0] && bits(&stable.users.groups) >= seen[0] - 1);
    assert!(bits(&candidate.users.groups) <= seen[1] && bits(&candidate.users.groups) >= seen[1] - 1);
    assert_eq!((stable.finished, candidate.finished), (u64::from(2 * seen[0]), u64::from(3 * seen[1])));
    // A request that was passed on already is answered where it is.
    let hop = [(SPLIT_HEADER, mark.as_str()), ("x-user-id", "user-0"), ("x-bitnet-hop", "1")];
    assert_eq!(arm_of(&ask(&arms.stable, &hop, &prompt).await), STABLE);
}

#[tokio::test]
async fn an_arm_that_is_not_reached_is_stood_in_for_and_a_false_mark_means_nothing() {
    let alone = fake("from stable", |s| {
        s.revision = STABLE.into();
        s.rollout = Some("chat".into());
        s.rollout_uid = Some("uid".into());
        s.peers.public = vec![(CANDIDATE.into(), "127.0.0.1:1".into())];
    })
    .await;
    let alone = Running::start(alone.worker.clone()).await;
    let prompt = json!({"prompt": "hi", "max_tokens": 20, "temperature": 0});
    for mark in [mark("header;x-user-id"), mark("header;x-user-id").replace("uid", "another"), "1;;;".into()] {
        for user in 0..20 {
            let user = format!("user-{user}");
            let response = ask(&alone, &[(SPLIT_HEADER, &mark), ("x-user-id", &user)], &prompt).await;
            assert_eq!((response.status(), arm_of(&response)), (StatusCode::OK, STABLE.into()));
        }
    }
    let without = ask(&alone, &[(SPLIT_HEADER, &mark("cookie;arm").replace("uid", "another"))], &prompt).await;
    assert!(without.headers().get("set-cookie").is_none());
}

#[tokio::test]
async fn a_new_user_gets_a_cookie_of_the_arm_and_is_heard_once() {
    let arms = arms().await;
    let mark = mark("cookie;arm");
    let prompt = json!({"prompt": "hi", "max_tokens": 20, "temperature": 0});
    let first = ask(&arms.candidate, &[(SPLIT_HEADER, &mark)], &prompt).await;
    let cookie = first.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.starts_with(&format!("arm={CANDIDATE}~")) && cookie.contains("; HttpOnly"), "{cookie}");
    let answer: Value = first.json().await.unwrap();
    let pair = cookie.split(';').next().unwrap();
    let again = ask(&arms.candidate, &[(SPLIT_HEADER, &mark), ("cookie", pair)], &prompt).await;
    assert!(again.headers().get("set-cookie").is_none());
    let other: Value = again.json().await.unwrap();

    let say = async |id: &Value, value: f64| {
        let body = json!({"id": id, "value": value});
        let request = client().post(arms.candidate.url(FEEDBACK_PATH)).header(SPLIT_HEADER, &mark);
        request.header("cookie", pair).json(&body).send().await.unwrap()
    };
    let counted: Value = say(&answer["id"], 1.0).await.json().await.unwrap();
    assert_eq!(counted, json!({"counted": true}));
    let counted: Value = say(&other["id"], 0.0).await.json().await.unwrap();
    assert_eq!(counted, json!({"counted": false}), "the user said something already");
    assert_eq!(say(&answer["id"], 1.5).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(say(&json!("chatcmpl-other-aaaaaaaaaa-1"), 1.0).await.status(), StatusCode::BAD_REQUEST);
    let users = arms.candidate.counters().await.users;
    assert_eq!((users.assigned, users.feedback.len()), (1, 1));
    let feedback = &users.feedback[0];
    assert_eq!(
        (feedback.revision.as_str(), feedback.count, feedback.sum, feedback.squares),
        (CANDIDATE, 1, 1000, 1_000_000)
    );
}
