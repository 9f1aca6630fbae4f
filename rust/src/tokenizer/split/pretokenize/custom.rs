//! The general path: any regular expression.

use std::ops::Range;
use std::sync::Arc;

use fancy_regex::{Regex, RegexBuilder};

use super::visit::Visit;
use crate::{Error, Result};

/// A regular expression that no scanner is written for.
///
/// It is read as Hugging Face's libraries read it, in Oniguruma's Ruby dialect: `^` and `$` are at line ends, `\A` and
/// `\z` at those of the text, and `a{1,3}+` is `(?:a{1,3})+`.
#[derive(Debug, Clone)]
pub struct CustomPattern {
    text: Box<str>,
    /// Shared: a compiled expression is some hundred kilobytes.
    regex: Arc<Regex>,
}

impl PartialEq for CustomPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CustomPattern {}

impl CustomPattern {
    /// Compiles `text`.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if it is not a regular expression, or one too large.
    pub fn new(text: &str) -> Result<Self> {
        let regex =
            RegexBuilder::new(text).oniguruma_mode(true).multi_line(true).build().map_err(|error| {
                Error::Tokenizer(format!("`pattern` {text:?} is not a regular expression: {error}"))
            })?;
        Ok(Self { text: text.into(), regex: Arc::new(regex) })
    }

    /// The regular expression.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Calls `visit` with where every match, and what lies between matches, starts and ends.
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

    /// Where it matches, in order.
    ///
    /// # Errors
    ///
    /// As [`CustomPattern::for_each_piece`].
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
