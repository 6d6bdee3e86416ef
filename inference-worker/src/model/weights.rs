//! Tensors of the safetensors files of a model directory.

use super::config::read_json;
use super::{LoadError, TensorFault, files};
use crate::kernels::Elements;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Buffers that other software writes beside the weights and that are computed here.
const COMPUTED: [&str; 1] = [".rotary_emb.inv_freq"];

/// Mapped weight files, open while a model is loaded, inspected or converted.
pub(crate) struct Shards {
    dir: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// File that must hold each tensor, where there is an index.
    index: Option<BTreeMap<String, PathBuf>>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Maps model.safetensors, or the files of model.safetensors.index.json.
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join(INDEX);
        if !path.exists() {
            let path = dir.join(SINGLE);
            return Ok(Self { dir: dir.to_path_buf(), files: vec![(path.clone(), map(&path)?)], index: None });
        }
        let Index { weight_map } = read_json(&path, "safetensors index")?;
        if let Some(name) = weight_map.values().find(|name| !is_plain(name)) {
            return Err(LoadError::Config {
                path,
                field: "weight_map".to_owned(),
                problem: format!("must name files of the same directory but names `{name}`"),
                remedy: "fetch the index again".to_owned(),
            });
        }
        let names: BTreeSet<&String> = weight_map.values().collect();
        let files = names.into_iter().map(|name| Ok((dir.join(name), map(&dir.join(name))?)));
        let files = files.collect::<Result<_, LoadError>>()?;
        let index = weight_map.into_iter().map(|(tensor, name)| (tensor, dir.join(name))).collect();
        Ok(Self { dir: dir.to_path_buf(), files, index: Some(index) })
    }

    /// The tensors of all files. Headers are checked here: a tensor lies inside its file, and its bytes match its shape.
    pub(crate) fn tensors(&self) -> Result<Tensors<'_>, LoadError> {
        let mut all = BTreeMap::new();
        for (path, bytes) in &self.files {
            let file = SafeTensors::deserialize(bytes)
                .map_err(|source| LoadError::Safetensors { path: path.clone(), source })?;
            for (name, view) in file.tensors() {
                if let Some(first) = all.insert(name.clone(), Tensor { path, view }) {
                    return Err(refuse(path, &name, TensorFault::Twice(first.path.to_path_buf())));
                }
            }
        }
        for (name, path) in self.index.iter().flatten() {
            if all.get(name).is_none_or(|tensor| tensor.path != path.as_path()) {
                return Err(refuse(path, name, TensorFault::NotInShard));
            }
        }
        Ok(Tensors { dir: &self.dir, all })
    }
}

fn map(path: &Path) -> Result<Mmap, LoadError> {
    let unreadable = |source| LoadError::Read {
        path: path.to_path_buf(),
        remedy: "weights must be safetensors: model.safetensors, or the files of model.safetensors.index.json",
        source,
    };
    let file = files::open(path).map_err(unreadable)?;
    // SAFETY: the map is read-only and lives until the weights are copied. A model file must not change while it is
    // loaded: models come from read-only volumes; a file that another process cuts short meanwhile would end this one
    // with SIGBUS, as it would for every program that maps it.
    unsafe { Mmap::map(&file) }.map_err(unreadable)
}

fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}

fn refuse(path: &Path, tensor: &str, fault: TensorFault) -> LoadError {
    LoadError::Tensor { path: path.to_path_buf(), tensor: tensor.to_owned(), fault }
}

/// Tensors that nothing has taken yet.
pub(crate) struct Tensors<'a> {
    dir: &'a Path,
    all: BTreeMap<String, Tensor<'a>>,
}

