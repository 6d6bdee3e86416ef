//! The page in a real Chromium, driven through WebDriver: what is shown, what a click does, light and dark, a phone, the
//! keyboard, and an accessibility check by axe-core. `cargo verify` runs it with what it needs.

use super::*;
use crate::{
    counters::Usage,
    dashboard::{
        comparisons::Margins,
        spending::Bill,
        ticks::{LivePoint, Point, SignalPoint},
    },
    observe::Compared,
};
use bitnet_core::{
    evidence::{Histogram, LiveArm},
    observation::{Live, Users},
};
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// First paint may transfer this much.
const TRANSFER: f64 = 150_000.0;

/// A browser and its driver.
struct Browser {
    _driver: Child,
    http: reqwest::Client,
    session: String,
}

impl Browser {
    async fn open() -> Self {
        let program = std::env::var("CHROMEDRIVER").unwrap_or_else(|_| "chromedriver".into());
        let mut driver = Command::new(&program)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program} ({error}): install Debian's chromium and chromium-driver"));
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next_line().await.unwrap().expect("the driver says its port");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let base = format!("http://127.0.0.1:{port}/session");
        let answer = http.post(&base).json(&wanted).send().await.unwrap().json::<Value>().await.unwrap();
        let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {answer}"));
        Self { _driver: driver, session: format!("{base}/{id}"), http }
    }

    /// Ends the browser; the driver's own end does not always take it along.
    async fn close(self) {
        self.http.delete(&self.session).send().await.unwrap();
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.http.post(format!("{}/{path}", self.session)).json(&body).send().await.unwrap();
        let answer = answer.json::<Value>().await.unwrap();
        assert!(answer["value"].get("error").is_none(), "{path}: {answer}");
        answer["value"].clone()
    }

    async fn go(&self, url: &str) {
        self.post("url", json!({ "url": url })).await;
    }

    async fn run(&self, script: &str) -> Value {
        self.post("execute/sync", json!({"script": script, "args": []})).await
    }

    /// Waits for a condition of the page: a fact that comes, not a time that passes.
    async fn until(&self, condition: &str) {
        for _ in 0..600 {
            if self.run(&format!("return Boolean({condition})")).await == true {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let body = self.run("return document.body.innerText").await;
        panic!("it never came: {condition}\nthe page says: {body}");
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.post("element", json!({"using": "css selector", "value": selector})).await;
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        id.unwrap_or_else(|| panic!("no {selector}")).to_owned()
    }

    async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/click"), json!({})).await;
    }

    async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/value"), json!({ "text": text })).await;
    }

    async fn press(&self, key: &str) {
        let actions = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        self.post("actions", json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]})).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.post("goog/cdp/execute", json!({"cmd": command, "params": parameters})).await;
    }

    async fn look(&self, scheme: &str, phone: bool) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        let (width, height) = if phone { (390, 844) } else { (1280, 1000) };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Keeps a picture of the whole page where a folder is named for it.
    async fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("BITNET_SCREENSHOTS") else { return };
        let parameters = json!({"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": true}});
        let value = self.post("goog/cdp/execute", parameters).await;
        let path = PathBuf::from(folder).join(format!("{name}.png.base64"));
        std::fs::write(path, value["data"].as_str().unwrap()).unwrap();
    }

    /// No rule of WCAG 2.2 A and AA, and none of axe's good practice, is broken, and nothing is wider than the screen.
    async fn accessible(&self, name: &str) {
        let axe = std::env::var("BITNET_AXE").expect("BITNET_AXE names axe.min.js: `cargo verify` fetches it");
        let axe = std::fs::read_to_string(&axe).unwrap_or_else(|error| panic!("{axe}: {error}"));
        self.run(&axe).await;
        // Colours that are still on their way from the other scheme are nobody's contrast.
        let script = "const done = arguments[arguments.length - 1]; \
            Promise.all(document.getAnimations().map((one) => one.finished)).then(() => axe.run(document)).then((found) => done(found.violations.map(\
            (one) => one.id + ': ' + one.help + ' at ' + one.nodes.map((node) => node.html.slice(0, 160)).slice(0, 3).join(' | '))));";
        let broken = self.post("execute/async", json!({"script": script, "args": []})).await;
        assert_eq!(broken, json!([]), "{name}");
        let wide = self.run("return document.documentElement.scrollWidth > document.documentElement.clientWidth").await;
        assert_eq!(wide, false, "{name}: the page scrolls sideways");
    }
}

