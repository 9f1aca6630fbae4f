//! A step's arrays, as the model takes them: a flattened batch without padding.

use super::Request;

/// What one forward pass computes. T tokens, R requests, S rows of logits, C copies.
///
/// The scheduler fills the same buffers for each step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// The tokens, request after request (T).
    pub token_ids: Vec<i64>,
    /// Each token's position in its request (T).
    pub positions: Vec<i64>,
    /// Where each token's keys and values go: `block * block_size + offset` (T).
    pub slot_mapping: Vec<i64>,
    /// Where each request's tokens begin, and the end (R + 1).
    pub query_start: Vec<i32>,
    /// Tokens of each request in the cache once this step has run (R).
    pub seq_lens: Vec<i32>,
    /// Each request's blocks up to its length, padded with 0 (R × `max_blocks`).
    pub block_tables: Vec<i32>,
    /// Row length of `block_tables`.
    pub max_blocks: usize,
    /// Flattened positions whose logits are sampled (S). A position comes several times where several choices of a
    /// request draw their first token from it.
    pub logits_indices: Vec<i64>,
    /// Whose tokens these are (R).
    pub request_ids: Vec<u64>,
    /// Blocks to copy before the pass, as source and target (C).
    pub block_copies: Vec<[i64; 2]>,
}

impl StepPlan {
    /// Forgets the last step, but keeps its memory.
    pub(super) fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.query_start.clear();
        self.query_start.push(0);
        self.seq_lens.clear();
        self.block_tables.clear();
        self.max_blocks = 0;
        self.logits_indices.clear();
        self.request_ids.clear();
        self.block_copies.clear();
    }

    /// Adds a request's scheduled tokens. All requests pushed, their rows of `block_tables` follow.
    pub(super) fn push(&mut self, request: &Request, block_size: usize) {
        let start = request.num_computed_tokens;
        let end = start + request.num_scheduled_tokens;
        let (mut block_idx, mut offset) = (start / block_size, start % block_size);
        self.token_ids.extend(request.tokens[start..end].iter().map(|&token| i64::from(token)));
        self.positions.extend(start as i64..end as i64);
        let mut position = start;
        while position < end {
            let count = (block_size - offset).min(end - position);
            let first = (request.blocks[block_idx] as usize * block_size + offset) as i64;
            self.slot_mapping.extend(first..first + count as i64);
            (position, block_idx, offset) = (position + count, block_idx + 1, 0);
        }
        self.query_start.push(self.token_ids.len() as i32);
        self.seq_lens.push(end as i32);
        self.request_ids.push(request.id);
        self.max_blocks = self.max_blocks.max(end.div_ceil(block_size));
        if let Some(copy) = request.copy {
            self.block_copies.push([i64::from(copy.source), i64::from(copy.target)]);
        }
        if request.samples_in_step() {
            let last = self.token_ids.len() as i64 - 1;
            self.logits_indices.extend(std::iter::repeat_n(last, 1 + request.choices.len()));
        }
    }

    /// Adds a request's row of `block_tables`, in the order of the pushes.
    pub(super) fn push_table_row(&mut self, request: &Request, block_size: usize) {
        let num_blocks = (request.num_computed_tokens + request.num_scheduled_tokens).div_ceil(block_size);
        let row_end = self.block_tables.len() + self.max_blocks;
        self.block_tables.extend(request.blocks[..num_blocks].iter().map(|&block| block as i32));
        self.block_tables.resize(row_end, 0);
    }
}
