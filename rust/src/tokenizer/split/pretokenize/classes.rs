//! The character classes that the patterns distinguish.

use std::sync::LazyLock;

use unicode_general_category::{GeneralCategory, get_general_category};

/// A set of character kinds, one bit each; every character is of exactly one kind.
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

/// Number of low bits of a code point that select its place in a block: the six bits in the last byte of the
/// character's UTF-8.
const BLOCK_BITS: u32 = 6;
const BLOCK_LEN: usize = 1 << BLOCK_BITS;

const ASCII_CLASSES: [Class; 128] = {
    let mut classes = [OTHER; 128];
    let mut code = 0;
    while code < 128 {
        classes[code] = match code as u8 {
            b'A'..=b'Z' => UPPER,
            b'a'..=b'z' => LOWER,
            b'0'..=b'9' => NUMBER,
            b'\r' | b'\n' => NEWLINE,
            // White_Space includes \v and \f; `u8::is_ascii_whitespace` lacks \v.
            b' ' | b'\t' | 0x0B | 0x0C => BLANK,
            _ => OTHER,
        };
        code += 1;
    }
    classes
};

/// The class of every character in a two-stage table: two loads instead of a search.
pub struct Classes {
    /// Index of each block's classes, by the code point without its low bits.
    blocks: Box<[u16]>,
    classes: Box<[[Class; BLOCK_LEN]]>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

impl Classes {
    /// Returns the table; the first call takes a few milliseconds to build it.
    pub fn get() -> &'static Self {
        &CLASSES
    }

    fn build() -> Self {
        let mut classes: Vec<[Class; BLOCK_LEN]> = Vec::new();
        let mut places = rustc_hash::FxHashMap::default();
        let blocks = (0..=char::MAX as u32 >> BLOCK_BITS)
            .map(|block| {
                let block = match block >> (16 - BLOCK_BITS) {
                    // Planes 4 to 13 have no characters, and planes 15 and 16 are for private use.
                    4..=13 | 15.. => [OTHER; BLOCK_LEN],
                    _ => std::array::from_fn(|low| class_of(block << BLOCK_BITS | low as u32)),
                };
                *places.entry(block).or_insert_with(|| {
                    classes.push(block);
                    (classes.len() - 1) as u16
                })
            })
            .collect();
        Self { blocks, classes: classes.into() }
    }

    /// Returns the class and the number of bytes of the character at `at`, or `None` at the end of the text.
    #[inline(always)]
    pub fn at(&self, text: &[u8], at: usize) -> Option<(Class, usize)> {
        let first = *text.get(at)?;
        if first < 0x80 {
            return Some((ASCII_CLASSES[first as usize], 1));
        }
        let rest = |index: usize| usize::from(text.get(at + index).copied().unwrap_or_default() & 0x3F);
        let (block, len) = match first {
            0x80..0xE0 => (usize::from(first & 0x1F), 2),
            0xE0..0xF0 => (usize::from(first & 0x0F) << 6 | rest(1), 3),
            _ => (usize::from(first & 0x07) << 12 | rest(1) << 6 | rest(2), 4),
        };
        let place = self.blocks.get(block).copied().unwrap_or_default();
        Some((self.classes[usize::from(place)][rest(len - 1)], len))
    }

    /// Returns the number of bytes of the character at `at` if the character is in `classes`.
    #[inline(always)]
    pub fn match_at(&self, text: &[u8], at: usize, classes: Class) -> Option<usize> {
        self.at(text, at).and_then(|(class, len)| (class & classes != 0).then_some(len))
    }

    /// Returns the end of the run of characters in `classes` that starts at `at`.
    #[inline]
    pub fn run_end(&self, text: &[u8], mut at: usize, classes: Class) -> usize {
        while let Some(len) = self.match_at(text, at, classes) {
            at += len;
        }
        at
    }
}

fn class_of(code: u32) -> Class {
    use GeneralCategory as G;
    if code < 128 {
        return ASCII_CLASSES[code as usize];
    }
    let Some(character) = char::from_u32(code) else { return OTHER };
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

#[cfg(test)]
mod tests {
    use fancy_regex::Regex;

    use super::*;

    #[test]
    fn every_character_has_the_class_the_regex_engine_gives_it() {
        let all = String::from_iter('\0'..=char::MAX);
        let table = Classes::get();
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
            let is_classed = |&(at, character): &(usize, char)| {
                table.match_at(all.as_bytes(), at, classes) == Some(character.len_utf8())
            };
            let classed: String = all.char_indices().filter(is_classed).map(|(_, character)| character).collect();
            assert_eq!(classed, expected, "{pattern}");
        }
    }
}
