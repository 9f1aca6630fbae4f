//! Cuts text into the pieces that BPE merges stay within.
//!
//! The published patterns are regular expressions with a look-ahead. Here each is a scanner that reads a piece's
//! characters once and never goes back further than one character; tests prove them equal to a regex engine.

use unicode_general_category::{GeneralCategory, get_general_category};

use crate::{Error, Result};

/// Which pieces text is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2's (also r50k, p50k).
    Gpt2,
    /// GPT-4's as published for cl100k and used by most tokenizers since: digits in threes, contractions in any case.
    Gpt4,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 2] = [Self::Gpt2, Self::Gpt4];

    /// The pattern called `name`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` listing the names, if there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|pattern| pattern.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(|pattern| format!("\"{}\"", pattern.name())).join(", ");
            Error::InvalidArgument(format!("`pattern` must be one of {names}, got {name:?}"))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Gpt4 => "gpt4",
        }
    }

    /// The regular expression it is equal to, as published.
    ///
    /// Source: openai/gpt-2 `encoder.py`; openai/tiktoken `cl100k_base` as first released.
    pub fn regex(self) -> &'static str {
        match self {
            Self::Gpt2 => r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            Self::Gpt4 => {
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
        }
    }

    /// The pieces of `text`; together they are `text`.
    ///
    /// ```
    /// use llm_core::tokenizer::pretokenize::Pattern;
    ///
    /// let pieces: Vec<&str> = Pattern::Gpt4.pieces("I'm  2024!").collect();
    /// assert_eq!(pieces, ["I", "'m", " ", " ", "202", "4", "!"]);
    /// ```
    pub fn pieces(self, text: &str) -> Pieces<'_> {
        Pieces { pattern: self, rest: text }
    }

    /// Bytes of the first piece of a non-empty text. It depends on nothing before it.
    fn first_piece_len(self, text: &str) -> usize {
        match self {
            Self::Gpt2 => gpt2_piece_len(text),
            Self::Gpt4 => gpt4_piece_len(text),
        }
    }
}

/// Iterator over the pieces of a text.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    pattern: Pattern,
    rest: &'a str,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (piece, rest) = self.rest.split_at(self.pattern.first_piece_len(self.rest));
        self.rest = rest;
        Some(piece)
    }
}

/// What the patterns can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    /// U+0020, which may lead a word.
    Space,
    /// `\r` or `\n`.
    Newline,
    /// Any other White_Space.
    White,
    Other,
}

impl Class {
    fn is_white(self) -> bool {
        matches!(self, Self::Space | Self::Newline | Self::White)
    }
}

const ASCII_CLASSES: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut code = 0;
    while code < 128 {
        classes[code] = match code as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b' ' => Class::Space,
            b'\r' | b'\n' => Class::Newline,
            // \v and \f too: White_Space has them, `u8::is_ascii_whitespace` lacks \v.
            b'\t' | 0x0B | 0x0C => Class::White,
            _ => Class::Other,
        };
        code += 1;
    }
    classes
};

fn class_of(character: char) -> Class {
    use GeneralCategory as G;
    if character.is_ascii() {
        return ASCII_CLASSES[character as usize];
    }
    match get_general_category(character) {
        G::UppercaseLetter | G::LowercaseLetter | G::TitlecaseLetter | G::ModifierLetter | G::OtherLetter => {
            Class::Letter
        }
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => Class::Number,
        _ if character.is_whitespace() => Class::White,
        _ => Class::Other,
    }
}

/// Class and bytes of the character at `at`, if the text does not end there.
fn class_at(text: &str, at: usize) -> Option<(Class, usize)> {
    let byte = *text.as_bytes().get(at)?;
    if byte.is_ascii() {
        return Some((ASCII_CLASSES[byte as usize], 1));
    }
    text[at..].chars().next().map(|character| (class_of(character), character.len_utf8()))
}

/// End of the run of characters from `at` on whose class is `class`.
fn run_end(text: &str, mut at: usize, class: Class) -> usize {
    while let Some((next, len)) = class_at(text, at)
        && next == class
    {
        at += len;
    }
    at
}

fn gpt2_piece_len(text: &str) -> usize {
    if let Some(len) = contraction_len(text, false) {
        return len;
    }
    let body = usize::from(text.starts_with(' '));
    match class_at(text, body) {
        Some((class @ (Class::Letter | Class::Number | Class::Other), len)) => run_end(text, body + len, class),
        _ => white_len(text, false),
    }
}

fn gpt4_piece_len(text: &str) -> usize {
    if let Some(len) = contraction_len(text, true) {
        return len;
    }
    let Some((first, first_len)) = class_at(text, 0) else { return 0 };
    let letters = match first {
        Class::Letter => Some(0),
        Class::Space | Class::White | Class::Other => Some(first_len),
        Class::Number | Class::Newline => None,
    };
    if let Some(at) = letters
        && let Some((Class::Letter, len)) = class_at(text, at)
    {
        return run_end(text, at + len, Class::Letter);
    }
    if first == Class::Number {
        return numbers_len(text);
    }
    let body = usize::from(first == Class::Space);
    match class_at(text, body) {
        Some((Class::Other, len)) => run_end(text, run_end(text, body + len, Class::Other), Class::Newline),
        _ => white_len(text, true),
    }
}

/// Bytes of the one to three numbers that `text` starts with.
fn numbers_len(text: &str) -> usize {
    text.chars().take(3).take_while(|&character| class_of(character) == Class::Number).map(char::len_utf8).sum()
}

/// Bytes of the white space that `text` starts with, as one piece.
///
/// A run ends after its last newline where `newlines_end` says so; else it leaves its last character to the word that
/// follows, unless it has only one or the text ends.
fn white_len(text: &str, newlines_end: bool) -> usize {
    let (mut end, mut last_len, mut after_newline) = (0, 0, 0);
    while let Some((class, len)) = class_at(text, end)
        && class.is_white()
    {
        (end, last_len) = (end + len, len);
        if class == Class::Newline {
            after_newline = end;
        }
    }
    if newlines_end && after_newline > 0 {
        return after_newline;
    }
    if end == text.len() || end == last_len {
        return end;
    }
    end - last_len
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

#[cfg(test)]
mod tests {
    use fancy_regex::Regex;

    use super::*;

    #[test]
    fn every_character_has_the_class_the_regex_engine_gives_it() {
        let all = String::from_iter('\0'..=char::MAX);
        for (pattern, is_class) in [
            (r"\p{L}+", (|class| class == Class::Letter) as fn(Class) -> bool),
            (r"\p{N}+", |class| class == Class::Number),
            (r"\s+", Class::is_white),
        ] {
            let regex = Regex::new(pattern).unwrap();
            let expected: String = regex.find_iter(&all).map(|found| found.unwrap().as_str()).collect();
            let classed: String = all.chars().filter(|&character| is_class(class_of(character))).collect();
            assert_eq!(classed, expected, "{pattern}");
        }
    }
}
