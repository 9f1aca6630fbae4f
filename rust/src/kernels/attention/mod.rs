//! Causal attention in training, forward and backward, over sequences side by side in one tensor.
//!
//! Queries, keys and values are the columns of one product, `[T, heads + 2 kv_heads, D]`, and so are their gradients: no
//! head is copied, turned or joined outside the kernel. Rotation happens as a head is read, and is undone as its gradient
//! is written. Scores exist only for a block of queries at a time; the backward pass computes them again from the logarithm
//! of each row's sum. Blocks above the diagonal, and pairs of tokens of different sequences, are never visited.
//!
//! A sequence and a head of keys are one unit of work, which one thread computes in a fixed order: bits don't depend on the
//! number of threads, on the batch or on the machine's load.
//!
//! Source: Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", algorithms 1 and 2.

mod backward;
pub(crate) mod causal;
mod forward;
pub(crate) mod problem;
pub(crate) mod rows;
mod tile;