fn running() -> ModelRollout {
    let signal = |name: &str, verdict: &str, samples: i64, estimate: &str, interval: [&str; 2], evidence: [&str; 2]| {
        json!({"name": name, "verdict": verdict, "samples": samples, "required": 2 * samples, "estimate": estimate,
            "interval": interval, "evidence": evidence[0], "evidenceFor": evidence[1], "detail": "p95 of ttft"})
    };
    let mut object = serde_json::to_value(object("team-a", "chat", "Progressing")).unwrap();
    let revision = |name: &str, digit: &str| json!({"revision": name, "image": format!("registry.example/m@sha256:{}", digit.repeat(64)), "replicas": 3, "ready": 3});
    let at = "2026-01-01T00:00:00Z";
    object["status"] = json!({
        "phase": "Progressing", "observedGeneration": 1, "attempt": 1, "tick": 120, "verdict": "Continue",
        "message": "step 2 of 5: waiting for latency (812 of about 1600 pairs)",
        "baseline": revision("chat-aaaaaaaaaa", "a"), "stable": revision("chat-aaaaaaaaaa", "a"),
        "candidate": revision("chat-bbbbbbbbbb", "b"), "weights": {"chat-aaaaaaaaaa": 90, "chat-bbbbbbbbbb": 10},
        "step": {"index": 2, "of": 5, "position": "2/5", "weight": 10, "since": at}, "exposedRequests": 4711,
        "signals": [
            signal("cosine", "Proven", 960, "0.9712", ["0.9650", "0.9770"], ["-12.31", "9.82"]),
            signal("cosine-tail", "Continue", 960, "0.0210", ["0.0110", "0.0410"], ["-4.20", "2.10"]),
            signal("latency", "Continue", 812, "1.031", ["0.950", "1.140"], ["-1.10", "1.70"]),
            signal("errors", "Continue", 4711, "0.0001", ["-0.0010", "0.0012"], ["-0.80", "1.20"]),
        ],
        "missing": ["latency: 812 of about 1600 pairs", "errors: 4711 of about 9400 requests"],
        "conditions": [{"type": "Ready", "status": "False", "reason": "Step", "message": "step 2 of 5", "lastTransitionTime": at, "observedGeneration": 1},
            {"type": "QualityHealthy", "status": "True", "reason": "WithinMargins", "message": "nothing speaks against the candidate", "lastTransitionTime": at, "observedGeneration": 1}],
        "verbs": [{"verb": "pause", "id": "1", "by": "ann", "at": at, "answer": "paused at 10 %"}],
        "history": [{"revision": "chat-cccccccccc", "verdict": "RolledBack", "at": at}],
    });
    serde_json::from_value(object).unwrap()
}

