//! Tables that find tokens by the bytes of a piece: the tokens of the vocabulary, and the tokens of earlier pieces.

pub mod key;
pub mod table;
pub mod whole;
