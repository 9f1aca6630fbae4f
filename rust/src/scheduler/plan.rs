//! The arrays of a step as the model takes them: a flattened batch without padding.

use std::ops::Range;

use super::Request;
use super::request::{Rank, Traits};
use super::slots::Slots;
use crate::Result;

/// Inputs of one forward pass over T tokens of R requests, with S logits rows and C block copies.
///
/// The scheduler reuses the same buffers for every step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// Token ids, request after request (T).
    pub token_ids: Vec<i64>,
    /// Position of each token in its request (T).
    pub positions: Vec<i64>,
    /// Cache slot for each token's keys and values, `block * block_size + offset` (T).
    pub slot_mapping: Vec<i64>,
    /// Index of each request's first token, then the total (R + 1).
    pub query_start: Vec<i32>,
    /// Number of cached tokens of each request after this step (R).
    pub seq_lens: Vec<i32>,
    /// Blocks of each request up to its length, padded with 0 (R × `max_blocks`).
    pub block_tables: Vec<i32>,
    /// Row length of `block_tables`, possibly longer than any request needs.
    pub max_blocks: usize,
    /// Indices of the tokens whose logits are needed (S). An index repeats if several choices of a request draw their
    /// first token from it. [`Scheduler::complete_step`](super::Scheduler) returns the purpose of each row.
    pub logits_indices: Vec<i64>,
    /// Ids of the requests (R).
    pub request_ids: Vec<u64>,
    /// The adapter of each request, 0 for none (R).
    pub adapters: Vec<u16>,
    /// Blocks to copy before the pass, as (source, target) (C × 2).
    pub block_copies: Vec<[i64; 2]>,
}

/// A request that has tokens in a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scheduled {
    pub rank: Rank,
    /// The request's row in the last plan's block table.
    pub table_row: u32,
    /// Number of blocks up to the request's last token in this step.
    pub num_blocks: u32,
}

impl Scheduled {
    /// Creates the entry of a request whose tokens in this step are fixed.
    #[inline]
    pub fn new(request: &Request, block_size: usize) -> Self {
        let num_blocks = request.num_blocks_in_step(block_size) as u32;
        Self { rank: request.rank, table_row: request.table_row, num_blocks }
    }
}

/// Purpose of a logits row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// Sampling a request's next token.
    Next,
    /// Sampling the token after a draft token; valid only if the row before sampled this draft.
    AfterDraft(u32),
    /// Scoring this prompt token.
    Prompt(u32),
}

/// Owner and purpose of a logits row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsRow {
    /// Id of the request or choice that owns the row.
    pub id: u64,
    /// Purpose of the row.
    pub kind: RowKind,
}

/// A logits row of the plan in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub rank: Rank,
    pub row: LogitsRow,
}

/// The plan of a step, the owners of its rows, and what its block table held in the step before.
#[derive(Debug, Default)]
pub(super) struct PlanBuffers {
    pub plan: StepPlan,
    /// Owner of each logits row.
    pub rows: Vec<Row>,
    table_rows: Vec<TableRow>,
    /// Buffers of `arrange`, kept between steps to reuse their memory.
    places: Vec<Option<Scheduled>>,
    homeless: Vec<Scheduled>,
}

/// Content of a block-table row: the leading blocks of a request at one version of its block list.
#[derive(Debug, Clone, Copy)]
struct TableRow {
    rank: Rank,
    version: u32,
    num_written: u32,
}

impl TableRow {
    /// A row of zeros that belongs to no request.
    const EMPTY: Self = Self { rank: Rank::NOBODY, version: 0, num_written: 0 };
}

/// Granularity of the row length in blocks: without it, each new block of the longest request would move all rows.
const ROW_STEP: usize = 8;

