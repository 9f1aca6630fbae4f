//! Splits text into the pieces that merges stay within: added tokens, normalization, patterns.

pub mod aligned;
pub mod normalizer;
pub mod pipeline;
pub mod pretokenize;
pub mod special;
pub mod stages;
