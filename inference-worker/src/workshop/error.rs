use crate::compare::ProbeError;
use crate::model::{ForwardError, LoadError, TextError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Why a pair or a damaged model was not made. Nothing is left at the destination.
#[derive(Debug, thiserror::Error)]
pub enum WorkshopError {
    /// A tensor operation failed.
    #[error("training failed while {doing}")]
    Tensor {
        /// The stage.
        doing: &'static str,
        /// What candle reported.
        #[source]
        source: candle_core::Error,
    },
    /// A file or directory could not be read or written.
    #[error("cannot {doing} {}{}", path.display(), remedy(source))]
    File {
        /// Verb.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The tokenizer could not be trained, saved or used.
    #[error("the tokenizer failed while {doing}")]
    Tokenizer {
        /// What it was doing.
        doing: &'static str,
        /// The tokenizer library's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A safetensors file is not what the step needs.
    #[error("{} cannot be used as packed weights", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the library found.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A JSON file is not what the step needs.
    #[error("{} is not the JSON that was expected", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where parsing stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A model does not load.
    #[error("the model in {} does not load", path.display())]
    Load {
        /// Its directory.
        path: PathBuf,
        /// The loader's reason.
        #[source]
        source: Box<LoadError>,
    },
    /// A model does not run.
    #[error("the model in {} does not run", path.display())]
    Forward {
        /// Its directory.
        path: PathBuf,
        /// The model's reason.
        #[source]
        source: ForwardError,
    },
    /// The probe file is no probe set.
    #[error("the probes cannot be used")]
    Probes {
        /// Its reader's reason.
        #[source]
        source: ProbeError,
    },
    /// A prompt cannot be encoded.
    #[error("probe {number} cannot be encoded")]
    Prompt {
        /// Its place among the prompts, from 1.
        number: usize,
        /// The tokenizer's reason.
        #[source]
        source: TextError,
    },
    /// An argument or a file's content breaks a rule: names field, rule and remedy.
    #[error("{0}")]
    Refused(String),
    /// The result was made and measured, but is not what it must be.
    #[error("{0}")]
    Missed(String),
    /// A run stopped at a file, and what it had saved before is whole.
    #[error("the run stopped; the checkpoint in {} is whole: go on from it with --resume", .checkpoint.display())]
    Interrupted {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// What stopped it.
        #[source]
        source: Box<WorkshopError>,
    },
    /// Another process is writing the same destination.
    #[error("another run is writing {}: wait for it, or choose another --out", .0.display())]
    Busy(PathBuf),
}

/// What to do where the system's own words do not say it.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            " (make room there, or name a place on another disk, and run the command again)"
        }
        ErrorKind::FileTooLarge => " (raise the limit of file sizes, `ulimit -f`, and run the command again)",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => " (name a place that you may write to)",
        _ => "",
    }
}

impl WorkshopError {
    pub(super) fn load(path: &Path) -> impl FnOnce(LoadError) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Load { path, source: Box::new(source) }
    }

    pub(super) fn tensor(doing: &'static str) -> impl FnOnce(candle_core::Error) -> Self {
        move |source| Self::Tensor { doing, source }
    }

    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { doing, path, source }
    }

    pub(super) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Json { path, source }
    }

    pub(super) fn tokenizer(doing: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |source| Self::Tokenizer { doing, source }
    }
}
