//! Tokenizer and chat template of a model directory.

mod chat;
#[cfg(test)]
mod hostile;
mod tokenizer;

use super::config::{ModelConfig, read_json};
use super::digest::hex;
use super::gguf::Carried;
use super::{LoadError, TextError, files};
use chat::Template;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use tokenizer::Bounds;
use tokenizers::Tokenizer;

/// Bytes of a text after its normalizer: four times what a request's body holds.
const MAX_TEXT: usize = 4 << 20;
/// Time for an example of some words.
const EXAMPLE_TIME: Duration = Duration::from_secs(10);
/// Tokens that a stream holds back while they decode to an incomplete character; a character has at most four bytes,
/// and a byte-level token at least one.
const HELD_BACK: usize = 8;
/// Tokens of a prompt that are decoded with the first ones of its answer, as many as in vLLM.
const BEFORE: usize = 6;

/// Tokenizer and chat template. Cheap to clone; safe to share between threads.
#[derive(Clone)]
pub struct Text {
    tokenizer: Arc<Tokenizer>,
    bounds: Bounds,
    /// Rows of the embedding.
    vocabulary: usize,
    template: Option<Arc<Template>>,
    special: Arc<BTreeMap<&'static str, String>>,
    tokenizer_hash: String,
    template_hash: String,
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what the template knows besides.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Text {
    /// Reads tokenizer.json and, where there is one, the chat template: chat_template.jinja, else the field
    /// `chat_template` of tokenizer_config.json.
    ///
    /// # Errors
    /// [`LoadError`] if a file is missing or malformed, if the template does not compile, if the tokenizer has ids that
    /// the embedding of config.json has not or steps without bounds, or if either fails on an example.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("tokenizer.json");
        // A tokenizer.json beside a GGUF file wins over the one inside it.
        let carried = match super::gguf::find(dir)? {
            Some(file) if !path.exists() => Some(super::gguf::tokenizer(&file)?),
            _ => None,
        };
        let bytes = match &carried {
            Some(carried) => carried.json.clone().into_bytes(),
            None => files::read(&path, files::TOKENIZER_BYTES).map_err(|source| LoadError::Read {
                path: path.clone(),
                remedy: "a served model needs its tokenizer.json; export it from the original tokenizer",
                source,
            })?,
        };
        let mut tokenizer =
            tokenizer::parse(&bytes).map_err(|source| LoadError::Tokenizer { path: path.clone(), source })?;
        // Limits belong to the server: a tokenizer that cuts or fills texts would answer another prompt than was asked.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|source| LoadError::Tokenizer { path: path.clone(), source })?;
        let vocab_size = ModelConfig::load(dir)?.vocab_size;
        if let Some(largest) = tokenizer.get_vocab(true).into_values().max().filter(|id| *id as usize >= vocab_size) {
            return Err(LoadError::Config {
                path,
                field: "vocab".to_owned(),
                problem: format!(
                    "has id {largest} but the model's embedding has {vocab_size} rows (vocab_size of config.json)"
                ),
                remedy: "use the tokenizer that the model was trained with".to_owned(),
            });
        }
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Tokenizer { path: path.clone(), source };
        let bounds = Bounds::of(&tokenizer, vocab_size).map_err(failed)?.map_err(|fault| LoadError::Config {
            path: path.clone(),
            field: fault.field.to_owned(),
            problem: fault.problem,
            remedy: "use the tokenizer that the model was trained with".to_owned(),
        })?;
        let text = Self {
            tokenizer: Arc::new(tokenizer),
            bounds,
            vocabulary: vocab_size,
            template: None,
            special: Arc::default(),
            tokenizer_hash: hex(&Sha256::digest(&bytes)),
            template_hash: String::new(),
        };
        text.tried(Self::probe, EXAMPLE_TIME).map_err(|error| failed(error.into()))?;
        text.with_template(dir, carried)
    }

