//! Cuts a stream of text into documents and pieces.

use std::mem::take;

use memchr::memchr_iter;
use memchr::memmem::Finder;
use simdutf8::compat::from_utf8;

use super::{Piece, TextBlock, character_start};
use crate::{Error, Result};

/// Longest character in UTF-8.
const MAX_CHAR_BYTES: usize = 4;

/// How documents are found and cut.
#[derive(Debug, Clone)]
pub struct CutOptions {
    /// The text between two documents; `None` if there is none.
    pub separator: Option<String>,
    /// Whether long documents may be cut at line ends.
    pub at_line_ends: bool,
    /// Length from which a document is cut at the next line end.
    pub piece_bytes: usize,
    /// Length from which a document without a line end is cut at a space; tokens around that cut can differ.
    pub max_piece_bytes: usize,
}

/// Cuts texts into documents at the separator, and long documents into pieces that no token spans.
///
/// The line break after a separator belongs to the separator. Documents without a visible character are left out.
///
/// ```
/// use llm_core::corpus::{CutOptions, DocumentCutter};
///
/// let options =
///     CutOptions { separator: Some("|".to_owned()), at_line_ends: true, piece_bytes: 64, max_piece_bytes: 1024 };
/// let mut cutter = DocumentCutter::new(options);
/// cutter.push_bytes(b"one|\ntw", false)?;
/// cutter.push_bytes(b"o", true)?;
/// let block = cutter.take();
/// assert_eq!(block.pieces().collect::<Vec<_>>(), [("one", true), ("two", true)]);
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug)]
pub struct DocumentCutter {
    options: CutOptions,
    separator: Option<Finder<'static>>,
    /// Text of `pieces`, then from `start` on text that isn't cut yet.
    text: String,
    start: usize,
    pieces: Vec<Piece>,
    /// The beginning of a character that the next bytes complete.
    partial: Vec<u8>,
    /// Bytes pushed so far.
    offset: usize,
    /// Whether the current document has pieces already.
    has_pieces: bool,
    after_separator: bool,
    num_blank: usize,
}

impl DocumentCutter {
    /// Creates a cutter at the beginning of a document.
    pub fn new(options: CutOptions) -> Self {
        let separator = options.separator.as_ref().map(|text| Finder::new(text).into_owned());
        Self {
            options,
            separator,
            text: String::new(),
            start: 0,
            pieces: Vec::new(),
            partial: Vec::new(),
            offset: 0,
            has_pieces: false,
            after_separator: false,
            num_blank: 0,
        }
    }

    /// Number of documents left out so far because they hold nothing but white space.
    pub fn num_blank(&self) -> usize {
        self.num_blank
    }

    /// Adds bytes of UTF-8, which may end within a character; `ends` says that a document ends with them.
    ///
    /// # Errors
    ///
    /// `Data` with value and offset of the first byte that is no UTF-8.
    pub fn push_bytes(&mut self, mut bytes: &[u8], ends: bool) -> Result<()> {
        let num_bytes = bytes.len();
        let from = self.text.len();
        self.text.reserve(self.partial.len() + num_bytes);
        while !self.partial.is_empty() && !bytes.is_empty() && self.partial.len() < MAX_CHAR_BYTES {
            self.partial.push(bytes[0]);
            bytes = &bytes[1..];
            if let Ok(character) = str::from_utf8(&self.partial) {
                self.text.push_str(character);
                self.partial.clear();
            } else if let Err(error) = str::from_utf8(&self.partial)
                && error.error_len().is_some()
            {
                break;
            }
        }
        let before = self.offset + num_bytes - bytes.len() - self.partial.len();
        if self.partial.is_empty() {
            match from_utf8(bytes) {
                Ok(text) => self.text.push_str(text),
                Err(error) => {
                    let (valid, rest) = bytes.split_at(error.valid_up_to());
                    if error.error_len().is_some() {
                        return Err(not_utf8(rest[0], before + valid.len()));
                    }
                    self.text.push_str(from_utf8(valid).unwrap_or_default());
                    self.partial.extend_from_slice(rest);
                }
            }
        } else if str::from_utf8(&self.partial).is_err_and(|error| error.error_len().is_some()) {
            return Err(not_utf8(self.partial[0], before));
        }
        self.offset += num_bytes;
        if ends && !self.partial.is_empty() {
            return Err(not_utf8(self.partial[0], self.offset - self.partial.len()));
        }
        self.scan(from, ends);
        Ok(())
    }

    /// Adds what `write` appends to the text; `ends` says that a document ends with it.
    ///
    /// # Errors
    ///
    /// Those of `write`; nothing is added then.
    pub fn push_with<E>(
        &mut self,
        ends: bool,
        write: impl FnOnce(&mut String) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let from = self.text.len();
        if let Err(error) = write(&mut self.text) {
            self.text.truncate(from);
            return Err(error);
        }
        self.scan(from, ends);
        Ok(())
    }

