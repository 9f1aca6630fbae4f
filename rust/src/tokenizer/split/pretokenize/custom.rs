//! The general path: splits text by any regular expression.

use std::ops::Range;
use std::sync::Arc;

use fancy_regex::{Regex, RegexBuilder};

use super::visit::Visit;
use crate::{Error, Result};

/// A regular expression without a scanner of its own.
///
/// Its syntax is that of Hugging Face's libraries, Oniguruma's Ruby dialect: `^` and `$` match at line ends, `\A` and
/// `\z` at the ends of the text, and `a{1,3}+` means `(?:a{1,3})+`.
#[derive(Debug, Clone)]
pub struct CustomPattern {
    text: Box<str>,
    /// Shared between clones, because a compiled expression takes some hundred kilobytes.
    regex: Arc<Regex>,
}

impl PartialEq for CustomPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CustomPattern {}

impl CustomPattern {
    /// Compiles the regular expression `text`.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if `text` is not a regular expression, or is too large.
    pub fn new(text: &str) -> Result<Self> {
        let regex =
            RegexBuilder::new(text).oniguruma_mode(true).multi_line(true).build().map_err(|error| {
                Error::Tokenizer(format!("`pattern` {text:?} is not a regular expression: {error}"))
            })?;
        Ok(Self { text: text.into(), regex: Arc::new(regex) })
    }

    /// Returns the regular expression.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Calls `visit` with the start and end of every match and of the text between matches.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if the expression backtracks too much on this text.
    pub fn for_each_span(&self, text: &str, mut visit: impl Visit) -> Result<()> {
        let mut end = 0;
        let mut visit_to = |border: usize| {
            if border > end {
                visit.piece(end, border);
                end = border;
            }
        };
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|error| self.run_error(&error))?;
            visit_to(found.start());
            visit_to(found.end());
        }
        visit_to(text.len());
        Ok(())
    }

    /// Returns the ranges of all matches, in order.
    ///
    /// # Errors
    ///
    /// Same as [`CustomPattern::for_each_span`].
    pub fn matches(&self, text: &str) -> Result<Vec<Range<usize>>> {
        let range = |found: fancy_regex::Result<fancy_regex::Match<'_>>| found.map(|found| found.range());
        self.regex
            .find_iter(text)
            .map(range)
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| self.run_error(&error))
    }

    fn run_error(&self, error: &fancy_regex::Error) -> Error {
        Error::Tokenizer(format!(
            "`pattern` {:?} can't cut this text: {error}\nhint: cut the text, or use a pattern that backtracks less",
            self.text
        ))
    }
}
