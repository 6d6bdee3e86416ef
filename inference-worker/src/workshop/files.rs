//! Content of directories, so that what is there can be told from what would be made.

use super::WorkshopError;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// SHA-256, lower-case hex.
pub(super) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of every file below a directory, by its path from there.
pub(super) fn hash_all(dir: &Path) -> Result<BTreeMap<String, String>, WorkshopError> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).map_err(WorkshopError::file("read", &next))? {
            let path = entry.map_err(WorkshopError::file("read", &next))?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = fs::read(&path).map_err(WorkshopError::file("read", &path))?;
                let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
                files.insert(name, hash(&bytes));
            }
        }
    }
    Ok(files)
}
