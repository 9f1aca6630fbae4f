//! Text of a running request: UTF-8-safe deltas and stop strings that may cross token borders.
//!
//! Works on the bytes of each id alone, so any tokenizer that can list them can serve.

use std::ops::Range;

use crate::{Error, Result, prefetch};

/// Bytes that are copied for a token, whatever its length; longer ones are copied one by one.
const COPIED_BYTES: usize = 16;

/// Room that a text is given at least where it has none.
const ROOM_BYTES: usize = 256;

/// Bytes of each id, shared by all requests of an engine.
///
/// An id without text and an id with empty text are the same: both add nothing.
///
/// ```
/// use llm_core::tokenizer::stream::TokenTable;
///
/// let table = TokenTable::new(vec![Some(b"a".to_vec()), None], &[1])?;
/// assert_eq!(table.bytes(0), Some(&b"a"[..]));
/// assert_eq!(table.bytes(1), None);
/// assert!(table.is_special(1));
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TokenTable {
    /// All tokens' bytes, one after the other: one allocation instead of one per id.
    bytes: Vec<u8>,
    /// Where each id's bytes end; they start where the id before ends.
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

    /// Has where the bytes of an id begin brought near; an id that is not there is left out.
    #[inline]
    pub fn fetch(&self, id: u32) {
        if let Some(end) = self.ends.get(id as usize) {
            prefetch::near(end);
        }
    }

    /// Adds the bytes of each id to `text`; the index of the first id that has none, if there is one.
    ///
    /// Short tokens are copied as 16 bytes, of which the next token overwrites the rest: no call and no branch on length.
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

/// What one token added to a request's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Text that is now certain: whole code points that no stop string can still take back.
    pub text: String,
    /// Index of the stop string that was hit, in the order given to [`Detokenizer::new`].
    pub stopped: Option<usize>,
}

/// One request's text so far.
///
/// All deltas and [`Detokenizer::finish`] together are `String::from_utf8_lossy` of all tokens' bytes, cut before the
/// first stop string, or behind it where [`Detokenizer::including_stop`] says so. *First* is the one that is complete first; of several complete at the same byte the longest.
/// Neither depends on where tokens end.
///
/// ```
/// use llm_core::tokenizer::stream::{Detokenizer, TokenTable};
///
/// let table = TokenTable::new(vec![Some(b"Hi\n".to_vec()), Some(b"\nYou".to_vec())], &[])?;
/// let mut text = Detokenizer::new(vec!["\n\n".to_owned()], true)?;
/// assert_eq!(text.push(&table, 0, true).text, "Hi"); // "\n" may begin the stop string
/// assert_eq!(text.push(&table, 1, true).stopped, Some(0));
/// assert_eq!(text.finish(), "");
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Detokenizer {
    stop: Vec<StopMatcher>,
    skip_special: bool,
    /// The first bytes of a code point whose rest has not come yet.
    partial: Vec<u8>,
    /// Decoded text that may be the beginning of a stop string.
    held: String,
    checks_stop: bool,
    includes_stop: bool,
    stopped: Option<usize>,
}

impl Detokenizer {
    /// Starts an empty text that ends at any string in `stop`; `skip_special` leaves out the text of special tokens.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if a stop string is empty.
    pub fn new(stop: Vec<String>, skip_special: bool) -> Result<Self> {
        if stop.iter().any(String::is_empty) {
            return Err(Error::InvalidArgument(format!("`stop` strings must not be empty, got {stop:?}")));
        }
        let stop = stop.into_iter().map(StopMatcher::new).collect();
        Ok(Self {
            stop,
            skip_special,
            partial: Vec::new(),
            held: String::new(),
            checks_stop: true,
            includes_stop: false,
            stopped: None,
        })
    }

    /// Whether the stop string that ends the text is part of it. Then its beginning needn't be held back.
    #[must_use]
    pub fn including_stop(mut self, includes_stop: bool) -> Self {
        self.includes_stop = includes_stop;
        self
    }

    /// Takes one token and returns the text that is now certain, and whether a stop string was hit.
    ///
    /// With `check_stop` false the token's text can't be part of a stop string (`min_tokens` is not reached yet).
    /// After a stop nothing more is added.
    pub fn push(&mut self, table: &TokenTable, id: u32, check_stop: bool) -> Delta {
        if self.stopped.is_some() {
            return Delta { text: String::new(), stopped: self.stopped };
        }
        self.checks_stop = check_stop;
        if let Some(bytes) = table.bytes(id)
            && !(self.skip_special && table.is_special(id))
        {
            self.partial.extend_from_slice(bytes);
            let decoded = self.decode_complete();
            return self.advance(&decoded);
        }
        Delta::default()
    }