/// Ticks, live requests and comparisons of an attempt that goes well.
fn watched(stage: &Stage) {
    let ticks = &stage.dashboard.inner.ticks;
    let key = || ("team-a".to_owned(), "chat".to_owned());
    for tick in 1..=120u32 {
        let t = f64::from(tick);
        let wave = (t / 5.0).sin();
        let signal = |name, against: f64, support: f64| SignalPoint {
            name,
            samples: u64::from(tick) * 8,
            estimate: Some(0.97),
            against: against + wave / 4.0,
            support: support + wave / 3.0,
            required: Some(1600),
        };
        let point = Point {
            at: 1_767_225_600_000 + i64::from(tick) * 10_000,
            attempt: 1,
            tick,
            weight: if tick < 60 { 5 } else { 10 },
            against: -t / 12.0 + wave / 2.0,
            rollback_at: 4.605,
            promote_at: 2.996,
            signals: vec![
                signal("cosine", -t / 10.0, t / 12.0),
                signal("cosine-tail", -t / 30.0, t / 50.0),
                signal("latency", -t / 80.0, t / 70.0),
                signal("errors", -t / 100.0, t / 90.0),
            ],
            live: Some(LivePoint { seconds: 10.0, candidate: 20, stable: 180, candidate_errors: 0, stable_errors: 0 }),
        };
        let arm = |requests: u64| LiveArm {
            requests,
            errors: u64::from(tick % 40 == 0),
            ttft: Histogram((-20..-10).map(|bucket| (bucket, requests / 10)).collect()),
            tpot: Histogram((-45..-40).map(|bucket| (bucket, requests / 5)).collect()),
        };
        let live = Live { candidate: arm(20), stable: arm(180), seconds: 10.0, users: Users::default() };
        let used = |tokens, busy_seconds| Usage { tokens, busy_seconds, joules: Some(tokens as f64 / 4.0) };
        // Stable's pool has no price.
        let bill = Bill { used: [used(640, 9.0), used(6_000, 70.0)], prices: [Some(0.4), None] };
        ticks.keep(key(), "chat-bbbbbbbbbb", point, Some(&live), Some(&bill));
        let compared: Vec<_> = (0..8u32)
            .map(|i| Compared {
                probe: Some((tick * 7 + i) % 64),
                cosine: 0.995 - f64::from((tick * 31 + i * 17) % 50) / 1000.0,
            })
            .collect();
        let margins = Margins { mean: 0.95, tail: 0.9, tail_share: 0.05 };
        ticks.keep_comparisons(key(), (1, "chat-bbbbbbbbbb", "chat-aaaaaaaaaa"), margins, i64::from(tick), &compared);
    }
}

