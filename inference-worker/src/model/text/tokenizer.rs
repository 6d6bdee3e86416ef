//! What a tokenizer must be before it serves: its parts stay within bounds that hold for every text, and an example
//! shows that it runs.

use super::{MAX_TEXT, TextError};
use crate::contained::{Panicked, contained};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{ModelWrapper, Tokenizer};

/// How much longer a text may become by the normalizer, or an answer by the decoder. NFKC makes eleven bytes of one, and
/// the normalizers of known models multiply that by three.
const MAX_GROWTH: u64 = 64;
/// Bytes that a normalizer or a decoder may add to any text.
const MAX_ADDED: usize = 1 << 10;
/// Ids that the post-processor may add.
const MAX_SPECIAL: usize = 64;
/// An example: letters, digits, white space, marks, and characters of two to four bytes.
pub(super) const PROBE: &str =
    "Hello, World! 12345\n\tgrüße e\u{301}  日本語 🦀 \u{fdfa} <s> a_b-c (x) [y] {z} \"q\"\r\n   end ";

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A part of tokenizer.json that breaks a rule.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) field: &'static str,
    pub(super) problem: String,
}

/// The library panics on some malformed files where it should refuse them: it expects of a part what it did not check.
pub(super) fn parse(bytes: &[u8]) -> Result<Tokenizer, Source> {
    contained(|| Tokenizer::from_bytes(bytes))?
}

/// Ids of a text.
pub(super) fn ids(tokenizer: &Tokenizer, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
    let encoded = contained(|| tokenizer.encode_fast(text, add_special)).map_err(panicked)?;
    Ok(encoded.map_err(TextError::Tokenizer)?.get_ids().to_vec())
}

/// Text of ids.
pub(super) fn decode(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
    contained(|| tokenizer.decode(ids, skip_special)).map_err(panicked)?.map_err(TextError::Tokenizer)
}

fn panicked(panicked: Panicked) -> TextError {
    TextError::Tokenizer(panicked.into())
}

/// Bounds of a tokenizer's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// How many bytes the normalizer may make of one.
    pub(super) growth: usize,
    /// Most bytes of a text in one token, where every byte of a text is in some token and tokens bring no others.
    pub(super) widest: Option<usize>,
}

impl Bounds {
    /// The bounds of a tokenizer whose model has `rows` ids.
    pub(super) fn of(tokenizer: &Tokenizer, rows: usize) -> Result<Result<Self, Fault>, Source> {
        let normalizer = serde_json::to_value(tokenizer.get_normalizer())?;
        let before = serde_json::to_value(tokenizer.get_pre_tokenizer())?;
        let after = serde_json::to_value(tokenizer.get_post_processor())?;
        let decoder = serde_json::to_value(tokenizer.get_decoder())?;
        Ok(Self::check(tokenizer, rows, &normalizer, &before, &after, &decoder))
    }

    fn check(
        tokenizer: &Tokenizer,
        rows: usize,
        normalizer: &Value,
        before: &Value,
        after: &Value,
        decoder: &Value,
    ) -> Result<Self, Fault> {
        let growth = growth("normalizer", normalizer)?;
        growth_of_decoder(decoder)?;
        special(after, rows)?;
        let whole = normalizer.is_null() && keeps_all(before);
        Ok(Self { growth, widest: if whole { widest(tokenizer, before) } else { None } })
    }
}

fn growth_of_decoder(decoder: &Value) -> Result<(), Fault> {
    growth("decoder", decoder).map(|_| ())
}

/// The product of what the steps make of a byte at most.
fn growth(field: &'static str, steps: &Value) -> Result<usize, Fault> {
    let (mut product, mut added) = (1_u64, 0_usize);
    for step in flat(steps) {
        let text = |name: &str| step[name].as_str().map_or(0, str::len);
        let factor = match step["type"].as_str().unwrap_or_default() {
            "Replace" => {
                let content = text("content");
                match &step["pattern"] {
                    pattern if pattern["String"] == "" => {
                        let problem = "replaces an empty text, which is everywhere".to_owned();
                        return Err(Fault { field, problem });
                    }
                    pattern => match pattern["String"].as_str() {
                        Some(from) => content.div_ceil(from.len()).max(1),
                        // A pattern may match between all bytes.
                        None => content + 1,
                    },
                }
            }
            "Prepend" => {
                added += text("prepend");
                1
            }
            "Precompiled" => longest_entry(&step["precompiled_charsmap"]),
            "NFKC" | "NFKD" => 11,
            "Lowercase" | "ByteLevel" => 2,
            "BertNormalizer" => 12,
            // The decoders put a space in, or take a sign of three bytes for one.
            "NFC" | "NFD" | "Metaspace" | "WordPiece" | "BPEDecoder" | "CTC" => 3,
            _ => 1,
        };
        product = product.saturating_mul(factor as u64);
    }
    if product > MAX_GROWTH {
        let problem = format!("can make a text {product} times as long; at most {MAX_GROWTH} times is served");
        return Err(Fault { field, problem });
    }
    if added > MAX_ADDED {
        let problem = format!("adds {added} bytes to every text; at most {MAX_ADDED} are served");
        return Err(Fault { field, problem });
    }
    Ok(product as usize)
}

