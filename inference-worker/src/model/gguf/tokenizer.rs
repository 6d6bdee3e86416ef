//! The tokenizer that a GGUF file carries, as a tokenizer.json: byte-level BPE only.

use super::reader::Value;
use crate::model::LoadError;
use serde_json::{Map, json};
use std::path::Path;

/// How texts are cut before pairs are merged, by the name in the file: GPT-2's way, or that of Llama 3.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Token types of GGUF.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// A tokenizer.json and, where the file has one, a chat template; special tokens by their names in templates.
pub(in crate::model) struct Carried {
    pub(in crate::model) json: String,
    pub(in crate::model) template: Option<String>,
    pub(in crate::model) special: Vec<(&'static str, String)>,
}

/// Reads the tokenizer of a GGUF file.
pub(in crate::model) fn tokenizer(path: &Path) -> Result<Carried, LoadError> {
    let file = super::open(path)?;
    let refuse = |field: &str, problem: String| LoadError::Config {
        path: path.to_path_buf(),
        field: field.to_owned(),
        problem,
        remedy: "put the model's tokenizer.json beside the file".to_owned(),
    };
    let text = |field: &str| match file.value(field) {
        Some(Value::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let texts = |field: &str| match file.value(field) {
        Some(Value::Texts(texts)) => Ok(texts),
        _ => Err(refuse(field, "must be a list of texts".to_owned())),
    };
    let model = text("tokenizer.ggml.model").unwrap_or("missing");
    if model != "gpt2" {
        let problem = format!("must be gpt2 (byte-level BPE) but is {model}");
        return Err(refuse("tokenizer.ggml.model", problem));
    }
    let (pattern, ignore_merges) = match text("tokenizer.ggml.pre").unwrap_or("missing") {
        "gpt-2" => (None, false),
        "llama-bpe" | "llama3" | "llama-v3" => (Some(LLAMA_3), true),
        other => {
            let problem = format!("must be gpt-2, llama-bpe, llama3 or llama-v3 but is {other}");
            return Err(refuse("tokenizer.ggml.pre", problem));
        }
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let kinds = match file.value("tokenizer.ggml.token_type") {
        Some(Value::Numbers(kinds)) if kinds.len() == tokens.len() => kinds.as_slice(),
        None => &[],
        Some(_) => return Err(refuse("tokenizer.ggml.token_type", "must be a number per token".to_owned())),
    };
    let merges: Vec<_> = texts("tokenizer.ggml.merges")?.iter().filter_map(|merge| merge.split_once(' ')).collect();
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = kinds.get(id).copied().unwrap_or(1);
        if matches!(kind, CONTROL | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "special": kind == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }));
        }
        vocabulary.insert(token.clone(), json!(id));
    }
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let cut = match pattern {
        None => bytes(true),
        Some(pattern) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            bytes(false),
        ]}),
    };
    let named = |key: &str| match file.value(key) {
        Some(Value::Unsigned(id)) => tokens.get(*id as usize).cloned(),
        _ => None,
    };
    let bos = named("tokenizer.ggml.bos_token_id");
    let adds = file.value("tokenizer.ggml.add_bos_token") == Some(&Value::Bool(true));
    let after = bos.as_ref().filter(|_| adds).map(|bos| {
        json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary[bos.as_str()]], "tokens": [bos]}},
        })
    });
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": cut,
        "post_processor": after,
        "decoder": bytes(true),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": ignore_merges},
    });
    let eos = named("tokenizer.ggml.eos_token_id");
    let special = [("bos_token", bos), ("eos_token", eos)].into_iter().filter_map(|(name, text)| Some((name, text?)));
    Ok(Carried {
        json: json.to_string(),
        template: text("tokenizer.chat_template").map(ToOwned::to_owned),
        special: special.collect(),
    })
}
