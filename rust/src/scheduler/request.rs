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

impl Rank {
    /// A rank that no request has.
    pub const NOBODY: Self = Self { priority: i32::MAX, arrival: u64::MAX, slot: u32::MAX };

    /// Whether both are one request's: no two arrive as the same.
    #[inline]
    pub fn is(self, other: Self) -> bool {
        self.arrival == other.arrival
    }
}

/// A block that must be copied before its new holder writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockCopy {
    pub source: BlockId,
    pub target: BlockId,
}

/// What makes a request's step other than one token in, one row of logits out; a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Traits(u8);

impl Traits {
    /// The block it writes to next may be another choice's too.
    pub const SHARES_LAST_BLOCK: Self = Self(1);
    /// `choices` is not empty.
    pub const HAS_CHOICES: Self = Self(2);
    /// Logits of prompt positions are still wanted.
    pub const WANTS_PROMPT_ROWS: Self = Self(4);
    /// `drafts` is not empty, or some are in the step in flight.
    pub const HAS_DRAFTS: Self = Self(8);
    /// Its step begins with a copy.
    pub const HAS_COPY: Self = Self(16);
    /// Its step asks for more rows of logits than the next token's.
    pub const HAS_OTHER_ROWS: Self = Self(Self::HAS_CHOICES.0 | Self::WANTS_PROMPT_ROWS.0 | Self::HAS_DRAFTS.0);
    const ALL: Self = Self(31);
}

/// A request's tokens, how many of them are computed, and the blocks that hold their keys and values.
///
/// Running requests hold blocks; waiting ones hold none and have computed nothing. What every step looks at comes
/// first and fills one line of the processor's cache: of hundreds of requests no more would stay near.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Request {
    pub(super) id: u64,
    pub(super) rank: Rank,
    num_tokens: u32,
    num_computed_tokens: u32,
    /// Tokens of the step in flight; 0 outside a step.
    num_scheduled_tokens: u32,
    num_blocks: u32,
    last_token: u32,
    last_block: BlockId,
    /// Its first blocks that have been made findable, or found.
    num_findable_blocks: u32,
    /// Its row of the last plan's block table.
    pub(super) table_row: u32,
    /// Counts changes of `blocks` other than blocks added at the end.
    pub(super) table_version: u32,
    pub(super) is_running: bool,
    traits: Traits,
    // Here the second line begins.
    /// Prompt, then output.
    tokens: Vec<u32>,
    blocks: Vec<BlockId>,
    /// Hashes of its first full blocks, as far as they were needed.
    hashes: Vec<BlockHash>,
    /// Guesses of the tokens after those known, for the next step; after one, those whose keys and values it wrote.
    drafts: Vec<u32>,
    /// Guesses among the tokens of the step in flight; they are its last.
    num_scheduled_drafts: usize,
    /// Whether `drafts` were computed, and the next token appended is held against the first of them.
    drafts_are_computed: bool,
    /// The copy its next step begins with. Until that is done the source is held too, so a failed step can be retried.
    copy: Option<BlockCopy>,
    pub(super) num_prompt_tokens: usize,
    /// Prompt positions whose logits were delivered.
    num_prompt_rows: usize,
    /// The other choices, which start once the prompt is computed.
    choices: Vec<u64>,
    /// The step that took its blocks; 0 if none did.
    pub(super) preempted_in_step: usize,
}

const _: () = assert!(std::mem::offset_of!(Request, tokens) == 64);

