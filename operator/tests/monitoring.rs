//! Dashboards and alert rules against a real Prometheus that scrapes what the operator and a worker really export: every
//! expression is evaluated, and every metric that one names is in the scrape.

#![allow(clippy::unwrap_used, reason = "clippy knows tests by their attribute, not their helpers")]

#[path = "../../inference-worker/tests/support/classic.rs"]
mod classic;
mod promql;

use bitnet_operator::{
    admin,
    metrics::{Facts, Metrics, Object},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    process::{Child, Command},
};

/// Metrics that this test cannot see, each with the reason.
const ELSEWHERE: [(&str, &str); 1] =
    [("bitnet_energy_joules_total", "needs a host that counts energy: RAPL, or an NVIDIA GPU")];

const DASHBOARDS: [&str; 3] = ["fleet.json", "rollouts.json", "workers.json"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where an expression stands, and the expression.
fn expressions() -> Vec<(String, String)> {
    let folder = root().join("charts/bitnet-rollouts/files");
    let mut found = Vec::new();
    for name in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap();
        let before = found.len();
        walk(&dashboard, &mut |key, text| {
            if key == "expr" {
                found.push((name.to_owned(), promql::with_variables_set(text)));
            }
        });
        assert!(found.len() > before, "{name} has no expression");
    }
    let rules: Value = serde_yaml::from_str(&fs::read_to_string(folder.join("rules.yaml")).unwrap()).unwrap();
    for rule in rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        found.push((rule["alert"].as_str().unwrap().to_owned(), rule["expr"].as_str().unwrap().to_owned()));
    }
    found
}

/// `label_values(METRIC, LABEL)` of the dashboards' variables.
fn variables() -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for name in DASHBOARDS {
        let text = fs::read_to_string(root().join("charts/bitnet-rollouts/files").join(name)).unwrap();
        walk(&serde_json::from_str(&text).unwrap(), &mut |key, text| {
            let Some(inner) = text.strip_prefix("label_values(").filter(|_| key == "query") else { return };
            let (metric, label) = inner.trim_end_matches(')').rsplit_once(", ").unwrap();
            found.push((name.to_owned(), promql::with_variables_set(metric), label.to_owned()));
        });
    }
    found
}

fn walk(value: &Value, visit: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if let Some(text) = value.as_str() {
                    visit(key, text);
                }
                walk(value, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

/// The operator's metrics with a series each.
fn filled() -> Metrics {
    let metrics = Metrics::default();
    for step in ["validate", "observe", "plan", "render", "apply", "status"] {
        drop(metrics.step(step));
    }
    metrics.reconciled("ok");
    metrics.called("compare", "ok");
    metrics.verdict("Promoted");
    metrics.notified("ops", "sent");
    let facts = Facts {
        phase: "Progressing",
        weight: 5,
        ln_rollback: Some(0.0),
        estimates: ["cosine", "cosine-tail", "latency", "errors"].map(|signal| (signal, Some(1.0))).to_vec(),
        samples: ["cosine", "cosine-tail", "latency", "errors"].map(|signal| (signal, 200)).to_vec(),
        shadow: Some((20, 20.0)),
    };
    metrics.observe(&Object { namespace: "team".into(), rollout: "chat".into() }, &facts);
    metrics
}

/// They as the operator's own router serves them.
async fn operator() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, admin::metrics(filled())).await });
    port
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// A worker with a small random model that was asked once. One that `fails` has no time for a first token, and its next tier
/// is not there.
async fn worker(http: &reqwest::Client, fails: bool) -> (Child, u16) {
    let here = std::env::current_exe().unwrap();
    let program = here.ancestors().nth(2).unwrap().join("inference-worker");
    let (port, internal) = (free_port().await, free_port().await);
    let child = Command::new(&program)
        .arg("serve")
        .arg("--model")
        .arg(root().join("inference-worker/tests/fuzz/model"))
        .args(["--bind", "127.0.0.1", "--revision", "chat-aaaaaaaaaa", "--log", "warn", "--metrics-compat", "vllm"])
        .args(["--port", &port.to_string(), "--internal-port", &internal.to_string()])
        .args(if fails { &["--fallback", "127.0.0.1:1", "--first-token-timeout", "0ms"][..] } else { &[] })
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{}: {error}: run `cargo build --release --workspace` first", program.display())
        });
    let url = format!("http://127.0.0.1:{port}");
    answers(http, &format!("{url}/readyz")).await;
    let body = json!({"model": "x", "prompt": "a b", "max_tokens": 4, "stream": !fails});
    // An engine that has nothing to do may be faster than no time at all: then it is asked again.
    for _ in 0..500 {
        let answer = http.post(format!("{url}/v1/completions")).json(&body).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        if status.is_success() != fails {
            return (child, port);
        }
        assert!(fails, "{status}: {text}");
    }
    panic!("no request failed");
}

