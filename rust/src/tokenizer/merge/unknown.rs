//! The token that stands for text without a token.

/// The token for text that has no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown {
    /// The id of the unknown token.
    pub id: u32,
    /// Whether a run of unknown characters is one token.
    pub fuse: bool,
}

/// Emits the symbols from which merging a piece starts, each with its number of bytes. Bytes that become no token are
/// emitted without an id.
///
/// A run of unknown characters is held back until the known symbol that ends it.
pub struct Symbols<F> {
    unknown: Option<Unknown>,
    emit: F,
    /// Number of bytes in the pending run of unknown characters.
    waiting_bytes: usize,
}

impl<F: FnMut(Option<u32>, usize)> Symbols<F> {
    /// Starts a piece; `emit` receives each symbol.
    pub fn new(unknown: Option<Unknown>, emit: F) -> Self {
        Self { unknown, emit, waiting_bytes: 0 }
    }

    /// Emits a known symbol.
    #[inline]
    pub fn known(&mut self, id: u32, num_bytes: usize) {
        self.close();
        (self.emit)(Some(id), num_bytes);
    }

    /// Emits a known symbol ahead of the pending unknown characters.
    #[inline]
    pub fn overtaking(&mut self, id: u32, num_bytes: usize) {
        (self.emit)(Some(id), num_bytes);
    }

    /// Adds an unknown character.
    #[inline]
    pub fn unknown(&mut self, num_bytes: usize) {
        if self.unknown.is_some_and(|unknown| !unknown.fuse) {
            self.close();
        }
        self.waiting_bytes += num_bytes;
    }

    /// Ends the run of unknown characters and emits it.
    #[inline]
    pub fn close(&mut self) {
        if self.waiting_bytes > 0 {
            (self.emit)(self.unknown.map(|unknown| unknown.id), std::mem::take(&mut self.waiting_bytes));
        }
    }
}
