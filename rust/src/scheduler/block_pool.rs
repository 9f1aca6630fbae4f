//! The pool of cache blocks: reference counts, the free list, and lookup by content.

use super::block_events::BlockLog;
use super::block_index::BlockIndex;
use super::hash::{BlockHash, BlockId};
use crate::{Error, Result};

const NONE: BlockId = BlockId::MAX;

/// A block, either in use or linked into the free list.
#[derive(Debug, Clone, Copy)]
struct Block {
    hash: Option<BlockHash>,
    ref_count: u32,
    previous: BlockId,
    next: BlockId,
}

/// Allocates and frees the blocks of the paged cache; every operation is O(1).
///
/// A block is free or has at least one reference. A free block keeps its content and stays findable by its hash until
/// it is allocated again, so invalidation costs nothing. The free list is linked through the blocks themselves, so a
/// block in its middle can be revived. Allocation takes the front of the list: blocks without a hash first, then the
/// blocks freed longest ago. `tests/reference/block_pool.py` is the slow twin.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    front: BlockId,
    back: BlockId,
    num_free: usize,
    index: BlockIndex,
    pub(super) log: BlockLog,
}

impl BlockPool {
    /// Creates a pool of `num_blocks` free blocks.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if `num_blocks` is 0 or exceeds the int32 range of block tables.
    pub fn new(num_blocks: usize) -> Result<Self> {
        if num_blocks == 0 || num_blocks > i32::MAX as usize {
            return Err(Error::InvalidArgument(format!("`num_blocks` must be in [1, {}], got {num_blocks}", i32::MAX)));
        }
        let mut pool = Self {
            blocks: vec![Block { hash: None, ref_count: 0, previous: NONE, next: NONE }; num_blocks],
            front: NONE,
            back: NONE,
            num_free: 0,
            index: BlockIndex::new(num_blocks),
            log: BlockLog::default(),
        };
        (0..num_blocks as BlockId).for_each(|block| pool.push_back(block));
        Ok(pool)
    }

    /// Number of blocks, free or in use.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Number of free blocks, including those that can still be found by their content.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Number of blocks that can be found by their content, in use or free.
    pub fn num_findable(&self) -> usize {
        self.index.len()
    }

    /// Whether at least `count` blocks are free.
    #[inline]
    pub fn can_allocate(&self, count: usize) -> bool {
        count <= self.num_free
    }

