//! Text to learn from: cut into documents, and long documents into pieces, without a Python object for each.

mod cutter;
mod field;
mod lines;

pub use cutter::{CutOptions, DocumentCutter};
pub use lines::JsonLines;

use std::ops::Range;

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its place in the text of its block, in bytes.
    pub place: Range<usize>,
    /// Whether the document ends with it.
    pub ends: bool,
}

/// Consecutive pieces of documents in one text; what lies between pieces belongs to none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextBlock {
    text: String,
    pieces: Vec<Piece>,
}

impl TextBlock {
    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there is no piece.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The text of each piece, and whether its document ends with it.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = (&str, bool)> {
        self.pieces.iter().map(|piece| (&self.text[piece.place.clone()], piece.ends))
    }

    /// Number of documents that end in this block.
    pub fn num_documents(&self) -> usize {
        self.pieces.iter().filter(|piece| piece.ends).count()
    }

    /// Bytes of all pieces.
    pub fn num_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.place.len()).sum()
    }

    /// Keeps what lies in `range` of the pieces' bytes. A border within a character moves to its beginning, and a
    /// document that is cut ends there.
    #[must_use]
    pub fn slice(mut self, range: Range<usize>) -> Self {
        let text = &self.text;
        let mut position = 0;
        self.pieces.retain_mut(|piece| {
            let size = piece.place.len();
            let (first, last) = (range.start.saturating_sub(position), range.end.saturating_sub(position));
            position += size;
            if last == 0 || first >= size {
                return false;
            }
            let whole = piece.place.clone();
            let border = |bytes: usize| character_start(text, whole.start + bytes.min(size));
            piece.place = border(first)..border(last);
            piece.ends |= last <= size;
            !piece.place.is_empty()
        });
        self
    }
}

/// The beginning of the character that `place` lies in.
fn character_start(text: &str, place: usize) -> usize {
    (0..=place.min(text.len())).rev().find(|&start| text.is_char_boundary(start)).unwrap_or(0)
}
