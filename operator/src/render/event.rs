//! Events of a plan, as the Kubernetes API has them.

use super::labels::MANAGED_BY;
use bitnet_core::plan::Event as Planned;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};

/// Longest note in bytes.
const LIMIT: usize = 1024;

/// Renders the `index`-th event of a plan.
pub(crate) fn render(about: &ObjectReference, event: &Planned, identity: &str, now: Timestamp, index: usize) -> Event {
    let note = match event.note.object.as_str() {
        "" => event.note.message.clone(),
        object => format!("{object}: {}", event.note.message),
    };
    let type_ = if event.warning { "Warning" } else { "Normal" };
    object(about, type_, &event.note.reason.name(), &note, identity, now, index)
}

/// A warning that no plan made.
pub(crate) fn warning(about: &ObjectReference, reason: &str, note: &str, identity: &str, now: Timestamp) -> Event {
    object(about, "Warning", reason, note, identity, now, 0)
}

fn object(
    about: &ObjectReference,
    type_: &str,
    reason: &str,
    note: &str,
    identity: &str,
    now: Timestamp,
    index: usize,
) -> Event {
    let name = about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // Time makes it unique, the index orders events of one plan.
            name: Some(format!("{name}.{:x}", now.as_nanosecond() + index as i128)),
            namespace: about.namespace.clone(),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(type_.into()),
        reason: Some(reason.into()),
        action: Some("Rollout".into()),
        note: Some(shortened(note)),
        regarding: Some(about.clone()),
        reporting_controller: Some(MANAGED_BY.into()),
        reporting_instance: Some(identity.chars().take(128).collect()),
        ..Event::default()
    }
}

fn shortened(note: &str) -> String {
    let mut end = note.len().min(LIMIT);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_core::report::{Note, Reason};

    #[test]
    fn each_event_has_its_own_words_and_name_and_fits() {
        let about =
            ObjectReference { name: Some("chat".into()), namespace: Some("ns".into()), ..ObjectReference::default() };
        let planned = |message: &str| Planned {
            warning: false,
            note: Note {
                reason: Reason::Step,
                object: "Deployment chat-a".into(),
                message: message.into(),
                since: None,
            },
        };
        let now = Timestamp::from_second(1_735_689_600).unwrap();
        let [five, ten] =
            [(0, "5 %"), (1, "10 %")].map(|(index, text)| render(&about, &planned(text), "pod", now, index));
        assert_eq!(five.note.as_deref(), Some("Deployment chat-a: 5 %"));
        assert_eq!((five.type_.as_deref(), five.reason.as_deref()), (Some("Normal"), Some("Step")));
        assert_ne!(five.metadata.name, ten.metadata.name);
        let long = warning(&about, "X", &"ü".repeat(9000), "pod", now).note.unwrap();
        assert_eq!(long.len(), LIMIT);
    }
}