    /// Adds the chat template, where there is one.
    fn with_template(mut self, dir: &Path, carried: Option<Carried>) -> Result<Self, LoadError> {
        let (mut template, mut special) = read_template(dir)?;
        if let Some(carried) = carried {
            template = template.or(carried.template.map(|source| ("the GGUF file", source)));
            for (name, text) in carried.special {
                special.entry(name).or_insert(text);
            }
        }
        self.template_hash = hex(&Sha256::digest(template.as_ref().map_or("", |(_, source)| source)));
        self.special = Arc::new(special);
        let Some((file, source)) = template else { return Ok(self) };
        let path = dir.join(file);
        if source.len() > chat::MAX_SOURCE {
            return Err(LoadError::Config {
                path,
                field: "chat_template".to_owned(),
                problem: format!("has {} bytes; at most {} are compiled", source.len(), chat::MAX_SOURCE),
                remedy: "shorten it, or remove it to serve /v1/completions only".to_owned(),
            });
        }
        let compiled = Template::compile(source);
        let compiled = compiled.map_err(|source| LoadError::Template { path: path.clone(), source })?;
        self.template = Some(Arc::new(compiled));
        self.tried(Self::probe_chat, EXAMPLE_TIME).map_err(|source| LoadError::Chat { path, source })?;
        Ok(self)
    }

    /// Token ids of a prompt, with the special tokens that the tokenizer adds (for example a leading BOS).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, true)
    }

    /// Token ids of a rendered chat: nothing is added, because the template writes its special tokens itself.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>, TextError> {
        self.ids(rendered, false)
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        tokenizer::admissible(text.len(), self.bounds.growth)?;
        let ids = tokenizer::ids(&self.tokenizer, text, add_special)?;
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            Some(&id) => Err(TextError::Vocabulary { id, rows: self.vocabulary }),
            None => Ok(ids),
        }
    }

    /// Most bytes of a text that `tokens` tokens can hold, where that is certain.
    pub(crate) fn most_bytes(&self, tokens: usize) -> Option<usize> {
        self.bounds.widest.map(|widest| widest.saturating_mul(tokens))
    }

    /// Tries an example, which may not end: then its thread is left behind, and the model is refused.
    fn tried(&self, example: fn(&Self) -> Result<(), TextError>, limit: Duration) -> Result<(), TextError> {
        let (done, ended) = mpsc::channel();
        let text = self.clone();
        let trying = move || {
            // Nobody waits any more where it is late.
            let _ = done.send(example(&text));
        };
        thread::Builder::new().name("example".to_owned()).spawn(trying).map_err(TextError::Thread)?;
        ended.recv_timeout(limit).unwrap_or(Err(TextError::Late { limit }))
    }

    fn probe(&self) -> Result<(), TextError> {
        for ids in [self.encode(tokenizer::PROBE)?, self.encode_chat(tokenizer::PROBE)?] {
            self.decode(&ids)?;
            self.decode_all(&ids)?;
        }
        Ok(())
    }

    /// Renders what every chat model answers. A template may refuse it: that it says so itself shows that it runs.
    fn probe_chat(&self) -> Result<(), TextError> {
        let message = |role: &str| ChatMessage { role: role.to_owned(), content: tokenizer::PROBE.to_owned() };
        for roles in [&["user"][..], &["user", "assistant", "user"]] {
            let messages: Vec<ChatMessage> = roles.iter().map(|role| message(role)).collect();
            match self.chat(&messages, true) {
                Ok(_) | Err(TextError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Text of token ids, without special tokens. Incomplete UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        tokenizer::decode(&self.tokenizer, ids, true)
    }

    /// Text of token ids with special tokens written out. Incomplete UTF-8 becomes U+FFFD.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String, TextError> {
        tokenizer::decode(&self.tokenizer, ids, false)
    }

    /// The tokenizer as its tokenizer.json would say it.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] if it cannot be written.
    pub(crate) fn to_json(&self) -> Result<serde_json::Value, TextError> {
        let text = self.tokenizer.to_string(false).map_err(TextError::Tokenizer)?;
        serde_json::from_str(&text).map_err(|error| TextError::Tokenizer(error.into()))
    }

    /// A decoder for one generation that never cuts a character in two.
    pub fn stream(&self) -> TextStream {
        self.stream_after(&[], false)
    }

    /// The same for what follows `prompt`, whose last tokens decide how the first one is written: some decoders take the
    /// space from the beginning of a text. With `special`, special tokens are written out.
    pub fn stream_after(&self, prompt: &[u32], special: bool) -> TextStream {
        let ids = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        TextStream { tokenizer: Arc::clone(&self.tokenizer), special, context: 0, sent: ids.len(), ids }
    }

    /// Bytes of a token by itself, also where they are a part of a character; `None` where the tokenizer does not say them.
    pub(crate) fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let text = self.decode_all(&[id]).ok()?;
        if !text.contains(char::REPLACEMENT_CHARACTER) {
            return Some(text.into_bytes());
        }
        let token = self.tokenizer.id_to_token(id)?;
        let named = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = named.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            return Some(vec![byte]);
        }
        token.chars().map(byte_of).collect()
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt of a chat, as the model's template writes it; `add_generation_prompt` opens the assistant's answer.
    /// Encode it with [`Text::encode_chat`].
    ///
    /// # Errors
    /// [`TextError::NoTemplate`] without a template; [`TextError::Refused`] if the template refuses the messages,
    /// [`TextError::Template`] if it fails.
    pub fn chat(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        template.render(messages, add_generation_prompt, &self.special)
    }

    /// SHA-256 of tokenizer.json, in lower-case hex.
    pub fn tokenizer_hash(&self) -> &str {
        &self.tokenizer_hash
    }

    /// SHA-256 of the chat template's text, in lower-case hex; of the empty text where there is no template.
    pub fn template_hash(&self) -> &str {
        &self.template_hash
    }
}

