//! The fields of a request's body, each taken by its name and its type: what is of another type is refused by both.

use super::error::ApiError;
use serde_json::{Map, Value};

/// What is left of a body. No `Debug`: prompts stay out of logs.
pub(super) struct Fields(Map<String, Value>);

/// A type that a field can have.
pub(super) trait Kind: Sized {
    /// As in "must be …".
    const NAME: &str;

    fn read(value: Value) -> Option<Self>;
}

impl Fields {
    /// # Errors
    /// If the body is not JSON, or no object.
    pub(super) fn of(body: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body)
            .map_err(|error| ApiError::malformed(format!("the body is not JSON: {error}; send a JSON object")))?;
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => {
                let message = format!("the body must be a JSON object, not {}", name(&other));
                Err(ApiError::wrong_type(None, message))
            }
        }
    }

    /// Takes a field; null is as if it were left out.
    ///
    /// # Errors
    /// If it is of another type.
    pub(super) fn take<T: Kind>(&mut self, field: &'static str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let found = name(&value);
        T::read(value).map(Some).ok_or_else(|| wrong(field, field, T::NAME, found))
    }

    /// Takes a field that there must be.
    ///
    /// # Errors
    /// If it is missing or of another type.
    pub(super) fn need<T: Kind>(&mut self, field: &'static str) -> Result<T, ApiError> {
        let missing = || ApiError::invalid(field, format!("`{field}` is missing; send it, it must be {}", T::NAME));
        self.take(field)?.ok_or_else(missing)
    }

    /// What nobody has taken.
    pub(super) fn rest(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// The error for a value of another type; `place` is where it is within the field `param`.
pub(super) fn wrong(param: &'static str, place: &str, wanted: &str, found: &str) -> ApiError {
    ApiError::wrong_type(Some(param), format!("`{place}` must be {wanted}, not {found}; correct it or leave it out"))
}

/// What a value is, in words.
pub(super) fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(number) if number.is_i64() && !number.is_u64() => "a negative number",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array of other things or beyond their range",
        Value::Object(_) => "an object",
    }
}

impl Kind for bool {
    const NAME: &str = "true or false";

    fn read(value: Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Kind for u32 {
    const NAME: &str = "a whole number from 0 to 4294967295";

    fn read(value: Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }
}

impl Kind for i64 {
    const NAME: &str = "a whole number of 64 bits";

    fn read(value: Value) -> Option<Self> {
        value.as_i64()
    }
}

impl Kind for f32 {
    const NAME: &str = "a number";

    fn read(value: Value) -> Option<Self> {
        value.as_f64().map(|number| number as f32)
    }
}

impl Kind for String {
    const NAME: &str = "a string";

    fn read(value: Value) -> Option<Self> {
        if let Value::String(text) = value { Some(text) } else { None }
    }
}

impl Kind for Value {
    const NAME: &str = "JSON";

    fn read(value: Value) -> Option<Self> {
        Some(value)
    }
}

impl Kind for Map<String, Value> {
    const NAME: &str = "an object";

    fn read(value: Value) -> Option<Self> {
        if let Value::Object(fields) = value { Some(fields) } else { None }
    }
}

impl Kind for Vec<Value> {
    const NAME: &str = "an array";

    fn read(value: Value) -> Option<Self> {
        if let Value::Array(values) = value { Some(values) } else { None }
    }
}

impl Kind for Vec<u32> {
    const NAME: &str = "an array of token ids";

    fn read(value: Value) -> Option<Self> {
        Vec::<Value>::read(value)?.into_iter().map(u32::read).collect()
    }
}

impl Kind for Vec<String> {
    const NAME: &str = "an array of strings";

    fn read(value: Value) -> Option<Self> {
        Vec::<Value>::read(value)?.into_iter().map(String::read).collect()
    }
}

/// One or several strings.
pub(super) struct Strings(pub(super) Vec<String>);

impl Kind for Strings {
    const NAME: &str = "a string or an array of strings";

    fn read(value: Value) -> Option<Self> {
        match value {
            Value::String(one) => Some(Self(vec![one])),
            several => Vec::read(several).map(Self),
        }
    }
}

/// One or several prompts of `/v1/completions`.
pub(super) enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

impl Kind for Prompts {
    const NAME: &str = "a string, an array of strings, an array of token ids, or an array of those";

    fn read(value: Value) -> Option<Self> {
        let first = value.get(0).map(Value::is_array);
        match (value, first) {
            (Value::String(one), _) => Some(Self::Texts(vec![one])),
            (Value::Array(several), Some(true)) => {
                several.into_iter().map(Vec::read).collect::<Option<_>>().map(Self::Tokens)
            }
            (Value::Array(several), _) if several.iter().all(Value::is_string) && !several.is_empty() => {
                Vec::read(Value::Array(several)).map(Self::Texts)
            }
            (tokens, _) => Vec::read(tokens).map(|tokens| Self::Tokens(vec![tokens])),
        }
    }
}
