//! Text, tokenizer, token stream, and the prompts that training never sees.

use super::WorkshopError;
use super::recipe::Recipe;
use super::text::{Writer, documents};
use crate::engine::random::Random;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

/// Starts every document, ends every generation. Its id is 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Id of [`END_OF_TEXT`].
pub const END_OF_TEXT_ID: u32 = 0;

/// Most tokens of a held-out prompt, with the leading [`END_OF_TEXT`].
pub const PROMPT_TOKENS: usize = 32;
/// Fewest and most words of a held-out prompt: below the fewest, hardly any would be new to the training text.
const PROMPT_WORDS: (usize, usize) = (6, 20);

/// One line of a prompt file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Prompt {
    /// Name, unique in the file.
    pub id: String,
    /// Text.
    pub prompt: String,
}

/// All that training and its check need of text.
pub struct Corpus {
    /// Training documents.
    pub documents: Vec<String>,
    /// Tokenizer trained on them.
    pub tokenizer: Tokenizer,
    /// The documents as ids, each after [`END_OF_TEXT_ID`].
    pub tokens: Vec<u32>,
    /// Prompts that comparisons draw from.
    pub probes: Vec<Prompt>,
    /// Prompts for live traffic.
    pub prompts: Vec<Prompt>,
}

impl Corpus {
    /// Text, tokenizer and prompts of a recipe; the same for the same recipe.
    ///
    /// # Errors
    /// If the tokenizer fails, or if too few prompts are found that the training text does not contain.
    pub fn new(recipe: &Recipe) -> Result<Self, WorkshopError> {
        let documents = documents(recipe.seed, recipe.text_bytes);
        let tokenizer = train_tokenizer(&documents, recipe.shape.vocabulary)?;
        // Probes begin stories: the positions of a story depend on each other in many small ways, so that a fault shows
        // as a spread of similarities. A question's one-word answer is right or turned over whole.
        let probes = hold_out(&documents, &tokenizer, !recipe.seed, Writer::story, recipe.probes)?;
        let mut prompts =
            hold_out(&documents, &tokenizer, !recipe.seed ^ 1, Writer::document, recipe.prompts + recipe.probes)?;
        prompts.retain(|p| !probes.contains(p));
        prompts.truncate(recipe.prompts);
        let name = |prefix: char, texts: Vec<String>| {
            let named = |(i, prompt): (usize, String)| Prompt { id: format!("{prefix}{:04}", i + 1), prompt };
            texts.into_iter().enumerate().map(named).collect::<Vec<_>>()
        };
        let (probes, prompts) = (name('p', probes), name('l', prompts));
        let tokens = encode_documents(&tokenizer, &documents)?;
        Ok(Self { documents, tokenizer, tokens, probes, prompts })
    }

    /// The held-out prompt that some training document contains, if there is one: there must be none.
    pub fn leak(&self) -> Option<&Prompt> {
        let text = self.documents.join("\n");
        self.probes.iter().chain(&self.prompts).find(|p| text.contains(&p.prompt))
    }
}

/// Byte-level BPE that puts [`END_OF_TEXT`] in front, in the form of a Hugging Face tokenizer.json.
fn train_tokenizer(documents: &[String], vocabulary: usize) -> Result<Tokenizer, WorkshopError> {
    let failed = WorkshopError::tokenizer;
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let builder = BpeTrainerBuilder::new()
        .vocab_size(vocabulary)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect());
    let mut trainer: TrainerWrapper = builder.build().into();
    tokenizer.train(&mut trainer, documents.iter().map(String::as_str)).map_err(failed("being trained"))?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{END_OF_TEXT} $A"))
        .map_err(|e| failed("its template was read")(e.into()))?
        .special_tokens(vec![(END_OF_TEXT, END_OF_TEXT_ID)])
        .build()
        .map_err(|e| failed("its template was built")(Box::new(e)))?;
    tokenizer.with_post_processor(Some(template));
    let found = tokenizer.get_vocab_size(true);
    if found != vocabulary || tokenizer.token_to_id(END_OF_TEXT) != Some(END_OF_TEXT_ID) {
        return Err(WorkshopError::Refused(format!(
            "the text gives {found} tokens, not the vocabulary of {vocabulary}: use more text or a smaller vocabulary"
        )));
    }
    Ok(tokenizer)
}

fn encode_documents(tokenizer: &Tokenizer, documents: &[String]) -> Result<Vec<u32>, WorkshopError> {
    let mut tokens = Vec::new();
    for some in documents.chunks(512) {
        let texts: Vec<&str> = some.iter().map(String::as_str).collect();
        let encoded =
            tokenizer.encode_batch_fast(texts, true).map_err(WorkshopError::tokenizer("encoding the text"))?;
        for encoding in encoded {
            tokens.extend_from_slice(encoding.get_ids());
        }
    }
    Ok(tokens)
}

