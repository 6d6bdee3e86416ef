//! A model directory as an OCI image layout: one layer with the model's files at its root, ready for an image volume.
//!
//! Times, owners and modes are fixed and files come in the order of their names, so equal files give an equal digest.

use super::WorkshopError;
use super::files;
use super::staging::Staging;
use crate::model::{LoadOptions, Model};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// `sha256:…` of the manifest: what a rollout's `source.image` names after `@`.
    pub digest: String,
    /// `sha256:…` of the only layer.
    pub layer: String,
    /// Bytes of the layer.
    pub size: u64,
    /// Files in it, by path.
    pub files: Vec<String>,
    /// Content digest of the model directory, as the worker reports it.
    pub model_digest: String,
}

/// Writes the layout at `out`; `name` becomes its reference name, for tools that copy by name.
///
/// # Errors
/// [`WorkshopError::Load`] if the directory is no model that the worker loads; [`WorkshopError::Refused`] for a name that
/// is no tag, a file that a layer cannot hold, or an `out` that holds something else than a layout or lies in the model
/// directory. Nothing is left at `out` then, or what was there before.
pub fn package(model: &Path, out: &Path, name: &str) -> Result<Package, WorkshopError> {
    check_name(name)?;
    refuse_strange(model, out)?;
    // An image that no worker can load would be found out on the cluster only.
    Model::load(model, &LoadOptions::default()).map_err(WorkshopError::load(model))?;
    let entries = entries(model)?;
    let staging = Staging::new(out)?;
    let blobs = staging.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(WorkshopError::file("create", &blobs))?;

    let (layer, size) = write_layer(&blobs, model, &entries)?;
    let config = blob(&blobs, &config(&layer))?;
    let manifest = blob(
        &blobs,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}],
        }),
    )?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest.0,
            "size": manifest.1,
            "annotations": {"org.opencontainers.image.ref.name": name},
        }],
    });
    write(&staging.path().join("index.json"), index.to_string().as_bytes())?;
    write(&staging.path().join(LAYOUT), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let model_digest = crate::model::digest(model).map_err(WorkshopError::load(model))?;
    staging.publish()?;
    Ok(Package {
        digest: manifest.0,
        layer,
        size,
        files: entries.into_iter().filter(|e| e.size.is_some()).map(|e| e.name).collect(),
        model_digest,
    })
}

const LAYOUT: &str = "oci-layout";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A tag as registries allow it: the part of a reference after the colon.
fn check_name(name: &str) -> Result<(), WorkshopError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if first && name.len() <= 128 && name.chars().all(fits) {
        return Ok(());
    }
    Err(WorkshopError::Refused(format!(
        "--name must be a tag (at most 128 of the characters A-Z a-z 0-9 . _ -, the first a letter, digit or _) but is {name}: the repository comes in when the layout is copied"
    )))
}

fn refuse_strange(model: &Path, out: &Path) -> Result<(), WorkshopError> {
    let model = model.canonicalize().map_err(WorkshopError::file("read", model))?;
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if parent.canonicalize().is_ok_and(|parent| parent.starts_with(&model)) {
        return Err(WorkshopError::Refused(format!(
            "--out must not lie in the model directory but is {}: the image would hold itself",
            out.display()
        )));
    }
    let is_layout = out.join(LAYOUT).is_file() && out.join("index.json").is_file();
    let is_empty = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if !out.exists() || is_layout || is_empty {
        return Ok(());
    }
    Err(WorkshopError::Refused(format!("{} exists and is no image layout: choose another --out", out.display())))
}

/// A directory (no size) or a file of the layer.
struct Entry {
    name: String,
    path: PathBuf,
    size: Option<u64>,
}

/// Directories nest at most this deep; a deeper one is a loop of symbolic links.
const DEPTH: usize = 16;

