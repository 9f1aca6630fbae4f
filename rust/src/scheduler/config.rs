//! A scheduler's limits and counters.

use crate::{Error, Result};

/// Limits of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Tokens a block holds.
    pub block_size: usize,
    /// Tokens a step computes at most.
    pub max_batch_tokens: usize,
    /// Tokens of one prompt that a step computes at most; `None`: all that the budget has left.
    pub max_prefill_chunk: Option<usize>,
    /// Requests that hold blocks at a time.
    pub max_running_requests: usize,
    /// Requests that may wait; one more is refused.
    pub max_waiting_requests: usize,
    /// Tokens of requests that may wait; a request that would exceed them is refused. `None`: any number.
    pub max_waiting_tokens: Option<usize>,
    /// Tokens a request may have, prompt and output.
    pub max_model_len: usize,
    /// Whether blocks that are full stay findable, so that a prompt that begins the same needn't be computed.
    pub prefix_caching: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_blocks: 1024,
            block_size: 16,
            max_batch_tokens: 2048,
            max_prefill_chunk: None,
            max_running_requests: 64,
            max_waiting_requests: 1024,
            max_waiting_tokens: None,
            max_model_len: 2048,
            prefix_caching: true,
        }
    }
}

impl SchedulerConfig {
    /// Checks that no limit is 0 and that slots and batch fit the plan's integers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the first field outside its range.
    pub fn validate(&self) -> Result<()> {
        let fields = [
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_prefill_chunk", self.max_prefill_chunk.unwrap_or(1)),
            ("max_running_requests", self.max_running_requests),
            ("max_waiting_requests", self.max_waiting_requests),
            ("max_model_len", self.max_model_len),
        ];
        match fields.into_iter().find(|(_, value)| *value == 0 || *value > i32::MAX as usize) {
            None => Ok(()),
            Some((name, value)) => {
                Err(Error::InvalidArgument(format!("`{name}` must be in [1, {}], got {value}", i32::MAX)))
            }
        }
    }
}

/// A scheduler's counters, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Number of running requests, which hold blocks.
    pub num_running: usize,
    /// Number of waiting requests, including preempted ones.
    pub num_waiting: usize,
    /// Number of tokens of the waiting requests.
    pub waiting_tokens: usize,
    /// Blocks of the cache.
    pub blocks_total: usize,
    /// Number of free blocks.
    pub blocks_free: usize,
    /// Number of blocks that can be found by their content, in use or free.
    pub blocks_cached: usize,
    /// Number of preemptions.
    pub num_preemptions: usize,
    /// Number of planned steps.
    pub num_steps: usize,
    /// Number of scheduled tokens, including recomputed ones.
    pub tokens_scheduled: usize,
    /// Number of prompt tokens looked up in the prefix cache, once per request.
    pub prefix_query_tokens: usize,
    /// Number of prompt tokens found in the prefix cache.
    pub prefix_hit_tokens: usize,
    /// Number of blocks copied for choices that diverge from a shared prompt.
    pub blocks_copied: usize,
    /// Number of draft tokens that were verified.
    pub drafts_computed: usize,
    /// Number of draft tokens that were accepted.
    pub drafts_accepted: usize,
}
