use super::*;
use crate::{
    client::Guard,
    fake::{Asked, Log, refusal, server},
};
use serde_json::{Value, json};
use std::sync::Mutex;

/// A server with one ModelRollout, its gate and its route; status patches are kept, everything else is listed empty.
fn world(
    object: Value,
    gate: Option<Value>,
    special: impl Fn(&Asked) -> Option<(u16, Value)> + Send + Sync + 'static,
) -> (Client, Log, Arc<Mutex<Value>>) {
    let stored = Arc::new(Mutex::new(object));
    let kept = Arc::clone(&stored);
    let (client, log) = server(&Guard::new(None), move |asked: &Asked| {
        if let Some(answer) = special(asked) {
            return answer;
        }
        let path = asked.path.split('?').next().unwrap_or_default();
        let mut stored = stored.lock().unwrap();
        match (asked.method.as_str(), path.rsplit('/').next().unwrap_or_default()) {
            ("PATCH", _) if path.contains("modelrollouts") => {
                let patch: json_patch::Patch = serde_json::from_value(asked.body.clone()).unwrap();
                if json_patch::patch(&mut stored, &patch).is_err() {
                    return refusal(422, "Invalid", "a test failed");
                }
                let version: u64 = stored["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                stored["metadata"]["resourceVersion"] = json!((version + 1).to_string());
                (200, stored.clone())
            }
            ("GET", _) if path.contains("modelrollouts") => (200, stored.clone()),
            ("GET", _) if path.contains("qualitygates") => {
                gate.clone().map_or_else(|| refusal(404, "NotFound", "no"), |g| (200, g))
            }
            ("GET", _) if path.contains("httproutes") => refusal(404, "NotFound", "no"),
            ("GET", "tenant") => {
                (200, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant"}}))
            }
            ("GET", _) => (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": []})),
            _ => (200, json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}})),
        }
    });
    (client, log, kept)
}

fn object() -> Value {
    let image = |digit: &str| json!({"source": {"image": format!("r.example/m@sha256:{}", digit.repeat(64))}});
    json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
        "metadata": {"name": "chat", "namespace": "tenant", "uid": "u", "generation": 1, "resourceVersion": "10"},
        "spec": {"baseline": image("a"), "model": image("b"), "route": {"httpRoute": "shop"}, "gate": {"name": "chat"}},
    })
}

fn gate() -> Value {
    json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate",
        "metadata": {"name": "chat", "namespace": "tenant"}, "spec": {"probes": {"configMap": "chat-probes"}},
    })
}

fn context(client: &Client) -> Arc<Context> {
    let config: Config = serde_yaml::from_str("{workerImage: w, pools: {cpu: {}}}").unwrap();
    Arc::new(Context {
        client: client.clone(),
        pools: config.known_pools(),
        config,
        workers: Workers::new(1).unwrap(),
        references: References::default(),
        guards: Guards::default(),
        metrics: Metrics::default(),
        notifier: Arc::new(Notifier::start(&[], std::path::Path::new("/nowhere"), Metrics::default()).unwrap()),
        ticks: Ticks::default(),
        events: Events::new(client.clone(), "test"),
        backoff: backoff::Backoff::default(),
        stores: std::sync::OnceLock::new(),
    })
}

async fn look(context: &Arc<Context>) -> Result<Action, Error> {
    let trigger: ModelRollout = serde_json::from_value(object()).unwrap();
    reconcile(Arc::new(DeserializeGuard(Ok(trigger))), Arc::clone(context)).await
}

fn writes(log: &Log) -> Vec<String> {
    let mut log = log.lock().unwrap();
    log.drain(..).filter(|asked| asked.method != "GET").map(|asked| asked.line()).collect()
}

