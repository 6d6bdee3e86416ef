use super::*;
use crate::config::ChannelFormat;
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, http::header, routing::post};
use bitnet_api::v1alpha1::{DecisionStatus, ModelRolloutStatus, RevisionStatus};
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc};

/// A receiver that answers from a list, the last answer for ever, and keeps what it was sent.
#[derive(Clone, Default)]
struct Receiver {
    answers: Arc<Vec<u16>>,
    got: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    async fn start(answers: &[u16]) -> (Self, SocketAddr) {
        let receiver = Self { answers: Arc::new(answers.to_vec()), ..Self::default() };
        let app = Router::new().route("/hook/secret", post(take)).with_state(receiver.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, app).into_future());
        (receiver, address)
    }

    fn got(&self) -> Vec<Value> {
        self.got.lock().unwrap().clone()
    }
}

async fn take(State(receiver): State<Receiver>, body: Bytes) -> (StatusCode, HeaderMap) {
    let mut got = receiver.got.lock().unwrap();
    got.push(serde_json::from_slice(&body).unwrap());
    let status = receiver.answers.get(got.len() - 1).or(receiver.answers.last()).copied().unwrap_or(200);
    let mut headers = HeaderMap::new();
    headers.insert(header::RETRY_AFTER, "0".parse().unwrap());
    headers.insert(header::LOCATION, "/hook/secret".parse().unwrap());
    (StatusCode::from_u16(status).unwrap(), headers)
}

fn channel(format: ChannelFormat) -> Channel {
    Channel {
        name: "ops".into(),
        format,
        occasions: Vec::new(),
        namespaces: Vec::new(),
        template: None,
        insecure_http: true,
    }
}

fn folder(address: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ops"), format!("{address}\n")).unwrap();
    folder
}

/// A sender that waits a moment between tries.
fn sender(folder: &Path, channel: Channel) -> Sender {
    let template = Template::new(channel.format, channel.template.as_deref()).unwrap();
    let client = deliver::client(folder).unwrap();
    Sender::new(client, folder.join("ops"), channel, template).waiting(Duration::from_millis(1))
}

async fn sent(answers: &[u16]) -> (Result<Delivery, Failure>, usize) {
    let (receiver, address) = Receiver::start(answers).await;
    let folder = folder(&format!("http://{address}/hook/secret"));
    let outcome = sender(folder.path(), channel(ChannelFormat::Json)).send(&Notification::sample()).await;
    (outcome, receiver.got().len())
}

#[tokio::test]
async fn a_receiver_that_may_still_take_it_is_asked_again_and_one_that_refuses_is_not() {
    assert_eq!(sent(&[200]).await.0.unwrap(), Delivery { tries: 1 });
    assert_eq!(sent(&[503, 500, 429, 204]).await.0.unwrap(), Delivery { tries: 4 });
    let (outcome, asked) = sent(&[502]).await;
    assert!(matches!(outcome, Err(Failure::Exhausted(why)) if why.contains("502")));
    assert_eq!(asked, 6);
    // A redirect is a refusal: the receiver must not choose where a message goes.
    for status in [400, 404, 302, 307] {
        let (outcome, asked) = sent(&[status]).await;
        assert!(matches!(outcome, Err(Failure::Refused(found)) if found.as_u16() == status), "{status}");
        assert_eq!(asked, 1, "{status}");
    }
}

#[tokio::test]
async fn the_address_is_a_secret_of_the_right_kind_and_in_no_error() {
    let closed = {
        // A port that nobody listens on any more.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let words = async |address: &str, insecure_http| {
        let folder = folder(address);
        let channel = Channel { insecure_http, ..channel(ChannelFormat::Slack) };
        let failure = sender(folder.path(), channel).send(&Notification::sample()).await.unwrap_err();
        format!("{:#}", anyhow::Error::from(failure))
    };
    let unreachable = words(&format!("http://{closed}/hook/secret"), true).await;
    assert!(unreachable.contains("6 tries") && !unreachable.contains("secret"), "{unreachable}");
    assert!(!unreachable.contains(&closed.port().to_string()), "{unreachable}");
    for (address, insecure) in [
        ("http://r.example/secret", false),
        ("file:///etc/passwd", true),
        ("", true),
        ("secret", true),
        ("https:", true),
    ] {
        let text = words(address, insecure).await;
        assert!(text.contains("must be one https:// URL") && !text.contains("passwd"), "{address}: {text}");
    }
    let missing = tempfile::tempdir().unwrap();
    let failure = sender(missing.path(), channel(ChannelFormat::Json)).send(&Notification::sample()).await;
    assert!(failure.unwrap_err().to_string().contains("the Secret needs a key of the channel's name"));
}

#[tokio::test]
async fn an_address_that_was_rotated_is_used_at_once() {
    let (old, first) = Receiver::start(&[200]).await;
    let (new, second) = Receiver::start(&[200]).await;
    let folder = folder(&format!("http://{first}/hook/secret"));
    let sender = sender(folder.path(), channel(ChannelFormat::Json));
    sender.send(&Notification::sample()).await.unwrap();
    std::fs::write(folder.path().join("ops"), format!("http://{second}/hook/secret")).unwrap();
    sender.send(&Notification::sample()).await.unwrap();
    assert_eq!((old.got().len(), new.got().len()), (1, 1));
}

