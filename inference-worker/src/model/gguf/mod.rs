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
pub(super) use tokenizer::{Carried, tokenizer};

use super::LoadError;
use reader::{Gguf, Kind};
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

/// A tensor of a GGUF file, as [`each_tensor`] shows it.
pub(crate) struct Listed<'a> {
    /// Name in the file.
    pub(crate) name: &'a str,
    /// Rows and columns; a vector has one row.
    pub(crate) shape: (usize, usize),
    /// What it holds.
    pub(crate) elements: Held<'a>,
}

/// Elements of a listed tensor.
pub(crate) enum Held<'a> {
    /// Floats as stored, little-endian.
    Floats(safetensors::Dtype, &'a [u8]),
    /// Four 2-bit codes (weight plus one) a byte, and the factor of all weights.
    Codes(&'a [u8], f32),
}

/// Calls `f` with every tensor of the GGUF file in `dir`, by name; returns the file's name, or `None` where there is no
/// such file.
pub(crate) fn each_tensor(dir: &Path, mut f: impl FnMut(Listed<'_>)) -> Result<Option<String>, LoadError> {
    let Some(path) = find(dir)? else { return Ok(None) };
    let file = open(&path)?;
    for name in file.names() {
        let Some(shape) = file.shape(name) else { continue };
        let Some(tensor) = file.tensor(name, shape.0, shape.1)? else { continue };
        let elements = match tensor.kind {
            Kind::F32 => Held::Floats(safetensors::Dtype::F32, tensor.bytes),
            Kind::F16 => Held::Floats(safetensors::Dtype::F16, tensor.bytes),
            Kind::Bf16 => Held::Floats(safetensors::Dtype::BF16, tensor.bytes),
            Kind::I2S => Held::Codes(tensor.bytes, tensor.scale),
        };
        f(Listed { name, shape, elements });
    }
    Ok(path.file_name().map(|name| name.to_string_lossy().into_owned()))
}
