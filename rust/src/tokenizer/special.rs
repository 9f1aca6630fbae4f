//! Added tokens: those found in the text before it is cut into pieces, special ones among them.

/// A token that text is not merged into; flags as Hugging Face's `AddedToken` has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// Whether it stands for something that is no text, such as the end of one.
    pub special: bool,
    /// Only found where no letter, digit or underscore touches it.
    pub single_word: bool,
    /// Takes in the white space before it.
    pub lstrip: bool,
    /// Takes in the white space after it.
    pub rstrip: bool,
    /// Looked for in the normalised text, itself normalised.
    pub normalized: bool,
}

impl AddedToken {
    /// A special token found anywhere, as it is.
    pub fn special(content: String, id: u32) -> Self {
        Self { content, id, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false }
    }
}

/// Special tokens by text: the first in the text wins, of several at one place the longest.
#[derive(Debug, Clone)]
pub struct SpecialMatcher {
    /// Longest first.
    tokens: Vec<(String, u32)>,
    /// Whether any token starts with this byte; most places in a text are passed over by this alone.
    starts: [bool; 256],
}

/// Part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Ordinary text, not empty.
    Text(&'a str),
    /// A special token's id.
    Special(u32),
}

impl SpecialMatcher {
    /// Finds these tokens; none may be empty.
    pub fn new(tokens: &[(String, u32)]) -> Self {
        let mut tokens = tokens.to_vec();
        tokens.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let mut starts = [false; 256];
        for byte in tokens.iter().filter_map(|(text, _)| text.bytes().next()) {
            starts[byte as usize] = true;
        }
        Self { tokens, starts }
    }

    /// Cuts `text` at its special tokens.
    pub fn segments<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Segment<'a>> {
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let Some((start, end, id)) = self.find(rest) else {
                return Some(Segment::Text(std::mem::take(&mut rest)));
            };
            if start > 0 {
                let (before, after) = rest.split_at(start);
                rest = after;
                return Some(Segment::Text(before));
            }
            rest = &rest[end..];
            Some(Segment::Special(id))
        })
    }

    /// Start, end and id of the first special token.
    fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        let candidates = (0..bytes.len()).filter(|&at| self.starts[bytes[at] as usize]);
        candidates.filter_map(|at| self.match_at(&bytes[at..]).map(|(len, id)| (at, at + len, id))).next()
    }

    fn match_at(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let token = self.tokens.iter().find(|(text, _)| bytes.starts_with(text.as_bytes()));
        token.map(|(text, id)| (text.len(), *id))
    }
}
