//! Calls as JSON objects with a name and arguments, one after another or in an array.

use super::body::{Body, Step, Tools, ValueEnd};
use super::parts::Parts;

/// Keys of a function's name.
const NAME_KEYS: [&str; 2] = ["name", "function"];
/// Keys of the arguments.
const ARGUMENT_KEYS: [&str; 2] = ["arguments", "parameters"];
/// Other keys that a call may have; in an answer without markers, any further key means that it is no call.
const OTHER_KEYS: [&str; 3] = ["type", "id", "call_id"];

/// The value being read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Name,
    Arguments,
    Other,
}

#[derive(Debug)]
enum Place {
    /// Between calls.
    Between,
    /// In an object, before a key or the end.
    BeforeKey,
    Key,
    Colon,
    BeforeValue,
    Value(Field, ValueEnd),
    AfterValue,
}

/// The parser of JSON calls.
#[derive(Debug)]
pub(super) struct JsonCalls {
    /// In an answer that only looks like a call, the names of functions decide; `None` if markers do.
    known: Option<Vec<String>>,
    place: Place,
    in_array: bool,
    /// Whether the keys are in an object below the key `function`.
    is_nested: bool,
    key: String,
    /// The name or other text of the value being read, or arguments that come before the name.
    text: String,
    early_arguments: String,
    name: Option<String>,
    has_begun: bool,
    has_arguments: bool,
}

impl JsonCalls {
    pub fn new(tools: &Tools, is_bare: bool) -> Self {
        Self {
            known: is_bare.then(|| tools.keys().cloned().collect()),
            place: Place::Between,
            in_array: false,
            is_nested: false,
            key: String::new(),
            text: String::new(),
            early_arguments: String::new(),
            name: None,
            has_begun: false,
            has_arguments: false,
        }
    }

    fn between(&mut self, letter: char, parts: &Parts) -> Step {
        match letter {
            '{' => {
                (self.name, self.has_begun, self.has_arguments) = (None, false, false);
                self.early_arguments.clear();
                self.place = Place::BeforeKey;
            }
            '[' if !self.in_array && parts.num_calls() == 0 => self.in_array = true,
            ']' if self.in_array && parts.num_calls() > 0 => return Step::Done,
            ',' | ';' if parts.num_calls() > 0 => {}
            _ if letter.is_whitespace() => {}
            _ => return Step::Over,
        }
        Step::Pending
    }

    fn before_value(&mut self, letter: char, parts: &mut Parts) -> Step {
        if letter.is_whitespace() {
            return self.claimed();
        }
        let is_name = NAME_KEYS.contains(&self.key.as_str()) && self.name.is_none();
        let field = match letter {
            '"' if is_name => Field::Name,
            '{' if self.key == "function" && !self.is_nested => {
                (self.is_nested, self.place) = (true, Place::BeforeKey);
                return self.claimed();
            }
            _ if ARGUMENT_KEYS.contains(&self.key.as_str()) && !self.has_arguments => Field::Arguments,
            _ if self.known.is_some() && !OTHER_KEYS.contains(&self.key.as_str()) => return Step::Over,
            _ => Field::Other,
        };
        self.text.clear();
        self.has_arguments |= matches!(field, Field::Arguments);
        self.place = Place::Value(field, ValueEnd::default());
        self.value(letter, parts)
    }

    fn value(&mut self, letter: char, parts: &mut Parts) -> Step {
        let Place::Value(field, end) = &mut self.place else { return Step::Over };
        let (field, step) = (*field, end.push(letter));
        if step != Step::Over {
            self.text.push(letter);
            if field == Field::Arguments && !self.text.starts_with(['"', 'n']) {
                self.add_arguments(letter.encode_utf8(&mut [0; 4]), parts);
            }
        }
        if step == Step::Claimed {
            return self.claimed();
        }
        let is_valid = match field {
            Field::Name => self.take_name(parts),
            Field::Arguments => self.take_held_arguments(parts),
            Field::Other => true,
        };
        self.place = Place::AfterValue;
        match (is_valid, step) {
            (false, _) => Step::Over,
            (true, Step::Over) => self.after_value(letter, parts),
            _ => self.claimed(),
        }
    }