#[tokio::test]
async fn a_rollout_that_waits_is_written_once_and_then_left_alone() {
    let (client, log, stored) = world(object(), Some(gate()), |_| None);
    let context = context(&client);
    look(&context).await.unwrap();
    assert_eq!(
        writes(&log),
        ["PATCH modelrollouts/chat", "PATCH chat/status"],
        "the finalizer, and what is waited for"
    );
    let status = stored.lock().unwrap()["status"].clone();
    assert!(status["message"].as_str().unwrap().contains("HTTPRoute shop"), "{status}");
    for _ in 0..3 {
        look(&context).await.unwrap();
        assert_eq!(writes(&log), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_missing_gate_is_told_once_and_nothing_moves() {
    let (client, log, stored) = world(object(), None, |_| None);
    let context = context(&client);
    assert_eq!(look(&context).await.unwrap(), Action::await_change());
    assert_eq!(writes(&log), ["PATCH chat/status", "POST tenant/events"]);
    let condition = stored.lock().unwrap()["status"]["conditions"][0].clone();
    assert_eq!((condition["type"].as_str(), condition["reason"].as_str()), (Some("Accepted"), Some("GateMissing")));
    look(&context).await.unwrap();
    assert_eq!(writes(&log), Vec::<String>::new());
}

#[tokio::test]
async fn a_conflict_of_the_status_write_advances_nothing() {
    let (client, log, _) = world(object(), Some(gate()), |asked| {
        asked.path.contains("/status").then(|| refusal(422, "Invalid", "a test failed"))
    });
    let error = look(&context(&client)).await.unwrap_err();
    assert_eq!(error.category(), Category::Conflict);
    assert_eq!(writes(&log), ["PATCH modelrollouts/chat", "PATCH chat/status"], "no event, no job, no answer follows");
}

#[tokio::test]
async fn a_malformed_object_is_reported_and_left_alone() {
    let mut broken = object();
    broken["spec"]["baseline"] = json!(7);
    let (client, log, _) = world(broken, Some(gate()), |_| None);
    assert_eq!(look(&context(&client)).await.unwrap(), Action::await_change());
    assert_eq!(writes(&log), ["POST tenant/events"]);
}

#[tokio::test]
async fn a_deletion_is_not_held_up_by_a_gate_that_is_gone() {
    let mut going = object();
    going["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    going["metadata"]["finalizers"] = json!([bitnet_api::keys::FINALIZER]);
    going["spec"]["model"]["pool"] = json!("gone");
    let (client, log, stored) = world(going.clone(), None, |_| None);
    assert_eq!(look(&context(&client)).await.unwrap(), Action::await_change());
    assert_eq!(writes(&log), ["PATCH modelrollouts/chat"], "in order: there is nothing to take down");
    assert_eq!(stored.lock().unwrap()["metadata"]["finalizers"], json!([]));

    // A spec that no rule of today allows: what serves stays.
    going["spec"]["strategy"] = json!({"canary": {}, "blueGreen": {}});
    let (client, log, stored) = world(going, None, |_| None);
    assert_eq!(look(&context(&client)).await.unwrap(), Action::await_change());
    assert_eq!(writes(&log), ["POST tenant/events", "PATCH modelrollouts/chat"]);
    assert_eq!(stored.lock().unwrap()["metadata"]["finalizers"], json!([]));
}

#[tokio::test]
async fn a_quota_is_told_and_does_not_slow_the_next_look_down() {
    let (client, log, stored) = world(object(), Some(gate()), |asked| {
        if asked.method == "POST" && asked.path.contains("deployments") {
            return Some(refusal(403, "Forbidden", "exceeded quota: gpus"));
        }
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "shop", "namespace": "tenant", "uid": "r", "resourceVersion": "1"},
            "spec": {"parentRefs": [{"name": "gw"}], "rules": [{"name": "only"}]},
        });
        (asked.method == "GET" && asked.path.contains("httproutes")).then_some((200, route))
    });
    let context = context(&client);
    for _ in 0..4 {
        let action = look(&context).await.unwrap();
        let longest = Action::requeue(Duration::from_secs(5));
        assert_eq!(action, longest, "as the plan says, however often it failed");
    }
    let status = stored.lock().unwrap()["status"].clone();
    assert!(status["message"].as_str().unwrap().contains("exceeded quota: gpus"), "{status}");
    assert!(writes(&log).contains(&"POST tenant/services".to_owned()), "what can be made is made");
}

/// What OTLP is for: a reconcile arrives at a collector as one trace, with its steps and its writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_reconcile_is_a_trace_that_a_collector_receives() {
    use crate::traces::{
        Traces,
        tests::{Collector, attribute, beside},
    };
    use tracing_subscriber::layer::SubscriberExt as _;
    let (collector, url) = Collector::listen().await;
    let traces = Traces::to(&url).unwrap();
    let (client, _, _) = world(object(), Some(gate()), |asked| {
        asked.path.contains("/status").then(|| refusal(422, "Invalid", "a test failed"))
    });
    {
        let _beside = beside();
        let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(traces.layer()));
        look(&context(&client)).await.unwrap_err();
    }
    traces.flush();
    let spans = collector.arrived().await;
    let one =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {spans:?}"));
    let root = one("reconcile");
    assert!(root.parent_span_id.is_empty());
    assert_eq!(attribute(root, "namespace").as_deref(), Some("tenant"));
    assert_eq!(attribute(root, "rollout").as_deref(), Some("chat"));
    assert_eq!(attribute(root, "phase").as_deref(), Some("Pending"));
    assert_eq!(root.status.as_ref().unwrap().message, "cannot write status");
    for step in ["validate", "observe", "plan", "render", "apply", "status"] {
        assert_eq!(one(step).parent_span_id, root.span_id, "{step}");
    }
    let write = one("write");
    assert_eq!(write.parent_span_id, one("apply").span_id);
    assert_eq!(attribute(write, "action").as_deref(), Some("patch"));
    assert_eq!(attribute(write, "kind").as_deref(), Some("ModelRollout"));
    assert!(spans.iter().all(|span| span.trace_id == root.trace_id));
}
