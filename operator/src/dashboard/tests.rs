mod browser;

use super::*;
use crate::{
    client::Guard,
    fake::{Asked, Log, refusal, server},
};
use axum::{body::Body, http::Request};
use futures::StreamExt;
use kube::{
    core::DeserializeGuard,
    runtime::{reflector, watcher::Event},
};
use tower::ServiceExt as _;

fn object(namespace: &str, name: &str, phase: &str) -> ModelRollout {
    let image = |digit: &str| json!({"source": {"image": format!("r.example/m@sha256:{}", digit.repeat(64))}});
    serde_json::from_value(json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
        "metadata": {"name": name, "namespace": namespace, "uid": "u", "generation": 1, "resourceVersion": "10"},
        "spec": {"baseline": image("a"), "model": image("b"), "route": {"httpRoute": "shop"}, "gate": {"name": "chat"}},
        "status": {"phase": phase, "observedGeneration": 1, "message": "<img src=x onerror=alert(1)>",
            "evidence": "opaque-state", "attempt": 1,
            "candidate": {"revision": "chat-b", "image": "m", "replicas": 1, "ready": 1}},
    }))
    .unwrap()
}

/// `good` is Ann, who may list rollouts in `team-a` only; `admin` may everything; all other tokens are unknown.
fn api(asked: &Asked) -> (u16, Value) {
    let body = &asked.body;
    if asked.path.contains("tokenreviews") {
        let user = match body["spec"]["token"].as_str() {
            Some("good") => "ann",
            Some("admin") => "root",
            // A server that is out of order: authenticated, but as nobody.
            Some("nobody") => "",
            _ => return (201, json!({"metadata": {}, "spec": {}, "status": {"authenticated": false}})),
        };
        let status = json!({"authenticated": true, "user": {"username": user, "groups": ["system:authenticated"]}});
        return (201, json!({"metadata": {}, "spec": {}, "status": status}));
    }
    if asked.path.contains("subjectaccessreviews") {
        let (user, place) = (&body["spec"]["user"], &body["spec"]["resourceAttributes"]);
        let rollouts = place["resource"] == "modelrollouts" && place["verb"] == "list";
        let allowed = user == "root" || (user == "ann" && rollouts && place["namespace"] == "team-a");
        return (201, json!({"metadata": {}, "spec": {}, "status": {"allowed": allowed}}));
    }
    if asked.path.contains("rolloutdecisions") {
        return (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": []}));
    }
    refusal(500, "InternalError", "nothing else may be asked by the dashboard itself")
}

struct Stage {
    dashboard: Dashboard,
    writer: reflector::store::Writer<Guarded>,
    own: Log,
    theirs: Log,
    tokens: Arc<std::sync::Mutex<Vec<String>>>,
}

/// A dashboard that shows `team-a/chat` and `team-b/other`; callers' writes are answered by `answer`.
fn stage(answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> Stage {
    let (client, own) = server(&Guard::new(None), api);
    let (callers, theirs) = server(&Guard::new(None), answer);
    let tokens = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&tokens);
    let caller: AsCaller = Arc::new(move |token| {
        seen.lock().unwrap().push(token.reveal().to_owned());
        Ok(callers.clone())
    });
    let dashboard = Dashboard::new(client, caller, Ticks::default(), Fence::default(), "pod-1");
    let (store, mut writer) = reflector::store::<Guarded>();
    for object in [object("team-a", "chat", "Progressing"), object("team-b", "other", "Serving")] {
        writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(object))));
    }
    let _ = dashboard.inner.stores.set(vec![store]);
    dashboard.inner.unlisted.store(0, Ordering::Release);
    Stage { dashboard, writer, own, theirs, tokens }
}

fn plain() -> Stage {
    stage(|_| refusal(500, "InternalError", "no write is expected"))
}

