//! The cache's blocks: who holds how many references, and which are free.

use std::collections::VecDeque;

use crate::{Error, Result};

/// Index of a block in the cache.
pub type BlockId = u32;

/// Hands out blocks of the paged cache and takes them back.
///
/// A block is free or has at least one reference. The block freed first is reused first, so a freed block's content
/// lives as long as it can. `tests/reference/block_pool.py` is the obvious twin.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    free: VecDeque<BlockId>,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if `num_blocks` is 0 or does not fit the block tables' int32.
    pub fn new(num_blocks: usize) -> Result<Self> {
        if num_blocks == 0 || num_blocks > i32::MAX as usize {
            return Err(Error::InvalidArgument(format!("`num_blocks` must be in [1, {}], got {num_blocks}", i32::MAX)));
        }
        Ok(Self { ref_counts: vec![0; num_blocks], free: (0..num_blocks as BlockId).collect() })
    }

    /// Number of blocks, free or not.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Number of free blocks.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Whether `count` blocks are free.
    pub fn can_allocate(&self, count: usize) -> bool {
        count <= self.free.len()
    }

    /// Takes the block freed longest ago, with one reference; `None` if none is free.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop_front()?;
        self.ref_counts[block as usize] = 1;
        Some(block)
    }

    /// Adds a reference to a block in use, for another request with the same tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the block is free or unknown.
    pub fn share(&mut self, block: BlockId) -> Result<()> {
        *self.held_count(block)? += 1;
        Ok(())
    }

    /// Drops one reference; the last one frees the block.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the block is free or unknown.
    pub fn release(&mut self, block: BlockId) -> Result<()> {
        let count = self.held_count(block)?;
        *count -= 1;
        if *count == 0 {
            self.free.push_back(block);
        }
        Ok(())
    }

    /// Number of references to a block; 0 if it is free or unknown.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts.get(block as usize).copied().unwrap_or(0)
    }

    fn held_count(&mut self, block: BlockId) -> Result<&mut u32> {
        match self.ref_counts.get_mut(block as usize) {
            Some(count) if *count > 0 => Ok(count),
            _ => Err(Error::Internal(format!("block {block} is not in use"))),
        }
    }

    /// Checks that the references are exactly those of `holders`, and that each other block is free once.
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
        for &block in &self.free {
            listed[block as usize] += 1;
        }
        for (block, (&count, &held)) in self.ref_counts.iter().zip(&expected).enumerate() {
            if count != held || listed[block] != u32::from(held == 0) {
                return Err(Error::Internal(format!(
                    "block {block} has {count} references, {held} holders and is {} times on the free list",
                    listed[block]
                )));
            }
        }
        Ok(())
    }
}
