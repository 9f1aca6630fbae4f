//! CPU kernels: run a decoder-only transformer's step in one call, at the speed of the memory that holds its weights.
//!
//! Kernels read weights and cache in place, where PyTorch keeps them. `tests/rust/kernels` compares every instruction set
//! with a naive decoder, and `tests/unit/test_kernels.py` with PyTorch. A row's result depends on that row alone: the
//! length of a reduction fixes its order; batch size, threads and step never do.
//!
//! From the bottom up: `simd`, `memory` and `threads`; `row_ops` and `product` for one operation; `spec`, `step`, `cache`
//! and `buffers` for the data of a step; `phases` for a layer's parts in turn; `cpu_model` for callers. `attention` and
//! `pointwise` train, on the threads of `openmp`.
#![expect(unsafe_code, reason = "vector instructions, memory that PyTorch owns, and buffers split among threads")]
#![expect(clippy::needless_range_loop, reason = "loops over register tiles are clearest with indices")]

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod buffers;
mod cache;
mod cpu_model;
mod memory;
mod openmp;
mod phases;
mod pointwise;
mod product;
mod row_ops;
mod simd;
mod spec;
mod step;
mod threads;

pub use attention::problem::{AttentionRule, CausalAttention, HEAD_MULTIPLE, Kept, Rotation};
pub use attention::rows::{Bf16, Number};
pub use cache::{CacheFormat, CacheLayer, CachePart, CacheShape, SCALE_BYTES};
pub use cpu_model::CpuModel;
pub use memory::{Dtype, Format, Matrix};
pub use pointwise::Team;
pub use pointwise::adamw::{AdamW, Gradient, Trained, adamw, gradient_norm};
pub use pointwise::gelu::{Gelu, gelu};
pub use pointwise::logprobs::{Labels, Upstream};
pub use pointwise::norm::{Normed, RowNorm};
pub use product::linear::Linear;
pub use product::low_rank::{LowRank, LowRankPart};
pub use product::packed::parts::{MAX_PARTS, Part};
pub use product::packed::scheme::{GROUP, Scheme};
pub use row_ops::{Activation, Norm, QueryGrowth, Rope};
pub use simd::Isa;
pub use spec::{Experts, FeedForward, Layer, ModelSpec, Scoring, SharedExpert};
pub use step::StepInput;
pub use threads::{ThreadTeam, Worker};
