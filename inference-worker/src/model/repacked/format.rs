//! The file: a header that says what follows, then the sections, each aligned for the kernels.
//!
//! | bytes | |
//! |---|---|
//! | 8 | `BITNETW` and the version |
//! | 4, 4 | length and CRC-32 of the header, little-endian |
//! | | the header: JSON |
//! | | the sections, in this machine's order of bytes, each from a multiple of 128 on |

use crate::kernels::{Plain, Storage};
use memmap2::{Mmap, MmapOptions};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

/// Version of file and layout: one more whenever a panel, a padding or the order of the sections changes.
pub(super) const VERSION: u8 = 1;
const MAGIC: [u8; 8] = [b'B', b'I', b'T', b'N', b'E', b'T', b'W', VERSION];
const ALIGNMENT: usize = 128;
/// Of what a file was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) model: String,
    pub(super) kernels: String,
    pub(super) head: String,
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    /// Blocks of 2 bits per weight; the bits of the scale, and whether it multiplies.
    Ternary {
        scale: u32,
        multiply: bool,
    },
    Binary,
    Int4,
    Int8,
}

/// A matrix, or a vector as one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Section {
    pub(super) kind: Kind,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Bytes from the end of the header's padding on.
    start: usize,
    len: usize,
}

#[derive(Serialize, Deserialize)]
struct Header {
    identity: Identity,
    /// Bytes of all sections with what pads them.
    payload: usize,
    checksum: u32,
    sections: Vec<Section>,
}

/// A section to write.
pub(super) struct Part<'a> {
    pub(super) kind: Kind,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) bytes: &'a [u8],
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("there is none")]
    Missing,
    #[error("it cannot be read or written: {0}")]
    Read(#[source] io::Error),
    #[error("it is not a file of this version of the worker")]
    Version,
    #[error("its header is damaged")]
    Header,
    #[error("it was made of another model, for other kernels, or with another head: {found:?}")]
    Identity { found: Identity },
    #[error("it is {found} bytes long and should be {expected}")]
    Length { expected: usize, found: usize },
    #[error("its checksum differs")]
    Checksum,
    #[error("its sections are not those of this model")]
    Sections,
}

/// The sections of a good file, in order.
pub(super) struct Sections {
    file: Arc<Mmap>,
    first: usize,
    left: std::vec::IntoIter<Section>,
}

impl Sections {
    pub(super) fn next(&mut self) -> Result<Section, Unusable> {
        self.left.next().ok_or(Unusable::Sections)
    }

    /// The numbers of a section, which must be so many.
    pub(super) fn numbers<T: Plain>(&self, section: &Section, count: usize) -> Result<Storage<T>, Unusable> {
        let start = self.first.checked_add(section.start).ok_or(Unusable::Sections)?;
        if count.checked_mul(size_of::<T>()) != Some(section.len) {
            return Err(Unusable::Sections);
        }
        Storage::mapped(&self.file, start, count).ok_or(Unusable::Sections)
    }
}

/// Maps a file and checks all of it.
pub(super) fn open(path: &Path, expected: &Identity) -> Result<Sections, Unusable> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unusable::Missing,
        _ => Unusable::Read(error),
    })?;
    // All pages at once: the checksum and the first pass need them anyway, and no request should wait for one.
    // SAFETY: the map is read-only, and files of this directory are replaced, never changed; one that another process
    // cuts short would end this one with SIGBUS, as it would for every program that maps it.
    let file = unsafe { MmapOptions::new().populate().map(&file) }.map_err(Unusable::Read)?;
    let word = |at: usize| file.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (Some(magic), Some(len), Some(checksum)) = (file.get(..8), word(8), word(12)) else {
        return Err(Unusable::Version);
    };
    if magic != MAGIC {
        return Err(Unusable::Version);
    }
    let header = file.get(16..16 + len as usize).ok_or(Unusable::Header)?;
    if crc32fast::hash(header) != checksum {
        return Err(Unusable::Header);
    }
    let header: Header = serde_json::from_slice(header).map_err(|_| Unusable::Header)?;
    if header.identity != *expected {
        return Err(Unusable::Identity { found: header.identity });
    }
    let first = (16 + len as usize).next_multiple_of(ALIGNMENT);
    let expected = first.checked_add(header.payload).ok_or(Unusable::Header)?;
    if file.len() != expected {
        return Err(Unusable::Length { expected, found: file.len() });
    }
    if crc32fast::hash(&file[first..]) != header.checksum {
        return Err(Unusable::Checksum);
    }
    Ok(Sections { file: Arc::new(file), first, left: header.sections.into_iter() })
}

/// Writes a file beside its place and renames it. Not flushed to the disk: after a power failure the checksum tells.
pub(super) fn write(
    dir: &Path,
    unfinished: &str,
    path: &Path,
    identity: Identity,
    parts: &[Part<'_>],
) -> io::Result<()> {
    const ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];
    let padding = |len: usize| &ZEROS[..len.next_multiple_of(ALIGNMENT) - len];
    let (mut sections, mut payload, mut checksum) = (Vec::with_capacity(parts.len()), 0, crc32fast::Hasher::new());
    for Part { kind, rows, columns, bytes } in parts {
        sections.push(Section { kind: *kind, rows: *rows, columns: *columns, start: payload, len: bytes.len() });
        checksum.update(bytes);
        checksum.update(padding(bytes.len()));
        payload += bytes.len().next_multiple_of(ALIGNMENT);
    }
    let header = serde_json::to_vec(&Header { identity, payload, checksum: checksum.finalize(), sections })?;
    let len = u32::try_from(header.len()).map_err(io::Error::other)?;
    std::fs::create_dir_all(dir)?;
    // For every process of the node, whatever its user.
    let everyone = std::fs::Permissions::from_mode(0o644);
    let file = tempfile::Builder::new().prefix(unfinished).permissions(everyone).tempfile_in(dir)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&MAGIC)?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(&crc32fast::hash(&header).to_le_bytes())?;
    out.write_all(&header)?;
    out.write_all(padding(16 + header.len()))?;
    for part in parts {
        out.write_all(part.bytes)?;
        out.write_all(padding(part.bytes.len()))?;
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
