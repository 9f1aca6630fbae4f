//! Ways to cut text into pieces, one after the other, for `tokenizer.json` files that have more than one pattern.

use std::ops::Range;

use super::pretokenize::{CustomPattern, Pattern};
use crate::Result;

/// One way to cut each piece that the stage before left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Pieces of a pattern: its matches and what lies between.
    Pattern(Pattern),
    /// Pieces around what is looked for.
    Split {
        /// What is looked for.
        needle: Needle,
        /// What becomes of it.
        behavior: Behavior,
        /// Takes what lies between for what is looked for.
        invert: bool,
    },
    /// A space before a piece that has none.
    PrefixSpace,
    /// Spaces become another character, which may begin the text and every piece.
    Metaspace {
        /// The character for a space.
        replacement: char,
        /// Where it is put before a text that does not begin with it.
        prepend: Prepend,
        /// Cuts before each.
        split: bool,
    },
}

/// What a [`Stage::Split`] looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needle {
    /// This text, not empty.
    Text(String),
    /// Any match of a regular expression.
    Regex(CustomPattern),
    /// Each number character: `\p{N}`.
    Number,
}

/// What becomes of a match; names as in Hugging Face's `tokenizer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    /// It is left out.
    Removed,
    /// It is a piece.
    Isolated,
    /// It ends the piece before it.
    MergedWithPrevious,
    /// It begins the piece after it.
    MergedWithNext,
    /// It is one piece with the matches beside it.
    Contiguous,
}

/// Where [`Stage::Metaspace`] puts its character first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepend {
    /// Before every stretch of text between added tokens.
    Always,
    /// Before the whole text.
    First,
    /// Nowhere.
    Never,
}

/// A match or what lies between two.
type Span = (Range<usize>, bool);

/// Calls `visit` with every piece that `stages` cut `text` into, in order.
///
/// `is_first` says whether `text` begins the whole text.
///
/// # Errors
///
/// `Tokenizer` if a custom pattern backtracks too much on this text.
pub fn cut(stages: &[Stage], text: &str, is_first: bool, visit: &mut dyn FnMut(&str)) -> Result<()> {
    let Some((stage, rest)) = stages.split_first() else {
        visit(text);
        return Ok(());
    };
    match stage {
        Stage::Pattern(pattern) if rest.is_empty() => pattern.for_each_piece(text, visit),
        Stage::Pattern(pattern) => {
            let mut result = Ok(());
            pattern.for_each_piece(text, |piece| {
                if result.is_ok() {
                    result = cut(rest, piece, is_first && starts(piece, text), visit);
                }
            })?;
            result
        }
        Stage::Split { needle, behavior, invert } => {
            let spans = behavior.pieces(needle.spans(text, *invert)?);
            spans.into_iter().try_for_each(|span| cut(rest, &text[span.clone()], is_first && span.start == 0, visit))
        }
        Stage::PrefixSpace if text.starts_with(' ') => cut(rest, text, is_first, visit),
        Stage::PrefixSpace => cut(rest, &format!(" {text}"), is_first, visit),
        Stage::Metaspace { replacement, prepend, split } => {
            let text = meta_spaced(text, *replacement, *prepend, is_first);
            if !*split {
                return cut(rest, &text, is_first, visit);
            }
            let pieces = before_each(&text, *replacement);
            pieces.into_iter().try_for_each(|span| cut(rest, &text[span.clone()], is_first && span.start == 0, visit))
        }
    }
}

/// Whether `piece` is the beginning of `text`, of which it is a part.
fn starts(piece: &str, text: &str) -> bool {
    std::ptr::eq(piece.as_ptr(), text.as_ptr())
}

fn meta_spaced(text: &str, replacement: char, prepend: Prepend, is_first: bool) -> String {
    let replaced = text.replace(' ', replacement.encode_utf8(&mut [0; 4]));
    let wanted = prepend == Prepend::Always || prepend == Prepend::First && is_first;
    if wanted && !replaced.starts_with(replacement) { format!("{replacement}{replaced}") } else { replaced }
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

/// Matches and what lies between.
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
    /// The pieces, none empty. An empty match still parts what it stands between.
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

/// Joins each span with the one before it where `joins` says so of both; before the first lies no match.
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
