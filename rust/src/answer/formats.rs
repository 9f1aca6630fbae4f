//! The table of formats.

use super::body::{Body, Tools};
use super::json::JsonCalls;
use super::pythonic::PythonicCalls;
use super::tagged::{DeepSeekCall, MistralCalls};
use super::xml::XmlCall;

/// The way a family of models writes calls of functions.
#[derive(Debug)]
pub struct Format {
    /// The format's name in settings.
    pub name: &'static str,
    /// Texts that begin calls.
    pub starts: &'static [&'static str],
    /// Texts that belong to no part: what surrounds all calls, and ends of calls after the first call.
    pub around: &'static [&'static str],
    /// Texts that end calls; without a call before, they are text.
    pub ends: &'static [&'static str],
    /// Texts within calls; like the others, they may be special tokens.
    pub within: &'static [&'static str],
    /// Characters that begin calls if an answer begins with them.
    pub bare: &'static [char],
    pub(super) body: fn(&Tools, marker: Option<&str>) -> Box<dyn Body>,
}

/// All formats.
pub static FORMATS: [Format; 7] = [
    Format {
        name: "hermes",
        starts: &["<tool_call>"],
        around: &[],
        ends: &["</tool_call>"],
        within: &[],
        bare: &[],
        body: |tools, marker| Box::new(JsonCalls::new(tools, marker.is_none())),
    },
    Format {
        name: "qwen_coder",
        starts: &["<tool_call>", "<function="],
        around: &[],
        ends: &["</tool_call>"],
        within: &["</function>", "<parameter=", "</parameter>"],
        bare: &[],
        body: |tools, marker| Box::new(XmlCall::new(tools, marker)),
    },
    Format {
        name: "llama3_json",
        starts: &["<|python_tag|>"],
        around: &[],
        ends: &[],
        within: &[],
        bare: &['{'],
        body: |tools, marker| Box::new(JsonCalls::new(tools, marker.is_none())),
    },
    Format {
        name: "llama4_pythonic",
        starts: &["<|python_start|>"],
        around: &[],
        ends: &["<|python_end|>"],
        within: &[],
        bare: &['['],
        body: |tools, marker| Box::new(PythonicCalls::new(tools, marker.is_none())),
    },
    Format {
        name: "mistral",
        starts: &["[TOOL_CALLS]"],
        around: &[],
        ends: &[],
        within: &["[CALL_ID]", "[ARGS]"],
        bare: &[],
        body: |tools, _| Box::new(MistralCalls::new(tools)),
    },
    Format {
        name: "deepseek",
        starts: &["<｜tool▁call▁begin｜>"],
        around: &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
        ends: &["<｜tool▁call▁end｜>"],
        within: &["<｜tool▁sep｜>"],
        bare: &[],
        body: |_, _| Box::new(DeepSeekCall::default()),
    },
    Format {
        name: "json",
        starts: &[],
        around: &[],
        ends: &[],
        within: &[],
        bare: &['{', '['],
        body: |tools, marker| Box::new(JsonCalls::new(tools, marker.is_none())),
    },
];

impl Format {
    /// All texts that mark calls, in answers and so in the templates that render earlier calls.
    pub fn markers(&self) -> impl Iterator<Item = &'static str> {
        self.starts.iter().chain(self.around).chain(self.ends).chain(self.within).copied()
    }

    /// Returns the format of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.name == name)
    }
}
