//! A step's arrays, as the model takes them: a flattened batch without padding.

use super::Request;

/// What one forward pass computes. T tokens, R requests, S rows of logits.
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
    /// Flattened positions whose logits are sampled (S).
    pub logits_indices: Vec<i64>,
    /// Whose tokens these are (R).
    pub request_ids: Vec<u64>,
}

impl StepPlan {
    /// The arrays of these requests' scheduled tokens.
    pub(super) fn build(requests: &[&Request], block_size: usize) -> Self {
        let mut plan = Self { query_start: vec![0], ..Self::default() };
        for request in requests {
            plan.push(request, block_size);
        }
        plan.fill_block_tables(requests, block_size);
        plan
    }

    fn push(&mut self, request: &Request, block_size: usize) {
        let start = request.num_computed_tokens;
        let end = start + request.num_scheduled_tokens;
        for position in start..end {
            let block = request.blocks[position / block_size] as usize;
            self.token_ids.push(i64::from(request.tokens[position]));
            self.positions.push(position as i64);
            self.slot_mapping.push((block * block_size + position % block_size) as i64);
        }
        self.query_start.push(self.token_ids.len() as i32);
        self.seq_lens.push(end as i32);
        self.request_ids.push(request.id);
        if request.samples_in_step() {
            self.logits_indices.push(self.token_ids.len() as i64 - 1);
        }
    }

    fn fill_block_tables(&mut self, requests: &[&Request], block_size: usize) {
        let num_blocks = |len: &i32| (*len as usize).div_ceil(block_size);
        self.max_blocks = self.seq_lens.iter().map(num_blocks).max().unwrap_or(0);
        self.block_tables = vec![0; requests.len() * self.max_blocks];
        for (row, (request, len)) in requests.iter().zip(&self.seq_lens).enumerate() {
            let start = row * self.max_blocks;
            for (cell, &block) in self.block_tables[start..].iter_mut().zip(&request.blocks[..num_blocks(len)]) {
                *cell = block as i32;
            }
        }
    }
}
