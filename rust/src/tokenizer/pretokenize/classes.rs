//! What the patterns can tell apart.

use unicode_general_category::{GeneralCategory, get_general_category};

/// A set of kinds of character, one bit each; every character is of one kind.
pub type Class = u8;

/// `[\p{Lu}\p{Lt}]`
pub const UPPER: Class = 1;
/// `\p{Ll}`
pub const LOWER: Class = 1 << 1;
/// `[\p{Lm}\p{Lo}]`
pub const CASELESS: Class = 1 << 2;
/// `\p{M}`
pub const MARK: Class = 1 << 3;
/// `\p{N}`
pub const NUMBER: Class = 1 << 4;
/// `[\r\n]`
pub const NEWLINE: Class = 1 << 5;
/// `[^\S\r\n]`
pub const BLANK: Class = 1 << 6;
/// Everything else.
pub const OTHER: Class = 1 << 7;

/// `\p{L}`
pub const LETTER: Class = UPPER | LOWER | CASELESS;
/// `\s`
pub const WHITE: Class = NEWLINE | BLANK;
/// `[^\s\p{L}\p{N}]`
pub const SYMBOL: Class = MARK | OTHER;
/// `[^\r\n\p{L}\p{N}]`, which may lead a word.
pub const LEAD: Class = BLANK | SYMBOL;

const ASCII_CLASSES: [Class; 128] = {
    let mut classes = [OTHER; 128];
    let mut code = 0;
    while code < 128 {
        classes[code] = match code as u8 {
            b'A'..=b'Z' => UPPER,
            b'a'..=b'z' => LOWER,
            b'0'..=b'9' => NUMBER,
            b'\r' | b'\n' => NEWLINE,
            // \v and \f too: White_Space has them, `u8::is_ascii_whitespace` lacks \v.
            b' ' | b'\t' | 0x0B | 0x0C => BLANK,
            _ => OTHER,
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
        G::UppercaseLetter | G::TitlecaseLetter => UPPER,
        G::LowercaseLetter => LOWER,
        G::ModifierLetter | G::OtherLetter => CASELESS,
        G::NonspacingMark | G::SpacingMark | G::EnclosingMark => MARK,
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => NUMBER,
        _ if character.is_whitespace() => BLANK,
        _ => OTHER,
    }
}

/// Class and bytes of the character at `at`, if the text does not end there.
pub fn class_at(text: &str, at: usize) -> Option<(Class, usize)> {
    let byte = *text.as_bytes().get(at)?;
    if byte.is_ascii() {
        return Some((ASCII_CLASSES[byte as usize], 1));
    }
    text[at..].chars().next().map(|character| (class_of(character), character.len_utf8()))
}

/// Bytes of the character at `at` if it is one of `classes`.
pub fn match_at(text: &str, at: usize, classes: Class) -> Option<usize> {
    class_at(text, at).and_then(|(class, len)| (class & classes != 0).then_some(len))
}

/// End of the run of characters of `classes` from `at` on.
pub fn run_end(text: &str, mut at: usize, classes: Class) -> usize {
    while let Some(len) = match_at(text, at, classes) {
        at += len;
    }
    at
}

#[cfg(test)]
mod tests {
    use fancy_regex::Regex;

    use super::*;

    #[test]
    fn every_character_has_the_class_the_regex_engine_gives_it() {
        let all = String::from_iter('\0'..=char::MAX);
        for (pattern, classes) in [
            (r"[\p{Lu}\p{Lt}]+", UPPER),
            (r"\p{Ll}+", LOWER),
            (r"[\p{Lm}\p{Lo}]+", CASELESS),
            (r"\p{L}+", LETTER),
            (r"\p{M}+", MARK),
            (r"\p{N}+", NUMBER),
            (r"[\r\n]+", NEWLINE),
            (r"\s+", WHITE),
            (r"[^\s\p{L}\p{N}]+", SYMBOL),
            (r"[^\r\n\p{L}\p{N}]+", LEAD),
        ] {
            let regex = Regex::new(pattern).unwrap();
            let expected: String = regex.find_iter(&all).map(|found| found.unwrap().as_str()).collect();
            let classed: String = all.chars().filter(|&character| class_of(character) & classes != 0).collect();
            assert_eq!(classed, expected, "{pattern}");
        }
    }
}
