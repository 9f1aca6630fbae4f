//! What the scheduler knows of a request.

use super::{BlockHash, BlockHasher, BlockId};

/// What a request asks of the scheduler besides its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestOptions {
    /// New tokens at most, at least 1.
    pub max_tokens: usize,
    /// Lower runs first; within one priority, first come first served.
    pub priority: i32,
    /// Answers to the one prompt, at least 1; their ids follow the request's.
    pub num_choices: usize,
    /// Whether the logits of the prompt's own positions are wanted; such a request reads nothing from the prefix cache.
    pub prompt_rows: bool,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { max_tokens: 1, priority: 0, num_choices: 1, prompt_rows: false }
    }
}

/// A request's place in the order of all, which is also its identity: no other request ever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub priority: i32,
    pub arrival: u64,
    /// Where its state is kept.
    pub slot: u32,
}

/// A block that must be copied before its new holder writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockCopy {
    pub source: BlockId,
    pub target: BlockId,
}

/// A request's tokens, how many of them are computed, and the blocks that hold their keys and values.
///
/// Running requests hold blocks; waiting ones hold none and have computed nothing. What every step looks at comes
/// first: two or three lines of the processor's cache a request.
#[derive(Debug, Clone)]
#[repr(C, align(128))]
pub struct Request {
    pub(super) id: u64,
    pub(super) rank: Rank,
    pub(super) num_computed_tokens: usize,
    /// Tokens of the step in flight; 0 outside a step.
    pub(super) num_scheduled_tokens: usize,
    /// Its first blocks that have been made findable, or found.
    pub(super) num_findable_blocks: usize,
    /// Its row of the last plan's block table.
    pub(super) table_row: u32,
    /// Counts changes of `blocks` other than blocks added at the end.
    pub(super) table_version: u32,
    pub(super) is_running: bool,
    /// Whether the block it writes to next may be another choice's too.
    pub(super) shares_last_block: bool,
    /// Whether `choices` is not empty.
    pub(super) has_choices: bool,
    /// Whether logits of prompt positions are still wanted.
    pub(super) wants_prompt_rows: bool,
    /// Guesses among the tokens of the step in flight; they are its last.
    pub(super) num_scheduled_drafts: u32,
    /// Prompt, then output.
    pub(super) tokens: Vec<u32>,
    pub(super) blocks: Vec<BlockId>,
    /// Guesses of the tokens after those known, for the next step; after one, those whose keys and values it wrote.
    pub(super) drafts: Vec<u32>,
    /// The copy its next step begins with. Until that is done the source is held too, so a failed step can be retried.
    pub(super) copy: Option<BlockCopy>,
    pub(super) num_prompt_tokens: usize,
    /// Whether `drafts` were computed, and the next token appended is held against the first of them.
    pub(super) drafts_are_computed: bool,
    /// Prompt positions whose logits were delivered.
    pub(super) num_prompt_rows: usize,
    /// Hashes of its first full blocks, as far as they were needed.
    pub(super) hashes: Vec<BlockHash>,
    /// The other choices, which start once the prompt is computed.
    pub(super) choices: Vec<u64>,
    /// The step that took its blocks; 0 if none did.
    pub(super) preempted_in_step: usize,
}

impl Request {
    pub(super) fn new(id: u64, prompt_ids: Vec<u32>, rank: Rank) -> Self {
        Self {
            id,
            rank,
            is_running: false,
            num_prompt_tokens: prompt_ids.len(),
            tokens: prompt_ids,
            num_computed_tokens: 0,
            num_scheduled_tokens: 0,
            blocks: Vec::new(),
            hashes: Vec::new(),
            num_findable_blocks: 0,
            copy: None,
            shares_last_block: false,
            choices: Vec::new(),
            has_choices: false,
            wants_prompt_rows: false,
            num_scheduled_drafts: 0,
            drafts: Vec::new(),
            drafts_are_computed: false,
            num_prompt_rows: 0,
            preempted_in_step: 0,
            table_row: u32::MAX,
            table_version: 0,
        }
    }

