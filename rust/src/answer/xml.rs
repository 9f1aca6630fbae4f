//! Calls in the XML-like format of Qwen's coder models, whose values are plain text.

use std::collections::HashMap;

use super::body::{Body, Step, Tools, escaped, is_name, quoted};
use super::parts::Parts;

const BLOCK: &str = "<tool_call>";
const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const VALUE_END: &str = "</parameter>";
const FUNCTION_END: &str = "</function>";

#[derive(Debug)]
enum Place {
    /// Before the tag of the function.
    BeforeFunction,
    FunctionName,
    /// Before the tag of a parameter or the end of the function.
    BetweenParameters,
    ParameterName,
    Value,
}

/// The parser of one call.
#[derive(Debug)]
pub(super) struct XmlCall {
    tools: Tools,
    /// The declared types of the function's parameters.
    types: HashMap<String, String>,
    place: Place,
    /// A tag, name or value as far as it was read.
    text: String,
    num_parameters: usize,
    /// Whether the value is a string, which is given as it arrives.
    is_string: bool,
    /// Whether the value has begun after its first line break.
    has_begun: bool,
}

impl XmlCall {
    /// Creates the parser of what follows a marker: the block's tag, or the beginning of the function's.
    pub fn new(tools: &Tools, marker: Option<&str>) -> Self {
        Self {
            tools: tools.clone(),
            types: HashMap::new(),
            place: if marker == Some(BLOCK) { Place::BeforeFunction } else { Place::FunctionName },
            text: String::new(),
            num_parameters: 0,
            is_string: false,
            has_begun: false,
        }
    }

    /// Reads a tag after white space; returns whether it is complete, or `None` if it is another text.
    fn read_tag(&mut self, letter: char, tags: &[&'static str]) -> Option<Option<&'static str>> {
        if self.text.is_empty() && letter.is_whitespace() {
            return Some(None);
        }
        self.text.push(letter);
        let found = tags.iter().find(|tag| tag.starts_with(&self.text))?;
        let is_complete = *found == self.text;
        if is_complete {
            self.text.clear();
        }
        Some(is_complete.then_some(found))
    }

    fn before_function(&mut self, letter: char) -> Step {
        match self.read_tag(letter, &[FUNCTION]) {
            None => return Step::Over,
            Some(None) => {}
            Some(Some(_)) => self.place = Place::FunctionName,
        }
        Step::Pending
    }

    fn function_name(&mut self, letter: char, parts: &mut Parts) -> Step {
        if letter != '>' {
            self.text.push(letter);
            return if is_name(letter) { Step::Pending } else { Step::Over };
        }
        if self.text.is_empty() {
            return Step::Over;
        }
        parts.begin_call(&self.text);
        parts.add_arguments("{");
        self.types = self.tools.remove(&self.text).unwrap_or_default();
        self.text.clear();
        self.place = Place::BetweenParameters;
        Step::Claimed
    }

    fn between_parameters(&mut self, letter: char, parts: &mut Parts) -> Step {
        match self.read_tag(letter, &[PARAMETER, FUNCTION_END]) {
            None => {
                parts.add_arguments("}");
                return Step::Over;
            }
            Some(None) => {}
            Some(Some(PARAMETER)) => self.place = Place::ParameterName,
            Some(Some(_)) => {
                parts.add_arguments("}");
                return Step::Done;
            }
        }
        Step::Claimed
    }

    fn parameter_name(&mut self, letter: char, parts: &mut Parts) -> Step {
        if letter != '>' {
            self.text.push(letter);
            return Step::Claimed;
        }
        let name = std::mem::take(&mut self.text);
        let separator = if self.num_parameters == 0 { "" } else { ", " };
        parts.add_arguments(&format!("{separator}{}: ", quoted(&name)));
        self.num_parameters += 1;
        self.is_string = self.types.get(&name).is_some_and(|kind| kind == "string");
        self.has_begun = false;
        self.place = Place::Value;
        if self.is_string {
            parts.add_arguments("\"");
        }
        Step::Claimed
    }

    fn value(&mut self, letter: char, parts: &mut Parts) -> Step {
        if !std::mem::replace(&mut self.has_begun, true) && letter == '\n' {
            return Step::Claimed;
        }
        self.text.push(letter);
        if let Some(value) = self.text.strip_suffix(VALUE_END) {
            let value = value.strip_suffix('\n').unwrap_or(value).to_owned();
            self.end_value(&value, parts);
            self.place = Place::BetweenParameters;
        } else if self.is_string {
            // A line break before the end tag belongs to no value, so it is held back with the tag.
            let is_end = |start: usize| {
                let rest = &self.text[start..];
                VALUE_END.starts_with(rest.strip_prefix('\n').unwrap_or(rest))
            };
            let certain = self.text.char_indices().map(|(start, _)| start).find(|&start| is_end(start));
            let rest = self.text.split_off(certain.unwrap_or(self.text.len()));
            parts.add_arguments(&escaped(&std::mem::replace(&mut self.text, rest)));
        }
        Step::Claimed
    }

    fn end_value(&mut self, value: &str, parts: &mut Parts) {
        self.text.clear();
        if self.is_string {
            return parts.add_arguments(&(escaped(value) + "\""));
        }
        let word = match value.trim() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        match serde_json::from_str::<serde_json::Value>(word) {
            Ok(_) => parts.add_arguments(word),
            Err(_) => parts.add_arguments(&quoted(value)),
        }
    }
}

impl Body for XmlCall {
    fn push(&mut self, letter: char, parts: &mut Parts) -> Step {
        match self.place {
            Place::BeforeFunction => self.before_function(letter),
            Place::FunctionName => self.function_name(letter, parts),
            Place::BetweenParameters => self.between_parameters(letter, parts),
            Place::ParameterName => self.parameter_name(letter, parts),
            Place::Value => self.value(letter, parts),
        }
    }

    fn finish(&mut self, parts: &mut Parts) {
        if matches!(self.place, Place::Value) {
            let text = if self.is_string { escaped(&self.text) } else { std::mem::take(&mut self.text) };
            parts.add_arguments(&text);
        }
    }
}
