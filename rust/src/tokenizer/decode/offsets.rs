//! Finds the position of each token in a text.

use super::join::Joiner;
use crate::tokenizer::tokens::TokenTable;
use crate::{Error, Result};

/// Start and end of each token in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsets {
    /// Offsets in bytes of the text's UTF-8. If the tokenizer does not change the text, one token's end is the next
    /// one's start.
    pub bytes: Vec<[usize; 2]>,
    /// Offsets in code points. A token that begins or ends inside a code point covers all of it, so neighbours may
    /// overlap.
    pub chars: Vec<[usize; 2]>,
}

impl Offsets {
    /// Builds the offsets in bytes and in code points from the offsets in bytes of `text`. A token that covers part of
    /// a code point covers all of it in code points.
    pub fn of(bytes: Vec<[usize; 2]>, text: &str) -> Self {
        // The code point of each byte, then one past the last code point.
        let mut char_of: Vec<usize> = Vec::with_capacity(text.len() + 1);
        for (index, character) in text.chars().enumerate() {
            char_of.extend(std::iter::repeat_n(index, character.len_utf8()));
        }
        char_of.push(char_of.last().map_or(0, |last| last + 1));
        let chars = |&[start, end]: &[usize; 2]| {
            [char_of[start], if end > start { char_of[end - 1] + 1 } else { char_of[start] }]
        };
        Self { chars: bytes.iter().map(chars).collect(), bytes }
    }
}

/// The offsets of `ids` in `text`, which must be the joined bytes of the tokens.
///
/// A space that a tokenizer with a [`Joiner::Words`] puts before a text has no position and counts as nothing.
///
/// ```
/// use llm_core::tokenizer::decode::{join::Joiner, offsets::offsets};
/// use llm_core::tokenizer::tokens::TokenTable;
///
/// let table = TokenTable::new(vec![Some(b"a\xc3".to_vec()), Some(b"\xa9b".to_vec())], &[])?;
/// let found = offsets(&table, Joiner::Bytes, &[0, 1], "aéb")?;
/// assert_eq!(found.bytes, [[0, 2], [2, 4]]);
/// assert_eq!(found.chars, [[0, 2], [1, 3]]); // both have half of "é"
/// # Ok::<(), llm_core::Error>(())
/// ```
///
/// # Errors
///
/// `InvalidArgument` if the bytes of the tokens are not the text, for example because the tokenizer normalises it
/// first.
pub fn offsets(table: &TokenTable, decoder: Joiner, ids: &[u32], text: &str) -> Result<Offsets> {
    let mut found = Offsets { bytes: Vec::with_capacity(ids.len()), chars: Vec::with_capacity(ids.len()) };
    let num_bytes: usize = ids.iter().map(|&id| table.bytes(id).unwrap_or_default().len()).sum();
    let mut has_added_space = decoder != Joiner::Bytes && num_bytes == text.len() + 1;
    // `chars_begun` is the number of code points that begin before `end`.
    let (mut end, mut chars_begun) = (0, 0);
    for &id in ids {
        let mut token = table.bytes(id).unwrap_or_default();
        if has_added_space && let Some((b' ', rest)) = token.split_first() {
            (token, has_added_space) = (rest, false);
        }
        let start = end;
        if !text.as_bytes()[start..].starts_with(token) {
            return Err(differs(text, start));
        }
        end += token.len();
        let begins_inside = usize::from(!text.is_char_boundary(start) && !token.is_empty());
        let first_char = chars_begun - begins_inside;
        chars_begun += token.iter().filter(|&&byte| is_first(byte)).count();
        found.bytes.push([start, end]);
        found.chars.push([first_char, chars_begun]);
    }
    if end != text.len() {
        return Err(differs(text, end));
    }
    Ok(found)
}

/// Whether a byte of valid UTF-8 is the first of a code point.
fn is_first(byte: u8) -> bool {
    byte & 0xC0 != 0x80
}

fn differs(text: &str, byte: usize) -> Error {
    let index = text.as_bytes()[..byte].iter().filter(|&&byte| is_first(byte)).count();
    Error::InvalidArgument(format!(
        "offsets need tokens whose bytes are the text, got a difference at index {index}\n\
         hint: the tokenizer changes this text before it encodes; normalise it first (`unicodedata.normalize`)"
    ))
}
