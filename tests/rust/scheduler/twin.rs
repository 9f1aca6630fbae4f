//! The block pool as lists that are searched.

use std::collections::{BTreeMap, VecDeque};

use llm_core::scheduler::{BlockHash, BlockId, BlockPool};

/// Every reference by name, the free blocks in order, and what each findable block holds.
pub struct PoolTwin {
    pub held: Vec<BlockId>,
    pub free: VecDeque<BlockId>,
    pub findable: BTreeMap<BlockId, BlockHash>,
}

impl PoolTwin {
    pub fn new(num_blocks: usize) -> Self {
        Self { held: Vec::new(), free: (0..num_blocks as BlockId).collect(), findable: BTreeMap::new() }
    }

    /// Does the same to both, and compares what they answer.
    pub fn apply(&mut self, pool: &mut BlockPool, action: u8, pick: u32) {
        let any_block = pick % pool.num_blocks() as u32;
        let hash = BlockHash::new(u128::from(pick % 7) + 1).unwrap();
        match action {
            0 => assert_eq!(pool.allocate(), self.allocate()),
            1 => assert_eq!(pool.acquire(any_block).is_ok(), self.acquire(any_block)),
            2 => assert_eq!(pool.release(any_block).is_ok(), self.release(any_block)),
            3 => assert_eq!(pool.register(any_block, hash).ok(), self.register(any_block, hash)),
            _ => assert_eq!(pool.find(hash), self.find(hash)),
        }
    }

    fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop_front()?;
        self.findable.remove(&block);
        self.held.push(block);
        Some(block)
    }

    fn acquire(&mut self, block: BlockId) -> bool {
        let is_known = self.held.contains(&block) || self.findable.contains_key(&block);
        if is_known {
            self.free.retain(|&other| other != block);
            self.held.push(block);
        }
        is_known
    }

    fn release(&mut self, block: BlockId) -> bool {
        let Some(index) = self.held.iter().position(|&other| other == block) else { return false };
        self.held.swap_remove(index);
        match self.findable.contains_key(&block) {
            _ if self.held.contains(&block) => {}
            true => self.free.push_back(block),
            false => self.free.push_front(block),
        }
        true
    }

    fn register(&mut self, block: BlockId, hash: BlockHash) -> Option<bool> {
        if !self.held.contains(&block) || self.findable.contains_key(&block) {
            return None;
        }
        let is_new = self.find(hash).is_none();
        if is_new {
            self.findable.insert(block, hash);
        }
        Some(is_new)
    }

    fn find(&self, hash: BlockHash) -> Option<BlockId> {
        self.findable.iter().find(|(_, other)| **other == hash).map(|(&block, _)| block)
    }
}