async fn ask(stage: &Stage, door: Door, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
    let answer = stage.dashboard.router(door).oneshot(request).await.unwrap();
    let (head, body) = answer.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (head.status, head.headers, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn get_as(path: &str, token: Option<&str>) -> Request<Body> {
    let request = Request::get(path).header("host", "localhost:8082");
    let request = match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    request.body(Body::empty()).unwrap()
}

const CHAT: &str = "/api/v1/rollouts/team-a/chat";

fn verb(token: Option<&str>, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::post(format!("{CHAT}/abort")).header("host", "localhost:8082");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(json!({"revision": "chat-b", "attempt": 1}).to_string())).unwrap()
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn the_loopback_door_reads_without_a_login_and_the_other_one_shows_nothing() {
    let stage = plain();
    for path in ["/api/v1/about", "/api/v1/rollouts", CHAT, "/api/v1/rollouts/team-a/chat/decisions"] {
        assert_eq!(ask(&stage, Door::Loopback, get_as(path, None)).await.0, StatusCode::OK, "{path}");
        let (status, headers, body) = ask(&stage, Door::Login, get_as(path, None)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(headers[header::WWW_AUTHENTICATE], "Bearer");
        assert!(body["error"].as_str().unwrap().contains("login is needed"), "{body}");
    }
    for path in ["/api/v1/stream", "/api/v1/stream/team-a/chat"] {
        assert_eq!(ask(&stage, Door::Login, get_as(path, None)).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    let (_, _, list) = ask(&stage, Door::Loopback, get_as("/api/v1/rollouts", None)).await;
    assert_eq!(list["rollouts"].as_array().unwrap().len(), 2);
    assert!(stage.own.lock().unwrap().iter().all(|asked| !asked.path.contains("review")), "nobody was reviewed");
}

#[tokio::test]
async fn what_is_no_good_token_opens_no_door() {
    let stage = plain();
    for door in [Door::Loopback, Door::Login] {
        for value in ["Bearer nothing", "Bearer nobody", "Bearer", "Bearer ", "Basic Z29vZA==", "good", "Bearer go od"]
        {
            let mut request = get_as("/api/v1/rollouts", None);
            request.headers_mut().insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(ask(&stage, door, request).await.0, StatusCode::UNAUTHORIZED, "{door:?} {value:?}");
        }
    }
}

#[tokio::test]
async fn a_login_shows_what_its_owner_may_list_and_nothing_else() {
    let stage = plain();
    let list = async |token| ask(&stage, Door::Login, get_as("/api/v1/rollouts", Some(token))).await.2;
    let names = |list: &Value| -> Vec<String> {
        list["rollouts"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&list("good").await), ["chat"]);
    assert_eq!(names(&list("admin").await), ["chat", "other"]);
    assert_eq!(ask(&stage, Door::Login, get_as(CHAT, Some("good"))).await.0, StatusCode::OK);
    // A rollout that is there and one that is not are refused alike.
    for path in ["/api/v1/rollouts/team-b/other", "/api/v1/rollouts/team-b/none", "/api/v1/stream/team-b/other"] {
        assert_eq!(ask(&stage, Door::Login, get_as(path, Some("good"))).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    let (status, _, body) = ask(&stage, Door::Login, get_as(&format!("{CHAT}/decisions"), Some("good"))).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        body["error"].as_str().unwrap().contains("ann may not list rolloutdecisions in namespace team-a"),
        "{body}"
    );
    // A login on the loopback door is a login, too.
    assert_eq!(names(&ask(&stage, Door::Loopback, get_as("/api/v1/rollouts", Some("good"))).await.2), ["chat"]);
    let reviews = stage.own.lock().unwrap().iter().filter(|asked| asked.path.contains("tokenreviews")).count();
    assert_eq!(reviews, 2, "an answer of the API server is believed for a while");
}

#[tokio::test]
async fn a_name_that_points_at_the_loopback_address_reads_nothing() {
    let stage = plain();
    for (host, wanted) in [
        ("localhost:8082", StatusCode::OK),
        ("127.0.0.1:40000", StatusCode::OK),
        ("[::1]:8082", StatusCode::OK),
        ("evil.example", StatusCode::MISDIRECTED_REQUEST),
        ("localhost.evil.example:8082", StatusCode::MISDIRECTED_REQUEST),
        ("10.0.0.7:8082", StatusCode::MISDIRECTED_REQUEST),
        ("", StatusCode::MISDIRECTED_REQUEST),
    ] {
        let mut request = get_as("/api/v1/rollouts", None);
        request.headers_mut().insert(header::HOST, host.parse().unwrap());
        assert_eq!(ask(&stage, Door::Loopback, request).await.0, wanted, "{host:?}");
    }
    let mut request = get_as("/api/v1/rollouts", Some("admin"));
    request.headers_mut().insert(header::HOST, "rollouts.example".parse().unwrap());
    assert_eq!(ask(&stage, Door::Login, request).await.0, StatusCode::OK, "the door with the login has any name");
}

#[tokio::test]
async fn a_verb_is_written_once_by_its_caller_with_what_they_saw() {
    let stage = stage(|_| {
        (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "chat"}}))
    });
    let (status, _, body) = ask(&stage, Door::Loopback, verb(Some("good"), &[JSON])).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    assert_eq!(body["by"], "ann");
    assert_eq!(*stage.tokens.lock().unwrap(), ["good"], "the write is the caller's");
    let writes = stage.theirs.lock().unwrap();
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].line(), "PATCH modelrollouts/chat");
    assert_eq!(writes[0].body["metadata"]["uid"], "u");
    let request = writes[0].body["metadata"]["annotations"]["rollouts.bitnet.dev/abort"].as_str().unwrap();
    let request: Value = serde_json::from_str(request).unwrap();
    assert_eq!(
        (&request["revision"], &request["attempt"], &request["by"]),
        (&json!("chat-b"), &json!(1), &json!("ann"))
    );
    assert_eq!(request["id"], body["id"]);
    let own = stage.own.lock().unwrap();
    assert!(own.iter().all(|asked| asked.path.contains("review")), "the dashboard itself wrote nothing: {own:?}");
}

#[tokio::test]
async fn a_verb_without_a_login_or_from_another_site_is_not_written() {
    let stage = plain();
    let cross = ("sec-fetch-site", "cross-site");
    let cases = [
        (verb(None, &[JSON]), StatusCode::UNAUTHORIZED),
        (verb(Some("nothing"), &[JSON]), StatusCode::UNAUTHORIZED),
        (verb(Some("good"), &[JSON, cross]), StatusCode::FORBIDDEN),
        (verb(Some("good"), &[JSON, ("sec-fetch-site", "same-site")]), StatusCode::FORBIDDEN),
        (verb(Some("good"), &[("content-type", "text/plain")]), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (verb(Some("good"), &[]), StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ];
    for (request, wanted) in cases {
        let shown = format!("{request:?}");
        let (status, _, body) = ask(&stage, Door::Loopback, request).await;
        assert_eq!(status, wanted, "{shown}: {body}");
    }
    let unknown = Request::post(format!("{CHAT}/delete")).header("host", "localhost").body(Body::empty()).unwrap();
    let (status, _, body) = ask(&stage, Door::Loopback, unknown).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["error"].as_str().unwrap().contains("one of promote"), "{body}");
    assert!(stage.theirs.lock().unwrap().is_empty() && stage.tokens.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_api_servers_refusal_of_a_verb_reaches_the_page_with_its_words() {
    let stage = stage(|_| refusal(403, "Forbidden", "ann cannot patch resource \"modelrollouts\""));
    let (status, _, body) = ask(&stage, Door::Login, verb(Some("good"), &[JSON])).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body["error"].as_str().unwrap().contains("cannot patch"), "{body}");
}

/// The gate and its probe set, as a caller who may read both finds them.
fn probe_set(asked: &Asked) -> Option<(u16, Value)> {
    if asked.path.contains("qualitygates/chat") {
        let gate = json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate", "metadata": {"name": "chat"},
            "spec": {"probes": {"configMap": "chat-probes"}},
        });
        return Some((200, gate));
    }
    let lines: Vec<_> = (0..64).map(|n| json!({"prompt": format!("<b>text {n}</b>")}).to_string()).collect();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "chat-probes"},
        "data": {"prompts.jsonl": lines.join("\n")}});
    asked.path.contains("configmaps/chat-probes").then_some((200, map))
}

