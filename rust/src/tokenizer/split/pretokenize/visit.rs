//! The interface that receives pieces.

use super::masks::BLOCK_BYTES;

/// Maximum number of pieces that [`Visit::pieces`] takes at once: the pieces of six blocks.
pub const MAX_PIECES: usize = 6 * BLOCK_BYTES;

/// Receives the pieces of a text. Every closure is a visitor; a named type can be inlined into the loop.
pub trait Visit {
    /// Receives the piece from byte `start` to byte `end`.
    fn piece(&mut self, start: usize, end: usize);

    /// Receives adjacent pieces: the first starts at `start`, and every other piece starts where the previous one ends.
    #[inline(always)]
    fn pieces(&mut self, start: usize, ends: &[usize]) {
        let mut start = start;
        for &end in ends {
            self.piece(start, end);
            start = end;
        }
    }
}

impl<F: FnMut(usize, usize)> Visit for F {
    #[inline(always)]
    fn piece(&mut self, start: usize, end: usize) {
        self(start, end);
    }
}
