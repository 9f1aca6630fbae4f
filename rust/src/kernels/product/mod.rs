//! Products `x · Wᵀ` of a few rows of activations with a linear layer's weights.
//!
//! Weights in f32 and bf16 stay in place, row after row, where PyTorch keeps them; quantised weights are `packed`. Each
//! output is one dot product, summed along its row in an order that depends on nothing else, so a row of activations gives
//! the same bits whatever rows run beside it.

#[cfg(target_arch = "x86_64")]
mod bf16_pairs;
pub(crate) mod linear;
pub(crate) mod low_rank;
pub(crate) mod packed;
pub(crate) mod prepared;
pub(crate) mod strip;
mod tests;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;
