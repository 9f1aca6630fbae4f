//! What the parsers of calls have in common.

use std::collections::HashMap;

use super::parts::Parts;

/// The declared types of each function's parameters, by name; a type other than `string` only matters as not being it.
pub(super) type Tools = HashMap<String, HashMap<String, String>>;

/// The meaning of one character to the parser of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It may belong to a call; if none follows, it is text.
    Pending,
    /// It belongs to a call that has begun.
    Claimed,
    /// It is the last character of the calls.
    Done,
    /// The calls ended before it, or there is no call at all.
    Over,
}

/// The parser of everything from a call's opening marker to its end.
pub(super) trait Body: std::fmt::Debug + Send + Sync {
    /// Takes the next character.
    fn push(&mut self, letter: char, parts: &mut Parts) -> Step;

    /// Gives the arguments that were held back when the answer ends within a call.
    fn finish(&mut self, _parts: &mut Parts) {}
}

/// Finds the end of a JSON value. Brackets and quotes decide, so that a value with other mistakes has an end as well.
#[derive(Debug, Clone, Default)]
pub(super) struct ValueEnd {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

impl ValueEnd {
    /// Takes the next character: `Claimed` within the value, `Done` for its last character, `Over` for the one after a
    /// number or word.
    pub fn push(&mut self, letter: char) -> Step {
        if self.in_string {
            return self.push_in_string(letter);
        }
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        match letter {
            '"' if self.depth > 0 || is_first => self.in_string = true,
            '{' | '[' if self.depth > 0 || is_first => self.depth += 1,
            '}' | ']' if self.depth > 1 => self.depth -= 1,
            '}' | ']' if self.depth == 1 => return Step::Done,
            _ if self.depth > 0 => {}
            ',' | '}' | ']' | '{' | '[' | '"' => return Step::Over,
            _ if letter.is_whitespace() => return Step::Over,
            _ => {}
        }
        Step::Claimed
    }

    fn push_in_string(&mut self, letter: char) -> Step {
        if std::mem::take(&mut self.is_escaped) {
            return Step::Claimed;
        }
        self.is_escaped = letter == '\\';
        self.in_string = letter != '"';
        if self.in_string || self.depth > 0 { Step::Claimed } else { Step::Done }
    }
}

/// The text as the inside of a JSON string.
pub(super) fn escaped(text: &str) -> String {
    let quoted = quoted(text);
    quoted[1..quoted.len() - 1].to_owned()
}

/// The text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether the character may be part of a function's name.
pub(super) fn is_name(letter: char) -> bool {
    letter.is_alphanumeric() || matches!(letter, '_' | '-' | '.' | ':' | '/')
}