    /// The caller's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Tokens generated so far.
    #[inline]
    pub fn output_ids(&self) -> &[u32] {
        &self.tokens[self.num_prompt_tokens..]
    }

    /// Prompt, then the tokens generated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens whose keys and values are in the cache.
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens
    }

    /// Known tokens not computed yet: the rest of a prefill, or the one token of a decoder.
    #[inline]
    pub(super) fn num_pending_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Whether it has one token to compute, a block of its own for it, and no guesses.
    #[inline]
    pub(super) fn is_plain_decoder(&self, block_size: usize) -> bool {
        self.tokens.len() == self.num_computed_tokens + 1
            && !self.shares_last_block
            && self.has_room(block_size)
            && self.drafts.is_empty()
    }

    /// Whether its blocks hold all its known tokens.
    #[inline]
    pub(super) fn has_room(&self, block_size: usize) -> bool {
        self.tokens.len() <= self.blocks.len() * block_size
    }

    /// Whether the step in flight reaches the last known token, whose logits give the next one.
    #[inline]
    pub(super) fn samples_in_step(&self) -> bool {
        self.num_scheduled_tokens > 0 && self.num_known_in_step() == self.tokens.len()
    }

    /// Whether its step may ask for more rows of logits than the next token's.
    #[inline]
    pub(super) fn has_other_rows(&self) -> bool {
        self.has_choices || self.wants_prompt_rows || self.num_scheduled_drafts > 0
    }

    /// Known tokens that are computed once the step in flight is.
    #[inline]
    pub(super) fn num_known_in_step(&self) -> usize {
        self.num_computed_tokens + self.num_scheduled_tokens - self.num_scheduled_drafts as usize
    }

    /// Prompt positions of the step in flight whose logits say something of the next prompt token, and are wanted.
    pub(super) fn prompt_rows_in_step(&self) -> std::ops::Range<usize> {
        if !self.wants_prompt_rows {
            return 0..0;
        }
        let start = self.num_computed_tokens.max(self.num_prompt_rows);
        start..self.num_known_in_step().min(self.num_prompt_tokens - 1).max(start)
    }

    /// Adds a generated token; one that was guessed and computed needs no computing any more.
    #[inline]
    pub(super) fn append(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        if self.drafts.is_empty() {
            return false;
        }
        if self.drafts_are_computed && self.drafts[0] == token {
            self.drafts.remove(0);
            self.num_computed_tokens += 1;
            return true;
        }
        self.forget_drafts();
        false
    }

    pub(super) fn forget_drafts(&mut self) {
        self.drafts.clear();
        self.drafts_are_computed = false;
    }

    /// Blocks up to the last token of the step in flight.
    #[inline]
    pub(super) fn num_blocks_in_step(&self, block_size: usize) -> usize {
        let num_blocks = self.blocks.len();
        let num_seen = self.num_computed_tokens + self.num_scheduled_tokens;
        // A decoder's last token lies in its last block, and dividing costs more than the rest of its row.
        if num_seen + block_size > num_blocks * block_size { num_blocks } else { num_seen.div_ceil(block_size) }
    }

    /// The hash of its full block `index`, and of all before.
    pub(super) fn block_hash(&mut self, index: usize, hasher: &BlockHasher, block_size: usize) -> BlockHash {
        while self.hashes.len() <= index {
            let start = self.hashes.len() * block_size;
            let hash = hasher.hash(self.hashes.last().copied(), &self.tokens[start..start + block_size]);
            self.hashes.push(hash);
        }
        self.hashes[index]
    }

    /// Whether it is the request, or one of its choices that have not started.
    #[inline]
    pub(super) fn answers_to(&self, id: u64) -> bool {
        self.id == id || self.choices.contains(&id)
    }
}