    /// The held-back rest, when generation ends for another reason than a stop string.
    ///
    /// An incomplete code point becomes one U+FFFD here and nowhere before.
    pub fn finish(&mut self) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        let rest = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        let mut text = self.advance(&rest).text;
        text.push_str(&self.held);
        self.held.clear();
        text
    }

    /// Decodes what `partial` has up to a code point that could still be completed, which stays there.
    fn decode_complete(&mut self) -> String {
        let mut decoded = String::new();
        let mut start = 0;
        loop {
            match std::str::from_utf8(&self.partial[start..]) {
                Ok(valid) => {
                    decoded.push_str(valid);
                    self.partial.clear();
                    return decoded;
                }
                Err(error) => {
                    let valid_end = start + error.valid_up_to();
                    decoded.push_str(&String::from_utf8_lossy(&self.partial[start..valid_end]));
                    let Some(invalid_len) = error.error_len() else {
                        self.partial.drain(..valid_end);
                        return decoded;
                    };
                    decoded.push(char::REPLACEMENT_CHARACTER);
                    start = valid_end + invalid_len;
                }
            }
        }
    }

    /// Adds decoded text, looks for stop strings in it and releases what is certain.
    fn advance(&mut self, decoded: &str) -> Delta {
        let fresh_start = self.held.len();
        self.held.push_str(decoded);
        if !self.checks_stop {
            self.stop.iter_mut().for_each(StopMatcher::reset);
            return Delta { text: std::mem::take(&mut self.held), stopped: None };
        }
        for (offset, &byte) in decoded.as_bytes().iter().enumerate() {
            if let Some(index) = self.match_byte(byte) {
                let end = fresh_start + offset + 1;
                self.held.truncate(if self.includes_stop { end } else { end - self.stop[index].len() });
                self.stopped = Some(index);
                return Delta { text: std::mem::take(&mut self.held), stopped: self.stopped };
            }
        }
        if self.includes_stop {
            return Delta { text: std::mem::take(&mut self.held), stopped: None };
        }
        let num_held = self.stop.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - num_held);
        Delta { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// Advances every stop string by one byte; the longest complete one wins, then the first given.
    fn match_byte(&mut self, byte: u8) -> Option<usize> {
        let mut hit: Option<usize> = None;
        for index in 0..self.stop.len() {
            if self.stop[index].advance(byte) && hit.is_none_or(|best| self.stop[best].len() < self.stop[index].len()) {
                hit = Some(index);
            }
        }
        hit
    }
}

/// One stop string and how much of it the text ends with.
///
/// Source: Knuth, Morris, Pratt, "Fast Pattern Matching in Strings", SIAM Journal on Computing 6(2), 1977. It never
/// looks back at the text, so what is held stays as short as the longest possible beginning of a stop string.
#[derive(Debug, Clone)]
struct StopMatcher {
    pattern: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of the pattern that is a suffix of its first `n + 1` bytes.
    fallback: Vec<usize>,
    matched: usize,
}

impl StopMatcher {
    fn new(pattern: String) -> Self {
        let pattern = pattern.into_bytes();
        let mut fallback = vec![0; pattern.len()];
        let mut matched = 0;
        for index in 1..pattern.len() {
            matched = Self::step(&pattern, &fallback, matched, pattern[index]);
            fallback[index] = matched;
        }
        Self { pattern, fallback, matched: 0 }
    }

    fn len(&self) -> usize {
        self.pattern.len()
    }

    fn reset(&mut self) {
        self.matched = 0;
    }

    /// Takes one byte of text; true if the whole pattern has now been seen.
    fn advance(&mut self, byte: u8) -> bool {
        self.matched = Self::step(&self.pattern, &self.fallback, self.matched, byte);
        self.matched == self.pattern.len()
    }

    fn step(pattern: &[u8], fallback: &[usize], mut matched: usize, byte: u8) -> usize {
        while matched > 0 && pattern.get(matched) != Some(&byte) {
            matched = fallback[matched - 1];
        }
        matched + usize::from(pattern[matched] == byte)
    }
}
