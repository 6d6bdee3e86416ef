//! A converted model as one GGUF file: I2_S in the layout of x86 builds, everything else as it is stored.
//!
//! The file is what [`crate::model`] reads as GGUF, and what `bitnet.cpp` on x86 calls by the same names. I2_S holds
//! multipliers, blocks of 128 columns, and the scale behind the codes. The architecture `llama` wants the rows of q and
//! k that are rotated together beside each other.

use super::matrix::{Coded, Row};
use super::tensors::{Content, ones};
use crate::model::{Activation, ModelConfig};
use crate::workshop::error::WorkshopError;
use crate::workshop::shards::WriteElements;
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value as Json;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Columns of an I2_S block: four planes of 32.
const BLOCK: usize = 128;
/// Bytes behind the codes of an I2_S tensor; the first four are its scale.
const TAIL: usize = 32;
const ALIGNMENT: usize = 32;
const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 30;
const I2_S: u32 = 36;
/// `general.file_type` of files with I2_S, and of those with halves only.
const MOSTLY_I2_S: u32 = 40;
const MOSTLY_F16: u32 = 1;

/// GGUF's names of what is in a decoder layer.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.attn_sub_norm", "attn_sub_norm"),
    ("mlp.ffn_sub_norm", "ffn_sub_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

struct Tensor<'a> {
    name: String,
    kind: u32,
    /// Rows, columns; one number for a vector.
    shape: Vec<usize>,
    bytes: usize,
    write: WriteElements<'a>,
}