/// Decodes one generation token by token; see [`Text::stream`].
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    /// Special tokens are written out.
    special: bool,
    ids: Vec<u32>,
    /// `ids[context..sent]` were sent and are decoded again with what follows, because a token's text can depend on
    /// the token before it (leading spaces).
    context: usize,
    /// `ids[sent..]` are held back.
    sent: usize,
}

impl TextStream {
    /// Takes the next token; returns the text that is now complete, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TextError> {
        self.ids.push(id);
        self.take(self.ids.len() - self.sent >= HELD_BACK)
    }

    /// Ends the generation: returns what was held back, incomplete characters as U+FFFD.
    pub fn finish(&mut self) -> Result<Option<String>, TextError> {
        self.take(true)
    }

    fn decode(&self, ids: std::ops::Range<usize>) -> Result<String, TextError> {
        self.tokenizer.decode(&self.ids[ids], !self.special).map_err(TextError::Tokenizer)
    }

    fn take(&mut self, all: bool) -> Result<Option<String>, TextError> {
        let before = self.decode(self.context..self.sent)?;
        let after = self.decode(self.context..self.ids.len())?;
        let Some(new) = after.strip_prefix(before.as_str()) else {
            // A decoder that rewrites what was sent can only go on from here.
            self.context = self.sent;
            return if all { self.restart() } else { Ok(None) };
        };
        if !all && new.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        if new.is_empty() {
            // Special tokens have no text and hold nothing back.
            self.sent = self.ids.len();
            return Ok(None);
        }
        self.context = self.sent;
        self.sent = self.ids.len();
        Ok(Some(new.to_owned()))
    }

    fn restart(&mut self) -> Result<Option<String>, TextError> {
        let text = self.decode(self.sent..self.ids.len())?;
        self.context = self.ids.len();
        self.sent = self.ids.len();
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable ones for themselves, the others by their
/// order from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => Some(byte).filter(printable),
        Err(_) => (0..=u8::MAX).filter(|byte| !printable(byte)).nth(code as usize - 256),
    }
}

