//! `llm_core`: the per-token work of llm-oxide in pure Rust.
//!
//! The modules `answer`, `corpus`, `tokenizer`, `sampling`, `scheduler`, `speculation`, `grammar` and `kernels` never import each
//! other. `engine` joins them into one step, except `answer`, which reads the text that leaves it. `python` (behind the
//! feature `python`) only converts arguments and releases the GIL.

pub mod answer;
pub mod corpus;
pub mod engine;
pub mod error;
pub mod fields;
pub mod grammar;
// No fuzz target calls the kernels, and a sanitizer's checks in them take minutes to compile.
#[cfg(not(fuzzing))]
pub mod kernels;
#[cfg_attr(fuzzing, expect(dead_code, reason = "hints that only kernels give"))]
mod prefetch;
pub mod sampling;
pub mod scheduler;
pub mod speculation;
pub mod tokenizer;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