    /// Takes the name that was read; `false` if it is none.
    fn take_name(&mut self, parts: &mut Parts) -> bool {
        let Ok(name) = serde_json::from_str::<String>(&self.text) else { return false };
        if name.is_empty() || self.known.as_ref().is_some_and(|known| !known.is_empty() && !known.contains(&name)) {
            return false;
        }
        self.name = Some(name);
        if self.known.is_none() || self.has_arguments {
            self.begin(parts);
        }
        true
    }

    /// Takes arguments that could not be given piece by piece: `null`, or JSON text in a string.
    fn take_held_arguments(&mut self, parts: &mut Parts) -> bool {
        let text = std::mem::take(&mut self.text);
        let inner = match text.as_str() {
            "" => {
                self.has_arguments = false;
                return true;
            }
            "null" => "{}".to_owned(),
            _ if text.starts_with('"') => match serde_json::from_str::<String>(&text) {
                Ok(inner) if inner.trim_start().starts_with('{') => inner,
                _ => text,
            },
            _ if text.starts_with('n') => text,
            _ => return true,
        };
        self.add_arguments(&inner, parts);
        true
    }

    fn add_arguments(&mut self, text: &str, parts: &mut Parts) {
        if !self.has_begun && self.name.is_some() {
            self.begin(parts);
        }
        match self.has_begun {
            true => parts.add_arguments(text),
            false => self.early_arguments.push_str(text),
        }
    }

    fn begin(&mut self, parts: &mut Parts) {
        self.has_begun = true;
        parts.begin_call(self.name.as_deref().unwrap_or_default());
        parts.add_arguments(&std::mem::take(&mut self.early_arguments));
    }

    fn after_value(&mut self, letter: char, parts: &mut Parts) -> Step {
        match letter {
            ',' => self.place = Place::BeforeKey,
            '}' => return self.end_object(parts),
            _ if letter.is_whitespace() => {}
            _ => {
                self.complete(parts);
                return Step::Over;
            }
        }
        self.claimed()
    }

    fn end_object(&mut self, parts: &mut Parts) -> Step {
        if std::mem::take(&mut self.is_nested) {
            self.place = Place::AfterValue;
            return self.claimed();
        }
        let has_known_name = self.known.as_ref().is_none_or(|known| !known.is_empty());
        if !self.has_begun && self.name.is_some() && has_known_name {
            self.begin(parts);
        }
        if !self.has_begun {
            self.place = Place::Between;
            return Step::Over;
        }
        self.complete(parts);
        self.place = Place::Between;
        Step::Claimed
    }

    /// Gives a call without arguments empty ones.
    fn complete(&mut self, parts: &mut Parts) {
        if self.has_begun && !std::mem::replace(&mut self.has_arguments, true) {
            parts.add_arguments("{}");
        }
    }

    fn claimed(&self) -> Step {
        if self.has_begun { Step::Claimed } else { Step::Pending }
    }
}

impl Body for JsonCalls {
    fn push(&mut self, letter: char, parts: &mut Parts) -> Step {
        match &self.place {
            Place::Between => self.between(letter, parts),
            Place::BeforeKey => match letter {
                '"' => {
                    self.key.clear();
                    self.place = Place::Key;
                    self.claimed()
                }
                '}' => self.end_object(parts),
                _ if letter.is_whitespace() => self.claimed(),
                _ => Step::Over,
            },
            Place::Key => {
                match letter {
                    '"' => self.place = Place::Colon,
                    _ => self.key.push(letter),
                }
                self.claimed()
            }
            Place::Colon => match letter {
                ':' => {
                    self.place = Place::BeforeValue;
                    self.claimed()
                }
                _ if letter.is_whitespace() => self.claimed(),
                _ => Step::Over,
            },
            Place::BeforeValue => self.before_value(letter, parts),
            Place::Value(..) => self.value(letter, parts),
            Place::AfterValue => self.after_value(letter, parts),
        }
    }
}