/// The steps of nested sequences in their order.
fn flat(steps: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    let mut left = vec![steps];
    while let Some(step) = left.pop() {
        let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
        match lists.iter().find_map(|list| step[list].as_array()) {
            Some(inner) => left.extend(inner.iter().rev()),
            None => found.push(step),
        }
    }
    found
}

/// The longest replacement of a SentencePiece map: after a trie of as many bytes as its first four say, texts that end
/// with a zero.
fn longest_entry(map: &Value) -> usize {
    let bytes = map.as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    let Some((size, rest)) = bytes.split_first_chunk::<4>() else { return 1 };
    let texts = rest.get(u32::from_le_bytes(*size) as usize..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(1).max(1)
}

/// The ids that the post-processor adds are in the vocabulary, and few.
fn special(after: &Value, rows: usize) -> Result<(), Fault> {
    let field = "post_processor";
    let mut pieces = 0_usize;
    for step in flat(after) {
        let mut ids: Vec<u64> = Vec::new();
        // BERT's and RoBERTa's: `[text, id]`.
        ids.extend(["sep", "cls"].iter().filter_map(|name| step[name][1].as_u64()));
        let lists = step["special_tokens"].as_object().into_iter().flatten();
        for (name, token) in lists {
            let these: Vec<u64> = token["ids"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            let uses = step["single"].as_array().into_iter().flatten();
            let uses = uses.filter(|piece| piece["SpecialToken"]["id"] == name.as_str()).count();
            pieces = pieces.saturating_add(uses.saturating_mul(these.len()));
            ids.extend(these);
        }
        // A part that is repeated repeats the text.
        let texts = step["single"].as_array().into_iter().flatten().filter(|p| p["Sequence"].is_object()).count();
        if texts > 1 {
            return Err(Fault { field, problem: "puts the text in more than once".to_owned() });
        }
        if let Some(id) = ids.iter().find(|id| **id >= rows as u64) {
            let problem = format!("adds id {id} but the model's embedding has {rows} rows (vocab_size of config.json)");
            return Err(Fault { field, problem });
        }
    }
    if pieces > MAX_SPECIAL {
        let problem = format!("adds {pieces} ids to every text; at most {MAX_SPECIAL} are served");
        return Err(Fault { field, problem });
    }
    Ok(())
}

/// Whether every byte of a text is left after the steps that cut it into words.
fn keeps_all(before: &Value) -> bool {
    flat(before).into_iter().all(|step| match step["type"].as_str() {
        Some("ByteLevel" | "Digits" | "Metaspace" | "UnicodeScripts") => true,
        Some("Split" | "Punctuation") => step["behavior"] != "Removed",
        _ => false,
    })
}

/// Most bytes of a text in one token of a byte-level BPE with a token for each byte: no byte is unknown or dropped.
fn widest(tokenizer: &Tokenizer, before: &Value) -> Option<usize> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let bytewise = flat(before).into_iter().any(|step| step["type"] == "ByteLevel");
    // Written beside a byte's token, these make another token of it.
    let beside = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if !bytewise || beside.into_iter().flatten().any(|text| !text.is_empty()) {
        return None;
    }
    let vocabulary = tokenizer.get_vocab(false);
    if !ByteLevel::alphabet().iter().all(|byte| vocabulary.contains_key(byte.to_string().as_str())) {
        return None;
    }
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    // These take the white space beside them, however much there is.
    if added.values().any(|token| token.lstrip || token.rstrip) {
        return None;
    }
    // A character stands for a byte in the one list, for itself in the other.
    let merged = vocabulary.keys().map(|token| token.chars().count()).max();
    merged.max(added.values().map(|token| token.content.len()).max())
}

/// Whether a text may be read at all.
pub(super) fn admissible(bytes: usize, growth: usize) -> Result<(), TextError> {
    let most = MAX_TEXT / growth;
    if bytes > most { Err(TextError::TooLong { bytes, most }) } else { Ok(()) }
}
