//! A/B tests: a user always meets the same arm, by cookie and by header, and no rule stays behind.

use crate::{
    Suite,
    stand::{CHAT, Stand},
};
use anyhow::{Context, Result, ensure};
use bitnet_api::worker::REVISION_HEADER;
use e2e::traffic::Account;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Users of each kind of test.
const USERS: usize = 60;

/// One user: where the first answer came from, and the cookie that came with it.
#[derive(Default)]
struct User {
    arm: Option<String>,
    cookie: Option<String>,
    answer: Option<String>,
}

/// Users who come again and again, as browsers do.
struct Crowd {
    client: reqwest::Client,
    url: String,
    host: String,
    prompts: Vec<String>,
    users: Vec<User>,
    /// Requests that failed, and users who met another arm than before.
    failed: Vec<String>,
    requests: usize,
    /// Users meet the arm that they met before.
    sticks: bool,
}

impl Crowd {
    fn new(stand: &Stand) -> Result<Self> {
        let config = stand.traffic_config()?;
        Ok(Self {
            client: reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([])
                .timeout(Duration::from_secs(10))
                .build()?,
            url: format!("http://{}", config.address),
            host: config.host,
            prompts: config.prompts,
            users: (0..USERS).map(|_| User::default()).collect(),
            failed: Vec::new(),
            requests: 0,
            sticks: true,
        })
    }

    /// Every user asks once. `by_header`: users say who they are; else they bring the cookie that they were given.
    async fn ask(&mut self, by_header: bool) -> Result<()> {
        for (i, user) in self.users.iter_mut().enumerate() {
            let prompt = &self.prompts[(self.requests + i) % self.prompts.len()];
            let body = json!({"model": "default", "prompt": prompt, "max_tokens": 4, "temperature": 0});
            let mut request = self.client.post(format!("{}/v1/completions", self.url)).header("host", &self.host);
            if by_header {
                request = request.header("x-user-id", format!("user-{i}"));
            } else if let Some(cookie) = &user.cookie {
                request = request.header("cookie", format!("theme=dark; {cookie}"));
            }
            self.requests += 1;
            let answer = match request.json(&body).send().await {
                Ok(answer) if answer.status() == 200 => answer,
                other => {
                    self.failed.push(format!("user {i}: {other:?}"));
                    continue;
                }
            };
            let arm = answer.headers().get(REVISION_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
            let cookie = answer.headers().get("set-cookie").and_then(|v| v.to_str().ok()).map(str::to_owned);
            if let Some(before) = user.arm.clone().filter(|before| self.sticks && Some(before) != arm.as_ref()) {
                self.failed.push(format!("user {i} met {before}, then {arm:?}"));
            }
            user.arm = arm;
            if let Some(cookie) = cookie.and_then(|c| c.split(';').next().map(str::to_owned)) {
                user.cookie = Some(cookie);
            }
            let body: Value = answer.json().await?;
            user.answer = body["id"].as_str().map(str::to_owned);
        }
        Ok(())
    }

    /// Users of each arm.
    fn arms(&self) -> BTreeMap<String, usize> {
        let mut arms = BTreeMap::new();
        for arm in self.users.iter().filter_map(|user| user.arm.clone()) {
            *arms.entry(arm).or_default() += 1;
        }
        arms
    }

    /// Every user says something about the last answer.
    async fn say(&self, by_header: bool) -> Result<usize> {
        let mut counted = 0;
        for (i, user) in self.users.iter().enumerate() {
            let Some(id) = &user.answer else { continue };
            let mut request = self.client.post(format!("{}/v1/feedback", self.url)).header("host", &self.host);
            if by_header {
                request = request.header("x-user-id", format!("user-{i}"));
            } else if let Some(cookie) = &user.cookie {
                request = request.header("cookie", cookie);
            }
            let answer = request.json(&json!({"id": id, "value": (i % 2) as f64})).send().await?;
            ensure!(answer.status() == 200, "feedback of user {i}: {}", answer.status());
            let body: Value = answer.json().await?;
            counted += usize::from(body["counted"] == true);
        }
        Ok(counted)
    }
}

pub(crate) async fn a_user_stays_with_one_arm(suite: Arc<Suite>) -> Result<()> {
    for (name, sticky) in [("ab-cookie", json!({"cookie": "arm"})), ("ab-header", json!({"header": "x-user-id"}))] {
        let by_header = name == "ab-header";
        let stand = Stand::new(suite.clone(), name).await?;
        let history = stand.history();
        stand.serve_baseline().await?;
        let traffic = stand.traffic(20.0).await?;
        // Equal arms, so that both are met: the model is the same, with another setting.
        let test = json!({"weight": 50, "stickiness": sticky, "duration": "75s", "metric": {"type": "conversion"}});
        let edit = json!({"model": {"serving": {"maxBatch": 16}}, "strategy": {"canary": null, "abTest": test}});
        stand.rollouts.edit(CHAT, &edit).await?;
        let split = stand
            .rollouts
            .wait(CHAT, "the split", Duration::from_secs(300), |s| {
                s.weights.values().filter(|w| **w == 50).count() == 2
            })
            .await?;
        let candidate = split.candidate.context("no candidate")?.revision;
        // The gateway's pods take the rules over.
        tokio::time::sleep(Duration::from_secs(4)).await;

        let mut crowd = Crowd::new(&stand)?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(45) {
            crowd.ask(by_header).await?;
        }
        let arms = crowd.arms();
        println!("{name}: {} requests of {USERS} users, arms {arms:?}", crowd.requests);
        ensure!(crowd.failed.is_empty(), "{name}: {:#?}", crowd.failed);
        // P(one arm empty) = 2^-59 where users are assigned by lot.
        ensure!(arms.len() == 2 && arms.contains_key(&candidate), "{name}: {arms:?}");
        let counted = crowd.say(by_header).await?;
        ensure!(counted >= USERS / 2, "{name}: only {counted} of {USERS} were heard");

        // They go on asking while the test ends, and its rules with it.
        crowd.sticks = false;
        let end = loop {
            crowd.ask(by_header).await?;
            let status = stand.rollouts.status(CHAT).await?;
            let reported = status.decision.as_ref().is_some_and(|d| d.verdict == "Reported");
            if reported && status.phase == "Holding" && history.versions().last().is_some_and(|v| v.derived.is_empty())
            {
                break status;
            }
            ensure!(begin.elapsed() < Duration::from_secs(225), "{name}: no report: {}", status.message);
        };
        ensure!(crowd.failed.is_empty(), "{name}: {:#?}", crowd.failed);
        println!("{name}: {}", end.message);
        let users = end.signals.iter().find(|s| s.name == "users").context("no signal of users")?;
        let ratio = end.signals.iter().find(|s| s.name == "sample-ratio").context("no signal of their arrival")?;
        ensure!(users.samples > 0, "{name}: no user's word was counted: {users:?}");
        ensure!(ratio.samples > 0 && ratio.verdict != "Failed", "{name}: {ratio:?}");
        ensure!(end.weights.get(&candidate) == Some(&0), "{name}: {:?}", end.weights);
        let versions = history.versions();
        let during = versions.iter().any(|v| !v.awake.is_empty());
        ensure!(during != by_header, "{name}: derived rules are for cookies");
        let last = versions.last().context("no version")?;
        ensure!(last.derived.is_empty(), "{name}: rules are left: {:?}", last.derived);
        let account = Account::of(&traffic.stop().await);
        println!("{account}");
        ensure!(account.failed == 0, "{name}: {account}");
        history.audit()?;
        stand.away().await?;
    }
    Ok(())
}
