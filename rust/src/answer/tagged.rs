//! Calls whose function's name stands before the arguments, outside of JSON.

use super::body::{Body, Step, Tools, ValueEnd, is_name};
use super::json::JsonCalls;
use super::parts::Parts;

const ARGUMENTS_MARKER: &str = "[ARGS]";
const ID_MARKER: &str = "[CALL_ID]";

/// A JSON object of arguments, given as it arrives.
#[derive(Debug, Default)]
struct Arguments {
    end: ValueEnd,
    has_begun: bool,
}

impl Arguments {
    /// Takes the next character; the call of this name begins with the object's brace.
    fn push(&mut self, letter: char, name: &str, parts: &mut Parts) -> Step {
        if !self.has_begun {
            match letter {
                '{' => parts.begin_call(name),
                _ if letter.is_whitespace() => return Step::Pending,
                _ => return Step::Over,
            }
            self.has_begun = true;
        }
        parts.add_arguments(letter.encode_utf8(&mut [0; 4]));
        self.end.push(letter)
    }
}

#[derive(Debug)]
enum MistralPlace {
    Start,
    Json(Box<JsonCalls>),
    Name,
    Marker(String),
    Arguments(Arguments),
}

/// The parser of Mistral's calls: a JSON array, or a name and an object with `[ARGS]` between them.
#[derive(Debug)]
pub(super) struct MistralCalls {
    json: Option<JsonCalls>,
    name: String,
    place: MistralPlace,
}

impl MistralCalls {
    pub fn new(tools: &Tools) -> Self {
        Self { json: Some(JsonCalls::new(tools, false)), name: String::new(), place: MistralPlace::Start }
    }

    fn start(&mut self, letter: char, parts: &mut Parts) -> Step {
        match (letter, self.json.take()) {
            ('[' | '{', Some(json)) => {
                self.place = MistralPlace::Json(Box::new(json));
                return self.push(letter, parts);
            }
            (_, json) if letter.is_whitespace() => self.json = json,
            _ if is_name(letter) => {
                self.place = MistralPlace::Name;
                self.name.push(letter);
            }
            _ => return Step::Over,
        }
        Step::Pending
    }

    fn name(&mut self, letter: char, parts: &mut Parts) -> Step {
        match letter {
            '{' => {
                self.place = MistralPlace::Arguments(Arguments::default());
                return self.push(letter, parts);
            }
            '[' => self.place = MistralPlace::Marker("[".to_owned()),
            _ if is_name(letter) => self.name.push(letter),
            _ if letter.is_whitespace() => {}
            _ => return Step::Over,
        }
        Step::Pending
    }
}

impl Body for MistralCalls {
    fn push(&mut self, letter: char, parts: &mut Parts) -> Step {
        match &mut self.place {
            MistralPlace::Start => self.start(letter, parts),
            MistralPlace::Json(json) => json.push(letter, parts),
            MistralPlace::Name => self.name(letter, parts),
            MistralPlace::Marker(text) => {
                text.push(letter);
                if text.ends_with(ARGUMENTS_MARKER) {
                    self.place = MistralPlace::Arguments(Arguments::default());
                } else if !ARGUMENTS_MARKER.starts_with(text.as_str())
                    && !ID_MARKER.starts_with(text.as_str())
                    && !text.starts_with(ID_MARKER)
                {
                    return Step::Over;
                }
                Step::Pending
            }
            MistralPlace::Arguments(arguments) => arguments.push(letter, &self.name, parts),
        }
    }
}

const SEPARATOR: &str = "<｜tool▁sep｜>";
const FENCE: &str = "```json";

#[derive(Debug, Default)]
enum DeepSeekPlace {
    /// The name, or in older models the word `function`.
    #[default]
    Head,
    /// Arguments, or in older models the line with the name.
    AfterSeparator,
    Fence(String),
    Arguments(Arguments),
    /// The fence that closes an older model's arguments.
    Tail,
}

/// The parser of DeepSeek's calls: a name and an object, in older models in a fenced block.
#[derive(Debug, Default)]
pub(super) struct DeepSeekCall {
    name: String,
    line: String,
    place: DeepSeekPlace,
}

impl DeepSeekCall {
    fn head(&mut self, letter: char) -> Step {
        self.name.push(letter);
        if let Some(name) = self.name.strip_suffix(SEPARATOR) {
            self.name = name.trim().to_owned();
            self.place = DeepSeekPlace::AfterSeparator;
        }
        Step::Pending
    }

    fn after_separator(&mut self, letter: char, parts: &mut Parts) -> Step {
        match letter {
            '{' if self.line.trim().is_empty() => {
                self.place = DeepSeekPlace::Arguments(Arguments::default());
                return self.push(letter, parts);
            }
            '\n' if !self.line.trim().is_empty() => {
                self.name = self.line.trim().to_owned();
                self.place = DeepSeekPlace::Fence(String::new());
            }
            _ => self.line.push(letter),
        }
        Step::Pending
    }
}

impl Body for DeepSeekCall {
    fn push(&mut self, letter: char, parts: &mut Parts) -> Step {
        match &mut self.place {
            DeepSeekPlace::Head => self.head(letter),
            DeepSeekPlace::AfterSeparator => self.after_separator(letter, parts),
            DeepSeekPlace::Fence(text) => {
                text.push(letter);
                let fence = text.trim_start();
                if fence == FENCE || letter == '{' {
                    let is_brace = letter == '{';
                    self.place = DeepSeekPlace::Arguments(Arguments::default());
                    return if is_brace { self.push(letter, parts) } else { Step::Pending };
                }
                if FENCE.starts_with(fence) { Step::Pending } else { Step::Over }
            }
            DeepSeekPlace::Arguments(arguments) => {
                let step = arguments.push(letter, &self.name, parts);
                if step != Step::Done {
                    return step;
                }
                self.place = DeepSeekPlace::Tail;
                Step::Claimed
            }
            DeepSeekPlace::Tail if letter == '`' => Step::Claimed,
            DeepSeekPlace::Tail if letter.is_whitespace() => Step::Pending,
            DeepSeekPlace::Tail => Step::Over,
        }
    }
}
