//! What the generated schemas need beyond the derivation.

use schemars::{Schema, transform};
use serde_json::Value;

/// A status has no defaults in its schema: what the operator did not write is unknown and not empty.
pub(super) fn without_defaults(schema: &mut Schema) {
    schema.remove("default");
    transform::transform_subschemas(&mut without_defaults, schema);
}

/// An optional field is absent, never null: the API server then drops a null before the rules see it, so that `has()`
/// says what it seems to say.
pub(super) fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            schema.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(alternatives)) = schema.get("anyOf") {
        let mut real = alternatives.iter().filter(|schema| schema.get("type").is_none_or(|name| name != "null"));
        if let (Some(Value::Object(only)), None) = (real.next().cloned(), real.next()) {
            schema.remove("anyOf");
            for (key, value) in only {
                // The field's own description says more than that of its type.
                if schema.get(&key).is_none() {
                    schema.insert(key, value);
                }
            }
        }
    }
    transform::transform_subschemas(&mut without_null, schema);
}