impl<'a> Tensors<'a> {
    /// All that are left, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<'a>)> {
        self.all.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Takes a tensor out; each is used once.
    pub(crate) fn take(&mut self, name: &str) -> Result<Tensor<'a>, LoadError> {
        self.all.remove(name).ok_or_else(|| self.missing(name))
    }

    /// The refusal for a tensor that is not there.
    pub(super) fn missing(&self, name: &str) -> LoadError {
        refuse(self.dir, name, TensorFault::Missing)
    }

    /// Takes a tensor out if it is there.
    pub(super) fn take_if_present(&mut self, name: &str) -> Option<Tensor<'a>> {
        self.all.remove(name)
    }

    /// Refuses tensors that nothing used: a model that ignores weights gives wrong answers without a sign.
    pub(super) fn finish(self) -> Result<(), LoadError> {
        let unused = self.all.iter().find(|(name, _)| !COMPUTED.iter().any(|suffix| name.ends_with(suffix)));
        unused.map_or(Ok(()), |(name, tensor)| Err(refuse(tensor.path, name, TensorFault::Unexpected)))
    }
}

/// One tensor in a mapped file.
pub(crate) struct Tensor<'a> {
    path: &'a Path,
    view: TensorView<'a>,
}

impl<'a> Tensor<'a> {
    pub(super) fn refuse(&self, name: &str, fault: TensorFault) -> LoadError {
        refuse(self.path, name, fault)
    }

    /// The file that holds it.
    pub(crate) fn file(&self) -> &'a Path {
        self.path
    }

    /// Element type and shape as stored.
    pub(crate) fn stored(&self) -> (Dtype, &[usize]) {
        (self.view.dtype(), self.view.shape())
    }

    /// Bytes as stored.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.view.data()
    }

    pub(super) fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<(), LoadError> {
        if self.view.shape() == expected {
            return Ok(());
        }
        let fault = TensorFault::Shape { expected: expected.to_vec(), found: self.view.shape().to_vec() };
        Err(self.refuse(name, fault))
    }

    /// Floats in their stored precision, after a check of the shape.
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Elements, LoadError> {
        let bytes = self.view.data();
        let (pairs, quads) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
        let elements = match self.view.dtype() {
            Dtype::F32 => Elements::F32(quads.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Elements::F16(pairs.iter().map(|b| f16::from_le_bytes(*b)).collect()),
            Dtype::BF16 => Elements::Bf16(pairs.iter().map(|b| bf16::from_le_bytes(*b)).collect()),
            found => {
                let remedy = if found == Dtype::U8 {
                    "packed ternary weights need quantization_config with quantization_mode offline in config.json"
                } else {
                    "convert the checkpoint to one of these"
                };
                return Err(self.dtype(name, "F32, F16 or BF16", remedy));
            }
        };
        self.expect_shape(name, shape)?;
        Ok(elements)
    }

    /// A vector as f32.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.floats_as_f32(name, &[len])
    }

    /// Floats as f32, after a check of the shape.
    pub(crate) fn floats_as_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(match self.floats(name, shape)? {
            Elements::F32(v) => v,
            Elements::F16(v) => v.into_iter().map(f16::to_f32).collect(),
            Elements::Bf16(v) => v.into_iter().map(bf16::to_f32).collect(),
        })
    }

    /// Packed bytes, after a check of type and shape.
    pub(super) fn packed(&self, name: &str, shape: &[usize]) -> Result<&'a [u8], LoadError> {
        if self.view.dtype() != Dtype::U8 {
            let remedy = "for weights that are not packed, set quantization_mode online (with linear_class autobitlinear) in config.json";
            return Err(self.dtype(name, "U8 (packed, four weights per byte)", remedy));
        }
        self.expect_shape(name, shape)?;
        Ok(self.view.data())
    }

    /// Signed bytes, after a check of type and shape.
    pub(super) fn signed(&self, name: &str, shape: &[usize]) -> Result<&'a [u8], LoadError> {
        if self.view.dtype() != Dtype::I8 {
            return Err(self.dtype(name, "I8 (a signed byte per weight)", "convert the checkpoint again"));
        }
        self.expect_shape(name, shape)?;
        Ok(self.view.data())
    }

    fn dtype(&self, name: &str, expected: &'static str, remedy: &'static str) -> LoadError {
        self.refuse(name, TensorFault::Dtype { expected, found: format!("{:?}", self.view.dtype()), remedy })
    }
}
