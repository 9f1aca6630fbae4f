//! Splits the text of an answer into its parts as it arrives: reasoning, text, and calls of functions.
//!
//! A model writes calls in the format it was trained on; [`FORMATS`] lists the formats. [`AnswerParser`] reads an
//! answer one character at a time, so its parts never depend on where deltas end.

mod body;
mod formats;
mod json;
mod parser;
mod parts;
mod pythonic;
mod tagged;
mod xml;

pub use formats::{FORMATS, Format};
pub use parser::{AnswerParser, Setup};
pub use parts::{Kind, Part};
