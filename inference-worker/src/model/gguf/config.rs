//! What the model is, by the metadata of its file.

use super::reader::{Gguf, Kind, Value};
use crate::model::{Activation, ActivationBits, KvBits, LinearKind, LoadError, ModelConfig, ScaleRule};
use std::collections::BTreeMap;
use std::path::Path;

const LARGEST: u64 = crate::kernels::MOST_COLUMNS as u64;
const REMEDY: &str = "convert the checkpoint again, or serve its safetensors";

/// The architecture's name, which its keys begin with.
pub(super) struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

/// Reads the configuration from a GGUF file.
pub(in crate::model) fn config(path: &Path) -> Result<ModelConfig, LoadError> {
    of(&super::open(path)?)
}

pub(super) fn of(file: &Gguf) -> Result<ModelConfig, LoadError> {
    let refuse = |field: &str, problem: String| LoadError::Config {
        path: file.path().to_path_buf(),
        field: field.to_owned(),
        problem,
        remedy: REMEDY.to_owned(),
    };
    let architecture = match file.value("general.architecture") {
        Some(Value::Text(name)) if matches!(name.as_str(), "bitnet-b1.58" | "bitnet-25" | "llama") => name.as_str(),
        found => {
            let found = if let Some(Value::Text(name)) = found { name.as_str() } else { "missing" };
            let problem = format!("must be bitnet-b1.58, bitnet-25 or llama but is {found}");
            return Err(refuse("general.architecture", problem));
        }
    };
    let bitnet = architecture != "llama";
    let keys = Keys { file, architecture };
    for (name, allowed) in [("expert_count", 0), ("attention.sliding_window", 0)] {
        if keys.number(name)?.is_some_and(|n| n != allowed) {
            return Err(refuse(&keys.name(name), "is not supported by any architecture here".to_owned()));
        }
    }
    if let Some(Value::Text(scaling)) = file.value(&keys.name("rope.scaling.type"))
        && scaling != "none"
    {
        return Err(refuse(&keys.name("rope.scaling.type"), format!("must be none but is {scaling}")));
    }
    let (vocab_size, hidden_size) = match file.shape("token_embd.weight") {
        Some((rows, columns)) if (1..=LARGEST).contains(&(rows as u64)) => (rows, columns),
        _ => return Err(refuse("token_embd.weight", "must be there, a row per token".to_owned())),
    };
    let embedding = keys.size("embedding_length")?;
    if embedding != hidden_size {
        let problem = format!("is {embedding} but token_embd.weight has {hidden_size} columns");
        return Err(refuse(&keys.name("embedding_length"), problem));
    }
    let heads = keys.size("attention.head_count")?;
    let kv_heads = keys.number("attention.head_count_kv")?.map_or(heads, |n| n as usize);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let problem = format!("must divide {heads}, the number of heads, but is {kv_heads}");
        return Err(refuse(&keys.name("attention.head_count_kv"), problem));
    }
    let head_dim = keys.number("attention.key_length")?.map_or(hidden_size / heads, |n| n as usize);
    if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim as u64 > LARGEST {
        return Err(refuse(&keys.name("attention.key_length"), format!("must be even but is {head_dim}")));
    }
    if keys.number("rope.dimension_count")?.is_some_and(|n| n != head_dim as u64) {
        return Err(refuse(&keys.name("rope.dimension_count"), format!("must be {head_dim}, the width of a head")));
    }
    let mut eos: Vec<u32> = Vec::new();
    for name in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        eos.extend(id(file, name, vocab_size).map_err(|problem| refuse(name, problem))?);
    }
    eos.sort_unstable();
    eos.dedup();
    let bos = "tokenizer.ggml.bos_token_id";
    let packed = file.names().any(|name| {
        let shape = file.shape(name);
        shape.is_some_and(|(r, c)| file.tensor(name, r, c).is_ok_and(|t| t.is_some_and(|t| t.kind == Kind::I2S)))
    });
    Ok(ModelConfig {
        vocab_size,
        hidden_size,
        layers: keys.size("block_count")?,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: keys.size("feed_forward_length")?,
        // Where there is any, it is in a tensor `rope_freqs`, which is refused by name.
        rope_scaling: None,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        rms_eps: keys.float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        context: keys.size("context_length")?,
        eos,
        bos: id(file, bos, vocab_size).map_err(|problem| refuse(bos, problem))?,
        activation: if bitnet { Activation::Relu2 } else { Activation::Silu },
        sub_norms: bitnet,
        tied: file.shape("output.weight").is_none(),
        linear: if packed { LinearKind::Packed(ScaleRule::Multiply) } else { LinearKind::Dense },
        precisions: BTreeMap::new(),
        input_bits: ActivationBits::Eight,
        kv_bits: KvBits::ThirtyTwo,
    })
}

/// A token's id, where there is one.
fn id(file: &Gguf, key: &str, vocab_size: usize) -> Result<Option<u32>, String> {
    match file.value(key) {
        None => Ok(None),
        Some(Value::Unsigned(id)) if *id < vocab_size as u64 => Ok(Some(*id as u32)),
        Some(_) => Err(format!("must be an id below {vocab_size}")),
    }
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn refuse(&self, key: &str, problem: &str) -> LoadError {
        LoadError::Config {
            path: self.file.path().to_path_buf(),
            field: self.name(key),
            problem: problem.to_owned(),
            remedy: REMEDY.to_owned(),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, LoadError> {
        match self.file.value(&self.name(key)) {
            None => Ok(None),
            Some(Value::Unsigned(n)) if *n <= LARGEST => Ok(Some(*n)),
            Some(Value::Signed(n)) if (0..=LARGEST as i64).contains(n) => Ok(Some(*n as u64)),
            Some(_) => Err(self.refuse(key, &format!("must be a whole number up to {LARGEST}"))),
        }
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        match self.number(key)? {
            Some(n @ 1..) => Ok(n as usize),
            _ => Err(self.refuse(key, "must be a whole number above 0")),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.file.value(&self.name(key)) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() && *x > 0.0 => Ok(Some(*x as f32)),
            Some(_) => Err(self.refuse(key, "must be a finite number above 0")),
        }
    }
}
