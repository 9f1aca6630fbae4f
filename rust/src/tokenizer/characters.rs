//! SentencePiece-style BPE: merging begins with characters, and a character that is no token becomes its bytes.

use rustc_hash::FxHashMap;

use super::vocab::{Merge, NO_ID, NUM_BYTES};

/// Stands for a space in names of tokens.
const SPACE_NAME: char = '▁';

/// How such a vocabulary names its tokens and begins to merge.
#[derive(Debug, Clone)]
pub struct Characters {
    /// The name of each id; empty where there is none.
    names: Vec<Box<str>>,
    ids: FxHashMap<char, u32>,
    /// Tokens by name, if a piece that is one as a whole is not merged.
    whole: FxHashMap<Box<str>, u32>,
    byte_ids: Option<[u32; NUM_BYTES]>,
    cuts_at_spaces: bool,
}

/// The token for what has no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown {
    /// Its id.
    pub id: u32,
    /// Several in a row are one.
    pub fuse: bool,
}

/// Unknowns in a row, of which the last waits for what follows.
pub(super) struct UnknownRun {
    pub(super) unknown: Option<Unknown>,
    pub(super) is_open: bool,
}

impl UnknownRun {
    pub(super) fn known(&mut self, id: u32, ids: &mut Vec<u32>) {
        self.close(ids);
        ids.push(id);
    }

    pub(super) fn unknown(&mut self, ids: &mut Vec<u32>) {
        if self.unknown.is_some_and(|unknown| !unknown.fuse) {
            self.close(ids);
        }
        self.is_open = true;
    }

    pub(super) fn close(&mut self, ids: &mut Vec<u32>) {
        if std::mem::take(&mut self.is_open) {
            ids.extend(self.unknown.map(|unknown| unknown.id));
        }
    }
}

impl Characters {
    /// Takes the name of each id, and the id of each byte ([`NO_ID`] for one without) if bytes stand in for what is no
    /// token.
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

    /// Learns what the merges allow: whole pieces first, or cutting before spaces, which changes no ids where no merge
    /// joins a space to what is before it.
    pub(super) fn prepare(&mut self, merges: &[Merge], whole_first: bool) {
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

    /// The name of each id; empty where there is none.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// The token that `piece` is as a whole, if such tokens are not merged.
    pub(super) fn whole(&self, piece: &str) -> Option<u32> {
        self.whole.get(piece).copied()
    }

    /// Parts of a piece that merge each by itself.
    pub(super) fn parts<'a>(&self, piece: &'a str) -> impl Iterator<Item = &'a str> {
        let (cuts, mut rest) = (self.cuts_at_spaces, piece);
        std::iter::from_fn(move || {
            let border = if cuts { word_end(rest) } else { rest.len() };
            let (part, after) = rest.split_at(border);
            rest = after;
            (!part.is_empty()).then_some(part)
        })
    }

    /// Adds the ids that merging begins with.
    ///
    /// An unknown character waits for the next known one, and bytes that stand in for another overtake it: Hugging
    /// Face's way, seen only where some bytes have no token.
    pub(super) fn begin(&self, part: &str, unknown: Option<Unknown>, ids: &mut Vec<u32>) {
        let mut run = UnknownRun { unknown, is_open: false };
        for character in part.chars() {
            match self.ids.get(&character) {
                Some(&id) => run.known(id, ids),
                None if self.push_bytes(character, ids) => (),
                None => run.unknown(ids),
            }
        }
        run.close(ids);
    }

    /// Adds the tokens of the character's bytes, if each has one.
    fn push_bytes(&self, character: char, ids: &mut Vec<u32>) -> bool {
        let Some(byte_ids) = &self.byte_ids else { return false };
        let start = ids.len();
        ids.extend(character.encode_utf8(&mut [0; 4]).bytes().map(|byte| byte_ids[byte as usize]));
        let is_known = !ids[start..].contains(&NO_ID);
        if !is_known {
            ids.truncate(start);
        }
        is_known
    }
}

/// Where the first word ends: at a space that follows something else.
fn word_end(text: &str) -> usize {
    let body = text.len() - text.trim_start_matches(SPACE_NAME).len();
    text[body..].find(SPACE_NAME).map_or(text.len(), |at| body + at)
}
