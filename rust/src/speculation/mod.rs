//! Speculative decoding: proposes draft tokens that the model verifies in one pass.
//!
//! A draft costs only the rows it adds to a pass and cannot change an answer. Each row is sampled as if there were no
//! draft; a draft that differs from the sampled token is dropped together with all later ones.

mod ngram;

pub use ngram::NgramConfig;
