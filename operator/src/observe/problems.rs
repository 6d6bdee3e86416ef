//! Why a pod is not ready, in words. The operator may not read claims, ConfigMaps or Secrets: what is missing shows in
//! the pod's own conditions.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Longest text of a problem.
const LIMIT: usize = 400;

/// The problem of a pod that is not ready; `None` while it merely starts or goes away.
pub(super) fn of(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let from_containers = status.container_statuses.iter().flatten().find_map(container);
    let unschedulable = || {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
        (scheduled.status == "False").then(|| {
            let message = scheduled.message.as_deref().unwrap_or("no node fits");
            format!("unschedulable: {message}")
        })
    };
    let failed = || {
        (status.phase.as_deref() == Some("Failed")).then(|| {
            let reason = status.reason.as_deref().unwrap_or("Failed");
            format!("{reason}: {}", status.message.as_deref().unwrap_or("the pod has failed"))
        })
    };
    let text = from_containers.or_else(unschedulable).or_else(failed)?;
    Some(text.trim().replace('\n', " ").chars().take(LIMIT).collect())
}

fn container(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref();
    // What the worker itself said last (DigestMismatch, ModelInvalid, …) says more than that it is restarted.
    let ended = state
        .and_then(|state| state.terminated.as_ref())
        .or_else(|| status.last_state.as_ref().and_then(|state| state.terminated.as_ref()))
        .filter(|ended| ended.exit_code != 0);
    let last_words = ended.map(|ended| {
        let said = ended.message.as_deref().map(str::trim).filter(|said| !said.is_empty());
        match said {
            Some(said) => said.to_owned(),
            None => format!("exit code {} ({})", ended.exit_code, ended.reason.as_deref().unwrap_or("Error")),
        }
    });
    let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let starting = matches!(reason, "" | "ContainerCreating" | "PodInitializing");
        (!starting).then(|| (reason.to_owned(), waiting.message.clone().unwrap_or_default()))
    });
    match (waiting, last_words) {
        (Some((reason, _)), Some(words)) if reason == "CrashLoopBackOff" => Some(format!("crash loop: {words}")),
        (Some((reason, message)), _) if message.is_empty() => Some(reason),
        (Some((reason, message)), _) => Some(format!("{reason}: {message}")),
        (None, Some(words)) if status.started != Some(true) => Some(format!("exited: {words}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn problem(status: &Value) -> Option<String> {
        of(&serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap())
    }

    fn waiting(reason: &str, message: &str, last: &Value) -> Value {
        json!({"containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 1, "started": false,
            "state": {"waiting": {"reason": reason, "message": message}}, "lastState": last,
        }]})
    }

    #[test]
    fn the_workers_last_words_win_over_the_crash_loop() {
        let last = json!({"terminated": {"exitCode": 3, "reason": "Error", "message": "DigestMismatch: expected ab, found cd\n"}});
        assert_eq!(
            problem(&waiting("CrashLoopBackOff", "back-off 10s", &last)).as_deref(),
            Some("crash loop: DigestMismatch: expected ab, found cd")
        );
        let silent = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        assert_eq!(
            problem(&waiting("CrashLoopBackOff", "", &silent)).as_deref(),
            Some("crash loop: exit code 137 (OOMKilled)")
        );
    }

    #[test]
    fn images_and_nodes_are_named() {
        let pull = problem(&waiting("ErrImageNeverPull", "Container image \"x\" is not present", &json!({})));
        assert_eq!(pull.as_deref(), Some("ErrImageNeverPull: Container image \"x\" is not present"));
        let unschedulable = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "persistentvolumeclaim \"models\" not found"},
        ]});
        assert_eq!(
            problem(&unschedulable).as_deref(),
            Some("unschedulable: persistentvolumeclaim \"models\" not found")
        );
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"});
        assert_eq!(problem(&evicted).as_deref(), Some("Evicted: low on memory"));
    }

    #[test]
    fn a_pod_that_starts_has_no_problem() {
        assert_eq!(problem(&waiting("ContainerCreating", "", &json!({}))), None);
        assert_eq!(problem(&json!({"phase": "Running"})), None);
    }
}