fn entries(model: &Path) -> Result<Vec<Entry>, WorkshopError> {
    let mut all = Vec::new();
    collect(model, "", 0, &mut all)?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn collect(dir: &Path, prefix: &str, depth: usize, all: &mut Vec<Entry>) -> Result<(), WorkshopError> {
    if depth > DEPTH {
        return Err(WorkshopError::Refused(format!(
            "{} lies more than {DEPTH} directories deep: remove the loop of symbolic links",
            dir.display()
        )));
    }
    for entry in fs::read_dir(dir).map_err(WorkshopError::file("read", dir))? {
        let entry = entry.map_err(WorkshopError::file("read", dir))?;
        let path = entry.path();
        // Links count as what they point to: a hub's cache is made of them.
        let kind = fs::metadata(&path).map_err(WorkshopError::file("read", &path))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(WorkshopError::Refused(format!("{} has a name that is not UTF-8: rename it", path.display())));
        };
        let name = format!("{prefix}{name}");
        if kind.is_dir() {
            all.push(Entry { name: format!("{name}/"), path: path.clone(), size: None });
            collect(&path, &format!("{name}/"), depth + 1, all)?;
        } else if kind.is_file() {
            all.push(Entry { name, path, size: Some(kind.len()) });
        } else {
            return Err(WorkshopError::Refused(format!("{} is neither file nor directory: remove it", path.display())));
        }
    }
    Ok(())
}

/// Writes the layer under a temporary name while it is hashed: the weights are read once and never held.
fn write_layer(blobs: &Path, model: &Path, entries: &[Entry]) -> Result<(String, u64), WorkshopError> {
    let temporary = blobs.join("layer");
    let failed = || WorkshopError::file("write", &temporary);
    let file = File::create(&temporary).map_err(failed())?;
    let mut tar = tar::Builder::new(Measured { file: BufWriter::new(file), hash: Sha256::new(), size: 0 });
    for entry in entries {
        let read = || WorkshopError::file("pack", &entry.path);
        let Some(size) = entry.size else {
            append(&mut tar, &entry.name, 0o755, 0, io::empty()).map_err(read())?;
            continue;
        };
        let mut file = File::open(&entry.path).map_err(read())?.take(size);
        append(&mut tar, &entry.name, 0o644, size, &mut file).map_err(read())?;
        // A file that became shorter would shift everything behind it.
        if file.limit() > 0 {
            return Err(WorkshopError::Refused(format!(
                "{} changed while it was packed: stop what writes to {} and pack again",
                entry.path.display(),
                model.display()
            )));
        }
    }
    let Measured { file, hash, size } = tar.into_inner().map_err(failed())?;
    let file = file.into_inner().map_err(|e| failed()(e.into_error()))?;
    file.sync_all().map_err(failed())?;
    let digest = crate::model::hex(&hash.finalize());
    let place = blobs.join(&digest);
    fs::rename(&temporary, &place).map_err(WorkshopError::file("create", &place))?;
    Ok((format!("sha256:{digest}"), size))
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, size: u64, data: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, data)
}

/// Counts and hashes what is written.
struct Measured {
    file: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Write for Measured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes JSON as a blob; its digest and size.
fn blob(blobs: &Path, value: &Value) -> Result<(String, usize), WorkshopError> {
    let bytes = value.to_string().into_bytes();
    let digest = files::hash(&bytes);
    write(&blobs.join(&digest), &bytes)?;
    Ok((format!("sha256:{digest}"), bytes.len()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), WorkshopError> {
    fs::write(path, bytes).map_err(WorkshopError::file("write", path))
}

/// Weights are the same on every machine, but a runtime picks images by platform, so the layout names this one's.
fn config(layer: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created_by": "inference-worker package"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_tag() {
        for good in ["model", "_x", "v1.2-bitnet", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a:b", "-a", ".a", "ä", &"x".repeat(129)] {
            assert!(check_name(bad).unwrap_err().to_string().contains("--name"), "{bad}");
        }
    }
}
