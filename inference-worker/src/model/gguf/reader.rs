//! The container: metadata and tensors of one file. Nothing is believed before it was compared with the file's length.

use crate::model::{LoadError, TensorFault, files};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Columns of an I2_S block: four planes of 32.
pub(super) const I2_S_BLOCK: usize = 128;
/// Bytes behind the codes of an I2_S tensor; the first four are its scale.
const I2_S_TAIL: usize = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i64>),
    /// An array that nothing here needs.
    Other,
}

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    I2S,
}

/// A tensor: rows of `columns` elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor<'a> {
    pub(super) kind: Kind,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) bytes: &'a [u8],
    /// Factor of all elements; 1 but for I2_S.
    pub(super) scale: f32,
}

struct Info {
    kind: u32,
    rows: usize,
    columns: usize,
    start: usize,
    end: usize,
}

/// One mapped file whose structure is sound.
pub(in crate::model) struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Info>,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError::Read {
            path: path.to_path_buf(),
            remedy: "make it readable, or fetch the file again",
            source,
        };
        let file = files::open(path).map_err(unreadable)?;
        // SAFETY: as for safetensors (see `weights`): the map is read-only, lives until the weights are copied, and a model
        // file must not change meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let (metadata, tensors) =
            parse(&map).map_err(|problem| LoadError::Gguf { path: path.to_path_buf(), problem })?;
        Ok(Self { path: path.to_path_buf(), map, metadata, tensors })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Rows and columns of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<(usize, usize)> {
        self.tensors.get(name).map(|info| (info.rows, info.columns))
    }

    /// A tensor of this shape; `None` if there is none of this name.
    pub(super) fn tensor(&self, name: &str, rows: usize, columns: usize) -> Result<Option<Tensor<'_>>, LoadError> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let refuse = |fault| LoadError::Tensor { path: self.path.clone(), tensor: name.to_owned(), fault };
        if (info.rows, info.columns) != (rows, columns) {
            let (expected, found) = (vec![rows, columns], vec![info.rows, info.columns]);
            return Err(refuse(TensorFault::Shape { expected, found }));
        }
        let bytes = &self.map[info.start..info.end];
        let kind = match info.kind {
            0 => Kind::F32,
            1 => Kind::F16,
            30 => Kind::Bf16,
            36 => Kind::I2S,
            other => {
                return Err(refuse(TensorFault::Dtype {
                    expected: "F32, F16, BF16 or I2_S",
                    found: type_name(other),
                    remedy: "make the file with one of these types",
                }));
            }
        };
        let mut tensor = Tensor { kind, rows, columns, bytes, scale: 1.0 };
        if kind == Kind::I2S {
            let (codes, tail) = bytes.split_at(bytes.len() - I2_S_TAIL);
            tensor.bytes = codes;
            tensor.scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
            if !(tensor.scale.is_finite() && tensor.scale > 0.0) {
                return Err(refuse(TensorFault::Scale(tensor.scale)));
            }
        }
        Ok(Some(tensor))
    }
}

/// Names of types that other software writes.
fn type_name(kind: u32) -> String {
    let name = match kind {
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        34 => "TQ1_0",
        35 => "TQ2_0",
        38 => "TL1",
        39 => "TL2 or MXFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return format!("type {kind}"),
    };
    name.to_owned()
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, Info>);

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let mut from = Cursor { bytes, at: 0 };
    if from.take(4)? != b"GGUF" {
        return Err("does not begin with GGUF; fetch the file again".to_owned());
    }
    let version = from.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("has version {version} but must have 2 or 3; convert the file again"));
    }
    let (tensor_count, value_count) = (from.u64()?, from.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..value_count {
        let key = from.text()?;
        let kind = from.u32()?;
        let value = from.value(kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("has the key `{key}` twice; convert the file again"));
        }
    }
    let mut headers = Vec::new();
    for _ in 0..tensor_count {
        headers.push(from.tensor()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
        Some(_) => return Err("`general.alignment` must be a power of two up to 1048576".to_owned()),
    };
    let start = (from.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for Header { name, kind, rows, columns, offset } in headers {
        let size = size(kind, rows, columns).map_err(|problem| format!("tensor `{name}` {problem}"))?;
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(size)).filter(|end| *end <= bytes.len() as u64);
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(format!("tensor `{name}` ends behind the file; fetch the file again"));
        };
        let info = Info { kind, rows, columns, start: begin as usize, end: end as usize };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("has the tensor `{name}` twice; convert the file again"));
        }
    }
    apart(&tensors)?;
    Ok((metadata, tensors))
}

/// Tensors share no byte: else a small file would become a model of any size.
fn apart(tensors: &BTreeMap<String, Info>) -> Result<(), String> {
    let mut places: Vec<(usize, usize, &str)> =
        tensors.iter().filter(|(_, info)| info.end > info.start).map(|(name, i)| (i.start, i.end, &**name)).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(format!("has `{}` inside `{}`; convert the file again", pair[1].2, pair[0].2)),
        None => Ok(()),
    }
}

/// Bytes of a tensor; 0 for types that are refused by name where they are used.
fn size(kind: u32, rows: usize, columns: usize) -> Result<u64, String> {
    let count = (rows as u64).checked_mul(columns as u64).ok_or("is too large")?;
    let bytes = match kind {
        0 => count.checked_mul(4),
        1 | 30 => count.checked_mul(2),
        36 if columns.is_multiple_of(I2_S_BLOCK) && count > 0 => (count / 4).checked_add(I2_S_TAIL as u64),
        36 => return Err(format!("has {columns} columns of I2_S but must have a multiple of {I2_S_BLOCK}")),
        _ => Some(0),
    };
    bytes.ok_or_else(|| "is too large".to_owned())
}

struct Header {
    name: String,
    kind: u32,
    rows: usize,
    columns: usize,
    offset: u64,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(format!("ends inside its header at byte {}; fetch the file again", self.at));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let length = usize::try_from(length).map_err(|_| "has a text that is longer than the file".to_owned())?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("has a text at byte {} that is not UTF-8", self.at))
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => self.list()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("has a value of type {other} at byte {}, which GGUF does not have", self.at)),
        })
    }

    /// Lists grow as their elements are read: a count that the file cannot hold ends at the end of the file.
    fn list(&mut self) -> Result<Value, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        match kind {
            8 => {
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(self.text()?);
                }
                Ok(Value::Texts(texts))
            }
            9 => Err("has lists in a list, which no model needs".to_owned()),
            kind => {
                let mut numbers = Vec::new();
                let mut whole = true;
                for _ in 0..count {
                    match self.value(kind)? {
                        Value::Unsigned(n) => numbers.push(n as i64),
                        Value::Signed(n) => numbers.push(n),
                        _ => whole = false,
                    }
                }
                Ok(if whole { Value::Numbers(numbers) } else { Value::Other })
            }
        }
    }

    fn tensor(&mut self) -> Result<Header, String> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(format!("tensor `{name}` has {dimensions} dimensions but may have {MOST_DIMENSIONS}"));
        }
        let mut sizes = [1_usize; 2];
        for dimension in 0..dimensions as usize {
            let size = usize::try_from(self.u64()?).map_err(|_| format!("tensor `{name}` is too large"))?;
            match sizes.get_mut(dimension) {
                Some(place) => *place = size,
                None if size == 1 => {}
                None => return Err(format!("tensor `{name}` is no matrix; no supported model has such a tensor")),
            }
        }
        Ok(Header { name, kind: self.u32()?, rows: sizes[1], columns: sizes[0], offset: self.u64()? })
    }
}