/// The page of a dashboard on a port of its own.
async fn serve(stage: &Stage) -> String {
    let listener = bind_loopback(0).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, stage.dashboard.router(Door::Loopback)).into_future());
    format!("http://localhost:{}/", address.port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Chromium and axe-core: cargo verify brings them"]
async fn the_page_in_a_browser() {
    let mut stage = stage(|asked| {
        let written =
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "chat"}});
        probe_set(asked).unwrap_or((200, written))
    });
    stage.writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(running()))));
    watched(&stage);
    let page = serve(&stage).await;
    let browser = Browser::open().await;

    // The list: small, readable in both schemes and on a phone, steered by the keyboard.
    browser.look("light", false).await;
    browser.go(&page).await;
    browser.until("document.querySelectorAll('.list tbody tr').length === 2").await;
    let bytes =
        browser.run("return performance.getEntries().reduce((sum, entry) => sum + (entry.transferSize || 0), 0)").await;
    assert!((10_000.0..TRANSFER).contains(&bytes.as_f64().unwrap()), "{bytes} bytes were transferred");
    let paint = browser.run("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime").await;
    println!("first paint after {paint} ms, {bytes} bytes");
    // The bar is 200 ms on a quiet machine; a browser's first page on a busy one is given five times that.
    assert!(paint.as_f64().is_some_and(|paint| paint < 1000.0), "first paint after {paint} ms");
    for (scheme, phone) in [("light", false), ("dark", false), ("light", true), ("dark", true)] {
        let name = format!("list-{scheme}{}", if phone { "-phone" } else { "" });
        browser.look(scheme, phone).await;
        browser.picture(&name).await;
        browser.accessible(&name).await;
    }
    browser.look("light", false).await;
    browser.press("/").await;
    browser.until("document.activeElement.id === 'search'").await;
    browser.fill("#search", "chat").await;
    browser.until("document.querySelectorAll('.list tbody tr').length === 1").await;
    browser.click(".list tbody a").await;

    // One rollout.
    browser
        .until("document.querySelectorAll('.charts svg').length === 6 && document.querySelector('.pair rect')")
        .await;
    let text = browser.run("return document.querySelector('main').innerText").await;
    for part in [
        "chat",
        "Progressing",
        "10 %",
        "4711",
        "Worst prompts",
        "No A/A floor",
        "A promotion still waits for",
        "p95",
        "evidence is expected",
        "9.6 % of tokens",
        "250 J",
        "0.00156",
    ] {
        assert!(text.as_str().unwrap().contains(part), "{part} is missing:\n{text}");
    }
    for (scheme, phone) in [("light", false), ("dark", false), ("light", true), ("dark", true)] {
        let name = format!("rollout-{scheme}{}", if phone { "-phone" } else { "" });
        browser.look(scheme, phone).await;
        browser.picture(&name).await;
        browser.accessible(&name).await;
    }
    browser.look("light", false).await;

    // Texts of prompts need a login, too.
    browser.click("button[data-texts]").await;
    browser.until("document.querySelector('#login').open").await;
    browser.click("#login-no").await;

    // A verb without a login leads to the login; with one it is written as the caller.
    browser.click("button[data-verb=abort]").await;
    browser.until("document.querySelector('#ask').open").await;
    browser.accessible("the question").await;
    browser.click("#ask-ok").await;
    browser.until("document.querySelector('#login').open").await;
    browser.accessible("the login").await;
    browser.fill("#token", "nothing").await;
    browser.click("#login-ok").await;
    browser.until("document.querySelector('#login-error').textContent.includes('does not know this token')").await;
    browser.fill("#token", "good").await;
    browser.click("#login-ok").await;
    browser
        .until("!document.querySelector('#login').open && document.querySelector('#who').textContent.includes('ann')")
        .await;
    browser.until("document.querySelector('button[data-verb=abort]')").await;
    assert!(stage.theirs.lock().unwrap().is_empty(), "nothing was written yet");
    browser.until("document.querySelector('button[data-texts]')").await;
    browser.click("button[data-texts]").await;
    browser.until("document.querySelector('main').innerText.includes('<b>text ')").await;
    browser.picture("rollout-texts").await;
    browser.accessible("the texts").await;
    stage.theirs.lock().unwrap().clear();
    browser.click("button[data-verb=abort]").await;
    browser.until("document.querySelector('#ask').open").await;
    browser.click("#ask-ok").await;
    browser.until("!document.querySelector('#ask').open").await;
    {
        let written = stage.theirs.lock().unwrap();
        assert_eq!(written.len(), 1);
        let request = written[0].body["metadata"]["annotations"]["rollouts.bitnet.dev/abort"].as_str().unwrap();
        assert!(request.contains("chat-bbbbbbbbbb") && request.contains("ann"), "{request}");
    }

    // What happens meanwhile arrives by itself, and text stays text.
    let mut after = running();
    let status = after.status.as_mut().unwrap();
    (status.phase, status.message) = ("RollingBack".into(), "<img src=x onerror=alert(1)>".into());
    stage.writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(after))));
    stage.dashboard.changed(Change::Object("team-a".into(), "chat".into()));
    browser.until("document.querySelector('main').innerText.includes('<img src=x')").await;
    assert_eq!(browser.run("return document.images.length").await, 0);
    browser.press("\u{e00c}").await;
    browser.until("location.hash === '#/'").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Chromium and axe-core: cargo verify brings them"]
async fn a_thousand_rollouts_in_a_browser() {
    let mut stage = plain();
    for number in 0..998 {
        let object =
            object("team-c", &format!("rollout-{number:03}"), if number % 50 == 0 { "Holding" } else { "Serving" });
        stage.writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(object))));
    }
    let page = serve(&stage).await;
    let browser = Browser::open().await;
    browser.go(&page).await;
    browser.until("document.querySelectorAll('.list tbody tr').length === 1000").await;
    let busy = browser.run("return performance.now()").await;
    println!("1,000 rollouts are listed {busy} ms after the page was asked for");
    // A filter and a change of one row touch no other row.
    browser.run("document.querySelectorAll('.list tbody tr').forEach((row) => { row.mark = true; })").await;
    let one = object("team-c", "rollout-500", "Degraded");
    stage.writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(one))));
    stage.dashboard.changed(Change::Object("team-c".into(), "rollout-500".into()));
    browser.until("document.querySelector('.list').innerText.includes('Degraded')").await;
    assert_eq!(
        browser.run("return [...document.querySelectorAll('.list tbody tr')].filter((row) => !row.mark).length").await,
        1
    );
    browser.fill("#search", "rollout-99").await;
    browser.until("document.querySelectorAll('.list tbody tr').length === 8").await;
    browser.close().await;
}