    /// Allocates the block at the front of the free list, with one reference. Its old content can no longer be found.
    /// Returns `None` if no block is free.
    #[inline]
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.front;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        let block = &mut self.blocks[id as usize];
        block.ref_count = 1;
        if let Some(hash) = block.hash.take() {
            self.index.remove(hash, id);
            self.log.removed(hash);
        }
        Some(id)
    }

    /// Finds the block with this content.
    #[inline]
    pub fn find(&self, hash: BlockHash) -> Option<BlockId> {
        self.index.find(hash, |block| self.blocks[block as usize].hash == Some(hash))
    }

    /// Adds a reference to a block that is in use or findable, for another request with the same prefix.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the block is unknown, or free without content.
    pub fn acquire(&mut self, id: BlockId) -> Result<()> {
        match self.blocks.get(id as usize) {
            Some(block) if block.ref_count > 0 => {}
            Some(block) if block.hash.is_some() => self.unlink(id),
            _ => return Err(Error::Internal(format!("block {id} holds nothing to share"))),
        }
        self.blocks[id as usize].ref_count += 1;
        Ok(())
    }

    /// Registers the content of a block in use. Returns `false` if another block already has this content; lookups keep
    /// finding that block.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the block is free or already has a hash.
    #[inline]
    pub fn register(&mut self, id: BlockId, hash: BlockHash) -> Result<bool> {
        if self.held(id)?.hash.is_some() {
            return Err(Error::Internal(format!("block {id} is findable already")));
        }
        let Self { index, blocks, .. } = self;
        let is_new = index.insert(hash, id, |block| blocks[block as usize].hash == Some(hash));
        if is_new {
            blocks[id as usize].hash = Some(hash);
        }
        Ok(is_new)
    }

    /// Drops one reference; dropping the last one frees the block.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the block is free or unknown.
    #[inline]
    pub fn release(&mut self, id: BlockId) -> Result<()> {
        let block = self.held(id)?;
        block.ref_count -= 1;
        if block.ref_count > 0 {
            return Ok(());
        }
        match block.hash {
            Some(_) => self.push_back(id),
            None => self.push_front(id),
        }
        Ok(())
    }

    /// Number of references to a block; 0 for a free or unknown block.
    #[inline]
    pub fn ref_count(&self, id: BlockId) -> u32 {
        self.blocks.get(id as usize).map_or(0, |block| block.ref_count)
    }

    /// Free blocks in the order in which they will be reused. Costs O(free).
    pub fn free_blocks(&self) -> Vec<BlockId> {
        let next = |id: &BlockId| Some(self.blocks[*id as usize].next).filter(|id| *id != NONE);
        let first = Some(self.front).filter(|id| *id != NONE);
        std::iter::successors(first, next).take(self.num_blocks() + 1).collect()
    }

    #[inline]
    fn held(&mut self, id: BlockId) -> Result<&mut Block> {
        match self.blocks.get_mut(id as usize) {
            Some(block) if block.ref_count > 0 => Ok(block),
            _ => Err(Error::Internal(format!("block {id} is not in use"))),
        }
    }

    fn push_back(&mut self, id: BlockId) {
        let previous = std::mem::replace(&mut self.back, id);
        self.link(id, previous, NONE);
    }

    fn push_front(&mut self, id: BlockId) {
        let next = std::mem::replace(&mut self.front, id);
        self.link(id, NONE, next);
    }

    #[inline]
    fn link(&mut self, id: BlockId, previous: BlockId, next: BlockId) {
        let block = &mut self.blocks[id as usize];
        (block.previous, block.next) = (previous, next);
        *self.next_of(previous) = id;
        *self.previous_of(next) = id;
        self.num_free += 1;
    }

    #[inline]
    fn unlink(&mut self, id: BlockId) {
        let Block { previous, next, .. } = self.blocks[id as usize];
        *self.next_of(previous) = next;
        *self.previous_of(next) = previous;
        self.num_free -= 1;
    }

    /// The link that follows a block; `NONE` stands for the head of the list.
    #[inline]
    fn next_of(&mut self, id: BlockId) -> &mut BlockId {
        if id == NONE { &mut self.front } else { &mut self.blocks[id as usize].next }
    }

    #[inline]
    fn previous_of(&mut self, id: BlockId) -> &mut BlockId {
        if id == NONE { &mut self.back } else { &mut self.blocks[id as usize].previous }
    }

    /// Checks that the references match `holders`, that every other block is on the free list once, and that each hash
    /// leads to the block that has it. Costs O(blocks + holders).
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] naming the first block that disagrees.
    pub fn check_integrity(&self, holders: impl IntoIterator<Item = BlockId>) -> Result<()> {
        let mut expected = vec![0u32; self.num_blocks()];
        for block in holders {
            *expected
                .get_mut(block as usize)
                .ok_or_else(|| Error::Internal(format!("block {block} is held but does not exist")))? += 1;
        }
        let mut listed = vec![0u32; self.num_blocks()];
        let free = self.free_blocks();
        free.iter().for_each(|&block| listed[block as usize] += 1);
        for (id, (block, &held)) in self.blocks.iter().zip(&expected).enumerate() {
            if block.ref_count != held || listed[id] != u32::from(held == 0) {
                return Err(Error::Internal(format!(
                    "block {id} has {} references, {held} holders and is {} times on the free list",
                    block.ref_count, listed[id]
                )));
            }
            if block.hash.is_some_and(|hash| self.find(hash) != Some(id as BlockId)) {
                return Err(Error::Internal(format!("block {id} has a hash that leads elsewhere")));
            }
        }
        let num_hashed = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        if num_hashed != self.index.len() || free.len() != self.num_free {
            return Err(Error::Internal(format!(
                "{num_hashed} blocks have a hash and {} are free, counted are {} and {}",
                free.len(),
                self.index.len(),
                self.num_free
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Damage = fn(&mut BlockPool);

    /// Blocks 0 (with a hash) and 1 in use, 2 (with a hash) and 3 free.
    fn pool() -> BlockPool {
        let mut pool = BlockPool::new(4).expect("4 blocks are allowed");
        for hash in 1..=3 {
            let block = pool.allocate().expect("a block is free");
            if hash != 2 {
                assert!(matches!(pool.register(block, BlockHash::MIN.saturating_add(hash)), Ok(true)));
            }
        }
        assert!(pool.release(2).is_ok());
        pool
    }

    #[test]
    fn the_integrity_check_notices_each_kind_of_damage() {
        assert!(pool().check_integrity([0, 1]).is_ok());
        let damages: [(Damage, &str); 6] = [
            (|pool| pool.blocks[1].ref_count = 2, "block 1 has 2 references, 1 holders"),
            (|pool| pool.unlink(3), "block 3 has 0 references, 0 holders and is 0 times on the free list"),
            (|pool| pool.push_back(0), "block 0 has 1 references, 1 holders and is 1 times on the free list"),
            (|pool| pool.blocks[0].hash = pool.blocks[2].hash, "block 0 has a hash that leads elsewhere"),
            (|pool| pool.blocks[2].hash = None, "1 blocks have a hash and 2 are free, counted are 2 and 2"),
            (|pool| pool.num_free = 3, "2 blocks have a hash and 2 are free, counted are 2 and 3"),
        ];
        for (damage, expected) in damages {
            let mut pool = pool();
            damage(&mut pool);
            let found = pool.check_integrity([0, 1]).map_err(|error| error.to_string());
            assert!(found.as_ref().is_err_and(|message| message.contains(expected)), "{found:?}, not {expected}");
        }
    }

    #[test]
    fn the_integrity_check_notices_holders_without_reference_and_references_without_holder() {
        let holders: [(&[BlockId], &str); 4] = [
            (&[0], "block 1 has 1 references, 0 holders"),
            (&[0, 1, 1], "block 1 has 1 references, 2 holders"),
            (&[0, 1, 3], "block 3 has 0 references, 1 holders and is 1 times on the free list"),
            (&[0, 1, 7], "block 7 is held but does not exist"),
        ];
        for (holders, expected) in holders {
            let found = pool().check_integrity(holders.iter().copied()).map_err(|error| error.to_string());
            assert!(found.as_ref().is_err_and(|message| message.contains(expected)), "{found:?}, not {expected}");
        }
    }
}
