//! Files that someone else has made: of the kind and the size that they must have, or an error before they are read.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Most bytes of a file of JSON other than a tokenizer: an index of a hundred thousand tensors is a tenth of it.
pub(crate) const JSON_BYTES: u64 = 64 << 20;
/// Most bytes of a tokenizer: the largest on the Hugging Face hub have some thirty million.
pub(crate) const TOKENIZER_BYTES: u64 = 256 << 20;
/// Most bytes of a chat template.
pub(crate) const TEMPLATE_BYTES: u64 = 1 << 20;

/// Opens a regular file, or a link to one.
///
/// # Errors
/// Those of the operating system; `InvalidInput` for a pipe, a socket, a device or a directory, at once: reading one
/// may never end.
pub(crate) fn open(path: &Path) -> std::io::Result<File> {
    // Without this flag the opening of a pipe waits for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// The bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; `FileTooLarge`.
pub(crate) fn read(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let file = open(path)?;
    let too_large = || Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes"));
    let len = file.metadata()?.len();
    if len > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(len as usize);
    // It may grow meanwhile.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

/// The text of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`read`]; `InvalidData` if it is not UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> std::io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_the_right_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        assert_eq!(read(&file, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read(&link, 5).unwrap(), b"12345");

        let sparse = dir.path().join("sparse");
        File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&sparse, JSON_BYTES).unwrap_err().kind(), ErrorKind::FileTooLarge);
        for other in [dir.path(), Path::new("/dev/zero")] {
            assert_eq!(read(other, JSON_BYTES).unwrap_err().kind(), ErrorKind::InvalidInput, "{}", other.display());
        }
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(read(&pipe, JSON_BYTES).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(read(&dir.path().join("none"), 1).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
