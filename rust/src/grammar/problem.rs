//! Words for what is wrong with a schema.

use std::fmt::Display;

use serde_json::Value;

/// Result of a check; the error says what is wrong and where.
pub(super) type Checked<T = ()> = std::result::Result<T, String>;

/// A keyword that would not be enforced.
pub(super) fn unsupported(keyword: &str, place: &str) -> String {
    format!("has the keyword `{keyword}` at {place}, which is not supported\nhint: leave it out; the docs list what is")
}

/// A keyword with a value that is not allowed.
pub(super) fn wrong(keyword: &str, place: &str, allowed: &str, got: &Value) -> String {
    format!("has an invalid `{keyword}` at {place}: it must be {allowed}, got {}", shown(got))
}

/// A value as text, cut to a length that a message has room for.
pub(super) fn shown(value: &impl Display) -> String {
    const MAX_CHARS: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
