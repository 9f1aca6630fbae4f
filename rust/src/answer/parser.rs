//! The parser of whole answers: finds reasoning and the beginnings of calls, and leaves each call to its format.

use std::collections::HashMap;

use super::body::{Body, Step, Tools};
use super::formats::Format;
use super::parts::{Kind, Part, Parts};
use crate::{Error, Result};

/// Everything that a parser depends on.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The format of calls; `None` leaves calls in the text.
    pub format: Option<&'static Format>,
    /// Texts around the reasoning at the beginning of an answer; `None` leaves reasoning in the text.
    pub reasoning: Option<(String, String)>,
    /// Whether the prompt ends within reasoning, so that the answer begins in it.
    pub starts_in_reasoning: bool,
    /// The functions that may be called: the declared types of their parameters, by name.
    pub tools: HashMap<String, HashMap<String, String>>,
}

/// What a marker in the text means.
#[derive(Debug, Clone, Copy)]
enum Role {
    /// Calls begin.
    Start(&'static str),
    /// Reasoning begins.
    Reasoning,
    /// It belongs to no part.
    Dropped,
}

#[derive(Debug)]
enum State {
    Text,
    Reasoning,
    Calls(Box<dyn Body>),
}

/// Splits an answer into parts as it arrives.
///
/// Text that may still become a marker is held back. White space next to reasoning and calls belongs to no part. A call
/// begins when its function's name is known; what turns out to be no call is text. An answer that ends within a call
/// gives the call's arguments as far as they go.
///
/// ```
/// use llm_core::answer::{AnswerParser, Format, Kind, Setup};
///
/// let mut parser = AnswerParser::new(Setup { format: Format::named("hermes"), ..Setup::default() })?;
/// let mut parts = parser.push("Sure.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool");
/// parts.extend(parser.push("_call>"));
/// parts.extend(parser.finish());
/// let parts: Vec<_> = parts.iter().map(|part| (part.kind, part.text.as_str())).collect();
/// assert_eq!(parts, [(Kind::Text, "Sure."), (Kind::Call, "f"), (Kind::Arguments, "{\"x\": 1}")]);
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug)]
pub struct AnswerParser {
    format: Option<&'static Format>,
    reasoning: Option<(String, String)>,
    tools: Tools,
    state: State,
    /// Text or reasoning that may become a marker, with the white space before it; in calls, what may still be text.
    held: String,
    /// Whether text or reasoning has begun, or a call: from then on, nothing can begin an answer.
    has_begun: bool,
    /// Whether white space is left out until the next other character.
    trims: bool,
    parts: Parts,
}

impl AnswerParser {
    /// Creates a parser at the beginning of an answer.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a reasoning marker is empty, or the answer starts in reasoning without markers.
    pub fn new(setup: Setup) -> Result<Self> {
        let Setup { format, reasoning, starts_in_reasoning, tools } = setup;
        if reasoning.as_ref().is_some_and(|(start, end)| start.is_empty() || end.is_empty()) {
            return Err(Error::InvalidArgument(format!("`reasoning` markers must not be empty, got {reasoning:?}")));
        }
        if starts_in_reasoning && reasoning.is_none() {
            return Err(Error::InvalidArgument("`starts_in_reasoning` needs `reasoning` markers, got none".to_owned()));
        }
        let mut parser = Self {
            format,
            reasoning,
            tools,
            state: State::Text,
            held: String::new(),
            has_begun: false,
            trims: false,
            parts: Parts::default(),
        };
        if starts_in_reasoning {
            parser.begin_reasoning();
        }
        Ok(parser)
    }

