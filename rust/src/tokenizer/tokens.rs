//! Token ids, the bytes each one stands for, and the merges that make them.

use std::ops::Range;

use crate::{Error, Result, prefetch};

/// Number of byte values.
pub const NUM_BYTES: usize = 256;

/// Exclusive upper limit of ids. A table has an entry for every id up to the highest, so an absurdly high id must not
/// make the table huge.
pub const MAX_IDS: usize = 1 << 24;

/// Marks a missing id; no table has that many tokens.
pub const NO_ID: u32 = u32::MAX;

/// Two tokens that merge into one. The rank of a merge is its place in the list of merges; the first merge goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Merge {
    /// Id of the token that comes first in the text.
    pub left: u32,
    /// Id of the token that comes second in the text.
    pub right: u32,
    /// Id of the token that they become.
    pub id: u32,
}

/// Number of bytes copied for each token of up to this length; a longer token is copied with its exact length.
const COPIED_BYTES: usize = 16;

/// Minimum number of bytes by which a text without room grows.
const ROOM_BYTES: usize = 256;

/// The bytes of each id, shared by all requests of an engine.
///
/// An id without text is the same as an id with empty text: both add nothing.
///
/// ```
/// use llm_core::tokenizer::tokens::TokenTable;
///
/// let table = TokenTable::new(vec![Some(b"a".to_vec()), None], &[1])?;
/// assert_eq!(table.bytes(0), Some(&b"a"[..]));
/// assert_eq!(table.bytes(1), None);
/// assert!(table.is_special(1));
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TokenTable {
    /// The bytes of all tokens, one after the other: one allocation instead of one per id.
    bytes: Vec<u8>,
    /// Where the bytes of each id end; they start where those of the id before end.
    ends: Vec<u32>,
    special: Vec<bool>,
}

impl TokenTable {
    /// Builds the table; the index into `token_bytes` is the id.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if a special id is not below `token_bytes.len()`, or if all bytes together exceed 4 GiB.
    pub fn new(token_bytes: Vec<Option<Vec<u8>>>, special_ids: &[u32]) -> Result<Self> {
        let mut table = Self { bytes: Vec::new(), ends: Vec::with_capacity(token_bytes.len()), special: Vec::new() };
        for token in token_bytes.iter().map(Option::as_deref) {
            table.bytes.extend_from_slice(token.unwrap_or_default());
            let end = u32::try_from(table.bytes.len()).map_err(|_| {
                Error::InvalidArgument("the bytes of all tokens together must stay below 4 GiB".to_owned())
            })?;
            table.ends.push(end);
        }
        table.special = vec![false; table.len()];
        for &id in special_ids {
            let num_ids = table.len();
            let flag = table.special.get_mut(id as usize).ok_or_else(|| {
                Error::InvalidArgument(format!("special ids must be below the number of tokens ({num_ids}), got {id}"))
            })?;
            *flag = true;
        }
        Ok(table)
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the table has no ids.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of `id`; `None` if it has no text or is not in the table.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.range(id).map(|token| &self.bytes[token])
    }

    #[inline]
    fn range(&self, id: u32) -> Option<Range<usize>> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        (start < end).then_some(start..end)
    }

    /// Prefetches the position of the bytes of an id; ignores an id that is not in the table.
    #[inline]
    pub fn fetch(&self, id: u32) {
        if let Some(end) = self.ends.get(id as usize) {
            prefetch::near(end);
        }
    }

    /// Appends the bytes of each id to `text`. Returns the index of the first id without bytes, if there is one.
    ///
    /// Copies a short token as 16 bytes, of which the next token overwrites the excess: no call and no branch on
    /// length.
    pub fn append(&self, ids: &[u32], text: &mut Vec<u8>) -> Option<usize> {
        let mut end = text.len();
        for (index, &id) in ids.iter().enumerate() {
            let Some(token) = self.range(id) else { return Some(index) };
            if text.len() < end + token.len() + COPIED_BYTES {
                text.resize(2 * end + token.len() + ROOM_BYTES, 0);
            }
            match (text[end..].first_chunk_mut(), self.bytes[token.start..].first_chunk::<COPIED_BYTES>()) {
                (Some(place), Some(bytes)) if token.len() <= COPIED_BYTES => *place = *bytes,
                _ => text[end..end + token.len()].copy_from_slice(&self.bytes[token.clone()]),
            }
            end += token.len();
        }
        text.truncate(end);
        None
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}
