//! Batches of short pieces that are merged together.

/// Maximum number of pieces in a batch.
pub const BATCH: usize = 16;

/// Maximum number of bytes of a piece in a batch.
pub const BATCH_BYTES: usize = 32;

/// The tokens of the pieces of a batch.
#[repr(C, align(64))]
pub struct MergedPieces {
    /// The tokens of each piece; entries past its count have no meaning.
    pub ids: [[u32; BATCH_BYTES]; BATCH],
    /// The number of tokens of each piece.
    pub counts: [u32; BATCH],
}
