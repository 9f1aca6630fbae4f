//! Stages that split text into pieces one after another, for `tokenizer.json` files with more than one pattern.

use std::ops::Range;

use super::aligned::Origin;
use super::pretokenize::{CustomPattern, Pattern};
use crate::Result;

/// One way to split each piece of the previous stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Splits into a pattern's matches and the text between them.
    Pattern(Pattern),
    /// Splits around the matches of a needle.
    Split {
        /// Text, regular expression or character class to match.
        needle: Needle,
        /// Treatment of a match.
        behavior: Behavior,
        /// Swaps matches and the text between them.
        invert: bool,
    },
    /// Inserts a space before a piece that does not start with one.
    PrefixSpace,
    /// Replaces spaces with another character; may also insert the character at the start of the text and split before
    /// each occurrence.
    Metaspace {
        /// Character that replaces a space.
        replacement: char,
        /// Where to insert the character before a text that does not start with it.
        prepend: Prepend,
        /// Whether to split before each occurrence of the character.
        split: bool,
    },
}

/// What a [`Stage::Split`] matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needle {
    /// This text, which is not empty.
    Text(String),
    /// Any match of a regular expression.
    Regex(CustomPattern),
    /// Each numeric character: `\p{N}`.
    Number,
}

/// Treatment of a match; the names are those in Hugging Face's `tokenizer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    /// Drops the match.
    Removed,
    /// Makes the match a piece.
    Isolated,
    /// Appends the match to the previous piece.
    MergedWithPrevious,
    /// Prepends the match to the next piece.
    MergedWithNext,
    /// Makes one piece of adjacent matches.
    Contiguous,
}

/// Where [`Stage::Metaspace`] inserts its character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepend {
    /// Before every stretch of text between added tokens.
    Always,
    /// Before the whole text only.
    First,
    /// Nowhere.
    Never,
}

/// A range of text, and whether it is a match or lies between matches.
type Span = (Range<usize>, bool);

/// Normalized text to split into pieces, or a piece of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch<'a> {
    /// Text of the stretch.
    pub text: &'a str,
    /// Origin of each byte; empty unless offsets are requested.
    pub origins: &'a [Origin],
    /// Whether the stretch begins the whole text, the only place where some tokenizers insert a space.
    pub is_first: bool,
}

impl Stretch<'_> {
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        Self {
            is_first: self.is_first && range.start == 0,
            origins: self.origins.get(range.clone()).unwrap_or_default(),
            text: &self.text[range],
        }
    }

    /// Returns the origins preceded by those of `num_bytes` inserted bytes, which share the origin of the first
    /// character.
    fn origins_after(&self, num_bytes: usize) -> Vec<Origin> {
        let num_first = self.text.chars().next().map_or(0, char::len_utf8);
        let first = self.origins.get(..num_first).and_then(|first| Some([first.first()?[0], first.last()?[1]]));
        first.into_iter().flat_map(|first| vec![first; num_bytes]).chain(self.origins.iter().copied()).collect()
    }
}

/// Calls `visit` with every piece that `stages` split `stretch` into, in order.
///
/// # Errors
///
/// `Tokenizer` if a custom pattern backtracks too much on this text.
pub fn cut(stages: &[Stage], stretch: Stretch<'_>, visit: &mut dyn FnMut(Stretch<'_>)) -> Result<()> {
    let Some((stage, rest)) = stages.split_first() else {
        visit(stretch);
        return Ok(());
    };
    let Stretch { text, is_first, .. } = stretch;
    match stage {
        Stage::Pattern(pattern) => {
            let mut result = Ok(());
            pattern.for_each_span(text, |start: usize, end: usize| {
                if result.is_ok() {
                    result = cut(rest, stretch.slice(start..end), visit);
                }
            })?;
            result
        }
        Stage::Split { needle, behavior, invert } => {
            let spans = behavior.pieces(needle.spans(text, *invert)?);
            spans.into_iter().try_for_each(|span| cut(rest, stretch.slice(span), visit))
        }
        Stage::PrefixSpace if text.starts_with(' ') => cut(rest, stretch, visit),
        Stage::PrefixSpace => {
            let origins = stretch.origins_after(1);
            cut(rest, Stretch { text: &format!(" {text}"), origins: &origins, is_first }, visit)
        }
        Stage::Metaspace { replacement, prepend, split } => {
            let (text, origins) = meta_spaced(stretch, *replacement, *prepend);
            let stretch = Stretch { text: &text, origins: &origins, is_first };
            if !*split {
                return cut(rest, stretch, visit);
            }
            before_each(&text, *replacement).into_iter().try_for_each(|span| cut(rest, stretch.slice(span), visit))
        }
    }
}

