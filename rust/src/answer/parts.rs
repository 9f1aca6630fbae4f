//! Parts of an answer.

/// The kind of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Text for the reader.
    Text,
    /// Text of the model's reasoning.
    Reasoning,
    /// The beginning of a call; the text is the function's name.
    Call,
    /// A piece of the JSON text of a call's arguments.
    Arguments,
}

impl Kind {
    /// The kind's name in Python.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Reasoning => "reasoning",
            Self::Call => "call",
            Self::Arguments => "arguments",
        }
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What the text is.
    pub kind: Kind,
    /// Index of the call, counted from 0; `None` for text and reasoning.
    pub call: Option<usize>,
    /// The text.
    pub text: String,
}

/// Collects parts and joins adjacent ones of a kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    found: Vec<Part>,
    num_calls: usize,
}

impl Parts {
    /// Adds text or reasoning.
    pub fn add(&mut self, kind: Kind, text: &str) {
        self.push(kind, None, text);
    }

    /// Begins the next call.
    pub fn begin_call(&mut self, name: &str) {
        self.found.push(Part { kind: Kind::Call, call: Some(self.num_calls), text: name.to_owned() });
        self.num_calls += 1;
    }

    /// Adds to the arguments of the last call.
    pub fn add_arguments(&mut self, text: &str) {
        self.push(Kind::Arguments, self.num_calls.checked_sub(1), text);
    }

    /// Number of calls begun so far, including those taken.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Returns all parts since the last call.
    pub fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.found)
    }

    fn push(&mut self, kind: Kind, call: Option<usize>, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.found.last_mut() {
            Some(last) if last.kind == kind && last.call == call => last.text.push_str(text),
            _ => self.found.push(Part { kind, call, text: text.to_owned() }),
        }
    }
}
