//! Byte-level BPE.

pub mod stream;
