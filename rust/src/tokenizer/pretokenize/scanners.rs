//! One scanner for each published pattern: the bytes of the first piece of a text that is not empty.
//!
//! A piece depends on nothing before it. No scanner reads a character more than twice, so all are linear.

use super::classes::{
    BLANK, CASELESS, LEAD, LETTER, LOWER, MARK, NEWLINE, NUMBER, SYMBOL, UPPER, WHITE, class_at, match_at, run_end,
};

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
pub fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction_len(text, false) {
        return len;
    }
    let body = usize::from(text.starts_with(' '));
    for classes in [LETTER, NUMBER, SYMBOL] {
        if let Some(len) = match_at(text, body, classes) {
            return run_end(text, body + len, classes);
        }
    }
    white_len(text, WhiteRule::LeaveLast)
}

/// See [`Pattern::Gpt4`](super::Pattern::Gpt4).
pub fn gpt4(text: &str) -> usize {
    gpt4_like(text, 3, WhiteRule::EndAtNewline)
}

/// See [`Pattern::Cl100k`](super::Pattern::Cl100k).
pub fn cl100k(text: &str) -> usize {
    gpt4_like(text, 3, WhiteRule::WholeAtEndOfText)
}

/// See [`Pattern::Qwen2`](super::Pattern::Qwen2).
pub fn qwen2(text: &str) -> usize {
    gpt4_like(text, 1, WhiteRule::EndAtNewline)
}

/// See [`Pattern::O200k`](super::Pattern::O200k).
pub fn o200k(text: &str) -> usize {
    if let Some(end) = cased_word_end(text) {
        return end + contraction_len(&text[end..], true).unwrap_or(0);
    }
    numbers_len(text, 3)
        .or_else(|| symbols_len(text, b"\r\n/"))
        .unwrap_or_else(|| white_len(text, WhiteRule::EndAtNewline))
}

/// See [`Pattern::Whitespace`](super::Pattern::Whitespace).
pub fn whitespace(text: &str) -> usize {
    run_end(text, 0, if match_at(text, 0, WHITE).is_some() { WHITE } else { !WHITE })
}

fn gpt4_like(text: &str, max_numbers: usize, white: WhiteRule) -> usize {
    if let Some(len) = contraction_len(text, true) {
        return len;
    }
    let lead = match_at(text, 0, LEAD).unwrap_or(0);
    if match_at(text, lead, LETTER).is_some() {
        return run_end(text, lead, LETTER);
    }
    numbers_len(text, max_numbers).or_else(|| symbols_len(text, b"\r\n")).unwrap_or_else(|| white_len(text, white))
}

/// End of the word that `text` starts with: capitals and then small letters, or capitals alone; caseless letters and
/// marks pass for either.
///
/// The first of `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+` and
/// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` that matches.
fn cased_word_end(text: &str) -> Option<usize> {
    const EITHER: u8 = CASELESS | MARK;
    let lead = match_at(text, 0, LEAD).unwrap_or(0);
    let (mut end, mut after_either) = (lead, None);
    while let Some((class, len)) = class_at(text, end)
        && class & (UPPER | EITHER) != 0
    {
        end += len;
        if class & EITHER != 0 {
            after_either = Some(end);
        }
    }
    if match_at(text, end, LOWER).is_some() {
        return Some(run_end(text, end, LOWER | EITHER));
    }
    // No small letter follows: the last character that passes for one ends the word, and capitals after it begin
    // another.
    if after_either.is_some() {
        return after_either;
    }
    // A mark can lead a word, but before capitals alone (or nothing) it rather passes for a small letter itself.
    if match_at(text, 0, MARK).is_some() {
        return Some(lead);
    }
    (end > lead).then_some(end)
}

/// `\p{N}{1,max}`
fn numbers_len(text: &str, max: usize) -> Option<usize> {
    let mut end = 0;
    for _ in 0..max {
        end += match_at(text, end, NUMBER).unwrap_or(0);
    }
    (end > 0).then_some(end)
}

/// ` ?[^\s\p{L}\p{N}]+`, then any of the bytes `tail`.
fn symbols_len(text: &str, tail: &[u8]) -> Option<usize> {
    let body = usize::from(text.starts_with(' '));
    let end = run_end(text, body, SYMBOL);
    let tail_len = text.as_bytes()[end..].iter().take_while(|byte| tail.contains(byte)).count();
    (end > body).then_some(end + tail_len)
}

/// Bytes of the white space that `text` starts with, as one piece.
///
/// A run may end after its last newline; else it leaves its last character to the word that follows, unless it has
/// only one or the text ends.
fn white_len(text: &str, rule: WhiteRule) -> usize {
    let (mut end, mut last_len, mut after_newline) = (0, 0, 0);
    while let Some((class, len)) = class_at(text, end)
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
fn contraction_len(text: &str, ignore_case: bool) -> Option<usize> {
    let after = text.strip_prefix('\'')?;
    let fold = |character: char| match character {
        // Unicode's simple case folding maps the long s to `s`, and it is the only non-ASCII character that folds
        // to one of these letters.
        'ſ' if ignore_case => 's',
        _ if ignore_case => character.to_ascii_lowercase(),
        _ => character,
    };
    let mut characters = after.chars();
    let first = characters.next()?;
    match (fold(first), characters.next().map(fold)) {
        ('s' | 't' | 'm' | 'd', _) => Some(1 + first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
        _ => None,
    }
}
