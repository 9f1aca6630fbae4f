//! Sampling: turns a row of logits into a token.
//!
//! Each row goes through `mask → allowed ids → bias → penalties → banned ids → temperature → top-k → top-p → min-p →
//! typical-p → draw`. A draw depends only on the row, the request's own history and its seed, never on the batch, the
//! threads, the machine's vector width, the request's id or the step. `tests/reference/sampling.py` is the slow
//! reference implementation of this module.

mod draw;
mod exp;
mod filter;
mod logprobs;
mod mask;
mod params;
mod penalties;
mod rng;
mod row;
mod rows;
mod sample;
mod scale;
mod scan;

pub use logprobs::{TokenLogprob, token_logprobs};
pub use mask::{TokenMask, VocabMask};
pub use params::SamplingParams;
pub use penalties::{History, TokenCounts};
pub use rng::{philox4x32_10, stream_key, uniform};
pub use rows::Logit;
pub(crate) use rows::has_pool;
pub use sample::{RowSpec, Sampled, sample_rows};