/// Beginnings of documents of another seed, none of which occurs anywhere in `documents` (so neither does the document
/// that it begins): `wanted` different ones of at most [`PROMPT_TOKENS`] tokens.
fn hold_out(
    documents: &[String],
    tokenizer: &Tokenizer,
    seed: u64,
    write: fn(&mut Writer) -> String,
    wanted: usize,
) -> Result<Vec<String>, WorkshopError> {
    let mut writer = Writer::new(seed);
    let mut random = Random::from_seed(!seed);
    let mut seen = HashSet::new();
    let mut candidates = Vec::new();
    while candidates.len() < wanted * 4 {
        let document = write(&mut writer);
        let words = PROMPT_WORDS.0 + random.below(PROMPT_WORDS.1 - PROMPT_WORDS.0 + 1);
        // The end of the last word that belongs to the prompt; shorter documents are left out, because a model would be
        // asked to go on after the end.
        let Some((end, _)) = document.match_indices(' ').nth(words - 1) else { continue };
        if seen.insert(document[..end].to_owned()) {
            candidates.push(document[..end].to_owned());
        }
    }
    let index = Index::new(&candidates);
    let leaked: HashSet<&str> = documents.iter().flat_map(|d| index.found_in(d)).collect();
    let mut found = Vec::new();
    for text in candidates.iter().filter(|c| !leaked.contains(c.as_str())) {
        let encoding = tokenizer.encode(text.as_str(), true).map_err(WorkshopError::tokenizer("encoding a prompt"))?;
        if encoding.get_ids().len() <= PROMPT_TOKENS {
            found.push(text.clone());
        }
        if found.len() == wanted {
            return Ok(found);
        }
    }
    Err(WorkshopError::Refused(format!(
        "only {} of {wanted} prompts that the training text does not contain were found: ask for fewer",
        found.len()
    )))
}

/// Finds which of many prompts occur in a text without trying each at each place.
struct Index<'a> {
    by_start: HashMap<&'a [u8], Vec<&'a str>>,
}

impl<'a> Index<'a> {
    /// Bytes by which prompts are grouped; all prompts have at least as many.
    const KEY: usize = 8;

    fn new(prompts: &'a [String]) -> Self {
        let mut by_start: HashMap<_, Vec<_>> = HashMap::new();
        for prompt in prompts {
            by_start.entry(&prompt.as_bytes()[..Self::KEY]).or_default().push(prompt.as_str());
        }
        Self { by_start }
    }

    fn found_in(&self, text: &str) -> Vec<&'a str> {
        let text = text.as_bytes();
        let starts = text.windows(Self::KEY).enumerate();
        let candidates = starts.filter_map(|(at, start)| Some((at, self.by_start.get(start)?)));
        candidates
            .flat_map(|(at, prompts)| prompts.iter().filter(move |p| text[at..].starts_with(p.as_bytes())))
            .copied()
            .collect()
    }
}

/// Writes prompts, one JSON object per line.
pub fn write_prompts(path: &Path, prompts: &[Prompt]) -> Result<(), WorkshopError> {
    let mut lines = String::new();
    for prompt in prompts {
        lines += &serde_json::to_string(prompt).map_err(WorkshopError::json(path))?;
        lines.push('\n');
    }
    std::fs::write(path, lines).map_err(WorkshopError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_finds_what_contains_finds() {
        let prompts: Vec<String> =
            ["Anna has the key", "the key and stays", "Tom is in the barn"].map(String::from).into();
        let index = Index::new(&prompts);
        for text in
            ["Anna has the key and stays.", "x", "", "Tom is in the", "Tom is in the barn", "has the key and stays"]
        {
            let expected: Vec<&str> = prompts.iter().map(String::as_str).filter(|p| text.contains(p)).collect();
            assert_eq!(index.found_in(text), expected, "{text}");
        }
    }

    #[test]
    fn held_out_prompts_are_new_and_all_of_them_may_be_old() {
        let documents = documents(3, 60_000);
        let tokenizer = train_tokenizer(&documents, 700).unwrap();
        let hold_out = |documents: &[String]| hold_out(documents, &tokenizer, 3, Writer::story, 40);
        let prompts = hold_out(&documents).unwrap();
        assert_eq!(prompts.len(), 40);
        let text = documents.join("\n");
        assert!(prompts.iter().all(|p| !text.contains(p.as_str())));
        // Once they are part of the text, the same draw avoids them.
        let more: Vec<String> = documents.iter().chain(&prompts).cloned().collect();
        assert!(hold_out(&more).unwrap().iter().all(|p| !prompts.contains(p)));
    }
}