impl Request {
    /// A request that waits and holds nothing.
    pub(super) fn new(id: u64, prompt_ids: Vec<u32>, rank: Rank) -> Self {
        Self {
            id,
            rank,
            num_tokens: prompt_ids.len() as u32,
            last_token: prompt_ids.last().copied().unwrap_or_default(),
            num_prompt_tokens: prompt_ids.len(),
            tokens: prompt_ids,
            num_computed_tokens: 0,
            num_scheduled_tokens: 0,
            num_blocks: 0,
            last_block: 0,
            num_findable_blocks: 0,
            table_row: u32::MAX,
            table_version: 0,
            is_running: false,
            traits: Traits::default(),
            blocks: Vec::new(),
            hashes: Vec::new(),
            drafts: Vec::new(),
            num_scheduled_drafts: 0,
            drafts_are_computed: false,
            copy: None,
            num_prompt_rows: 0,
            choices: Vec::new(),
            preempted_in_step: 0,
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
    #[inline]
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens as usize
    }

    #[inline]
    pub(super) fn has(&self, traits: Traits) -> bool {
        self.traits.0 & traits.0 != 0
    }

    fn set(&mut self, traits: Traits, value: bool) {
        self.traits.0 = if value { self.traits.0 | traits.0 } else { self.traits.0 & !traits.0 };
    }

    #[inline]
    pub(super) fn num_tokens(&self) -> usize {
        self.num_tokens as usize
    }

    #[inline]
    pub(super) fn last_token(&self) -> u32 {
        self.last_token
    }

    #[inline]
    pub(super) fn num_scheduled_tokens(&self) -> usize {
        self.num_scheduled_tokens as usize
    }

    #[inline]
    pub(super) fn num_scheduled_drafts(&self) -> usize {
        self.num_scheduled_drafts
    }

    /// Known tokens not computed yet: the rest of a prefill, or the one token of a decoder.
    #[inline]
    pub(super) fn num_pending_tokens(&self) -> usize {
        (self.num_tokens - self.num_computed_tokens) as usize
    }

    /// Whether it has one token to compute, its last block is its own and has room for it, and it has nothing else to
    /// do.
    #[inline]
    pub(super) fn is_plain_decoder(&self, block_size: usize) -> bool {
        self.num_tokens == self.num_computed_tokens + 1
            && !self.has(Traits::ALL)
            && self.has_room(block_size)
            && self.num_tokens() + block_size > self.num_blocks() * block_size
    }

    /// Whether its blocks hold all its known tokens.
    #[inline]
    pub(super) fn has_room(&self, block_size: usize) -> bool {
        self.num_tokens() <= self.num_blocks as usize * block_size
    }

    /// Whether the step in flight reaches the last known token, whose logits give the next one.
    #[inline]
    pub(super) fn samples_in_step(&self) -> bool {
        self.num_scheduled_tokens > 0 && self.num_known_in_step() == self.num_tokens()
    }

    /// Known tokens that are computed once the step in flight is.
    #[inline]
    pub(super) fn num_known_in_step(&self) -> usize {
        // The number of drafts is in the second line.
        let num_drafts = if self.has(Traits::HAS_DRAFTS) { self.num_scheduled_drafts } else { 0 };
        self.num_seen_in_step() - num_drafts
    }

    /// Known tokens and guesses that are computed once the step in flight is.
    #[inline]
    pub(super) fn num_seen_in_step(&self) -> usize {
        (self.num_computed_tokens + self.num_scheduled_tokens) as usize
    }

    /// Prompt positions of the step in flight whose logits say something of the next prompt token, and are wanted.
    pub(super) fn prompt_rows_in_step(&self) -> std::ops::Range<usize> {
        if !self.has(Traits::WANTS_PROMPT_ROWS) {
            return 0..0;
        }
        let start = self.num_computed_tokens().max(self.num_prompt_rows);
        start..self.num_known_in_step().min(self.num_prompt_tokens - 1).max(start)
    }

    /// Gives it tokens of the step being planned.
    #[inline]
    pub(super) fn take(&mut self, num_tokens: usize) {
        self.num_scheduled_tokens = num_tokens as u32;
    }

    /// Adds its first guesses to its tokens of the step being planned.
    pub(super) fn take_drafts(&mut self, num_drafts: usize) {
        self.num_scheduled_drafts = num_drafts;
        self.num_scheduled_tokens += num_drafts as u32;
        self.note_drafts();
    }

    fn note_drafts(&mut self) {
        self.set(Traits::HAS_DRAFTS, !self.drafts.is_empty() || self.num_scheduled_drafts > 0);
    }

    /// Forgets the step in flight. Returns how many tokens it had in it.
    #[inline]
    pub(super) fn drop_step(&mut self) -> usize {
        if self.has(Traits::HAS_DRAFTS) {
            self.num_scheduled_drafts = 0;
            self.note_drafts();
        }
        std::mem::take(&mut self.num_scheduled_tokens) as usize
    }

    /// Counts the tokens of the step in flight as computed, its guesses not yet. Returns how many it tried.
    #[inline]
    pub(super) fn complete_step(&mut self) -> usize {
        if !self.has(Traits::HAS_OTHER_ROWS) {
            self.num_computed_tokens += std::mem::take(&mut self.num_scheduled_tokens);
            return 0;
        }
        if self.has(Traits::WANTS_PROMPT_ROWS) {
            self.num_prompt_rows = self.num_prompt_rows.max(self.prompt_rows_in_step().end);
            self.set(Traits::WANTS_PROMPT_ROWS, self.num_prompt_rows + 1 < self.num_prompt_tokens);
        }
        self.num_computed_tokens = self.num_known_in_step() as u32;
        self.num_scheduled_tokens = 0;
        let num_drafts = std::mem::take(&mut self.num_scheduled_drafts);
        self.drafts.truncate(num_drafts);
        self.drafts_are_computed = !self.drafts.is_empty();
        self.note_drafts();
        self.drafts.len()
    }

    /// Adds a generated token; `true`: it was guessed and computed, and needs no computing any more.
    #[inline]
    pub(super) fn append(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        self.num_tokens += 1;
        self.last_token = token;
        self.has(Traits::HAS_DRAFTS) && self.compare_with_draft(token)
    }

    fn compare_with_draft(&mut self, token: u32) -> bool {
        if !self.drafts_are_computed || self.drafts.first() != Some(&token) {
            self.set_drafts(&[]);
            return false;
        }
        self.drafts.remove(0);
        self.note_drafts();
        self.num_computed_tokens += 1;
        true
    }

    pub(super) fn drafts(&self) -> &[u32] {
        &self.drafts
    }

    pub(super) fn set_drafts(&mut self, drafts: &[u32]) {
        self.drafts.clear();
        self.drafts.extend_from_slice(drafts);
        self.drafts_are_computed = false;
        self.note_drafts();
    }

    /// The guesses of the step in flight.
    pub(super) fn drafts_in_step(&self) -> &[u32] {
        &self.drafts[..self.num_scheduled_drafts]
    }

    pub(super) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    #[inline]
    pub(super) fn num_blocks(&self) -> usize {
        self.num_blocks as usize
    }

    #[inline]
    pub(super) fn last_block(&self) -> BlockId {
        self.last_block
    }

    pub(super) fn reserve_blocks(&mut self, num_blocks: usize) {
        self.blocks.reserve(num_blocks);
        self.hashes.reserve(num_blocks.saturating_sub(self.hashes.len()));
    }

    #[inline]
    pub(super) fn push_block(&mut self, block: BlockId) {
        self.blocks.push(block);
        self.num_blocks += 1;
        self.last_block = block;
    }

    pub(super) fn clear_blocks(&mut self) {
        self.blocks.clear();
        self.num_blocks = 0;
        self.table_version += 1;
    }

    pub(super) fn copy(&self) -> Option<BlockCopy> {
        self.copy
    }

    /// Takes a block of its own in the place of one it shares; its next step begins with the copy.
    pub(super) fn copy_block(&mut self, index: usize, target: BlockId) {
        let source = std::mem::replace(&mut self.blocks[index], target);
        self.last_block = self.blocks[self.blocks.len() - 1];
        self.table_version += 1;
        self.copy = Some(BlockCopy { source, target });
        self.set(Traits::HAS_COPY, true);
    }

    /// The copy is done, or no longer wanted. Returns it.
    pub(super) fn take_copy(&mut self) -> Option<BlockCopy> {
        self.set(Traits::HAS_COPY, false);
        self.copy.take()
    }

    pub(super) fn set_shares_last_block(&mut self, value: bool) {
        self.set(Traits::SHARES_LAST_BLOCK, value);
    }

    pub(super) fn set_wants_prompt_rows(&mut self, value: bool) {
        self.set(Traits::WANTS_PROMPT_ROWS, value);
    }

    pub(super) fn choices(&self) -> &[u64] {
        &self.choices
    }

    pub(super) fn set_choices(&mut self, choices: Vec<u64>) {
        self.set(Traits::HAS_CHOICES, !choices.is_empty());
        self.choices = choices;
    }

    pub(super) fn take_choices(&mut self) -> Vec<u64> {
        self.set(Traits::HAS_CHOICES, false);
        std::mem::take(&mut self.choices)
    }

    /// The first `num_blocks` of its blocks came from the prefix cache, and all their tokens are computed.
    pub(super) fn set_found(&mut self, num_blocks: usize, block_size: usize) {
        self.num_findable_blocks = num_blocks as u32;
        self.num_computed_tokens = (num_blocks * block_size) as u32;
    }

    /// The next of its blocks to be made findable, once it is full of computed tokens.
    #[inline]
    pub(super) fn next_findable_block(&self, block_size: usize) -> Option<usize> {
        let index = self.num_findable_blocks as usize;
        (self.num_computed_tokens() >= (index + 1) * block_size).then_some(index)
    }

    #[inline]
    pub(super) fn num_findable_blocks(&self) -> usize {
        self.num_findable_blocks as usize
    }

    /// Counts one block more as findable.
    pub(super) fn count_findable_block(&mut self) {
        self.num_findable_blocks += 1;
    }

    /// Back to a request that waits and has computed nothing; whoever calls it has released its blocks.
    pub(super) fn reset(&mut self) {
        self.clear_blocks();
        self.set_found(0, 1);
        self.drop_step();
        self.set_shares_last_block(false);
        self.is_running = false;
    }

    /// Blocks up to the last token of the step in flight.
    #[inline]
    pub(super) fn num_blocks_in_step(&self, block_size: usize) -> usize {
        let num_blocks = self.num_blocks();
        let num_seen = self.num_seen_in_step();
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

    /// Whether what is kept twice agrees.
    pub(super) fn is_consistent(&self) -> bool {
        self.tokens.len() == self.num_tokens()
            && self.tokens.last() == Some(&self.last_token)
            && self.blocks.len() == self.num_blocks()
            && self.blocks.last().is_none_or(|&block| block == self.last_block)
            && self.has(Traits::HAS_CHOICES) != self.choices.is_empty()
            && self.has(Traits::HAS_DRAFTS) == (!self.drafts.is_empty() || self.num_scheduled_drafts > 0)
            && self.has(Traits::HAS_COPY) == self.copy.is_some()
    }

    /// Whether it is the request, or one of its choices that have not started.
    #[inline]
    pub(super) fn answers_to(&self, id: u64) -> bool {
        self.id == id || self.choices.contains(&id)
    }
}
