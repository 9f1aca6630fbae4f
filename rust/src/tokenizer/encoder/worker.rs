//! What a thread needs for itself while it encodes.

use crate::tokenizer::cache::key::Key;
use crate::tokenizer::cache::table::{PieceCache, Words};
use crate::tokenizer::merge::{BATCH, Batch};
use crate::tokenizer::split::pretokenize::MAX_PIECES;

/// Ids that are collected before they go to the caller's vector.
pub const BUFFER_IDS: usize = 8192;

/// What a thread needs for itself while it encodes.
pub struct Worker {
    pub cache: PieceCache,
    pub round: LookupRound,
    /// Shorter and longer pieces: together they would take the time of the longest.
    pub waiting: [PendingMerges; 2],
    pub batch: Batch,
    pub buffer: [u32; BUFFER_IDS],
}

/// The pieces that are looked up together.
pub struct LookupRound {
    pub keys: [Key; MAX_PIECES],
    /// Where each belongs in the cache.
    pub lines: [usize; MAX_PIECES],
    /// The two words that were found there.
    pub firsts: [u64; MAX_PIECES],
    pub seconds: [u64; MAX_PIECES],
    /// Which of them are new.
    pub new: [usize; MAX_PIECES],
}

impl Worker {
    /// What has not encoded anything.
    pub fn new() -> Box<Self> {
        let round = LookupRound {
            keys: [[0; 2]; MAX_PIECES],
            lines: [0; MAX_PIECES],
            firsts: [0; MAX_PIECES],
            seconds: [0; MAX_PIECES],
            new: [0; MAX_PIECES],
        };
        Box::new(Self {
            cache: PieceCache::new(),
            round,
            waiting: [PendingMerges::new(), PendingMerges::new()],
            batch: Batch::new(),
            buffer: [0; BUFFER_IDS],
        })
    }

    /// Keeps the tokens of a piece of the round, which are not there.
    #[inline]
    pub fn keep(&mut self, index: usize, piece: &[u8], ids: &[u32]) {
        let words = self.cache.insert(self.round.keys[index], piece, ids);
        self.round.set(index, words);
    }
}

impl LookupRound {
    /// Puts the words of a piece where those that were found are.
    #[inline(always)]
    pub fn set(&mut self, index: usize, [first, second]: Words) {
        (self.firsts[index], self.seconds[index]) = (first, second);
    }
}

/// New pieces of a round that are to be merged together.
pub struct PendingMerges {
    /// Which of the round they are.
    indices: [usize; BATCH],
    /// Where each belongs in the cache.
    lines: [u32; BATCH],
    count: usize,
}

impl PendingMerges {
    fn new() -> Self {
        Self { indices: [0; BATCH], lines: [u32::MAX; BATCH], count: 0 }
    }

    /// Adds a piece, unless there is one of the same line: most often it is the same. Returns how many there are.
    #[inline]
    pub fn push(&mut self, index: usize, line: u32) -> usize {
        let is_there = self.lines.iter().fold(false, |is_there, &other| is_there | (other == line));
        (self.indices[self.count], self.lines[self.count]) = (index, line);
        self.count += usize::from(!is_there);
        self.count
    }

    /// Which wait, from now on none.
    pub fn take(&mut self) -> ([usize; BATCH], usize) {
        self.lines = [u32::MAX; BATCH];
        (self.indices, std::mem::take(&mut self.count))
    }
}
