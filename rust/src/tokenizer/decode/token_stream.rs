//! Decodes ids that arrive one by one.

use super::join::Joiner;
use super::stream::Detokenizer;
use crate::tokenizer::tokens::TokenTable;
use crate::{Error, Result};

/// The text of ids that arrive one by one, in parts that never end inside a character.
///
/// All parts and [`TokenStream::finish`] together equal [`crate::tokenizer::Tokenizer::decode`] of all ids. Exception:
/// if a run of single-byte tokens is not valid UTF-8, the number of U+FFFD may differ, because the right number is
/// known only once the run ends.
///
/// ```
/// use llm_core::tokenizer::decode::join::Joiner;
/// use llm_core::tokenizer::tokens::TokenTable;
/// use llm_core::tokenizer::decode::token_stream::TokenStream;
///
/// let table = TokenTable::new(vec![Some(b" \xc3".to_vec()), Some(b"\xa9".to_vec())], &[])?;
/// let mut stream = TokenStream::new(Joiner::Words { strip_start: 1, bare_first: false }, false)?;
/// assert_eq!(stream.push(&table, 0)?, "");
/// assert_eq!(stream.push(&table, 1)?, "é");
/// assert_eq!(stream.finish(), "");
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TokenStream {
    text: Detokenizer,
    skip_special: bool,
    /// Whether spaces in the first token are still to be removed.
    is_bare: bool,
    /// Number of spaces still to be removed at the start of the text.
    num_to_strip: usize,
}

impl TokenStream {
    /// Creates an empty text; `skip_special` leaves out the text of special tokens.
    ///
    /// # Errors
    ///
    /// None: the detokenizer rejects only empty stop strings, and a token stream has no stop strings.
    pub fn new(decoder: Joiner, skip_special: bool) -> Result<Self> {
        let (num_to_strip, is_bare) = match decoder {
            Joiner::Bytes => (0, false),
            Joiner::Words { strip_start, bare_first } => (strip_start, bare_first),
        };
        Ok(Self { text: Detokenizer::new(Vec::new(), skip_special)?, skip_special, is_bare, num_to_strip })
    }

    /// Adds one token and returns the text that is now final.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the table does not have the id; the stream is then unchanged.
    pub fn push(&mut self, table: &TokenTable, id: u32) -> Result<String> {
        if table.bytes(id).is_none() {
            return Err(unknown(table, i64::from(id)));
        }
        let mut part = self.text.push(table, id, true).text;
        if self.is_bare && !(self.skip_special && table.is_special(id)) {
            // A space is a whole character, so all spaces of this token are in this part.
            part.retain(|character| character != ' ');
            self.is_bare = false;
        }
        Ok(self.stripped(part))
    }

    /// Returns the rest of the text; an incomplete character becomes one U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = self.text.finish();
        self.stripped(rest)
    }

    fn stripped(&mut self, part: String) -> String {
        if self.num_to_strip == 0 || part.is_empty() {
            return part;
        }
        let num_spaces = part.bytes().take(self.num_to_strip).take_while(|&byte| byte == b' ').count();
        self.num_to_strip = if num_spaces == part.len() { self.num_to_strip - num_spaces } else { 0 };
        part[num_spaces..].to_owned()
    }
}

/// The error for an id that the table does not have.
pub fn unknown(table: &TokenTable, id: i64) -> Error {
    let last = table.len().saturating_sub(1);
    Error::InvalidArgument(format!("token ids must be ids of this tokenizer (0 to {last}), got {id}"))
}
