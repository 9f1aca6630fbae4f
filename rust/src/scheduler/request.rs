//! The scheduler's record of a request.

use super::{BlockHash, BlockHasher, BlockId};

/// Scheduling options of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestOptions {
    /// Largest number of new tokens; with 0, the caller removes the request once its prompt is computed.
    pub max_tokens: usize,
    /// Priority: lower values run first, equal values in order of arrival.
    pub priority: i32,
    /// Number of answers to the prompt, at least 1. Their ids follow the request's id.
    pub num_choices: usize,
    /// First of the prompt's own positions at which the caller wants logits; `None`: at none of them. The prefix cache
    /// is used for earlier positions only.
    pub first_prompt_row: Option<usize>,
    /// The adapter that computes the request, 0 for none; the prefix cache keeps adapters apart.
    pub adapter: u16,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { max_tokens: 1, priority: 0, num_choices: 1, first_prompt_row: None, adapter: 0 }
    }
}

/// A request's place in the scheduling order. No two requests ever share a rank, so the rank also identifies one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub priority: i32,
    pub arrival: u64,
    /// Slot that holds the request's state.
    pub slot: u32,
}

impl Rank {
    /// Rank that no request ever has.
    pub const NOBODY: Self = Self { priority: i32::MAX, arrival: u64::MAX, slot: u32::MAX };

    /// Whether both ranks belong to the same request: arrival numbers are unique.
    #[inline]
    pub fn is(self, other: Self) -> bool {
        self.arrival == other.arrival
    }
}

/// A shared block to copy before its new holder writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockCopy {
    pub source: BlockId,
    pub target: BlockId,
}

/// Bit flags for what makes a request's step differ from one token in and one logits row out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Traits(u8);

impl Traits {
    /// Another choice may hold the block that the request writes to next.
    pub const SHARES_LAST_BLOCK: Self = Self(1);
    /// `choices` is not empty.
    pub const HAS_CHOICES: Self = Self(2);
    /// The caller still waits for logits at prompt positions.
    pub const WANTS_PROMPT_ROWS: Self = Self(4);
    /// `drafts` is not empty, or the step in flight contains draft tokens.
    pub const HAS_DRAFTS: Self = Self(8);
    /// The request's next step begins with a block copy.
    pub const HAS_COPY: Self = Self(16);
    /// The request's step needs more logits rows than the one for its next token.
    pub const HAS_OTHER_ROWS: Self = Self(Self::HAS_CHOICES.0 | Self::WANTS_PROMPT_ROWS.0 | Self::HAS_DRAFTS.0);
    const ALL: Self = Self(31);
}

/// A request's tokens, the number already computed, and the blocks that hold their keys and values.
///
/// Running requests hold blocks; waiting requests hold none and have nothing computed. The fields that every step
/// reads come first and fill one cache line: with hundreds of requests, no more would stay in the fastest cache.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Request {
    pub(super) id: u64,
    pub(super) rank: Rank,
    num_tokens: u32,
    num_computed_tokens: u32,
    /// Number of tokens in the step in flight; 0 outside a step.
    num_scheduled_tokens: u32,
    num_blocks: u32,
    last_token: u32,
    last_block: BlockId,
    /// Number of leading blocks that are registered in, or came from, the prefix cache.
    num_findable_blocks: u32,
    /// The request's row in the last plan's block table.
    pub(super) table_row: u32,
    /// Version of `blocks`; every change but appending a block increments it.
    pub(super) table_version: u32,
    pub(super) is_running: bool,
    traits: Traits,
    pub(super) adapter: u16,
    // The second cache line begins here.
    /// Prompt tokens, then output tokens.
    tokens: Vec<u32>,
    blocks: Vec<BlockId>,
    /// Hashes of the leading full blocks, computed on demand.
    hashes: Vec<BlockHash>,
    /// Draft tokens for the next step; after a step, the drafts whose keys and values it wrote.
    drafts: Vec<u32>,
    /// Number of draft tokens at the end of the step in flight.
    num_scheduled_drafts: usize,
    /// Whether `drafts` were computed, so that the next appended token is compared with the first of them.
    drafts_are_computed: bool,
    /// Block copy that begins the next step. The source stays referenced until then, so a failed step can be retried.
    copy: Option<BlockCopy>,
    pub(super) num_prompt_tokens: usize,
    /// Number of tokens found in the prefix cache when the request first ran.
    num_cached_tokens: usize,
    /// Number of prompt positions whose logits were delivered, or come before the first one wanted.
    num_prompt_rows: usize,
    /// Ids of the other choices, which start once the prompt is computed.
    choices: Vec<u64>,
    /// The step that preempted the request; 0 if none did.
    pub(super) preempted_in_step: usize,
}

