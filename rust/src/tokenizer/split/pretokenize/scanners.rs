//! One scanner for each published pattern: returns the length in bytes of the first piece of a text that is not empty.
//!
//! A piece does not depend on the text before it. No scanner reads a character more than twice, so all scanners are
//! linear. They accept any text; [`super::blocks`] finds the same borders faster where text is ASCII.

use super::classes::{BLANK, CASELESS, Classes, LEAD, LETTER, LOWER, MARK, NEWLINE, NUMBER, SYMBOL, UPPER, WHITE};

/// The rule for the end of a run of white space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WhiteRule {
    /// `\s+(?!\S)|\s+`
    LeaveLast,
    /// `\s*[\r\n]+|\s+(?!\S)|\s+`
    EndAtNewline,
    /// `\s++$|\s*[\r\n]+|\s+(?!\S)|\s+`
    WholeAtEndOfText,
}

/// Scans a piece of [`Pattern::Gpt2`](super::Pattern::Gpt2).
pub fn gpt2(classes: &Classes, text: &[u8]) -> usize {
    if let Some(len) = contraction_len(text, false) {
        return len;
    }
    let body = usize::from(text.starts_with(b" "));
    for kind in [LETTER, NUMBER, SYMBOL] {
        if let Some(len) = classes.match_at(text, body, kind) {
            return classes.run_end(text, body + len, kind);
        }
    }
    white_len(classes, text, WhiteRule::LeaveLast)
}

/// Scans a piece of [`Pattern::Gpt4`](super::Pattern::Gpt4).
pub fn gpt4(classes: &Classes, text: &[u8]) -> usize {
    gpt4_like(classes, text, 3, WhiteRule::EndAtNewline)
}

/// Scans a piece of [`Pattern::Cl100k`](super::Pattern::Cl100k).
pub fn cl100k(classes: &Classes, text: &[u8]) -> usize {
    gpt4_like(classes, text, 3, WhiteRule::WholeAtEndOfText)
}

/// Scans a piece of [`Pattern::Qwen2`](super::Pattern::Qwen2).
pub fn qwen2(classes: &Classes, text: &[u8]) -> usize {
    gpt4_like(classes, text, 1, WhiteRule::EndAtNewline)
}

/// Scans a piece of [`Pattern::O200k`](super::Pattern::O200k).
pub fn o200k(classes: &Classes, text: &[u8]) -> usize {
    if let Some(end) = cased_word_end(classes, text) {
        return end + contraction_len(&text[end..], true).unwrap_or(0);
    }
    numbers_len(classes, text, 3)
        .or_else(|| symbols_len(classes, text, b"\r\n/"))
        .unwrap_or_else(|| white_len(classes, text, WhiteRule::EndAtNewline))
}

/// Scans a piece of [`Pattern::Whitespace`](super::Pattern::Whitespace).
pub fn whitespace(classes: &Classes, text: &[u8]) -> usize {
    classes.run_end(text, 0, if classes.match_at(text, 0, WHITE).is_some() { WHITE } else { !WHITE })
}

#[inline(always)]
fn gpt4_like(classes: &Classes, text: &[u8], max_numbers: usize, white: WhiteRule) -> usize {
    if let Some(len) = contraction_len(text, true) {
        return len;
    }
    let lead = classes.match_at(text, 0, LEAD).unwrap_or(0);
    if let Some(len) = classes.match_at(text, lead, LETTER) {
        return classes.run_end(text, lead + len, LETTER);
    }
    numbers_len(classes, text, max_numbers)
        .or_else(|| symbols_len(classes, text, b"\r\n"))
        .unwrap_or_else(|| white_len(classes, text, white))
}

/// Returns the end of the word that `text` starts with: capitals and then lowercase letters, or capitals alone.
/// Caseless letters and marks count as either case.
///
/// The word is the match of the first of `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
/// and `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` that matches.
fn cased_word_end(classes: &Classes, text: &[u8]) -> Option<usize> {
    const EITHER: u8 = CASELESS | MARK;
    let lead = classes.match_at(text, 0, LEAD).unwrap_or(0);
    let (mut end, mut after_either) = (lead, None);
    while let Some((class, len)) = classes.at(text, end)
        && class & (UPPER | EITHER) != 0
    {
        end += len;
        if class & EITHER != 0 {
            after_either = Some(end);
        }
    }
    if classes.match_at(text, end, LOWER).is_some() {
        return Some(classes.run_end(text, end, LOWER | EITHER));
    }
    // No lowercase letter follows: the last character that counts as one ends the word, and capitals after it begin
    // another word.
    if after_either.is_some() {
        return after_either;
    }
    // A mark can lead a word, but before capitals alone (or nothing) the mark itself counts as a lowercase letter.
    if classes.match_at(text, 0, MARK).is_some() {
        return Some(lead);
    }
    (end > lead).then_some(end)
}

/// Returns the length of `\p{N}{1,max}`.
#[inline(always)]
fn numbers_len(classes: &Classes, text: &[u8], max: usize) -> Option<usize> {
    let mut end = 0;
    for _ in 0..max {
        end += classes.match_at(text, end, NUMBER).unwrap_or(0);
    }
    (end > 0).then_some(end)
}

/// Returns the length of ` ?[^\s\p{L}\p{N}]+` followed by any of the bytes in `tail`.
#[inline(always)]
fn symbols_len(classes: &Classes, text: &[u8], tail: &[u8]) -> Option<usize> {
    let body = usize::from(text.starts_with(b" "));
    let end = classes.run_end(text, body, SYMBOL);
    let tail_len = text[end..].iter().take_while(|byte| tail.contains(byte)).count();
    (end > body).then_some(end + tail_len)
}

/// Returns the length in bytes of the white-space piece that `text` starts with.
///
/// A run may end after its last newline. Otherwise the run leaves its last character to the next word, unless it has
/// only one character or ends the text.
#[inline(always)]
fn white_len(classes: &Classes, text: &[u8], rule: WhiteRule) -> usize {
    let (mut end, mut last_len, mut after_newline) = (0, 0, 0);
    while let Some((class, len)) = classes.at(text, end)
        && class & (NEWLINE | BLANK) != 0
    {
        (end, last_len) = (end + len, len);
        if class == NEWLINE {
            after_newline = end;
        }
    }
    let text_ends = end == text.len();
    if after_newline > 0 && (rule == WhiteRule::EndAtNewline || rule == WhiteRule::WholeAtEndOfText && !text_ends) {
        return after_newline;
    }
    if text_ends || end == last_len { end } else { end - last_len }
}

/// Returns the length in bytes of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at the start of `text`.
///
/// Unicode's simple case folding maps the long s (`ſ`) to `s`; no other character beyond ASCII folds to one of these
/// letters.
#[inline(always)]
pub fn contraction_len(text: &[u8], ignore_case: bool) -> Option<usize> {
    if *text.first()? != b'\'' {
        return None;
    }
    let fold = |byte: u8| if ignore_case { byte.to_ascii_lowercase() } else { byte };
    let first = fold(*text.get(1)?);
    match (first, text.get(2).copied().map(fold)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        _ if ignore_case && text[1..].starts_with("ſ".as_bytes()) => Some(3),
        _ => None,
    }
}