    /// Whether the answer is in its reasoning.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    /// Takes the next text of the answer and returns the parts that are now certain.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        for letter in text.chars() {
            self.push_letter(letter);
        }
        self.parts.take()
    }

    /// Ends the answer and returns everything that was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.release(self.held.len(), Kind::Text),
            State::Reasoning => self.release(self.held.len(), Kind::Reasoning),
            State::Calls(mut body) => {
                body.finish(&mut self.parts);
                self.release(self.held.len(), Kind::Text);
            }
        }
        self.parts.take()
    }

    fn push_letter(&mut self, letter: char) {
        match &mut self.state {
            State::Text => self.push_text(letter),
            State::Reasoning => self.push_reasoning(letter),
            State::Calls(body) => {
                let step = body.push(letter, &mut self.parts);
                self.take_step(step, letter);
            }
        }
    }

    fn take_step(&mut self, step: Step, letter: char) {
        match step {
            Step::Pending => self.held.push(letter),
            Step::Claimed => {
                self.held.clear();
                (self.has_begun, self.trims) = (true, true);
            }
            Step::Done => {
                self.held.clear();
                self.state = State::Text;
            }
            Step::Over => {
                self.state = State::Text;
                self.release(self.held.len(), Kind::Text);
                self.has_begun = true; // what did not become a call is not tried again
                self.push_text(letter);
            }
        }
    }

    fn push_text(&mut self, letter: char) {
        let at_start = !self.has_begun && self.held.chars().all(char::is_whitespace);
        if at_start && self.format.is_some_and(|format| format.bare.contains(&letter)) {
            return self.begin_calls(None, letter);
        }
        self.held.push(letter);
        let ended = self.markers().find(|(marker, _)| self.held.ends_with(marker));
        let Some((marker, role)) = ended.map(|(marker, role)| (marker.len(), role)) else {
            let certain = self.certain_len(self.markers().map(|(marker, _)| marker));
            return self.release(certain, Kind::Text);
        };
        let before = self.held[..self.held.len() - marker].trim_end().len();
        self.release(before, Kind::Text);
        match role {
            Role::Start(marker) => self.begin_calls(Some(marker), letter),
            Role::Reasoning => self.begin_reasoning(),
            Role::Dropped => {
                self.held.clear();
                self.trims = true;
            }
        }
    }

    fn push_reasoning(&mut self, letter: char) {
        self.held.push(letter);
        let Some((start, end)) = &self.reasoning else { return };
        if self.held.ends_with(end.as_str()) {
            let inner = self.held[..self.held.len() - end.len()].trim_end().len();
            self.release(inner, Kind::Reasoning);
            self.held.clear();
            (self.state, self.has_begun, self.trims) = (State::Text, false, true);
            self.reasoning = None;
        } else if self.trims && self.held.trim_start() == start {
            self.held.clear(); // the model repeats the marker with which its prompt ends
        } else {
            let certain = self.certain_len([start.as_str(), end.as_str()].into_iter());
            self.release(certain, Kind::Reasoning);
        }
    }

    fn begin_reasoning(&mut self) {
        self.held.clear();
        (self.state, self.trims) = (State::Reasoning, true);
    }

    /// Begins calls after their marker, which is held, or without a marker at a letter that isn't.
    fn begin_calls(&mut self, marker: Option<&str>, letter: char) {
        let Some(format) = self.format else { return };
        self.state = State::Calls((format.body)(&self.tools, marker));
        if marker.is_none() {
            self.push_letter(letter);
        }
    }

    /// The markers that count here, each with its role.
    fn markers(&self) -> impl Iterator<Item = (&str, Role)> + Clone {
        let of = |texts: fn(&'static Format) -> &'static [&'static str]| self.format.map_or(&[][..], texts).iter();
        let has_calls = self.parts.num_calls() > 0;
        let starts = of(|format| format.starts).map(|&marker| (marker, Role::Start(marker)));
        let dropped = of(|format| format.around).chain(of(|format| format.ends).filter(move |_| has_calls));
        let reasoning = self.reasoning.iter().filter(|_| !self.has_begun);
        starts
            .chain(dropped.map(|&marker| (marker, Role::Dropped)))
            .chain(reasoning.map(|(start, _)| (start.as_str(), Role::Reasoning)))
    }

    /// The length of the held text that can't become a marker, or white space before one.
    fn certain_len<'a>(&self, markers: impl Iterator<Item = &'a str> + Clone) -> usize {
        let may_begin =
            |&(start, _): &(usize, char)| markers.clone().any(|marker| marker.starts_with(&self.held[start..]));
        let certain = self.held.char_indices().find(may_begin).map_or(self.held.len(), |(start, _)| start);
        match markers.clone().next() {
            Some(_) => self.held[..certain].trim_end().len(),
            None => certain,
        }
    }

    /// Gives the first bytes of the held text as a part.
    fn release(&mut self, len: usize, kind: Kind) {
        let rest = self.held.split_off(len);
        let text = std::mem::replace(&mut self.held, rest);
        let text = if self.trims { text.trim_start() } else { &text };
        if !text.is_empty() {
            self.parts.add(kind, text);
            (self.has_begun, self.trims) = (true, false);
        }
    }
}