#[tokio::test]
async fn texts_of_prompts_are_read_by_their_reader_and_by_nobody_else() {
    let stage = stage(|asked| probe_set(asked).unwrap());
    let of = |of: &str| format!("{CHAT}/probes?of={of}");
    assert_eq!(ask(&stage, Door::Loopback, get_as(&of("0"), None)).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&stage, Door::Login, get_as(&of("0"), None)).await.0, StatusCode::UNAUTHORIZED);
    let other = "/api/v1/rollouts/team-b/other/probes?of=0";
    assert_eq!(ask(&stage, Door::Login, get_as(other, Some("good"))).await.0, StatusCode::FORBIDDEN);
    for wrong in ["", "x", "-1", &["0"; 33].join(",")] {
        let status = ask(&stage, Door::Login, get_as(&of(wrong), Some("good"))).await.0;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong:?}");
    }
    assert!(stage.theirs.lock().unwrap().is_empty(), "nothing was read for any of these");
    let (status, _, body) = ask(&stage, Door::Login, get_as(&of("3,1,900"), Some("good"))).await;
    let wanted = json!({"configMap": "chat-probes", "texts": {"1": "<b>text 1</b>", "3": "<b>text 3</b>"}});
    assert_eq!((status, body), (StatusCode::OK, wanted));
    assert_eq!(*stage.tokens.lock().unwrap(), ["good"], "as the caller");
    let own = stage.own.lock().unwrap();
    assert!(own.iter().all(|asked| asked.path.contains("review")), "the operator itself read nothing: {own:?}");
}

