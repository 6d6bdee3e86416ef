//! The API server's audit log: who wrote what, and when.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// One write, answered by the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// When the request arrived.
    pub time: Timestamp,
    /// For example `system:serviceaccount:bitnet:operator`.
    pub user: String,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// For example `httproutes`, or `modelrollouts/status` for a subresource.
    pub resource: String,
    /// Empty for cluster-wide objects.
    pub namespace: String,
    /// Empty where the server chose the name.
    pub name: String,
    /// The HTTP status that was answered.
    pub code: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: Object,
    #[serde(default)]
    response_status: Status,
    request_received_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    resource: String,
    namespace: String,
    name: String,
    api_group: String,
    subresource: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// Reads the writes that arrived at `since` or later.
pub(super) fn writes(log: &Path, since: Timestamp) -> Result<Vec<AuditEvent>> {
    let file = File::open(log).with_context(|| format!("could not read the audit log {}", log.display()))?;
    let mut events = Vec::new();
    let mut lines = BufReader::new(file).lines().peekable();
    while let Some(line) = lines.next() {
        let line = line?;
        match serde_json::from_str::<Line>(&line) {
            Ok(line) => events.extend(event(line).filter(|event| event.time >= since)),
            // The last line may be half-written at this moment.
            Err(_) if lines.peek().is_none() => {}
            Err(error) => return Err(error).with_context(|| format!("not an audit event: {line}")),
        }
    }
    Ok(events)
}

fn event(line: Line) -> Option<AuditEvent> {
    let object = line.object_ref;
    let resource = if object.subresource.is_empty() {
        object.resource
    } else {
        format!("{}/{}", object.resource, object.subresource)
    };
    (line.stage == "ResponseComplete").then_some(AuditEvent {
        time: line.request_received_timestamp,
        user: line.user.username,
        verb: line.verb,
        group: object.api_group,
        resource,
        namespace: object.namespace,
        name: object.name,
        code: line.response_status.code,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_read_and_a_torn_line_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.log");
        let line =
            r#"{"kind":"Event","stage":"ResponseComplete","verb":"patch","user":{"username":"alice","groups":[]},
            "objectRef":{"resource":"httproutes","namespace":"a","name":"r","apiGroup":"gateway.networking.k8s.io"},
            "responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":"2026-01-01T00:00:01.000000Z"}"#
                .replace('\n', " ");
        std::fs::write(&log, format!("{line}\n{}", &line[..50])).unwrap();
        let at = |text: &str| writes(&log, text.parse().unwrap()).unwrap();
        assert_eq!(at("2026-01-01T00:00:02Z"), []);
        let events = at("2026-01-01T00:00:01Z");
        assert_eq!(events.len(), 1);
        assert_eq!(
            (events[0].user.as_str(), events[0].resource.as_str(), events[0].code),
            ("alice", "httproutes", 200)
        );
    }
}