fn meta_spaced(stretch: Stretch<'_>, replacement: char, prepend: Prepend) -> (String, Vec<Origin>) {
    let Stretch { text, origins, is_first } = stretch;
    let replaced = text.replace(' ', replacement.encode_utf8(&mut [0; 4]));
    let num_bytes = |byte: u8| if byte == b' ' { replacement.len_utf8() } else { 1 };
    let bytes = text.bytes().zip(origins);
    let origins = bytes.flat_map(|(byte, &origin)| std::iter::repeat_n(origin, num_bytes(byte))).collect::<Vec<_>>();
    let wanted = prepend == Prepend::Always || prepend == Prepend::First && is_first;
    if !wanted || replaced.starts_with(replacement) {
        return (replaced, origins);
    }
    let origins = Stretch { text: &replaced, origins: &origins, is_first }.origins_after(replacement.len_utf8());
    (format!("{replacement}{replaced}"), origins)
}

fn before_each(text: &str, character: char) -> Vec<Range<usize>> {
    let spans = spans(text, text.match_indices(character).map(|(at, found)| at..at + found.len()));
    Behavior::MergedWithNext.pieces(spans)
}

impl Needle {
    fn spans(&self, text: &str, invert: bool) -> Result<Vec<Span>> {
        let mut found = match self {
            Self::Text(needle) => spans(text, text.match_indices(needle).map(|(at, found)| at..at + found.len())),
            Self::Number => spans(text, text.match_indices(char::is_numeric).map(|(at, found)| at..at + found.len())),
            Self::Regex(pattern) => spans(text, pattern.matches(text)?),
        };
        for (_, is_match) in &mut found {
            *is_match ^= invert;
        }
        Ok(found)
    }
}

/// Returns the matches and the text between them.
fn spans(text: &str, matches: impl IntoIterator<Item = Range<usize>>) -> Vec<Span> {
    let (mut spans, mut end) = (Vec::new(), 0);
    for found in matches {
        if end < found.start {
            spans.push((end..found.start, false));
        }
        end = found.end;
        spans.push((found, true));
    }
    if end < text.len() {
        spans.push((end..text.len(), false));
    }
    spans
}

impl Behavior {
    /// Returns the pieces, none of them empty. An empty match still separates the text around it.
    fn pieces(self, spans: Vec<Span>) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = match self {
            Self::Removed => spans.into_iter().filter(|(_, is_match)| !is_match).map(|(span, _)| span).collect(),
            Self::Isolated => spans.into_iter().map(|(span, _)| span).collect(),
            Self::MergedWithPrevious => joined(spans, |is_match, was_match| is_match && !was_match),
            Self::Contiguous => joined(spans, |is_match, was_match| is_match == was_match),
            Self::MergedWithNext => {
                let reversed = spans.into_iter().rev().collect();
                let mut pieces = joined(reversed, |is_match, was_match| is_match && !was_match);
                pieces.reverse();
                pieces
            }
        };
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}

/// Joins each span with the previous one if `joins` returns true for the two flags. The first span counts as following
/// no match.
fn joined(spans: Vec<Span>, joins: impl Fn(bool, bool) -> bool) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let mut was_match = false;
    for (span, is_match) in spans {
        match pieces.last_mut() {
            Some(last) if joins(is_match, was_match) => *last = last.start.min(span.start)..last.end.max(span.end),
            _ => pieces.push(span),
        }
        was_match = is_match;
    }
    pieces
}
