//! The content digest of a model directory.

use super::{LoadError, files};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Directories below a model directory may nest this deep; a deeper one is a symbolic-link loop.
const DEPTH: usize = 16;

/// The content digest of a model directory: SHA-256, in lower-case hex, over the sorted lines
/// `path NUL size NUL sha256(file) LF` of all regular files below it.
///
/// Paths are relative, with `/`; symbolic links count as what they point to. The digest says nothing about times,
/// owners or modes, so that a copy has the same digest.
///
/// # Errors
/// [`LoadError::Read`] if a file or directory cannot be read.
pub fn digest(dir: &Path) -> Result<String, LoadError> {
    let mut lines = Vec::new();
    walk(dir, "", 0, &mut lines)?;
    lines.sort_unstable();
    let mut hash = Sha256::new();
    for line in &lines {
        hash.update(line);
    }
    Ok(hex(&hash.finalize()))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

fn walk(dir: &Path, prefix: &str, depth: usize, lines: &mut Vec<Vec<u8>>) -> Result<(), LoadError> {
    if depth > DEPTH {
        return Err(unreadable(dir, std::io::Error::from(std::io::ErrorKind::InvalidInput)));
    }
    for entry in fs::read_dir(dir).map_err(|e| unreadable(dir, e))? {
        let entry = entry.map_err(|e| unreadable(dir, e))?;
        let path = entry.path();
        let kind = fs::metadata(&path).map_err(|e| unreadable(&path, e))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if kind.is_dir() {
            walk(&path, &format!("{name}/"), depth + 1, lines)?;
        } else if kind.is_file() {
            let (size, sum) = file(&path)?;
            lines.push(format!("{name}\0{size}\0{sum}\n").into_bytes());
        } else {
            let special = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(unreadable(&path, special));
        }
    }
    Ok(())
}

fn file(path: &Path) -> Result<(u64, String), LoadError> {
    let mut reader = files::open(path).map_err(|e| unreadable(path, e))?;
    let mut buffer = vec![0; 1 << 18];
    let mut hash = Sha256::new();
    let mut size = 0;
    loop {
        let n = reader.read(&mut buffer).map_err(|e| unreadable(path, e))?;
        if n == 0 {
            return Ok((size, hex(&hash.finalize())));
        }
        size += n as u64;
        hash.update(&buffer[..n]);
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> LoadError {
    LoadError::Read {
        path: PathBuf::from(path),
        remedy: "the digest covers every file of the model directory: make it readable or remove it",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_written_rule() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b"), "two").unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/x"), "").unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let two = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3";
        let text = format!("a/x\x000\x00{empty}\nb\x003\x00{two}\n");
        assert_eq!(digest(dir.path()).unwrap(), hex(&Sha256::digest(text.as_bytes())));
    }

    #[test]
    fn any_change_of_name_place_or_content_shows() {
        let make = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("d")).unwrap();
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            digest(dir.path()).unwrap()
        };
        let all = [
            make(&[("a", "1"), ("b", "2")]),
            make(&[("a", "2"), ("b", "1")]),
            make(&[("a", "12")]),
            make(&[("d/a", "1"), ("b", "2")]),
            make(&[]),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one));
        }
        assert_eq!(all[0], make(&[("b", "2"), ("a", "1")]), "creation order is not content");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_loop_is_an_error_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        assert!(matches!(digest(dir.path()), Err(LoadError::Read { .. })));
    }
}
