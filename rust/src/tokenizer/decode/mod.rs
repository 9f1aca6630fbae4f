//! Decodes ids into text: joined tokens, streams and offsets.

pub mod join;
pub mod offsets;
pub mod stream;
pub mod token_stream;
