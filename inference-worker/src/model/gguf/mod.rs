//! GGUF files: F32, F16, BF16 and I2_S weights of the architectures `bitnet-b1.58` and `llama`.
//!
//! | | `bitnet-b1.58` (older: `bitnet-25`) | `llama` |
//! |---|---|---|
//! | gate, norms before the output and down projections | relu², yes | SiLU, no |
//! | rows of q and k | as the rotation pairs them here (i with i + half) | neighbours, put in order when read |
//!
//! Everything else is refused by name. I2_S is read in the layout of x86 builds, which published files have: an ARM build
//! of its writer used another one under the same number, so a file of that origin is refused by its codes or shows in
//! a comparison.

mod config;
mod load;
mod reader;
mod tokenizer;

pub(super) use config::config;
pub(super) use load::load;
pub(super) use tokenizer::tokenizer;

use super::LoadError;
use reader::Gguf;
use std::path::{Path, PathBuf};

/// The GGUF file of a model directory; `None` where there is a config.json or no such file.
pub(super) fn find(dir: &Path) -> Result<Option<PathBuf>, LoadError> {
    if dir.join("config.json").exists() {
        return Ok(None);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    files.sort();
    match files.len() {
        0 | 1 => Ok(files.pop()),
        count => Err(LoadError::Gguf {
            path: dir.to_path_buf(),
            problem: format!("holds {count} GGUF files; keep one model, in one file"),
        }),
    }
}

/// Opens the file that [`find`] found.
pub(super) fn open(path: &Path) -> Result<Gguf, LoadError> {
    Gguf::open(path)
}
