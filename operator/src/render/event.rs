//! Events of a plan, as the Kubernetes API has them.

use bitnet_core::plan::Event as Planned;
use kube::runtime::events::{Event, EventType};

/// Longest note in characters: the API takes 1024 bytes, and a character has at most four.
pub(crate) const LIMIT: usize = 256;

/// Renders an event.
pub fn render(event: &Planned) -> Event {
    let text = if event.note.object.is_empty() {
        event.note.message.clone()
    } else {
        format!("{}: {}", event.note.object, event.note.message)
    };
    Event {
        type_: if event.warning { EventType::Warning } else { EventType::Normal },
        reason: event.note.reason.name(),
        note: Some(text.chars().take(LIMIT).collect()),
        action: "Rollout".into(),
        secondary: None,
    }
}
