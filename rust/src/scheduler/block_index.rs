//! Index of cached blocks by the hash of their content.

use std::num::NonZeroU32;

use super::hash::{BlockHash, BlockId};

/// Hash table with eight bytes per entry: part of the hash, and the block, which stores the whole hash.
///
/// Hashes are as good as random, so their low bits give an entry's home. Entries lie at or after their home without a
/// gap in between; removal moves later entries up, so it leaves no tombstone.
///
/// Source: Knuth 1998, "The Art of Computer Programming" 3, 6.4, algorithms L and R (linear probing).
#[derive(Debug)]
pub(super) struct BlockIndex {
    entries: Vec<Option<Entry>>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u32,
    /// One's complement of the block, which is never 0 because no block is `u32::MAX`.
    block: NonZeroU32,
}

impl Entry {
    fn block(self) -> BlockId {
        !self.block.get()
    }
}

impl BlockIndex {
    /// Creates an empty index with room for `num_blocks`.
    pub fn new(num_blocks: usize) -> Self {
        Self { entries: vec![None; (2 * num_blocks).next_power_of_two()], len: 0 }
    }

    /// Number of blocks in the index.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Finds the block with this hash; `has_hash` compares the whole hash of a candidate.
    #[inline]
    pub fn find(&self, hash: BlockHash, has_hash: impl Fn(BlockId) -> bool) -> Option<BlockId> {
        self.search(hash, has_hash).ok().and_then(|place| self.entries[place]).map(Entry::block)
    }

    /// Adds a block under its hash. Returns `false` if another block already has the hash; that block stays.
    #[inline]
    pub fn insert(&mut self, hash: BlockHash, block: BlockId, has_hash: impl Fn(BlockId) -> bool) -> bool {
        let Err(place) = self.search(hash, has_hash) else { return false };
        self.entries[place] = NonZeroU32::new(!block).map(|block| Entry { tag: tag(hash), block });
        self.len += 1;
        true
    }

    /// Removes the block that was added under this hash.
    #[inline]
    pub fn remove(&mut self, hash: BlockHash, block: BlockId) {
        let Ok(mut gap) = self.search(hash, |other| other == block) else { return };
        self.len -= 1;
        let mut place = gap;
        loop {
            place = self.after(place);
            let Some(entry) = self.entries[place] else { break };
            // The entry may move into the gap unless that lies before its home.
            let distance = |from: usize| place.wrapping_sub(from) & self.mask();
            if distance(self.home(entry.tag)) >= distance(gap) {
                self.entries[gap] = Some(entry);
                gap = place;
            }
        }
        self.entries[gap] = None;
    }

    /// Index of this hash's entry, or of the gap where the entry would go.
    #[inline]
    fn search(&self, hash: BlockHash, has_hash: impl Fn(BlockId) -> bool) -> Result<usize, usize> {
        let tag = tag(hash);
        let mut place = self.home(tag);
        while let Some(entry) = self.entries[place] {
            if entry.tag == tag && has_hash(entry.block()) {
                return Ok(place);
            }
            place = self.after(place);
        }
        Err(place)
    }

    #[inline]
    fn mask(&self) -> usize {
        self.entries.len() - 1
    }

    #[inline]
    fn home(&self, tag: u32) -> usize {
        tag as usize & self.mask()
    }

    #[inline]
    fn after(&self, place: usize) -> usize {
        (place + 1) & self.mask()
    }
}

#[inline]
fn tag(hash: BlockHash) -> u32 {
    hash.get() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four blocks share eight entries: equal tags, consecutive tags, and tags that wrap around the end.
    #[test]
    fn finds_what_was_added_whatever_was_removed() {
        let hashes = [7, 7 | 1 << 32, 15, 8].map(|hash| BlockHash::new(hash).unwrap_or(BlockHash::MIN));
        for removed in 0..4_usize {
            let mut index = BlockIndex::new(4);
            let has = |hash| move |block: BlockId| hashes[block as usize] == hash;
            for (block, &hash) in (0..).zip(&hashes) {
                assert!(index.insert(hash, block, has(hash)));
                assert!(!index.insert(hash, block, has(hash)));
            }
            index.remove(hashes[removed], removed as BlockId);
            for (block, &hash) in (0..).zip(&hashes) {
                assert_eq!(index.find(hash, has(hash)), (block != removed as BlockId).then_some(block));
            }
            assert_eq!(index.len(), 3);
        }
    }
}
