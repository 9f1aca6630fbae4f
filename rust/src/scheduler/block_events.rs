//! What became findable in the prefix cache and what no longer is, for those who keep an index of it elsewhere.

use super::hash::BlockHash;

/// A change of the blocks that a lookup by content finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockEvent {
    /// Blocks of one text became findable, each the successor of the one before.
    Stored(StoredBlocks),
    /// Blocks were given to other content.
    Removed(Vec<BlockHash>),
}

/// Consecutive blocks of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlocks {
    /// Hashes of the blocks, in the order of the text.
    pub hashes: Vec<BlockHash>,
    /// Hash of the block before the first; `None` where the text begins.
    pub parent: Option<BlockHash>,
    /// Tokens of all blocks, `block_size` of each.
    pub token_ids: Vec<u32>,
    /// The adapter that computed them, 0 for none.
    pub adapter: u16,
}

/// The changes since they were last taken; nothing is kept until somebody asks for the first time.
#[derive(Debug, Default)]
pub(super) struct BlockLog(Option<Vec<BlockEvent>>);

impl BlockLog {
    /// Returns the changes since the last call. The first call starts the record and returns none.
    pub fn take(&mut self) -> Vec<BlockEvent> {
        self.0.replace(Vec::new()).unwrap_or_default()
    }

    /// Records a block that is findable from now on.
    #[inline]
    pub fn stored(&mut self, hash: BlockHash, parent: Option<BlockHash>, token_ids: &[u32], adapter: u16) {
        let Some(events) = &mut self.0 else { return };
        match events.last_mut() {
            Some(BlockEvent::Stored(blocks)) if parent.is_some() && blocks.hashes.last().copied() == parent => {
                blocks.hashes.push(hash);
                blocks.token_ids.extend_from_slice(token_ids);
            }
            _ => events.push(BlockEvent::Stored(StoredBlocks {
                hashes: vec![hash],
                parent,
                token_ids: token_ids.to_vec(),
                adapter,
            })),
        }
    }

    /// Records a block whose content can no longer be found.
    #[inline]
    pub fn removed(&mut self, hash: BlockHash) {
        let Some(events) = &mut self.0 else { return };
        match events.last_mut() {
            Some(BlockEvent::Removed(hashes)) => hashes.push(hash),
            _ => events.push(BlockEvent::Removed(vec![hash])),
        }
    }
}
