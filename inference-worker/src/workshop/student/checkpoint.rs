//! What a run needs to go on exactly where it was: masters, moments, counters.

use crate::workshop::WorkshopError;
use crate::workshop::export::{StoredTensor, read_tensors, write_json, write_tensors};
use crate::workshop::staging::{Staging, recover};
use crate::workshop::weights::Weights;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Counters of a run. Floats are kept as bits: the text form of a number must not decide the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    /// SHA-256 over everything that decides the result.
    pub(super) recipe: String,
    /// Steps done.
    pub(super) step: usize,
    /// Updates of the optimiser.
    pub(super) updates: i32,
    /// Bits of the smoothed loss; none before the first step.
    pub(super) loss: Option<u32>,
}

const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";

/// Replaces the checkpoint at `dir`, whole or not at all.
pub(super) fn save(dir: &Path, weights: &Weights, state: &State) -> Result<(), WorkshopError> {
    let staging = Staging::new(dir)?;
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut tensors = Vec::new();
    for (p, [first, second]) in weights.all.iter().zip(weights.moments().0) {
        for (kind, values) in [("master", p.master.as_slice()), ("first", first), ("second", second)] {
            tensors.push(StoredTensor {
                name: format!("{kind}/{}", p.name),
                dtype: Dtype::F32,
                shape: p.dims.clone(),
                bytes: bytes(values),
            });
        }
    }
    write_tensors(&staging.path().join(TENSORS), &tensors)?;
    let path = staging.path().join(STATE);
    write_json(&path, &serde_json::to_value(state).map_err(WorkshopError::json(&path))?)?;
    staging.publish()
}

/// Counters of the checkpoint at `dir`, if there is one.
pub(super) fn state(dir: &Path) -> Result<Option<State>, WorkshopError> {
    recover(dir)?;
    let path = dir.join(STATE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(&path).map_err(WorkshopError::file("read", &path))?;
    serde_json::from_slice(&bytes).map(Some).map_err(WorkshopError::json(&path))
}

/// Puts the checkpoint's values into weights of the same shape.
pub(super) fn restore(dir: &Path, weights: &mut Weights, state: &State) -> Result<(), WorkshopError> {
    let path = dir.join(TENSORS);
    let mut all: BTreeMap<String, StoredTensor> =
        read_tensors(&path)?.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut take = |kind: &str, name: &str, count: usize| {
        let tensor = all.remove(&format!("{kind}/{name}")).filter(|t| t.dtype == Dtype::F32);
        let values = tensor.map(|t| t.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect());
        values.filter(|v: &Vec<f32>| v.len() == count).ok_or_else(|| {
            WorkshopError::Refused(format!(
                "{} does not hold {kind}/{name} with {count} numbers: remove the checkpoint and begin again",
                path.display()
            ))
        })
    };
    let mut moments = Vec::new();
    for p in &mut weights.all {
        p.master = take("master", &p.name, p.master.len())?;
        moments.push([take("first", &p.name, p.master.len())?, take("second", &p.name, p.master.len())?]);
    }
    weights.restore_moments(moments, state.updates);
    weights.refresh().map_err(WorkshopError::tensor("reading a checkpoint"))
}
