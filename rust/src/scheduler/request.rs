//! What the scheduler knows of a request.

use super::BlockId;

/// A request's tokens, how many of them are computed, and the blocks that hold their keys and values.
///
/// Running requests hold blocks; waiting ones hold none and have computed nothing.
#[derive(Debug, Clone)]
pub struct Request {
    pub(super) id: u64,
    /// Prompt, then output.
    pub(super) tokens: Vec<u32>,
    pub(super) num_prompt_tokens: usize,
    pub(super) num_computed_tokens: usize,
    /// Tokens of the step in flight; 0 outside a step.
    pub(super) num_scheduled_tokens: usize,
    pub(super) blocks: Vec<BlockId>,
    /// Place in the order of arrival.
    pub(super) arrival: u64,
}

impl Request {
    pub(super) fn new(id: u64, prompt_ids: Vec<u32>, arrival: u64) -> Self {
        Self {
            id,
            num_prompt_tokens: prompt_ids.len(),
            tokens: prompt_ids,
            num_computed_tokens: 0,
            num_scheduled_tokens: 0,
            blocks: Vec::new(),
            arrival,
        }
    }

    /// The caller's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Tokens generated so far.
    pub fn output_ids(&self) -> &[u32] {
        &self.tokens[self.num_prompt_tokens..]
    }

    /// Tokens whose keys and values are in the cache.
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens
    }

    /// Known tokens not computed yet: the rest of a prefill, or the one token of a decoder.
    pub(super) fn num_pending_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Whether the step in flight reaches the last known token, whose logits give the next one.
    pub(super) fn samples_in_step(&self) -> bool {
        self.num_scheduled_tokens > 0 && self.num_computed_tokens + self.num_scheduled_tokens == self.tokens.len()
    }
}
