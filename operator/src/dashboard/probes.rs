//! Texts of the prompts that do worst, for people who may read them: gate and probe set are read with the caller's own token,
//! so that the API server decides. The operator itself may read no ConfigMap, keeps none of this, and logs none of it.

use super::{Visit, access::Caller, missing, problem};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use bitnet_api::v1alpha1::{ModelRollout, QualityGate, QualityGateSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, fmt::Write as _};

/// Texts that are shown at once.
const MOST: usize = 32;
/// Characters of a text that are shown.
const LONGEST: usize = 2_000;

#[derive(Deserialize)]
pub(super) struct Asked {
    /// Places in the probe set, from 0, with commas between them.
    of: String,
}

pub(super) async fn texts(
    State(visit): State<Visit>,
    Path((namespace, name)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let token = match visit.reader(&headers, &namespace).await {
        Ok(Caller::Known { token, .. }) => token,
        Ok(Caller::Loopback) => {
            return problem(StatusCode::UNAUTHORIZED, "texts are read as you: sign in, also here");
        }
        Err(refused) => return *refused,
    };
    let places: Result<Vec<usize>, _> = asked.of.split(',').map(str::parse).collect();
    let Some(places) = places.ok().filter(|places| places.len() <= MOST) else {
        let text = format!("`of` must be at most {MOST} places in the probe set, from 0, with commas between them");
        return problem(StatusCode::UNPROCESSABLE_ENTITY, &text);
    };
    let Some(object) = visit.dashboard.find(&namespace, &name) else { return missing(&namespace, &name) };
    let found = match (visit.dashboard.inner.caller)(&token) {
        Ok(client) => read(client, &namespace, &object).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(Some((map, text))) => Json(json!({"configMap": map, "texts": chosen(&text, &places)})).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, "the rollout's gate, or the key of its probe set, is not there"),
        Err(kube::Error::Api(status)) => {
            let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::BAD_GATEWAY);
            let needs = "to see texts you need the rights to get qualitygates and configmaps in this namespace";
            problem(code, &format!("the API server refused: {} ({needs})", status.message))
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a probe set was not read for its reader");
            problem(StatusCode::BAD_GATEWAY, "the API server did not answer: try again, and see the operator's log")
        }
    }
}

/// Name of the ConfigMap, and the probe set in it.
async fn read(client: Client, namespace: &str, object: &ModelRollout) -> Result<Option<(String, String)>, kube::Error> {
    let gate: QualityGateSpec = match (&object.spec.gate_spec, &object.spec.gate) {
        (Some(spec), _) => spec.clone(),
        (None, Some(gate)) => Api::<QualityGate>::namespaced(client.clone(), namespace).get(&gate.name).await?.spec,
        (None, None) => return Ok(None),
    };
    let map = Api::<ConfigMap>::namespaced(client, namespace).get(&gate.probes.config_map).await?;
    let text = map.data.and_then(|mut data| data.remove(&gate.probes.key));
    Ok(text.map(|text| (gate.probes.config_map, text)))
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    #[serde(default)]
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

/// Texts by place. The worker counts the same way: lines with anything in them.
fn chosen(set: &str, places: &[usize]) -> BTreeMap<usize, String> {
    let lines: Vec<&str> = set.lines().filter(|line| !line.trim().is_empty()).collect();
    let text = |place: usize| {
        let line: Line = serde_json::from_str(lines.get(place)?).ok()?;
        let whole = line.prompt.unwrap_or_else(|| {
            line.messages.iter().fold(String::new(), |mut text, message| {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{}: {}", message.role, message.content);
                text
            })
        });
        Some(whole.trim_end().chars().take(LONGEST).collect())
    };
    places.iter().filter_map(|place| Some((*place, text(*place)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_as_the_worker_counts_them() {
        let set = "{\"prompt\": \"one\", \"id\": 7}\n\n  \n{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, \
                   {\"role\": \"user\", \"content\": \"two\"}]}\r\nbroken\n";
        let found = chosen(set, &[1, 0, 2, 9]);
        assert_eq!(found, BTreeMap::from([(0, "one".to_owned()), (1, "system: s\nuser: two".to_owned())]));
        let long = json!({"prompt": "é".repeat(3 * LONGEST)}).to_string();
        assert_eq!(chosen(&long, &[0])[&0].chars().count(), LONGEST);
    }
}
