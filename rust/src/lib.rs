//! `llm_core`: the per-token work of llm-oxide in pure Rust.
//!
//! The modules `tokenizer`, `sampling`, `scheduler`, `speculation` and `kernels` never import each other. `engine` joins
//! them into one step. `python` (behind the feature `python`) only converts arguments and releases the GIL.

pub mod engine;
pub mod error;
pub mod fields;
pub mod kernels;
mod prefetch;
pub mod sampling;
pub mod scheduler;
pub mod speculation;
pub mod tokenizer;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