impl PlanBuffers {
    /// Fills the plan with all scheduled requests, decoding requests first. `are_plain` says that each of these has one
    /// token and one logits row.
    ///
    /// A decoding request keeps its row of the block table from step to step, so only its new blocks are written. Each
    /// request is accessed once: the states of 256 requests do not fit the first-level cache, so every access is a miss.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`](crate::Error::Internal) if a scheduled request is gone.
    pub fn fill(
        &mut self,
        scheduled: &mut [Scheduled],
        num_decodes: usize,
        are_plain: bool,
        slots: &mut Slots,
        block_size: usize,
    ) -> Result<()> {
        self.arrange(&mut scheduled[..num_decodes]);
        self.plan.clear();
        self.rows.clear();
        self.resize_table(scheduled.len(), scheduled.iter().map(|entry| entry.num_blocks).max().unwrap_or(0) as usize);
        let num_plain = if are_plain { num_decodes } else { 0 };
        self.fill_plain(&scheduled[..num_plain], slots, block_size)?;
        for (row, entry) in scheduled.iter().enumerate().skip(num_plain) {
            let request = slots.get_mut(entry.rank.slot)?;
            request.table_row = row as u32;
            self.plan.push(request, block_size);
            self.write_row(row, request, entry.num_blocks);
            push_rows(&mut self.rows, request);
        }
        Ok(())
    }

    /// Fills the first rows with decoding requests that have one token and one logits row each.
    fn fill_plain(&mut self, decodes: &[Scheduled], slots: &mut Slots, block_size: usize) -> Result<()> {
        let count = decodes.len();
        self.plan.resize(count);
        for (row, entry) in decodes.iter().enumerate() {
            let request = slots.get_mut(entry.rank.slot)?;
            let position = request.num_computed_tokens();
            let offset = position - (entry.num_blocks as usize - 1) * block_size;
            let plan = &mut self.plan;
            plan.token_ids[row] = i64::from(request.last_token());
            plan.positions[row] = position as i64;
            plan.slot_mapping[row] = (request.last_block() as usize * block_size + offset) as i64;
            plan.seq_lens[row] = position as i32 + 1;
            plan.request_ids[row] = request.id;
            plan.adapters[row] = request.adapter;
            request.table_row = row as u32;
            self.write_row(row, request, entry.num_blocks);
        }
        let next = |id: u64| LogitsRow { id, kind: RowKind::Next };
        let owners = decodes.iter().zip(&self.plan.request_ids);
        self.rows.extend(owners.map(|(entry, &id)| Row { rank: entry.rank, row: next(id) }));
        Ok(())
    }

    /// Keeps decoding requests in their previous rows where possible and puts the others into the gaps.
    fn arrange(&mut self, decodes: &mut [Scheduled]) {
        let Self { places, homeless, table_rows, .. } = self;
        places.clear();
        places.resize(decodes.len(), None);
        homeless.clear();
        for entry in decodes.iter() {
            let row = entry.table_row as usize;
            match places.get_mut(row) {
                Some(place) if table_rows.get(row).is_some_and(|held| held.rank.is(entry.rank)) => {
                    *place = Some(*entry)
                }
                _ => homeless.push(*entry),
            }
        }
        let mut homeless = homeless.iter();
        for (decode, place) in decodes.iter_mut().zip(places) {
            if let Some(entry) = place.as_ref().or_else(|| homeless.next()) {
                *decode = *entry;
            }
        }
    }

    fn resize_table(&mut self, num_rows: usize, max_blocks: usize) {
        let row_len = self.plan.max_blocks;
        if max_blocks > row_len || 2 * max_blocks + ROW_STEP < row_len {
            self.plan.max_blocks = max_blocks.next_multiple_of(ROW_STEP);
            self.plan.block_tables.clear();
            self.table_rows.clear();
        }
        self.plan.block_tables.resize(num_rows * self.plan.max_blocks, 0);
        self.table_rows.resize(num_rows, TableRow::EMPTY);
    }

    #[inline]
    fn write_row(&mut self, row: usize, request: &Request, num_blocks: u32) {
        let held = &mut self.table_rows[row];
        let is_same = held.rank.is(request.rank) && held.version == request.table_version;
        if is_same && held.num_written == num_blocks {
            return;
        }
        let row_len = self.plan.max_blocks;
        let cells = &mut self.plan.block_tables[row * row_len..][..row_len];
        let num_kept = if is_same && held.num_written <= num_blocks { held.num_written as usize } else { 0 };
        if num_kept == 0 {
            cells[..held.num_written as usize].fill(0);
        }
        *held = TableRow { rank: request.rank, version: request.table_version, num_written: num_blocks };
        let new = num_kept..num_blocks as usize;
        cells[new.clone()].iter_mut().zip(&request.blocks()[new]).for_each(|(cell, &block)| *cell = block as i32);
    }
}

