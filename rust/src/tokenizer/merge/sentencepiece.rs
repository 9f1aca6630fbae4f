//! SentencePiece-style BPE: merging starts from characters, and a character without a token becomes its bytes.

use rustc_hash::FxHashMap;

use super::table::MergeTable;
use super::unknown::{Symbols, Unknown};
use crate::tokenizer::tokens::{Merge, NO_ID, NUM_BYTES};

/// The character that stands for a space in token names.
const SPACE_NAME: char = '▁';

/// The token names of a SentencePiece-style vocabulary, and the rules that turn a piece into its first symbols.
#[derive(Debug, Clone)]
pub struct SentencePiece {
    /// The name of each id; empty for an id without one.
    names: Vec<Box<str>>,
    ids: FxHashMap<char, u32>,
    /// Tokens by name, if a piece that is a token as a whole is not merged.
    whole: FxHashMap<Box<str>, u32>,
    byte_ids: Option<[u32; NUM_BYTES]>,
    cuts_at_spaces: bool,
}

impl SentencePiece {
    /// Takes the name of each id and, if bytes stand in for characters without a token, the id of each byte ([`NO_ID`]
    /// for a byte without one).
    pub fn new(names: Vec<Box<str>>, byte_ids: Option<[u32; NUM_BYTES]>) -> Self {
        let mut ids = FxHashMap::default();
        for (id, name) in (0u32..).zip(&names) {
            let mut characters = name.chars();
            if let (Some(character), None) = (characters.next(), characters.next()) {
                ids.insert(character, id);
            }
        }
        Self { names, ids, whole: FxHashMap::default(), byte_ids, cuts_at_spaces: false }
    }

    /// Derives the shortcuts that the merges allow: tokens for whole pieces, or cutting before spaces, which changes no
    /// ids if no merge joins a space to the text before it.
    pub(crate) fn prepare(&mut self, merges: &[Merge], whole_first: bool) {
        if whole_first {
            let named = (0u32..).zip(&self.names).filter(|(_, name)| !name.is_empty());
            self.whole = named.map(|(id, name)| (name.clone(), id)).collect();
        }
        let name = |id: u32| self.names.get(id as usize).map_or("", |name| name);
        let joins_space =
            |merge: &Merge| !name(merge.left).ends_with(SPACE_NAME) && name(merge.right).starts_with(SPACE_NAME);
        let has_space = self.ids.contains_key(&SPACE_NAME);
        self.cuts_at_spaces = has_space && !whole_first && !merges.iter().any(joins_space);
    }

    /// The name of each id; empty for an id without one.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// Appends the ids of one piece to `ids`.
    ///
    /// Cost: O(n log n) in the longest run without a space, or in the piece if merges cross spaces.
    pub fn encode(&self, piece: &str, unknown: Option<Unknown>, table: &MergeTable, ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(piece) {
            ids.push(id);
            return;
        }
        for part in self.parts(piece) {
            let start = ids.len();
            self.symbols(part, unknown, |id, _| ids.extend(id));
            table.apply(ids, start);
        }
    }

    /// The parts of a piece that merge independently.
    fn parts<'a>(&self, piece: &'a str) -> impl Iterator<Item = &'a str> {
        let (cuts, mut rest) = (self.cuts_at_spaces, piece);
        std::iter::from_fn(move || {
            let end = if cuts { word_end(rest) } else { rest.len() };
            let (part, after) = rest.split_at(end);
            rest = after;
            (!part.is_empty()).then_some(part)
        })
    }

    /// Emits the symbols from which merging `text` starts, each with its number of bytes.
    ///
    /// An unknown character is held back until the next known one, so the bytes that stand in for another character
    /// overtake it. `tokenizers` does the same; the order matters only where some bytes have no token.
    pub fn symbols(&self, text: &str, unknown: Option<Unknown>, emit: impl FnMut(Option<u32>, usize)) {
        let mut symbols = Symbols::new(unknown, emit);
        for character in text.chars() {
            if let Some(&id) = self.ids.get(&character) {
                symbols.known(id, character.len_utf8());
            } else if let Some(byte_ids) = self.fallback(character) {
                byte_ids.for_each(|id| symbols.overtaking(id, 1));
            } else {
                symbols.unknown(character.len_utf8());
            }
        }
        symbols.close();
    }

    /// The tokens of the character's bytes, if each byte has one.
    fn fallback(&self, character: char) -> Option<impl Iterator<Item = u32>> {
        let byte_ids = self.byte_ids.as_ref()?;
        let mut bytes = [0; 4];
        let num_bytes = character.encode_utf8(&mut bytes).len();
        let ids = bytes.map(|byte| byte_ids[byte as usize]);
        (!ids[..num_bytes].contains(&NO_ID)).then(|| ids.into_iter().take(num_bytes))
    }
}

/// The end of the first word: the first space that follows another character.
fn word_end(text: &str) -> usize {
    let body = text.len() - text.trim_start_matches(SPACE_NAME).len();
    text[body..].find(SPACE_NAME).map_or(text.len(), |at| body + at)
}
