//! Weights in the kernels' layout, kept in a file, so that a model is repacked once per node and not at every start, and
//! the processes of a node share its pages.
//!
//! The file's name says of what it was made: content digest of the model directory, kernels, head. It is written beside
//! its place and renamed, so nobody sees half of one. A file that is not exactly what its name says is never used: it is
//! logged and written anew. A directory that cannot be written costs the sharing, not the start.

mod format;
mod tape;

use super::{HeadMode, LoadError, LoadOptions, Model, ModelConfig};
use crate::kernels::{Cpu, Kernels};
use format::{Identity, Unusable};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where repacked weights are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsCache {
    /// The directory. Who can write to it decides what is served: it must belong to the worker.
    pub dir: PathBuf,
    /// Content digest of the model directory, as [`super::digest`] has it.
    pub digest: String,
}

/// Files in the making begin with this.
const UNFINISHED: &str = ".unfinished-";
/// No file is in the making for longer: its writer was killed.
const ABANDONED: Duration = Duration::from_hours(1);

impl WeightsCache {
    /// The file of a model with these options, for these kernels.
    pub fn file(&self, kernels: &str, head: HeadMode) -> PathBuf {
        let Self { dir, digest } = self;
        dir.join(format!("{digest}-{kernels}-{}-v{}.weights", head_name(head), format::VERSION))
    }
}

fn head_name(head: HeadMode) -> &'static str {
    match head {
        HeadMode::Exact => "exact",
        HeadMode::Screened => "screened",
        HeadMode::Int8 => "int8",
    }
}

/// The model of a file if there is a good one; else the one that `repack` makes, and then from the file that this wrote.
pub(super) fn load(
    cache: &WeightsCache,
    config: ModelConfig,
    options: &LoadOptions,
    repack: impl FnOnce(ModelConfig) -> Result<Model, LoadError>,
) -> Result<Model, LoadError> {
    let set = options.kernels.unwrap_or_else(Kernels::detect);
    let kernels = set.name();
    let path = cache.file(kernels, options.head);
    let shown = path.display();
    let identity =
        Identity { model: cache.digest.clone(), kernels: kernels.to_owned(), head: head_name(options.head).to_owned() };
    let open = |config: &ModelConfig| -> Result<Model, Unusable> {
        let sections = format::open(&path, &identity)?;
        let cpu = Cpu::new(set, options.threads.unwrap_or(1)).map_err(Unusable::Read)?;
        tape::read(sections, config.clone(), cpu, options, path.clone())
    };
    match open(&config) {
        Ok(model) => {
            tracing::info!(file = %shown, "weights mapped from the cache");
            return Ok(model);
        }
        Err(Unusable::Missing) => tracing::info!(file = %shown, "no repacked weights yet"),
        Err(reason) => tracing::warn!(file = %shown, %reason, "repacked weights are not used, they are made anew"),
    }
    let mut model = repack(config)?;
    model.reference = model.portable_logits();
    remove_abandoned(&cache.dir);
    let written = format::write(&cache.dir, UNFINISHED, &path, identity.clone(), &tape::parts(&model));
    match written.map_err(Unusable::Read).and_then(|()| open(&model.config)) {
        Ok(mapped) => {
            tracing::info!(file = %shown, "repacked weights written to the cache and mapped");
            Ok(mapped)
        }
        Err(reason) => {
            tracing::warn!(
                file = %shown,
                %reason,
                "repacked weights are not kept: serving from memory of this process; make the directory writable and large enough, or leave --weights-cache out"
            );
            Ok(model)
        }
    }
}

/// A process that was killed while it wrote leaves a file that nobody will rename.
fn remove_abandoned(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let old = || {
            let age = SystemTime::now().duration_since(entry.metadata().ok()?.modified().ok()?).ok()?;
            Some(age > ABANDONED)
        };
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) && old() == Some(true) {
            // Another process may have been faster.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
