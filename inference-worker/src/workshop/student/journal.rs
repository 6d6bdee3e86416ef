//! The log of a run: one JSON object per line, and two pictures of it.

use super::held_out::Validation;
use crate::workshop::WorkshopError;
use crate::workshop::svg::{Curve, Plot, plot};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// One line: a step, with a validation where there was one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    /// Steps done, from 1.
    pub(super) step: usize,
    /// Epoch of the step, from 0.
    pub(super) epoch: usize,
    /// `full`, `int8`, `int4` or `final`.
    pub(super) stage: String,
    /// Loss of the step, nats.
    pub(super) loss: f32,
    /// Learning rate of the step.
    pub(super) learning_rate: f32,
    /// Spread of the noise, as a share of the mean of |w|.
    pub(super) noise: f32,
    /// After the step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) validation: Option<Validation>,
}

pub(super) struct Journal {
    dir: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the log and keeps its first `steps` steps: what came after the checkpoint will be done again.
    pub(super) fn open(dir: &Path, steps: usize) -> Result<Self, WorkshopError> {
        let path = dir.join("log.jsonl");
        let text = if steps > 0 { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let kept = text.lines().filter_map(|line| serde_json::from_str::<Entry>(line).ok());
        let entries: Vec<Entry> = kept.filter(|entry| entry.step <= steps).collect();
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path);
        let file = file.map_err(WorkshopError::file("open", &path))?;
        let mut journal = Self { dir: dir.to_path_buf(), file, entries: Vec::new() };
        entries.into_iter().try_for_each(|entry| journal.add(entry))?;
        Ok(journal)
    }

    pub(super) fn add(&mut self, entry: Entry) -> Result<(), WorkshopError> {
        let path = self.dir.join("log.jsonl");
        let mut line = serde_json::to_vec(&entry).map_err(WorkshopError::json(&path))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(WorkshopError::file("write", &path))?;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes loss.svg and cosine.svg.
    pub(super) fn draw(&self, marks: &[(f64, String)]) -> Result<(), WorkshopError> {
        let loss: Vec<(f64, f64)> = self.entries.iter().map(|e| (e.step as f64, f64::from(e.loss))).collect();
        let of = |value: fn(&Validation) -> f64| -> Vec<(f64, f64)> {
            self.entries.iter().filter_map(|e| Some((e.step as f64, value(e.validation.as_ref()?)))).collect()
        };
        let (mean, fifth) = (of(|v| v.mean), of(|v| v.fifth_percentile));
        let write = |name: &str, svg: String| {
            let path = self.dir.join(name);
            fs::write(&path, svg).map_err(WorkshopError::file("write", &path))
        };
        let curves = [Curve { name: "loss", points: &loss }];
        write("loss.svg", plot(&Plot { title: "Training loss (nats)", x: "step", curves: &curves, marks: &[] }))?;
        let curves = [Curve { name: "mean", points: &mean }, Curve { name: "5th percentile", points: &fifth }];
        let title = "Cosine of student and teacher on held-out text";
        write("cosine.svg", plot(&Plot { title, x: "step", curves: &curves, marks }))
    }
}
