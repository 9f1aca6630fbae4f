//! Decode kernels for CPU: a transformer's step in one call, at the speed of the memory that holds its weights.
//!
//! Kernels read weights and cache where PyTorch has them; `tests/unit/test_kernels.py` holds them to PyTorch's own
//! forward pass. A row's result depends on the row alone: reductions run in an order fixed by its length, never by the
//! batch, the threads or the step.
#![expect(unsafe_code, reason = "vector instructions, memory that PyTorch owns, and rows shared out among threads")]
#![expect(clippy::needless_range_loop, reason = "tiles of registers read best by their indices")]

mod attention;
mod decoder;
mod experts;
mod linear;
mod memory;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod pass;
mod prepared;
mod rows;
mod simd;
mod team;

pub use attention::{CachePart, CacheShape};
pub use decoder::{Decoder, DecoderSpec, Experts, FeedForward, Layer, Linear, Step};
pub use memory::{Dtype, Matrix};
pub use rows::{Activation, Norm, Rope};
pub use simd::Isa;
pub use team::{Member, Team};
