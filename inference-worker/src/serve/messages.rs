//! The messages of a chat, and the prompt that the model's template makes of them.

use super::error::ApiError;
use super::fields::{name, wrong};
use super::openai::{Limits, failed, fitting};
use crate::model::{ChatMessage, Text};
use serde_json::{Map, Value};

const FIELD: &str = "messages";

/// Token ids of a chat, within `limits` where they are to be answered. `special` adds what the tokenizer adds to texts, beside what the template has written.
pub(super) fn encode(
    messages: Vec<Value>,
    add_generation_prompt: bool,
    special: bool,
    text: &Text,
    limits: Option<Limits>,
) -> Result<Vec<u32>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(FIELD, "`messages` is empty; send at least one message"));
    }
    let messages = messages.into_iter().enumerate().map(|(at, message)| read(at, message));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    let rendered = text.chat(&messages, add_generation_prompt).map_err(|error| failed(FIELD, &error))?;
    let encode = if special { Text::encode } else { Text::encode_chat };
    match limits {
        Some(limits) => fitting(&rendered, text, limits, encode),
        None => encode(text, &rendered).map_err(|error| failed(FIELD, &error)),
    }
}

fn read(at: usize, message: Value) -> Result<ChatMessage, ApiError> {
    let place = |field: &str| format!("messages[{at}]{field}");
    let Value::Object(mut message) = message else {
        return Err(wrong(FIELD, &place(""), "an object with `role` and `content`", name(&message)));
    };
    let role = match message.remove("role") {
        Some(Value::String(role)) => role,
        other => {
            let found = other.as_ref().map_or("missing", name);
            return Err(wrong(FIELD, &place(".role"), "a string, such as `user`", found));
        }
    };
    if message.get("tool_calls").is_some_and(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty())) {
        let message = format!("`{}` is not supported: tools are not called; leave it out", place(".tool_calls"));
        return Err(ApiError::unsupported(FIELD, message));
    }
    let content = content(&mut message, &role, &place)?;
    Ok(ChatMessage { role, content })
}

fn content(message: &mut Map<String, Value>, role: &str, place: &impl Fn(&str) -> String) -> Result<String, ApiError> {
    const WANTED: &str = "a string or an array of parts of type `text`";
    match message.remove("content") {
        Some(Value::String(text)) => Ok(text),
        // An answer without text, as clients send it back.
        None | Some(Value::Null) if role == "assistant" => Ok(String::new()),
        Some(Value::Array(parts)) => {
            let mut all = String::new();
            for (at, part) in parts.iter().enumerate() {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text"), Some(text)) => all.push_str(text),
                    (Some("text"), None) => {
                        let place = place(&format!(".content[{at}].text"));
                        return Err(wrong(FIELD, &place, "a string", name(&part["text"])));
                    }
                    _ => {
                        let place = place(&format!(".content[{at}]"));
                        let message = format!("`{place}` is not supported: only parts of type `text` can be read");
                        return Err(ApiError::unsupported(FIELD, message));
                    }
                }
            }
            Ok(all)
        }
        other => Err(wrong(FIELD, &place(".content"), WANTED, other.as_ref().map_or("missing", name))),
    }
}
