//! The tables and buffers of one encoding thread.

use crate::tokenizer::cache::key::Key;
use crate::tokenizer::cache::table::{PieceCache, Words};
use crate::tokenizer::merge::{BATCH, Batch};
use crate::tokenizer::split::pretokenize::MAX_PIECES;

/// Number of ids collected before they are appended to the caller's vector.
pub const BUFFER_IDS: usize = 8192;

/// Number of bytes that a worker encodes with a compact cache before it gets a full one.
const COMPACT_BYTES: usize = 256 << 10;

/// The tables and buffers of one encoding thread.
pub struct Worker {
    pub cache: PieceCache,
    /// Number of bytes left until the compact cache is replaced; None if the cache is full-sized.
    compact_bytes: Option<usize>,
    pub round: LookupRound,
    /// Pending shorter and longer pieces, kept apart because a mixed batch takes as long as its longest piece.
    pub waiting: [PendingMerges; 2],
    pub batch: Batch,
    pub buffer: [u32; BUFFER_IDS],
}

/// Pieces that are looked up together.
pub struct LookupRound {
    pub keys: [Key; MAX_PIECES],
    /// The home line of each piece in the cache.
    pub lines: [usize; MAX_PIECES],
    /// The first of the two cache words found for each piece; `seconds` has the second.
    pub firsts: [u64; MAX_PIECES],
    pub seconds: [u64; MAX_PIECES],
    /// The indices of the new pieces.
    pub new: [usize; MAX_PIECES],
}

impl Worker {
    /// A worker that has not encoded anything yet.
    pub fn new() -> Box<Self> {
        Self::with_cache(PieceCache::new(), None)
    }

    /// A worker that needs little memory until it has encoded much: most threads that meet another one in an encoder
    /// bring one short text, and a full cache for each would cost a server a hundred megabytes.
    pub fn compact() -> Box<Self> {
        Self::with_cache(PieceCache::compact(), Some(COMPACT_BYTES))
    }

    fn with_cache(cache: PieceCache, compact_bytes: Option<usize>) -> Box<Self> {
        let round = LookupRound {
            keys: [[0; 2]; MAX_PIECES],
            lines: [0; MAX_PIECES],
            firsts: [0; MAX_PIECES],
            seconds: [0; MAX_PIECES],
            new: [0; MAX_PIECES],
        };
        Box::new(Self {
            cache,
            compact_bytes,
            round,
            waiting: [PendingMerges::new(), PendingMerges::new()],
            batch: Batch::new(),
            buffer: [0; BUFFER_IDS],
        })
    }

    /// Whether the cache is compact.
    pub fn is_compact(&self) -> bool {
        self.compact_bytes.is_some()
    }

    /// Prepares for a text of this many bytes.
    #[inline]
    pub fn expect(&mut self, num_bytes: usize) {
        if let Some(left) = self.compact_bytes {
            self.compact_bytes = left.checked_sub(num_bytes);
            if self.compact_bytes.is_none() {
                self.cache = PieceCache::new();
            }
        }
    }

    /// Caches the tokens of a piece of the round. The piece must not be cached yet.
    #[inline]
    pub fn keep(&mut self, index: usize, piece: &[u8], ids: &[u32]) {
        let words = self.cache.insert(self.round.keys[index], piece, ids);
        self.round.set(index, words);
    }
}

impl LookupRound {
    /// Sets the two cache words of a piece.
    #[inline(always)]
    pub fn set(&mut self, index: usize, [first, second]: Words) {
        (self.firsts[index], self.seconds[index]) = (first, second);
    }
}

/// New pieces of a round that wait to be merged together.
pub struct PendingMerges {
    /// The index of each piece in the round.
    indices: [usize; BATCH],
    /// The home line of each piece in the cache.
    lines: [u32; BATCH],
    count: usize,
}

impl PendingMerges {
    fn new() -> Self {
        Self { indices: [0; BATCH], lines: [u32::MAX; BATCH], count: 0 }
    }

    /// Adds a piece and returns the number of pending pieces. Skips the piece if another one with the same home line is
    /// pending, because that is usually the same piece.
    #[inline]
    pub fn push(&mut self, index: usize, line: u32) -> usize {
        let is_there = self.lines.iter().fold(false, |is_there, &other| is_there | (other == line));
        (self.indices[self.count], self.lines[self.count]) = (index, line);
        self.count += usize::from(!is_there);
        self.count
    }

    /// Returns the indices and the number of the pending pieces, and clears them.
    pub fn take(&mut self) -> ([usize; BATCH], usize) {
        self.lines = [u32::MAX; BATCH];
        (self.indices, std::mem::take(&mut self.count))
    }
}
