//! Answers of a given form: which tokens may come next, by llguidance.
//!
//! The form is compiled once for a request; after that each token costs one walk over the tokenizer's trie. The walk
//! knows bytes and not tokens, so that every way of writing an answer stays open to the model.

use crate::contained::contained;
use crate::model::Text;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, token_bytes_from_tokenizer_json};
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};

/// White space between the parts of an answer: one space, or a small model fills its answer with it (as outlines has it).
const WHITESPACE: &str = "[ ]?";

/// Bytes of the library's words that a client is told; they may quote all of a schema.
const MAX_REASON: usize = 300;

/// The form that an answer must have.
#[derive(Clone, PartialEq)]
pub enum Form {
    /// A JSON object, whatever it holds.
    Object,
    /// JSON that fits this schema.
    Schema(Value),
}

/// Why there is no answer of a form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The bytes of the model's tokens are not known.
    #[error("this model's tokenizer cannot be held to a form: {0}")]
    Tokenizer(String),
    /// The form says something that is no form, or nothing that can be met.
    #[error("the schema cannot be followed: {0}")]
    Form(String),
}

/// Compiles forms for one model. The trie of its tokens is made when the first form is asked for.
pub struct Grammars {
    text: Text,
    vocabulary: usize,
    eos: Vec<u32>,
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
}

impl Grammars {
    /// For the tokens of `text`, of which a row of logits holds `vocabulary`; `eos` end an answer.
    pub fn new(text: Text, vocabulary: usize, eos: Vec<u32>) -> Self {
        Self { text, vocabulary, eos, factory: OnceLock::new() }
    }

    /// A grammar at its beginning. Takes milliseconds, the first time about a second for 128 000 tokens.
    ///
    /// # Errors
    /// [`GrammarError`] if the schema is none, cannot be met or is too large, or the tokenizer's bytes are not known.
    pub fn compile(&self, form: &Form) -> Result<Grammar, GrammarError> {
        let factory = self.factory.get_or_init(|| self.read()).as_ref().map_err(Clone::clone)?;
        let mut schema = match form {
            Form::Object => json!({"type": "object"}),
            Form::Schema(schema) => schema.clone(),
        };
        if let Some(fields) = schema.as_object_mut() {
            fields.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITESPACE}));
        }
        let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(GrammarError::Form(reason(&error))),
            None => Ok(Grammar { matcher, eos: self.eos.clone() }),
        }
    }

    fn read(&self) -> Result<ParserFactory, GrammarError> {
        let known = |error: &dyn std::fmt::Display| GrammarError::Tokenizer(error.to_string());
        let tokenizer = self.text.to_json().map_err(|error| known(&error))?;
        // The library asserts where a tokenizer names a byte that is none.
        let reading = contained(|| token_bytes_from_tokenizer_json(&tokenizer));
        let reading = reading.map_err(|_| GrammarError::Tokenizer("it names a byte that is none".to_owned()))?;
        let mut bytes = reading.map_err(|error| known(&error))?;
        let eos = *self.eos.first().ok_or_else(|| GrammarError::Tokenizer("it has no token that ends".to_owned()))?;
        bytes.resize(self.vocabulary, Vec::new());
        let trie = TokTrie::from(&TokRxInfo::new(self.vocabulary as u32, eos), &bytes).with_eos_tokens(&self.eos);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| known(&error))?;
        // Nothing of a request may reach a log: neither the parser's state nor its warnings.
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

/// What of the library's words helps a client. Where it panicked it has none: it checks a result of its own that some
/// numbers break, and adds where that was.
fn reason(error: &str) -> String {
    if error.contains("panic:") {
        return "some bound in it (`minimum`, `maximum`, `multipleOf`, a length or a pattern) is beyond what can be \
                compiled; use smaller bounds"
            .to_owned();
    }
    let line = error.lines().next().unwrap_or_default();
    let cut = line.floor_char_boundary(MAX_REASON);
    let dots = if cut < line.len() { "…" } else { "" };
    format!("{}{dots}; ask for a simpler schema", &line[..cut])
}

/// Where an answer stands within its form.
pub struct Grammar {
    matcher: Matcher,
    eos: Vec<u32>,
}

impl Clone for Grammar {
    /// A copy that goes its own way.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), eos: self.eos.clone() }
    }
}

impl Grammar {
    /// The row of logits with the tokens that may not come next at the lowest finite number; those that are not finite
    /// stay, so that a broken model is seen.
    ///
    /// # Errors
    /// The library's words, if the form outgrew its limits.
    pub(super) fn among(&mut self, logits: &[f32]) -> Result<Vec<f32>, String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        let masked = logits.iter().enumerate().map(|(token, &logit)| {
            let stays = !logit.is_finite() || token < mask.len() && mask.get(token);
            if stays { logit } else { f32::MIN }
        });
        Ok(masked.collect())
    }

    /// Goes on by a token that was allowed.
    ///
    /// # Errors
    /// As [`Grammar::among`].
    pub(super) fn take(&mut self, token: u32) -> Result<Step, String> {
        if self.eos.contains(&token) {
            return Ok(Step::End);
        }
        self.matcher.consume_token(token).map_err(|error| error.to_string())?;
        Ok(if self.matcher.is_stopped() { Step::Last } else { Step::Next })
    }
}

/// What a token did to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is part of the answer, and the answer goes on.
    Next,
    /// It is part of the answer, and nothing may follow it.
    Last,
    /// It is not part of it: the answer ended before.
    End,
}