#[tokio::test]
async fn who_may_not_read_the_probe_set_is_told_which_rights_it_needs() {
    let stage = stage(|_| refusal(403, "Forbidden", "configmaps \"chat-probes\" is forbidden"));
    let (status, _, body) = ask(&stage, Door::Login, get_as(&format!("{CHAT}/probes?of=0"), Some("good"))).await;
    let text = body["error"].as_str().unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(text.contains("is forbidden") && text.contains("get qualitygates and configmaps"), "{text}");
}

#[tokio::test]
async fn every_answer_has_its_headers_and_the_page_is_small_and_from_here_alone() {
    let stage = plain();
    let mut bytes = 0;
    for (path, kind, text) in pages::files() {
        let (status, headers, _) = ask(&stage, Door::Login, get_as(path, None)).await;
        assert_eq!((status, headers[header::CONTENT_TYPE].to_str().unwrap()), (StatusCode::OK, kind));
        assert_eq!(headers["content-security-policy"], pages::POLICY.as_str());
        assert_eq!(
            (&headers["x-content-type-options"], &headers["cache-control"]),
            (&"nosniff".parse().unwrap(), &"no-store".parse().unwrap())
        );
        for foreign in
            ["http:", "https:", "innerHTML", "document.cookie", "localStorage", "sessionStorage", "style=", "onclick="]
        {
            // The namespace of SVG is a name, no address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(foreign), "{path} holds {foreign}");
        }
        bytes += text.len();
    }
    assert!(bytes <= 150_000, "first paint is at most 150 kB, this is {bytes}");
    let (status, headers, _) = ask(&stage, Door::Login, get_as("/nowhere", None)).await;
    assert_eq!((status, headers.contains_key("content-security-policy")), (StatusCode::NOT_FOUND, true));
}

#[tokio::test]
async fn the_detail_says_what_the_status_says_without_its_opaque_part() {
    let stage = plain();
    let (_, _, detail) = ask(&stage, Door::Loopback, get_as(CHAT, None)).await;
    assert_eq!(detail["status"]["phase"], "Progressing");
    assert_eq!(detail["watched"], Value::Null, "no tick was taken: no number");
    assert!(!detail.to_string().contains("opaque-state"));
    let (status, _, body) = ask(&stage, Door::Loopback, get_as("/api/v1/rollouts/team-a/none", None)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["error"].as_str().unwrap().contains("no ModelRollout none"), "{body}");
}