impl StepPlan {
    /// Clears the last step but keeps its memory, and its block table for the next step.
    fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.query_start.clear();
        self.query_start.push(0);
        self.seq_lens.clear();
        self.logits_indices.clear();
        self.request_ids.clear();
        self.adapters.clear();
        self.block_copies.clear();
    }

    /// Makes room for the first rows, one token and one logits row each, and fills in what needs no request.
    fn resize(&mut self, num_rows: usize) {
        self.token_ids.resize(num_rows, 0);
        self.positions.resize(num_rows, 0);
        self.slot_mapping.resize(num_rows, 0);
        self.seq_lens.resize(num_rows, 0);
        self.request_ids.resize(num_rows, 0);
        self.adapters.resize(num_rows, 0);
        self.query_start.extend(1..=num_rows as i32);
        self.logits_indices.extend(0..num_rows as i64);
    }

    /// Appends a request's scheduled tokens.
    fn push(&mut self, request: &Request, block_size: usize) {
        let (start, end) = (request.num_computed_tokens(), request.num_seen_in_step());
        self.push_tokens(request, start..end, block_size);
        self.query_start.push(self.token_ids.len() as i32);
        self.seq_lens.push(end as i32);
        self.request_ids.push(request.id);
        self.adapters.push(request.adapter);
        if let Some(copy) = request.copy() {
            self.block_copies.push([i64::from(copy.source), i64::from(copy.target)]);
        }
        if request.has(Traits::HAS_OTHER_ROWS) {
            self.push_other_rows(request);
        } else if request.samples_in_step() {
            self.logits_indices.push(self.token_ids.len() as i64 - 1);
        }
    }

    /// Appends the logits rows of a request that may need more than one.
    fn push_other_rows(&mut self, request: &Request) {
        let num_tokens = self.token_ids.len() as i64;
        let first = num_tokens - request.num_scheduled_tokens() as i64;
        let rows = request.prompt_rows_in_step();
        self.logits_indices.extend(rows.map(|position| first + (position - request.num_computed_tokens()) as i64));
        if request.samples_in_step() {
            self.logits_indices.extend(num_tokens - 1 - request.num_scheduled_drafts() as i64..num_tokens);
            self.logits_indices.extend(request.choices().iter().map(|_| num_tokens - 1));
        }
    }

    fn push_tokens(&mut self, request: &Request, positions: Range<usize>, block_size: usize) {
        let known = positions.start..request.num_known_in_step();
        let drafts = request.drafts_in_step();
        self.token_ids.extend(request.tokens()[known].iter().chain(drafts).map(|&token| i64::from(token)));
        self.positions.extend(positions.start as i64..positions.end as i64);
        let (mut block_idx, mut offset) = (positions.start / block_size, positions.start % block_size);
        let mut left = positions.len();
        while left > 0 {
            let count = (block_size - offset).min(left);
            let first = (request.blocks()[block_idx] as usize * block_size + offset) as i64;
            self.slot_mapping.extend(first..first + count as i64);
            (left, block_idx, offset) = (left - count, block_idx + 1, 0);
        }
    }
}

/// Appends the owner of each logits row of a request, in the order of `logits_indices`.
fn push_rows(rows: &mut Vec<Row>, request: &Request) {
    let rank = request.rank;
    let mut push = |id: u64, kind: RowKind| rows.push(Row { rank, row: LogitsRow { id, kind } });
    if !request.has(Traits::HAS_OTHER_ROWS) {
        if request.samples_in_step() {
            push(request.id, RowKind::Next);
        }
        return;
    }
    let positions = request.prompt_rows_in_step();
    positions.for_each(|position| push(request.id, RowKind::Prompt(request.tokens()[position + 1])));
    if request.samples_in_step() {
        push(request.id, RowKind::Next);
        request.drafts_in_step().iter().for_each(|&draft| push(request.id, RowKind::AfterDraft(draft)));
        request.choices().iter().for_each(|&id| push(id, RowKind::Next));
    }
}
