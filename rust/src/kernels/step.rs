//! The input of a step, and its tokens as rows that run through the model in groups.

use super::cache::SPLIT_TOKENS;
use super::simd::Isa;

/// Rows that run through all layers together. More are split into groups, so that a group's buffers stay in the
/// second-level cache. A multiple of every set's tile.
pub(crate) const MAX_ROWS: usize = 66;
/// Rows for which every thread prepares the inputs of a product itself: that is faster than to split them and to wait for
/// each other.
pub(crate) const FEW_ROWS: usize = 2;
/// Rows of the largest tile.
const TILE_ROWS: usize = 6;

/// The arrays of a step, as planned by the scheduler: T tokens, R requests, S rows of logits.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Token ids (T).
    pub token_ids: &'a [i64],
    /// Position of each token in its request (T).
    pub positions: &'a [i64],
    /// Cache slot of each token's key and value (T).
    pub slot_mapping: &'a [i64],
    /// Index of each request's first token, then T (R + 1).
    pub query_start: &'a [i32],
    /// Cache blocks of each request (R, `max_blocks`).
    pub block_tables: &'a [i32],
    /// Row length of `block_tables`.
    pub max_blocks: usize,
    /// Tokens to return logits for, in ascending order (S).
    pub logits_indices: &'a [i64],
    /// The adapter of each request, 0 for none (R).
    pub adapters: &'a [u16],
}

impl StepInput<'_> {
    /// Returns one row per token.
    pub(crate) fn rows(&self) -> Vec<TokenRow> {
        let mut rows = Vec::with_capacity(self.token_ids.len());
        for (request, bounds) in self.query_start.windows(2).enumerate() {
            rows.extend((bounds[0] as usize..bounds[1] as usize).map(|row| TokenRow {
                token: self.token_ids[row] as usize,
                position: self.positions[row] as usize,
                slot: self.slot_mapping[row] as usize,
                request,
                adapter: self.adapters[request],
                first_split: 0,
                first_output: 0,
                end_output: 0,
            }));
        }
        for (output, row) in self.logits_indices.iter().enumerate() {
            let row = &mut rows[*row as usize];
            row.first_output = if row.has_logits() { row.first_output } else { output };
            row.end_output = output + 1;
        }
        rows
    }
}

/// One token on its way through the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenRow {
    pub token: usize,
    pub position: usize,
    pub slot: usize,
    pub request: usize,
    /// The adapter that computes the row; 0 for none.
    pub adapter: u16,
    /// Index of the token's first KV split among all splits of the group.
    pub first_split: usize,
    /// First row of logits; a token has several rows if several choices of a prompt begin there.
    pub first_output: usize,
    /// One past the last row of logits.
    pub end_output: usize,
}

impl TokenRow {
    /// Returns whether this row's logits are requested.
    pub fn has_logits(&self) -> bool {
        self.first_output < self.end_output
    }

    /// Returns the number of tokens up to this one, itself included.
    pub fn num_tokens(&self) -> usize {
        self.position + 1
    }

    /// Returns the number of KV splits of these tokens.
    pub fn num_splits(&self) -> usize {
        self.num_tokens().div_ceil(SPLIT_TOKENS)
    }
}

/// Returns the rows of each group but the last: a whole number of tiles, and about the same in all groups, since a small
/// group would read all weights for a few rows.
pub(crate) fn group_size(isa: Isa, num_rows: usize) -> usize {
    let (most, tile_rows) = group_limits(isa);
    let num_groups = num_rows.div_ceil(most).max(1);
    num_rows.div_ceil(num_groups).next_multiple_of(tile_rows)
}

/// Returns the most rows of a group, and what they are a multiple of. Tiles of AMX hold 16 rows.
fn group_limits(isa: Isa) -> (usize, usize) {
    if isa == Isa::Amx { (64, 16) } else { (MAX_ROWS, TILE_ROWS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_even_and_hold_all_rows() {
        for (isa, num_rows) in [Isa::Avx2, Isa::Amx].into_iter().flat_map(|isa| (1..1_000).map(move |num| (isa, num))) {
            let (most, tile_rows) = group_limits(isa);
            let size = group_size(isa, num_rows);
            let (num_groups, last) = (num_rows.div_ceil(size), (num_rows - 1) % size + 1);
            assert!(size <= most && most <= MAX_ROWS && size.is_multiple_of(tile_rows), "{num_rows}: {size}");
            assert_eq!(num_groups, num_rows.div_ceil(most), "{num_rows}");
            assert!(num_rows <= most || last + tile_rows * num_groups > size, "{num_rows}: {last} of {size}");
        }
    }

    #[test]
    fn a_token_may_have_several_rows_of_logits_or_none() {
        let step = StepInput {
            token_ids: &[5, 6, 7],
            positions: &[0, 1, 300],
            slot_mapping: &[4, 5, 9],
            query_start: &[0, 2, 3],
            block_tables: &[],
            max_blocks: 0,
            logits_indices: &[1, 1, 2],
            adapters: &[0, 0],
        };
        let rows = step.rows();
        let outputs: Vec<_> = rows.iter().map(|row| (row.first_output, row.end_output)).collect();
        assert_eq!(outputs, [(0, 0), (0, 2), (2, 3)]);
        let splits: Vec<_> = rows.iter().map(|row| (row.request, row.num_splits())).collect();
        assert_eq!(splits, [(0, 1), (0, 1), (1, 2)]);
    }
}