/// Writes `dir/model.gguf`; returns the bytes of its tensors. `source` is the input's directory, whose tokenizer goes into
/// the file if it is of a kind that GGUF names.
pub(super) fn write(
    dir: &Path,
    source: &Path,
    config: &ModelConfig,
    contents: Vec<(String, Content<'_>)>,
) -> Result<u64, WorkshopError> {
    let architecture = match (config.sub_norms, config.activation) {
        (true, Activation::Relu2) => "bitnet-b1.58",
        (false, Activation::Silu) => "llama",
        _ => {
            return Err(WorkshopError::Refused(
                "--format gguf: the file's architecture must be bitnet-b1.58 (norms inside attention and feed-forward part, relu2) or llama (neither, SiLU), and this model mixes them: use --format safetensors".to_owned(),
            ));
        }
    };
    let mut tensors = Vec::new();
    for (name, content) in contents {
        // A head that repeats a tied embedding, and a buffer that is computed.
        if (config.tied && name == "lm_head.weight") || name.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        let turned = architecture == "llama" && (name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight"));
        tensors.push(tensor(renamed(&name)?, content, turned.then_some(config.head_dim))?);
    }
    let mut header = Header::default();
    describe(&mut header, architecture, source, config, tensors.iter().any(|t| t.kind == I2_S))?;
    let path = dir.join("model.gguf");
    save(&path, &header, &tensors).map_err(WorkshopError::file("write", &path))?;
    Ok(tensors.iter().map(|t| t.bytes as u64).sum())
}

fn renamed(name: &str) -> Result<String, WorkshopError> {
    let top = [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ];
    if let Some((_, renamed)) = top.iter().find(|(known, _)| *known == name) {
        return Ok((*renamed).to_owned());
    }
    let parts = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let known = parts.and_then(|(layer, rest)| {
        let part = rest.strip_suffix(".weight")?;
        let (_, renamed) = PARTS.iter().find(|(known, _)| *known == part)?;
        Some(format!("blk.{layer}.{renamed}.weight"))
    });
    known.ok_or_else(|| {
        WorkshopError::Refused(format!("--format gguf: {name} has no name in GGUF: use --format safetensors"))
    })
}

/// Which row of the model the file has at `row`, where pairs that turn together stand beside each other.
fn place(row: usize, head_dim: Option<usize>) -> usize {
    let Some(width) = head_dim else { return row };
    let (head, within) = (row / width, row % width);
    head * width + within % 2 * (width / 2) + within / 2
}

fn tensor(name: String, content: Content<'_>, turned: Option<usize>) -> Result<Tensor<'_>, WorkshopError> {
    match content {
        Content::Ones(width) => Ok(Tensor {
            name,
            kind: F32,
            shape: vec![width],
            bytes: 4 * width,
            write: Box::new(move |out| out.write_all(&ones(width))),
        }),
        Content::Coded(matrix) => coded(name, matrix, turned),
        Content::Integers(_) => Err(WorkshopError::Refused(format!(
            "--format gguf: {name} is to be int8 or int4, but the file holds I2_S and floats: choose full, ternary or binary, or --format safetensors"
        ))),
        Content::Stored { dtype, shape, bytes } => {
            let kind = float(&name, dtype)?;
            if shape.len() == 1 {
                // Readers of GGUF want vectors in f32; every half is one.
                let width = 4 * shape[0];
                let write = move |out: &mut dyn Write| out.write_all(&widened(dtype, bytes));
                return Ok(Tensor { name, kind: F32, shape, bytes: width, write: Box::new(write) });
            }
            let (rows, width) = (shape[0], bytes.len() / shape[0].max(1));
            let write = move |out: &mut dyn Write| -> io::Result<()> {
                if turned.is_none() {
                    return out.write_all(bytes);
                }
                (0..rows).try_for_each(|row| out.write_all(&bytes[place(row, turned) * width..][..width]))
            };
            Ok(Tensor { name, kind, shape, bytes: bytes.len(), write: Box::new(write) })
        }
    }
}

fn float(name: &str, dtype: Dtype) -> Result<u32, WorkshopError> {
    match dtype {
        Dtype::F32 => Ok(F32),
        Dtype::F16 => Ok(F16),
        Dtype::BF16 => Ok(BF16),
        _ => Err(WorkshopError::Refused(format!(
            "--format gguf: {name} is {dtype:?} but must be F32, F16 or BF16: use --format safetensors"
        ))),
    }
}

fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<u8> {
    let pairs = bytes.as_chunks::<2>().0;
    match dtype {
        Dtype::F16 => pairs.iter().flat_map(|b| f16::from_le_bytes(*b).to_f32().to_le_bytes()).collect(),
        Dtype::BF16 => pairs.iter().flat_map(|b| bf16::from_le_bytes(*b).to_f32().to_le_bytes()).collect(),
        _ => bytes.to_vec(),
    }
}

/// Codes in blocks of 32 bytes: byte `p` holds columns `p`, `32 + p`, `64 + p` and `96 + p` from its highest two bits to
/// its lowest; the scale behind them.
fn coded(name: String, matrix: Coded<'_>, turned: Option<usize>) -> Result<Tensor<'_>, WorkshopError> {
    if !matrix.columns.is_multiple_of(BLOCK) {
        return Err(WorkshopError::Refused(format!(
            "--format gguf: {name} has {} columns, and I2_S holds multiples of {BLOCK}: use --format safetensors",
            matrix.columns
        )));
    }
    let write = move |out: &mut dyn Write| -> io::Result<()> {
        let mut room = Row::default();
        let mut bytes = vec![0u8; matrix.columns / 4];
        for row in 0..matrix.rows {
            let codes = matrix.codes(place(row, turned), &mut room);
            for (bytes, codes) in bytes.chunks_exact_mut(BLOCK / 4).zip(codes.chunks_exact(BLOCK)) {
                bytes.fill(0);
                for (plane, codes) in codes.chunks_exact(BLOCK / 4).enumerate() {
                    bytes.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= code << (6 - 2 * plane));
                }
            }
            out.write_all(&bytes)?;
        }
        out.write_all(&matrix.factor.to_le_bytes())?;
        out.write_all(&[0; TAIL - 4])
    };
    let (rows, columns) = (matrix.rows, matrix.columns);
    Ok(Tensor {
        name,
        kind: I2_S,
        shape: vec![rows, columns],
        bytes: rows * columns / 4 + TAIL,
        write: Box::new(write),
    })
}

/// Metadata as the file stores it.
#[derive(Default)]
struct Header {
    count: u64,
    bytes: Vec<u8>,
}

impl Header {
    fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.count += 1;
        text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(bytes);
    }

    fn number(&mut self, key: &str, n: usize) -> Result<(), WorkshopError> {
        let n = u32::try_from(n)
            .map_err(|_| WorkshopError::Refused(format!("--format gguf: {key} must be below 2^32 but is {n}")))?;
        self.value(key, 4, &n.to_le_bytes());
        Ok(())
    }

    fn float(&mut self, key: &str, x: f32) {
        self.value(key, 6, &x.to_le_bytes());
    }

    fn bool(&mut self, key: &str, x: bool) {
        self.value(key, 7, &[u8::from(x)]);
    }

    fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.value(key, 8, &bytes);
    }

    fn texts<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        let mut bytes = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.for_each(|value| text(&mut bytes, value));
        self.value(key, 9, &bytes);
    }

    fn numbers(&mut self, key: &str, values: &[i32]) {
        let mut bytes = [&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.value(key, 9, &bytes);
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn describe(
    header: &mut Header,
    architecture: &str,
    source: &Path,
    config: &ModelConfig,
    ternary: bool,
) -> Result<(), WorkshopError> {
    if config.rope_scaling.is_some() {
        return Err(WorkshopError::Refused(format!(
            "--format gguf: {} has a scaled rotary embedding, which is not written there: use --format safetensors",
            source.display()
        )));
    }
    header.text("general.architecture", architecture);
    if let Some(name) = source.canonicalize().ok().as_deref().and_then(Path::file_name).and_then(|n| n.to_str()) {
        header.text("general.name", name);
    }
    header.number("general.alignment", ALIGNMENT)?;
    header.number("general.quantization_version", 2)?;
    header.number("general.file_type", if ternary { MOSTLY_I2_S } else { MOSTLY_F16 } as usize)?;
    for (key, n) in [
        ("vocab_size", config.vocab_size),
        ("context_length", config.context),
        ("embedding_length", config.hidden_size),
        ("block_count", config.layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        header.number(&format!("{architecture}.{key}"), n)?;
    }
    header.float(&format!("{architecture}.attention.layer_norm_rms_epsilon"), config.rms_eps);
    header.float(&format!("{architecture}.rope.freq_base"), config.rope_theta);
    if let Some(bos) = config.bos {
        header.number("tokenizer.ggml.bos_token_id", bos as usize)?;
    }
    match config.eos[..] {
        [] => {}
        [eos] => header.number("tokenizer.ggml.eos_token_id", eos as usize)?,
        [eos, eot] => {
            header.number("tokenizer.ggml.eos_token_id", eos as usize)?;
            header.number("tokenizer.ggml.eot_token_id", eot as usize)?;
        }
        _ => {
            return Err(WorkshopError::Refused(format!(
                "--format gguf: the model has {} ids that end a text, and GGUF names two: use --format safetensors",
                config.eos.len()
            )));
        }
    }
    tokenizer(header, source, config)
}

/// The tokenizer, where it is byte-level BPE that cuts texts as GPT-2 or Llama 3 do; any other stays beside the file alone.
fn tokenizer(header: &mut Header, source: &Path, config: &ModelConfig) -> Result<(), WorkshopError> {
    let path = source.join("tokenizer.json");
    if !path.exists() {
        return Ok(());
    }
    let bytes = fs::read(&path).map_err(WorkshopError::file("read", &path))?;
    let json: Json = serde_json::from_slice(&bytes).map_err(WorkshopError::json(&path))?;
    let Some((pre, tokens, kinds, merges)) = byte_level(&json, config.vocab_size) else { return Ok(()) };
    header.text("tokenizer.ggml.model", "gpt2");
    header.text("tokenizer.ggml.pre", pre);
    header.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    header.numbers("tokenizer.ggml.token_type", &kinds);
    header.texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    let after = json["post_processor"]["single"][0]["SpecialToken"]["id"].as_str();
    let bos = config.bos.and_then(|id| tokens.get(id as usize));
    header.bool("tokenizer.ggml.add_bos_token", after.is_some() && after == bos.map(String::as_str));
    let template = source.join("chat_template.jinja");
    let template = if template.exists() {
        Some(fs::read_to_string(&template).map_err(WorkshopError::file("read", &template))?)
    } else {
        let path = source.join("tokenizer_config.json");
        let json = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Json>(&bytes).ok());
        json.and_then(|json| json["chat_template"].as_str().map(str::to_owned))
    };
    if let Some(template) = template {
        header.text("tokenizer.chat_template", &template);
    }
    Ok(())
}

/// How Llama 3 cuts texts, as its tokenizer.json has it.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

type Carried = (&'static str, Vec<String>, Vec<i32>, Vec<String>);

/// Name of the way of cutting, token texts by id with their types, and merges.
fn byte_level(json: &Json, vocabulary: usize) -> Option<Carried> {
    let cut = &json["pre_tokenizer"];
    let whole = |cut: &Json, regex: bool| {
        cut["type"] == "ByteLevel"
            && cut["add_prefix_space"] == false
            && cut["use_regex"].as_bool().unwrap_or(true) == regex
    };
    let pre = if whole(cut, true) {
        "gpt-2"
    } else {
        let [split, bytes] = &cut["pretokenizers"].as_array()?[..] else { return None };
        let llama = split["type"] == "Split" && split["pattern"]["Regex"] == LLAMA_3 && whole(bytes, false);
        llama.then_some("llama-bpe")?
    };
    if json["model"]["type"] != "BPE" || !json["normalizer"].is_null() {
        return None;
    }
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; vocabulary];
    for (text, id) in json["model"]["vocab"].as_object()? {
        *tokens.get_mut(usize::try_from(id.as_u64()?).ok()?)? = Some((text.clone(), NORMAL));
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        let id = usize::try_from(added["id"].as_u64()?).ok()?;
        *tokens.get_mut(id)? = Some((added["content"].as_str()?.to_owned(), kind));
    }
    // Rows of the embedding that no token has still need a text of their own.
    let named = tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or((format!("[PAD{id}]"), UNUSED)));
    let (tokens, kinds) = named.unzip();
    let merges = json["model"]["merges"].as_array()?.iter().map(|merge| match merge {
        Json::String(pair) => Some(pair.clone()),
        pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
    });
    Some((pre, tokens, kinds, merges.collect::<Option<Vec<_>>>()?))
}

fn save(path: &Path, header: &Header, tensors: &[Tensor<'_>]) -> io::Result<()> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(header.count.to_le_bytes());
    out.extend(&header.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        // Columns first.
        tensor.shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(tensor.kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes.next_multiple_of(ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&out)?;
    for tensor in tensors {
        (tensor.write)(&mut file)?;
        file.write_all(&vec![0; tensor.bytes.next_multiple_of(ALIGNMENT) - tensor.bytes])?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_turn_together_stand_beside_each_other() {
        let order: Vec<usize> = (0..8).map(|row| place(row, Some(4))).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(place(5, None), 5);
    }

    #[test]
    fn names_are_those_of_the_format_or_refused() {
        assert_eq!(renamed("model.layers.12.mlp.down_proj.weight").unwrap(), "blk.12.ffn_down.weight");
        assert_eq!(renamed("lm_head.weight").unwrap(), "output.weight");
        assert!(renamed("model.layers.0.mlp.experts.weight").unwrap_err().to_string().contains("experts"));
    }
}
