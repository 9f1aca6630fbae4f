//! Reads the fields of a JSON object.

use serde_json::Value;

use crate::{Error, Result};

/// Checks that the field `name` has an allowed value; the error names the field and its value.
pub fn expect(object: &Value, name: &str, allowed: &str, is_allowed: impl Fn(&Value) -> bool) -> Result<()> {
    let value = &object[name];
    if is_allowed(value) { Ok(()) } else { Err(unsupported(name, allowed, value)) }
}

/// Returns a flag of `object`, or `default` if the flag is missing.
pub fn flag(object: &Value, name: &str, default: bool) -> Result<bool> {
    match &object[name] {
        Value::Null => Ok(default),
        Value::Bool(flag) => Ok(*flag),
        other => Err(unsupported(name, "true or false", other)),
    }
}

pub fn text<'a>(object: &'a Value, name: &str) -> Result<&'a str> {
    object[name].as_str().ok_or_else(|| unsupported(name, "a string", &object[name]))
}

/// Returns the list under `name`, or an empty list if the field is missing.
pub fn list<'a>(object: &'a Value, name: &str) -> Result<&'a [Value]> {
    match &object[name] {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        other => Err(unsupported(name, "a list", other)),
    }
}

pub fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Creates the error for an unsupported component; a long value is truncated.
pub fn unsupported(name: &str, allowed: &str, value: &Value) -> Error {
    let mut got = value.to_string();
    if let Some((cut, _)) = got.char_indices().nth(200) {
        got.truncate(cut);
        got.push('…');
    }
    Error::Tokenizer(format!("unsupported `{name}`: must be {allowed}, got {got}"))
}
