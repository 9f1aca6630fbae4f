//! Added tokens, special ones included: found in text before it is split into pieces.

use std::ops::Range;

use unicode_general_category::{GeneralCategory, get_general_category};

/// A token that is found in text as a whole instead of being built by merges; the flags are those of Hugging Face's
/// `AddedToken`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Text of the token.
    pub content: String,
    /// Id of the token.
    pub id: u32,
    /// Whether the token marks something other than text, such as the end of a text.
    pub special: bool,
    /// Matches only where no letter, digit or underscore is adjacent.
    pub single_word: bool,
    /// Includes the white space before the token in the match.
    pub lstrip: bool,
    /// Includes the white space after the token in the match.
    pub rstrip: bool,
    /// Normalizes the token, and matches it in normalized text.
    pub normalized: bool,
}

impl AddedToken {
    /// Creates a special token that is found anywhere in unchanged text.
    pub fn special(content: String, id: u32) -> Self {
        Self { content, id, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false }
    }

    /// Returns whether the token has the same flags as one from [`AddedToken::special`].
    pub fn is_plain(&self) -> bool {
        self.special && !(self.single_word || self.lstrip || self.rstrip || self.normalized)
    }
}

/// Finds added tokens in text: the leftmost match wins, and the longest of several at one place.
#[derive(Debug, Clone)]
pub struct SpecialMatcher {
    tokens: Vec<AddedToken>,
    /// Whether any token starts with this byte; this test alone skips most places in a text.
    starts: [bool; 256],
    /// Trie of the tokens' bytes; the root is first.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    children: Vec<(u8, usize)>,
    /// Index of the token that ends at this node.
    token: Option<usize>,
}

/// Part of a text: ordinary text or an added token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Ordinary text, not empty.
    Text(&'a str),
    /// Id of a special or other added token.
    Special(u32),
}

impl SpecialMatcher {
    /// Creates a matcher that finds these tokens anywhere in unchanged text; no token may be empty.
    pub fn new(tokens: &[(String, u32)]) -> Self {
        Self::with_flags(tokens.iter().map(|(text, id)| AddedToken::special(text.clone(), *id)).collect())
    }

    /// Creates a matcher that respects the tokens' flags. Of several tokens with the same text the first is found; no
    /// token may be empty.
    pub fn with_flags(tokens: Vec<AddedToken>) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, token) in tokens.iter().enumerate() {
            let mut at = 0;
            for byte in token.content.bytes() {
                at = match nodes[at].child(byte) {
                    Some(child) => child,
                    None => {
                        let child = nodes.len();
                        nodes[at].children.push((byte, child));
                        nodes.push(Node::default());
                        child
                    }
                };
            }
            nodes[at].token.get_or_insert(index);
        }
        let mut starts = [false; 256];
        for &(byte, _) in &nodes[0].children {
            starts[byte as usize] = true;
        }
        Self { tokens, starts, nodes }
    }

    /// Returns whether the matcher has no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Returns the tokens of the matcher.
    pub fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    /// Splits `text` at its added tokens.
    ///
    /// Cost: O(text · longest token).
    pub fn segments<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Segment<'a>> {
        self.located_segments(text, true).map(|(_, segment)| segment)
    }

    /// Iterates over the segments of `text` and their byte ranges. Unless `finds_special` is set, special tokens are
    /// ordinary text, and no other token is found inside them.
    pub fn located_segments<'a>(
        &'a self,
        text: &'a str,
        finds_special: bool,
    ) -> impl Iterator<Item = (Range<usize>, Segment<'a>)> {
        Segments { matcher: self, text, finds_special, searched: 0, done: 0, found: None }
    }

    /// Returns start, end and token of the first match at or after `from`.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize, &AddedToken)> {
        if self.is_empty() {
            return None;
        }
        let bytes = text.as_bytes();
        let candidates = (from..bytes.len()).filter(|&at| self.starts[bytes[at] as usize]);
        candidates.filter_map(|at| self.longest_at(bytes, at).map(|(end, token)| (at, end, token))).next()
    }

    fn longest_at(&self, bytes: &[u8], start: usize) -> Option<(usize, &AddedToken)> {
        let (mut at, mut longest) = (0, None);
        for (index, &byte) in bytes.iter().enumerate().skip(start) {
            let Some(child) = self.nodes[at].child(byte) else { break };
            at = child;
            if let Some(token) = self.nodes[at].token {
                longest = Some((index + 1, &self.tokens[token]));
            }
        }
        longest
    }
}

impl Node {
    fn child(&self, byte: u8) -> Option<usize> {
        self.children.iter().find(|&&(found, _)| found == byte).map(|&(_, child)| child)
    }
}

struct Segments<'a> {
    matcher: &'a SpecialMatcher,
    text: &'a str,
    finds_special: bool,
    /// Offset where the next search begins.
    searched: usize,
    /// End of the text returned so far.
    done: usize,
    /// Token to return after the text before it.
    found: Option<(Range<usize>, u32)>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = (Range<usize>, Segment<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.found.take().or_else(|| self.next_token());
        let text_end = found.as_ref().map_or(self.text.len(), |(range, _)| range.start);
        if self.done < text_end {
            let range = self.done..text_end;
            (self.done, self.found) = (text_end, found);
            return Some((range.clone(), Segment::Text(&self.text[range])));
        }
        let (range, id) = found?;
        self.done = range.end;
        Some((range, Segment::Special(id)))
    }
}

impl Segments<'_> {
    /// Returns the next token and its byte range, including the white space that its flags add.
    ///
    /// A token that is found but rejected, because it is special and not wanted or because a word character touches it,
    /// still hides the tokens inside it. White space added to a token does not hide the tokens inside that space.
    /// `tokenizers` does both.
    fn next_token(&mut self) -> Option<(Range<usize>, u32)> {
        loop {
            let (start, end, token) = self.matcher.find(self.text, self.searched)?;
            self.searched = end;
            let (before, after) = (&self.text[..start], &self.text[end..]);
            let touches_word =
                before.chars().next_back().is_some_and(is_word) || after.chars().next().is_some_and(is_word);
            if token.special && !self.finds_special || token.single_word && touches_word {
                continue;
            }
            let start = if token.lstrip { before.trim_end().len().max(self.done) } else { start };
            let end = if token.rstrip { self.text.len() - after.trim_start().len() } else { end };
            return Some((start..end, token.id));
        }
    }
}

/// `\w`
///
/// Source: Unicode Technical Standard #18, annex C.
fn is_word(character: char) -> bool {
    use GeneralCategory as G;
    character.is_alphabetic()
        || matches!(character, '\u{200c}' | '\u{200d}')
        || matches!(
            get_general_category(character),
            G::NonspacingMark | G::SpacingMark | G::EnclosingMark | G::DecimalNumber | G::ConnectorPunctuation
        )
}
