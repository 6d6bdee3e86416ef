//! Verbs: what people ask for in annotations of the custom resource.

use bitnet_api::keys::verb as key;
use bitnet_core::observation::{Verb, VerbRequest};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const VERBS: [Verb; 7] =
    [Verb::Abort, Verb::Rollback, Verb::Pause, Verb::Resume, Verb::Promote, Verb::PromoteFull, Verb::Retry];

/// Annotation of a verb.
pub fn key(verb: Verb) -> &'static str {
    match verb {
        Verb::Promote => key::PROMOTE,
        Verb::PromoteFull => key::PROMOTE_FULL,
        Verb::Pause => key::PAUSE,
        Verb::Resume => key::RESUME,
        Verb::Abort => key::ABORT,
        Verb::Rollback => key::ROLLBACK,
        Verb::Retry => key::RETRY,
    }
}

#[derive(Deserialize)]
struct Request {
    id: String,
    #[serde(default)]
    revision: String,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    by: String,
}

/// The verbs that wait. One that cannot be read is passed on without a revision: it is answered as void, with words,
/// and does not stay for ever.
pub(crate) fn read(annotations: &BTreeMap<String, String>) -> Vec<VerbRequest> {
    VERBS
        .into_iter()
        .filter_map(|verb| Some((verb, annotations.get(key(verb))?)))
        .map(|(verb, text)| one(verb, text))
        .collect()
}

fn one(verb: Verb, text: &str) -> VerbRequest {
    match serde_json::from_str::<Request>(text) {
        Ok(request) if !request.id.is_empty() => {
            VerbRequest { verb, id: request.id, revision: request.revision, attempt: request.attempt, by: request.by }
        }
        _ => VerbRequest {
            verb,
            id: format!("unreadable-{:.8x}", Sha256::digest(text.as_bytes())),
            revision: String::new(),
            attempt: 0,
            by: "unknown".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_and_garbage_is_passed_on_to_be_answered() {
        let annotations = BTreeMap::from([
            (key::PROMOTE.to_owned(), r#"{"id":"1","revision":"chat-abc","attempt":2,"by":"ann"}"#.to_owned()),
            (key::ABORT.to_owned(), "now!".to_owned()),
            ("other".to_owned(), "x".to_owned()),
        ]);
        let read = read(&annotations);
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].verb, read[0].revision.as_str()), (Verb::Abort, ""));
        assert!(read[0].id.starts_with("unreadable-"));
        let wanted = VerbRequest {
            verb: Verb::Promote,
            id: "1".into(),
            revision: "chat-abc".into(),
            attempt: 2,
            by: "ann".into(),
        };
        assert_eq!(read[1], wanted);
    }
}
