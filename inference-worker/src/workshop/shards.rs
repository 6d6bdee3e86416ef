//! Safetensors files written as a stream: tensors are made while they are written, so none of them is ever held whole.

use super::WorkshopError;
use super::export::write_json;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes a tensor's elements, as often as it is asked to.
pub(super) type WriteElements<'a> = Box<dyn Fn(&mut dyn Write) -> io::Result<()> + 'a>;

/// A tensor that is about to be written.
pub(super) struct Planned<'a> {
    /// Full name.
    pub(super) name: String,
    /// Element type.
    pub(super) dtype: Dtype,
    /// Shape as stored.
    pub(super) shape: Vec<usize>,
    /// Bytes that `write` writes.
    pub(super) bytes: u64,
    /// Writes the elements, little-endian.
    pub(super) write: WriteElements<'a>,
}

/// Writes model.safetensors, or numbered files of at most `most` bytes of tensors (a larger tensor has a file of its own)
/// with their index. The bytes depend on the tensors and on `most` alone.
pub(super) fn write_model_files(dir: &Path, mut tensors: Vec<Planned<'_>>, most: u64) -> Result<usize, WorkshopError> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut files: Vec<Vec<Planned<'_>>> = Vec::new();
    let mut filled = 0;
    for tensor in tensors {
        match files.last_mut() {
            Some(last) if filled + tensor.bytes <= most => {
                filled += tensor.bytes;
                last.push(tensor);
            }
            _ => {
                filled = tensor.bytes;
                files.push(vec![tensor]);
            }
        }
    }
    let count = files.len();
    if count <= 1 {
        let all = files.pop().unwrap_or_default();
        write_file(&dir.join("model.safetensors"), all)?;
        return Ok(1);
    }
    let (mut map, mut total) = (Map::new(), 0);
    for (index, file) in files.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        for tensor in &file {
            map.insert(tensor.name.clone(), Value::from(name.clone()));
            total += tensor.bytes;
        }
        write_file(&dir.join(&name), file)?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    write_json(&dir.join("model.safetensors.index.json"), &index)?;
    Ok(count)
}

/// Larger elements first, so that every tensor is aligned to its own.
fn write_file(path: &Path, mut tensors: Vec<Planned<'_>>) -> Result<(), WorkshopError> {
    let failed = || WorkshopError::file("write", path);
    tensors.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for tensor in &tensors {
        let begin = end;
        end += tensor.bytes;
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let file = File::create(path).map_err(failed())?;
    let mut file = Counted { file: BufWriter::with_capacity(1 << 20, file), written: 0 };
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed())?;
    file.write_all(header.as_bytes()).map_err(failed())?;
    let start = file.written;
    let mut end = 0;
    for tensor in &tensors {
        (tensor.write)(&mut file).map_err(failed())?;
        end += tensor.bytes;
        if file.written - start != end {
            let found = file.written - start + tensor.bytes - end;
            let text = format!("{} must have {} bytes but has {found}", tensor.name, tensor.bytes);
            return Err(failed()(io::Error::other(text)));
        }
    }
    let file = file.file.into_inner().map_err(|e| failed()(e.into_error()))?;
    file.sync_all().map_err(failed())
}

struct Counted {
    file: BufWriter<File>,
    written: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workshop::export::read_tensors;

    fn planned(name: &str, dtype: Dtype, bytes: Vec<u8>) -> Planned<'static> {
        let size = dtype.bitsize() / 8;
        Planned {
            name: name.to_owned(),
            dtype,
            shape: vec![bytes.len() / size],
            bytes: bytes.len() as u64,
            write: Box::new(move |out| out.write_all(&bytes)),
        }
    }

    fn three() -> Vec<Planned<'static>> {
        vec![
            planned("c", Dtype::F32, vec![7; 8]),
            planned("a", Dtype::U8, vec![1, 2, 3]),
            planned("b", Dtype::F16, vec![4; 6]),
        ]
    }

    #[test]
    fn a_file_is_what_the_library_reads() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write_model_files(dir.path(), three(), u64::MAX).unwrap(), 1);
        let path = dir.path().join("model.safetensors");
        let read = read_tensors(&path).unwrap();
        let facts: Vec<_> = read.iter().map(|t| (t.name.as_str(), t.dtype, t.bytes.clone())).collect();
        assert_eq!(
            facts,
            [("a", Dtype::U8, vec![1, 2, 3]), ("b", Dtype::F16, vec![4; 6]), ("c", Dtype::F32, vec![7; 8])]
        );
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) % 8, 0);
        let data = &bytes[bytes.len() - 17..];
        assert_eq!(data, [vec![7u8; 8], vec![4; 6], vec![1, 2, 3]].concat(), "larger elements first");
    }

    #[test]
    fn files_are_cut_at_tensors_and_indexed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write_model_files(dir.path(), three(), 9).unwrap(), 2);
        let index = std::fs::read(dir.path().join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        assert_eq!(index["weight_map"], json!({"a": one, "b": one, "c": two}));
        assert_eq!(index["metadata"]["total_size"], json!(17));
        assert_eq!(read_tensors(&dir.path().join(two)).unwrap().len(), 1);
    }

    #[test]
    fn a_tensor_of_another_length_than_planned_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut wrong = planned("a", Dtype::U8, vec![1, 2, 3]);
        wrong.bytes = 4;
        let error = write_model_files(dir.path(), vec![wrong], 9).unwrap_err();
        assert!(
            matches!(&error, WorkshopError::File { source, .. } if source.to_string().contains("a must have 4 bytes but has 3")),
            "{error:?}"
        );
    }
}
