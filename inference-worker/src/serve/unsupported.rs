//! Fields of OpenAI, vLLM and llama-server that would change an answer and that this server does not have. They are refused
//! by name unless they ask for nothing; fields that nobody here knows, and that are not in the list, are ignored.

use super::error::ApiError;
use serde_json::{Map, Value};

/// A value that asks for nothing, beside null.
#[derive(Clone, Copy)]
enum Nothing {
    /// Each value asks for something.
    Never,
    Flag(bool),
    Number(f64),
    /// An empty string, array or object.
    Empty,
    /// One of these words, or a list of them.
    Words(&'static [&'static str]),
}

use Nothing::{Empty, Flag, Never, Number, Words};

const FORMS: &str = "use `response_format` of type `text`, `json_object` or `json_schema`";
const TOOLS: &str = "tools are not called; leave it out";
const TEMPLATE: &str =
    "the model's own chat template is used; render the prompt yourself and send it to /v1/completions";
const PENALTIES: &str = "use `repetition_penalty`, `frequency_penalty` or `presence_penalty`";
const CUTS: &str = "use `top_p`, `top_k` or `min_p`";
const BEAMS: &str = "tokens are sampled, there are no beams; leave it out";
const MEDIA: &str = "this server reads and writes text only; leave it out";
const PROMPT: &str = "the prompt is read as it is; leave it out";

const FIELDS: &[(&str, Nothing, &str)] = &[
    ("allowed_token_ids", Never, "use `logit_bias` of -100 for tokens that may not come"),
    ("audio", Never, MEDIA),
    ("bad_words", Empty, "use `logit_bias` of -100 for tokens that may not come"),
    ("chat_template", Never, TEMPLATE),
    ("chat_template_kwargs", Empty, TEMPLATE),
    ("continue_final_message", Flag(false), TEMPLATE),
    ("documents", Empty, TEMPLATE),
    ("dry_multiplier", Number(0.0), PENALTIES),
    ("dynatemp_range", Number(0.0), CUTS),
    ("early_stopping", Flag(false), BEAMS),
    ("function_call", Words(&["none", "auto"]), TOOLS),
    ("functions", Empty, TOOLS),
    ("grammar", Empty, FORMS),
    ("guided_choice", Empty, FORMS),
    ("guided_grammar", Empty, FORMS),
    ("guided_json", Never, FORMS),
    ("guided_regex", Empty, FORMS),
    ("image_data", Empty, MEDIA),
    ("json_schema", Empty, FORMS),
    ("length_penalty", Number(1.0), BEAMS),
    ("logits_processors", Empty, "use `logit_bias`"),
    ("mirostat", Number(0.0), CUTS),
    ("modalities", Words(&["text"]), MEDIA),
    ("n_predict", Number(-1.0), "use `max_tokens`"),
    ("n_probs", Number(0.0), "use `logprobs`"),
    ("prompt_logprobs", Never, "likelihoods are those of the answer; leave it out"),
    ("repeat_penalty", Number(1.0), "use `repetition_penalty`"),
    ("return_tokens_as_token_ids", Flag(false), "tokens are written as text; leave it out"),
    ("samplers", Never, CUTS),
    ("spaces_between_special_tokens", Flag(true), "leave it out"),
    ("suffix", Empty, "there is no insertion; leave it out"),
    ("tfs_z", Number(1.0), CUTS),
    ("tool_choice", Words(&["none", "auto"]), TOOLS),
    ("tools", Empty, TOOLS),
    ("top_n_sigma", Number(-1.0), CUTS),
    ("truncate_prompt_tokens", Never, PROMPT),
    ("typical_p", Number(1.0), CUTS),
    ("use_beam_search", Flag(false), BEAMS),
    ("web_search_options", Never, TOOLS),
    ("xtc_probability", Number(0.0), CUTS),
];

impl Nothing {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Flag(flag), value) => value.as_bool() == Some(flag),
            (Number(number), value) => value.as_f64() == Some(number),
            (Empty, Value::String(text)) => text.is_empty(),
            (Empty, Value::Array(values)) => values.is_empty(),
            (Empty, Value::Object(fields)) => fields.is_empty(),
            (Words(words), Value::String(word)) => words.contains(&word.as_str()),
            (Words(_), Value::Array(values)) => values.iter().all(|value| value.is_string() && self.is(value)),
            (Never | Empty | Words(_), _) => false,
        }
    }
}

/// Refuses what would change the answer.
pub(super) fn refuse(fields: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, nothing, remedy) in FIELDS {
        if fields.get(*name).is_some_and(|value| !nothing.is(value)) {
            return Err(ApiError::unsupported(name, format!("`{name}` is not supported: {remedy}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_field_is_refused_by_name_unless_it_asks_for_nothing() {
        for (name, nothing, remedy) in FIELDS {
            let with = |value: Value| refuse(json!({ *name: value }).as_object().unwrap());
            let asking = [json!(true), json!(7.5), json!("x"), json!(["x"]), json!({"type": "function"})];
            let refused = asking.iter().filter(|value| with((*value).clone()).is_err()).count();
            assert!(refused >= asking.len() - 1, "{name}: one of them may be its neutral value");
            let error = with(json!({"type": "function"})).unwrap_err().object().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains(remedy), "{error}");
            let neutral = match nothing {
                Never => json!(null),
                Flag(flag) => json!(flag),
                Number(number) => json!(number),
                Empty => json!([]),
                Words(words) => json!(words[0]),
            };
            assert_eq!(with(neutral), Ok(()), "{name}");
            assert_eq!(with(Value::Null), Ok(()), "{name}");
        }
        assert!(FIELDS.is_sorted_by_key(|field| field.0));
        assert_eq!(refuse(json!({"user": "x", "metadata": {"a": 1}, "store": true}).as_object().unwrap()), Ok(()));
        assert_eq!(refuse(json!({"modalities": ["text"], "n_predict": -1}).as_object().unwrap()), Ok(()));
    }
}