const _: () = assert!(std::mem::offset_of!(Request, tokens) == 64);

impl Request {
    /// Creates a waiting request that holds no blocks.
    pub(super) fn new(id: u64, prompt_ids: Vec<u32>, rank: Rank) -> Self {
        Self {
            id,
            rank,
            num_tokens: prompt_ids.len() as u32,
            last_token: prompt_ids.last().copied().unwrap_or_default(),
            num_prompt_tokens: prompt_ids.len(),
            num_cached_tokens: 0,
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
            adapter: 0,
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

    /// The id that the caller chose.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The tokens generated so far.
    #[inline]
    pub fn output_ids(&self) -> &[u32] {
        &self.tokens[self.num_prompt_tokens..]
    }

    /// The prompt, then the tokens generated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens whose keys and values are in the cache.
    #[inline]
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens as usize
    }

    /// Number of prompt tokens that the prefix cache held when the request first ran.
    pub fn num_cached_tokens(&self) -> usize {
        self.num_cached_tokens
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

    /// Number of known tokens that are not computed yet: the rest of a prefill, or the one token of a decoding request.
    #[inline]
    pub(super) fn num_pending_tokens(&self) -> usize {
        (self.num_tokens - self.num_computed_tokens) as usize
    }

    /// Whether the request only has to compute one token, into a last block that is its own and has room.
    #[inline]
    pub(super) fn is_plain_decoder(&self, block_size: usize) -> bool {
        self.num_tokens == self.num_computed_tokens + 1
            && !self.has(Traits::ALL)
            && self.has_room(block_size)
            && self.num_tokens() + block_size > self.num_blocks() * block_size
    }

    /// Whether the request's blocks have room for all its known tokens.
    #[inline]
    pub(super) fn has_room(&self, block_size: usize) -> bool {
        self.num_tokens() <= self.num_blocks as usize * block_size
    }

    /// Whether the step in flight computes the last known token, and so yields logits for the next one.
    #[inline]
    pub(super) fn samples_in_step(&self) -> bool {
        self.num_scheduled_tokens > 0 && self.num_known_in_step() == self.num_tokens()
    }

    /// Number of known tokens that will be computed when the step in flight completes.
    #[inline]
    pub(super) fn num_known_in_step(&self) -> usize {
        // The number of drafts lies in the second cache line.
        let num_drafts = if self.has(Traits::HAS_DRAFTS) { self.num_scheduled_drafts } else { 0 };
        self.num_seen_in_step() - num_drafts
    }

    /// Number of known and draft tokens that will be computed when the step in flight completes.
    #[inline]
    pub(super) fn num_seen_in_step(&self) -> usize {
        (self.num_computed_tokens + self.num_scheduled_tokens) as usize
    }

    /// Prompt positions of the step in flight whose logits the caller wants, to score the next prompt token.
    pub(super) fn prompt_rows_in_step(&self) -> std::ops::Range<usize> {
        if !self.has(Traits::WANTS_PROMPT_ROWS) {
            return 0..0;
        }
        let start = self.num_computed_tokens().max(self.num_prompt_rows);
        start..self.num_known_in_step().min(self.num_prompt_tokens - 1).max(start)
    }

    /// Schedules tokens of the request in the step being planned.
    #[inline]
    pub(super) fn take(&mut self, num_tokens: usize) {
        self.num_scheduled_tokens = num_tokens as u32;
    }

    /// Adds the request's first draft tokens to the step being planned.
    pub(super) fn take_drafts(&mut self, num_drafts: usize) {
        self.num_scheduled_drafts = num_drafts;
        self.num_scheduled_tokens += num_drafts as u32;
        self.note_drafts();
    }

    fn note_drafts(&mut self) {
        self.set(Traits::HAS_DRAFTS, !self.drafts.is_empty() || self.num_scheduled_drafts > 0);
    }

    /// Removes the request from the step in flight. Returns the number of tokens it had there.
    #[inline]
    pub(super) fn drop_step(&mut self) -> usize {
        if self.has(Traits::HAS_DRAFTS) {
            self.num_scheduled_drafts = 0;
            self.note_drafts();
        }
        std::mem::take(&mut self.num_scheduled_tokens) as usize
    }

    /// Marks the known tokens of the step in flight as computed, but not its drafts. Returns the number of drafts.
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

    /// Appends a generated token. Returns `true` if a draft predicted the token, so that it is computed already.
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

    /// Draft tokens of the step in flight.
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

    /// Replaces a shared block with one of the request's own; the next step begins with the copy.
    pub(super) fn copy_block(&mut self, index: usize, target: BlockId) {
        let source = std::mem::replace(&mut self.blocks[index], target);
        self.last_block = self.blocks[self.blocks.len() - 1];
        self.table_version += 1;
        self.copy = Some(BlockCopy { source, target });
        self.set(Traits::HAS_COPY, true);
    }

    /// Returns and clears the pending copy, once it is done or no longer needed.
    pub(super) fn take_copy(&mut self) -> Option<BlockCopy> {
        self.set(Traits::HAS_COPY, false);
        self.copy.take()
    }

    pub(super) fn set_shares_last_block(&mut self, value: bool) {
        self.set(Traits::SHARES_LAST_BLOCK, value);
    }

    /// Asks for logits at the prompt's positions from `first` on; the last position's logits come anyway.
    pub(super) fn set_prompt_rows(&mut self, first: Option<usize>) {
        self.num_prompt_rows = first.unwrap_or(0);
        self.set(
            Traits::WANTS_PROMPT_ROWS,
            first.is_some_and(|first| first.saturating_add(1) < self.num_prompt_tokens),
        );
    }

    /// Number of tokens that may come from the prefix cache: all before the first position whose logits are wanted.
    pub(super) fn num_cacheable_tokens(&self) -> usize {
        let last = self.num_tokens() - 1;
        if self.has(Traits::WANTS_PROMPT_ROWS) { self.num_prompt_rows.min(last) } else { last }
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

    /// Records that the first `num_blocks` blocks came from the prefix cache with all their tokens computed.
    pub(super) fn set_found(&mut self, num_blocks: usize, block_size: usize) {
        self.num_findable_blocks = num_blocks as u32;
        self.num_computed_tokens = (num_blocks * block_size) as u32;
    }

    /// Records that all tokens computed so far came from the prefix cache.
    pub(super) fn keep_num_cached_tokens(&mut self) {
        self.num_cached_tokens = self.num_computed_tokens();
    }

    /// Index of the next block to register in the prefix cache, once that block is full of computed tokens.
    #[inline]
    pub(super) fn next_findable_block(&self, block_size: usize) -> Option<usize> {
        let index = self.num_findable_blocks as usize;
        (self.num_computed_tokens() >= (index + 1) * block_size).then_some(index)
    }

    #[inline]
    pub(super) fn num_findable_blocks(&self) -> usize {
        self.num_findable_blocks as usize
    }

    /// Counts one more block as registered in the prefix cache.
    pub(super) fn count_findable_block(&mut self) {
        self.num_findable_blocks += 1;
    }

    /// Returns the request to its waiting state with nothing computed. The caller has released its blocks.
    pub(super) fn reset(&mut self) {
        self.clear_blocks();
        self.set_found(0, 1);
        self.drop_step();
        self.set_shares_last_block(false);
        self.is_running = false;
    }

    /// Number of blocks up to the last token of the step in flight.
    #[inline]
    pub(super) fn num_blocks_in_step(&self, block_size: usize) -> usize {
        let num_blocks = self.num_blocks();
        let num_seen = self.num_seen_in_step();
        // A decoding request's last token lies in its last block; a division would cost more than the rest of its row.
        if num_seen + block_size > num_blocks * block_size { num_blocks } else { num_seen.div_ceil(block_size) }
    }

    /// Hash of the full block `index`, which covers all blocks before it and the adapter.
    pub(super) fn block_hash(&mut self, index: usize, hasher: &BlockHasher, block_size: usize) -> BlockHash {
        while self.hashes.len() <= index {
            let start = self.hashes.len() * block_size;
            // Before the first block stands the adapter's number, which is no hash but by a chance of 2⁻¹¹².
            let parent = self.hashes.last().copied().or(BlockHash::new(u128::from(self.adapter)));
            let hash = hasher.hash(parent, &self.tokens[start..start + block_size]);
            self.hashes.push(hash);
        }
        self.hashes[index]
    }

    /// Whether redundant fields agree.
    pub(super) fn is_consistent(&self) -> bool {
        self.tokens.len() == self.num_tokens()
            && self.tokens.last() == Some(&self.last_token)
            && self.blocks.len() == self.num_blocks()
            && self.blocks.last().is_none_or(|&block| block == self.last_block)
            && self.has(Traits::HAS_CHOICES) != self.choices.is_empty()
            && self.has(Traits::HAS_DRAFTS) == (!self.drafts.is_empty() || self.num_scheduled_drafts > 0)
            && self.has(Traits::HAS_COPY) == self.copy.is_some()
    }

    /// Whether `id` names this request or one of its choices that have not started.
    #[inline]
    pub(super) fn answers_to(&self, id: u64) -> bool {
        self.id == id || self.choices.contains(&id)
    }
}
