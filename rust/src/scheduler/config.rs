//! A scheduler's limits and counters.

use crate::fields::{counters, settings};
use crate::{Error, Result};

settings! {
    /// Limits of a scheduler.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct SchedulerConfig {
        /// Number of tokens in a cache block.
        pub block_size: usize = 16,
        /// Largest number of tokens computed in a step.
        pub max_batch_tokens: usize = 2048,
        /// Largest number of tokens of one prompt computed in a step; `None`: as many as the step has room for.
        pub max_prefill_chunk: Option<usize> = None,
        /// Largest number of requests that hold blocks at a time.
        pub max_running_requests: usize = 64,
        /// Largest number of waiting requests; one more is refused.
        pub max_waiting_requests: usize = 1024,
        /// Largest number of tokens of waiting requests; a request that would exceed it is refused. `None`: any number.
        pub max_waiting_tokens: Option<usize> = None,
        /// Largest number of tokens of a request, prompt and output together.
        pub max_model_len: usize = 2048,
        /// Whether full blocks stay findable, so that a prompt with the same beginning reuses them.
        pub enable_prefix_caching: bool = true,
        own:
        /// Number of cache blocks.
        pub num_blocks: usize = 1024,
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

counters! {
    /// A scheduler's counters, for metrics.
    pub struct SchedulerStats {
        /// Requests that hold blocks.
        pub num_running,
        /// Requests in the queue, preempted ones included.
        pub num_waiting,
        /// Tokens of the requests in the queue.
        pub waiting_tokens,
        /// Blocks of the cache.
        pub blocks_total,
        /// Blocks without a holder.
        pub blocks_free,
        /// Blocks that a lookup by content finds, held or free.
        pub blocks_cached,
        /// Times a request lost its blocks to another.
        pub num_preemptions,
        /// Plans made.
        pub num_steps,
        /// Tokens planned, recomputed ones included.
        pub tokens_scheduled,
        /// Prompt tokens looked up in the prefix cache, once a request.
        pub prefix_query_tokens,
        /// Prompt tokens found in the prefix cache.
        pub prefix_hit_tokens,
        /// Blocks copied because the choices of one prompt diverged.
        pub blocks_copied,
        /// Draft tokens computed.
        pub drafts_computed,
        /// Draft tokens accepted.
        pub drafts_accepted,
    }
}