#[tokio::test]
async fn names_that_no_object_has_reach_no_request_of_the_api() {
    let stage = plain();
    for path in ["team-a/..%2F..%2Fsecrets", "a%2F..%2F..%2Fkube-system/chat", "team-a/chat,x%3Dy"] {
        let path = format!("/api/v1/rollouts/{path}/decisions");
        assert_eq!(ask(&stage, Door::Loopback, get_as(&path, None)).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert!(stage.own.lock().unwrap().is_empty());
}

#[tokio::test]
async fn before_the_first_list_the_page_is_told_so() {
    let stage = plain();
    stage.dashboard.inner.unlisted.store(1, Ordering::Release);
    let (status, _, body) = ask(&stage, Door::Loopback, get_as("/api/v1/rollouts", None)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body["error"].as_str().unwrap().contains("CRDs"), "{body}");
}

#[tokio::test]
async fn a_malformed_object_has_its_line() {
    let mut stage = plain();
    let malformed = json!({"metadata": {"namespace": "team-a", "name": "broken"}, "spec": 7});
    let broken: Guarded = serde_json::from_value(malformed).unwrap();
    stage.writer.apply_watcher_event(&Event::Apply(broken));
    let (_, _, list) = ask(&stage, Door::Loopback, get_as("/api/v1/rollouts", None)).await;
    let row = list["rollouts"].as_array().unwrap().iter().find(|row| row["name"] == "broken").unwrap();
    assert_eq!(row["phase"], "Malformed");
}

/// Reads a stream until an event of this name, and gives its data.
async fn event(
    stream: &mut (impl StreamExt<Item = Result<axum::body::Bytes, axum::Error>> + Unpin),
    name: &str,
) -> Value {
    let mut text = String::new();
    loop {
        let part = tokio::time::timeout(std::time::Duration::from_secs(5), stream.next()).await;
        text += std::str::from_utf8(&part.expect("an event comes").unwrap().unwrap()).unwrap();
        let found = text
            .split("\n\n")
            .find_map(|event| event.strip_prefix(&format!("event: {name}\ndata: ")).map(str::to_owned));
        if let Some(data) = found.filter(|_| text.ends_with("\n\n")) {
            return serde_json::from_str(&data).unwrap();
        }
    }
}

#[tokio::test]
async fn changes_are_streamed_to_whom_they_concern() {
    let mut stage = plain();
    let open = async |path: &str, token| {
        let answer = stage.dashboard.router(Door::Login).oneshot(get_as(path, Some(token))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body().into_data_stream()
    };
    let mut list = open("/api/v1/stream", "good").await;
    let mut one = open("/api/v1/stream/team-a/chat", "good").await;
    assert_eq!(event(&mut list, "rows").await.as_array().unwrap().len(), 1);
    assert_eq!(event(&mut one, "detail").await["status"]["phase"], "Progressing");
    assert_eq!(event(&mut one, "watched").await, Value::Null);
    for changed in [object("team-b", "other", "Degraded"), object("team-a", "chat", "RolledBack")] {
        let (namespace, name) = (changed.metadata.namespace.clone().unwrap(), changed.metadata.name.clone().unwrap());
        stage.writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(changed))));
        stage.dashboard.changed(Change::Object(namespace, name));
    }
    let row = event(&mut list, "row").await;
    assert_eq!((&row["name"], &row["phase"]), (&json!("chat"), &json!("RolledBack")), "nothing of team-b");
    assert_eq!(event(&mut one, "detail").await["status"]["phase"], "RolledBack");
    stage.writer.apply_watcher_event(&Event::Delete(DeserializeGuard(Ok(object("team-a", "chat", "RolledBack")))));
    stage.dashboard.changed(Change::Object("team-a".into(), "chat".into()));
    assert_eq!(event(&mut list, "gone").await["name"], "chat");
    assert_eq!(event(&mut one, "gone").await["name"], "chat");
}

#[tokio::test]
async fn a_browser_too_many_is_told_so_and_its_place_comes_back() {
    let stage = plain();
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        open.push(stage.dashboard.router(Door::Loopback).oneshot(get_as("/api/v1/stream", None)).await.unwrap());
    }
    let refused = ask(&stage, Door::Loopback, get_as("/api/v1/stream", None)).await;
    assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE);
    open.pop();
    let answer = stage.dashboard.router(Door::Loopback).oneshot(get_as("/api/v1/stream", None)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}
