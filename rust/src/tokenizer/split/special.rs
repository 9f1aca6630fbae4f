//! Added tokens: those found in the text before it is cut into pieces, special ones among them.

use std::ops::Range;

use unicode_general_category::{GeneralCategory, get_general_category};

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

    /// Whether it is like those that [`AddedToken::special`] makes.
    pub fn is_plain(&self) -> bool {
        self.special && !(self.single_word || self.lstrip || self.rstrip || self.normalized)
    }
}

/// Added tokens by text: the first in the text wins, of several at one place the longest.
#[derive(Debug, Clone)]
pub struct SpecialMatcher {
    tokens: Vec<AddedToken>,
    /// Whether any token starts with this byte; most places in a text are passed over by this alone.
    starts: [bool; 256],
    /// A tree of their bytes; the root is first.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    children: Vec<(u8, usize)>,
    /// The token that ends here.
    token: Option<usize>,
}

/// Part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Ordinary text, not empty.
    Text(&'a str),
    /// A special or other added token's id.
    Special(u32),
}

impl SpecialMatcher {
    /// Finds these tokens anywhere, as they are; none may be empty.
    pub fn new(tokens: &[(String, u32)]) -> Self {
        Self::with_flags(tokens.iter().map(|(text, id)| AddedToken::special(text.clone(), *id)).collect())
    }

    /// Finds these tokens as their flags say, the first of several with one text; none may be empty.
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

    /// Whether it finds nothing.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// What it finds.
    pub fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    /// Cuts `text` at its added tokens.
    ///
    /// Cost: O(text · longest token).
    pub fn segments<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Segment<'a>> {
        self.located_segments(text, true).map(|(_, segment)| segment)
    }

    /// The segments of `text` and their bytes in it. Unless `finds_special`, special tokens are ordinary text, inside which
    /// no other token is found.
    pub fn located_segments<'a>(
        &'a self,
        text: &'a str,
        finds_special: bool,
    ) -> impl Iterator<Item = (Range<usize>, Segment<'a>)> {
        Segments { matcher: self, text, finds_special, searched: 0, done: 0, found: None }
    }

    /// Start, end and token of the first from `from` on.
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
    /// Where the next search begins.
    searched: usize,
    /// End of the text that was given out.
    done: usize,
    /// A token that waits until the text before it was given out.
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
    /// The next token and its bytes, including the white space it takes in.
    ///
    /// A special token that is not looked for, or a token that must stand alone and does not, still hides the tokens inside
    /// it; a token that takes in white space does not hide the tokens in there. `tokenizers` does both.
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
