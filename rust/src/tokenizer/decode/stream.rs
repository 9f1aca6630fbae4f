//! Streams the text of a running request: UTF-8-safe deltas and stop strings that may cross token boundaries.
//!
//! Streaming uses only the bytes of each id, so any tokenizer that can list them works.

use crate::tokenizer::tokens::TokenTable;
use crate::{Error, Result};

/// The result of adding one token to the text of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Text that is now final: whole code points that no stop string can still remove.
    pub text: String,
    /// Index of the stop string that was found, in the order given to [`Detokenizer::new`].
    pub stopped: Option<usize>,
}

/// The text of one request so far.
///
/// All deltas and [`Detokenizer::finish`] together equal `String::from_utf8_lossy` of all tokens' bytes, cut before the
/// first stop string, or after it with [`Detokenizer::including_stop`]. *First* means complete first; of several
/// complete at the same byte, the longest counts. Neither depends on where tokens end.
///
/// ```
/// use llm_core::tokenizer::decode::stream::Detokenizer;
/// use llm_core::tokenizer::tokens::TokenTable;
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
    /// Special tokens whose text is kept nevertheless.
    kept_special: Vec<u32>,
    /// The first bytes of an incomplete code point.
    partial: Vec<u8>,
    /// Decoded text that may be the beginning of a stop string.
    held: String,
    checks_stop: bool,
    includes_stop: bool,
    stopped: Option<usize>,
}

impl Detokenizer {
    /// Creates an empty text that ends at any string in `stop`; `skip_special` leaves out the text of special tokens.
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
            kept_special: Vec::new(),
            partial: Vec::new(),
            held: String::new(),
            checks_stop: true,
            includes_stop: false,
            stopped: None,
        })
    }

    /// Sets whether the text includes the stop string that ends it. If it does, no beginning of a stop string is held
    /// back.
    #[must_use]
    pub fn including_stop(mut self, includes_stop: bool) -> Self {
        self.includes_stop = includes_stop;
        self
    }

    /// Index of the stop string that was found, in the order given to [`Detokenizer::new`].
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Sets special tokens whose text is kept even if that of others is left out.
    #[must_use]
    pub fn keeping_special(mut self, ids: Vec<u32>) -> Self {
        self.kept_special = ids;
        self
    }

    /// Adds one token. Returns the text that is now final and the stop string that was found, if any.
    ///
    /// With `check_stop` false, the token's text cannot be part of a stop string (`min_tokens` is not reached yet).
    /// After a stop, nothing more is added.
    pub fn push(&mut self, table: &TokenTable, id: u32, check_stop: bool) -> Delta {
        if self.stopped.is_some() {
            return Delta { text: String::new(), stopped: self.stopped };
        }
        self.checks_stop = check_stop;
        if let Some(bytes) = table.bytes(id)
            && !(self.skip_special && table.is_special(id) && !self.kept_special.contains(&id))
        {
            self.partial.extend_from_slice(bytes);
            let decoded = self.decode_complete();
            return self.advance(&decoded);
        }
        Delta::default()
    }

    /// Returns the held-back rest when generation ends for another reason than a stop string.
    ///
    /// An incomplete code point becomes one U+FFFD here and nowhere earlier.
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

    /// Decodes `partial` up to a code point that could still be completed, which stays there.
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

    /// Appends decoded text, searches it for stop strings and returns the text that is now final.
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

    /// Advances every stop string by one byte. Of several complete ones the longest wins, then the first given.
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

/// One stop string, and how much of it the text ends with.
///
/// Source: Knuth, Morris, Pratt, "Fast Pattern Matching in Strings", SIAM Journal on Computing 6(2), 1977. The matcher
/// never looks back at the text, so the held text stays as short as the longest possible beginning of a stop string.
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

    /// Adds one byte of text; returns true if the whole pattern has now been seen.
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