    /// Adds a document for each row: row i has the bytes of `values` from `offsets[i]` to `offsets[i + 1]`.
    ///
    /// # Errors
    ///
    /// `Data` if a row is no UTF-8 or lies outside of `values`; nothing is added then.
    pub fn push_rows(&mut self, values: &[u8], offsets: &[i64]) -> Result<()> {
        let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else { return Ok(()) };
        let not_text = || Error::Data("each row must be text in UTF-8".to_owned());
        // One check of all rows takes less time than one of each, and a row may not begin within a character.
        let rows = values.get(first as usize..last as usize).and_then(|bytes| from_utf8(bytes).ok());
        let rows = rows.ok_or_else(not_text)?;
        let row = |places: &[i64]| rows.get((places[0] - first) as usize..(places[1] - first) as usize);
        if offsets.windows(2).any(|places| row(places).is_none()) {
            return Err(not_text());
        }
        self.text.reserve(rows.len());
        for text in offsets.windows(2).filter_map(row) {
            let from = self.text.len();
            self.text.push_str(text);
            self.scan(from, true);
        }
        Ok(())
    }

    /// Returns the pieces that are complete.
    pub fn take(&mut self) -> TextBlock {
        let mut rest = String::with_capacity(self.text.len());
        rest.push_str(&self.text[self.start..]);
        let mut text = std::mem::replace(&mut self.text, rest);
        text.truncate(take(&mut self.start));
        TextBlock { text, pieces: take(&mut self.pieces) }
    }

    /// Cuts the text that was added from `from` on.
    fn scan(&mut self, from: usize, ends: bool) {
        if let Some(separator) = self.separator.take() {
            let length = separator.needle().len();
            // A separator can begin before the new text.
            let mut at = from.saturating_sub(length - 1).max(self.start);
            while let Some(found) = separator.find(&self.text.as_bytes()[at..]) {
                self.finish(at + found);
                self.after_separator = true;
                at += found + length;
                self.start = at;
            }
            self.separator = Some(separator);
        }
        if ends {
            self.finish(self.text.len());
            self.start = self.text.len();
            self.after_separator = false;
        } else if self.text.len() - self.start > self.options.piece_bytes {
            self.cut();
        }
    }

    /// Adds the last pieces of the document that ends at `stop`.
    fn finish(&mut self, stop: usize) {
        self.skip_line_break(stop);
        if !self.has_pieces && is_blank(&self.text[self.start..stop]) {
            self.num_blank += usize::from(stop > self.start);
            return;
        }
        while let Some(border) = self.border(self.start, stop) {
            self.add(border, false);
        }
        self.add(stop, true);
        self.has_pieces = false;
    }

    /// Adds pieces of the document that isn't complete yet.
    fn cut(&mut self) {
        self.skip_line_break(self.text.len());
        // The last bytes can be the beginning of a separator.
        let length = self.options.separator.as_ref().map_or(0, String::len);
        let last = character_start(&self.text, self.text.len().saturating_sub(length));
        while let Some(border) = self.border(self.start, last) {
            if !self.has_pieces && is_blank(&self.text[self.start..border]) {
                return;
            }
            self.add(border, false);
            self.has_pieces = true;
        }
    }

    fn add(&mut self, stop: usize, ends: bool) {
        self.pieces.push(Piece { place: self.start..stop, ends });
        self.start = stop;
    }

    /// Where the piece that begins at `start` is to be cut, before `last`; `None` if it is short enough.
    fn border(&self, start: usize, last: usize) -> Option<usize> {
        let from = start + self.options.piece_bytes;
        if !self.options.at_line_ends || last <= from {
            return None;
        }
        let line_ends = memchr_iter(b'\n', &self.text.as_bytes()[from..last - 1]).map(|found| from + found);
        if let Some(line_end) = line_ends.into_iter().find(|&line_end| self.is_between_lines(line_end)) {
            return Some(line_end + 1);
        }
        let longest = start + self.options.max_piece_bytes;
        if last <= longest {
            return None;
        }
        let first = self.text[start..].chars().next().map_or(0, char::len_utf8);
        let longest = character_start(&self.text, longest).max(start + first);
        let space = self.text.as_bytes()[start + 1..longest].iter().rposition(|&byte| byte == b' ');
        Some(space.map_or(longest, |space| start + 1 + space))
    }

    /// Whether no token crosses the line end at `place`; see `Tokenizer::cuts_at_line_ends`.
    fn is_between_lines(&self, place: usize) -> bool {
        let before = self.text[..place].chars().next_back();
        let after = self.text[place + 1..].chars().next();
        before.is_some_and(|character| !is_space(character))
            && after.is_some_and(|character| !is_space(character) && character != '/')
    }

    fn skip_line_break(&mut self, stop: usize) {
        if !take(&mut self.after_separator) {
            return;
        }
        let rest = &self.text[self.start..stop];
        self.start += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
    }
}

fn not_utf8(byte: u8, offset: usize) -> Error {
    Error::Data(format!("text must be UTF-8, got byte {byte:#04x} at offset {offset}"))
}

fn is_blank(text: &str) -> bool {
    text.chars().all(is_space)
}

/// White space as Python knows it, which counts four separators among the control characters.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}