#[test]
fn each_receiver_gets_its_shape_and_markup_stays_text() {
    let about = Notification { message: "<!channel> & <https://evil.example|here>".into(), ..Notification::sample() };
    let body = |format| Template::new(format, None).unwrap().body(&about).unwrap();
    let json = body(ChannelFormat::Json);
    assert_eq!(
        (&json["occasion"], &json["rollout"], &json["attempt"]),
        (&"RolledBack".into(), &"chat".into(), &1.into())
    );
    let text = json["text"].as_str().unwrap();
    assert!(text.starts_with("RolledBack: team-a/chat, candidate chat-b, attempt 1 (QualityFailed). "), "{text}");
    assert!(text.ends_with("kubectl bitnet explain chat-1a2b -n team-a"), "{text}");
    let slack = body(ChannelFormat::Slack);
    assert_eq!(slack.as_object().unwrap().len(), 1);
    let text = slack["text"].as_str().unwrap();
    assert!(text.contains("&lt;!channel&gt; &amp; &lt;https") && !text.contains('<'), "{text}");
    let teams = body(ChannelFormat::Teams);
    let card = &teams["attachments"][0];
    assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
    assert_eq!(card["content"]["body"][0]["text"], "team-a/chat: RolledBack");
    assert_eq!(card["content"]["body"][0]["color"], "attention");
}

#[test]
fn a_template_is_tried_before_it_is_used() {
    let template = |text| Template::new(ChannelFormat::Slack, Some(text));
    let about = Notification::sample();
    assert_eq!(template("{{ rollout | upper }} {{ weight }} %").unwrap().text(&about).unwrap(), "CHAT 0 %");
    for wrong in ["{{ rolout }}", "{% if %}", "{{ rollout | shout }}", "{% for i in range(10000000) %}x{% endfor %}"] {
        assert!(template(wrong).is_err(), "{wrong}");
    }
}

fn status(phase: &str, decision: Option<(&str, &str)>) -> ModelRolloutStatus {
    let decision = decision.map(|(id, verdict)| DecisionStatus {
        id: id.into(),
        verdict: verdict.into(),
        reason: "QualityFailed".into(),
        at: "2026-01-01T00:00:00Z".into(),
    });
    let candidate = Some(RevisionStatus { revision: "chat-b".into(), ..RevisionStatus::default() });
    ModelRolloutStatus { phase: phase.into(), decision, candidate, attempt: Some(1), ..ModelRolloutStatus::default() }
}

#[test]
fn what_is_new_in_a_stored_status_is_told_once() {
    let told = |old: &ModelRolloutStatus, new: &ModelRolloutStatus| -> Vec<Occasion> {
        let all = Notification::between("ns", "chat", old, new, "now");
        all.into_iter().map(|notification| notification.occasion).collect()
    };
    let nothing = ModelRolloutStatus::default();
    let running = status("Progressing", None);
    let back = status("RollingBack", Some(("d1", "RolledBack")));
    let after = status("RolledBack", Some(("d1", "RolledBack")));
    assert_eq!(told(&nothing, &running), [Occasion::Progressing]);
    assert_eq!(told(&running, &running), []);
    assert_eq!(told(&running, &back), [Occasion::RolledBack]);
    assert_eq!(told(&back, &after), [], "the verdict was told when it was stored");
    assert_eq!(told(&after, &after), []);
    // A pause of the same attempt is no new rollout; another attempt is.
    assert_eq!(told(&status("Paused", None), &running), []);
    assert_eq!(told(&after, &ModelRolloutStatus { attempt: Some(2), ..running.clone() }), [Occasion::Progressing]);
    assert_eq!(told(&running, &status("Holding", Some(("d2", "Inconclusive")))), [Occasion::Inconclusive]);
    assert_eq!(told(&running, &status("Holding", None)), [Occasion::Holding]);
    assert_eq!(told(&running, &status("Degraded", None)), [Occasion::Degraded]);
}

#[tokio::test]
async fn a_channel_gets_what_it_asked_for_and_a_full_queue_holds_nobody_up() {
    let (receiver, address) = Receiver::start(&[200]).await;
    let folder = folder(&format!("http://{address}/hook/secret"));
    let mine = Channel {
        occasions: vec![Occasion::RolledBack],
        namespaces: vec!["team-a".into()],
        ..channel(ChannelFormat::Json)
    };
    let metrics = Metrics::default();
    let notifier = Notifier::start(&[mine], folder.path(), metrics.clone()).unwrap();
    let sample = Notification::sample();
    let of = |occasion, namespace: &str| Notification { occasion, namespace: namespace.into(), ..sample.clone() };
    notifier.tell(&[
        of(Occasion::RolledBack, "team-a"),
        of(Occasion::Promoted, "team-a"),
        of(Occasion::RolledBack, "team-b"),
    ]);
    notifier.flush().await;
    assert_eq!(receiver.got().len(), 1);
    notifier.tell(&[of(Occasion::RolledBack, "team-a")]);
    assert_eq!(receiver.got().len(), 1, "nothing is taken after the end");
    assert!(metrics.encode().unwrap().contains(r#"notifications_total{channel="ops",outcome="sent"} 1"#));

    let notifier = Notifier::start(&[channel(ChannelFormat::Json)], folder.path(), metrics.clone()).unwrap();
    // The task has had no turn yet: all of this is one burst.
    notifier.tell(&vec![sample; QUEUE + 10]);
    assert!(metrics.encode().unwrap().contains(r#"notifications_total{channel="ops",outcome="dropped"} 10"#));
}