/// The template with the file it came from, and the special tokens by their names in templates.
type Found = (Option<(&'static str, String)>, BTreeMap<&'static str, String>);

fn read_template(dir: &Path) -> Result<Found, LoadError> {
    const JINJA: &str = "chat_template.jinja";
    const CONFIG: &str = "tokenizer_config.json";
    let config: serde_json::Value = match dir.join(CONFIG) {
        path if path.exists() => read_json(&path, "tokenizer configuration")?,
        _ => serde_json::Value::Null,
    };
    let mut special = BTreeMap::new();
    for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        let token = &config[name];
        if let Some(text) = token.as_str().or_else(|| token["content"].as_str()) {
            special.insert(name, text.to_owned());
        }
    }
    let path = dir.join(JINJA);
    if path.exists() {
        let source = files::read_text(&path, files::TEMPLATE_BYTES).map_err(|source| LoadError::Read {
            path,
            remedy: "make it readable UTF-8 text, or remove it to serve /v1/completions only",
            source,
        })?;
        return Ok((Some((JINJA, source)), special));
    }
    let field = &config["chat_template"];
    let named = || {
        let list = field.as_array()?;
        list.iter().find(|one| one["name"] == "default")?["template"].as_str()
    };
    let source = field.as_str().or_else(named);
    if source.is_none() && !field.is_null() {
        return Err(LoadError::Config {
            path: dir.join(CONFIG),
            field: "chat_template".to_owned(),
            problem: "must be a text, or a list with an entry named `default`".to_owned(),
            remedy: "correct it, or remove it to serve /v1/completions only".to_owned(),
        });
    }
    Ok((source.map(|source| (CONFIG, source.to_owned())), special))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    /// A directory with a byte-level tokenizer: token = byte (in the alphabet's order), `<s>` 256, `</s>` 257.
    pub(super) fn folder() -> tempfile::TempDir {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let mut vocab: serde_json::Map<String, serde_json::Value> =
            alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
        vocab.insert("<s>".into(), 256.into());
        vocab.insert("</s>".into(), 257.into());
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        };
        let tokenizer = json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [special(256, "<s>"), special(257, "</s>")], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": []}
        });
        let config = json!({
            "model_type": "bitnet", "vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 64
        });
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        dir
    }

    fn with_template(template: &str) -> Text {
        let dir = folder();
        let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template});
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        Text::load(dir.path()).unwrap()
    }

    pub(super) fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into() }
    }

    #[test]
    fn prompts_get_special_tokens_and_chats_do_not() {
        let text = Text::load(folder().path()).unwrap();
        let ids = text.encode("grüße").unwrap();
        assert_eq!((ids[0], ids.len()), (256, 8), "not cut at the 4 tokens that the file asks for");
        assert_eq!(text.encode_chat("grüße").unwrap(), ids[1..]);
        assert_eq!(text.encode_chat("<s>a").unwrap()[0], 256);
        assert_eq!(text.decode(&ids).unwrap(), "grüße");
    }

    #[test]
    fn a_stream_never_cuts_a_character() {
        let text = Text::load(folder().path()).unwrap();
        for sample in ["plain", "grüße", "日本語と🦀 crab", "e\u{301}", ""] {
            let mut stream = text.stream();
            let mut pieces = Vec::new();
            for id in text.encode_chat(sample).unwrap() {
                pieces.extend(stream.push(id).unwrap());
            }
            assert_eq!(pieces.concat(), sample);
            assert_eq!(pieces.len(), sample.chars().count(), "one piece per character, as soon as it is whole");
            assert_eq!(stream.finish().unwrap(), None);
        }
    }

    #[test]
    fn a_stream_gives_up_on_bytes_that_never_become_a_character() {
        let text = Text::load(folder().path()).unwrap();
        let crab = text.encode_chat("🦀").unwrap();
        let mut stream = text.stream();
        assert_eq!(stream.push(crab[0]).unwrap(), None);
        assert_eq!(stream.push(crab[1]).unwrap(), None);
        assert_eq!(stream.finish().unwrap().unwrap(), "\u{fffd}");
        let mut stream = text.stream();
        let pieces: Vec<String> = (0..100).filter_map(|_| stream.push(crab[1]).unwrap()).collect();
        assert!(pieces.len() >= 100 / HELD_BACK, "what is held back is bounded");
        assert_eq!(pieces.concat().chars().count() + stream.finish().unwrap().map_or(0, |s| s.chars().count()), 100);
    }

    #[test]
    fn parts_of_characters_have_their_bytes() {
        let text = Text::load(folder().path()).unwrap();
        for sample in ["a ", "ü", "🦀", "\u{0}\u{7f}\u{ad}\n"] {
            let bytes = text.encode_chat(sample).unwrap().into_iter().map(|id| text.bytes(id).unwrap());
            assert_eq!(bytes.collect::<Vec<_>>().concat(), sample.as_bytes());
        }
        assert_eq!(text.bytes(256).unwrap(), b"<s>");
        assert_eq!(text.bytes(999), Some(Vec::new()), "what is no token has no text");
    }

    /// A tokenizer whose decoder writes `▁` as a space and drops that of the beginning, as Llama 2's does.
    fn sentences() -> Text {
        let dir = folder();
        let path = dir.path().join("tokenizer.json");
        let mut tokenizer: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        tokenizer["pre_tokenizer"] = json!(null);
        tokenizer["post_processor"] = json!(null);
        tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        tokenizer["model"] = json!({"type": "BPE", "merges": [], "vocab": {
            "▁one": 0, "▁two": 1, "s": 2, "<0xC3>": 3, "<0xBC>": 4, "<s>": 256, "</s>": 257,
        }});
        fs::write(&path, tokenizer.to_string()).unwrap();
        Text::load(dir.path()).unwrap()
    }

    #[test]
    fn an_answer_keeps_the_space_before_its_first_word() {
        let text = sentences();
        let said = |mut stream: TextStream, ids: &[u32]| {
            let mut pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
            pieces.extend(stream.finish().unwrap());
            pieces
        };
        assert_eq!(said(text.stream_after(&[0], false), &[1, 2, 0]), [" two", "s", " one"]);
        assert_eq!(said(text.stream_after(&[0; 20], false), &[1]), [" two"]);
        assert_eq!(said(text.stream(), &[1, 0]), ["two", " one"], "the beginning of a text has none");
        assert_eq!(said(text.stream_after(&[0, 257], true), &[1, 257]), [" two", "</s>"]);
        assert_eq!(said(text.stream_after(&[0], false), &[257, 3, 4]), ["ü"]);
        assert_eq!(text.bytes(3), Some(vec![0xc3]));
    }

    #[test]
    fn special_tokens_are_silent_in_streams() {
        let text = Text::load(folder().path()).unwrap();
        let mut stream = text.stream();
        let mut said = String::new();
        for _ in 0..3 * HELD_BACK {
            assert_eq!(stream.push(257).unwrap(), None);
        }
        for id in text.encode_chat("ü🦀").unwrap() {
            said.extend(stream.push(id).unwrap());
        }
        assert_eq!(said, "ü🦀");
    }

    #[test]
    fn templates_see_what_transformers_gives_them() {
        let text = with_template(
            "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'system' %}\n[{{ m.content.strip() }}]\n  \
             {% else %}\n{{ m['role'] | capitalize }}: {{ m['content'] | trim }}{{ eos_token }}\n  {% endif %}\n\
             {% if loop.last %}{% break %}{% endif %}\n{% endfor %}\n\
             {% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
        );
        let chat = [message("system", " <be brief> "), message("user", "hi ")];
        assert_eq!(text.chat(&chat, true).unwrap(), "<s>[<be brief>]\nUser: hi</s>\nAssistant: ");
        assert_eq!(text.chat(&chat, false).unwrap(), "<s>[<be brief>]\nUser: hi</s>\n");
    }

    #[test]
    fn templates_can_refuse_and_cannot_run_for_ever() {
        let refusing = with_template("{{ raise_exception('no system message') }}");
        let Err(TextError::Refused(error)) = refusing.chat(&[message("system", "x")], true) else { panic!() };
        assert!(error.to_string().contains("no system message"));
        let endless = with_template(
            "{% if not messages %}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}{% endif %}",
        );
        assert!(matches!(endless.chat(&[], true), Err(TextError::Template(_))));
        let none = Text::load(folder().path()).unwrap();
        assert!(!none.has_template());
        assert!(matches!(none.chat(&[], true), Err(TextError::NoTemplate)));
    }

    #[test]
    fn hashes_are_of_the_files() {
        let dir = folder();
        let text = Text::load(dir.path()).unwrap();
        let tokenizer = fs::read(dir.path().join("tokenizer.json")).unwrap();
        assert_eq!(text.tokenizer_hash(), hex(&Sha256::digest(tokenizer)));
        assert_eq!(text.template_hash(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(with_template("x").template_hash(), hex(&Sha256::digest("x")));
        fs::write(dir.path().join("tokenizer_config.json"), json!({"chat_template": "in config"}).to_string()).unwrap();
        fs::write(dir.path().join("chat_template.jinja"), "in file").unwrap();
        assert_eq!(Text::load(dir.path()).unwrap().template_hash(), hex(&Sha256::digest("in file")));
    }

    #[test]
    fn named_templates_use_the_default_one() {
        let dir = folder();
        let path = dir.path().join("tokenizer_config.json");
        let list = json!([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]);
        fs::write(&path, json!({"chat_template": list}).to_string()).unwrap();
        assert_eq!(Text::load(dir.path()).unwrap().chat(&[], true).unwrap(), "d");
        fs::write(&path, json!({"chat_template": 3}).to_string()).unwrap();
        assert!(matches!(Text::load(dir.path()), Err(LoadError::Config { .. })));
    }
}