async fn answers(http: &reqwest::Client, url: &str) {
    for _ in 0..600 {
        if http.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{url} does not answer");
}

struct Prometheus {
    _process: Child,
    _folder: tempfile::TempDir,
    http: reqwest::Client,
    url: String,
}

impl Prometheus {
    /// Scrapes as the chart's PodMonitors do: the operator's own labels win, a worker's come from its pod.
    async fn start(http: &reqwest::Client, operator: u16, workers: [u16; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules.yaml");
        fs::copy(root().join("charts/bitnet-rollouts/files/rules.yaml"), &rules).unwrap();
        let config = json!({
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
            "rule_files": [rules],
            "scrape_configs": [
                {
                    "job_name": "operator", "honor_labels": true,
                    "static_configs": [{"targets": [format!("127.0.0.1:{operator}")], "labels": {"namespace": "bitnet-system"}}],
                },
                {"job_name": "workers", "static_configs": workers.map(|port| json!({
                    "targets": [format!("127.0.0.1:{port}")],
                    "labels": {
                        "namespace": "team", "pod": format!("p{port}"), "rollout": "chat", "revision": "chat-aaaaaaaaaa",
                    },
                }))},
            ],
        });
        let file = folder.path().join("prometheus.yaml");
        fs::write(&file, config.to_string()).unwrap();
        let port = free_port().await;
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus ({error}): `apt-get install prometheus`"));
        let url = format!("http://127.0.0.1:{port}");
        answers(http, &format!("{url}/-/ready")).await;
        let this = Self { _process: process, _folder: folder, http: http.clone(), url };
        for _ in 0..200 {
            let up = this.query("count_over_time(up[1m]) >= 4 and up == 1").await.unwrap();
            if up.as_array().is_some_and(|targets| targets.len() == 3) {
                return this;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let targets = this.get("targets", &[]).await;
        panic!("all targets must be up: {}", targets["data"]["activeTargets"]);
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), parameters).unwrap();
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    /// The result of an expression, or what is wrong with it.
    async fn query(&self, expression: &str) -> Result<Value, String> {
        let answer = self.get("query", &[("query", expression)]).await;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].clone()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// Names of the series that are there.
    async fn names(&self) -> BTreeSet<String> {
        let values = self.get("label/__name__/values", &[]).await;
        values["data"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }
}

/// What is wrong with expressions, given the names of a scrape.
async fn faults(prometheus: &Prometheus, expressions: &[(String, String)]) -> BTreeMap<String, String> {
    let names = prometheus.names().await;
    let known = |name: &str| names.contains(name) || ELSEWHERE.iter().any(|(metric, _)| *metric == name);
    let mut faults = BTreeMap::new();
    for (place, expression) in expressions {
        if let Err(error) = prometheus.query(expression).await {
            faults.insert(format!("{place}: {expression}"), error);
            continue;
        }
        let used = promql::metrics(expression);
        assert!(!used.is_empty(), "{place} names no metric: {expression}");
        if let Some(missing) = used.iter().find(|name| !known(name)) {
            faults.insert(format!("{place}: {expression}"), format!("nobody exports {missing}"));
        }
    }
    faults
}

/// What `promtool check metrics` cannot read of a scrape. What it would name otherwise it says with another status.
async fn parse_errors(text: &str) -> Option<String> {
    const STYLE: i32 = 3;
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("promtool ({error}): `apt-get install prometheus`"));
    let mut input = check.stdin.take().unwrap();
    input.write_all(text.as_bytes()).await.unwrap();
    drop(input);
    let output = check.wait_with_output().await.unwrap();
    let read = output.status.success() || output.status.code() == Some(STYLE);
    (!read).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Prometheus and the worker's program: cargo verify brings them"]
async fn what_dashboards_and_alerts_read_is_exported() {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
    let (_good, good) = worker(&http, false).await;
    let (_bad, bad) = worker(&http, true).await;
    let operator = operator().await;
    let prometheus = Prometheus::start(&http, operator, [good, bad]).await;

    let all = expressions();
    assert!(all.len() > 50, "only {} expressions were found", all.len());
    let found = faults(&prometheus, &all).await;
    assert!(found.is_empty(), "{found:#?}");
    let mut with_data = 0;
    for (_, expression) in &all {
        let result = prometheus.query(expression).await.unwrap();
        with_data += usize::from(result.as_array().is_some_and(|series| !series.is_empty()));
    }
    println!("{} expressions evaluated, {with_data} of them with data", all.len());
    assert!(with_data > all.len() / 3, "only {with_data} of {} expressions find anything", all.len());

    // The variables of the dashboards offer something to choose.
    for (place, selector, label) in variables() {
        let values = prometheus.get(&format!("label/{label}/values"), &[("match[]", &selector)]).await;
        assert!(values["data"].as_array().is_some_and(|values| !values.is_empty()), "{place}: {selector}: {values}");
    }

    // Every rule is evaluated by Prometheus itself, too.
    let rules = prometheus.get("rules", &[]).await;
    let rules: Vec<_> = rules["data"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() >= 10);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }

    // Who asks for no format gets the classic one, by the parser that the endpoint pickers of gateways have.
    for port in [operator, good, bad] {
        let text = http.get(format!("http://127.0.0.1:{port}/metrics")).send().await.unwrap().text().await.unwrap();
        assert_eq!(parse_errors(&text).await, None, "{text}");
    }
    assert!(parse_errors("# TYPE a info\na_info 1\n").await.is_some(), "the check sees another format");

    // The check itself sees a misspelt metric and a broken expression.
    let wrong = [
        ("misspelt".to_owned(), "sum(rate(bitnet_requests_finnished_total[1m]))".to_owned()),
        ("suffix".to_owned(), "rate(bitnet_requests_failed[1m])".to_owned()),
        ("broken".to_owned(), "sum(rate(bitnet_requests_finished_total[1m])".to_owned()),
    ];
    assert_eq!(faults(&prometheus, &wrong).await.len(), 3);
}

#[test]
fn alerts_and_dashboards_read_metrics_that_the_operator_exports() {
    let text = filled().encode().unwrap();
    for file in ["rules.yaml", "rollouts.json"] {
        let asked = fs::read_to_string(root().join("charts/bitnet-rollouts/files").join(file)).unwrap();
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let names: BTreeSet<_> =
            asked.split(|c| !word(c)).filter(|name| name.starts_with("bitnet_operator_")).collect();
        assert!(!names.is_empty(), "{file}");
        for name in names {
            let sample = |line: &str| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} "));
            assert!(text.lines().any(sample), "{file} reads {name}, which the operator does not export:\n{text}");
        }
    }
}

#[tokio::test]
async fn the_operators_metrics_come_in_the_format_that_is_asked_for() {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{}/metrics", operator().await);
    let get = async |accept: &str| {
        let answer = http.get(&url).header("accept", accept).send().await.unwrap();
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (kind, answer.text().await.unwrap())
    };
    let (kind, text) = get("*/*").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let samples = classic::read(&text).unwrap();
    assert_eq!(samples.get("bitnet_operator_reconciles_total{outcome=\"ok\"}"), Some(&1.0));
    assert!(samples.contains_key("bitnet_operator_step_seconds_count{step=\"plan\"}"), "{text}");
    let (kind, text) = get("application/openmetrics-text").await;
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn every_metric_of_the_operator_is_in_the_docs() {
    let docs = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for line in filled().encode().unwrap().lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let row = format!("| `{name}` | {} |", help.trim_end_matches('.'));
        assert!(docs.contains(&row), "docs/metrics.md lacks a row that begins with: {row}");
    }
}
