//! The tokens of whole vocabularies and of earlier pieces, found by the bytes of a piece.

pub mod key;
pub mod table;
pub mod whole;
