//! The form that an answer is asked to have.

use super::error::ApiError;
use super::fields::Fields;
use crate::engine::Form;
use serde_json::Value;

const FORMS: &str = "use `response_format` of type `text`, `json_object` or `json_schema`";

/// OpenAI's `response_format`, or vLLM's `structured_outputs` with a schema.
pub(super) fn take(fields: &mut Fields) -> Result<Option<Form>, ApiError> {
    const NAME: &str = "response_format";
    const OTHER: &str = "structured_outputs";
    let structured: Option<Value> = fields.take(OTHER)?;
    let Some(mut format) = fields.take::<Value>(NAME)? else {
        let Some(mut structured) = structured else { return Ok(None) };
        let only = structured.as_object().is_some_and(|fields| fields.len() == 1 && fields.contains_key("json"));
        if !only {
            let message = format!("`{OTHER}` is not supported: only its field `json`, a schema, is known");
            return Err(ApiError::unsupported(OTHER, message));
        }
        return schema(OTHER, structured["json"].take()).map(Some);
    };
    if structured.is_some() {
        return Err(ApiError::invalid(OTHER, "send `response_format` or `structured_outputs`, not both"));
    }
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Form::Object)),
        Some("json_schema") => match format.get_mut("json_schema").and_then(|named| named.get_mut("schema")) {
            Some(value) => schema(NAME, value.take()).map(Some),
            None => Err(ApiError::invalid(NAME, "`json_schema` needs its field `schema`, an object of JSON Schema")),
        },
        _ => Err(ApiError::unsupported(NAME, format!("`{NAME}` is not supported: {FORMS}"))),
    }
}

fn schema(param: &'static str, value: Value) -> Result<Form, ApiError> {
    if value.is_object() { Ok(Form::Schema(value)) } else { Err(ApiError::invalid(param, "a schema is an object")) }
}
