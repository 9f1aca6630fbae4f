//! One scanner for each published pattern: the bytes of the first piece of a text that is not empty.
//!
//! A piece depends on nothing before it. No scanner reads a character more than twice, so all are linear. These take
//! any text; [`super::blocks`] finds the same borders faster where text is ASCII.

use super::classes::{BLANK, CASELESS, Classes, LEAD, LETTER, LOWER, MARK, NEWLINE, NUMBER, SYMBOL, UPPER, WHITE};

/// How a run of white space ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WhiteRule {
    /// `\s+(?!\S)|\s+`
    LeaveLast,
    /// `\s*[\r\n]+|\s+(?!\S)|\s+`
    EndAtNewline,
    /// `\s++$|\s*[\r\n]+|\s+(?!\S)|\s+`
    WholeAtEndOfText,
}

/// See [`Pattern::Gpt2`](super::Pattern::Gpt2).
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

/// See [`Pattern::Gpt4`](super::Pattern::Gpt4).
pub fn gpt4(classes: &Classes, text: &[u8]) -> usize {
    gpt4_like(classes, text, 3, WhiteRule::EndAtNewline)
}

/// See [`Pattern::Cl100k`](super::Pattern::Cl100k).
pub fn cl100k(classes: &Classes, text: &[u8]) -> usize {
    gpt4_like(classes, text, 3, WhiteRule::WholeAtEndOfText)
}

/// See [`Pattern::Qwen2`](super::Pattern::Qwen2).
pub fn qwen2(classes: &Classes, text: &[u8]) -> usize {
    gpt4_like(classes, text, 1, WhiteRule::EndAtNewline)
}

/// See [`Pattern::O200k`](super::Pattern::O200k).
pub fn o200k(classes: &Classes, text: &[u8]) -> usize {
    if let Some(end) = cased_word_end(classes, text) {
        return end + contraction_len(&text[end..], true).unwrap_or(0);
    }
    numbers_len(classes, text, 3)
        .or_else(|| symbols_len(classes, text, b"\r\n/"))
        .unwrap_or_else(|| white_len(classes, text, WhiteRule::EndAtNewline))
}

/// See [`Pattern::Whitespace`](super::Pattern::Whitespace).
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

/// End of the word that `text` starts with: capitals and then small letters, or capitals alone; caseless letters and
/// marks pass for either.
///
/// The first of `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+` and
/// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` that matches.
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
    // No small letter follows: the last character that passes for one ends the word, and capitals after it begin
    // another.
    if after_either.is_some() {
        return after_either;
    }
    // A mark can lead a word, but before capitals alone (or nothing) it rather passes for a small letter itself.
    if classes.match_at(text, 0, MARK).is_some() {
        return Some(lead);
    }
    (end > lead).then_some(end)
}

/// `\p{N}{1,max}`
#[inline(always)]
fn numbers_len(classes: &Classes, text: &[u8], max: usize) -> Option<usize> {
    let mut end = 0;
    for _ in 0..max {
        end += classes.match_at(text, end, NUMBER).unwrap_or(0);
    }
    (end > 0).then_some(end)
}

/// ` ?[^\s\p{L}\p{N}]+`, then any of the bytes `tail`.
#[inline(always)]
fn symbols_len(classes: &Classes, text: &[u8], tail: &[u8]) -> Option<usize> {
    let body = usize::from(text.starts_with(b" "));
    let end = classes.run_end(text, body, SYMBOL);
    let tail_len = text[end..].iter().take_while(|byte| tail.contains(byte)).count();
    (end > body).then_some(end + tail_len)
}

/// Bytes of the white space that `text` starts with, as one piece.
///
/// A run may end after its last newline; else it leaves its last character to the word that follows, unless it has
/// only one or the text ends.
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

/// Bytes of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at the start of `text`.
///
/// Unicode's simple case folding maps the long s (`ſ`) to `s`, and it is the only character beyond ASCII that folds to
/// one of these letters.
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
