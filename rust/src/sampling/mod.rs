//! From a row of logits to a token.
//!
//! One row goes through `mask → penalties → banned ids → temperature → top-k → top-p → min-p → draw`, in place.
//! A draw depends on the row, the request's own history and its seed alone: never on the batch, the request's id or
//! the step. `tests/reference/sampling.py` is the slow twin of this module.

mod filter;
mod logprobs;
mod params;
mod penalties;
mod rng;
mod sample;

pub use params::SamplingParams;
pub use penalties::{TokenCounts, VocabMask};
pub use rng::{philox4x32_10, stream_key, uniform};
pub use sample::{RowSpec, Sampled, sample_rows};
